//! What has happened to the machine, for those who want to be told (`GET /events`).
//!
//! ```text
//!   control, vcpu-N --publish--> Feed: the first event and the last EVENTS_KEPT, each as the bytes that are sent
//!                                  ^
//!   thread api:  Subscription -----+ takes what comes after its last one, whenever its client takes bytes
//! ```
//!
//! Nothing is kept a reader: one that is too slow misses events and is told how many.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use lightv_api::event::{Happening, VmEvent};
use tokio::sync::watch;

use crate::limits;

/// All that has happened. Clones are the same.
#[derive(Debug, Clone)]
pub struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Nobody holds the lock while anything else is called.
    state: Mutex<State>,
    /// A reader has left, or an answer.
    left: Condvar,
    /// Something has happened.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the last event; they count from 1.
    last: u64,
    /// How the machine began, however long ago.
    first: Option<Bytes>,
    /// The last ones.
    recent: VecDeque<Bytes>,
    /// Nothing more will happen.
    is_over: bool,
    readers: usize,
    /// Requests that have been taken, and whose answers are not out.
    owed: usize,
}

impl State {
    /// Number of the oldest of the recent events.
    fn oldest(&self) -> u64 {
        (self.last + 1).saturating_sub(self.recent.len() as u64)
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            left: Condvar::new(),
            changed: watch::Sender::new(()),
        }))
    }
}

impl Feed {
    /// Tells all readers. Never waits for one. After [`Happening::Ended`] nothing more is told.
    pub fn publish(&self, what: Happening) {
        let is_over = matches!(what, Happening::Ended { .. });
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        state.last += 1;
        let text = text_of(Some(state.last), what);
        if state.last == 1 {
            state.first = Some(text.clone());
        }
        if state.recent.len() == limits::EVENTS_KEPT {
            state.recent.pop_front();
        }
        state.recent.push_back(text);
        state.is_over = is_over;
        drop(state);
        self.0.changed.send_replace(());
    }

    /// Lets readers have the rest, and waits until all of them have it and all answers are out, but not longer than `time`. To
    /// be called before the process ends: a machine that is started may end before its start has been answered.
    pub fn end(&self, time: Duration) {
        let mut state = self.lock();
        state.is_over = true;
        drop(state);
        self.0.changed.send_replace(());
        let is_awaited = |state: &mut State| state.readers > 0 || state.owed > 0;
        drop(
            self.0
                .left
                .wait_timeout_while(self.lock(), time, is_awaited),
        );
    }

    /// A reader, to be kept until all of its bytes are out; `None` when `readers_max` are taken.
    pub(crate) fn enter(&self, readers_max: usize) -> Option<Awaited> {
        let state = self.lock();
        if state.readers >= readers_max {
            return None;
        }
        Some(self.wait_for(state, |state| &mut state.readers))
    }

    /// A request has been taken: its answer, to be kept until all of its bytes are out.
    pub(crate) fn owe(&self) -> Awaited {
        self.wait_for(self.lock(), |state| &mut state.owed)
    }

    fn wait_for(
        &self,
        mut state: MutexGuard<'_, State>,
        count: fn(&mut State) -> &mut usize,
    ) -> Awaited {
        *count(&mut state) += 1;
        let feed = self.clone();
        Awaited { feed, count }
    }

    /// What happens after event `after`. One that has not happened yet was another process's: then all is told.
    pub(crate) fn subscribe(&self, after: u64) -> Subscription {
        let after = if after > self.lock().last { 0 } else { after };
        Subscription {
            feed: self.clone(),
            after,
            changed: self.0.changed.subscribe(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can stop half-way.
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader or an answer, which is waited for at the end.
#[derive(Debug)]
pub(crate) struct Awaited {
    feed: Feed,
    /// Among which it counts.
    count: fn(&mut State) -> &mut usize,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut state = self.feed.lock();
        let count = (self.count)(&mut state);
        *count = count.saturating_sub(1);
        drop(state);
        self.feed.0.left.notify_all();
    }
}

/// How far a reader is.
#[derive(Debug)]
pub(crate) struct Subscription {
    feed: Feed,
    /// Number of the last event that it has.
    after: u64,
    changed: watch::Receiver<()>,
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Some events.
    Events(Bytes),
    /// There are none yet.
    Nothing,
    /// There will be none.
    Over,
}

impl Subscription {
    /// The next few events.
    pub(crate) fn take(&mut self) -> Taken {
        let state = self.feed.lock();
        if self.after >= state.last {
            return if state.is_over {
                Taken::Over
            } else {
                Taken::Nothing
            };
        }
        let mut text = Vec::new();
        let oldest = state.oldest();
        if self.after + 1 < oldest {
            if self.after == 0 {
                text.extend_from_slice(state.first.as_deref().unwrap_or_default());
                self.after = 1;
            }
            let count = oldest - 1 - self.after;
            if count > 0 {
                text.extend_from_slice(&text_of(None, Happening::Missed { count }));
            }
            self.after = oldest - 1;
        }
        let known = usize::try_from(self.after + 1 - oldest).unwrap_or(usize::MAX);
        let next = state.recent.iter().skip(known);
        for event in next.take(limits::EVENTS_PER_PIECE) {
            text.extend_from_slice(event);
            self.after += 1;
        }
        Taken::Events(text.into())
    }

    /// Waits until there may be something to take.
    pub(crate) async fn changed(&mut self) {
        // The sender lives as long as the feed, of which this has a clone.
        let _ = self.changed.changed().await;
    }
}

/// An event as it is sent (HTML §9.2.5).
fn text_of(id: Option<u64>, what: Happening) -> Bytes {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let event = VmEvent {
        time_unix_us: since_1970.map_or(0, |time| {
            u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
        }),
        what,
    };
    let name = event.what.name();
    let id = id.map_or(String::new(), |id| format!("id: {id}\n"));
    // JSON has no line breaks, and only a path that is no text cannot be written.
    let data = serde_json::to_string(&event).unwrap_or_else(|_| format!(r#"{{"event":"{name}"}}"#));
    Bytes::from(format!("{id}event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
