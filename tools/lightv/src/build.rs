//! Building an image: boot, wait until the guest is ready, save. What fails leaves nothing behind.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use lightv_api::config::VmSpec;
use lightv_api::exit;
use lightv_vmm::publish::check_target;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;

use crate::embedded::GuestFile;
use crate::failure::Coded;
use crate::monitor::{self, MonitorError};
use crate::rootfs::{self, RootfsError, RootfsPlan};
use crate::watch::{Event, Watch};

/// A build that takes longer shows that it is at work.
const SPINNER_AFTER: Duration = Duration::from_secs(1);
const SPINNER_TICK: Duration = Duration::from_millis(100);

/// Which kernel is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The one that the configuration names.
    Configured,
    /// The minimal guest in `lightv`.
    Embedded,
}

/// What happens to a file that is in the image's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overwrite {
    Refuse,
    Replace,
}

/// When the guest is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SaveAt {
    /// When the guest rings the READY doorbell (docs/control-device.md).
    Doorbell,
    /// When SIGUSR1 comes.
    Signal,
}

/// Whether an image knows the pages that its guest writes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkingSet {
    Unknown,
    /// The image is run once, to the guest's own end: later starts have these pages ready.
    Recorded,
}

/// An image to build.
#[derive(Debug)]
pub(crate) struct BuildPlan {
    pub(crate) spec: VmSpec,
    pub(crate) kernel: Kernel,
    /// The root file system of a Linux guest, which is built first.
    pub(crate) rootfs: Option<RootfsPlan>,
    pub(crate) out: PathBuf,
    pub(crate) overwrite: Overwrite,
    pub(crate) save_at: SaveAt,
    pub(crate) timeout: Duration,
    pub(crate) working_set: WorkingSet,
}

/// An image that was built.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) metadata: fs::Metadata,
    pub(crate) took: Duration,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("{} exists already; --force overwrites it", path.display())]
    Exists { path: PathBuf },
    #[error("Cannot write {}: {what}", path.display())]
    Target { path: PathBuf, what: &'static str },
    #[error("Cannot write into {}", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("Cannot hold the embedded guest in memory")]
    Guest(#[source] io::Error),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("Cannot start or watch {}", program.display())]
    Watch {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "The guest did not become ready within {timeout_s} s. It must ring the READY doorbell \
         (docs/control-device.md); a guest that cannot is saved with --ready signal, a slow one \
         needs a longer --timeout"
    )]
    TimedOut { timeout_s: u64 },
    #[error("Stopped by signal {signal}; no image was written")]
    Stopped { signal: i32 },
    #[error("The guest ended before it was ready ({status}); no image was written")]
    Ended { status: ExitStatus },
    #[error("No image was written: lightv-vmm ended with {status}")]
    Failed { status: ExitStatus },
    #[error("Cannot move the image to {}", path.display())]
    Publish {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl Coded for BuildError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Exists { .. } | Self::Target { .. } => exit::BAD_ARGUMENTS,
            Self::Folder { .. } | Self::Guest(_) | Self::Watch { .. } => exit::HOST_FAILURE,
            Self::Monitor(cause) => cause.exit_code(),
            Self::Rootfs(cause) => cause.exit_code(),
            Self::TimedOut { .. } | Self::Publish { .. } => exit::SAVE_FAILED,
            Self::Stopped { signal } => exit::by_signal(u8::try_from(*signal).unwrap_or(0)),
            // The guest may end well and yet not be ready.
            Self::Ended { .. } => exit::SAVE_FAILED,
            Self::Failed { status } => status
                .code()
                .and_then(|code| code.try_into().ok())
                .unwrap_or(exit::FAILURE),
        }
    }
}

/// Builds the image of `plan` in a folder beside its place, and moves it there when it is whole.
pub(crate) fn build(mut plan: BuildPlan) -> Result<Built, BuildError> {
    let started = Instant::now();
    if plan.overwrite == Overwrite::Refuse && plan.out.symlink_metadata().is_ok() {
        return Err(BuildError::Exists { path: plan.out });
    }
    // A link, a FIFO or a device would be lost: a rename replaces whatever has the name.
    if let Err(what) = check_target(&plan.out, &[], "it is in use") {
        let path = plan.out;
        return Err(BuildError::Target { path, what });
    }
    let guest = match plan.kernel {
        Kernel::Configured => None,
        Kernel::Embedded => Some(GuestFile::create().map_err(BuildError::Guest)?),
    };
    if let (Some(guest), Some(boot)) = (&guest, &mut plan.spec.boot_source) {
        boot.kernel_image_path = guest.path();
    }
    let folder = folder_of(&plan.out).to_owned();
    let on_folder = |cause| BuildError::Folder {
        folder: folder.clone(),
        cause,
    };
    let work = tempfile::Builder::new()
        .prefix(".lightv-build-")
        .tempdir_in(&folder)
        .map_err(on_folder)?;
    if let Some(rootfs) = plan.rootfs.take() {
        rootfs::add(rootfs, work.path(), &mut plan.spec)?;
    }
    let image = work.path().join("image.lv");
    save(&plan, &image)?;
    if plan.working_set == WorkingSet::Recorded {
        record_working_set(&plan, &image)?;
    }
    let metadata = image.metadata().map_err(on_folder)?;
    publish(&image, &plan)?;
    Ok(Built {
        metadata,
        took: started.elapsed(),
    })
}

