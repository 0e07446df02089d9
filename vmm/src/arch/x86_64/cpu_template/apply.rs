//! From changes to what KVM is told, and the proof that KVM took it.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};

use super::{CpuChanges, CpuidBits, CpuidChange, LeafId, MsrChange, Register, WrongCpu};
use crate::arch::host::cpuid;
use crate::arch::host::msr::{self, MsrError};
use crate::limits;

/// Why a CPU cannot be what the template says.
#[derive(Debug, thiserror::Error)]
pub enum CpuTemplateError {
    /// The template is for other processors.
    #[error(transparent)]
    WrongCpu(WrongCpu),
    /// KVM lacks what the template says that it needs.
    #[error(
        "KVM of this host lacks capability {number}, which cpu-config.kvm_capabilities asks for"
    )]
    NoCapability {
        /// Its number.
        number: u32,
    },
    /// KVM's list has no such leaf.
    #[error("The CPU template changes CPUID {0}, which KVM of this host does not support")]
    NoLeaf(LeafId),
    /// KVM's list has the leaf with other flags.
    #[error("The CPU template names CPUID {leaf} with flags {}; KVM has it with {found}", leaf.flags)]
    Flags {
        /// As the template names it.
        leaf: LeafId,
        /// KVM's flags.
        found: u32,
    },
    /// What KVM cannot do was to be promised to the guest.
    #[error("The CPU template sets {0}, which KVM of this host does not support")]
    NotSupported(CpuidBits),
    /// Not for the template to choose.
    #[error(
        "The CPU template changes {0}, which LightV sets itself (docs/cpu-config.md); leave them x"
    )]
    NotFree(CpuidBits),
    /// KVM took the change and did not make it.
    #[error("The CPU template changes {0}, which KVM of this host keeps as they are; leave them x")]
    Kept(CpuidBits),
    /// KVM refused the CPUID that it was asked for.
    #[error("KVM refused to say what CPUID a vCPU has")]
    ReadCpuid(#[source] kvm_ioctls::Error),
    /// KVM has no such register.
    #[error("The CPU template changes MSR {index:#x}, which KVM of this host does not support")]
    NoMsr {
        /// Its number.
        index: u32,
    },
    /// KVM does not take the value.
    #[error(
        "The CPU template makes MSR {index:#x} {value:#x}, which KVM of this host does not take"
    )]
    MsrValue {
        /// Its number.
        index: u32,
        /// What was to be written.
        value: u64,
    },
    /// KVM took the value and has another one.
    #[error(
        "The CPU template makes MSR {index:#x} {value:#x}; KVM of this host makes it {found:#x}"
    )]
    MsrKept {
        /// Its number.
        index: u32,
        /// What was written.
        value: u64,
        /// What is there.
        found: u64,
    },
    /// KVM refused a call.
    #[error(transparent)]
    Msrs(MsrError),
}

impl CpuTemplateError {
    /// Whether the cause is what the user wrote, and not the host.
    #[must_use]
    pub const fn is_bad_config(&self) -> bool {
        !matches!(self, Self::ReadCpuid(_) | Self::Msrs(_))
    }
}

impl CpuChanges {
    /// Proves that KVM has the capabilities that are needed.
    ///
    /// # Errors
    /// [`CpuTemplateError::NoCapability`] names the first that is missing.
    pub fn ensure_capabilities(&self, kvm: &Kvm) -> Result<(), CpuTemplateError> {
        let has = |number: u32| kvm.check_extension_raw(number.into()) > 0;
        match self.capabilities.iter().find(|number| !has(**number)) {
            Some(number) => Err(CpuTemplateError::NoCapability { number: *number }),
            None => Ok(()),
        }
    }

    /// KVM's list of what it supports, with the changes.
    ///
    /// # Errors
    /// [`CpuTemplateError`] names the first change that cannot be made.
    pub fn change_cpuid(&self, supported: &CpuId) -> Result<CpuId, CpuTemplateError> {
        let mut changed = supported.clone();
        for change in &self.cpuid {
            let entry = changed
                .as_mut_slice()
                .iter_mut()
                .find(|entry| change.leaf.is_of(entry))
                .ok_or(CpuTemplateError::NoLeaf(change.leaf))?;
            make(*change, entry)?;
        }
        Ok(changed)
    }

    /// Proves that `vcpu`, whose CPUID was set to `own`, shows what was chosen; then changes its registers.
    ///
    /// # Errors
    /// [`CpuTemplateError`] names the first change that did not happen.
    pub fn finish(&self, vcpu: &VcpuFd, own: &CpuId) -> Result<(), CpuTemplateError> {
        if !self.cpuid.is_empty() {
            let shown = vcpu
                .get_cpuid2(limits::CPU_TABLE_ENTRIES_MAX)
                .map_err(CpuTemplateError::ReadCpuid)?;
            self.ensure_in(own).map_err(CpuTemplateError::NotFree)?;
            self.ensure_in(&shown).map_err(CpuTemplateError::Kept)?;
        }
        self.msrs.iter().try_for_each(|msr| write_msr(vcpu, *msr))
    }

