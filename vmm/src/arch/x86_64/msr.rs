//! Model-specific registers: what they are at the start, and which of them a snapshot keeps.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// IA32_TSC.
pub const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE: arms the local APIC's timer, so it is written after the APIC has its state.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_MISC_ENABLE; bit 0: fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE: enabled (bit 11), write-back where nothing else is said.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = (1 << 11) | 6;

/// Why registers could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// KVM refused the call.
    #[error("KVM refused to {what} MSRs")]
    Kvm {
        /// `read`, `write` or `list`.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// KVM refused one register.
    #[error("KVM refused MSR {index:#x} with value {value:#x}")]
    Refused {
        /// Its number.
        index: u32,
        /// What was to be written.
        value: u64,
    },
    /// More registers than one call takes.
    #[error("{count} MSRs are more than one call takes")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Sets the registers that differ from their reset value when a kernel is entered.
///
/// # Errors
/// [`MsrError`].
pub fn set_boot_values(vcpu: &VcpuFd) -> Result<(), MsrError> {
    set(
        vcpu,
        &[
            (MISC_ENABLE, MISC_ENABLE_FAST_STRING),
            (MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
        ],
    )
}

/// MSR_KVM_WALL_CLOCK and its new number: a write is an order to store the wall clock at an address, once. What was
/// ordered at the guest's boot must not be done again, to memory that has long become something else.
const WALL_CLOCK_ORDERS: [u32; 2] = [0x11, 0x4b56_4d00];

/// Whether a register keeps what is written to it: it is neither an order nor a clock.
#[must_use]
pub fn keeps_its_value(index: u32) -> bool {
    !WALL_CLOCK_ORDERS.contains(&index) && !matches!(index, TSC | TSC_DEADLINE)
}

/// Numbers of the registers that a snapshot needs: those that KVM lists (KVM_GET_MSR_INDEX_LIST), without orders, and
/// `also`, which KVM may leave out.
///
/// # Errors
/// [`MsrError::Kvm`].
pub fn saved_indices(kvm: &Kvm, also: &[u32]) -> Result<Vec<u32>, MsrError> {
    let list = kvm.get_msr_index_list().map_err(|cause| MsrError::Kvm {
        what: "list",
        cause,
    })?;
    let listed = list.as_slice();
    let unlisted = also.iter().filter(|index| !listed.contains(index));
    let is_state = |index: &u32| !WALL_CLOCK_ORDERS.contains(index);
    let all = listed.iter().chain(unlisted).copied();
    Ok(all.filter(is_state).collect())
}

/// Reads those of `indices` that this vCPU has and would take back, in order.
///
/// KVM lists registers that it then refuses to read, or to write with the value that it gave (on some hosts 0x3a,
/// 0x122…). Those hold nothing that a guest could have set, so they are left out here: a restore then needs one
/// call and no exceptions. The vCPU must be paused: each register is written back with its own value.
///
/// # Errors
/// [`MsrError::Kvm`].
pub fn capture(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, MsrError> {
    let mut kept = Vec::with_capacity(indices.len());
    for index in indices {
        let Some(value) = get(vcpu, *index)? else {
            continue;
        };
        let is_clock = matches!(*index, TSC | TSC_DEADLINE);
        if is_clock || try_set(vcpu, &[(*index, value)])? == 1 {
            kept.push((*index, value));
        }
    }
    Ok(kept)
}

/// Reads one register; `None` if the vCPU has it not.
///
/// # Errors
/// [`MsrError::Kvm`].
pub fn get(vcpu: &VcpuFd, index: u32) -> Result<Option<u64>, MsrError> {
    let mut msrs = entries(&[(index, 0)])?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => Ok(msrs.as_slice().first().map(|entry| entry.data)),
        Ok(_) => Ok(None),
        Err(cause) => Err(MsrError::Kvm {
            what: "read",
            cause,
        }),
    }
}

/// Writes registers in the order given, in as few calls as KVM allows (it takes fewer than 256 at a time).
///
/// # Errors
/// [`MsrError::Refused`] names the first that KVM does not take.
pub fn set(vcpu: &VcpuFd, registers: &[(u32, u64)]) -> Result<(), MsrError> {
    for part in registers.chunks(REGISTERS_PER_CALL) {
        let done = try_set(vcpu, part)?;
        if let Some((index, value)) = part.get(done) {
            return Err(MsrError::Refused {
                index: *index,
                value: *value,
            });
        }
    }
    Ok(())
}

/// Registers that are written by one call.
const REGISTERS_PER_CALL: usize = 128;

/// Writes registers until KVM refuses one; says how many it took.
fn try_set(vcpu: &VcpuFd, registers: &[(u32, u64)]) -> Result<usize, MsrError> {
    if registers.is_empty() {
        return Ok(0);
    }
    let msrs = entries(registers)?;
    vcpu.set_msrs(&msrs).map_err(|cause| MsrError::Kvm {
        what: "write",
        cause,
    })
}

fn entries(registers: &[(u32, u64)]) -> Result<Msrs, MsrError> {
    let list: Vec<_> = registers
        .iter()
        .map(|(index, data)| kvm_msr_entry {
            index: *index,
            data: *data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&list).map_err(|_| MsrError::TooMany {
        count: registers.len(),
    })
}
