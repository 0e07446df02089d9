//! The jobs of the binary, each from flags to exit status.

use std::convert::Infallible;
use std::ffi::CStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lightv_api::exit;
use lightv_devices::mmds::Mmds;

use crate::args::{Origin, RunJob};
use crate::boot::Site;
use crate::builder::{Builder, PrepareError};
use crate::confinement::{ConfinementError, Written};
use crate::control::{ControlError, Ending, SaveMoment, describe_stop};
use crate::control_thread::{Assignment, ControlThread};
use crate::describe::AddWorkingSetError;
use crate::device_set::HostSide;
use crate::event::StopReason;
use crate::foreground::{self, Leash, Split};
use crate::image::header::FORMAT_VERSION;
use crate::jail::Inhabitant;
use crate::jail_plan::JailPlan;
use crate::machine::StartError;
use crate::memory::GuestRam;
use crate::memory_watch::MemoryLost;
use crate::metadata::{MetadataError, MetadataFile};
use crate::sandbox::{self, ConfineError, SandboxError, violation};
use crate::stamps::{Stamps, TimingsSink};
use crate::sys::cpu;
use crate::sys::file::StandardStream;
use crate::sys::process;
use crate::sys::signal;
use crate::terminal;
use crate::vm::KVM_PATH;
use crate::{
    at_end, describe, feed, host_check, inspect, jail, metrics, outputs, report, runtime_dir, seat,
};

/// Ends the process at once. vCPU threads are ended in the guest; the kernel takes down VM, mappings, taps.
pub fn end_process(status: u8) -> ! {
    at_end::run();
    seat::tell_end(status);
    process::exit_now(status)
}

/// Name of a process that is a VM, as `ps` and `/proc/PID/comm` have it.
const PROCESS_NAME: &CStr = c"lightv-vmm";

