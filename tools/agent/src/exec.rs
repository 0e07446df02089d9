//! Programs that clients start in the guests of sandboxes (docs/exec.md): proved, started, and heard to their end.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::body::Bytes;
use lightv_api::agent::exec::{ExecEnd, ExecLine, ExecSpec};
use lightv_api::agent::sandbox::SandboxState;
use lightv_api::contract::instance::InstanceState;
use lightv_contract::exec::{START_BYTES_MAX, StartSpec, TOO_MANY, VERSION};
use lightv_contract::exec_host::HearError;
use tokio::sync::mpsc;

use crate::agent::{Agent, Place};
use crate::guest::{Given, Guest, GuestError, Outcome};
use crate::limits;
use crate::output::OutputLines;
use crate::plan;
use crate::refusal::{Refusal, chain};
use crate::sandboxes::Entry;
use crate::vm_api::VmApi;

/// A program that runs. When this is dropped, it gets SIGHUP.
#[derive(Debug)]
pub struct Program {
    guest: Guest,
    given: Given,
    sandbox: Rc<Entry>,
    place: Place,
}

/// Starts the program that `spec` describes in the guest of `sandbox`.
///
/// # Errors
/// 400, 409, 429, 502 or 503: what is wrong, and what is allowed.
pub async fn start(
    agent: &Rc<Agent>,
    sandbox: Rc<Entry>,
    spec: ExecSpec,
) -> Result<Program, Refusal> {
    let (start, given) = prove(spec)?;
    let place = agent.take_program()?;
    let socket = socket_of(agent, &sandbox).await?;
    let started = async {
        let mut guest = Guest::dial(&socket).await?;
        guest.start(start).await?;
        Ok(guest)
    };
    match started.await {
        Ok(guest) => Ok(Program {
            guest,
            given,
            sandbox,
            place,
        }),
        Err(error) => Err(refusal(&sandbox, &error)),
    }
}

/// Sends `out` what `program` says, and how it has ended; it ends when its client is gone.
pub async fn tell(program: Program, out: mpsc::Sender<Bytes>) {
    let Program {
        mut guest,
        given,
        sandbox,
        place,
    } = program;
    let mut lines = OutputLines::default();
    let outcome = guest.carry(given, &mut lines, &out).await;
    // It has nothing more to say, or is not to go on.
    drop(guest);
    let last = match outcome {
        Outcome::Ended { status, timed_out } => ExecLine::Ended(ExecEnd {
            exit_code: status,
            timed_out,
        }),
        Outcome::Failed(GuestError::Lost) if has_ended_now(&sandbox).await => {
            ExecLine::Failed("The microVM ended before the program".to_owned())
        }
        Outcome::Failed(error) => ExecLine::Failed(chain(&error)),
        Outcome::Left => return,
    };
    // A client that is gone does not hear it.
    let _ = out.send(lines.end(&last).into()).await;
    drop(place);
}

/// Whether the machine has ended, or does so now.
async fn has_ended_now(sandbox: &Entry) -> bool {
    sandbox
        .wait(limits::PROGRAM_LOST_TIME_MAX, Entry::has_ended)
        .await
}

/// The order to the guest's agent, as JSON, and what the program is given while it runs.
fn prove(spec: ExecSpec) -> Result<(Vec<u8>, Given), Refusal> {
    if spec.args.is_empty() {
        return Err(Refusal::bad(
            "args: there are none; the first one is the program.",
        ));
    }
    plan::prove_count("args", spec.args.len(), limits::WORDS_MAX)?;
    plan::prove_env(&spec.env)?;
    let places = [&spec.workdir, &spec.user].into_iter().flatten();
    plan::prove_no_nul("args, workdir and user", spec.args.iter().chain(places))?;
    let stdin =
        match (spec.stdin, spec.stdin_base64) {
            (Some(_), Some(_)) => {
                let text = "stdin and stdin_base64: there are both; only one is allowed.";
                return Err(Refusal::bad(text));
            }
            (Some(text), None) => Some(text.into_bytes()),
            (None, Some(text)) => Some(STANDARD.decode(text).map_err(|cause| {
                Refusal::bad(format!("stdin_base64: this is no base64: {cause}."))
            })?),
            (None, None) => None,
        };
    let max = limits::PROGRAM_TIME_MS_MAX;
    if let Some(ms) = spec.timeout_ms.filter(|ms| !(1..=max).contains(ms)) {
        return Err(Refusal::bad(format!(
            "timeout_ms: {ms} is not allowed: 1–{max}."
        )));
    }
    let start = StartSpec {
        version: VERSION,
        words: spec.args,
        env: spec.env,
        workdir: spec.workdir,
        user: spec.user,
        terminal: None,
        has_stdin: stdin.is_some(),
    };
    // Our own types are always JSON.
    let start = serde_json::to_vec(&start).unwrap_or_default();
    if start.len() > START_BYTES_MAX {
        return Err(Refusal::bad(format!(
            "args and env: they have {} bytes; allowed: {START_BYTES_MAX}.",
            start.len()
        )));
    }
    let time_max = spec.timeout_ms.map(Duration::from_millis);
    Ok((start, Given { stdin, time_max }))
}

