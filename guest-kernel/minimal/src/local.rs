//! Global state of the one CPU that runs Rust.

use core::cell::UnsafeCell;

/// A value only the boot CPU's Rust code touches.
///
/// Rust runs on one CPU and is never interrupted by Rust (interrupt handlers are the shim's), so there is no one to
/// share with. What is left to exclude is re-entry, which each user does by borrowing for a moment only.
#[derive(Debug)]
pub struct Local<T>(UnsafeCell<T>);

// SAFETY: see the type: never touched by two CPUs, nor by an interrupt.
unsafe impl<T> Sync for Local<T> {}

impl<T> Local<T> {
    /// Makes a global value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Lends the value to `f`, which must not come back here for the same value.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: one CPU, no interrupts in Rust, and `f` does not re-enter (callers are in this crate and short).
        f(unsafe { &mut *self.0.get() })
    }
}

impl<T: Copy> Local<T> {
    /// A copy of the value.
    pub fn get(&self) -> T {
        self.with(|value| *value)
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        self.with(|place| *place = value);
    }
}