/// Why a run failed before or in the loop.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each variant is the failure of the step that its source names"
)]
pub enum RunError {
    #[error("Cannot set up signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error("The process cannot limit itself")]
    Sandbox(#[source] SandboxError),
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error("Cannot start the control thread")]
    ControlThread(#[source] io::Error),
    #[error(transparent)]
    Start(StartError),
    #[error("The machine has no vCPU")]
    NoVcpu,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Control(ControlError),
    #[error(transparent)]
    WorkingSet(AddWorkingSetError),
}

impl RunError {
    /// The exit status of a process that ends by it.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Prepare(cause) => cause.exit_status(),
            Self::WorkingSet(_) => exit::SAVE_FAILED,
            Self::Metadata(_) | Self::Confinement(_) => exit::BAD_CONFIG,
            Self::ControlThread(_) | Self::Start(_) | Self::Confine(_) => exit::HOST_FAILURE,
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
    /// Steps that were done before.
    marks: Vec<(&'static str, u64)>,
    watched: Watched,
    control: Result<ControlThread, RunError>,
}

impl Begun {
    /// When the process began, in nanoseconds of CLOCK_MONOTONIC, and the thread that waits for a machine.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn into_control(self) -> Result<(u64, ControlThread), RunError> {
        let main_ns = self.main_ns;
        self.control.map(|control| (main_ns, control))
    }
}

/// Begins a run: the first thing that a process does which is to be a VM. What fails here is said by [`Begun::run`].
#[must_use]
pub fn begin() -> Begun {
    begin_in_jail(process::monotonic_ns(), Vec::new())
}

/// The same in a jail, which the process outside has begun with at `main_ns` (CLOCK_MONOTONIC).
#[must_use]
pub fn begin_in_jail(main_ns: u64, marks: Vec<(&'static str, u64)>) -> Begun {
    process::use_one_heap();
    let watched = Arc::new(OnceLock::new());
    let control = signal::prepare()
        .map_err(RunError::Signals)
        .and_then(|()| sandbox::prepare().map_err(RunError::Sandbox))
        .and_then(|()| start_control(Arc::clone(&watched)));
    Begun {
        main_ns,
        marks,
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
            marks,
            watched,
            control,
        } = self;
        let built = |control: ControlThread| {
            let stamps = stamps_of(&job, main_ns);
            stamps.marks_at("main", &marks);
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

/// Stamps of the start that `job` describes.
#[must_use]
pub fn stamps_of(job: &RunJob, main_ns: u64) -> Arc<Stamps> {
    let way = if matches!(job.origin, Origin::Restore(_)) {
        "restore"
    } else {
        "boot"
    };
    let timings = job.timings.clone();
    let stamps = Stamps::new(way, main_ns, job.started_at_ns, timings);
    let stamps = match job.is_profile {
        true => stamps.for_profile(),
        false => stamps,
    };
    stamps.mark("flags read");
    Arc::new(stamps)
}

fn build_and_run(
    job: RunJob,
    leash: Option<Leash>,
    stamps: &Arc<Stamps>,
    watched: &Watched,
    control: &ControlThread,
) -> Result<Infallible, RunError> {
    job.confinement.choose(None)?;
    let at_ready = job
        .save
        .as_ref()
        .is_some_and(|plan| plan.moment == SaveMoment::Ready);
    runtime_dir::announce(&job.id, Some(job.origin.path()), None);
    job.outputs.open(&job.id).map_err(PrepareError::Outputs)?;
    let mmds = Mmds::default();
    if let Some(metadata) = &job.metadata {
        mmds.put(metadata.read()?);
    }
    let builder = Builder {
        site: Site {
            control,
            stamps: Arc::clone(stamps),
            host: HostSide {
                is_tty: leash.is_some(),
                is_input_held: at_ready,
            },
            held: None,
            serial: None,
            mmds,
        },
        id: &job.id,
        save_as: job.save.as_ref().map(|plan| plan.path.as_path()),
        is_verbose: job.is_verbose,
    };
    let machine = builder.build(&job.origin, job.overrides)?;
    if let (Some(MetadataFile { path, .. }), None) = (job.metadata, machine.config.mmds()) {
        return Err(MetadataError::Unreachable { path }.into());
    }
    let recorded = job.origin.restored().filter(|_| job.record_working_set);
    if let Some(path) = recorded {
        let _ = watched.set((path.to_owned(), machine.ram.clone()));
    }
    if metrics::time_to_flush().is_some() || stamps.is_profile() {
        outputs::attach(&machine);
    }
    machine.bus.set_park_at_ready(at_ready);
    if let Some(marks) = control.wait_confined()? {
        stamps.marks_at("control", &marks);
    }
    let written = Written {
        images: [recorded, job.save.as_ref().map(|plan| plan.path.as_path())],
        timings: job.timings.as_ref().and_then(TimingsSink::path),
    };
    let rules = job.confinement.rules(&machine.config, &written);
    let (running, first) = machine.start(false).map_err(RunError::Start)?;
    control.assign(Assignment {
        running,
        rules,
        plan: job.save,
        leash,
        seat: None,
    });
    // A proved configuration has at least one vCPU.
    let first = first.ok_or(RunError::NoVcpu)?;
    first.confine()?;
    stamps.mark("confined");
    first.run()
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
        let ended = ended.map_err(RunError::Control).and_then(|ending| {
            let recorded = recorded().map_err(RunError::WorkingSet);
            recorded.map(|()| ending)
        });
        let status = match ended {
            Ok(ending) => {
                let status = exit_status(&ending);
                feed::note_end(status, || reason_of(&ending));
                status
            }
            Err(error) => {
                report::warn(&error);
                feed::note_end(error.exit_status(), || report::text_of(&error));
                error.exit_status()
            }
        };
        end_process(status)
    };
    ControlThread::start(PathBuf::from(KVM_PATH), finish).map_err(RunError::ControlThread)
}

/// In words. What a guest that could not go on had in its registers is on standard error alone.
fn reason_of(ending: &Ending) -> String {
    let stopped = |reason: &StopReason| match reason {
        StopReason::TripleFault { .. } => "the guest ended: triple fault".to_owned(),
        StopReason::KvmError { .. } => "the guest ended: KVM cannot go on".to_owned(),
        other => format!("the guest ended: {}", describe_stop(other)),
    };
    match ending {
        Ending::Saved => "it was saved".to_owned(),
        Ending::Stopped(reason) => stopped(reason),
        Ending::OutputLost(reason) => format!("{}; some of its output is lost", stopped(reason)),
        Ending::Signal(number) => format!("ended by signal {number}"),
        Ending::Forbidden => violation::last().unwrap_or_default(),
        Ending::MemoryLost => report::text_of(&MemoryLost),
        Ending::SaveFailed(failure) => report::text_of(failure),
    }
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
        // Standard error has it already.
        Ending::Forbidden => {
            tracing::error!("{}", violation::last().unwrap_or_default());
            exit::FORBIDDEN_CALL
        }
        Ending::MemoryLost => {
            report::warn(&MemoryLost);
            exit::MEMORY_LOST
        }
        Ending::SaveFailed(failure) => match failure.interrupted_by() {
            Some(signal) => exit::by_signal(signal),
            None => {
                report::warn(failure);
                exit::SAVE_FAILED
            }
        },
    }
}

fn stop_status(reason: &StopReason) -> u8 {
    let say = || report::say(&format!("the guest ended: {}", describe_stop(reason)));
    tracing::info!("the guest ended: {}", describe_stop(reason));
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
        report::say("--tty: standard input and output are not a terminal; leave --tty out");
        return exit::BAD_ARGUMENTS;
    }
    if let Err(error) = job.confinement.choose(None) {
        report::warn(&error);
        return exit::BAD_CONFIG;
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

/// Runs a machine in the jail of `plan`, and returns its exit status. To be called before there is a second thread.
#[must_use]
pub fn run_in_jail(plan: &JailPlan, job: RunJob) -> u8 {
    match jail::enter_or_end(plan, Inhabitant::run(&job)) {
        Ok(inside) => {
            name_process();
            begin_in_jail(inside.began_ns, inside.marks).run(job, None)
        }
        Err(status) => status,
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

/// Prints the version of the snapshot format that this build writes and reads, in Firecracker's form.
#[must_use]
pub fn snapshot_version() -> u8 {
    print_text(&format!("v{FORMAT_VERSION}.0.0\n"))
}

/// Prints the version of the snapshot format that a file has.
#[must_use]
pub fn describe_snapshot(path: &Path) -> u8 {
    match describe::describe(path) {
        Ok(description) => print_text(&format!("v{}.0.0\n", description.format_version)),
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
    print_text(&text)
}

fn print_text(text: &str) -> u8 {
    match StandardStream::Stdout.write_all(text.as_bytes()) {
        Ok(()) => exit::OK,
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => exit::OK,
        Err(_) => exit::FAILURE,
    }
}
