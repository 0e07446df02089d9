//! One descriptor for all sockets of the host: an epoll within the loop's epoll.
//!
//! Every socket is watched for one event (EPOLLONESHOT): one that nobody can serve now, a peer that has hung up too, does
//! not wake the loop again and again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use crate::limits::VSOCK_EVENTS_PER_TURN;

/// What is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A client has come.
    Listener,
    /// Time has passed.
    Tick,
    /// A turn ended before all was done.
    More,
    /// A client says something: the one in this slot.
    Greeting(usize),
    /// The socket of the connection in this slot.
    Connection(usize),
}

const KIND_SHIFT: u32 = 32;

impl Token {
    const fn encode(self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Tick => 1 << KIND_SHIFT,
            Self::More => 2 << KIND_SHIFT,
            Self::Greeting(slot) => (3 << KIND_SHIFT) | slot as u64,
            Self::Connection(slot) => (4 << KIND_SHIFT) | slot as u64,
        }
    }

    fn decode(data: u64) -> Option<Self> {
        let slot = usize::try_from(data & u64::from(u32::MAX)).ok()?;
        match data >> KIND_SHIFT {
            0 => Some(Self::Listener),
            1 => Some(Self::Tick),
            2 => Some(Self::More),
            3 => Some(Self::Greeting(slot)),
            4 => Some(Self::Connection(slot)),
            _ => None,
        }
    }
}

/// How a socket stands in the epoll. It is forgotten there when it is closed.
#[derive(Debug, Default)]
pub(super) struct Registration {
    is_in: bool,
    /// What it is watched for; `None` after it has come.
    armed: Option<EventFlags>,
}

impl Registration {
    /// An event has come of it.
    pub(super) const fn fired(&mut self) {
        self.armed = None;
    }
}

/// The epoll, a clock and a bell in it.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: OwnedFd,
    tick: OwnedFd,
    more: OwnedFd,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let watch = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            tick: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?,
            more: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        for (fd, token) in [(&watch.tick, Token::Tick), (&watch.more, Token::More)] {
            let data = EventData::new_u64(token.encode());
            epoll::add(&watch.epoll, fd, data, EventFlags::IN)?;
        }
        Ok(watch)
    }

    /// Watches `fd` for `wanted`, an end of the connection included; with `None`, for nothing at all.
    pub(super) fn set(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        registration: &mut Registration,
        wanted: Option<EventFlags>,
    ) -> io::Result<()> {
        if registration.armed == wanted {
            return Ok(());
        }
        match wanted {
            Some(flags) => {
                let data = EventData::new_u64(token.encode());
                let flags_once = flags | EventFlags::ONESHOT;
                if registration.is_in {
                    epoll::modify(&self.epoll, fd, data, flags_once)?;
                } else {
                    epoll::add(&self.epoll, fd, data, flags_once)?;
                    registration.is_in = true;
                }
            }
            None => {
                registration.is_in = false;
                epoll::delete(&self.epoll, fd)?;
            }
        }
        registration.armed = wanted;
        Ok(())
    }

    /// Has [`Token::Tick`] come once after `time`, which is not 0.
    pub(super) fn tick_after(&self, time: Duration) {
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(time.as_secs()).unwrap_or(0),
                tv_nsec: i64::from(time.subsec_nanos()),
            },
        };
        // Our own clock, and a time that it can count to.
        let _ = rustix::time::timerfd_settime(&self.tick, TimerfdTimerFlags::empty(), &spec);
    }

    /// Has [`Token::More`] come.
    pub(super) fn ring(&self) {
        // Fails only when the count is full: then it rings already.
        let _ = rustix::io::write(&self.more, &1_u64.to_ne_bytes());
    }

    /// What is ready now, so much of it as one turn serves. Clock and bell are quiet after it.
    pub(super) fn take(&self) -> io::Result<Vec<(Token, EventFlags)>> {
        let mut events = Vec::with_capacity(VSOCK_EVENTS_PER_TURN);
        let at_once = Timespec::default();
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(cause) => return Err(cause.into()),
        }
        let mut count = [0; 8];
        let known = |event: &epoll::Event| Some((Token::decode(event.data.u64())?, event.flags));
        let ready: Vec<_> = events.iter().filter_map(known).collect();
        for (token, _) in &ready {
            let own = match token {
                Token::Tick => &self.tick,
                Token::More => &self.more,
                _ => continue,
            };
            let _ = rustix::io::read(own, &mut count);
        }
        Ok(ready)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_seen_once_and_not_again_before_it_is_asked_for() {
        let watch = Watch::new().unwrap();
        let (mut client, ours) = UnixStream::pair().unwrap();
        let mut registration = Registration::default();
        let token = Token::Connection(7);
        let arm = |registration: &mut Registration, wanted| {
            watch
                .set(ours.as_fd(), token, registration, wanted)
                .unwrap();
        };
        arm(&mut registration, Some(EventFlags::IN));
        assert_eq!(watch.take().unwrap(), []);
        client.write_all(b"x").unwrap();
        assert_eq!(watch.take().unwrap(), [(token, EventFlags::IN)]);
        registration.fired();
        drop(client);
        assert_eq!(watch.take().unwrap(), [], "an end does not wake it either");
        arm(&mut registration, Some(EventFlags::empty()));
        assert_eq!(watch.take().unwrap(), [(token, EventFlags::HUP)]);
        registration.fired();
        arm(&mut registration, Some(EventFlags::IN));
        arm(&mut registration, None);
        assert_eq!(watch.take().unwrap(), []);
    }

    #[test]
    fn bell_and_clock_are_heard_once() {
        let watch = Watch::new().unwrap();
        watch.ring();
        watch.ring();
        assert_eq!(watch.take().unwrap(), [(Token::More, EventFlags::IN)]);
        assert_eq!(watch.take().unwrap(), []);
        watch.tick_after(Duration::from_millis(1));
        let mut seen = watch.take().unwrap();
        while seen.is_empty() {
            seen = watch.take().unwrap();
        }
        assert_eq!(seen, [(Token::Tick, EventFlags::IN)]);
        assert_eq!(watch.take().unwrap(), []);
    }
}
