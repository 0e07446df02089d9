//! The assembly at CPL 0 (`shim.s`) as Rust at CPL 3 sees it.

use core::arch::{asm, global_asm};

/// `CR4`: PAE, OSFXSR, OSXMMEXCPT. XSAVE stays off: the guest is compiled for SSE2 only.
const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10;
/// `CR0`: PE, MP, ET, NE, PG.
const CR0: u32 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
const MSR_EFER: u32 = 0xc000_0080;
const EFER_LME: u32 = 1 << 8;

const KERNEL_CODE: u16 = 0x08;
const USER_DATA: u16 = 0x10 | 3;
const USER_CODE: u16 = 0x18 | 3;
const TASK: u16 = 0x20;
/// `RFLAGS` of Rust: all clear, but for the bit that is always set. So interrupts are off.
const USER_FLAGS: u32 = 1 << 1;

/// Bytes of the task state segment without its I/O map.
const TSS_BYTES: u16 = 104;
/// Bytes of the I/O map: ports 0 to 0x3ff, those of the ISA bus. link.ld knows this number.
const IO_MAP_BYTES: u16 = 0x400 / 8;

/// Present, writable, user, accessed.
const PTE_TABLE: u32 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5;
/// As [`PTE_TABLE`], dirty, 2 MiB page.
const PTE_PAGE: u32 = PTE_TABLE | 1 << 6 | 1 << 7;
/// As [`PTE_PAGE`], write-through and cache-disable.
const PTE_PAGE_UNCACHED: u32 = PTE_PAGE | 1 << 3 | 1 << 4;

/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Second argument of `guest_main`: the first one is the address of `boot_params`.
pub const PROTOCOL_LINUX64: u32 = 0;
/// Second argument of `guest_main`: the first one is the address of `hvm_start_info`.
pub const PROTOCOL_PVH: u32 = 1;

const SERVICE_WAIT: u32 = 0;
const SERVICE_BAD_INSTRUCTION: u32 = 1;
const SERVICE_TRIPLE_FAULT: u32 = 2;

/// Bytes of the stack of Rust. The TCP/IP stack needs most: below 16 KiB.
const STACK_BYTES: usize = 64 * 1024;
/// Bytes of the stack of the shim: an exception during an interrupt during a service fits five times.
const SHIM_STACK_BYTES: usize = 512;

/// First vector of the interrupt lines; those below are exceptions (Intel SDM vol. 3 §6.3.1).
pub const VECTOR_LINE_0: u8 = 0x20;
/// Interrupt lines (GSIs) that have a vector: the pins of one I/O APIC.
pub const LINES: u8 = 24;
/// The local APIC's timer.
pub const VECTOR_TIMER: u8 = VECTOR_LINE_0 + LINES;
/// Spurious interrupts of the local APIC. Bits 0–3 are set, as old APICs demand.
pub const VECTOR_SPURIOUS: u8 = 0x3f;
const VECTOR_EXCEPTIONS: u8 = 32;
const VECTOR_BREAKPOINT: u8 = 3;
const IDT_GATES: usize = VECTOR_SPURIOUS as usize + 1;

global_asm!(
    include_str!("shim.s"),
    CR0 = const CR0,
    CR4 = const CR4,
    MSR_EFER = const MSR_EFER,
    EFER_LME = const EFER_LME,
    KERNEL_CODE = const KERNEL_CODE,
    USER_DATA = const USER_DATA,
    USER_CODE = const USER_CODE,
    TASK = const TASK,
    USER_FLAGS = const USER_FLAGS,
    PTE_TABLE = const PTE_TABLE,
    PTE_PAGE = const PTE_PAGE,
    PTE_PAGE_UNCACHED = const PTE_PAGE_UNCACHED,
    ELFNOTE_PHYS32_ENTRY = const ELFNOTE_PHYS32_ENTRY,
    PROTOCOL_LINUX64 = const PROTOCOL_LINUX64,
    PROTOCOL_PVH = const PROTOCOL_PVH,
    SERVICE_BAD_INSTRUCTION = const SERVICE_BAD_INSTRUCTION,
    APIC_EOI = const crate::apic::EOI,
    TSS_BYTES = const TSS_BYTES,
    IO_MAP_BYTES = const IO_MAP_BYTES,
    IDT_GATES = const IDT_GATES,
    SHIM_STACK_BYTES = const SHIM_STACK_BYTES,
    STACK_BYTES = const STACK_BYTES,
    options(att_syntax)
);

