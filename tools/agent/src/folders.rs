//! Where the agent keeps what it must not forget, and its sockets.
//!
//! ```text
//!   STATE/lock               held while the agent runs
//!   STATE/images.json        names of images
//!   STATE/images/sha256-HEX.lv
//!   STATE/sandboxes/ID.json  one for each sandbox, from before its process is started
//!   STATE/pools.json
//!   STATE/logs/ID.log
//! ```

use std::env;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lightv_api::agent::run::RUN_SOCKET_NAME;
use lightv_vmm::runtime_dir::{self, RegisterError};
use rustix::process::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits;

/// Why the agent has no folders.
#[derive(Debug, thiserror::Error)]
pub enum OpenFoldersError {
    /// The runtime directory is of no use.
    #[error(transparent)]
    Runtime(#[from] RegisterError),
    /// No folder can be thought of.
    #[error(
        "There is no folder for the agent's state: neither XDG_STATE_HOME nor HOME is set; give --state"
    )]
    Nowhere,
    /// The kernel refuses.
    #[error("Cannot {what} {}", path.display())]
    Host {
        /// What was being done.
        what: &'static str,
        /// To which.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// Others could change it.
    #[error("State folder {} is not used: it is not a directory that is this user's alone (mode 0700)", path.display())]
    Foreign {
        /// Which one.
        path: PathBuf,
    },
    /// Another agent has it.
    #[error("Another lightv-agent uses the state folder {}; stop it, or give another --state", path.display())]
    Locked {
        /// Which one.
        path: PathBuf,
    },
}

/// The folders, which are this agent's as long as it lives.
#[derive(Debug)]
pub struct Folders {
    state: PathBuf,
    runtime: PathBuf,
    /// A process that is being started holds it too, until it is executed (O_CLOEXEC): so whoever has the lock sees every
    /// process of the agent before it.
    _lock: File,
}

/// Where the state is unless it is said: `/var/lib/lightv` for root, else `lightv` in `XDG_STATE_HOME` or `~/.local/state`.
#[must_use]
pub fn default_state() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    if geteuid().is_root() {
        return Some("/var/lib/lightv".into());
    }
    let home = || set("HOME").map(|home| Path::new(&home).join(".local/state"));
    let base = set("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    base.map(|base| base.join("lightv"))
}

impl Folders {
    /// Makes them where they are not, and proves that they are ours.
    ///
    /// # Errors
    /// [`OpenFoldersError`].
    pub fn open(state: Option<PathBuf>) -> Result<Self, OpenFoldersError> {
        let runtime = runtime_dir::ensure_folder()?;
        let state = state
            .or_else(default_state)
            .ok_or(OpenFoldersError::Nowhere)?;
        let state = std::path::absolute(&state).unwrap_or(state);
        make_folder(&state)?;
        for part in ["images", "sandboxes", "logs"] {
            make_folder(&state.join(part))?;
        }
        let lock = take_lock(&state.join("lock"))?;
        Ok(Self {
            state,
            runtime,
            _lock: lock,
        })
    }

    /// Where the state is.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where sockets and the records of running monitors are.
    #[must_use]
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Where the REST API is served.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.runtime.join(lightv_api::agent::SOCKET_NAME)
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The names of images.
    #[must_use]
    pub fn image_names(&self) -> PathBuf {
        self.state.join("images.json")
    }

    /// The records of sandboxes.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// The record of sandbox `id`.
    #[must_use]
    pub fn record(&self, id: &str) -> PathBuf {
        self.sandboxes().join(format!("{id}.json"))
    }

    /// The logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// What sandbox `id` prints.
    #[must_use]
    pub fn log(&self, id: &str) -> PathBuf {
        self.logs().join(format!("{id}.log"))
    }

    /// The REST API of sandbox `id`.
    #[must_use]
    pub fn vm_socket(&self, id: &str) -> PathBuf {
        self.runtime.join(format!("{id}.sock"))
    }

    /// The run socket.
    #[must_use]
    pub fn run_socket(&self) -> PathBuf {
        self.runtime.join(RUN_SOCKET_NAME)
    }

    /// What pools there are to be.
    #[must_use]
    pub fn pools(&self) -> PathBuf {
        self.state.join("pools.json")
    }

    /// The vsock of a machine of a pool whose process is `pid`, or `{pid}` for all of them.
    #[must_use]
    pub fn pool_vsock(&self, pid: impl fmt::Display) -> PathBuf {
        self.runtime.join(format!("pool-{pid}.vsock"))
    }

    /// The vsock of sandbox `id`.
    #[must_use]
    pub fn vm_vsock(&self, id: &str) -> PathBuf {
        self.runtime.join(format!("{id}.vsock"))
    }

