//! What each vCPU says of itself: KVM's supported CPUID, with the topology filled in.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::limits;
use crate::sys::cpu::model;

/// CPUID leaf 1: feature bits and the initial APIC id.
const LEAF_FEATURES: u32 = 0x1;
/// CPUID leaf 4: caches, with the number of cores that share them (Intel).
const LEAF_CACHES: u32 = 0x4;
/// CPUID leaf 0xb: extended topology.
const LEAF_TOPOLOGY: u32 = 0xb;
/// CPUID leaf 0x1f: extended topology, version 2.
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
/// Leaf 1 ECX bit 24: the local APIC timer has TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX bit 31: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX bit 28: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// CPUID leaf 0x80000001: extended features.
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
/// CPUID leaf 0x80000008: address sizes, and on AMD the number of threads.
const LEAF_SIZES: u32 = 0x8000_0008;
/// CPUID leaf 0x8000000a: SVM.
const LEAF_SVM: u32 = 0x8000_000a;
/// CPUID leaf 0x8000001d: caches (AMD).
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
/// CPUID leaf 0x8000001e: topology (AMD).
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
/// Leaf 1 ECX bit 5, leaf 0x80000001 ECX bit 2: virtualization inside the guest.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Topology level types of leaf 0xb and 0x1f (ECX bits 8–15).
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// CPUID of a VM's vCPUs before the vCPU's own number is put in.
///
/// # Errors
/// The kernel's.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
}

/// Makes `template` the CPUID of vCPU `index` of `count`: one package, one thread a core, APIC id = index, and no
/// virtualization inside it, whose state a snapshot would have to keep.
#[must_use]
pub fn for_vcpu(template: &CpuId, index: u8, count: u8) -> CpuId {
    let has = |leaf| {
        template
            .as_slice()
            .iter()
            .any(|entry| entry.function == leaf)
    };
    let is_amd = has(LEAF_AMD_TOPOLOGY);
    let mut entries: Vec<kvm_cpuid_entry2> = Vec::with_capacity(KVM_MAX_CPUID_ENTRIES);
    for entry in template.as_slice() {
        let mut entry = *entry;
        match entry.function {
            // KVM gives one of their subleaves, of the host's own topology.
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_SVM => continue,
            LEAF_FEATURES => set_features(&mut entry, index, count),
            LEAF_CACHES => set_cache_sharing(&mut entry, count),
            LEAF_EXTENDED_FEATURES => entry.ecx &= !SVM,
            LEAF_SIZES if is_amd => set_amd_sizes(&mut entry, count),
            LEAF_AMD_CACHES => set_amd_cache_sharing(&mut entry, count),
            LEAF_AMD_TOPOLOGY => set_amd_topology(&mut entry, index),
            _ => {}
        }
        entries.push(entry);
    }
    for leaf in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2]
        .into_iter()
        .filter(|leaf| has(*leaf))
    {
        entries.extend((0..3).map(|subleaf| topology(leaf, subleaf, index, count)));
    }
    // The template had at most as many entries as KVM takes, less those that are added.
    CpuId::from_entries(&entries).unwrap_or_else(|_| template.clone())
}

fn set_features(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    // EBX: initial APIC id in bits 24–31, logical processors in bits 16–23 (Intel SDM vol. 2, CPUID).
    entry.ebx = (entry.ebx & 0x0000_ffff) | (u32::from(index) << 24) | (u32::from(count) << 16);
    entry.ecx = (entry.ecx | HYPERVISOR | TSC_DEADLINE) & !VMX;
    if count > 1 {
        entry.edx |= HTT;
    } else {
        entry.edx &= !HTT;
    }
}

fn set_cache_sharing(entry: &mut kvm_cpuid_entry2, count: u8) {
    let level = (entry.eax >> 5) & 0x7;
    // EAX bits 14–25: logical processors that share the cache, less one; bits 26–31: cores in the package, less one.
    let sharing = if level >= 3 { u32::from(count) - 1 } else { 0 };
    entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((u32::from(count) - 1) << 26);
}

fn topology(leaf: u32, subleaf: u32, index: u8, count: u8) -> kvm_cpuid_entry2 {
    // EAX: bits of the APIC id below the next level; EBX: logical processors at this level; ECX: type and subleaf.
    let (shift, logical, level) = match subleaf {
        0 => (0, 1, LEVEL_THREAD),
        1 => (core_bits(count), u32::from(count), LEVEL_CORE),
        _ => (0, 0, 0),
    };
    kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: (level << 8) | subleaf,
        edx: u32::from(index),
        ..Default::default()
    }
}

