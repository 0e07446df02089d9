//! The saved vCPU.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use lightv_devices::state::Section;
use serde::{Deserialize, Serialize};

use crate::arch::VcpuId;
use crate::arch::host::cpuid::{self, CpuMismatch, CpuidOrigin};
use crate::arch::host::msr::{self, MsrError};
use crate::limits;
use crate::sys::bytes::{AbiBytes, from_bytes, to_bytes};
use crate::sys::kvm::set_xsave;

/// Saved vCPU, version 1. Never edit: add `VcpuStateV2` and `From<VcpuStateV1>`.
///
/// KVM's structures are kept as the bytes of the kernel's ABI, which does not change, and not in a form of our own. A
/// structure that has the value of a new vCPU is kept as no bytes at all: each call that sets one costs some 10 µs of a
/// restore, and most guests leave several of them alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStateV1 {
    /// Frequency of the time stamp counter in kHz; 0 if the host does not say.
    pub tsc_khz: u32,
    /// `kvm_cpuid_entry2`, one after the other.
    pub cpuid: Vec<u8>,
    /// `kvm_regs`.
    pub regs: Vec<u8>,
    /// `kvm_sregs`.
    pub sregs: Vec<u8>,
    /// `kvm_xsave`.
    pub xsave: Vec<u8>,
    /// `kvm_xcrs`.
    pub xcrs: Vec<u8>,
    /// `kvm_lapic_state`.
    pub lapic: Vec<u8>,
    /// `kvm_vcpu_events`.
    pub events: Vec<u8>,
    /// `kvm_mp_state`.
    pub mp_state: Vec<u8>,
    /// `kvm_debugregs`.
    pub debug_regs: Vec<u8>,
    /// Model-specific registers: number, value.
    pub msrs: Vec<(u32, u64)>,
}

impl Section for VcpuStateV1 {
    const KIND: &'static str = "vcpu";
    const VERSION: u16 = 1;
}

/// Why a vCPU could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// KVM refused a call.
    #[error("KVM refused to {what} of a vCPU")]
    Kvm {
        /// Which call.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// Model-specific registers could not be read or written.
    #[error("The vCPU's model-specific registers do not fit this host")]
    Msrs(#[source] MsrError),
    /// The guest uses what this CPU has not.
    #[error(transparent)]
    Cpu(CpuMismatch),
    /// The guest has measured another frequency, and this CPU cannot scale.
    #[error(
        "The guest's time stamp counter runs at {saved_khz} kHz, this host's at {host_khz}, and its CPU cannot scale it; build the image on such a host, or run it with --cold"
    )]
    TscFrequency {
        /// In the image.
        saved_khz: u32,
        /// Here.
        host_khz: u32,
    },
    /// A structure has another length than the kernel's.
    #[error("Saved {field} has {found} bytes; the kernel's structure has {expected}")]
    Length {
        /// Which one.
        field: &'static str,
        /// Length in the image.
        found: usize,
        /// Length it must have.
        expected: usize,
    },
    /// A table is longer than KVM's limit.
    #[error("Saved {field} has {found} entries, more than {max}")]
    TooMany {
        /// Which one.
        field: &'static str,
        /// Entries in the image.
        found: usize,
        /// Entries it may have.
        max: usize,
    },
}

/// Reads the whole state of a paused vCPU. The order matters: reading the multiprocessor state delivers a pending INIT or
/// SIPI, and reading events a pending fault's address, so both come before the registers that they change.
///
/// # Errors
/// [`VcpuStateError`].
pub fn capture(
    id: VcpuId,
    vcpu: &VcpuFd,
    msr_indices: &[u32],
) -> Result<VcpuStateV1, VcpuStateError> {
    let kvm = |what| move |cause| VcpuStateError::Kvm { what, cause };
    let mp_state = vcpu
        .get_mp_state()
        .map_err(kvm("read the multiprocessor state"))?;
    let events = vcpu.get_vcpu_events().map_err(kvm("read pending events"))?;
    let regs = vcpu.get_regs().map_err(kvm("read registers"))?;
    let sregs = vcpu.get_sregs().map_err(kvm("read segment registers"))?;
    let xsave = vcpu.get_xsave().map_err(kvm("read the extended state"))?;
    let xcrs = vcpu
        .get_xcrs()
        .map_err(kvm("read extended control registers"))?;
    let debug_regs = vcpu.get_debug_regs().map_err(kvm("read debug registers"))?;
    let lapic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    let msrs = msr::capture(vcpu, msr_indices).map_err(VcpuStateError::Msrs)?;
    let cpuid = vcpu
        .get_cpuid2(limits::CPU_TABLE_ENTRIES_MAX)
        .map_err(kvm("read CPUID"))?;
    Ok(VcpuStateV1 {
        tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
        cpuid: cpuid.as_slice().iter().flat_map(to_bytes).collect(),
        regs: to_bytes(&regs),
        sregs: to_bytes(&sregs),
        xsave: to_bytes(&xsave),
        xcrs: unless(fresh::has_xcrs(&xcrs), &xcrs),
        lapic: to_bytes(&lapic),
        events: unless(fresh::has_events(&events), &events),
        mp_state: unless(fresh::has_mp_state(&mp_state, id), &mp_state),
        debug_regs: unless(fresh::has_debug_regs(&debug_regs), &debug_regs),
        msrs,
    })
}

