//! What the CPU says of itself.

use std::arch::x86_64::{__cpuid, _rdtsc};

/// Whether this CPU has VMX or SVM: KVM without either runs guests by shadow paging, and their kernel code by emulation.
#[must_use]
pub fn has_virtualization() -> bool {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    __cpuid(1).ecx & VMX != 0 || __cpuid(0x8000_0001).ecx & SVM != 0
}

/// Vendor (leaf 0 EBX, ECX, EDX) and family, model, stepping (leaf 1 EAX): two CPUs for which they are the same have, under
/// one kernel, the same features.
#[must_use]
pub fn model() -> [u32; 4] {
    let vendor = __cpuid(0);
    let features = __cpuid(1);
    [vendor.ebx, vendor.ecx, vendor.edx, features.eax]
}

/// The time stamp counter.
#[must_use]
pub fn time_stamp() -> u64 {
    // SAFETY: KVM's hosts have the instruction, and Linux lets programs use it unless they give it up by prctl(2), which this
    // one does not.
    unsafe { _rdtsc() }
}