    /// The folder of the jail of sandbox `id`.
    #[must_use]
    pub fn jail(&self, id: &str) -> PathBuf {
        self.runtime.join(runtime_dir::jail_name(id))
    }

    /// Whether `path`, in the runtime directory, is the folder of a jail.
    #[must_use]
    pub fn is_jail(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(runtime_dir::is_jail_name) && path.is_dir()
    }

    /// The vsock of sandbox `id`, which is in a jail.
    #[must_use]
    pub fn jailed_vsock(&self, id: &str) -> PathBuf {
        runtime_dir::jailed_vsock(&self.jail(id))
    }

    /// What the monitor `pid` says of itself.
    #[must_use]
    pub fn vm_record(&self, pid: u32) -> PathBuf {
        self.runtime.join(format!("{pid}.json"))
    }
}

fn make_folder(path: &Path) -> Result<(), OpenFoldersError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| OpenFoldersError::Host {
        what: "make the folder",
        path: path.to_owned(),
        cause,
    })?;
    // Not followed: a link that somebody else has made leads where they like.
    let is_ours = fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0
    });
    if is_ours {
        return Ok(());
    }
    let path = path.to_owned();
    Err(OpenFoldersError::Foreign { path })
}

fn take_lock(path: &Path) -> Result<File, OpenFoldersError> {
    let host = |cause| OpenFoldersError::Host {
        what: "lock",
        path: path.to_owned(),
        cause,
    };
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600);
    let file = file.open(path).map_err(host)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(cause)) => return Err(host(cause)),
            Err(TryLockError::WouldBlock) if began.elapsed() > limits::LOCK_TIME_MAX => {
                let path = path.parent().unwrap_or(path).to_owned();
                return Err(OpenFoldersError::Locked { path });
            }
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Whether a file must be there after a crash of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is synced.
    Host,
    /// Only a crash of the agent counts: what it says means nothing when the host has crashed.
    Agent,
}

/// Why a file was not written. What was there is as it was.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {what} {}", path.display())]
pub struct WriteError {
    /// What was being done.
    pub what: &'static str,
    /// To which file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub cause: io::Error,
}

/// What the new contents of `path` are called until they are whole.
fn draft_of(path: &Path) -> PathBuf {
    path.with_extension(DRAFT)
}

/// Extension of what is being written.
pub const DRAFT: &str = "new";

/// Writes `value` as JSON: the file is there whole, or the old one is. Two writers of one file must not meet.
///
/// # Errors
/// [`WriteError`].
pub fn write_json(
    path: &Path,
    value: &impl Serialize,
    durability: Durability,
) -> Result<(), WriteError> {
    let draft = draft_of(path);
    let written = write_draft(&draft, value, durability);
    let named = written.and_then(|()| publish(&draft, path, durability));
    if named.is_err() {
        // What cannot be removed now is at the next start.
        let _ = fs::remove_file(&draft);
    }
    named
}

fn write_draft(
    draft: &Path,
    value: &impl Serialize,
    durability: Durability,
) -> Result<(), WriteError> {
    let failed = |what| {
        let path = draft.to_owned();
        move |cause| WriteError { what, path, cause }
    };
    // Our own types are always JSON.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(draft).map_err(failed("make"))?;
    file.write_all(&json).map_err(failed("write"))?;
    match durability {
        Durability::Host => file.sync_all().map_err(failed("sync")),
        Durability::Agent => Ok(()),
    }
}

/// Gives `draft` the name `path`.
///
/// # Errors
/// [`WriteError`].
pub fn publish(draft: &Path, path: &Path, durability: Durability) -> Result<(), WriteError> {
    let failed = |what| {
        let path = path.to_owned();
        move |cause| WriteError { what, path, cause }
    };
    fs::rename(draft, path).map_err(failed("name"))?;
    match durability {
        Durability::Host => {
            let folder = path.parent().unwrap_or(path);
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(failed("sync the folder of"))
        }
        Durability::Agent => Ok(()),
    }
}

/// Why a file of ours tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadJsonError {
    /// The kernel refuses.
    #[error("Cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is not ours, or damaged.
    #[error("{} is not what it should be; move it away", path.display())]
    Damaged {
        /// Which one.
        path: PathBuf,
        /// Where.
        #[source]
        cause: serde_json::Error,
    },
}

/// Reads what [`write_json`] wrote; `None` if there is no such file.
///
/// # Errors
/// [`ReadJsonError`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadJsonError> {
    let read = || {
        let length = fs::metadata(path)?.len();
        if length > limits::STATE_FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        fs::read(path)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => {
            let path = path.to_owned();
            return Err(ReadJsonError::Read { path, cause });
        }
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|cause| ReadJsonError::Damaged {
        path: path.to_owned(),
        cause,
    })
}
