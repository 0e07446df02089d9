//! The jobs of the binary, each from flags to exit status.

use std::convert::Infallible;
use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lightv_api::config::VmSpec;
use lightv_api::exit;

use crate::args::{Origin, RunJob};
use crate::boot::{BuildError, Site, boot};
use crate::config::{BootConfig, ConfigFaults, MachineConfig};
use crate::control::{ControlError, Ending, SaveFailure, SaveMoment, describe_stop};
use crate::control_thread::{Assignment, ControlThread};
use crate::describe::AddWorkingSetError;
use crate::device_set::HostSide;
use crate::event::StopReason;
use crate::foreground::{self, Leash, Split};
use crate::image::disk::take_disks;
use crate::image::read::{Image, OpenImageError};
use crate::image::write::WriteImageError;
use crate::kernel::{BootFiles, ReadFileError, read_file};
use crate::machine::{Machine, StartError};
use crate::memory::GuestRam;
use crate::overrides::Overrides;
use crate::restore::restore;
use crate::sandbox::{self, SandboxError};
use crate::save::{SaveError, ensure_target};
use crate::snapshot::saved::{SavedMachine, take_boot_files};
use crate::stamps::{Stamps, Step};
use crate::sys::cpu;
use crate::sys::file::StandardStream;
use crate::sys::process;
use crate::sys::signal;
use crate::terminal;
use crate::vm::KVM_PATH;
use crate::{describe, host_check, inspect, limits, report};

/// Ends the process at once. vCPU threads are ended in the guest; the kernel takes down VM, mappings, taps.
pub fn end_process(status: u8) -> ! {
    process::exit_now(status)
}

/// Name of a process that is a VM, as `ps` and `/proc/PID/comm` have it.
const PROCESS_NAME: &CStr = c"lightv-vmm";

