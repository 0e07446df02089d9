//! Firecracker's templates: what each shows to a guest, and on which processors. The processors of a fleet then look
//! alike, and snapshots go from one to another.

use std::fmt;

use super::Register::{self, Eax, Ebx, Ecx, Edx};
use super::{CpuChanges, CpuidChange, LeafId, MsrChange};

/// A template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// Amazon's C3 instances: Ivy Bridge.
    C3,
    /// Amazon's T2 instances: Haswell.
    T2,
    /// T2, with the vulnerabilities of all its processors.
    T2s,
    /// T2 on Cascade Lake and later; the instructions of T2A.
    T2cl,
    /// AMD's Milan with the instructions of T2CL.
    T2a,
}

const ALL: [Named; 5] = [Named::C3, Named::T2, Named::T2s, Named::T2cl, Named::T2a];

/// Vendor and signature (leaf 1 EAX) of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cpu {
    vendor: &'static [u8; 12],
    signature: u32,
    name: &'static str,
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";
const SKYLAKE: Cpu = Cpu {
    vendor: INTEL,
    signature: 0x0005_0654,
    name: "Intel Skylake",
};
const CASCADE_LAKE: Cpu = Cpu {
    vendor: INTEL,
    signature: 0x0005_0657,
    name: "Intel Cascade Lake",
};
const ICE_LAKE: Cpu = Cpu {
    vendor: INTEL,
    signature: 0x0006_06a6,
    name: "Intel Ice Lake",
};
const MILAN: Cpu = Cpu {
    vendor: AMD,
    signature: 0x00a0_0f11,
    name: "AMD Milan",
};

impl Named {
    /// As the contract writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::C3 => "C3",
            Self::T2 => "T2",
            Self::T2s => "T2S",
            Self::T2cl => "T2CL",
            Self::T2a => "T2A",
        }
    }

    /// Processors on which it holds. Firecracker's lists.
    const fn cpus(self) -> &'static [Cpu] {
        match self {
            Self::C3 | Self::T2 => &[SKYLAKE, CASCADE_LAKE, ICE_LAKE],
            Self::T2s => &[SKYLAKE, CASCADE_LAKE],
            Self::T2cl => &[CASCADE_LAKE, ICE_LAKE],
            Self::T2a => &[MILAN],
        }
    }

    fn is_for(self, host: [u32; 4]) -> bool {
        let vendor = vendor_of(host);
        let [.., signature] = host;
        let mut cpus = self.cpus().iter();
        cpus.any(|cpu| *cpu.vendor == vendor && cpu.signature == signature)
    }

    /// Proves that it holds on `host`.
    ///
    /// # Errors
    /// [`WrongCpu`].
    pub fn ensure_for(self, host: [u32; 4]) -> Result<(), WrongCpu> {
        if self.is_for(host) {
            Ok(())
        } else {
            Err(WrongCpu {
                template: self,
                host,
            })
        }
    }

    /// Its changes.
    #[must_use]
    pub fn changes(self) -> CpuChanges {
        let rows: &[&[Row]] = match self {
            Self::C3 => &[NO_LATER_STATES, C3],
            Self::T2 | Self::T2s => &[NO_LATER_STATES, HASWELL, T2],
            Self::T2cl => &[NO_LATER_STATES, HASWELL, T2CL],
            Self::T2a => &[NO_LATER_STATES, HASWELL, T2A],
        };
        let msrs = match self {
            Self::C3 | Self::T2 | Self::T2a => vec![],
            Self::T2s => vec![ARCH_CAPABILITIES_OF_ALL],
            Self::T2cl => vec![ARCH_CAPABILITIES_OF_KVM],
        };
        CpuChanges {
            capabilities: Vec::new(),
            cpuid: rows.iter().copied().flatten().map(Row::change).collect(),
            msrs,
        }
    }
}

fn vendor_of(host: [u32; 4]) -> [u8; 12] {
    // The text lies in EBX, EDX, ECX.
    let [ebx, ecx, edx, _] = host;
    let mut vendor = [0; 12];
    let bytes = [ebx, edx, ecx].into_iter().flat_map(u32::to_le_bytes);
    for (place, byte) in vendor.iter_mut().zip(bytes) {
        *place = byte;
    }
    vendor
}

/// The template is not for this processor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct WrongCpu {
    template: Named,
    host: [u32; 4],
}

impl fmt::Display for WrongCpu {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { template, host } = *self;
        let cpus: Vec<&str> = template.cpus().iter().map(|cpu| cpu.name).collect();
        let [.., signature] = host;
        let others = ALL.into_iter().filter(|named| named.is_for(host));
        let allowed: Vec<&str> = others.map(Named::name).chain(["None"]).collect();
        write!(
            out,
            "CPU template {} is for {}; this host's processor is {} with signature {signature:#010x}; allowed here: {}, or a cpu-config",
            template.name(),
            cpus.join(", "),
            String::from_utf8_lossy(&vendor_of(host)),
            allowed.join(", "),
        )
    }
}

