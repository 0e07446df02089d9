//! A client of a monitor's REST API: one request a connection, on the agent's own thread.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use lightv_api::contract::actions::{Action, ActionSpec};
use lightv_api::contract::instance::{InstanceInfo, InstanceState};
use lightv_api::contract::snapshot::{ForkSpec, SnapshotLoad};
use lightv_api::contract::vm::{VmState, VmStatePatch};
use lightv_api::event::{Happening, VmEvent};
use lightv_api::fault::FaultMessage;
use tokio::net::UnixStream;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::limits;

/// Why a monitor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmApiError {
    /// Nobody listens.
    #[error("Cannot reach the microVM at {}", socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The connection failed.
    #[error("Cannot talk to the microVM at {}", socket.display())]
    Talk {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: hyper::Error,
    },
    /// No answer in time.
    #[error("The microVM at {} has not answered in {} s", socket.display(), patience.as_secs())]
    Silent {
        /// Where.
        socket: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// It is no monitor of ours.
    #[error("The microVM at {} answers what it should not", socket.display())]
    Answer {
        /// Where.
        socket: PathBuf,
    },
}

/// A monitor's API.
#[derive(Debug, Clone, Copy)]
pub struct VmApi<'a> {
    socket: &'a Path,
    patience: Duration,
}

impl<'a> VmApi<'a> {
    /// That at `socket`, which has `patience` for an answer.
    #[must_use]
    pub const fn at(socket: &'a Path, patience: Duration) -> Self {
        Self { socket, patience }
    }

    /// Lets it stand still, or go on.
    ///
    /// # Errors
    /// [`VmApiError`].
    pub async fn set_state(self, state: VmState) -> Result<(), VmApiError> {
        let body = serde_json::to_vec(&VmStatePatch { state }).unwrap_or_default();
        self.call(Method::PATCH, "/vm", body).await.map(drop)
    }

    /// Asks its guest to end.
    ///
    /// # Errors
    /// [`VmApiError`].
    pub async fn press_ctrl_alt_del(self) -> Result<(), VmApiError> {
        let action_type = Action::SendCtrlAltDel;
        let body = serde_json::to_vec(&ActionSpec { action_type }).unwrap_or_default();
        self.call(Method::PUT, "/actions", body).await.map(drop)
    }

    /// Freezes its memory as it is now, for machines that begin from it.
    ///
    /// # Errors
    /// [`VmApiError`].
    pub async fn fork(self, spec: &ForkSpec) -> Result<(), VmApiError> {
        let body = serde_json::to_vec(spec).unwrap_or_default();
        self.call(Method::PUT, "/fork", body).await.map(drop)
    }

    /// Has it begin from a snapshot.
    ///
    /// # Errors
    /// [`VmApiError`].
    pub async fn load(self, load: &SnapshotLoad) -> Result<(), VmApiError> {
        let body = serde_json::to_vec(load).unwrap_or_default();
        self.call(Method::PUT, "/snapshot/load", body)
            .await
            .map(drop)
    }

    /// What it does.
    ///
    /// # Errors
    /// [`VmApiError`].
    pub async fn state(self) -> Result<InstanceState, VmApiError> {
        let body = self.call(Method::GET, "/", Vec::new()).await?;
        let info: Result<InstanceInfo, _> = serde_json::from_slice(&body);
        info.map(|info| info.state).map_err(|_| VmApiError::Answer {
            socket: self.socket.to_owned(),
        })
    }

    /// Waits for its end, as long as that takes: its exit status, and why. `None` when the connection ends before.
    pub async fn end(self) -> Option<(u8, String)> {
        let response = timeout(self.patience, self.send(Method::GET, "/events", Vec::new()));
        let mut body = response.await.ok()?.ok()?.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.ok()?.into_data() else {
                continue;
            };
            text.extend_from_slice(&piece);
            // Whole lines only; what is longer than any event is none.
            while let Some(length) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=length).collect();
                if let Some(end) = end_of(&line) {
                    return Some(end);
                }
            }
            if text.len() > limits::VM_ANSWER_BYTES_MAX {
                return None;
            }
        }
        None
    }

    async fn call(self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, VmApiError> {
        let answered = timeout(self.patience, self.exchange(method, path, body)).await;
        let silent = |_| VmApiError::Silent {
            socket: self.socket.to_owned(),
            patience: self.patience,
        };
        let (status, body) = answered.map_err(silent)??;
        if status.is_success() {
            return Ok(body);
        }
        let fault = serde_json::from_slice::<FaultMessage>(&body);
        let text = fault.map(|fault| fault.fault_message);
        Err(VmApiError::Refused(
            text.unwrap_or_else(|_| format!("{path}: status {status}")),
        ))
    }

    async fn exchange(
        self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), VmApiError> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limits::VM_ANSWER_BYTES_MAX);
        let body = body.collect().await;
        let body = body.map_err(|_| VmApiError::Answer {
            socket: self.socket.to_owned(),
        })?;
        Ok((status, body.to_bytes()))
    }

    async fn send(
        self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, VmApiError> {
        let socket = || self.socket.to_owned();
        let talk = |cause| VmApiError::Talk {
            socket: socket(),
            cause,
        };
        let stream = UnixStream::connect(self.socket).await;
        let stream = stream.map_err(|cause| VmApiError::Connect {
            socket: socket(),
            cause,
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(talk)?;
        // Ends with the body, or with the sender.
        spawn_local(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)));
        let request = request.map_err(|_| VmApiError::Answer { socket: socket() })?;
        sender.send_request(request).await.map_err(talk)
    }
}

/// What a line of `GET /events` says of the machine's end.
fn end_of(line: &[u8]) -> Option<(u8, String)> {
    let data = line.strip_prefix(b"data: ")?;
    match serde_json::from_slice::<VmEvent>(data).ok()?.what {
        Happening::Ended { status, reason } => Some((status, reason)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_by_one_event_alone() {
        let line = br#"data: {"time_unix_us":5,"event":"ended","status":3,"reason":"done"}"#;
        assert_eq!(end_of(line), Some((3, "done".to_owned())));
        for other in [
            &br#"data: {"time_unix_us":5,"event":"ready"}"#[..],
            b"event: ended\n",
            b": still there\n",
            b"data: {}\n",
            b"",
        ] {
            assert_eq!(end_of(other), None);
        }
    }
}