    /// Proves that `cpuid` is what was chosen; else gives the first bits that are not.
    fn ensure_in(&self, cpuid: &CpuId) -> Result<(), CpuidBits> {
        for change in &self.cpuid {
            let mut entries = cpuid.as_slice().iter();
            let entry = entries.find(|entry| change.leaf.is_of(entry));
            // A leaf that is left out is shown as zeros.
            let found = entry.map_or(0, |entry| change.register.of(entry));
            let other = (found ^ change.value) & change.mask;
            if other != 0 {
                return Err(change.bits(other));
            }
        }
        Ok(())
    }
}

fn make(change: CpuidChange, entry: &mut kvm_cpuid_entry2) -> Result<(), CpuTemplateError> {
    if change.leaf.flags != entry.flags {
        return Err(CpuTemplateError::Flags {
            leaf: change.leaf,
            found: entry.flags,
        });
    }
    let old = change.register.of(entry);
    let new = change.apply(old);
    let promised = new & !old & promises(change.leaf, change.register);
    if promised != 0 {
        return Err(CpuTemplateError::NotSupported(change.bits(promised)));
    }
    *change.register.of_mut(entry) = new;
    Ok(())
}

/// Bits that promise the guest something that it may use, and that fails where KVM has it not. Others are numbers,
/// names, and hints.
fn promises(id: LeafId, register: Register) -> u32 {
    // Which mitigation is the better one, and that EFER has no LMSLE (AMD APM vol. 3, E.4.7): bits 16–20.
    const PREFERENCES: u32 = 0x1f << 16;
    match (id.leaf, id.subleaf, register) {
        // States that XCR0 can enable.
        (0xd, 0, Register::Eax | Register::Edx) => !0,
        (7, 2, Register::Edx) => !0,
        // ARAT: the local APIC's timer goes on in deep sleep.
        (6, 0, Register::Eax) => 1 << 2,
        // Invariant time stamp counter.
        (0x8000_0007, 0, Register::Edx) => 1 << 8,
        (0x8000_0008, 0, Register::Ebx) => !PREFERENCES,
        (0x8000_0021, 0, Register::Eax) => !0,
        // KVM's own.
        (0x4000_0001, 0, Register::Eax) => !0,
        (leaf, subleaf, register) => {
            let [eax, ebx, ecx, edx] = cpuid::feature_bits(leaf, subleaf);
            match register {
                Register::Eax => eax,
                Register::Ebx => ebx,
                Register::Ecx => ecx,
                Register::Edx => edx,
            }
        }
    }
}