/// Bits of an APIC id that tell `count` cores apart.
fn core_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

fn set_amd_sizes(entry: &mut kvm_cpuid_entry2, count: u8) {
    // ECX: threads less one in bits 0–7, size of the APIC id's core part in bits 12–15 (AMD APM vol. 3, E.4.7).
    entry.ecx = (u32::from(count) - 1) | (core_bits(count) << 12);
}

fn set_amd_cache_sharing(entry: &mut kvm_cpuid_entry2, count: u8) {
    // EAX: level in bits 5–7, sharing processors less one in bits 14–25 (AMD APM vol. 3, E.4.15).
    let level = (entry.eax >> 5) & 0x7;
    let sharing = if level >= 3 { u32::from(count) - 1 } else { 0 };
    entry.eax = (entry.eax & !(0xfff << 14)) | (sharing << 14);
}

fn set_amd_topology(entry: &mut kvm_cpuid_entry2, index: u8) {
    // EAX: extended APIC id; EBX: core id, one thread a core; ECX: node 0 of one (AMD APM vol. 3, E.4.16).
    entry.eax = u32::from(index);
    entry.ebx = u32::from(index);
    entry.ecx = 0;
}

/// A saved guest uses what this host has not.
#[derive(Debug, thiserror::Error)]
pub enum CpuMismatch {
    /// KVM would not say what it has.
    #[error("KVM refused to list CPU features")]
    List(#[source] kvm_ioctls::Error),
    /// Features are missing.
    #[error("The image needs CPU features that this host does not have (CPUID {}); build it on such a host, or run it with --cold", missing.join(", "))]
    Missing {
        /// Leaf, register and bits of each.
        missing: Vec<String>,
    },
}

/// Leaves of features: leaf, subleaf, and for EAX, EBX, ECX and EDX which bits are features of the CPU. Others are set
/// here, or by the guest's own settings (OSXSAVE, OSPKE), or say only which instructions are fast (ERMS, FSRM).
const FEATURE_LEAVES: [(u32, u32, [u32; 4]); 5] = [
    (
        LEAF_FEATURES,
        0,
        [0, 0, !(HYPERVISOR | TSC_DEADLINE | OSXSAVE), !(HTT | APIC)],
    ),
    (7, 0, [0, !ERMS, !OSPKE, !FSRM]),
    (7, 1, [!0, 0, 0, 0]),
    (0xd, 1, [!0, 0, 0, 0]),
    (LEAF_EXTENDED_FEATURES, 0, [0, 0, !0, !0]),
];
const OSXSAVE: u32 = 1 << 27;
const APIC: u32 = 1 << 9;
const OSPKE: u32 = 1 << 4;
const ERMS: u32 = 1 << 9;
const FSRM: u32 = 1 << 4;
const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// Which bits of EAX, EBX, ECX and EDX in a leaf are features of the CPU.
#[must_use]
pub fn feature_bits(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut leaves = FEATURE_LEAVES.iter();
    let found = leaves.find(|(known, sub, _)| (*known, *sub) == (leaf, subleaf));
    found.map_or([0; 4], |(_, _, bits)| *bits)
}

/// Where a guest's CPUID comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuidOrigin {
    /// The host that it was booted on.
    Host,
    /// A template, which may have named another processor.
    Template,
}

/// Proves that this host has the CPU features that `saved` shows to its guest: KVM takes any CPUID, and the guest would
/// die by the first instruction that is not there. On the CPU model that the image was made on nothing has to be asked.
/// The CPUID of `vcpu` is to be set afterwards.
///
/// # Errors
/// [`CpuMismatch`].
pub fn ensure_supported(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    saved: &CpuId,
    origin: CpuidOrigin,
) -> Result<(), CpuMismatch> {
    if origin == CpuidOrigin::Host && saved_model(saved) == Some(model()) {
        return Ok(());
    }
    let host = shown_by(kvm, vcpu).map_err(CpuMismatch::List)?;
    let missing = missing_features(saved, &host);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(CpuMismatch::Missing { missing })
    }
}

