//! Exit codes of `lightv-vmm`, and so of `lightv run`. Documented in docs/exit-codes.md.
//!
//! 0–127 belong to the guest: its own status, given by the `EXIT` doorbell. The monitor's own codes lie above, where
//! Firecracker has put them too.

/// The guest shut down or asked for a reset (i8042), or ended with status 0.
pub const OK: u8 = 0;
/// The monitor failed for a reason that has no code of its own.
pub const FAILURE: u8 = 1;
/// A thread of the monitor made a system call that its filter does not allow.
pub const FORBIDDEN_CALL: u8 = 148;
/// The configuration or the image was refused; nothing was started.
pub const BAD_CONFIG: u8 = 152;
/// The command line was refused; nothing was started.
pub const BAD_ARGUMENTS: u8 = 153;
/// The host refused something the VM needs: `/dev/kvm`, a tap, memory, a file.
pub const HOST_FAILURE: u8 = 158;
/// The image could not be saved; no file was left behind.
pub const SAVE_FAILED: u8 = 159;
/// The guest's CPU shut down after a triple fault.
pub const TRIPLE_FAULT: u8 = 160;
/// KVM could not run the guest (internal error, or entry failed).
pub const KVM_ERROR: u8 = 161;
/// The guest panicked: it rang the `PANIC` doorbell, or said so by pvpanic.
pub const GUEST_PANIC: u8 = 162;
/// The process that served the guest's memory has ended before all of it had come.
pub const MEMORY_LOST: u8 = 163;
/// Ended by SIGINT or SIGTERM: 128 plus the signal's number, as shells have it.
#[must_use]
pub const fn by_signal(signal: u8) -> u8 {
    128 + signal
}
