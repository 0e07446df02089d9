//! The registers with which a kernel is entered.

use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use lightv_devices::memory::GuestMem;
use vm_memory::{Address, Bytes, GuestAddress};

use super::layout;

/// Where and how the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux 64-bit protocol: long mode, low 4 GiB mapped one to one, rsi = zero page.
    Linux64(GuestAddress),
    /// PVH: 32-bit protected mode, no paging, ebx = start info.
    Pvh(GuestAddress),
}

/// Why the start state could not be set.
#[derive(Debug, thiserror::Error)]
pub enum StartStateError {
    /// KVM refused a call.
    #[error("KVM refused to {what} of a vCPU")]
    Kvm {
        /// Which call.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// The tables do not fit into RAM.
    #[error("RAM has no room for the boot tables at {address:#x}")]
    Table {
        /// Where one was to be written.
        address: u64,
    },
}

/// Descriptors of the boot GDT: flags as in Intel SDM vol. 3, 3.4.5 (type, S, DPL, P, AVL, L, DB, G), limit 4 GiB.
const CODE_64: (u8, u16) = (1, 0xa09b);
const CODE_32: (u8, u16) = (1, 0xc09b);
const DATA: (u8, u16) = (2, 0xc093);
const TSS: (u8, u16) = (3, 0x808b);

/// CR0: protected mode, extension type, paging.
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Page table entry: present, writable.
const PTE_PRESENT_WRITABLE: u64 = 0x3;
/// Page directory entry: present, writable, 2 MiB page.
const PDE_LARGE: u64 = 0x83;
/// Entries of a table.
const TABLE_ENTRIES: u64 = 512;
/// GiB that are mapped one to one: all below the end of the hole.
const MAPPED_GIB: u64 = 4;

/// Writes the GDT, and for Linux the page tables, into RAM.
///
/// # Errors
/// [`StartStateError::Table`].
pub fn write_tables(mem: &GuestMem, entry: Entry) -> Result<(), StartStateError> {
    let code = match entry {
        Entry::Linux64(_) => CODE_64,
        Entry::Pvh(_) => CODE_32,
    };
    let gdt = [0, descriptor(code), descriptor(DATA), descriptor(TSS)];
    write_words(mem, layout::BOOT_GDT, &gdt)?;
    write_words(mem, layout::BOOT_IDT, &[0])?;
    if let Entry::Linux64(_) = entry {
        write_page_tables(mem)?;
    }
    Ok(())
}

fn write_page_tables(mem: &GuestMem) -> Result<(), StartStateError> {
    let table = |n: u64| layout::PAGE_TABLES.unchecked_add(n * 0x1000);
    write_words(
        mem,
        table(0),
        &[table(1).raw_value() | PTE_PRESENT_WRITABLE],
    )?;
    let pointers: Vec<u64> = (0..MAPPED_GIB)
        .map(|gib| table(2 + gib).raw_value() | PTE_PRESENT_WRITABLE)
        .collect();
    write_words(mem, table(1), &pointers)?;
    let directory: Vec<u64> = (0..MAPPED_GIB * TABLE_ENTRIES)
        .map(|page| (page << 21) | PDE_LARGE)
        .collect();
    write_words(mem, table(2), &directory)
}

fn write_words(mem: &GuestMem, at: GuestAddress, words: &[u64]) -> Result<(), StartStateError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    mem.write_slice(&bytes, at)
        .map_err(|_| StartStateError::Table {
            address: at.raw_value(),
        })
}

const fn descriptor((_, flags): (u8, u16)) -> u64 {
    // Base 0; limit 0xfffff in units of the granularity bit.
    let flags = flags as u64;
    0xffff | ((flags & 0xff) << 40) | (0xf << 48) | ((flags >> 12) << 52)
}

fn segment((index, flags): (u8, u16)) -> kvm_segment {
    let bit = |n: u16| u8::from((flags >> n) & 1 == 1);
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: u16::from(index) * 8,
        type_: flags.to_le_bytes()[0] & 0xf,
        present: bit(7),
        dpl: (flags.to_le_bytes()[0] >> 5) & 3,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: 0,
        padding: 0,
    }
}

/// Sets the general, segment, floating-point and interrupt registers of the vCPU that enters the kernel.
///
/// # Errors
/// [`StartStateError::Kvm`].
pub fn set_registers(vcpu: &VcpuFd, entry: Entry) -> Result<(), StartStateError> {
    let kvm = |what| move |cause| StartStateError::Kvm { what, cause };
    let sregs = vcpu.get_sregs().map_err(kvm("read segment registers"))?;
    vcpu.set_sregs(&entry_sregs(sregs, entry))
        .map_err(kvm("set segment registers"))?;
    vcpu.set_regs(&entry_regs(entry))
        .map_err(kvm("set registers"))?;
    // Reset values (Intel SDM vol. 3, table 9-1): all exceptions masked.
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(kvm("set floating-point registers"))
}

fn entry_regs(entry: Entry) -> kvm_regs {
    let base = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match entry {
        Entry::Linux64(address) => kvm_regs {
            rip: address.raw_value(),
            rsp: layout::BOOT_STACK.raw_value(),
            rbp: layout::BOOT_STACK.raw_value(),
            rsi: layout::ZERO_PAGE.raw_value(),
            ..base
        },
        Entry::Pvh(address) => kvm_regs {
            rip: address.raw_value(),
            rbx: layout::PVH_START_INFO.raw_value(),
            ..base
        },
    }
}

fn entry_sregs(mut sregs: kvm_sregs, entry: Entry) -> kvm_sregs {
    let (code, long_mode) = match entry {
        Entry::Linux64(_) => (CODE_64, true),
        Entry::Pvh(_) => (CODE_32, false),
    };
    sregs.cs = segment(code);
    let data = segment(DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TSS);
    sregs.gdt.base = layout::BOOT_GDT.raw_value();
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = layout::BOOT_IDT.raw_value();
    sregs.idt.limit = 7;
    sregs.cr0 = CR0_PE | CR0_ET;
    if long_mode {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES.raw_value();
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    sregs
}

/// Offsets of the local vector table entries for LINT0 and LINT1 in the local APIC's page.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes in bits 8–10: interrupts of the PIC; non-maskable interrupt.
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// Connects LINT0 to the PIC and LINT1 to the non-maskable interrupt, as a PC's firmware does.
///
/// # Errors
/// [`StartStateError::Kvm`].
pub fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), StartStateError> {
    let kvm = |what| move |cause| StartStateError::Kvm { what, cause };
    let mut lapic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    set_delivery(&mut lapic, LVT_LINT0, DELIVERY_EXTINT);
    set_delivery(&mut lapic, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).map_err(kvm("set the local APIC"))
}

fn set_delivery(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    for (byte, new) in lapic.regs[offset..offset + 4]
        .iter_mut()
        .zip(mode.to_le_bytes())
    {
        // The page is declared as C `char`s: the same bits, signed.
        *byte = i8::from_le_bytes([new]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_that_linux_documents() {
        assert_eq!(descriptor(CODE_64), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(DATA), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(CODE_32), 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn segments_agree_with_their_descriptors() {
        let code = segment(CODE_64);
        assert_eq!(
            (
                code.selector,
                code.type_,
                code.s,
                code.present,
                code.l,
                code.db,
                code.g
            ),
            (8, 0xb, 1, 1, 1, 0, 1)
        );
    }
}
