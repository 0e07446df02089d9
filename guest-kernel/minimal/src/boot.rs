//! What the monitor says at the start: command line and memory map, by either boot protocol.

use crate::mmio::Window;
use crate::shim::PROTOCOL_PVH;

/// Everything below 3 GiB, where the boot data lie.
const LOW_MEMORY_BYTES: usize = 3 << 30;
/// Longest command line that is read, in bytes.
const CMDLINE_BYTES_MAX: usize = 4096;
/// Most entries of the memory map that are read.
const MAP_ENTRIES_MAX: usize = 128;
/// Type of a memory map entry that is RAM, in e820 and in PVH alike.
const MAP_RAM: u32 = 1;

/// `boot_params` (Linux Documentation/arch/x86/zero-page.rst).
mod zero_page {
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const E820_TABLE: usize = 0x2d0;
    /// Packed: address u64, size u64, type u32.
    pub const E820_ENTRY_BYTES: usize = 20;
}

/// `hvm_start_info` (Xen public header arch-x86/hvm/start_info.h).
mod start_info {
    pub const MAGIC: usize = 0x00;
    pub const MAGIC_VALUE: u32 = 0x336e_c578;
    pub const VERSION: usize = 0x04;
    pub const CMDLINE_PADDR: usize = 0x18;
    /// From version 1 on.
    pub const MEMMAP_PADDR: usize = 0x28;
    pub const MEMMAP_ENTRIES: usize = 0x30;
    /// Address u64, size u64, type u32, reserved u32.
    pub const MEMMAP_ENTRY_BYTES: usize = 24;
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// The kernel command line; empty if there is none.
    pub cmdline: &'static str,
    /// End of the RAM that the image lies in.
    pub ram_end: usize,
}

/// Reads the structure at `info`, which the loader passed for `protocol`.
pub fn read(info: u64, protocol: u32) -> BootInfo {
    // SAFETY: identity-mapped; boot data and RAM outside the image are no Rust objects; the heap comes later and takes
    // only RAM after the image.
    let low = unsafe { Window::new(0, LOW_MEMORY_BYTES) };
    let info = to_usize(info);
    let (cmdline, map) = if protocol == PROTOCOL_PVH {
        read_start_info(low, info)
    } else {
        read_zero_page(low, info)
    };
    BootInfo {
        cmdline: cmdline_at(low, cmdline),
        ram_end: map.ram_end(low),
    }
}

/// Where a memory map lies.
struct Map {
    address: usize,
    entries: usize,
    entry_bytes: usize,
}

impl Map {
    /// End of the RAM region that holds the image's end; without one, the image's end: no heap, and a clear message
    /// when it is asked for.
    fn ram_end(&self, low: Window) -> usize {
        let image_end = crate::heap::image_end();
        (0..self.entries.min(MAP_ENTRIES_MAX))
            .filter_map(|index| {
                let entry = low.bytes(self.address + index * self.entry_bytes, self.entry_bytes)?;
                let start = u64::from_le_bytes(entry.get(0..8)?.try_into().ok()?);
                let size = u64::from_le_bytes(entry.get(8..16)?.try_into().ok()?);
                let kind = u32::from_le_bytes(entry.get(16..20)?.try_into().ok()?);
                let end = to_usize(start.checked_add(size)?);
                (kind == MAP_RAM && to_usize(start) < image_end && image_end <= end).then_some(end)
            })
            .next()
            .unwrap_or(image_end)
            .min(LOW_MEMORY_BYTES)
    }
}

fn read_zero_page(low: Window, zero_page: usize) -> (usize, Map) {
    let map = Map {
        address: zero_page + zero_page::E820_TABLE,
        entries: usize::from(low.read::<u8>(zero_page + zero_page::E820_ENTRIES)),
        entry_bytes: zero_page::E820_ENTRY_BYTES,
    };
    (
        to_usize(low.read::<u32>(zero_page + zero_page::CMD_LINE_PTR).into()),
        map,
    )
}

fn read_start_info(low: Window, info: usize) -> (usize, Map) {
    let mut map = Map {
        address: 0,
        entries: 0,
        entry_bytes: start_info::MEMMAP_ENTRY_BYTES,
    };
    if low.read::<u32>(info + start_info::MAGIC) != start_info::MAGIC_VALUE {
        return (0, map);
    }
    if low.read::<u32>(info + start_info::VERSION) >= 1 {
        map.address = to_usize(low.read::<u64>(info + start_info::MEMMAP_PADDR));
        map.entries = to_usize(low.read::<u32>(info + start_info::MEMMAP_ENTRIES).into());
    }
    (
        to_usize(low.read::<u64>(info + start_info::CMDLINE_PADDR)),
        map,
    )
}

fn cmdline_at(low: Window, address: usize) -> &'static str {
    if address == 0 {
        return "";
    }
    let bytes = low.bytes(address, CMDLINE_BYTES_MAX).unwrap_or_default();
    let len = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    let bytes = &bytes[..len];
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(broken) => core::str::from_utf8(&bytes[..broken.valid_up_to()]).unwrap_or_default(),
    }
}

/// A guest-physical address or size as a number of this 64-bit machine.
pub fn to_usize(number: u64) -> usize {
    const { assert!(size_of::<usize>() == size_of::<u64>()) };
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let number = number as usize;
    number
}
