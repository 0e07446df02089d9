//! Answers as HTTP: whole ones, and those that come as things happen.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use crate::limits;
use crate::refusal::Refusal;

/// What is sent.
pub type HttpAnswer = Response<AnswerBody>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The body of an answer.
#[derive(Debug)]
pub enum AnswerBody {
    /// All of it at once.
    Whole(Bytes),
    /// Pieces, until whoever sends them has no more.
    Pieces(mpsc::Receiver<Bytes>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Pieces(pieces) => pieces
                .poll_recv(context)
                .map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

/// Bytes of long answers that wait for their clients, all together.
#[derive(Debug, Clone, Default)]
pub struct AnswerBytes(Arc<AtomicUsize>);

/// A long answer, which counts as long as its client has not taken it.
struct CountedBytes {
    bytes: Vec<u8>,
    all: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl AnswerBytes {
    /// `value` as JSON, which may be long.
    ///
    /// # Errors
    /// 503: too many clients have asked for much and take nothing.
    pub fn json(&self, value: &impl Serialize) -> Result<HttpAnswer, Refusal> {
        // Our own types are always JSON.
        let bytes = serde_json::to_vec(value).unwrap_or_default();
        let waiting = self.0.load(Ordering::Relaxed);
        if waiting.saturating_add(bytes.len()) > limits::ANSWER_BYTES_MAX {
            return Err(Refusal::unavailable(format!(
                "{waiting} bytes of answers wait for clients that do not read them; allowed: {}. Try again.",
                limits::ANSWER_BYTES_MAX
            )));
        }
        // One thread alone adds to it.
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        let all = Arc::clone(&self.0);
        let body = Bytes::from_owner(CountedBytes { bytes, all });
        Ok(whole(StatusCode::OK, JSON, body))
    }
}

/// `value` as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> HttpAnswer {
    // Our own types are always JSON.
    let body = serde_json::to_vec(value).unwrap_or_default();
    whole(status, JSON, body)
}

/// A text of the kind `content_type`.
pub fn whole(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> HttpAnswer {
    let mut answer = Response::new(AnswerBody::Whole(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

/// Done; there is nothing to say.
#[must_use]
pub fn done() -> HttpAnswer {
    let mut answer = Response::new(AnswerBody::Whole(Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// A refusal.
#[must_use]
pub fn refused(refusal: &Refusal) -> HttpAnswer {
    whole(refusal.status, JSON, refusal.to_json())
}

/// What `tell` sends, as fast as the client takes it. The connection ends with it.
pub fn pieces<F: Future<Output = ()> + 'static>(
    content_type: HeaderValue,
    tell: impl FnOnce(mpsc::Sender<Bytes>) -> F,
) -> HttpAnswer {
    let (sender, receiver) = mpsc::channel(limits::PIECES_WAITING);
    // Ends when it has no more, or when the client is gone and the receiver with it.
    spawn_local(tell(sender));
    let mut answer = Response::new(AnswerBody::Pieces(receiver));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}
