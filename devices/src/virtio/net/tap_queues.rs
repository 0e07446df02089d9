//! The queues of a tap that has several, and one descriptor for all of them: an epoll within the loop's epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::sys::tun;

/// Queues after the first, which the tap has itself.
///
/// The first few of all queues take part in the tap's traffic, as many as the driver uses pairs: what the host sends is spread
/// over them alone. The first always does.
#[derive(Debug)]
pub(super) struct TapQueues {
    further: Vec<OwnedFd>,
    /// How many take part, the first included.
    attached: usize,
    epoll: OwnedFd,
    /// Those in the epoll, the first included.
    watched: Vec<bool>,
}

impl TapQueues {
    /// Queues that all take part, and of which none is watched.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn new(further: Vec<OwnedFd>) -> io::Result<Self> {
        let count = further.len().saturating_add(1);
        Ok(Self {
            further,
            attached: count,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watched: vec![false; count],
        })
    }

    pub(super) const fn count(&self) -> usize {
        self.watched.len()
    }

    pub(super) const fn attached(&self) -> usize {
        self.attached
    }

    /// Queue `number`, if it is one after the first that takes part.
    pub(super) fn get(&self, number: usize) -> Option<BorrowedFd<'_>> {
        let place = number.checked_sub(1)?;
        let queue = self.further.get(place).filter(|_| number < self.attached);
        queue.map(AsFd::as_fd)
    }

    /// Has the first `count` take part, and no others.
    ///
    /// # Errors
    /// The kernel's. [`attached`](Self::attached) says how far it came.
    pub(super) fn attach(&mut self, count: usize, are_of_tun: bool) -> io::Result<()> {
        let count = count.clamp(1, self.count());
        // The last one first, and back in order: the kernel numbers those that take part as they came.
        while self.attached > count {
            let last = self.attached.saturating_sub(1);
            self.set(last, are_of_tun, false)?;
            self.attached = last;
        }
        while self.attached < count {
            self.set(self.attached, are_of_tun, true)?;
            self.attached = self.attached.saturating_add(1);
        }
        Ok(())
    }

    fn set(&self, number: usize, is_of_tun: bool, takes_part: bool) -> io::Result<()> {
        let place = number.checked_sub(1);
        match place.and_then(|place| self.further.get(place)) {
            Some(queue) if is_of_tun => tun::set_queue(queue.as_fd(), takes_part),
            _ => Ok(()),
        }
    }

    /// Watches queue `number`, or not; `first` is the first.
    pub(super) fn watch(&mut self, number: usize, first: BorrowedFd<'_>, is_wanted: bool) {
        let place = number.checked_sub(1);
        let further = place.and_then(|place| self.further.get(place));
        let queue = further.map_or(first, AsFd::as_fd);
        let Some(is_watched) = self.watched.get_mut(number) else {
            return;
        };
        if *is_watched == is_wanted {
            return;
        }
        let changed = if is_wanted {
            epoll::add(&self.epoll, queue, EventData::new_u64(0), EventFlags::IN)
        } else {
            epoll::delete(&self.epoll, queue)
        };
        // It fails for want of memory at most, and is tried again after the next call.
        if changed.is_ok() {
            *is_watched = is_wanted;
        }
    }
}

/// The epoll: readable while any queue is that is watched.
impl AsFd for TapQueues {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
