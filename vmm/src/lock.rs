//! The one way to take a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes `mutex`. A lock whose holder panicked does not exist: a panic ends the process (profile `panic = "abort"`).
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
