//! The guest-physical address space.
//!
//! ```text
//! 0x0000_0000  RAM (low): GDT 0x500, PVH start info 0x6000, zero page 0x7000, page tables 0x9000,
//!              command line 0x2_0000, 0x9_fc00–0xf_ffff reserved as on a PC, kernel from 0x10_0000
//!              In the reserved part: MP table 0x9_fc00, ACPI tables 0xe_0000, random seed 0xf_e000, generation ID
//!              0xf_f000
//! 0xc000_0000  control device, 64 KiB
//! 0xc001_0000  virtio-mmio registers, 4 KiB a device
//! 0xfec0_0000  I/O APIC        0xfee0_0000  local APIC        0xfffb_c000  KVM's own pages (VMX without EPT)
//! 0x1_0000_0000  RAM (high): what does not fit below 3 GiB
//! ```

use vm_memory::GuestAddress;

/// First byte of the hole for devices: 3 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// First byte after the hole: 4 GiB.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// The control device.
pub const CONTROL_START: u64 = HOLE_START;
/// Its length.
pub const CONTROL_BYTES: u64 = 0x1_0000;

/// Registers of the first virtio-mmio device.
pub const MMIO_START: u64 = CONTROL_START + CONTROL_BYTES;
/// Distance between two devices.
pub const MMIO_BYTES: u64 = 0x1000;

/// Interrupt lines of the I/O APIC that devices get, one each, in order: the rest belong to a PC's own devices.
pub const DEVICE_GSIS: std::ops::RangeInclusive<u32> = 5..=23;

/// Registers of the I/O APIC, as KVM and every PC have them.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Its id in the tables: one that no vCPU's local APIC has.
pub const IO_APIC_ID: u8 = 32;
/// Interrupt lines of the I/O APIC: KVM's has as many as the 82093AA.
pub const IO_APIC_LINES: u8 = 24;
/// Registers of every local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Interrupt line of ACPI's Generic Event Device: COM2's on a PC, and there is none. It has one line for all events,
/// because there is no other to give: Linux refuses 0 and 2 (drivers/acpi/resource.c), and devices have 5 and above.
pub const EVENT_GSI: u32 = 3;
/// Interrupt line of the keyboard.
pub const KEYBOARD_GSI: u32 = 1;

/// Port of ACPI's sleep control register: one byte.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Port of ACPI's sleep status register: one byte.
pub const SLEEP_STATUS_PORT: u16 = 0x601;

/// Port that says which events have happened: one byte, cleared when it is read.
pub const EVENT_STATUS_PORT: u16 = 0x602;

/// Serial port COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Number of its ports.
pub const SERIAL_PORTS: u16 = 8;
/// Its interrupt line.
pub const SERIAL_GSI: u32 = 4;
/// The keyboard controller's data and command ports are 0x60 and 0x64.
pub const I8042_PORT: u16 = 0x60;
/// Number of ports from the first to the last of the keyboard controller.
pub const I8042_PORTS: u16 = 5;
/// pvpanic's one port, where QEMU has it.
pub const PVPANIC_PORT: u16 = 0x505;

/// Three pages that VMX takes for a task state segment where it cannot run real mode (KVM_SET_TSS_ADDR).
pub const KVM_TSS: usize = 0xfffb_d000;
/// The page before them, for an identity map (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Global descriptor table at the start.
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// Interrupt descriptor table at the start: empty.
pub const BOOT_IDT: GuestAddress = GuestAddress(0x520);
/// PVH `hvm_start_info`.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// PVH module list: the initial RAM disk.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// PVH memory map.
pub const PVH_MEMMAP: GuestAddress = GuestAddress(0x6080);
/// Linux `boot_params`.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Initial stack pointer.
pub const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// Page tables of the Linux 64-bit protocol: PML4, then the page-directory pointers, then four page directories.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest kernel command line, its NUL byte included. Linux reads 2048 on x86.
pub const CMDLINE_BYTES_MAX: usize = 2048;
/// End of what a kernel may use below 1 MiB: the extended BIOS data area of a PC begins here.
pub const EBDA_START: u64 = 0x9_fc00;
/// Floating pointer and table of Intel's MultiProcessor specification. The last KiB of base memory is where kernels look
/// for the pointer next after the first KiB of all, long before the 64 KiB of the BIOS.
pub const MP_TABLE: GuestAddress = GuestAddress(EBDA_START);
/// End of the room for them: the end of base memory.
pub const MP_TABLE_END: u64 = 0xa_0000;
/// ACPI's root pointer, with the other ACPI tables after it. A kernel that is not told searches from here on.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// End of the room for them.
pub const ACPI_TABLES_END: u64 = RNG_SEED.0;
/// Random bytes for Linux's pool, with their header.
pub const RNG_SEED: GuestAddress = GuestAddress(0xf_e000);
/// End of the room for them.
pub const RNG_SEED_END: u64 = GENERATION_ID.0;
/// The generation ID, alone in its page.
pub const GENERATION_ID: GuestAddress = GuestAddress(0xf_f000);
/// Kernels are loaded from here on.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Splits RAM of `bytes` into what lies below the hole and what lies above it.
#[must_use]
pub const fn ram_ranges(bytes: u64) -> (u64, u64) {
    if bytes <= HOLE_START {
        (bytes, 0)
    } else {
        (HOLE_START, bytes - HOLE_START)
    }
}

/// Address of the register page of device `index`, in the order of creation.
#[must_use]
pub const fn mmio_address(index: u64) -> u64 {
    MMIO_START + index * MMIO_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ram_is_moved_over_the_hole_not_lost() {
        for mib in [16_u64, 128, 3071, 3072, 3073, 3328, 4096, 4097, 8192] {
            let (low, high) = ram_ranges(mib << 20);
            assert_eq!(low + high, mib << 20, "{mib} MiB");
            assert!(low <= HOLE_START, "{mib} MiB");
        }
    }

    #[test]
    fn every_device_has_a_page_below_the_io_apic() {
        let devices = u64::from(*DEVICE_GSIS.end() - *DEVICE_GSIS.start() + 1);
        assert!(mmio_address(devices) <= 0xfec0_0000);
    }

    proptest! {
        /// RAM of any size: each byte has one address, and none lies in the hole.
        #[test]
        fn every_byte_of_ram_has_one_address_outside_the_hole(bytes in 0..1_u64 << 46, at: u64) {
            let (low, high) = ram_ranges(bytes);
            prop_assert_eq!(low.checked_add(high), Some(bytes));
            prop_assert!(low <= HOLE_START);
            prop_assert!(high == 0 || low == HOLE_START, "low RAM is filled first");
            let (low_end, high_end) = (low, HOLE_END + high);
            let is_ram = at < low_end || (HOLE_END..high_end).contains(&at);
            prop_assert!(!is_ram || !(HOLE_START..HOLE_END).contains(&at));
        }

        /// Registers of devices overlap neither each other nor anything else.
        #[test]
        fn register_pages_are_apart(a in 0..19_u64, b in 0..19_u64) {
            let (first, second) = (mmio_address(a), mmio_address(b));
            prop_assert!(a == b || first.abs_diff(second) >= MMIO_BYTES);
            prop_assert!(first >= CONTROL_START + CONTROL_BYTES);
            prop_assert!(first + MMIO_BYTES <= u64::from(IO_APIC));
        }
    }
}
