//! What a Linux kernel has to be told on software KVM, where its code is emulated (docs/linux-guest.md has the reason for
//! each option). On hardware nothing is added.

use crate::sys::cpu;

/// The options, in the order in which they are given.
const OPTIONS: [&str; 7] = [
    "mitigations=off",
    "nopcid",
    "clearcpuid=308,295,151,158,306,298,534,514,141,154,297,580",
    "lightv_pf_syscall",
    "noreplace-smp",
    "percpu_alloc=page",
    "rodata=off",
];

/// By what a Linux kernel is known: its version banner, or the header of a bzImage (Documentation/arch/x86/boot.rst).
const BANNER: &[u8] = b"Linux version ";
const SETUP_HEADER: (usize, &[u8]) = (0x202, b"HdrS");

/// Options to add for `kernel` on this host: none on hardware KVM, none for other kernels, and none that the user's command
/// line `args` sets already.
#[must_use]
pub fn options(kernel: &[u8], args: &str) -> Vec<String> {
    if cpu::has_virtualization() || !is_linux(kernel) {
        return Vec::new();
    }
    missing(args)
}

fn missing(args: &str) -> Vec<String> {
    let name = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let given: Vec<String> = args
        .split_whitespace()
        .take_while(|word| *word != "--")
        .map(name)
        .collect();
    let is_missing = |option: &&&str| !given.contains(&name(option));
    OPTIONS
        .iter()
        .filter(is_missing)
        .map(|option| (*option).to_owned())
        .collect()
}

fn is_linux(kernel: &[u8]) -> bool {
    let (offset, magic) = SETUP_HEADER;
    let has_header = kernel
        .get(offset..)
        .is_some_and(|rest| rest.starts_with(magic));
    has_header || memchr::memmem::find(kernel, BANNER).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_says_is_kept() {
        assert_eq!(missing("console=ttyS0").len(), OPTIONS.len());
        let all_but_two = missing("mitigations=auto nopcid -- rodata=off");
        assert_eq!(all_but_two.len(), OPTIONS.len() - 2);
        assert!(all_but_two.contains(&"rodata=off".to_owned()));
    }

    #[test]
    fn linux_is_known_as_an_elf_and_as_a_bzimage() {
        let mut bzimage = vec![0; 0x300];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(is_linux(&bzimage) && is_linux(b"..Linux version 6.1.."));
        assert!(!is_linux(b"\x7fELF") && !is_linux(&[]));
    }
}
