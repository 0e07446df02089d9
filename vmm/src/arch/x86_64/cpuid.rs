//! What each vCPU says of itself: KVM's supported CPUID, with the topology filled in.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

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

/// Makes `template` the CPUID of vCPU `index` of `count`: one package, one thread a core, APIC id = index.
#[must_use]
pub fn for_vcpu(template: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = template.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => set_features(entry, index, count),
            LEAF_CACHES => set_cache_sharing(entry, count),
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => set_topology(entry, index, count),
            _ => {}
        }
    }
    cpuid
}

fn set_features(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    // EBX: initial APIC id in bits 24–31, logical processors in bits 16–23 (Intel SDM vol. 2, CPUID).
    entry.ebx = (entry.ebx & 0x0000_ffff) | (u32::from(index) << 24) | (u32::from(count) << 16);
    entry.ecx |= HYPERVISOR | TSC_DEADLINE;
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

fn set_topology(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    let core_bits = u32::from(count).next_power_of_two().trailing_zeros();
    let (shift, logical, level) = match entry.index {
        0 => (0, 1, LEVEL_THREAD),
        1 => (core_bits, u32::from(count), LEVEL_CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = logical;
    entry.ecx = (level << 8) | entry.index;
    entry.edx = u32::from(index);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_ids_are_distinct_and_counts_are_right() {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        };
        let template = CpuId::from_entries(&[
            leaf(1, 0),
            leaf(4, 0),
            leaf(0xb, 0),
            leaf(0xb, 1),
            leaf(0xb, 2),
        ])
        .unwrap();
        for count in [1_u8, 2, 3, 31, 32] {
            for index in 0..count {
                let cpuid = for_vcpu(&template, index, count);
                let entries = cpuid.as_slice();
                assert_eq!(entries[0].ebx >> 24, u32::from(index));
                assert_eq!((entries[0].ebx >> 16) & 0xff, u32::from(count));
                assert_eq!(entries[3].edx, u32::from(index));
                assert_eq!(entries[3].ebx, u32::from(count));
                assert!(1_u32 << entries[3].eax >= u32::from(count));
            }
        }
    }
}