/// The socket of the vsock of `sandbox`, which runs.
async fn socket_of(agent: &Agent, sandbox: &Entry) -> Result<PathBuf, Refusal> {
    let id = sandbox.id();
    match sandbox.state() {
        SandboxState::Running | SandboxState::Paused => {}
        SandboxState::Starting => {
            let text = format!("Sandbox {id} is being started; wait until it runs.");
            return Err(Refusal::conflict(text));
        }
        SandboxState::Ended => return Err(ended(id)),
    }
    let socket = sandbox.sandbox().vsock_socket.ok_or_else(|| {
        Refusal::conflict(format!(
            "Sandbox {id} has no vsock, by which programs are started in its guest; build its image with `lightv build --rootfs … --exec`."
        ))
    })?;
    let api = agent.folders.vm_socket(id);
    // Others may let it stand still too.
    let state = VmApi::at(&api, limits::VM_STATE_TIME_MAX).state().await;
    match state {
        Ok(InstanceState::Running) => Ok(socket),
        Ok(InstanceState::Paused) => Err(Refusal::conflict(format!(
            "Sandbox {id} is paused; POST /sandboxes/{{id}}/resume lets it go on."
        ))),
        Ok(InstanceState::NotStarted) => {
            let text = format!("The microVM of sandbox {id} has not been started.");
            Err(Refusal::conflict(text))
        }
        Err(_) if sandbox.has_ended() => Err(ended(id)),
        Err(error) => Err(Refusal::unavailable(chain(&error))),
    }
}

fn ended(id: &str) -> Refusal {
    Refusal::conflict(format!("Sandbox {id} has ended."))
}

fn refusal(sandbox: &Entry, error: &GuestError) -> Refusal {
    if sandbox.has_ended() {
        return ended(sandbox.id());
    }
    let status = match error {
        GuestError::Hear(HearError::NoAgent) => StatusCode::CONFLICT,
        GuestError::Hear(HearError::Message(_) | HearError::Order(_)) => StatusCode::BAD_GATEWAY,
        GuestError::Refused {
            status: TOO_MANY, ..
        } => StatusCode::TOO_MANY_REQUESTS,
        GuestError::Refused { .. } => StatusCode::BAD_REQUEST,
        GuestError::Connect { .. }
        | GuestError::Talk(_)
        | GuestError::Silent
        | GuestError::Lost
        | GuestError::Unkilled => StatusCode::SERVICE_UNAVAILABLE,
    };
    Refusal::new(status, chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh() -> ExecSpec {
        ExecSpec {
            args: vec!["sh".to_owned()],
            ..ExecSpec::default()
        }
    }

    #[test]
    fn what_is_asked_for_becomes_the_order_to_the_guest() {
        let (start, given) = prove(ExecSpec {
            stdin_base64: Some("/w==".to_owned()),
            timeout_ms: Some(1500),
            user: Some("nobody".to_owned()),
            ..sh()
        })
        .unwrap();
        let start: StartSpec = serde_json::from_slice(&start).unwrap();
        assert_eq!((start.version, start.words), (VERSION, sh().args));
        assert_eq!(
            (start.user.as_deref(), start.has_stdin),
            (Some("nobody"), true)
        );
        assert_eq!(given.stdin.as_deref(), Some(&b"\xff"[..]));
        assert_eq!(given.time_max, Some(Duration::from_millis(1500)));
        let (start, given) = prove(sh()).unwrap();
        let start: StartSpec = serde_json::from_slice(&start).unwrap();
        assert_eq!((start.has_stdin, given), (false, Given::default()));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        type Change = fn(&mut ExecSpec);
        let cases: [(Change, &str); 10] = [
            (|spec| spec.args.clear(), "args"),
            (|spec| spec.args = vec!["a".to_owned(); 1025], "1024"),
            (|spec| spec.args.push("a\0".to_owned()), "NUL"),
            (|spec| spec.workdir = Some("\0".to_owned()), "workdir"),
            (
                |spec| spec.env = [("A=".into(), String::new())].into(),
                "A=",
            ),
            (
                |spec| (spec.stdin, spec.stdin_base64) = (Some("a".into()), Some(String::new())),
                "both",
            ),
            (|spec| spec.stdin_base64 = Some("%".into()), "base64"),
            (|spec| spec.timeout_ms = Some(0), "timeout_ms"),
            (|spec| spec.timeout_ms = Some(u64::MAX), "86400000"),
            (|spec| spec.args.push("a".repeat(START_BYTES_MAX)), "262144"),
        ];
        for (change, word) in cases {
            let mut spec = sh();
            change(&mut spec);
            let refusal = prove(spec).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
            let message = refusal.message;
            assert!(message.contains(word), "{word}: {message}");
        }
    }
}