global_asm!(
    include_str!("trampoline.s"),
    CR0 = const CR0,
    CR4 = const CR4,
    MSR_EFER = const MSR_EFER,
    EFER_LME = const EFER_LME,
    KERNEL_CODE = const KERNEL_CODE,
    USER_DATA = const USER_DATA,
    USER_CODE = const USER_CODE,
    USER_FLAGS = const USER_FLAGS,
    APIC_ID = const crate::apic::ID,
    options(att_syntax)
);

/// Size of one stub in `trap_stubs`.
const TRAP_STUB_BYTES: usize = 16;

/// An interrupt gate (Intel SDM vol. 3 §6.14.1).
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Gate>() == 16);

/// Present, 64-bit interrupt gate.
const GATE_INTERRUPT: u8 = 1 << 7 | 0xe;
/// May be entered from CPL 3 by an instruction.
const GATE_DPL_3: u8 = 3 << 5;

impl Gate {
    /// `handler` lies in the image, below 4 GiB.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the address is cut into its pieces"
    )]
    const fn new(handler: usize, kind: u8) -> Self {
        Self {
            offset_low: handler as u16,
            selector: KERNEL_CODE,
            stack: 0,
            kind,
            offset_middle: (handler >> 16) as u16,
            offset_high: 0,
            reserved: 0,
        }
    }
}

unsafe extern "C" {
    static mut idt: [Gate; IDT_GATES];
    fn service();
    fn interrupt();
    fn interrupt_spurious();
    fn trap_stubs();
    static trampoline: u8;
    static trampoline_end: u8;
}

/// Fills the interrupt descriptor table. Exceptions before this are triple faults.
pub fn fill_idt() {
    let gate = |vector: u8| match vector {
        VECTOR_BREAKPOINT => Gate::new(service as *const () as usize, GATE_INTERRUPT | GATE_DPL_3),
        0..VECTOR_EXCEPTIONS => Gate::new(
            trap_stubs as *const () as usize + usize::from(vector) * TRAP_STUB_BYTES,
            GATE_INTERRUPT,
        ),
        VECTOR_SPURIOUS => Gate::new(interrupt_spurious as *const () as usize, GATE_INTERRUPT),
        _ => Gate::new(interrupt as *const () as usize, GATE_INTERRUPT),
    };
    let table = &raw mut idt;
    for vector in 0..=VECTOR_SPURIOUS {
        // SAFETY: the table has a gate for each vector up to VECTOR_SPURIOUS; only this function writes to it, once,
        // and the CPU reads it only when something traps.
        unsafe { (*table)[usize::from(vector)] = gate(vector) };
    }
}

/// Sleeps until an interrupt has come since the last sleep. Returns at once if one has already.
pub fn wait() {
    // SAFETY: the service changes no register and no memory that Rust knows of.
    unsafe { asm!("int3", in("eax") SERVICE_WAIT, options(nostack)) };
}

/// Runs an SSE instruction at CPL 0, which software KVM's emulator does not know.
pub fn bad_instruction() {
    // SAFETY: the service changes xmm0 only.
    unsafe { asm!("int3", in("eax") SERVICE_BAD_INSTRUCTION, out("xmm0") _, options(nostack)) };
}

/// Faults with an empty interrupt descriptor table.
pub fn triple_fault() -> ! {
    // SAFETY: does not return: the CPU shuts down.
    unsafe { asm!("int3", in("eax") SERVICE_TRIPLE_FAULT, options(noreturn, nostack)) };
}

/// Copies the code that the other CPUs start with to `page`, an address below 1 MiB that nothing else uses.
pub fn place_trampoline(page: usize) {
    let len = &raw const trampoline_end as usize - &raw const trampoline as usize;
    // SAFETY: the code lies between the two symbols; the caller names a free page of RAM, which is no Rust object.
    unsafe { (&raw const trampoline).copy_to_nonoverlapping(page as *mut u8, len) };
}
