//! The table of Intel's MultiProcessor Specification 1.4, for kernels without ACPI: which processors there are, and to
//! which inputs of the interrupt controllers the lines lead. A kernel with ACPI leaves it unread.

use super::layout;
use crate::limits;

/// Floating pointer (MP 1.4 §4.1).
const POINTER_BYTES: usize = 16;
/// Configuration table header (MP 1.4 §4.2).
const HEADER_BYTES: usize = 44;
/// Entries (MP 1.4 §4.3): a processor has 20 bytes, every other kind 8.
const PROCESSOR_BYTES: u64 = 20;
const ENTRY_BYTES: u64 = 8;
/// Offsets of the checksums: all bytes of the structure then sum up to 0.
const POINTER_CHECKSUM: usize = 10;
const HEADER_CHECKSUM: usize = 7;

/// The length in units of 16 bytes, and the version of the specification, 1.4.
const POINTER_UNITS: u8 = 1;
const SPECIFICATION: u8 = 4;
/// Where the table lies: right after the pointer.
const CONFIG: u64 = layout::MP_TABLE.0 + POINTER_BYTES as u64;
/// Whose table it is.
const OEM: &[u8; 8] = b"LIGHTV  ";
const PRODUCT: &[u8; 12] = b"MICROVM     ";

/// Kinds of entries (MP 1.4 table 4-3), in the order in which they must come.
mod kind {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IO_APIC: u8 = 2;
    pub(super) const IO_INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// Processor flags (MP 1.4 §4.3.1): usable; the one that boots.
const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOTS: u8 = 2;
/// CPU signature: family 6, model and stepping unsaid; features: FPU, APIC. Kernels ask CPUID.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;
/// Versions in the version registers of KVM's local and I/O APIC (arch/x86/kvm/lapic.c, ioapic.h).
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// I/O APIC flag (MP 1.4 §4.3.3): usable.
const IO_APIC_ENABLED: u8 = 1;
/// The one bus.
const ISA_BUS: u8 = 0;
/// What an interrupt is (MP 1.4 table 4-10).
const TYPE_INT: u8 = 0;
const TYPE_NMI: u8 = 1;
const TYPE_EXTINT: u8 = 3;
/// Interrupt flags (MP 1.4 table 4-10): active high, edge; or what the bus has.
const HIGH_EDGE: u16 = 0b0101;
const AS_THE_BUS: u16 = 0;
/// The APIC of the processor that boots, and all APICs.
const FIRST_APIC: u8 = 0;
const ALL_APICS: u8 = 0xff;

/// Entries that a machine has whatever its number of processors: bus, I/O APIC, its lines, LINT0 and LINT1.
const OTHER_ENTRIES: u16 = 1 + 1 + layout::IO_APIC_LINES as u16 + 2;

const _: () = assert!(
    table_bytes(limits::VCPUS_MAX) <= layout::MP_TABLE_END - CONFIG,
    "the table of the largest machine fits where it goes"
);
const _: () = assert!(
    layout::IO_APIC_ID as u64 >= limits::VCPUS_MAX,
    "no local APIC has the I/O APIC's id"
);

/// Length of the table.
const fn table_bytes(vcpus: u64) -> u64 {
    let others_bytes = OTHER_ENTRIES as u64 * ENTRY_BYTES;
    HEADER_BYTES as u64 + vcpus * PROCESSOR_BYTES + others_bytes
}

/// Floating pointer and table for `vcpus` processors, one after the other, to be written at [`layout::MP_TABLE`]. The
/// APIC ids are the vCPUs' numbers.
#[must_use]
pub fn build(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    for apic_id in 0..vcpus {
        push_processor(&mut entries, apic_id);
    }
    entries.extend([kind::BUS, ISA_BUS]);
    entries.extend(b"ISA   ");
    entries.extend([kind::IO_APIC, layout::IO_APIC_ID, IO_APIC_VERSION]);
    entries.push(IO_APIC_ENABLED);
    entries.extend(layout::IO_APIC.to_le_bytes());
    for line in 0..layout::IO_APIC_LINES {
        push_interrupt(&mut entries, Interrupt::of_line(line));
    }
    push_interrupt(&mut entries, Interrupt::LINT0);
    push_interrupt(&mut entries, Interrupt::LINT1);
    let mut table = floating_pointer();
    table.extend(header(&entries, u16::from(vcpus) + OTHER_ENTRIES));
    table.extend(entries);
    table
}

fn push_processor(entries: &mut Vec<u8>, apic_id: u8) {
    let boots = if apic_id == FIRST_APIC {
        PROCESSOR_BOOTS
    } else {
        0
    };
    entries.extend([kind::PROCESSOR, apic_id, LOCAL_APIC_VERSION]);
    entries.push(PROCESSOR_ENABLED | boots);
    entries.extend(CPU_SIGNATURE.to_le_bytes());
    entries.extend(CPU_FEATURES.to_le_bytes());
    entries.extend([0; 8]);
}

/// An interrupt entry (MP 1.4 §4.3.4, §4.3.5).
#[derive(Debug, Clone, Copy)]
struct Interrupt {
    kind: u8,
    is: u8,
    flags: u16,
    bus_irq: u8,
    apic_id: u8,
    input: u8,
}

impl Interrupt {
    /// What `start_state::set_local_interrupts` connects: the PIC to the first local APIC's LINT0, the non-maskable
    /// interrupt to every LINT1.
    const LINT0: Self = Self {
        kind: kind::LOCAL_INTERRUPT,
        is: TYPE_EXTINT,
        flags: AS_THE_BUS,
        bus_irq: 0,
        apic_id: FIRST_APIC,
        input: 0,
    };
    const LINT1: Self = Self {
        is: TYPE_NMI,
        apic_id: ALL_APICS,
        input: 1,
        ..Self::LINT0
    };

