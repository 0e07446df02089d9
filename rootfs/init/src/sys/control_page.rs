//! The control device, mapped.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use lightv_contract::control::BYTES;
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::control::Readable;

/// The 64 KiB of the device. They stay mapped until the machine ends.
#[derive(Debug, Clone, Copy)]
pub struct ControlPage {
    start: NonNull<u8>,
}

// SAFETY: the mapping is shared memory of a device, is never unmapped, and is only touched by volatile loads and stores.
unsafe impl Send for ControlPage {}
// SAFETY: as above; doorbells may be rung from any thread at any time (docs/control-device.md).
unsafe impl Sync for ControlPage {}

impl ControlPage {
    /// Maps the device at the guest-physical `address` through `path`, which is `/dev/mem`.
    ///
    /// # Errors
    /// Those of `open` and `mmap`; an address that is no multiple of a page is EINVAL.
    pub fn map(path: &str, address: u64) -> io::Result<Self> {
        // SYNC: the kernel maps the device uncached, as registers have to be.
        let flags = OFlags::RDWR | OFlags::SYNC | OFlags::CLOEXEC;
        let memory = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; no memory of ours is replaced.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                BYTES,
                access,
                MapFlags::SHARED,
                &memory,
                address,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start })
    }

    /// Rings the 32-bit doorbell at `offset`; one that does not lie in the device is ignored. The monitor has seen it when
    /// this returns.
    pub fn ring(&self, offset: usize, value: u32) {
        if !offset.is_multiple_of(4) || offset > BYTES - 4 {
            return;
        }
        // SAFETY: `offset` lies inside of the BYTES that are mapped from `start` on.
        let doorbell = unsafe { self.start.add(offset) };
        // SAFETY: mapped, writable and aligned, by the check above.
        unsafe { doorbell.cast::<u32>().write_volatile(value) };
    }
}

impl Readable for ControlPage {
    fn copy(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        if offset.checked_add(into.len())? > BYTES {
            return None;
        }
        for (byte, at) in into.iter_mut().zip(offset..) {
            // SAFETY: `at` is below BYTES, by the check above.
            let from = unsafe { self.start.add(at) };
            // SAFETY: mapped and readable; the monitor may write at the same time, so volatile.
            *byte = unsafe { from.read_volatile() };
        }
        Some(())
    }
}