/// Puts a saved state into a new vCPU.
///
/// CPUID first: KVM checks the rest against it. Segment registers before the local APIC: they carry its base and
/// mode. The TSC deadline after the local APIC: only then is its timer in that mode. Events last.
///
/// # Errors
/// [`VcpuStateError`]; the vCPU is then not to be run.
pub fn apply(
    kvm_device: &Kvm,
    vcpu: &VcpuFd,
    state: &VcpuStateV1,
    origin: CpuidOrigin,
) -> Result<(), VcpuStateError> {
    let kvm = |what| move |cause| VcpuStateError::Kvm { what, cause };
    set_tsc_frequency(kvm_device, vcpu, state.tsc_khz)?;
    let cpuid = decode_cpuid(&state.cpuid)?;
    cpuid::ensure_supported(kvm_device, vcpu, &cpuid, origin).map_err(VcpuStateError::Cpu)?;
    vcpu.set_cpuid2(&cpuid).map_err(kvm("set CPUID"))?;
    if let Some(mp_state) = decode_changed("mp_state", &state.mp_state)? {
        vcpu.set_mp_state(mp_state)
            .map_err(kvm("set the multiprocessor state"))?;
    }
    vcpu.set_regs(&decode("regs", &state.regs)?)
        .map_err(kvm("set registers"))?;
    vcpu.set_sregs(&decode("sregs", &state.sregs)?)
        .map_err(kvm("set segment registers"))?;
    set_xsave(vcpu, &decode("xsave", &state.xsave)?).map_err(kvm("set the extended state"))?;
    if let Some(xcrs) = decode_changed("xcrs", &state.xcrs)? {
        vcpu.set_xcrs(&xcrs)
            .map_err(kvm("set extended control registers"))?;
    }
    if let Some(debug_regs) = decode_changed("debug_regs", &state.debug_regs)? {
        vcpu.set_debug_regs(&debug_regs)
            .map_err(kvm("set debug registers"))?;
    }
    vcpu.set_lapic(&decode("lapic", &state.lapic)?)
        .map_err(kvm("set the local APIC"))?;
    apply_msrs(vcpu, &state.msrs)?;
    if let Some(events) = decode_changed("events", &state.events)? {
        vcpu.set_vcpu_events(&events)
            .map_err(kvm("set pending events"))?;
    }
    Ok(())
}

/// The structure's bytes, or none if it is as in a new vCPU.
fn unless<T: AbiBytes>(is_fresh: bool, value: &T) -> Vec<u8> {
    if is_fresh {
        Vec::new()
    } else {
        to_bytes(value)
    }
}

fn decode_changed<T: AbiBytes>(
    field: &'static str,
    bytes: &[u8],
) -> Result<Option<T>, VcpuStateError> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        decode(field, bytes).map(Some)
    }
}

/// What KVM gives a new vCPU.
mod fresh {
    use kvm_bindings::{
        KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_debugregs, kvm_mp_state,
        kvm_vcpu_events, kvm_xcrs,
    };

    use crate::arch::VcpuId;

    /// Reset values (Intel SDM vol. 3, table 9-1).
    const DR6: u64 = 0xffff_0ff0;
    const DR7: u64 = 0x400;
    /// XCR0 with x87 state alone.
    const XCR0: u64 = 1;

