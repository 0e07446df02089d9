//! The interrupt of a virtio-mmio device.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use crate::counters::Counters;
use crate::register_page::{RegisterPage, reg};

/// Bits of InterruptStatus and InterruptACK (virtio 1.2 §4.2.2).
pub mod bits {
    /// A queue has used buffers.
    pub const USED_RING: u32 = 1;
    /// The configuration, or DEVICE_NEEDS_RESET, has changed.
    pub const CONFIG: u32 = 2;
}

/// Raises the interrupt of one device, and tells the register front why. Clones are the same interrupt.
///
/// The device raises from the control loop while the front reads and acknowledges from a vCPU: the bits are set
/// before the eventfd is written, so the guest always finds the reason of an interrupt.
#[derive(Clone)]
pub struct Interrupt {
    line: Arc<Line>,
}

struct Line {
    status: AtomicU32,
    needs_reset: AtomicBool,
    irqfd: EventFd,
    counters: Arc<Counters>,
    on_needs_reset: Box<dyn Fn() + Send + Sync>,
    page: OnceLock<Arc<RegisterPage>>,
}

impl Interrupt {
    /// An interrupt that writes `irqfd`, which should not block.
    #[must_use]
    pub fn new(irqfd: EventFd, counters: Arc<Counters>) -> Self {
        Self::telling(irqfd, counters, || {})
    }

    /// The same; `on_needs_reset` is told whenever DEVICE_NEEDS_RESET is set, by the loop or a vCPU: it must not wait.
    #[must_use]
    pub fn telling(
        irqfd: EventFd,
        counters: Arc<Counters>,
        on_needs_reset: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let line = Line {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            irqfd,
            counters,
            on_needs_reset: Box::new(on_needs_reset),
            page: OnceLock::new(),
        };
        Self {
            line: Arc::new(line),
        }
    }

    /// Has InterruptStatus, and DEVICE_NEEDS_RESET, shown on `page` from now on.
    pub(crate) fn show_on(&self, page: &Arc<RegisterPage>) {
        let _ = self.line.page.set(Arc::clone(page));
    }

    /// A queue has used buffers.
    pub fn signal_used_ring(&self) {
        self.raise(bits::USED_RING);
    }

    /// The configuration has changed (virtio 1.2 §4.2.2).
    pub fn signal_config(&self) {
        self.raise(bits::CONFIG);
    }

    /// Sets DEVICE_NEEDS_RESET and says so by a configuration interrupt (virtio 1.2 §2.1.2), once until the reset.
    pub fn raise_needs_reset(&self) {
        if !self.line.needs_reset.swap(true, Ordering::AcqRel) {
            Counters::add_one(&self.line.counters.needs_resets);
            if let Some(page) = self.line.page.get() {
                page.show(|shown| {
                    // Unless the driver has reset the device meanwhile.
                    if self.needs_reset() {
                        shown.add_needs_reset();
                    }
                });
            }
            self.signal_config();
            (self.line.on_needs_reset)();
        }
    }

    /// Raises the interrupt again if the guest has not acknowledged all of it: to be done after a restore.
    pub fn raise_again_if_pending(&self) {
        if self.status() != 0 {
            self.write_irqfd();
        }
    }

    /// InterruptStatus.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.line.status.load(Ordering::Acquire)
    }

    /// Whether DEVICE_NEEDS_RESET is set.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.line.needs_reset.load(Ordering::Acquire)
    }

    /// InterruptACK: clears `acknowledged`.
    pub(crate) fn acknowledge(&self, acknowledged: u32) {
        self.line.status.fetch_and(!acknowledged, Ordering::AcqRel);
        self.show();
    }

    /// Puts back what a saved state holds, without raising anything.
    pub(crate) fn set(&self, status: u32, needs_reset: bool) {
        self.line.status.store(status, Ordering::Release);
        self.line.needs_reset.store(needs_reset, Ordering::Release);
        self.show();
    }

    fn show(&self) {
        if let Some(page) = self.line.page.get() {
            page.show(|shown| shown.set(reg::INTERRUPT_STATUS, self.status()));
        }
    }

    fn raise(&self, reason: u32) {
        let before = self.line.status.fetch_or(reason, Ordering::AcqRel);
        // What is set is shown, or is just being shown by somebody who raises the interrupt after that.
        if before & reason != reason {
            self.show();
        }
        Counters::add_one(&self.line.counters.interrupts);
        self.write_irqfd();
    }

    fn write_irqfd(&self) {
        // It can only fail when the count is full: then the interrupt is pending already.
        let _ = self.line.irqfd.write(1);
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("status", &self.status())
            .field("needs_reset", &self.needs_reset())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interrupt() -> (Interrupt, EventFd) {
        let irqfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (
            Interrupt::new(irqfd.try_clone().unwrap(), Arc::default()),
            irqfd,
        )
    }

    #[test]
    fn acknowledging_one_reason_keeps_the_other() {
        let (interrupt, irqfd) = interrupt();
        interrupt.signal_used_ring();
        interrupt.signal_config();
        interrupt.acknowledge(bits::USED_RING);
        assert_eq!(interrupt.status(), bits::CONFIG);
        assert_eq!(irqfd.read().unwrap(), 2);
    }

    #[test]
    fn needs_reset_is_reported_once_until_the_reset() {
        let irqfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        let tell = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        let interrupt = Interrupt::telling(irqfd.try_clone().unwrap(), Arc::default(), tell);
        for round in 1..3 {
            for _ in 0..1000 {
                interrupt.raise_needs_reset();
            }
            assert!(interrupt.needs_reset());
            assert_eq!(irqfd.read().unwrap(), 1);
            assert_eq!(told.load(Ordering::SeqCst), round);
            interrupt.set(0, false);
        }
        // Put back, it is no news.
        interrupt.set(bits::CONFIG, true);
        assert_eq!(told.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn only_a_pending_interrupt_is_raised_again() {
        let (interrupt, irqfd) = interrupt();
        interrupt.raise_again_if_pending();
        assert!(irqfd.read().is_err());
        interrupt.set(bits::USED_RING, false);
        interrupt.raise_again_if_pending();
        assert_eq!(irqfd.read().unwrap(), 1);
    }
}
