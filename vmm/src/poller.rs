//! What the loop waits for: a closed list of tokens over epoll.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::sys::signal::SignalFd;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Something has come by the channel.
    Events,
    /// A signal waits.
    Signals,
    /// The pool that the machine is of has something to say, or is gone.
    Pool,
    /// A process beside this one has ended, or has something to say.
    Side,
    /// The driver rang a queue's doorbell.
    Queue {
        /// Place in the device set.
        device: usize,
        /// Index of the queue.
        queue: usize,
    },
    /// The host has something for a device.
    Backend {
        /// Place in the device set.
        device: usize,
    },
}

/// Encoding of a token in epoll's 64 bits: kind, device, queue.
const KIND_SHIFT: u32 = 32;
const DEVICE_SHIFT: u32 = 16;
const FIELD_MASK: u64 = 0xffff;

impl Token {
    const fn encode(self) -> u64 {
        match self {
            Self::Events => 0,
            Self::Signals => 1 << KIND_SHIFT,
            Self::Pool => 4 << KIND_SHIFT,
            Self::Side => 5 << KIND_SHIFT,
            Self::Queue { device, queue } => {
                (2 << KIND_SHIFT) | ((device as u64) << DEVICE_SHIFT) | queue as u64
            }
            Self::Backend { device } => (3 << KIND_SHIFT) | ((device as u64) << DEVICE_SHIFT),
        }
    }

    fn decode(data: u64) -> Option<Self> {
        let device = usize::try_from((data >> DEVICE_SHIFT) & FIELD_MASK).ok()?;
        let queue = usize::try_from(data & FIELD_MASK).ok()?;
        match data >> KIND_SHIFT {
            0 => Some(Self::Events),
            1 => Some(Self::Signals),
            2 => Some(Self::Queue { device, queue }),
            3 => Some(Self::Backend { device }),
            4 => Some(Self::Pool),
            5 => Some(Self::Side),
            _ => None,
        }
    }
}

/// Epoll failed.
#[derive(Debug, thiserror::Error)]
#[error("epoll: cannot {what}")]
pub struct PollError {
    /// What was tried.
    what: &'static str,
    /// The kernel's reason.
    #[source]
    cause: io::Error,
}

/// Tokens taken at a time.
pub const TOKENS_MAX: usize = 32;

/// The loop's epoll.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// Watches a channel, by the descriptor that its sender writes, and signals.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn new(events: &EventFd, signals: &SignalFd) -> Result<Self, PollError> {
        let epoll = Epoll::new().map_err(|cause| PollError {
            what: "be opened",
            cause,
        })?;
        let poller = Self { epoll };
        poller.watch(events.as_raw_fd(), Token::Events)?;
        poller.watch(signals.as_raw_fd(), Token::Signals)?;
        Ok(poller)
    }

    /// Watches `fd` for data, level-triggered.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn watch(&self, fd: RawFd, token: Token) -> Result<(), PollError> {
        let event = EpollEvent::new(EventSet::IN, token.encode());
        self.epoll
            .ctl(ControlOperation::Add, fd, event)
            .map_err(|cause| PollError {
                what: "watch a descriptor",
                cause,
            })
    }

    /// Watches `fd` no more.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn unwatch(&self, fd: RawFd) -> Result<(), PollError> {
        let event = EpollEvent::default();
        self.epoll
            .ctl(ControlOperation::Delete, fd, event)
            .map_err(|cause| PollError {
                what: "leave a descriptor",
                cause,
            })
    }

    /// Waits until something happens, or `timeout` is over.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Vec<Token>, PollError> {
        let timeout_ms = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
        });
        let mut events = [EpollEvent::default(); TOKENS_MAX];
        match self.epoll.wait(timeout_ms, &mut events) {
            Ok(count) => Ok(events
                .iter()
                .take(count)
                .filter_map(|event| Token::decode(event.data()))
                .collect()),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(cause) => Err(PollError {
                what: "wait",
                cause,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_way_there_and_back() {
        let mut tokens = vec![Token::Events, Token::Signals, Token::Pool, Token::Side];
        for device in 0..20 {
            tokens.push(Token::Backend { device });
            tokens.extend((0..4).map(|queue| Token::Queue { device, queue }));
        }
        for token in tokens {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
    }
}
