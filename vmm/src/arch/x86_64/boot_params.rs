//! What a kernel is told when it is entered: the Linux zero page, or the PVH start information.

use lightv_devices::memory::GuestMem;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::Address;

use super::layout;

/// What is told.
#[derive(Debug, Clone, Copy)]
pub struct BootFacts {
    /// RAM in bytes.
    pub ram_bytes: u64,
    /// Length of the command line in bytes, without its NUL.
    pub cmdline_bytes: u32,
    /// Address and length of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// The setup header of a bzImage.
    pub setup_header: Option<setup_header>,
}

/// The boot structures did not fit.
#[derive(Debug, thiserror::Error)]
#[error("Boot parameters do not fit into RAM: {0}")]
pub struct BootParamsError(String);

/// One stretch of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Whether the kernel may use it; else it is reserved.
    pub usable: bool,
}

/// The memory map: usable RAM below the BIOS data area, the reserved rest of the first MiB, and all RAM above. The
/// lengths sum up to the RAM of the VM.
#[must_use]
pub fn memory_map(ram_bytes: u64) -> Vec<MapEntry> {
    let (low, high) = layout::ram_ranges(ram_bytes);
    let entry = |address, end: u64, usable| MapEntry {
        address,
        bytes: end - address,
        usable,
    };
    let mut map = vec![
        entry(0, layout::EBDA_START, true),
        entry(layout::EBDA_START, layout::HIGH_MEMORY_START, false),
        entry(layout::HIGH_MEMORY_START, low, true),
    ];
    if high > 0 {
        map.push(entry(layout::HOLE_END, layout::HOLE_END + high, true));
    }
    map
}

/// Kinds of the memory map, e820's and PVH's alike.
const MAP_RAM: u32 = 1;
const MAP_RESERVED: u32 = 2;
/// `boot_flag` and `header` of the zero page (Documentation/arch/x86/boot.rst).
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Alignment of a kernel that says nothing of it.
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;
/// `hvm_start_info`: "xEn3" with the 0x80 bit of the "E" set; version 1 has the memory map.
const PVH_MAGIC: u32 = 0x336e_c578;
const PVH_VERSION: u32 = 1;

/// Writes the Linux zero page, which names the random seed at [`layout::RNG_SEED`].
///
/// # Errors
/// [`BootParamsError`].
pub fn write_linux(mem: &GuestMem, facts: &BootFacts) -> Result<(), BootParamsError> {
    let mut params = boot_params {
        hdr: facts.setup_header.unwrap_or_default(),
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.cmd_line_ptr = narrow(layout::CMDLINE.raw_value(), "command line")?;
    params.hdr.cmdline_size = facts.cmdline_bytes;
    params.hdr.setup_data = layout::RNG_SEED.raw_value();
    params.acpi_rsdp_addr = layout::ACPI_TABLES.raw_value();
    if facts.setup_header.is_none() {
        params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    }
    if let Some((address, bytes)) = facts.initrd {
        params.hdr.ramdisk_image = narrow(address, "initrd address")?;
        params.hdr.ramdisk_size = narrow(bytes, "initrd length")?;
    }
    for (slot, entry) in params
        .e820_table
        .iter_mut()
        .zip(memory_map(facts.ram_bytes))
    {
        let kind = if entry.usable { MAP_RAM } else { MAP_RESERVED };
        *slot = boot_e820_entry {
            addr: entry.address,
            size: entry.bytes,
            r#type: kind,
        };
        params.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, layout::ZERO_PAGE), mem)
        .map_err(|cause| BootParamsError(cause.to_string()))
}

/// Writes the PVH start information.
///
/// # Errors
/// [`BootParamsError`].
pub fn write_pvh(mem: &GuestMem, facts: &BootFacts) -> Result<(), BootParamsError> {
    let memmap: Vec<_> = memory_map(facts.ram_bytes)
        .into_iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.address,
            size: entry.bytes,
            type_: if entry.usable { MAP_RAM } else { MAP_RESERVED },
            reserved: 0,
        })
        .collect();
    let mut start = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        cmdline_paddr: layout::CMDLINE.raw_value(),
        rsdp_paddr: layout::ACPI_TABLES.raw_value(),
        memmap_paddr: layout::PVH_MEMMAP.raw_value(),
        memmap_entries: narrow(memmap.len() as u64, "memory map")?,
        ..Default::default()
    };
    let mut modules = Vec::new();
    if let Some((address, bytes)) = facts.initrd {
        modules.push(hvm_modlist_entry {
            paddr: address,
            size: bytes,
            ..Default::default()
        });
        start.nr_modules = 1;
        start.modlist_paddr = layout::PVH_MODULES.raw_value();
    }
    let mut params = BootParams::new(&start, layout::PVH_START_INFO);
    params.set_sections(&memmap, layout::PVH_MEMMAP);
    params.set_modules(&modules, layout::PVH_MODULES);
    PvhBootConfigurator::write_bootparams(&params, mem)
        .map_err(|cause| BootParamsError(cause.to_string()))
}

fn narrow(value: u64, what: &str) -> Result<u32, BootParamsError> {
    u32::try_from(value).map_err(|_| BootParamsError(format!("{what} {value:#x} lies above 4 GiB")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_map_sums_up_to_the_ram_at_every_edge() {
        for mib in [
            16_u64, 33, 63, 64, 128, 129, 1023, 1024, 2047, 2049, 3071, 3072, 3073, 3328, 4095,
            4096, 4097, 4674, 5000, 8192,
        ] {
            let map = memory_map(mib << 20);
            assert_eq!(
                map.iter().map(|entry| entry.bytes).sum::<u64>(),
                mib << 20,
                "{mib} MiB"
            );
            let is_in_hole = |entry: &MapEntry| {
                let end = entry.address + entry.bytes;
                end > layout::HOLE_START && entry.address < layout::HOLE_END
            };
            assert!(!map.iter().any(is_in_hole), "{mib} MiB: RAM in the hole");
            for pair in map.windows(2) {
                assert!(
                    pair[0].address + pair[0].bytes <= pair[1].address,
                    "{mib} MiB: overlap"
                );
            }
        }
    }

    proptest! {
        /// The map of RAM of any size: in order, without overlap, none of it in the hole, all of it named.
        #[test]
        fn the_map_names_all_ram_in_order(mib in 16..1_u64 << 26) {
            let map = memory_map(mib << 20);
            prop_assert_eq!(map.iter().map(|entry| entry.bytes).sum::<u64>(), mib << 20);
            let mut end = 0;
            for entry in &map {
                prop_assert!(entry.bytes > 0 && entry.address >= end);
                end = entry.address + entry.bytes;
                prop_assert!(end <= layout::HOLE_START || entry.address >= layout::HOLE_END);
            }
            let usable = map.iter().filter(|entry| entry.usable);
            let is_reserved = |at: u64| map.iter().any(|entry| {
                !entry.usable && (entry.address..entry.address + entry.bytes).contains(&at)
            });
            prop_assert!(usable.count() >= 2 && is_reserved(layout::ACPI_TABLES.0));
        }
    }
}