/// What a guest of this host is shown. Software KVM adds to what it says that it supports: the features that a guest's
/// user code has in any case.
fn shown_by(kvm: &Kvm, vcpu: &VcpuFd) -> Result<CpuId, kvm_ioctls::Error> {
    vcpu.set_cpuid2(&supported(kvm)?)?;
    vcpu.get_cpuid2(limits::CPU_TABLE_ENTRIES_MAX)
}

fn entry_of(cpuid: &CpuId, leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
    cpuid
        .as_slice()
        .iter()
        .find(|entry| (entry.function, entry.index) == (leaf, subleaf))
}

fn saved_model(saved: &CpuId) -> Option<[u32; 4]> {
    let vendor = entry_of(saved, 0, 0)?;
    let features = entry_of(saved, LEAF_FEATURES, 0)?;
    Some([vendor.ebx, vendor.ecx, vendor.edx, features.eax])
}

fn missing_features(saved: &CpuId, host: &CpuId) -> Vec<String> {
    let registers = |entry: &kvm_cpuid_entry2| [entry.eax, entry.ebx, entry.ecx, entry.edx];
    let mut missing = Vec::new();
    for (leaf, subleaf, masks) in FEATURE_LEAVES {
        let needed = entry_of(saved, leaf, subleaf).map_or([0; 4], registers);
        let there = entry_of(host, leaf, subleaf).map_or([0; 4], registers);
        for (register, ((needed, there), mask)) in
            needed.into_iter().zip(there).zip(masks).enumerate()
        {
            let bits = needed & !there & mask;
            if let (Some(name), true) = (REGISTERS.get(register), bits != 0) {
                missing.push(format!("{leaf:#x}.{subleaf} {name} bits {bits:#010x}"));
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = cpuid
            .as_slice()
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index));
        *found.expect("the leaf is there")
    }

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ecx: u32::MAX,
            ..Default::default()
        }
    }

    #[test]
    fn all_leaves_agree_on_one_package_of_cores() {
        // As KVM gives them: one subleaf of the topology.
        let template = CpuId::from_entries(&[leaf(1), leaf(4), leaf(0xb), leaf(0x1f)]).unwrap();
        for count in [1_u8, 2, 3, 31, 32] {
            for index in 0..count {
                let cpuid = for_vcpu(&template, index, count);
                let features = find(&cpuid, 1, 0);
                assert_eq!(features.ebx >> 24, u32::from(index));
                assert_eq!((features.ebx >> 16) & 0xff, u32::from(count));
                assert_eq!((find(&cpuid, 4, 0).eax >> 26) + 1, u32::from(count));
                for function in [0xb, 0x1f] {
                    let core = find(&cpuid, function, 1);
                    assert_eq!((core.ebx, core.edx), (u32::from(count), u32::from(index)));
                    assert!(1_u32 << core.eax >= u32::from(count));
                    assert_eq!(find(&cpuid, function, 0).ebx, 1);
                    assert_eq!(find(&cpuid, function, 2).ebx, 0);
                }
            }
        }
    }

    #[test]
    fn amd_leaves_say_the_same() {
        let template =
            CpuId::from_entries(&[leaf(0x8000_0008), leaf(0x8000_001d), leaf(0x8000_001e)])
                .unwrap();
        let cpuid = for_vcpu(&template, 2, 3);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 2 | (2 << 12));
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 2);
    }

    #[test]
    fn guests_are_offered_no_virtualization() {
        let template =
            CpuId::from_entries(&[leaf(1), leaf(0x8000_0001), leaf(0x8000_000a)]).unwrap();
        let cpuid = for_vcpu(&template, 0, 1);
        assert_eq!(find(&cpuid, 1, 0).ecx & VMX, 0);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & SVM, 0);
        assert!(
            cpuid
                .as_slice()
                .iter()
                .all(|entry| entry.function != LEAF_SVM)
        );
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_named_and_settings_are_not() {
        let with = |function, ebx, ecx| kvm_cpuid_entry2 {
            function,
            ebx,
            ecx,
            ..Default::default()
        };
        let saved =
            CpuId::from_entries(&[with(1, 0, OSXSAVE | TSC_DEADLINE), with(7, 1 << 16, OSPKE)])
                .unwrap();
        let host = CpuId::from_entries(&[with(1, 0, 0), with(7, 0, 0)]).unwrap();
        assert_eq!(
            missing_features(&saved, &host),
            ["0x7.0 EBX bits 0x00010000"]
        );
        assert!(missing_features(&saved, &saved).is_empty());
    }
}
