//! The VM Generation ID: 16 random bytes in guest RAM that are other ones after every restore.
//!
//! A guest finds their address in ACPI (device `VMGI`), and is told of a change by a notification of that device. Linux
//! (drivers/virt/vmgenid.c) then mixes them into its random pool and reseeds, so that two clones of one image part ways.
//! <https://learn.microsoft.com/windows/win32/hyperv_v2/virtual-machine-generation-identifier>

use std::io;

use lightv_devices::memory::GuestMem;
use vm_memory::{Address, Bytes};

use super::layout;
use crate::sys::process::random;

/// Length of the ID.
pub const GENERATION_BYTES: usize = 16;

/// Why the ID could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteGenerationError {
    /// No random bytes.
    #[error("Cannot get random bytes from the host for the generation ID")]
    Random(#[source] io::Error),
    /// No RAM there.
    #[error("RAM has no room for the generation ID at {address:#x}")]
    Room {
        /// Where it was to be written.
        address: u64,
    },
}

/// Writes a fresh ID into RAM: at boot, and at a restore before the guest runs.
///
/// # Errors
/// [`WriteGenerationError`].
pub fn write_fresh(mem: &GuestMem) -> Result<(), WriteGenerationError> {
    let mut id = [0; GENERATION_BYTES];
    random(&mut id).map_err(WriteGenerationError::Random)?;
    mem.write_slice(&id, layout::GENERATION_ID)
        .map_err(|_| WriteGenerationError::Room {
            address: layout::GENERATION_ID.raw_value(),
        })
}