/// Why a run failed before or in the loop.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("Cannot set up signals")]
    Signals(#[source] io::Error),
    #[error("Configuration {path} is refused: {cause}")]
    Json {
        path: String,
        cause: serde_json::Error,
    },
    #[error("Cannot read configuration {path}")]
    ReadConfig {
        path: String,
        #[source]
        cause: io::Error,
    },
    #[error("Configuration is refused: {0}")]
    Config(ConfigFaults),
    #[error(
        "Configuration is refused: boot-source is missing; allowed: an object with kernel_image_path"
    )]
    NoBootSource,
    #[error(
        "Configuration is refused: console is missing; a run with a terminal needs one: allowed: {{}}"
    )]
    NoConsole,
    #[error(transparent)]
    ReadFile(ReadFileError),
    #[error(transparent)]
    Image(OpenImageError),
    #[error(transparent)]
    Build(BuildError),
    #[error("The process cannot limit itself")]
    Sandbox(#[source] SandboxError),
    #[error("Cannot start the control thread")]
    ControlThread(#[source] io::Error),
    #[error(transparent)]
    Start(StartError),
    #[error("The machine has no vCPU")]
    NoVcpu,
    #[error(transparent)]
    Control(ControlError),
    #[error(transparent)]
    WorkingSet(AddWorkingSetError),
    #[error(transparent)]
    SaveTarget(WriteImageError),
}

impl RunError {
    const fn exit_status(&self) -> u8 {
        match self {
            Self::Json { .. }
            | Self::ReadConfig { .. }
            | Self::Config(_)
            | Self::NoBootSource
            | Self::NoConsole
            | Self::ReadFile(_)
            | Self::Image(_) => exit::BAD_CONFIG,
            Self::Build(cause) if cause.is_bad_config() => exit::BAD_CONFIG,
            Self::Build(_) => exit::HOST_FAILURE,
            Self::WorkingSet(_) | Self::SaveTarget(_) => exit::SAVE_FAILED,
            Self::ControlThread(_) | Self::Start(_) => exit::HOST_FAILURE,
            Self::Signals(_) | Self::Sandbox(_) | Self::NoVcpu | Self::Control(_) => exit::FAILURE,
        }
    }
}

/// Gives the process the name by which VMs are found, whatever program it was started as.
pub fn name_process() {
    process::set_name(PROCESS_NAME);
}

/// Family, model and stepping of this CPU, as CPUID gives them: snapshots are for the CPU that made them.
#[must_use]
pub fn cpu_signature() -> u32 {
    let [.., signature] = cpu::model();
    signature
}

/// A run that has begun: the process is limited and the control thread makes KVM's VM. Flags need not be read yet.
#[derive(Debug)]
pub struct Begun {
    main_ns: u64,
    watched: Watched,
    control: Result<ControlThread, RunError>,
}

/// Begins a run: the first thing that a process does which is to be a VM. What fails here is said by [`Begun::run`].
#[must_use]
pub fn begin() -> Begun {
    let main_ns = process::monotonic_ns();
    process::use_one_heap();
    let watched = Arc::new(OnceLock::new());
    let control = signal::prepare()
        .map_err(RunError::Signals)
        .and_then(|()| sandbox::enter().map_err(RunError::Sandbox))
        .and_then(|()| start_control(Arc::clone(&watched)));
    Begun {
        main_ns,
        watched,
        control,
    }
}

impl Begun {
    /// Runs a machine, with a terminal if there is a `leash`. Ends the process with the machine, or returns an exit status
    /// when there is none to run.
    #[must_use]
    pub fn run(self, job: RunJob, leash: Option<Leash>) -> u8 {
        let Self {
            main_ns,
            watched,
            control,
        } = self;
        let built = |control: ControlThread| {
            let stamps = stamps_of(&job, main_ns);
            build_and_run(job, leash, &stamps, &watched, &control)
        };
        match control.and_then(built) {
            Ok(never) => match never {},
            Err(error) => {
                report::warn(&error);
                error.exit_status()
            }
        }
    }
}

fn stamps_of(job: &RunJob, main_ns: u64) -> Arc<Stamps> {
    let way = if matches!(job.origin, Origin::Restore(_)) {
        "restore"
    } else {
        "boot"
    };
    let timings = job.timings.clone();
    let stamps = Arc::new(Stamps::new(way, main_ns, job.started_at_ns, timings));
    stamps.mark("flags read");
    stamps
}

fn build_and_run(
    job: RunJob,
    leash: Option<Leash>,
    stamps: &Arc<Stamps>,
    watched: &Watched,
    control: &ControlThread,
) -> Result<Infallible, RunError> {
    let at_ready = job
        .save
        .as_ref()
        .is_some_and(|plan| plan.moment == SaveMoment::Ready);
    let builder = Builder {
        site: Site {
            control,
            stamps: Arc::clone(stamps),
            host: HostSide {
                is_tty: leash.is_some(),
                is_input_held: at_ready,
            },
        },
        save_as: job.save.as_ref().map(|plan| plan.path.as_path()),
    };
    let machine = match &job.origin {
        Origin::Config(path) => builder.boot_config(path, job.overrides)?,
        Origin::Boot(path) => builder.boot_image(path, job.overrides)?,
        Origin::Restore(path) => builder.restore_image(path, job.overrides)?,
    };
    if let (Origin::Restore(path), true) = (job.origin, job.record_working_set) {
        let _ = watched.set((path, machine.ram.clone()));
    }
    machine.bus.set_park_at_ready(at_ready);
    let (running, first) = machine.start().map_err(RunError::Start)?;
    control.assign(Assignment {
        running,
        plan: job.save,
        leash,
    });
    // A proved configuration has at least one vCPU.
    first.map_or(Err(RunError::NoVcpu), |vcpu| vcpu.run())
}

/// The image and RAM of a run whose written pages are recorded.
type Watched = Arc<OnceLock<(PathBuf, GuestRam)>>;

fn start_control(watched: Watched) -> Result<ControlThread, RunError> {
    let finish = move |ended: Result<Ending, ControlError>| {
        let recorded = || {
            watched
                .get()
                .map_or(Ok(()), |(path, ram)| describe::add_working_set(path, ram))
        };
        let status = match ended.map_err(RunError::Control).and_then(|ending| {
            recorded()
                .map_err(RunError::WorkingSet)
                .map(|()| exit_status(&ending))
        }) {
            Ok(status) => status,
            Err(error) => {
                report::warn(&error);
                error.exit_status()
            }
        };
        end_process(status)
    };
    ControlThread::start(PathBuf::from(KVM_PATH), finish).map_err(RunError::ControlThread)
}

/// What all ways to a machine have in common.
struct Builder<'a> {
    site: Site<'a>,
    /// Where the machine is to be saved, with its kernel.
    save_as: Option<&'a Path>,
}

