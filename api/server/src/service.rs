//! Between the server and whoever answers.

use std::time::Duration;

use lightv_api::fault::Fault;
use lightv_api::request::{Reply, Request, Route};
use tokio::sync::oneshot;

use crate::feed::Feed;

/// What a request is answered.
pub type Answer = Result<Reply, Fault>;

/// Whoever answers requests. Called on the server's thread, which serves all clients: it hands the request on and returns
/// at once.
pub trait Service: Send + 'static {
    /// Takes `request`. The answer may be sent before this returns, or later, from any thread. Requests of one connection
    /// come one after the other, each after the answer to the one before.
    fn call(&self, request: Request, reply: ReplySender);

    /// What `GET /events` tells. The server streams it: that request never comes by [`call`](Self::call).
    fn feed(&self) -> &Feed;

    /// Is told of a request that was answered.
    fn note(&self, _done: Done) {}
}

/// A request that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// What it was.
    pub route: Route,
    /// Whether it was granted.
    pub is_granted: bool,
    /// From its last byte to the answer.
    pub took: Duration,
}

/// The way back to a client.
#[derive(Debug)]
pub struct ReplySender(oneshot::Sender<Answer>);

/// Where an answer arrives.
pub(crate) type ReplyReceiver = oneshot::Receiver<Answer>;

impl ReplySender {
    /// Sends the answer. A client that has gone away is no fault. When a sender is dropped unused, the client is told that
    /// there will be no answer.
    pub fn send(self, answer: Answer) {
        let _ = self.0.send(answer);
    }
}

/// A way back, both ends.
pub(crate) fn reply_channel() -> (ReplySender, ReplyReceiver) {
    let (sender, receiver) = oneshot::channel();
    (ReplySender(sender), receiver)
}
