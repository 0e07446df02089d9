//! The time stamp counter.

/// Its value now.
#[must_use]
pub fn read() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