impl Builder<'_> {
    fn boot_config(&self, path: &Path, overrides: Overrides) -> Result<Machine, RunError> {
        let mut spec = read_config(path)?;
        overrides
            .apply(&mut spec, false)
            .map_err(RunError::Config)?;
        let config = self.prove(spec)?;
        let boot_config = config.boot().cloned().ok_or(RunError::NoBootSource)?;
        let kernel = read_file("kernel", &boot_config.kernel, limits::KERNEL_BYTES_MAX)
            .map_err(RunError::ReadFile)?;
        let initrd = boot_config
            .initrd
            .as_deref()
            .map(|initrd| read_file("initrd", initrd, limits::INITRD_BYTES_MAX));
        let initrd = initrd.transpose().map_err(RunError::ReadFile)?;
        let files = BootFiles {
            kernel: Some(kernel),
            initrd,
            disks: Vec::new(),
        };
        self.boot_loaded(config, &boot_config, files)
    }

    fn boot_image(&self, path: &Path, overrides: Overrides) -> Result<Machine, RunError> {
        let mut image = Image::open(path).map_err(RunError::Image)?;
        let mut spec = image.take_manifest().map_err(RunError::Image)?.config;
        let mut files = take_boot_files(&mut image).map_err(RunError::Image)?;
        files.disks = take_disks(&mut image, &spec).map_err(RunError::Image)?;
        overrides
            .apply(&mut spec, false)
            .map_err(RunError::Config)?;
        let config = self.prove(spec)?;
        let boot_config = config.boot().cloned().filter(|_| files.kernel.is_some());
        let missing = || {
            RunError::Image(image.missing("kernel", 0, "it can only be restored; leave --cold out"))
        };
        let boot_config = boot_config.ok_or_else(missing)?;
        self.boot_loaded(config, &boot_config, files)
    }

    /// Boots what has been read and proved.
    fn boot_loaded(
        &self,
        config: MachineConfig,
        boot_config: &BootConfig,
        files: BootFiles,
    ) -> Result<Machine, RunError> {
        self.site.stamps.step(Step::ImageLoad);
        let machine = boot(config, boot_config, files, self.site.clone());
        Ok(self.keep_or_drop_files(machine.map_err(RunError::Build)?))
    }

    fn restore_image(&self, path: &Path, overrides: Overrides) -> Result<Machine, RunError> {
        let mut image = Image::open(path).map_err(RunError::Image)?;
        self.site.stamps.mark("image proved");
        let saved = SavedMachine::decode(&mut image).map_err(RunError::Image)?;
        let mut spec = saved.manifest.config.clone();
        overrides.apply(&mut spec, true).map_err(RunError::Config)?;
        let config = self.prove(spec)?;
        if config.ram_bytes() != saved.manifest.ram_bytes {
            return Err(RunError::Image(
                image.contents_error("manifest[0]", "contradicts itself about RAM"),
            ));
        }
        let files = if self.save_as.is_some() {
            take_boot_files(&mut image).map_err(RunError::Image)?
        } else {
            BootFiles::default()
        };
        self.site.stamps.step(Step::ImageLoad);
        let mut machine =
            restore(config, &saved, &image, self.site.clone()).map_err(RunError::Build)?;
        machine.boot_files = files;
        Ok(machine)
    }

    /// The kernel file is needed no more once it is in RAM, except for an image.
    fn keep_or_drop_files(&self, mut machine: Machine) -> Machine {
        if self.save_as.is_none() {
            machine.boot_files = BootFiles::default();
        }
        machine
    }

    /// A save that cannot succeed is refused before the guest runs.
    fn prove(&self, spec: VmSpec) -> Result<MachineConfig, RunError> {
        let config =
            MachineConfig::prove(spec, process::host_memory_bytes()).map_err(RunError::Config)?;
        if self.site.host.is_tty && !config.console() {
            return Err(RunError::NoConsole);
        }
        if let Some(path) = self.save_as {
            ensure_target(&config, path).map_err(RunError::SaveTarget)?;
        }
        Ok(config)
    }
}