fn write_msr(vcpu: &VcpuFd, change: MsrChange) -> Result<(), CpuTemplateError> {
    let MsrChange { index, .. } = change;
    let read = || msr::get(vcpu, index).map_err(CpuTemplateError::Msrs);
    let old = read()?.ok_or(CpuTemplateError::NoMsr { index })?;
    let value = change.apply(old);
    msr::set(vcpu, &[(index, value)]).map_err(|error| match error {
        MsrError::Refused { index, value } => CpuTemplateError::MsrValue { index, value },
        other => CpuTemplateError::Msrs(other),
    })?;
    match read()? {
        Some(found) if (found ^ value) & change.mask == 0 => Ok(()),
        found => Err(CpuTemplateError::MsrKept {
            index,
            value,
            found: found.unwrap_or(0),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Named;
    use super::*;

    const LEAF_7: LeafId = LeafId {
        leaf: 7,
        subleaf: 0,
        flags: 1,
    };

    fn change(leaf: LeafId, register: Register, mask: u32, value: u32) -> CpuidChange {
        CpuidChange {
            leaf,
            register,
            mask,
            value,
        }
    }

    fn changes(cpuid: &[CpuidChange]) -> CpuChanges {
        CpuChanges {
            cpuid: cpuid.to_vec(),
            ..CpuChanges::default()
        }
    }

    fn entry(id: LeafId, ebx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function: id.leaf,
            index: id.subleaf,
            flags: id.flags,
            ebx,
            ..Default::default()
        }
    }

    fn supported() -> CpuId {
        let leaf_1 = kvm_cpuid_entry2 {
            function: 1,
            eax: 0x00a0_0f11,
            ..Default::default()
        };
        CpuId::from_entries(&[leaf_1, entry(LEAF_7, 0b1010)]).unwrap()
    }

    fn ebx(cpuid: &CpuId) -> u32 {
        cpuid.as_slice()[1].ebx
    }

    #[test]
    fn chosen_bits_are_changed_and_others_stay() {
        for (mask, value, expected) in [
            (0b0000, 0b0000, 0b1010),
            (0b0010, 0b0000, 0b1000),
            (0b1111, 0b1000, 0b1000),
            (0b1010, 0b1010, 0b1010),
            // A value outside the mask says nothing.
            (0b1000, 0b0100, 0b0010),
        ] {
            let wanted = changes(&[change(LEAF_7, Register::Ebx, mask, value)]);
            let changed = wanted.change_cpuid(&supported()).unwrap();
            assert_eq!(ebx(&changed), expected, "{mask:#b} {value:#b}");
            assert_eq!(changed.as_slice()[0].eax, 0x00a0_0f11);
        }
        let msr = |mask, value| {
            MsrChange {
                index: 0x10a,
                mask,
                value,
            }
            .apply(0b1010)
        };
        assert_eq!(msr(0b0011, 0b0001), 0b1001);
        assert_eq!(msr(1 << 63, 1 << 63), 1 << 63 | 0b1010);
        assert_eq!(msr(u64::MAX, 0), 0);
    }

    fn message(wanted: &CpuChanges) -> String {
        wanted
            .change_cpuid(&supported())
            .expect_err("a refusal")
            .to_string()
    }

    #[test]
    fn a_leaf_that_kvm_has_not_is_named() {
        for (leaf, subleaf) in [(7, 1), (0x99, 0)] {
            let id = LeafId {
                leaf,
                subleaf,
                flags: 1,
            };
            let text = message(&changes(&[change(id, Register::Eax, 0, 0)]));
            assert!(
                text.contains(&format!("leaf {leaf:#x} subleaf {subleaf:#x}")),
                "{text}"
            );
        }
    }

    #[test]
    fn other_flags_are_named() {
        let id = LeafId { flags: 0, ..LEAF_7 };
        let text = message(&changes(&[change(id, Register::Ebx, 1, 0)]));
        assert!(text.contains("flags 0; KVM has it with 1"), "{text}");
    }

    #[test]
    fn a_feature_that_kvm_has_not_is_named_and_a_hint_is_taken() {
        let avx512 = changes(&[change(LEAF_7, Register::Ebx, 0x1_0008, 0x1_0008)]);
        let text = message(&avx512);
        assert!(
            text.contains("sets bits 0x00010000 of EBX in CPUID leaf 0x7 subleaf 0x0"),
            "{text}"
        );
        // ERMS, and another model.
        let leaf_1 = LeafId {
            leaf: 1,
            subleaf: 0,
            flags: 0,
        };
        let taken = changes(&[
            change(LEAF_7, Register::Ebx, 1 << 9, 1 << 9),
            change(leaf_1, Register::Eax, 0x0fff_3fff, 0x306f2),
        ]);
        let changed = taken.change_cpuid(&supported()).unwrap();
        assert_eq!(ebx(&changed), 0b10_0000_1010);
        assert_eq!(changed.as_slice()[0].eax, 0x306f2);
    }

    #[test]
    fn a_template_is_made_of_kvms_list() {
        // Milan as KVM lists it, without what T2A sets (but for MCE, MTRR, and error pointers that are always saved).
        let entry = |function, index, flags, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let milan = CpuId::from_entries(&[
            entry(1, 0, 0, [0x00a0_0f11, 0, 0xf6f8_3203, 0x178b_fbff]),
            entry(7, 0, 1, [0, 0x219c_05a9, 0x0040_060c, 0xac00_0010]),
            entry(0xd, 0, 1, [0x207, 0x988, 0x988, 0]),
            entry(0xd, 1, 1, [0xf, 0x348, 0, 0]),
            entry(
                0x8000_0001,
                0,
                0,
                [0x00a0_0f11, 0, 0x0040_03f7, 0x2fd3_fbff],
            ),
            entry(0x8000_0008, 0, 0, [0x3030, 0x0111_7207, 0, 0]),
        ])
        .unwrap();
        let changed = Named::T2a.changes().change_cpuid(&milan).unwrap();
        let found: Vec<[u32; 4]> = changed
            .as_slice()
            .iter()
            .map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
            .collect();
        let expected = [
            [0x306f2, 0, 0xf6f8_3203, 0x178b_fbff],
            [0, 0x0010_07a9, 0, 0xac00_0000],
            [7, 0x988, 0x988, 0],
            [1, 0x348, 0, 0],
            [0x00a0_0f11, 0, 0x0040_0233, 0x2993_fbff],
            [0x3030, 0x011d_7006, 0, 0],
        ];
        assert_eq!(found, expected, "{found:#x?}");
    }

    #[test]
    fn what_is_shown_must_be_what_was_chosen() {
        let wanted = changes(&[change(LEAF_7, Register::Ebx, 0b11, 0b10)]);
        let shown = |ebx| CpuId::from_entries(&[entry(LEAF_7, ebx)]).unwrap();
        wanted.ensure_in(&shown(0b1110)).unwrap();
        let bits = wanted.ensure_in(&shown(0b1101)).unwrap_err();
        assert_eq!(
            bits.to_string(),
            "bits 0x00000003 of EBX in CPUID leaf 0x7 subleaf 0x0"
        );
        let nothing = CpuId::from_entries(&[]).unwrap();
        let bits = wanted.ensure_in(&nothing).unwrap_err();
        assert_eq!(bits.bits, 0b10);
    }
}