/// Bits of a register that a template clears and sets.
#[derive(Debug, Clone, Copy)]
struct Row {
    leaf: (u32, u32),
    register: Register,
    clear: u32,
    set: u32,
}

impl Row {
    const fn change(&self) -> CpuidChange {
        let (leaf, subleaf) = self.leaf;
        // KVM tells subleaves apart in these alone.
        let flags = if matches!(leaf, 7 | 0xd) { 1 } else { 0 };
        CpuidChange {
            leaf: LeafId {
                leaf,
                subleaf,
                flags,
            },
            register: self.register,
            mask: self.clear | self.set,
            value: self.set,
        }
    }
}

const fn row(leaf: (u32, u32), register: Register, clear: u32, set: u32) -> Row {
    Row {
        leaf,
        register,
        clear,
        set,
    }
}

const fn bits(numbers: &[u32]) -> u32 {
    let (mut rest, mut bits) = (numbers, 0);
    while let [number, after @ ..] = rest {
        bits |= 1 << *number;
        rest = after;
    }
    bits
}

const FEATURES: (u32, u32) = (1, 0);
const MORE_FEATURES: (u32, u32) = (7, 0);
const EXTENDED_FEATURES: (u32, u32) = (0x8000_0001, 0);
const SIZES: (u32, u32) = (0x8000_0008, 0);

/// Leaf 1 EAX: stepping, model, family, type; the rest is reserved.
const SIGNATURE: u32 = 0x0fff_3fff;
const HASWELL_SIGNATURE: u32 = 0x0003_06f2;
const IVY_BRIDGE_SIGNATURE: u32 = 0x0003_06e4;
/// Leaf 1 ECX: DTES64, MONITOR, DS-CPL, VMX, TM2, CNXT-ID, SDBG, xTPR, PDCM.
const NOT_FOR_GUESTS: u32 = bits(&[2, 3, 4, 5, 8, 10, 11, 14, 15]);
/// Leaf 1 ECX: SMX, EIST, DCA.
const NOT_FOR_T2: u32 = bits(&[6, 7, 18]);
/// Leaf 1 EDX: PSN, DS, ACPI, SS, TM, PBE.
const OF_THE_PACKAGE: u32 = bits(&[18, 21, 22, 27, 29, 31]);
/// Leaf 1 EDX: IA-64.
const IA64: u32 = bits(&[30]);
/// Leaf 1 EDX: MCE, MTRR. Every processor has them.
const MCE_MTRR: u32 = bits(&[7, 12]);
/// Leaf 7 EBX: SGX, HLE, RTM, RDT-M, MPX, RDT-A, RDSEED, ADX, CLFLUSHOPT, CLWB, processor trace, SHA.
const AFTER_HASWELL: u32 = bits(&[2, 4, 11, 12, 14, 15, 18, 19, 23, 24, 25, 29]);
/// Leaf 7 EBX: AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL.
const AVX512: u32 = bits(&[16, 17, 21, 26, 27, 28, 30, 31]);
/// Leaf 7 EBX: PCOMMIT, which came to no processor.
const PCOMMIT: u32 = bits(&[22]);
/// Leaf 7 EBX: fast `rep movsb`.
const ERMS: u32 = bits(&[9]);
/// Leaf 7 EBX: BMI1, AVX2, BMI2, INVPCID.
const OF_HASWELL: u32 = bits(&[3, 5, 8, 10]);
/// Leaf 7 ECX: AVX512_VBMI, UMIP, PKU, OSPKE, AVX512_VNNI, AVX512_VPOPCNTDQ, LA57, RDPID, SGX_LC.
const LATER_7_ECX: u32 = bits(&[1, 2, 3, 4, 11, 14, 16, 22, 30]);
/// Leaf 7 ECX: AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_BITALG.
const OF_ICE_LAKE: u32 = bits(&[6, 8, 9, 10, 12]);
/// Leaf 7 EDX: AVX512_4VNNIW, AVX512_4FMAPS.
const LATER_7_EDX: u32 = bits(&[2, 3]);
/// Leaf 7 EDX: fast short `rep mov`, AVX512_VP2INTERSECT.
const OF_ICE_LAKE_EDX: u32 = bits(&[4, 8]);
/// Leaf 0x80000001 ECX.
const LZCNT: u32 = bits(&[5]);
const PREFETCHW: u32 = bits(&[8]);
const MONITORX: u32 = bits(&[29]);
const SVM: u32 = bits(&[2]);
/// SSE4A, misaligned SSE.
const AMD_SSE: u32 = bits(&[6, 7]);
/// Leaf 0x80000001 EDX.
const PAGES_OF_1_GIB: u32 = bits(&[26]);
/// Extended MMX, fast FXSAVE.
const AMD_MMX_FXSR: u32 = bits(&[22, 25]);
/// Leaf 0x80000008 EBX.
const CLZERO: u32 = bits(&[0]);
const WBNOINVD: u32 = bits(&[9]);
/// Error pointers are always saved, as on Intel's; IBRS is preferred, and holds within a mode; EFER has no LMSLE.
const LIKE_INTEL: u32 = bits(&[2, 18, 19, 20]);