    pub(super) fn has_xcrs(xcrs: &kvm_xcrs) -> bool {
        let [first, ..] = xcrs.xcrs;
        xcrs.nr_xcrs == 1 && xcrs.flags == 0 && first.xcr == 0 && first.value == XCR0
    }

    pub(super) fn has_debug_regs(regs: &kvm_debugregs) -> bool {
        regs.db == [0; 4] && regs.dr6 == DR6 && regs.dr7 == DR7 && regs.flags == 0
    }

    /// The first vCPU runs, the others wait to be started.
    pub(super) fn has_mp_state(state: &kvm_mp_state, id: VcpuId) -> bool {
        let fresh = if id == 0 {
            KVM_MP_STATE_RUNNABLE
        } else {
            KVM_MP_STATE_UNINITIALIZED
        };
        state.mp_state == fresh
    }

    /// Nothing pends; `flags` says only which fields are valid.
    pub(super) fn has_events(events: &kvm_vcpu_events) -> bool {
        let e = &events.exception;
        let i = &events.interrupt;
        let n = &events.nmi;
        let s = &events.smi;
        e.injected | e.pending == 0
            && i.injected | i.shadow == 0
            && n.injected | n.pending | n.masked == 0
            && s.smm | s.pending | s.smm_inside_nmi | s.latched_init == 0
            && events.triple_fault.pending == 0
            && events.sipi_vector == 0
    }
}

/// How far two frequencies may lie apart to be the same, in parts per million: what time keeping evens out, and KVM's own
/// tolerance (its parameter `tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// The guest goes on with the frequency that it has measured: the host's, or one that the CPU can scale to.
fn set_tsc_frequency(
    kvm_device: &Kvm,
    vcpu: &VcpuFd,
    saved_khz: u32,
) -> Result<(), VcpuStateError> {
    let host_khz = vcpu.get_tsc_khz().unwrap_or(0);
    let distance = u64::from(host_khz.abs_diff(saved_khz));
    if saved_khz == 0 || distance * 1_000_000 <= u64::from(saved_khz) * TSC_TOLERANCE_PPM {
        return Ok(());
    }
    if !kvm_device.check_extension(Cap::TscControl) {
        return Err(VcpuStateError::TscFrequency {
            saved_khz,
            host_khz,
        });
    }
    vcpu.set_tsc_khz(saved_khz)
        .map_err(|cause| VcpuStateError::Kvm {
            what: "set the time stamp counter's frequency",
            cause,
        })
}

/// Writes the registers in one call. The TSC deadline goes last in it: it is taken only once the local APIC's timer
/// is in its mode and the time stamp counter has its value.
fn apply_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), VcpuStateError> {
    let max = limits::VCPU_MSRS_MAX;
    if msrs.len() > max {
        return Err(VcpuStateError::TooMany {
            field: "msrs",
            found: msrs.len(),
            max,
        });
    }
    let (deadline, mut ordered): (Vec<_>, Vec<_>) = msrs
        .iter()
        .copied()
        .partition(|(index, _)| *index == msr::TSC_DEADLINE);
    ordered.extend(deadline);
    msr::set(vcpu, &ordered).map_err(VcpuStateError::Msrs)
}

fn decode_cpuid(bytes: &[u8]) -> Result<CpuId, VcpuStateError> {
    let size = size_of::<kvm_cpuid_entry2>();
    let chunks = bytes.chunks_exact(size);
    if !chunks.remainder().is_empty() {
        let expected = bytes.len() / size * size;
        return Err(VcpuStateError::Length {
            field: "cpuid",
            found: bytes.len(),
            expected,
        });
    }
    let entries: Vec<kvm_cpuid_entry2> = chunks.filter_map(from_bytes).collect();
    let max = limits::CPU_TABLE_ENTRIES_MAX;
    CpuId::from_entries(&entries)
        .ok()
        .filter(|_| entries.len() <= max)
        .ok_or(VcpuStateError::TooMany {
            field: "cpuid",
            found: entries.len(),
            max,
        })
}

fn decode<T: AbiBytes>(field: &'static str, bytes: &[u8]) -> Result<T, VcpuStateError> {
    from_bytes(bytes).ok_or(VcpuStateError::Length {
        field,
        found: bytes.len(),
        expected: size_of::<T>(),
    })
}
