//! Booting a kernel. Reads as a list of steps; `restore` has the same ones.

use std::io::Write;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd};
use lightv_devices::mmds::Mmds;
use vm_memory::Bytes;

use crate::arch::host::board::BoardFacts;
use crate::arch::host::boot_params::{self, BootFacts, BootParamsError};
use crate::arch::host::boot_tables::{self, WriteTablesError};
use crate::arch::host::cpu_template::{CpuTemplate, CpuTemplateError};
use crate::arch::host::msr::{self, MsrError};
use crate::arch::host::rng_seed::{self, WriteSeedError};
use crate::arch::host::start_state::{self, Entry, StartStateError};
use crate::arch::host::{cpuid, layout, linux_kernel, software_kvm};
use crate::bus::{Bus, PortDevices};
use crate::cmdline::{self, CmdlineTooLong};
use crate::config::{BootConfig, MachineConfig, RootBy};
use crate::control_page::{ControlPage, ControlPageFailure};
use crate::control_thread::{ControlThread, EmptyVm};
use crate::device_set::{Around, DeviceSet, DeviceSetError, HeldBackends, HostSide, make_ports};
use crate::event::event_channel;
use crate::kernel::{self, BootFiles, LoadKernelError};
use crate::machine::Machine;
use crate::memory::{GuestRam, RamError};
use crate::output::GuestOutput;
use crate::serial_out::SerialOut;
use crate::snapshot::served::ServeMemoryError;
use crate::stamps::{Stamps, Step};
use crate::sys::cpu;
use crate::tell_run::{GuestClock, TellRunError, run_facts};
use crate::vm::{NewVm, Vm, VmError};

