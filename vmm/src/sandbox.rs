//! What the process takes away from itself: privileges and core files before it touches anything of the guest, and, thread
//! by thread, the system calls that the thread does not need (docs/isolation.md).

mod filters;
mod landlock;
pub mod violation;

use std::error::Error;
use std::io;
use std::sync::OnceLock;

pub use self::filters::{CompileError, Filters, compile};
pub use self::landlock::{PathAccess, Rules};

use crate::affinity;
use crate::sys::process;

/// Why the process could not limit itself.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {what}")]
pub struct SandboxError {
    /// Which limit.
    what: &'static str,
    /// The kernel's reason.
    #[source]
    cause: io::Error,
}

impl SandboxError {
    const fn of_dumps(cause: io::Error) -> Self {
        let what = "keep its memory to itself (PR_SET_DUMPABLE)";
        Self { what, cause }
    }
}

/// No new privileges by exec; no core files, which would hold what the guest held, and no debugger of the same user. A
/// forbidden system call ends the process with a word of which one it was.
///
/// # Errors
/// [`SandboxError`].
pub fn prepare() -> Result<(), SandboxError> {
    give_up_privileges()?;
    process::forbid_dumps().map_err(SandboxError::of_dumps)?;
    catch_forbidden().map_err(|cause| SandboxError {
        what: "catch forbidden system calls (SIGSYS)",
        cause,
    })
}

/// What [`prepare`] takes away of a template, whose copies prepare themselves.
///
/// # Errors
/// [`SandboxError`].
pub fn prepare_template() -> Result<(), SandboxError> {
    give_up_privileges()?;
    process::forbid_dumps_of_template().map_err(SandboxError::of_dumps)
}

fn give_up_privileges() -> Result<(), SandboxError> {
    let failed = |what| move |cause| SandboxError { what, cause };
    process::set_no_new_privileges()
        .map_err(failed("give up new privileges (PR_SET_NO_NEW_PRIVS)"))?;
    process::forbid_core_files().map_err(failed("forbid core files (RLIMIT_CORE)"))
}

/// Has a forbidden system call end the process with a word of which one it was.
///
/// # Errors
/// The kernel's.
pub fn catch_forbidden() -> io::Result<()> {
    violation::catch()
}

/// Threads by what they do, and with that by the system calls that they make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// The event loop.
    Control,
    /// The server of the REST API.
    Api,
    /// The controller of the REST API, which builds the machine.
    ApiMachine,
    /// Starts other programs for the controller, until the machine runs.
    Starter,
    /// Waits for a monitor with a terminal, in a process of its own.
    Foreground,
}

impl ThreadKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Vcpu,
        Self::Control,
        Self::Api,
        Self::ApiMachine,
        Self::Starter,
        Self::Foreground,
    ];

    /// Whether it opens files while a guest runs. Other programs are started by a thread that is gone by then.
    const fn opens_files(self) -> bool {
        matches!(self, Self::Control | Self::Api | Self::ApiMachine)
    }

    /// Its name, which its list has too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Control => "control",
            Self::Api => "api",
            Self::ApiMachine => "api-machine",
            Self::Starter => "starter",
            Self::Foreground => "foreground",
        }
    }
}

/// What the threads of this process are held to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// System calls.
    pub filters: Filters,
    /// Paths, for threads that open files; `None`: all.
    pub rules: Option<Rules>,
}

static CHOSEN: OnceLock<Chosen> = OnceLock::new();

/// Says what the threads of this process are to be held to. To be called before the first of them is; what was said first
/// counts. Without a word it is LightV's own lists.
pub fn choose(chosen: Chosen) {
    let _ = CHOSEN.set(chosen);
}

/// Why a thread could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// To its list of system calls.
    #[error(
        "Cannot set the system-call filter of thread {}; where the kernel has none (CONFIG_SECCOMP_FILTER), start with --no-seccomp",
        kind.name()
    )]
    Filter {
        /// Which thread.
        kind: ThreadKind,
        /// Why.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// To its CPU.
    #[error(
        "Cannot hold thread {} to CPU {cpu} of the host (machine-config.tuning); it may have been taken away since",
        kind.name()
    )]
    Cpu {
        /// Which thread.
        kind: ThreadKind,
        /// Its number.
        cpu: u32,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// To its paths.
    #[error(
        "Cannot restrict the files of thread {} by Landlock; --no-landlock starts without",
        kind.name()
    )]
    Paths {
        /// Which thread.
        kind: ThreadKind,
        /// Why.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
}

/// Holds the calling thread to the list of its kind, for good. Threads that it starts are held to it too, whatever else they
/// are held to. `number` is that of a vCPU.
///
/// # Errors
/// [`ConfineError`].
pub fn confine(kind: ThreadKind, number: Option<u8>) -> Result<(), ConfineError> {
    violation::name_thread(kind, number);
    let chosen = CHOSEN.get_or_init(Chosen::default);
    if let Some(rules) = chosen.rules.as_ref().filter(|_| kind.opens_files()) {
        restrict(kind, rules)?;
    }
    let applied = chosen.filters.apply(kind);
    applied.map_err(|cause| ConfineError::Filter { kind, cause })
}

/// Holds the calling thread to a CPU of the host. To be called before [`confine`] for a thread whose list does not have that.
///
/// # Errors
/// [`ConfineError::Cpu`].
pub fn hold_to_cpu(kind: ThreadKind, cpu: u32) -> Result<(), ConfineError> {
    affinity::pin(cpu).map_err(|cause| ConfineError::Cpu { kind, cpu, cause })
}

/// Holds the calling thread to `rules` too.
///
/// # Errors
/// [`ConfineError`].
pub fn restrict(kind: ThreadKind, rules: &Rules) -> Result<(), ConfineError> {
    rules.enter().map_err(|cause| ConfineError::Paths {
        kind,
        cause: cause.into(),
    })
}