/// States of MPX (bits 3, 4), AVX-512 (5–7) and protection keys (9) in XCR0; XSAVEC, XGETBV with ECX = 1, XSAVES.
const NO_LATER_STATES: &[Row] = &[
    row((0xd, 0), Eax, bits(&[3, 4, 5, 6, 7, 9]), 0),
    row((0xd, 1), Eax, bits(&[1, 2, 3]), 0),
];

/// What T2, T2S, T2CL and T2A have in common.
const HASWELL: &[Row] = &[
    row(FEATURES, Eax, SIGNATURE, HASWELL_SIGNATURE),
    row(FEATURES, Ecx, NOT_FOR_GUESTS | NOT_FOR_T2, 0),
    row(FEATURES, Edx, OF_THE_PACKAGE | IA64, MCE_MTRR),
    row(MORE_FEATURES, Ebx, AFTER_HASWELL | AVX512 | PCOMMIT, ERMS),
    row(MORE_FEATURES, Ecx, LATER_7_ECX | OF_ICE_LAKE, 0),
    row(MORE_FEATURES, Edx, LATER_7_EDX | OF_ICE_LAKE_EDX, 0),
];

const T2: &[Row] = &[
    row(EXTENDED_FEATURES, Ecx, PREFETCHW | MONITORX, 0),
    row(EXTENDED_FEATURES, Edx, PAGES_OF_1_GIB, 0),
    row(SIZES, Ebx, WBNOINVD, 0),
];

const T2CL: &[Row] = &[
    row(EXTENDED_FEATURES, Ecx, AMD_SSE | PREFETCHW | MONITORX, 0),
    row(EXTENDED_FEATURES, Edx, AMD_MMX_FXSR | PAGES_OF_1_GIB, 0),
    row(SIZES, Ebx, WBNOINVD, 0),
];

const T2A: &[Row] = &[
    row(
        EXTENDED_FEATURES,
        Ecx,
        SVM | AMD_SSE | PREFETCHW | MONITORX,
        0,
    ),
    row(EXTENDED_FEATURES, Edx, AMD_MMX_FXSR | PAGES_OF_1_GIB, 0),
    row(SIZES, Ebx, CLZERO | WBNOINVD, LIKE_INTEL),
];

const C3: &[Row] = &[
    row(FEATURES, Eax, SIGNATURE, IVY_BRIDGE_SIGNATURE),
    // And FMA, MOVBE.
    row(FEATURES, Ecx, NOT_FOR_GUESTS | bits(&[12, 22]), 0),
    row(FEATURES, Edx, OF_THE_PACKAGE, MCE_MTRR),
    row(MORE_FEATURES, Ebx, AFTER_HASWELL | AVX512 | OF_HASWELL, 0),
    row(MORE_FEATURES, Ecx, LATER_7_ECX, 0),
    row(MORE_FEATURES, Edx, LATER_7_EDX, 0),
    row(EXTENDED_FEATURES, Ecx, LZCNT | PREFETCHW, 0),
    row(EXTENDED_FEATURES, Edx, PAGES_OF_1_GIB, 0),
];

/// IA32_ARCH_CAPABILITIES: to which attacks the processor is immune (Intel SDM vol. 4).
const ARCH_CAPABILITIES: u32 = 0x10a;

/// T2S: exactly what holds on all its processors: RSBA, SKIP_L1DFL_VMENTRY, IF_PSCHANGE_MC_NO, MISC_PACKAGE_CTLS,
/// ENERGY_FILTERING_CTL, FB_CLEAR, RRSBA, GDS_NO, RFDS_NO (bits 2, 3, 6, 10, 11, 17, 19, 26, 27).
const ARCH_CAPABILITIES_OF_ALL: MsrChange = MsrChange {
    index: ARCH_CAPABILITIES,
    mask: u64::MAX,
    value: 0x0c0a_0c4c,
};

