//! Kernel and initial RAM disk: read from the host, checked, put into guest RAM.

use std::fs::OpenOptions;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lightv_devices::memory::GuestMem;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::arch::host::layout;
use crate::arch::host::linux_kernel::is_linux;
use crate::arch::host::start_state::Entry;
use crate::config::BootProtocol;
use crate::image::disk::ImageDisk;
use crate::sys::mapping::PAGE_BYTES;

/// What is booted, as it was read; kept when the machine is to be saved.
#[derive(Debug, Clone, Default)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: Option<Vec<u8>>,
    /// The initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// Disks of the image that is booted.
    pub disks: Vec<ImageDisk>,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFileError {
    /// Opening or reading failed.
    #[error("Cannot read {what} {}", path.display())]
    Io {
        /// `kernel`, `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A directory, FIFO, socket or device.
    #[error("Cannot use {} as {what}: it is not a regular file", path.display())]
    NotAFile {
        /// `kernel`, `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// Nothing in it, or too much.
    #[error("Cannot use {} as {what}: it has {bytes} bytes; 1–{bytes_max} are allowed", path.display())]
    Length {
        /// `kernel`, `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The most that is read.
        bytes_max: u64,
    },
}

/// Reads a whole regular file. A FIFO does not hang it, and a file that shrinks or grows meanwhile does no harm.
///
/// # Errors
/// [`ReadFileError`].
pub fn read_file(
    what: &'static str,
    path: &Path,
    bytes_max: u64,
) -> Result<Vec<u8>, ReadFileError> {
    let failed = |cause| ReadFileError::Io {
        what,
        path: path.into(),
        cause,
    };
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(ReadFileError::NotAFile {
            what,
            path: path.into(),
        });
    }
    let length = |bytes| ReadFileError::Length {
        what,
        path: path.into(),
        bytes,
        bytes_max,
    };
    if metadata.size() == 0 || metadata.size() > bytes_max {
        return Err(length(metadata.size()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.size()).unwrap_or(0));
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.is_empty() || bytes.len() as u64 > bytes_max {
        return Err(length(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadKernelError {
    /// Not a format that is known.
    #[error("Cannot boot kernel {}: it is {found}; an uncompressed ELF64 (vmlinux) for x86_64 or a bzImage is needed", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Known by its first bytes, broken after them.
    #[error("Cannot boot kernel {}: it is damaged, cut off, or does not fit into {ram_mib} MiB of RAM: {reason}", path.display())]
    Load {
        /// Which file.
        path: PathBuf,
        /// RAM of the guest.
        ram_mib: u64,
        /// What the loader says.
        reason: String,
    },
    /// The entry that was asked for is not there.
    #[error("Cannot boot kernel {}: it has no {protocol} entry; use boot_protocol `auto`", path.display())]
    NoEntry {
        /// Which file.
        path: PathBuf,
        /// Which entry.
        protocol: &'static str,
    },
    /// The initial RAM disk has no room.
    #[error(
        "The initrd of {initrd_bytes} bytes does not fit into {ram_mib} MiB of RAM beside the kernel, which ends at {kernel_end:#x}; give more memory (machine-config.mem_size_mib) or a smaller initrd"
    )]
    InitrdTooLarge {
        /// Length of the initial RAM disk.
        initrd_bytes: u64,
        /// RAM of the guest.
        ram_mib: u64,
        /// Where the kernel ends.
        kernel_end: u64,
    },
}

/// A kernel in RAM.
#[derive(Debug, Clone, Copy)]
pub struct LoadedKernel {
    /// Where and how it is entered.
    pub entry: Entry,
    /// First byte after it.
    pub end: u64,
    /// The setup header of a bzImage.
    pub setup_header: Option<setup_header>,
}

enum Format {
    Elf,
    BzImage,
}

/// Offset and bytes of the magic number of a bzImage, and of its flags (Documentation/arch/x86/boot.rst).
const HDRS_AT: usize = 0x202;
const XLOADFLAGS_AT: usize = 0x236;
const XLF_KERNEL_64: u8 = 1;
/// The 64-bit entry of a bzImage lies this far into its protected-mode part.
const ENTRY_64_OFFSET: u64 = 0x200;
/// ELF: class, data and machine of x86_64 (System V ABI).
const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE_AT: usize = 18;
const ELF_MACHINE_X86_64: u8 = 62;

fn format_of(bytes: &[u8]) -> Result<Format, &'static str> {
    if bytes.starts_with(b"\x7fELF") {
        return match (bytes.get(4), bytes.get(ELF_MACHINE_AT)) {
            (Some(&ELF_CLASS_64), Some(&ELF_MACHINE_X86_64)) => Ok(Format::Elf),
            (Some(&ELF_CLASS_64), Some(_)) => Err("an ELF64 for another architecture"),
            (Some(_), Some(_)) => Err("a 32-bit ELF"),
            _ => Err("the beginning of an ELF, cut off"),
        };
    }
    if bytes.get(HDRS_AT..HDRS_AT + 4) == Some(b"HdrS".as_slice()) {
        let is_64 = bytes
            .get(XLOADFLAGS_AT)
            .is_some_and(|flags| flags & XLF_KERNEL_64 != 0);
        return if is_64 {
            Ok(Format::BzImage)
        } else {
            Err("a bzImage without a 64-bit entry")
        };
    }
    Err(match bytes {
        [0x1f, 0x8b, ..] => "a gzip file (unpack it with gunzip)",
        [0xfd, b'7', b'z', ..] => "an xz file (unpack it with unxz)",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file (unpack it with unzstd)",
        [b'#', b'!', ..] => "a script",
        _ => "of no format that is known here",
    })
}

/// Puts the kernel `bytes` into RAM. `path` is for messages.
///
/// # Errors
/// [`LoadKernelError`].
pub fn load(
    mem: &GuestMem,
    bytes: &[u8],
    path: &Path,
    protocol: BootProtocol,
) -> Result<LoadedKernel, LoadKernelError> {
    let format = format_of(bytes).map_err(|found| LoadKernelError::Format {
        path: path.into(),
        found,
    })?;
    let damaged = |reason: String| LoadKernelError::Load {
        path: path.into(),
        ram_mib: ram_mib(mem),
        reason,
    };
    let no_entry = |protocol| LoadKernelError::NoEntry {
        path: path.into(),
        protocol,
    };
    let start = Some(GuestAddress(layout::HIGH_MEMORY_START));
    let mut image = Cursor::new(bytes);
    let loaded = match format {
        Format::Elf => Elf::load(mem, None, &mut image, start),
        Format::BzImage => BzImage::load(mem, None, &mut image, start),
    };
    let loaded = loaded.map_err(|cause| damaged(cause.to_string()))?;
    let entry = match (format, loaded.pvh_boot_cap, protocol) {
        (Format::BzImage, _, BootProtocol::Pvh) => return Err(no_entry("PVH")),
        (Format::BzImage, ..) => {
            let entry = loaded.kernel_load.checked_add(ENTRY_64_OFFSET);
            Entry::Linux64(entry.ok_or_else(|| damaged("its load address is beyond 2^64".into()))?)
        }
        (Format::Elf, PvhBootCapability::PvhEntryPresent(entry), BootProtocol::Pvh) => {
            Entry::Pvh(entry)
        }
        // A Linux has both entries, and is told more by its own: see `rng_seed`.
        (Format::Elf, PvhBootCapability::PvhEntryPresent(entry), BootProtocol::Auto)
            if !is_linux(bytes) =>
        {
            Entry::Pvh(entry)
        }
        (Format::Elf, _, BootProtocol::Pvh) => return Err(no_entry("PVH")),
        (Format::Elf, ..) => Entry::Linux64(loaded.kernel_load),
    };
    let (Entry::Linux64(address) | Entry::Pvh(address)) = entry;
    if !mem.address_in_range(address) {
        return Err(damaged(format!(
            "its entry {:#x} lies outside RAM",
            address.raw_value()
        )));
    }
    Ok(LoadedKernel {
        entry,
        end: loaded.kernel_end,
        setup_header: loaded.setup_header,
    })
}

/// Puts the initial RAM disk at the top of low RAM, on a page, above the kernel.
///
/// # Errors
/// [`LoadKernelError::InitrdTooLarge`].
pub fn load_initrd(
    mem: &GuestMem,
    bytes: &[u8],
    kernel_end: u64,
    ram_bytes: u64,
) -> Result<(u64, u64), LoadKernelError> {
    let (low_end, _) = layout::ram_ranges(ram_bytes);
    let length = bytes.len() as u64;
    let too_large = || LoadKernelError::InitrdTooLarge {
        initrd_bytes: length,
        ram_mib: ram_mib(mem),
        kernel_end,
    };
    let address = low_end
        .checked_sub(length)
        .map(|start| start & !(PAGE_BYTES as u64 - 1));
    let address = address
        .filter(|start| *start >= kernel_end.max(layout::HIGH_MEMORY_START))
        .ok_or_else(too_large)?;
    mem.write_slice(bytes, GuestAddress(address))
        .map_err(|_| too_large())?;
    Ok((address, length))
}

fn ram_mib(mem: &GuestMem) -> u64 {
    use vm_memory::GuestMemoryRegion;
    mem.iter().map(GuestMemoryRegion::len).sum::<u64>() >> 20
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
