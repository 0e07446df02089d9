//! The only place with unsafe code: system calls on guest memory and on taps.

pub(crate) mod guest_buffers;
pub(crate) mod random;
pub(crate) mod tun;
pub(crate) mod uring;