/// Why a machine could not be built. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each variant is the failure of the step that its source names"
)]
pub enum BuildError {
    #[error(transparent)]
    Vm(VmError),
    #[error(transparent)]
    Ram(RamError),
    #[error(transparent)]
    Served(ServeMemoryError),
    #[error(transparent)]
    ControlPage(ControlPageFailure),
    #[error(transparent)]
    Devices(DeviceSetError),
    #[error("Cannot make an eventfd")]
    Events(#[source] std::io::Error),
    #[error(transparent)]
    Kernel(LoadKernelError),
    #[error(transparent)]
    Cmdline(CmdlineTooLong),
    #[error(transparent)]
    BootParams(BootParamsError),
    #[error(transparent)]
    BootTables(WriteTablesError),
    #[error(transparent)]
    Tell(TellRunError),
    #[error(transparent)]
    Seed(WriteSeedError),
    #[error(transparent)]
    StartState(StartStateError),
    #[error("KVM refused the CPUID of a vCPU")]
    Cpuid(#[source] kvm_ioctls::Error),
    #[error(transparent)]
    Msrs(MsrError),
    #[error(transparent)]
    CpuTemplate(CpuTemplateError),
    #[error("vCPU {index} cannot be restored")]
    Vcpu {
        index: u8,
        #[source]
        cause: crate::snapshot::vcpu_state::VcpuStateError,
    },
    #[error(transparent)]
    VmState(crate::snapshot::irqchip_state::VmStateError),
}

impl BuildError {
    /// Whether the cause is what the user wrote, or an image, and not the host.
    #[must_use]
    pub const fn is_bad_config(&self) -> bool {
        match self {
            Self::Devices(cause) => cause.is_bad_config(),
            Self::Kernel(_) | Self::Cmdline(_) | Self::Vcpu { .. } | Self::VmState(_) => true,
            Self::ControlPage(cause) => cause.is_bad_config(),
            Self::Tell(cause) => cause.is_bad_config(),
            Self::CpuTemplate(cause) => cause.is_bad_config(),
            _ => false,
        }
    }
}

/// What all ways to a machine are given beside its description.
#[derive(Debug, Clone)]
pub struct Site<'a> {
    /// The thread that makes KVM's VM.
    pub control: &'a ControlThread,
    /// Where steps are noted.
    pub stamps: Arc<Stamps>,
    /// What of this process the machine is connected to.
    pub host: HostSide,
    /// What devices are given that is open already.
    pub held: Option<HeldBackends>,
    /// Where the serial port goes, if not to a standard stream.
    pub serial: Option<SerialOut>,
    /// The metadata service.
    pub mmds: Mmds,
}

/// RAM that holds nothing.
fn make_ram(config: &MachineConfig) -> Result<GuestRam, BuildError> {
    let pages = config.tuning().pages;
    let ram = GuestRam::allocate_of(config.ram_bytes(), pages).map_err(BuildError::Ram)?;
    ram.exclude_from_core_dumps();
    Ok(ram)
}

/// Builds the machine of `config`, which says what is booted, around `files`. The caller starts it.
///
/// # Errors
/// [`BuildError`].
pub fn boot(
    config: MachineConfig,
    boot: &BootConfig,
    files: BootFiles,
    site: Site<'_>,
) -> Result<Machine, BuildError> {
    let Site {
        control,
        stamps,
        host,
        held,
        serial,
        mmds,
    } = site;
    // What needs no VM comes first: meanwhile the control thread makes it.
    let ram = make_ram(&config)?;
    let on_failure = ram.discard_unless_kept();
    let control_page = make_control_page(&config)?;
    stamps.mark("memory mapped");
    let (kvm, mut new_vm) = take_vm(control, &stamps)?;
    new_vm.add_ram(&ram).map_err(BuildError::Vm)?;
    new_vm
        .add_control_page(control_page.mapping())
        .map_err(BuildError::Vm)?;
    let vm = seal(new_vm, &config)?;
    stamps.step(Step::Sandbox);
    let vcpus = vm.create_vcpus(config.vcpus()).map_err(BuildError::Vm)?;
    stamps.mark("vcpus created");
    control.confine();
    let (sender, receiver) = event_channel().map_err(BuildError::Events)?;
    let output = GuestOutput::stdout();
    let around = Around {
        vm: &vm,
        ram: &ram,
        events: &sender,
        disks: &files.disks,
        overlays: None,
        host,
        held: held.as_ref(),
        mmds: &mmds,
        output: &output,
        control_page: &control_page,
    };
    let devices = DeviceSet::create(&config, &around).map_err(BuildError::Devices)?;
    stamps.mark("devices");
    write_boot_tables(&config, &ram, &devices)?;
    let entry = load(&config, boot, &files, &ram, &devices)?;
    stamps.mark("kernel loaded");
    set_boot_state(&kvm, &vcpus, entry, config.cpu())?;
    stamps.mark("vcpu state");
    let clock = GuestClock::of(vcpus.first());
    control_page
        .tell(run_facts(&config, 0, clock, host.is_tty))
        .map_err(BuildError::ControlPage)?;
    let ports = make_ports(&vm, None, serial_writer(serial, &output, &config))
        .map_err(BuildError::Devices)?;
    let bus = make_bus(&devices, ports, output, &ram, &stamps);
    stamps.step(Step::Resources);
    on_failure.keep();
    Ok(Machine {
        config,
        kvm,
        vm,
        ram,
        control_page,
        devices,
        mmds,
        bus,
        vcpus,
        sender,
        receiver,
        page_log: None,
        restores: 0,
        watches_generation: false,
        boot_files: files,
        stamps,
    })
}

/// KVM, and the empty VM that `control` has made; when it did is noted.
///
/// # Errors
/// [`BuildError::Vm`].
pub fn take_vm(control: &ControlThread, stamps: &Stamps) -> Result<(Kvm, NewVm), BuildError> {
    let EmptyVm { kvm, vm, marks } = control.take_vm().map_err(BuildError::Vm)?;
    stamps.marks_at(marks.thread.name().unwrap_or_default(), &marks.marks);
    stamps.mark("vm");
    Ok((kvm, vm))
}

/// The VM with its memory complete, as the configuration has it run.
///
/// # Errors
/// [`BuildError::Vm`].
pub fn seal(new_vm: NewVm, config: &MachineConfig) -> Result<Vm, BuildError> {
    let vm = new_vm.seal().map_err(BuildError::Vm)?;
    if let Some(us) = config.tuning().halt_poll_us {
        vm.limit_halt_poll(us).map_err(BuildError::Vm)?;
    }
    Ok(vm)
}

/// The memory that the guest reads of its devices.
///
/// # Errors
/// [`BuildError::ControlPage`].
pub fn make_control_page(config: &MachineConfig) -> Result<Arc<ControlPage>, BuildError> {
    let page = ControlPage::map(DeviceSet::register_pages(config));
    page.map(Arc::new).map_err(BuildError::ControlPage)
}

/// Where the serial port writes to.
#[must_use]
pub fn serial_writer(
    serial: Option<SerialOut>,
    output: &GuestOutput,
    config: &MachineConfig,
) -> Box<dyn Write + Send> {
    let standard = output.of_serial(config);
    match serial {
        Some(serial) => serial.writer(standard),
        None => Box::new(standard),
    }
}

/// The way from the vCPUs' accesses to `devices` and `ports`.
#[must_use]
pub fn make_bus(
    devices: &DeviceSet,
    ports: PortDevices,
    output: GuestOutput,
    ram: &GuestRam,
    stamps: &Arc<Stamps>,
) -> Arc<Bus> {
    let (mem, stamps) = (Arc::clone(ram.mem()), Arc::clone(stamps));
    Arc::new(Bus::new(devices.fronts(), ports, output, mem, stamps))
}

/// Puts the ACPI and MP tables into RAM (docs/boot-tables.md).
fn write_boot_tables(
    config: &MachineConfig,
    ram: &GuestRam,
    devices: &DeviceSet,
) -> Result<(), BuildError> {
    let facts = BoardFacts {
        vcpus: config.vcpus(),
        devices: devices.mmio_places(),
    };
    boot_tables::write(ram.mem(), &facts).map_err(BuildError::BootTables)
}

/// Puts kernel, initial RAM disk, command line and boot parameters into RAM.
fn load(
    config: &MachineConfig,
    boot: &BootConfig,
    files: &BootFiles,
    ram: &GuestRam,
    devices: &DeviceSet,
) -> Result<Entry, BuildError> {
    let mem = ram.mem();
    let kernel_bytes = files.kernel.as_deref().unwrap_or_default();
    let kernel =
        kernel::load(mem, kernel_bytes, &boot.kernel, boot.protocol).map_err(BuildError::Kernel)?;
    let initrd = files
        .initrd
        .as_deref()
        .map(|bytes| kernel::load_initrd(mem, bytes, kernel.end, config.ram_bytes()));
    let initrd = initrd.transpose().map_err(BuildError::Kernel)?;
    let mut additions = vec!["pci=off".to_owned()];
    additions.extend(
        config
            .drives()
            .first()
            .and_then(|drive| root_argument(drive.root.as_ref(), drive.read_only)),
    );
    if boot.software_kvm_options {
        additions.extend(software_kvm::options(kernel_bytes, &boot.args));
    }
    additions.push(format!("lightv.control={:#x}", layout::CONTROL_START));
    if !linux_kernel::finds_devices_by_acpi(kernel_bytes, &boot.args) {
        additions.extend(devices.cmdline());
    }
    let mut line = cmdline::assemble(&boot.args, &additions)
        .map_err(BuildError::Cmdline)?
        .into_bytes();
    let cmdline_bytes = u32::try_from(line.len()).unwrap_or(u32::MAX);
    line.push(0);
    let no_room = |_| {
        BuildError::StartState(StartStateError::Table {
            address: layout::CMDLINE.0,
        })
    };
    mem.write_slice(&line, layout::CMDLINE).map_err(no_room)?;
    let facts = BootFacts {
        ram_bytes: config.ram_bytes(),
        cmdline_bytes,
        initrd,
        setup_header: kernel.setup_header,
    };
    match kernel.entry {
        Entry::Linux64(_) => {
            rng_seed::write_fresh(mem).map_err(BuildError::Seed)?;
            boot_params::write_linux(mem, &facts)
        }
        Entry::Pvh(_) => boot_params::write_pvh(mem, &facts),
    }
    .map_err(BuildError::BootParams)?;
    start_state::write_tables(mem, kernel.entry).map_err(BuildError::StartState)?;
    Ok(kernel.entry)
}

fn root_argument(root: Option<&RootBy>, read_only: bool) -> Option<String> {
    let mode = if read_only { "ro" } else { "rw" };
    match root? {
        RootBy::Device => Some(format!("root=/dev/vda {mode}")),
        RootBy::PartUuid(uuid) => Some(format!("root=PARTUUID={uuid} {mode}")),
    }
}

/// CPUID before all else: KVM filters model-specific registers by it. Only the first vCPU gets the kernel's entry;
/// the others wait for it to start them.
fn set_boot_state(
    kvm: &Kvm,
    vcpus: &[VcpuFd],
    entry: Entry,
    template: Option<&CpuTemplate>,
) -> Result<(), BuildError> {
    let mut supported = cpuid::supported(kvm).map_err(BuildError::Cpuid)?;
    let changes = template.map(|template| template.changes(cpu::model()));
    let changes = changes.transpose().map_err(BuildError::CpuTemplate)?;
    if let Some(changes) = &changes {
        changes
            .ensure_capabilities(kvm)
            .map_err(BuildError::CpuTemplate)?;
        supported = changes
            .change_cpuid(&supported)
            .map_err(BuildError::CpuTemplate)?;
    }
    let count = u8::try_from(vcpus.len()).unwrap_or(u8::MAX);
    for (index, vcpu) in (0..).zip(vcpus) {
        let own = cpuid::for_vcpu(&supported, index, count);
        vcpu.set_cpuid2(&own).map_err(BuildError::Cpuid)?;
        msr::set_boot_values(vcpu).map_err(BuildError::Msrs)?;
        if let Some(changes) = &changes {
            changes
                .finish(vcpu, &own)
                .map_err(BuildError::CpuTemplate)?;
        }
        start_state::set_local_interrupts(vcpu).map_err(BuildError::StartState)?;
        if index == 0 {
            start_state::set_registers(vcpu, entry).map_err(BuildError::StartState)?;
        }
    }
    Ok(())
}
