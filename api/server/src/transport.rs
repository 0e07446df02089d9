//! A client's socket, which notes how far its request has come.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::feed::Awaited;

/// What a connection is doing.
///
/// ```text
///   Idle --first byte--> Receiving --head--> Serving --answer--> Idle
///                                                        +--events--> Streaming, until the connection ends
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Between requests.
    Idle,
    /// The head of a request is coming.
    Receiving,
    /// A request is being answered, for as long as that takes; its body has a limit of its own.
    Serving,
    /// Events are sent as they happen.
    Streaming,
}

/// How long a phase may last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhaseTimes {
    pub(crate) request: Duration,
    pub(crate) idle: Duration,
    /// Without a byte that the client takes.
    pub(crate) stall: Duration,
}

/// How far a connection is, and since when.
#[derive(Debug)]
pub(crate) struct Progress {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    changed: Notify,
    /// The answer to the request, until it is out.
    owed: RefCell<Option<Awaited>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            phase: Cell::new(Phase::Idle),
            since: Cell::new(Instant::now()),
            changed: Notify::new(),
            owed: RefCell::new(None),
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
        self.changed.notify_one();
    }

    /// When the phase began: of a request that comes, its first byte.
    pub(crate) fn since(&self) -> Instant {
        self.since.get()
    }

    /// A whole request has come.
    pub(crate) fn owe(&self, answer: Awaited) {
        self.owed.replace(Some(answer));
    }

    /// All that was to be sent is out.
    fn note_flushed(&self) {
        // While the answer is made there is nothing of it to send.
        if matches!(self.phase.get(), Phase::Idle | Phase::Streaming) {
            self.owed.replace(None);
        }
    }

    /// Bytes have come.
    fn note_bytes(&self) {
        if self.phase.get() == Phase::Idle {
            self.enter(Phase::Receiving);
        }
    }

    /// The client has taken bytes.
    fn note_written(&self) {
        if self.phase.get() == Phase::Streaming {
            self.since.set(Instant::now());
        }
    }

    /// Ends when a phase has lasted too long.
    pub(crate) async fn expire(&self, times: PhaseTimes) {
        loop {
            let time = match self.phase.get() {
                Phase::Idle => times.idle,
                Phase::Receiving => times.request,
                Phase::Streaming => times.stall,
                Phase::Serving => {
                    self.changed.notified().await;
                    continue;
                }
            };
            let deadline = self.since.get() + time;
            if deadline <= Instant::now() {
                return;
            }
            // Whichever it is, the deadline may have moved.
            let sleep = tokio::time::sleep_until(deadline);
            let _ = race(sleep, self.changed.notified()).await;
        }
    }
}

/// Which of two was ready first.
#[derive(Debug)]
pub(crate) enum Raced<A, B> {
    First(A),
    Second(B),
}

/// Waits for the first of two; at the same time, the first one.
pub(crate) async fn race<A: Future, B: Future>(a: A, b: B) -> Raced<A::Output, B::Output> {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = a.as_mut().poll(context) {
            return Poll::Ready(Raced::First(output));
        }
        b.as_mut().poll(context).map(Raced::Second)
    })
    .await
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Transport {
    stream: UnixStream,
    /// Bytes that were read already, and are read again first.
    again: Bytes,
    progress: Rc<Progress>,
}

impl Transport {
    pub(crate) fn new(stream: UnixStream, progress: Rc<Progress>) -> Self {
        Self {
            stream,
            again: Bytes::new(),
            progress,
        }
    }

    /// The same socket, with `bytes` to be read again.
    pub(crate) fn rewound(mut self, bytes: Bytes) -> Self {
        self.again = bytes;
        self
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.progress.note_written();
        }
        written
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.again.has_remaining() {
            let length = self.again.len().min(buffer.remaining());
            buffer.put_slice(&self.again.split_to(length));
            self.progress.note_bytes();
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.progress.note_bytes();
        }
        polled
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.progress.note_flushed();
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
