//! KVM calls that kvm-ioctls leaves unsafe.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd as _;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_MEM_READONLY, KVMIO, kvm_pre_fault_memory, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::ioctl::{
    _IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl, ioctl_expr, ioctl_with_mut_ref,
};

use super::mapping::Mapping;

/// How a guest may use a memory slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotAccess {
    /// RAM.
    ReadWrite,
    /// Reads are loads, writes leave the guest as MMIO.
    ReadOnly,
}

/// Puts `mapping` into the guest's address space at `base` as slot `slot`.
///
/// # Errors
/// The kernel's.
pub fn set_slot(
    vm: &VmFd,
    slot: u32,
    base: GuestAddress,
    mapping: &Mapping,
    access: SlotAccess,
) -> Result<(), kvm_ioctls::Error> {
    let flags = match access {
        SlotAccess::ReadWrite => 0,
        SlotAccess::ReadOnly => KVM_MEM_READONLY,
    };
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: base.0,
        memory_size: mapping.bytes() as u64,
        userspace_addr: mapping.address() as u64,
    };
    // SAFETY: `userspace_addr..+memory_size` is one mapping that is never taken down, so KVM cannot reach memory
    // that has become something else; no Rust reference to it exists.
    unsafe { vm.set_user_memory_region(region) }
}

/// Sets the extended state of a vCPU.
///
/// # Errors
/// The kernel's.
pub fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM_SET_XSAVE reads more than `kvm_xsave` only when dynamic features (AMX) were enabled for this
    // process by arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM), which this program never calls.
    unsafe { vcpu.set_xsave(xsave) }
}

/// Not among the calls of kvm-ioctls (Documentation/virt/kvm/api.rst, 4.133).
const KVM_GET_STATS_FD: libc::c_ulong = ioctl_expr(_IOC_NONE, KVMIO, 0xce, 0);

/// The file of KVM's own counters of a vCPU. KVM waits for a vCPU that runs: to be called before it does.
///
/// # Errors
/// The kernel's: KVM has no such file before Linux 5.14.
pub fn stats_file(vcpu: &VcpuFd) -> io::Result<File> {
    // SAFETY: the call takes no argument and writes no memory of ours.
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Of a VM not among the calls of kvm-ioctls (Documentation/virt/kvm/api.rst, 4.56).
const KVM_GET_TSC_KHZ: libc::c_ulong = ioctl_expr(_IOC_NONE, KVMIO, 0xa3, 0);

/// Frequency of the time stamp counters of a VM's vCPUs before anybody has set it, in kHz: the host's.
///
/// # Errors
/// The kernel's: before Linux 5.16 only a vCPU can be asked.
pub fn tsc_khz(vm: &VmFd) -> io::Result<u32> {
    // SAFETY: the call takes no argument and writes no memory of ours.
    let khz = unsafe { ioctl(vm, KVM_GET_TSC_KHZ) };
    u32::try_from(khz).map_err(|_| io::Error::last_os_error())
}

/// Not among the calls of kvm-ioctls (Documentation/virt/kvm/api.rst, KVM_PRE_FAULT_MEMORY).
const KVM_PRE_FAULT_MEMORY: libc::c_ulong =
    ioctl_expr(_IOC_READ | _IOC_WRITE, KVMIO, 0xd5, PRE_FAULT_BYTES);
#[expect(clippy::cast_possible_truncation, reason = "64 bytes")]
const PRE_FAULT_BYTES: libc::c_uint = size_of::<kvm_pre_fault_memory>() as libc::c_uint;

/// Has KVM map the guest pages `address..+bytes`, whole pages, as `vcpu` would when it reads them.
///
/// # Errors
/// The kernel's: KVM has no such call before Linux 6.11, and maps nothing where it shadows the guest's page tables; what it
/// needs for that it has by then.
pub fn pre_fault(vcpu: &VcpuFd, address: u64, bytes: u64) -> io::Result<()> {
    let mut range = kvm_pre_fault_memory {
        gpa: address,
        size: bytes,
        ..Default::default()
    };
    while range.size > 0 {
        let before = range.size;
        // SAFETY: the call reads and writes `range`, which is of the type that it takes, and no other memory of ours.
        let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY, &mut range) };
        if result < 0 || range.size >= before {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The `immediate_exit` byte of a vCPU's `kvm_run`, reachable from other threads.
///
/// While it is 1, KVM_RUN completes what the last exit left open and returns EINTR without entering the guest
/// (Documentation/virt/kvm/api.rst, KVM_RUN).
#[derive(Debug, Clone, Copy)]
pub struct ImmediateExit(*const AtomicU8);

// SAFETY: the byte is only reached as an atomic, and its page lives as long as the process (see `of`).
unsafe impl Send for ImmediateExit {}
// SAFETY: as for `Send`.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// The byte of `vcpu`, which lives until the process ends, and the vCPU back.
    pub fn of(vcpu: &'static mut VcpuFd) -> (Self, &'static mut VcpuFd) {
        let byte: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
        (Self(byte.cast_const().cast::<AtomicU8>()), vcpu)
    }

    /// Asks for an exit, or takes the request back.
    pub fn set(self, wanted: bool) {
        // SAFETY: the `VcpuFd` is never dropped (`of` took it for 'static), so its mapping outlives this; a u8 has no alignment to get wrong, and KVM reads the
        // byte with READ_ONCE.
        let byte = unsafe { &*self.0 };
        byte.store(u8::from(wanted), Ordering::SeqCst);
    }
}

/// Words of `kvm_run.internal.data` that KVM fills at most.
const INTERNAL_WORDS: usize = 16;
/// Bit of `emulation_failure.flags`: the instruction bytes are there.
const HAS_INSTRUCTION: u64 = 1;

/// Suberror of the last KVM_EXIT_INTERNAL_ERROR, and the instruction that could not be emulated, where KVM says it.
pub fn internal_error(vcpu: &mut VcpuFd) -> (u32, Option<Vec<u8>>) {
    let run = vcpu.get_kvm_run();
    // SAFETY: all members of the union are plain integers, so any of them may be read whatever was written.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let words = internal
        .data
        .get(..INTERNAL_WORDS.min(internal.ndata as usize))
        .unwrap_or_default();
    // `emulation_failure` lies over the same words: flags, then one byte of length and fifteen of instruction.
    let bytes: Vec<u8> = words
        .iter()
        .skip(1)
        .take(2)
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let has_instruction = words
        .first()
        .is_some_and(|flags| flags & HAS_INSTRUCTION != 0);
    let instruction = bytes
        .split_first()
        .and_then(|(length, rest)| rest.get(..usize::from(*length)));
    let instruction = instruction.filter(|found| has_instruction && !found.is_empty());
    (internal.suberror, instruction.map(<[u8]>::to_vec))
}
