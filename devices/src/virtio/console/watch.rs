//! One descriptor for all streams of the console: an epoll within the loop's epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::virtio::console::ports::PORTS;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Bytes of the host for this port.
    Input(usize),
    /// Room for bytes of this port.
    Output(usize),
}

impl Wish {
    const fn place(self) -> usize {
        match self {
            Self::Input(port) => port,
            Self::Output(port) => PORTS + port,
        }
    }

    const fn flags(self) -> EventFlags {
        match self {
            Self::Input(_) => EventFlags::IN,
            Self::Output(_) => EventFlags::OUT,
        }
    }
}

/// How a stream is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Watched {
    #[default]
    No,
    ByEpoll,
    /// Epoll does not take it: a file, /dev/null. It never waits.
    AlwaysReady,
}

/// The epoll. It is readable while any stream that is wished for is ready.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: OwnedFd,
    /// Readable for ever; in the epoll while a stream is wished for that is always ready.
    ready: OwnedFd,
    is_ready_in: bool,
    watched: [Watched; 2 * PORTS],
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            ready: rustix::event::eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_ready_in: false,
            watched: [Watched::No; 2 * PORTS],
        })
    }

    /// Waits for `wish` on `fd`, or not. A descriptor that is waited for must not be closed, nor be another one, before it
    /// is not. Without a descriptor it is always ready.
    pub(super) fn set(&mut self, wish: Wish, fd: Option<BorrowedFd<'_>>, is_wanted: bool) {
        let Some(watched) = self.watched.get_mut(wish.place()) else {
            return;
        };
        match (*watched, is_wanted) {
            (Watched::No, true) => {
                let data = EventData::new_u64(0);
                let added = fd.map(|fd| epoll::add(&self.epoll, fd, data, wish.flags()));
                *watched = match added {
                    Some(Ok(())) => Watched::ByEpoll,
                    // EPERM; with any other it is at least served.
                    Some(Err(_)) | None => Watched::AlwaysReady,
                };
            }
            (Watched::ByEpoll, false) => {
                // It is in, so this cannot fail.
                let _ = fd.map(|fd| epoll::delete(&self.epoll, fd));
                *watched = Watched::No;
            }
            (Watched::AlwaysReady, false) => *watched = Watched::No,
            (Watched::No, false) | (Watched::ByEpoll | Watched::AlwaysReady, true) => {}
        }
        self.update_ready();
    }

    /// Whether anything is wished for.
    pub(super) fn is_any(&self) -> bool {
        self.watched.iter().any(|watched| *watched != Watched::No)
    }

    fn update_ready(&mut self) {
        let is_wanted = self.watched.contains(&Watched::AlwaysReady);
        if is_wanted == self.is_ready_in {
            return;
        }
        let changed = if is_wanted {
            epoll::add(
                &self.epoll,
                &self.ready,
                EventData::new_u64(0),
                EventFlags::IN,
            )
        } else {
            epoll::delete(&self.epoll, &self.ready)
        };
        if changed.is_ok() {
            self.is_ready_in = is_wanted;
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(watch: &Watch) -> bool {
        let mut fds = [PollFd::new(watch, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn a_stream_is_seen_while_it_is_wished_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut watch = Watch::new().unwrap();
        watch.set(Wish::Input(0), Some(reader.as_fd()), true);
        assert!(watch.is_any() && !is_readable(&watch));
        writer.write_all(b"x").unwrap();
        assert!(is_readable(&watch));
        watch.set(Wish::Input(0), Some(reader.as_fd()), false);
        assert!(!watch.is_any() && !is_readable(&watch));
        drop(writer);
        assert!(!is_readable(&watch), "an end is not seen either");
    }

    #[test]
    fn what_epoll_does_not_take_is_always_ready() {
        let null = File::open("/dev/null").unwrap();
        let mut watch = Watch::new().unwrap();
        for wish in [Wish::Input(4), Wish::Output(1)] {
            watch.set(wish, Some(null.as_fd()), true);
            watch.set(wish, None, true);
            assert!(is_readable(&watch));
        }
        watch.set(Wish::Input(4), Some(null.as_fd()), false);
        assert!(is_readable(&watch), "the other is still wished for");
        watch.set(Wish::Output(1), Some(null.as_fd()), false);
        assert!(!watch.is_any() && !is_readable(&watch));
    }
}
