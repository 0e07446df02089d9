//! What a Linux kernel has to be told on software KVM, where its code is emulated (docs/linux-guest.md has the reason for
//! each option). On hardware nothing is added.

use super::linux_kernel::is_linux;
use crate::sys::cpu;

/// The options, in the order in which they are given.
const OPTIONS: [&str; 10] = [
    "mitigations=off",
    "nopcid",
    "clearcpuid=308,295,151,158,306,298,534,514,141,154,297,580",
    "lightv_pf_syscall",
    "noreplace-smp",
    "percpu_alloc=page",
    "rodata=off",
    "clocksource=kvm-clock",
    "no-kvmapf",
    "swiotlb=noforce",
];

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
}
