//! Bodies of answers: whole ones, and events as they happen.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};

use crate::feed::{Subscription, Taken};
use crate::transport::{Raced, race};

/// What an answer is made of.
#[derive(Debug)]
pub(crate) enum AnswerBody {
    /// All of it at once.
    Whole(Full<Bytes>),
    /// Events, until there are no more.
    Events(EventStream),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Events(stream) => {
                let piece = ready!(stream.poll_piece(context));
                Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// What keeps a connection alive on which nothing happens: a comment (HTML §9.2.6).
const HEARTBEAT: Bytes = Bytes::from_static(b": still there\n\n");

/// Waits for the next piece; gives the reader back, if there are more.
type Waiting = Pin<Box<dyn Future<Output = Option<(Bytes, Subscription)>>>>;

/// The events that a reader gets. Asked for the next ones only when the client has taken those before.
pub(crate) struct EventStream {
    waiting: Option<Waiting>,
    heartbeat: Duration,
}

impl fmt::Debug for EventStream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl EventStream {
    /// What `reader` gets, with a sign of life whenever `heartbeat` has passed.
    pub(crate) fn new(reader: Subscription, heartbeat: Duration) -> Self {
        Self {
            waiting: Some(Box::pin(next(reader, heartbeat))),
            heartbeat,
        }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(waiting) = &mut self.waiting else {
            return Poll::Ready(None);
        };
        let (piece, waiting) = match ready!(waiting.as_mut().poll(context)) {
            Some((piece, reader)) => {
                let waiting: Waiting = Box::pin(next(reader, self.heartbeat));
                (Some(piece), Some(waiting))
            }
            None => (None, None),
        };
        self.waiting = waiting;
        Poll::Ready(piece)
    }
}

async fn next(mut reader: Subscription, heartbeat: Duration) -> Option<(Bytes, Subscription)> {
    loop {
        match reader.take() {
            Taken::Events(events) => return Some((events, reader)),
            Taken::Over => return None,
            Taken::Nothing => {}
        }
        let beat = tokio::time::sleep(heartbeat);
        if let Raced::Second(()) = race(reader.changed(), beat).await {
            return Some((HEARTBEAT, reader));
        }
    }
}
