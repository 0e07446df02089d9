//! Waiting for one of two.

use std::pin::pin;
use std::task::Poll;

/// Which of two was ready first.
#[derive(Debug)]
pub enum Raced<A, B> {
    /// This one.
    First(A),
    /// That one.
    Second(B),
}

/// Waits for the first of two; at the same time, the first one.
pub async fn race<A: Future, B: Future>(a: A, b: B) -> Raced<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = a.as_mut().poll(context) {
            return Poll::Ready(Raced::First(output));
        }
        b.as_mut().poll(context).map(Raced::Second)
    })
    .await
}
