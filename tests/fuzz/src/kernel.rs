//! Kernels: ELF and bzImage, into RAM, with what they are told. The first byte says how they are to be entered.

use std::path::Path;
use std::sync::LazyLock;

use lightv_vmm::arch::host::boot_params::{BootFacts, write_linux, write_pvh};
use lightv_vmm::arch::host::linux_kernel::finds_devices_by_acpi;
use lightv_vmm::arch::host::start_state::Entry;
use lightv_vmm::config::BootProtocol;
use lightv_vmm::kernel;
use lightv_vmm::memory::GuestRam;
use vm_memory::GuestMemoryBackend;

const RAM_BYTES: u64 = 16 << 20;

/// One for all inputs: what an input finds there is what another has loaded, which no loader looks at.
static RAM: LazyLock<GuestRam> =
    LazyLock::new(|| GuestRam::allocate(RAM_BYTES).expect("the host has memory"));

/// The first byte says how the kernel is entered; the rest is its file.
pub fn run(input: &[u8]) {
    let Some((kind, file)) = input.split_first() else {
        return;
    };
    let protocol = match kind % 3 {
        0 => BootProtocol::Auto,
        1 => BootProtocol::Linux,
        _ => BootProtocol::Pvh,
    };
    let mem = RAM.mem();
    let loaded = match kernel::load(mem, file, Path::new("kernel"), protocol) {
        Ok(loaded) => loaded,
        Err(refused) => {
            assert!(!refused.to_string().is_empty());
            return;
        }
    };
    let (Entry::Linux64(address) | Entry::Pvh(address)) = loaded.entry;
    assert!(mem.address_in_range(address));
    let _ = finds_devices_by_acpi(file, "acpi=off");
    let initrd = kernel::load_initrd(mem, &file[..file.len().min(64)], loaded.end, RAM_BYTES);
    let initrd = initrd.ok();
    if let Some((address, bytes)) = initrd {
        assert!(address >= loaded.end && address + bytes <= RAM_BYTES);
    }
    let facts = BootFacts {
        ram_bytes: RAM_BYTES,
        cmdline_bytes: 0,
        initrd,
        setup_header: loaded.setup_header,
    };
    write_linux(mem, &facts).expect("it fits into low RAM");
    write_pvh(mem, &facts).expect("it fits into low RAM");
}
