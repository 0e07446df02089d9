//! Restoring a snapshot. The same steps as `boot`, with the state of the image in place of a kernel's entry.

use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd};

use crate::arch::host::cpuid::CpuidOrigin;
use crate::arch::host::layout;
use crate::boot::{BuildError, Site, make_bus, make_control_page, seal, serial_writer, take_vm};
use crate::config::MachineConfig;
use crate::config::tuning::Prefetch;
use crate::device_set::{Around, DeviceSet, make_ports};
use crate::event::event_channel;
use crate::kernel::BootFiles;
use crate::machine::Machine;
use crate::memory::GuestRam;
use crate::output::GuestOutput;
use crate::snapshot::memory_file::MemoryLayer;
use crate::snapshot::saved::SavedMachine;
use crate::snapshot::{irqchip_state, served, vcpu_state};
use crate::stamps::Step;
use crate::sys::cpu;
use crate::sys::mapping::Pages;
use crate::tell_run::{GuestClock, run_facts, tell_run};

/// Where guest memory comes from.
#[derive(Debug, Clone, Copy)]
pub enum MemorySource<'a> {
    /// Files, laid over each other.
    Layers(&'a [MemoryLayer]),
    /// The process behind this socket, page by page.
    Served(&'a Path),
}

/// Builds the machine that `saved` describes, with `config` (its configuration, changed as this run wants it) and the
/// `memory` that it consists of. The caller starts it.
///
/// # Errors
/// [`BuildError`].
pub fn restore(
    config: MachineConfig,
    saved: &SavedMachine,
    memory: MemorySource<'_>,
    site: Site<'_>,
) -> Result<Machine, BuildError> {
    let is_tty = site.host.is_tty;
    let machine = prepare(config, saved, memory, site)?;
    let on_failure = machine.ram.discard_unless_kept();
    let clock = GuestClock::of(machine.vcpus.first());
    let facts = run_facts(&machine.config, machine.restores, clock, is_tty);
    tell_run(&machine, facts).map_err(BuildError::Tell)?;
    machine.stamps.step(Step::Resources);
    on_failure.keep();
    Ok(machine)
}

/// Builds the machine as far as it is the same for all runs: nothing of it is a secret, and its guest is told nothing yet
/// ([`tell_run`]).
///
/// # Errors
/// [`BuildError`].
pub fn prepare(
    config: MachineConfig,
    saved: &SavedMachine,
    memory: MemorySource<'_>,
    site: Site<'_>,
) -> Result<Machine, BuildError> {
    let (control, stamps) = (site.control, Arc::clone(&site.stamps));
    // What needs no VM comes first: meanwhile the control thread makes it.
    let ram = map_ram(&config, saved, memory)?;
    let on_failure = ram.discard_unless_kept();
    let control_page = make_control_page(&config)?;
    stamps.mark("memory mapped");
    let (kvm, mut new_vm) = take_vm(control, &stamps)?;
    new_vm.add_ram(&ram).map_err(BuildError::Vm)?;
    new_vm
        .add_control_page(control_page.mapping())
        .map_err(BuildError::Vm)?;
    stamps.mark("memory slots");
    let vm = seal(new_vm, &config)?;
    stamps.step(Step::Sandbox);
    let vcpus = vm.create_vcpus(config.vcpus()).map_err(BuildError::Vm)?;
    // Not before: a new memory slot waits for a thread of the kernel, which would wait for a CPU.
    control.confine();
    stamps.mark("vcpus created");
    let (sender, receiver) = event_channel().map_err(BuildError::Events)?;
    irqchip_state::apply(vm.fd(), &saved.vm).map_err(BuildError::VmState)?;
    apply_vcpus(&kvm, &config, &vcpus, saved)?;
    stamps.mark("vcpu state");
    let output = GuestOutput::stdout();
    let around = Around {
        vm: &vm,
        ram: &ram,
        events: &sender,
        disks: &saved.disks,
        overlays: Some(&saved.overlays),
        host: site.host,
        held: site.held.as_ref(),
        mmds: &site.mmds,
        output: &output,
        control_page: &control_page,
    };
    let devices = DeviceSet::restore(&config, saved, &around).map_err(BuildError::Devices)?;
    let writer = serial_writer(site.serial, &output, &config);
    let ports = make_ports(&vm, Some(&saved.serial), writer).map_err(BuildError::Devices)?;
    stamps.mark("devices");
    let restores = saved.manifest.restores.saturating_add(1);
    let bus = make_bus(&devices, ports, output, &ram, &stamps);
    let watches_generation = watches_generation(&config, saved);
    on_failure.keep();
    Ok(Machine {
        config,
        kvm,
        vm,
        ram,
        control_page,
        devices,
        mmds: site.mmds,
        bus,
        vcpus,
        sender,
        receiver,
        page_log: None,
        restores,
        watches_generation,
        boot_files: BootFiles::default(),
        stamps,
    })
}

/// Views of the files over zeroed RAM, and the pages that the guest is known to write, made in one go. Before the
/// memory slots: KVM then hears nothing of it.
fn map_ram(
    config: &MachineConfig,
    saved: &SavedMachine,
    memory: MemorySource<'_>,
) -> Result<GuestRam, BuildError> {
    let tuning = config.tuning();
    let pages = match memory {
        MemorySource::Layers(_) => tuning.pages,
        // Faults are served by pages of 4 KiB.
        MemorySource::Served(_) => Pages::Small,
    };
    let ram_bytes = saved.manifest.ram_bytes;
    let mut ram = GuestRam::allocate_of(ram_bytes, pages).map_err(BuildError::Ram)?;
    match memory {
        MemorySource::Layers(layers) => {
            for layer in layers {
                let laid = ram.lay(&layer.file, &layer.runs);
                laid.map_err(BuildError::Ram)?;
                if tuning.prefetch == Prefetch::WithFiles {
                    ram.read_ahead(&layer.runs);
                }
            }
        }
        MemorySource::Served(socket) => {
            served::hand_over(&mut ram, socket).map_err(BuildError::Served)?;
        }
    }
    let known = match tuning.prefetch {
        Prefetch::None => &[][..],
        Prefetch::WorkingSet | Prefetch::WithFiles => &saved.working_set.written,
    };
    for run in known {
        // A hint: without it the guest takes a fault a page.
        let _ = ram.populate_for_write(run.address, run.bytes);
    }
    ram.exclude_from_core_dumps();
    Ok(ram)
}

/// After the interrupt controllers: what they inject when they are set is overwritten by the local APICs' own state, which
/// has it already.
fn apply_vcpus(
    kvm: &Kvm,
    config: &MachineConfig,
    vcpus: &[VcpuFd],
    saved: &SavedMachine,
) -> Result<(), BuildError> {
    let origin = match config.cpu() {
        Some(_) => CpuidOrigin::Template,
        None => CpuidOrigin::Host,
    };
    for ((index, vcpu), state) in (0..).zip(vcpus).zip(&saved.vcpus) {
        vcpu_state::apply(kvm, vcpu, state, origin)
            .map_err(|cause| BuildError::Vcpu { index, cause })?;
    }
    Ok(())
}

/// Whether the guest is to be told of another generation by the event device: the first thing that it does is to take that
/// interrupt. A guest without a driver for that device does not look at the ID, and is spared the copy of a page.
///
/// Where the guest's kernel is emulated, its ACPI interpreter takes 30 ms for it, more than all the rest of a start. A
/// guest whose agent reseeds the kernel before its program goes on can do without.
fn watches_generation(config: &MachineConfig, saved: &SavedMachine) -> bool {
    let is_for_the_agent = config.has_agent() && !cpu::has_virtualization();
    !is_for_the_agent && irqchip_state::is_line_open(&saved.vm, layout::EVENT_GSI)
}
