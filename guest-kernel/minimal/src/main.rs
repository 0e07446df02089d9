//! `lightv-guest`: LightV's minimal guest. See README.md.

#![no_std]
#![no_main]

extern crate alloc;

mod apic;
mod apps;
mod balloon;
mod blk;
mod boot;
mod console;
mod control;
mod deep_disk;
mod frame_queue;
mod heap;
mod hex;
mod local;
mod machine;
mod mem;
mod mmio;
mod napping;
mod network;
mod nic;
mod offload;
mod patience;
mod port;
mod shim;
mod time;
mod trap;
mod virtio;
mod vsock;

use guest_text::cmdline::{self, Cmdline};

use machine::Machine;
use virtio::Devices;

/// Entered from the shim at CPL 3, once: `info` is the loader's structure for `protocol`.
#[unsafe(no_mangle)]
extern "C" fn guest_main(info: u64, protocol: u32) -> ! {
    shim::fill_idt();
    let boot = boot::read(info, protocol);
    let cmdline = Cmdline::new(boot.cmdline);
    if let Some(address) = cmdline.value("lightv.control").and_then(cmdline::number) {
        control::init(address);
    }
    if cmdline.value("console") == Some("serial") {
        console::force_serial();
    }
    heap::init(boot.ram_end);
    apic::init();
    let devices = Devices::find(cmdline);
    apps::run(&mut Machine {
        cmdline,
        ram_bytes: boot.ram_end,
        devices,
    })
}
