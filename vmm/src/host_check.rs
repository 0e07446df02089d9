//! `--check-host`: what this host offers to a VM, and what to do where something is missing.

use std::fs;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use lightv_api::host::{HostCheck, HostReport, Verdict};

use crate::report::text_of;
use crate::sys::process::host_memory_bytes;
use crate::vm::{NewVm, open_kvm};

/// What KVM must offer, with the reason.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Ioeventfd, "doorbells without leaving the kernel"),
    (Cap::Irqfd, "interrupts by a write to a descriptor"),
    (Cap::UserMemory, "guest memory"),
    (Cap::ReadonlyMem, "the control device's read side"),
    (Cap::ImmediateExit, "pausing a vCPU"),
    (Cap::AdjustClock, "the guest's clock over a restore"),
];

/// Looks at the host.
#[must_use]
pub fn check(kvm_path: &Path) -> HostReport {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let kvm = open_kvm(kvm_path);
    let kind = match &kvm {
        Err(_) => "none",
        Ok(_) if has_hardware(&cpuinfo) => "hardware",
        Ok(_) => "software",
    };
    let mut checks = Vec::new();
    match &kvm {
        Ok(kvm) => {
            checks.push(ok("KVM", format!("{} opens, interface version {}", kvm_path.display(), kvm.get_api_version())));
            checks.push(kind_check(kind));
            checks.extend(NEEDED.iter().map(|(cap, what)| capability_check(kvm, *cap, what)));
            checks.push(create_check(kvm));
        }
        Err(error) => checks.push(HostCheck {
            name: "KVM".into(),
            verdict: Verdict::Failure,
            found: text_of(error),
            remedy: "enable virtualization, load kvm_intel or kvm_amd, and give this user access to the device".into(),
        }),
    }
    checks.push(tap_check());
    checks.push(descriptors_check());
    HostReport {
        kvm: kind.to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        cpu: cpu_model(&cpuinfo),
        cores: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: host_memory_bytes(),
        checks,
    }
}

/// Whether the CPU has VMX or SVM; KVM without either runs guests by shadow paging and emulation.
fn has_hardware(cpuinfo: &str) -> bool {
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm")
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .unwrap_or_default();
    line.split_once(':')
        .map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

fn ok(name: &str, found: impl Into<String>) -> HostCheck {
    HostCheck {
        name: name.into(),
        verdict: Verdict::Ok,
        found: found.into(),
        remedy: String::new(),
    }
}

fn kind_check(kind: &str) -> HostCheck {
    if kind == "hardware" {
        return ok("CPU virtualization", "VMX or SVM");
    }
    HostCheck {
        name: "CPU virtualization".into(),
        verdict: Verdict::Warning,
        found: "none: software KVM. Guest user code runs natively, guest kernel code is emulated".into(),
        remedy: "nothing, for guests that work in user mode. A Linux kernel boots slowly, so use snapshots; it is given the options that it needs here, unless --no-software-kvm-options is set".into(),
    }
}

fn capability_check(kvm: &Kvm, cap: Cap, what: &str) -> HostCheck {
    let name = format!("KVM capability {cap:?}");
    if kvm.check_extension(cap) {
        return ok(&name, what);
    }
    let found = format!("missing, needed for {what}");
    HostCheck {
        name,
        verdict: Verdict::Failure,
        found,
        remedy: "use a newer kernel".into(),
    }
}

fn create_check(kvm: &Kvm) -> HostCheck {
    let made = NewVm::create(kvm)
        .and_then(NewVm::seal)
        .and_then(|vm| vm.create_vcpus(1));
    match made {
        Ok(_) => ok("Creating a VM", "a VM with one vCPU could be made"),
        Err(error) => HostCheck {
            name: "Creating a VM".into(),
            verdict: Verdict::Failure,
            found: text_of(&error),
            remedy: "see the kernel's log; another hypervisor may hold the CPU".into(),
        },
    }
}

fn tap_check() -> HostCheck {
    let path = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => ok("Network taps", format!("{path} opens")),
        Err(cause) => HostCheck {
            name: "Network taps".into(),
            verdict: Verdict::Warning,
            found: format!("{path}: {cause}"),
            remedy: "for VMs with a network: modprobe tun, and give this user access or a tap of its own".into(),
        },
    }
}

/// Descriptors that a VM takes: KVM, VM, vCPU, events; and a margin for devices.
const DESCRIPTORS_MIN: u64 = 256;

fn descriptors_check() -> HostCheck {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap_or_default();
    let soft = line
        .split_whitespace()
        .nth(3)
        .and_then(|word| word.parse::<u64>().ok())
        .unwrap_or(u64::MAX);
    if soft >= DESCRIPTORS_MIN {
        return ok("Open files", format!("{soft} allowed"));
    }
    HostCheck {
        name: "Open files".into(),
        verdict: Verdict::Warning,
        found: format!("{soft} allowed"),
        remedy: format!("raise the limit (ulimit -n) to {DESCRIPTORS_MIN} or more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_told_from_software_by_the_cpus_flags() {
        assert!(has_hardware("flags\t: fpu vmx sse"));
        assert!(has_hardware("flags\t: fpu svm sse"));
        assert!(!has_hardware("flags\t: fpu vmxish sse\nvmx flags : a"));
    }

    #[test]
    fn a_missing_device_is_a_failure_with_a_remedy() {
        let report = check(Path::new("/nonexistent"));
        assert_eq!(report.kvm, "none");
        assert_eq!(report.checks[0].verdict, Verdict::Failure);
        assert!(!report.checks[0].remedy.is_empty());
    }
}