/// T2CL: what KVM passes on of the host's; without controls, and without what was reserved when the template was made
/// (bits 9–12, 16, 18, 20–23, 25 and 29–63).
const ARCH_CAPABILITIES_OF_KVM: MsrChange = MsrChange {
    index: ARCH_CAPABILITIES,
    mask: !0x1d0a_e1ff,
    value: 0,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cpu: Cpu) -> [u32; 4] {
        let word = |at: usize| {
            let bytes = cpu.vendor.get(at..at + 4).expect("twelve bytes");
            u32::from_le_bytes(bytes.try_into().expect("four bytes"))
        };
        [word(0), word(8), word(4), cpu.signature]
    }

    fn of(named: Named, leaf: (u32, u32), register: Register) -> (u32, u32) {
        let changes = named.changes();
        let found: Vec<_> = changes
            .cpuid
            .iter()
            .filter(|change| (change.leaf.leaf, change.leaf.subleaf) == leaf)
            .filter(|change| change.register == register)
            .collect();
        match found.as_slice() {
            [] => (0, 0),
            [change] => (change.mask, change.value),
            _ => panic!("{named:?} changes a register twice: {found:?}"),
        }
    }

    #[test]
    fn registers_are_those_that_firecracker_changes() {
        for named in ALL {
            for leaf in [
                FEATURES,
                MORE_FEATURES,
                (0xd, 0),
                (0xd, 1),
                EXTENDED_FEATURES,
                SIZES,
            ] {
                for register in [Eax, Ebx, Ecx, Edx] {
                    let (mask, value) = of(named, leaf, register);
                    assert_eq!(value & !mask, 0);
                }
            }
        }
        let haswell = [Named::T2, Named::T2s, Named::T2cl, Named::T2a];
        for named in haswell {
            assert_eq!(of(named, FEATURES, Eax), (0x0fff_3fff, 0x306f2));
            assert_eq!(of(named, FEATURES, Ecx), (0x0004_cdfc, 0));
            assert_eq!(of(named, FEATURES, Edx), (0xe864_1080, 0x1080));
            assert_eq!(of(named, MORE_FEATURES, Ebx), (0xffef_da14, 0x200));
            assert_eq!(of(named, MORE_FEATURES, Ecx), (0x4041_5f5e, 0));
            assert_eq!(of(named, MORE_FEATURES, Edx), (0x11c, 0));
        }
        for named in ALL {
            assert_eq!(of(named, (0xd, 0), Eax), (0x2f8, 0));
            assert_eq!(of(named, (0xd, 1), Eax), (0xe, 0));
        }
        for named in [Named::T2, Named::T2s] {
            assert_eq!(of(named, EXTENDED_FEATURES, Ecx), (0x2000_0100, 0));
            assert_eq!(of(named, EXTENDED_FEATURES, Edx), (0x0400_0000, 0));
            assert_eq!(of(named, SIZES, Ebx), (0x200, 0));
        }
        assert_eq!(of(Named::T2a, EXTENDED_FEATURES, Ecx), (0x2000_01c4, 0));
        assert_eq!(of(Named::T2a, EXTENDED_FEATURES, Edx), (0x0640_0000, 0));
        assert_eq!(of(Named::T2a, SIZES, Ebx), (0x001c_0205, 0x001c_0004));
        assert_eq!(of(Named::C3, FEATURES, Eax), (0x0fff_3fff, 0x306e4));
        assert_eq!(of(Named::C3, FEATURES, Ecx), (0x0040_dd3c, 0));
        assert_eq!(of(Named::C3, FEATURES, Edx), (0xa864_1080, 0x1080));
        assert_eq!(of(Named::C3, MORE_FEATURES, Ebx), (0xffaf_dd3c, 0));
        assert_eq!(of(Named::C3, MORE_FEATURES, Ecx), (0x4041_481e, 0));
        assert_eq!(of(Named::C3, SIZES, Ebx), (0, 0));
    }

    #[test]
    fn a_template_holds_on_its_processors_alone() {
        let expected = [
            (SKYLAKE, "C3 T2 T2S"),
            (CASCADE_LAKE, "C3 T2 T2S T2CL"),
            (ICE_LAKE, "C3 T2 T2CL"),
            (MILAN, "T2A"),
        ];
        for (cpu, names) in expected {
            let holds = ALL.into_iter().filter(|named| named.is_for(host(cpu)));
            let found: Vec<&str> = holds.map(Named::name).collect();
            assert_eq!(found.join(" "), names, "{}", cpu.name);
        }
        // Another stepping, and the same number of another vendor.
        let other = Cpu {
            signature: 0x0005_0656,
            ..SKYLAKE
        };
        let foreign = Cpu {
            vendor: AMD,
            ..SKYLAKE
        };
        for cpu in [other, foreign] {
            assert!(ALL.into_iter().all(|named| !named.is_for(host(cpu))));
        }
    }

    #[test]
    fn a_refusal_says_what_is_allowed() {
        let refused = Named::T2s.ensure_for(host(MILAN)).unwrap_err().to_string();
        assert_eq!(
            refused,
            "CPU template T2S is for Intel Skylake, Intel Cascade Lake; this host's processor is AuthenticAMD with signature 0x00a00f11; allowed here: T2A, None, or a cpu-config"
        );
    }
}
