//! The two things that need `unsafe`: a mapping, and giving it to a guest.

use std::fs::File;
use std::io;
use std::ptr;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

/// A private mapping. It is never unmapped: it lives as long as the process, and so outlives every VM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapping {
    address: u64,
    len_bytes: u64,
}

/// What the guest may do with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// Maps the first `len_bytes` of `file` privately, or zeros when there is none.
///
/// # Errors
/// What `mmap` answers.
pub(crate) fn map(file: Option<&File>, len_bytes: u64) -> io::Result<Mapping> {
    let len = usize::try_from(len_bytes).map_err(io::Error::other)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let address = match file {
        // SAFETY: no address is asked for, so the kernel picks one that is free; nothing in this program reads or
        // writes through the mapping, so a change of the file cannot break a reference.
        Some(file) => unsafe { mmap(ptr::null_mut(), len, protection, flags, file, 0) },
        // SAFETY: as above.
        None => unsafe { mmap_anonymous(ptr::null_mut(), len, protection, flags) },
    }?;
    Ok(Mapping {
        address: address as u64,
        len_bytes,
    })
}

/// Shows `mapping` to the guest at `guest_address`.
///
/// # Errors
/// What KVM_SET_USER_MEMORY_REGION answers.
pub(crate) fn set_slot(
    vm: &VmFd,
    slot: u32,
    guest_address: u64,
    mapping: Mapping,
    access: Access,
) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: if access == Access::ReadOnly {
            KVM_MEM_READONLY
        } else {
            0
        },
        guest_phys_addr: guest_address,
        memory_size: mapping.len_bytes,
        userspace_addr: mapping.address,
    };
    // SAFETY: `mapping` was made by `map`, is never unmapped, and this program holds no reference into it.
    unsafe { vm.set_user_memory_region(region) }
}
