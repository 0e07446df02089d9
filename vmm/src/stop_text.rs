//! Why a vCPU cannot go on, in words that tell where the guest was.

use std::fmt::Write;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, kvm_regs};
use kvm_ioctls::VcpuFd;
use lightv_devices::memory::GuestMem;
use vm_memory::{Bytes, GuestAddress};

use crate::event::StopReason;
use crate::sys::cpu;
use crate::sys::kvm::internal_error;

/// An exit after which the guest cannot be entered again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailedExit {
    /// KVM_EXIT_SHUTDOWN.
    Shutdown,
    /// KVM_EXIT_INTERNAL_ERROR.
    InternalError,
    /// KVM_EXIT_FAIL_ENTRY.
    Entry {
        /// The hardware's reason.
        reason: u64,
        /// On which host CPU.
        cpu: u32,
    },
    /// An exit that no guest of ours can cause.
    Unexpected(String),
}

/// Instruction bytes shown: the longest instruction of x86.
const INSTRUCTION_BYTES: usize = 15;

/// What to do about an instruction that is not known.
const ON_SOFTWARE_KVM: &str = " (software KVM: a Linux boots here only with the patches of `cargo xtask linux` and the options that are added unless --no-software-kvm-options is given)";

/// The reason with registers and, where they can be read, instruction bytes.
pub fn describe(exit: FailedExit, vcpu: &mut VcpuFd, mem: &GuestMem) -> StopReason {
    match exit {
        FailedExit::Shutdown => StopReason::TripleFault {
            registers: place(vcpu, mem, None),
        },
        FailedExit::InternalError => {
            let (suberror, bytes) = internal_error(vcpu);
            let what = match suberror {
                1 => "its emulator does not know an instruction of the guest",
                2 => "an interrupt or exception came while another was being delivered",
                3 => "an exit came that it did not expect",
                _ => "no further reason",
            };
            let hint = if suberror == 1 && !cpu::has_virtualization() {
                ON_SOFTWARE_KVM
            } else {
                ""
            };
            let text = format!(
                "KVM internal error, suberror {suberror}: {what}{hint}; {}",
                place(vcpu, mem, bytes)
            );
            StopReason::KvmError { text }
        }
        FailedExit::Entry { reason, cpu } => {
            let text = format!(
                "the CPU refused to enter the guest: hardware reason {reason:#x} on host CPU {cpu}; {}",
                place(vcpu, mem, None)
            );
            StopReason::KvmError { text }
        }
        FailedExit::Unexpected(name) => {
            let text = format!(
                "KVM left the guest for a reason that nothing here knows: {name}; {}",
                place(vcpu, mem, None)
            );
            StopReason::KvmError { text }
        }
    }
}

/// What KVM_EXIT_SYSTEM_EVENT of this type means.
#[must_use]
pub fn system_event(event: u32) -> StopReason {
    if event == KVM_SYSTEM_EVENT_CRASH {
        StopReason::GuestPanic
    } else {
        StopReason::Reset
    }
}

fn place(vcpu: &VcpuFd, mem: &GuestMem, bytes: Option<Vec<u8>>) -> String {
    let Ok(regs) = vcpu.get_regs() else {
        return "registers cannot be read".to_owned();
    };
    let mut text = registers(&regs);
    if let Ok(sregs) = vcpu.get_sregs() {
        let _ = write!(
            text,
            " cs={:#x} cpl={} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
            sregs.cs.selector, sregs.ss.dpl, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
        );
    }
    match bytes.or_else(|| instruction(vcpu, mem, regs.rip)) {
        Some(bytes) => {
            text.push_str(" instruction bytes:");
            for byte in bytes {
                let _ = write!(text, " {byte:02x}");
            }
        }
        None => text.push_str(" instruction bytes: not readable"),
    }
    text
}

fn registers(r: &kvm_regs) -> String {
    format!(
        "rip={:#x} rflags={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} rsp={:#x} rbp={:#x} \
         r8={:#x} r9={:#x} r10={:#x} r11={:#x} r12={:#x} r13={:#x} r14={:#x} r15={:#x}",
        r.rip,
        r.rflags,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rsp,
        r.rbp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15
    )
}

fn instruction(vcpu: &VcpuFd, mem: &GuestMem, rip: u64) -> Option<Vec<u8>> {
    let physical = vcpu
        .translate_gva(rip)
        .ok()
        .filter(|found| found.valid != 0)?
        .physical_address;
    let mut bytes = vec![0; INSTRUCTION_BYTES];
    let got = mem.read(&mut bytes, GuestAddress(physical)).ok()?;
    bytes.truncate(got);
    Some(bytes)
}
