//! KVM's structures as their ABI bytes, and back.

/// Structures of the KVM ABI that are plain data.
///
/// # Safety
/// Implemented only for `repr(C)` types without padding that matters, references or invalid bit patterns.
pub unsafe trait AbiBytes: Sized + Default {}

macro_rules! abi_bytes {
    ($($name:ident),* $(,)?) => { $(
        // SAFETY: `repr(C)`, made of integers, arrays and unions of integers only (kvm-bindings, from the kernel's
        // own headers): every bit pattern is a value.
        unsafe impl AbiBytes for kvm_bindings::$name {}
    )* };
}

abi_bytes!(
    kvm_regs,
    kvm_sregs,
    kvm_fpu,
    kvm_xsave,
    kvm_xcrs,
    kvm_lapic_state,
    kvm_vcpu_events,
    kvm_mp_state,
    kvm_debugregs,
    kvm_cpuid_entry2,
    kvm_irqchip,
    kvm_clock_data,
);

/// The bytes of `value`, padding included (KVM zeroes what it returns; ours comes from `Default`).
#[must_use]
pub fn to_bytes<T: AbiBytes>(value: &T) -> Vec<u8> {
    let pointer = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: `pointer` is valid for `size_of::<T>()` bytes while `value` is borrowed, and the copy ends with it.
    unsafe { std::slice::from_raw_parts(pointer, size_of::<T>()) }.to_vec()
}

/// The value whose bytes these are; `None` if the length is another.
#[must_use]
pub fn from_bytes<T: AbiBytes>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, `read_unaligned` needs no alignment, and by `AbiBytes` every pattern is valid.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_survives_the_way_there_and_back() {
        let regs = kvm_bindings::kvm_regs {
            rip: 0x1234_5678_9abc_def0,
            ..Default::default()
        };
        let back: kvm_bindings::kvm_regs = from_bytes(&to_bytes(&regs)).unwrap();
        assert_eq!(back.rip, regs.rip);
    }

    /// What is saved is the guest's: no byte of it may be what lay on our stack.
    #[test]
    fn a_structure_without_values_is_zeros_all_through() {
        fn check<T: AbiBytes>(name: &str) {
            // Something else than zeros where the structure will be.
            std::hint::black_box([0xa5_u8; 8192]);
            let bytes = to_bytes(&T::default());
            assert!(bytes.iter().all(|byte| *byte == 0), "{name}: {bytes:?}");
        }
        check::<kvm_bindings::kvm_regs>("regs");
        check::<kvm_bindings::kvm_sregs>("sregs");
        check::<kvm_bindings::kvm_xsave>("xsave");
        check::<kvm_bindings::kvm_xcrs>("xcrs");
        check::<kvm_bindings::kvm_lapic_state>("lapic");
        check::<kvm_bindings::kvm_vcpu_events>("events");
        check::<kvm_bindings::kvm_mp_state>("mp_state");
        check::<kvm_bindings::kvm_debugregs>("debug_regs");
        check::<kvm_bindings::kvm_cpuid_entry2>("cpuid");
        check::<kvm_bindings::kvm_irqchip>("irqchip");
    }

    #[test]
    fn another_length_is_refused() {
        let bytes = to_bytes(&kvm_bindings::kvm_regs::default());
        assert!(from_bytes::<kvm_bindings::kvm_regs>(&bytes[1..]).is_none());
    }
}
