//! The clock of statistics.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that is readable once every interval.
#[derive(Debug)]
pub(super) struct StatsTimer(OwnedFd);

impl StatsTimer {
    /// A timer that does not run.
    ///
    /// # Errors
    /// The kernel's, when there are no descriptors left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Fires every `interval_s` seconds from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn arm(&self, interval_s: u16) -> io::Result<()> {
        let interval = Timespec {
            tv_sec: i64::from(interval_s),
            tv_nsec: 0,
        };
        let setting = Itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &setting)?;
        Ok(())
    }

    /// Whether it has fired since the last look. Does not wait.
    pub(super) fn has_fired(&self) -> bool {
        let mut count = [0_u8; 8];
        rustix::io::read(&self.0, &mut count).is_ok()
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