/// Boots the guest in a `lightv-vmm` process that saves it into `image`.
fn save(plan: &BuildPlan, image: &Path) -> Result<(), BuildError> {
    let save_at = match plan.save_at {
        SaveAt::Doorbell => "ready",
        SaveAt::Signal => "signal",
    };
    let mut command = Command::new(monitor::find()?);
    command
        .args(["--config", "-", "--save-at", save_at, "--save"])
        .arg(image);
    // Standard output is for the one line about the image.
    let guest_output = io::stderr().as_fd().try_clone_to_owned();
    let guest_output = guest_output.map_err(|cause| watch_error(&command, cause))?;
    command.stdin(Stdio::piped()).stdout(guest_output);
    let status = run_monitor(&mut command, plan)?;
    match status {
        status if status.success() && image.is_file() => Ok(()),
        status if is_guests_own(status) => Err(BuildError::Ended { status }),
        status => Err(BuildError::Failed { status }),
    }
}

/// Runs `image` to its end; the monitor adds to it what the guest wrote.
fn record_working_set(plan: &BuildPlan, image: &Path) -> Result<(), BuildError> {
    let mut command = Command::new(monitor::find()?);
    command
        .args(["--record-working-set", "--restore"])
        .arg(image);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = run_monitor(&mut command, plan)?;
    if is_guests_own(status) {
        Ok(())
    } else {
        Err(BuildError::Failed { status })
    }
}

/// Runs a monitor to its end, with the plan's configuration on its standard input if that is a pipe.
fn run_monitor(command: &mut Command, plan: &BuildPlan) -> Result<ExitStatus, BuildError> {
    let mut watch = Watch::spawn(command).map_err(|cause| watch_error(command, cause))?;
    if let Some(mut stdin) = watch.take_stdin() {
        // A monitor that has ended already tells why by its status.
        let _ = stdin.write_all(to_json(&plan.spec).as_bytes());
        if plan.save_at == SaveAt::Signal {
            eprintln!(
                "lightv: when the guest is ready: kill -USR1 {}",
                watch.pid()
            );
        }
    }
    match wait(&mut watch, plan.timeout).map_err(|cause| watch_error(command, cause))? {
        Event::Ended(status) => Ok(status),
        Event::Signal(signal) => Err(BuildError::Stopped {
            signal: signal.as_raw(),
        }),
        Event::TimedOut => Err(BuildError::TimedOut {
            timeout_s: plan.timeout.as_secs(),
        }),
    }
}

fn watch_error(command: &Command, cause: io::Error) -> BuildError {
    BuildError::Watch {
        program: command.get_program().into(),
        cause,
    }
}

/// Whether a status is the guest's, not the monitor's (docs/exit-codes.md).
fn is_guests_own(status: ExitStatus) -> bool {
    status
        .code()
        .is_some_and(|code| code < 128 && code != i32::from(exit::FAILURE))
}

/// Waits for the end, and brings it about when it does not come.
fn wait(watch: &mut Watch, timeout: Duration) -> io::Result<Event> {
    let started = Instant::now();
    let mut spinner = None;
    let event = loop {
        let left = timeout.saturating_sub(started.elapsed());
        let is_watched = io::stderr().is_terminal();
        let event = watch.next(Some(if is_watched {
            left.min(SPINNER_TICK)
        } else {
            left
        }))?;
        match event {
            Event::Signal(signal) if signal == Signal::USR1 => watch.pass_on(signal),
            Event::TimedOut if started.elapsed() < timeout => {
                if started.elapsed() >= SPINNER_AFTER {
                    spinner.get_or_insert_with(new_spinner).tick();
                }
            }
            other => break other,
        }
    };
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    if !matches!(event, Event::Ended(_)) {
        watch.end()?;
    }
    Ok(event)
}

fn new_spinner() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} waiting for the guest to become ready ({elapsed})");
    let spinner = ProgressBar::new_spinner();
    spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    spinner
}

/// Moves a whole image to its place. Without `Replace`, what came there meanwhile stays.
fn publish(image: &Path, plan: &BuildPlan) -> Result<(), BuildError> {
    let flags = match plan.overwrite {
        Overwrite::Refuse => RenameFlags::NOREPLACE,
        Overwrite::Replace => RenameFlags::empty(),
    };
    let path = plan.out.clone();
    renameat_with(CWD, image, CWD, &path, flags).map_err(|errno| match errno {
        rustix::io::Errno::EXIST => BuildError::Exists { path: path.clone() },
        errno => BuildError::Publish {
            path: path.clone(),
            cause: errno.into(),
        },
    })
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Paths that are not UTF-8 are refused when arguments are read, so this is always JSON.
fn to_json(spec: &VmSpec) -> String {
    serde_json::to_string(spec).unwrap_or_default()
}