fn read_config(path: &Path) -> Result<VmSpec, RunError> {
    let name = path.display().to_string();
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let read = io::stdin()
            .lock()
            .take(limits::CONFIG_FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes);
        read.map_err(|cause| RunError::ReadConfig {
            path: name.clone(),
            cause,
        })?;
        if bytes.len() as u64 > limits::CONFIG_FILE_BYTES_MAX {
            let cause = io::Error::from_raw_os_error(libc::EFBIG);
            return Err(RunError::ReadConfig { path: name, cause });
        }
        bytes
    } else {
        read_file("configuration", path, limits::CONFIG_FILE_BYTES_MAX)
            .map_err(RunError::ReadFile)?
    };
    serde_json::from_slice(&bytes).map_err(|cause| RunError::Json { path: name, cause })
}

fn exit_status(ending: &Ending) -> u8 {
    match ending {
        Ending::Saved => exit::OK,
        Ending::Stopped(reason) => stop_status(reason),
        // What was lost has been said; a guest that is content does not know of it.
        Ending::OutputLost(reason) => match stop_status(reason) {
            exit::OK => exit::FAILURE,
            status => status,
        },
        Ending::Signal(number) => exit::by_signal(*number),
        Ending::SaveFailed(SaveFailure::Save(SaveError::Write(WriteImageError::Interrupted {
            signal,
            ..
        }))) => exit::by_signal(*signal),
        Ending::SaveFailed(failure) => {
            report::warn(failure);
            exit::SAVE_FAILED
        }
    }
}

fn stop_status(reason: &StopReason) -> u8 {
    let say = || report::say(&format!("the guest ended: {}", describe_stop(reason)));
    match reason {
        StopReason::Reset | StopReason::PowerOff => exit::OK,
        StopReason::GuestExit(status) => *status,
        StopReason::GuestPanic => {
            say();
            exit::GUEST_PANIC
        }
        StopReason::TripleFault { .. } => {
            say();
            exit::TRIPLE_FAULT
        }
        StopReason::KvmError { .. } => {
            say();
            exit::KVM_ERROR
        }
    }
}

/// Runs a machine that has the terminal, in a process of its own, and returns its exit status. To be called before there is
/// a second thread.
#[must_use]
pub fn run_with_terminal(job: RunJob) -> u8 {
    if !terminal::is_there() {
        report::say("--tty: standard input and output are not a terminal");
        return exit::BAD_ARGUMENTS;
    }
    match foreground::split() {
        Ok(Split::Monitor(leash)) => {
            name_process();
            begin().run(job, Some(leash))
        }
        Ok(Split::Ended(status)) => status,
        Err(error) => {
            report::warn(&error);
            exit::HOST_FAILURE
        }
    }
}

/// Prints what an image holds.
#[must_use]
pub fn describe(path: &Path) -> u8 {
    match describe::describe(path) {
        Ok(description) => print_json(&description),
        Err(error) => {
            report::warn(&error);
            exit::BAD_CONFIG
        }
    }
}

/// Prints what the host offers.
#[must_use]
pub fn check_host() -> u8 {
    print_json(&host_check::check(Path::new(KVM_PATH)))
}

/// Prints what a VM's process takes.
#[must_use]
pub fn inspect_pid(pid: u32) -> u8 {
    match inspect::inspect(pid) {
        Ok(description) => print_json(&description),
        Err(error) => {
            report::warn(&error);
            exit::FAILURE
        }
    }
}

fn print_json(value: &impl serde::Serialize) -> u8 {
    let Ok(mut text) = serde_json::to_string_pretty(value) else {
        return exit::FAILURE;
    };
    text.push('\n');
    match StandardStream::Stdout.write_all(text.as_bytes()) {
        Ok(()) => exit::OK,
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => exit::OK,
        Err(_) => exit::FAILURE,
    }
}
