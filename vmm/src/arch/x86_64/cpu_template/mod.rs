//! What is changed of the CPU that a guest sees: bits of CPUID and of model-specific registers.
//!
//! Either one's own changes, or one of Firecracker's templates, which are lists of such changes for known processors.

mod apply;
mod named;

use std::borrow::Cow;
use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

pub use self::apply::CpuTemplateError;
pub use self::named::{Named, WrongCpu};

/// A CPU that is not the host's as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuTemplate {
    /// One of Firecracker's templates.
    Named(Named),
    /// The user's own.
    Own(CpuChanges),
}

impl CpuTemplate {
    /// Its changes, on the processor `host` (see [`crate::sys::cpu::model`]).
    ///
    /// # Errors
    /// [`CpuTemplateError::WrongCpu`] when the template is not for that processor.
    pub fn changes(&self, host: [u32; 4]) -> Result<Cow<'_, CpuChanges>, CpuTemplateError> {
        match self {
            Self::Named(named) => {
                named.ensure_for(host).map_err(CpuTemplateError::WrongCpu)?;
                Ok(Cow::Owned(named.changes()))
            }
            Self::Own(changes) => Ok(Cow::Borrowed(changes)),
        }
    }

    /// Numbers of the registers that it changes: a snapshot keeps them, whether KVM lists them or not.
    #[must_use]
    pub fn msr_indices(&self) -> Vec<u32> {
        let indices = |msrs: &[MsrChange]| msrs.iter().map(|msr| msr.index).collect();
        match self {
            Self::Named(named) => indices(&named.changes().msrs),
            Self::Own(changes) => indices(&changes.msrs),
        }
    }
}

/// Changes of a CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuChanges {
    /// Numbers of KVM capabilities without which there is no start.
    pub capabilities: Vec<u32>,
    /// Changes of CPUID; each register of a leaf at most once.
    pub cpuid: Vec<CpuidChange>,
    /// Changes of model-specific registers, each at most once.
    pub msrs: Vec<MsrChange>,
}

/// A change of one register of a leaf of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidChange {
    /// Which leaf.
    pub leaf: LeafId,
    /// Which register.
    pub register: Register,
    /// Bits that are chosen.
    pub mask: u32,
    /// What they are to be.
    pub value: u32,
}

impl CpuidChange {
    /// `old` with the bits that are chosen.
    const fn apply(self, old: u32) -> u32 {
        (old & !self.mask) | (self.value & self.mask)
    }

    const fn bits(self, bits: u32) -> CpuidBits {
        CpuidBits {
            leaf: self.leaf,
            register: self.register,
            bits,
        }
    }
}

/// A leaf of CPUID, as KVM names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafId {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question.
    pub subleaf: u32,
    /// KVM's flags; 1: the subleaf matters.
    pub flags: u32,
}

impl LeafId {
    /// Whether `entry` has its numbers; flags may be others.
    const fn is_of(self, entry: &kvm_cpuid_entry2) -> bool {
        self.leaf == entry.function && self.subleaf == entry.index
    }
}

impl fmt::Display for LeafId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "leaf {:#x} subleaf {:#x}", self.leaf, self.subleaf)
    }
}

/// Bits of a register of a leaf, for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidBits {
    leaf: LeafId,
    register: Register,
    bits: u32,
}

impl fmt::Display for CpuidBits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            leaf,
            register,
            bits,
        } = self;
        write!(out, "bits {bits:#010x} of {register} in CPUID {leaf}")
    }
}

/// The registers of an answer of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named like its register")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    const fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    const fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        })
    }
}

/// A change of a model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrChange {
    /// Which register.
    pub index: u32,
    /// Bits that are chosen.
    pub mask: u64,
    /// What they are to be.
    pub value: u64,
}

impl MsrChange {
    /// `old` with the bits that are chosen.
    const fn apply(self, old: u64) -> u64 {
        (old & !self.mask) | (self.value & self.mask)
    }
}
