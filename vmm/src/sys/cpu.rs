//! What the CPU says of itself.

use std::arch::x86_64::__cpuid;

/// Vendor (leaf 0 EBX, ECX, EDX) and family, model, stepping (leaf 1 EAX): two CPUs for which they are the same have, under
/// one kernel, the same features.
#[must_use]
pub fn model() -> [u32; 4] {
    let vendor = __cpuid(0);
    let features = __cpuid(1);
    [vendor.ebx, vendor.ecx, vendor.edx, features.eax]
}