    /// Line `line` of the I/O APIC. An ISA bus has 16; the others are said to be its own too, for
    /// `virtio_mmio.device=` knows no other number than the one of the line.
    const fn of_line(line: u8) -> Self {
        Self {
            kind: kind::IO_INTERRUPT,
            is: TYPE_INT,
            flags: HIGH_EDGE,
            bus_irq: line,
            apic_id: layout::IO_APIC_ID,
            input: line,
        }
    }
}

fn push_interrupt(entries: &mut Vec<u8>, interrupt: Interrupt) {
    entries.extend([interrupt.kind, interrupt.is]);
    entries.extend(interrupt.flags.to_le_bytes());
    entries.extend([ISA_BUS, interrupt.bus_irq]);
    entries.extend([interrupt.apic_id, interrupt.input]);
}

fn floating_pointer() -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    // Four bytes: all of it lies below 1 MiB.
    pointer.extend(&CONFIG.to_le_bytes()[..4]);
    pointer.extend([POINTER_UNITS, SPECIFICATION, 0]);
    // Feature bytes: a table is present, and the PIC is reached through LINT0 ("virtual wire").
    pointer.extend([0; 5]);
    pointer[POINTER_CHECKSUM] = checksum(&[&pointer]);
    pointer
}

fn header(entries: &[u8], count: u16) -> Vec<u8> {
    // Less than 1 KiB, proved above.
    let length = u16::try_from(HEADER_BYTES + entries.len()).unwrap_or(u16::MAX);
    let mut header = b"PCMP".to_vec();
    header.extend(length.to_le_bytes());
    header.extend([SPECIFICATION, 0]);
    header.extend(OEM);
    header.extend(PRODUCT);
    // No table of the maker's own: its address and length.
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(layout::LOCAL_APIC.to_le_bytes());
    // No extended table: its length and checksum; then a reserved byte.
    header.extend([0; 4]);
    header[HEADER_CHECKSUM] = checksum(&[&header, entries]);
    header
}

/// The byte that makes the sum of all bytes 0.
fn checksum(parts: &[&[u8]]) -> u8 {
    let bytes = parts.iter().copied().flatten();
    bytes.fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u16_at(bytes: &[u8], offset: usize) -> u16 {
        u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The entries of a table, checked on the way: order, lengths, the count in the header.
    fn entries(table: &[u8]) -> Vec<&[u8]> {
        let (mut rest, mut found, mut last) = (&table[HEADER_BYTES..], Vec::new(), 0);
        while let Some(kind) = rest.first() {
            let bytes = if *kind == kind::PROCESSOR { 20 } else { 8 };
            assert!(*kind >= last, "MP 1.4 §4.3: sorted by entry type");
            let (entry, after) = rest.split_at(bytes);
            found.push(entry);
            (rest, last) = (after, *kind);
        }
        assert_eq!(found.len(), usize::from(u16_at(table, 34)));
        found
    }

    #[test]
    fn pointer_and_table_are_found_and_sum_up_to_zero() {
        for vcpus in [1, 2, 3, 31, 32] {
            let bytes = build(vcpus);
            let (pointer, table) = bytes.split_at(16);
            assert_eq!((&pointer[..4], sum(pointer)), (&b"_MP_"[..], 0));
            assert_eq!(u64::from(u32_at(pointer, 4)), layout::MP_TABLE.0 + 16);
            assert_eq!(pointer[8..10], [1, 4]);
            assert_eq!((&table[..4], sum(table)), (&b"PCMP"[..], 0));
            assert_eq!(usize::from(u16_at(table, 4)), table.len());
            assert_eq!(table.len() as u64, table_bytes(u64::from(vcpus)));
            assert_eq!(u32_at(table, 36), 0xfee0_0000);
            assert!(layout::MP_TABLE.0 + bytes.len() as u64 <= layout::MP_TABLE_END);
        }
    }

    #[test]
    fn every_processor_and_every_line_has_one_entry() {
        for vcpus in [1_u8, 2, 3, 31, 32] {
            let bytes = build(vcpus);
            let entries = entries(&bytes[16..]);
            let of = |kind: u8| entries.iter().filter(move |entry| entry[0] == kind);
            let processors: Vec<_> = of(0).map(|entry| (entry[1], entry[3])).collect();
            let expected: Vec<_> = (0..vcpus)
                .map(|id| (id, if id == 0 { 3 } else { 1 }))
                .collect();
            assert_eq!(processors, expected);
            assert_eq!(of(1).collect::<Vec<_>>(), [b"\x01\x00ISA   "]);
            assert_eq!(
                of(2).map(|entry| u32_at(entry, 4)).collect::<Vec<_>>(),
                [0xfec0_0000]
            );
            assert!(
                of(2).all(|entry| entry[1] >= vcpus),
                "the id of a local APIC"
            );
            let lines: Vec<_> = of(3)
                .map(|entry| (entry[2], entry[5], entry[6], entry[7]))
                .collect();
            let expected: Vec<_> = (0..24).map(|line| (5, line, 32, line)).collect();
            assert_eq!(lines, expected);
            let local: Vec<_> = of(4).map(|entry| (entry[1], entry[6], entry[7])).collect();
            assert_eq!(local, [(3, 0, 0), (1, 0xff, 1)]);
        }
    }
}
