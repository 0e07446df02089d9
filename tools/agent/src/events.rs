//! What has happened, for those who want to be told (`GET /events`): the last events, each as the bytes that are sent.
//!
//! Nothing is kept a reader: one that is too slow misses events and is told how many.

use std::cell::RefCell;
use std::collections::VecDeque;

use hyper::body::Bytes;
use lightv_api::agent::event::{AgentEvent, AgentHappening};
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::unix_ms;
use crate::limits;

/// All that has happened since the agent's start.
#[derive(Debug)]
pub struct Feed {
    kept: RefCell<Kept>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Number of the last one.
    last: u64,
    recent: VecDeque<Bytes>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            kept: RefCell::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Feed {
    /// Tells all readers. Never waits for one.
    pub fn publish(&self, what: AgentHappening) {
        let mut kept = self.kept.borrow_mut();
        kept.last += 1;
        let line = line_of(kept.last, what);
        if kept.recent.len() == limits::EVENTS_KEPT {
            kept.recent.pop_front();
        }
        kept.recent.push_back(line);
        drop(kept);
        self.changed.send_replace(());
    }

    /// The next few events after number `after`, and the number of the last of them; nothing when there are none.
    fn take(&self, after: u64) -> (Vec<u8>, u64) {
        let kept = self.kept.borrow();
        // One that has not happened was another process's: then all is told.
        let mut after = if after > kept.last { 0 } else { after };
        let mut text = Vec::new();
        let oldest = (kept.last + 1).saturating_sub(kept.recent.len() as u64);
        if after + 1 < oldest {
            let count = oldest - 1 - after;
            text.extend_from_slice(&line_of(0, AgentHappening::Missed { count }));
            after = oldest - 1;
        }
        let known = usize::try_from(after + 1 - oldest).unwrap_or(usize::MAX);
        for line in kept
            .recent
            .iter()
            .skip(known)
            .take(limits::EVENTS_PER_PIECE)
        {
            text.extend_from_slice(line);
            after += 1;
        }
        (text, after)
    }

    /// Sends `out` what happens after number `after`, until its reader is gone.
    pub async fn tell(&self, mut after: u64, out: &mpsc::Sender<Bytes>) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let (text, last) = self.take(after);
            after = last;
            let piece = if text.is_empty() {
                match timeout(limits::HEARTBEAT, changed.changed()).await {
                    Ok(_) => continue,
                    // A line without an event.
                    Err(_) => Bytes::from_static(b"\n"),
                }
            } else {
                Bytes::from(text)
            };
            if out.send(piece).await.is_err() {
                return;
            }
        }
    }
}

fn line_of(seq: u64, what: AgentHappening) -> Bytes {
    let event = AgentEvent {
        seq,
        time_unix_ms: unix_ms(),
        what,
    };
    // Our own types are always JSON.
    let mut line = serde_json::to_vec(&event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(feed: &Feed, after: u64) -> (Vec<AgentEvent>, u64) {
        let (text, last) = feed.take(after);
        let text = String::from_utf8(text).unwrap();
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (events.collect(), last)
    }

    fn publish(feed: &Feed, count: usize) {
        for _ in 0..count {
            let image = "a".to_owned();
            feed.publish(AgentHappening::ImageDeleted { image });
        }
    }

    #[test]
    fn a_reader_gets_what_comes_after_its_last_one() {
        let feed = Feed::default();
        assert_eq!(taken(&feed, 0), (Vec::new(), 0));
        publish(&feed, 3);
        let seqs = |after| {
            let (events, last) = taken(&feed, after);
            let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
            (seqs, last)
        };
        assert_eq!(seqs(0), (vec![1, 2, 3], 3));
        assert_eq!(seqs(2), (vec![3], 3));
        assert_eq!(seqs(3), (vec![], 3));
        // Of an agent before this one.
        assert_eq!(seqs(9), (vec![1, 2, 3], 3));
    }

    #[test]
    fn a_late_reader_is_told_how_many_are_lost() {
        let feed = Feed::default();
        publish(&feed, limits::EVENTS_KEPT + 5);
        let (events, last) = taken(&feed, 2);
        assert_eq!(events[0].what, AgentHappening::Missed { count: 3 });
        assert_eq!((events[0].seq, events[1].seq), (0, 6));
        assert_eq!(last, 5 + limits::EVENTS_PER_PIECE as u64);
    }
}
