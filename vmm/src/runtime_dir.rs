//! The runtime directory: a file for each monitor that runs, by which `lightv ps` and others find it.
//!
//! The monitor writes its own, when it has nothing better to do, and takes it away at its end. One that was killed leaves
//! its file; whoever lists the directory takes it away.

use std::collections::HashMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use lightv_api::runtime::VmRecord;
use rustix::process::geteuid;

use crate::listen::{Purpose, remove_stale};
use crate::lock::lock;
use crate::publish::{NewFile, PublishError};
use crate::{at_end, limits, report};

/// Names another directory.
const OVERRIDE: &str = "LIGHTV_RUNTIME_DIR";
/// Mode of the directory: what is in it is its owner's affair.
const MODE: u32 = 0o700;

/// Why a monitor is not in the directory. It runs all the same.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The directory cannot be made.
    #[error("Cannot make the runtime directory {}", folder.display())]
    Make {
        /// Which one.
        folder: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// Somebody else could change what is in it.
    #[error("Runtime directory {} is not used: it is not a directory that is this user's alone (mode 0700)", folder.display())]
    Foreign {
        /// Which one.
        folder: PathBuf,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] PublishError),
}

/// Where the directory is: `LIGHTV_RUNTIME_DIR`, else `lightv` in `XDG_RUNTIME_DIR`, else `/run/lightv` for root, else
/// `/tmp/lightv-UID`.
#[must_use]
pub fn folder() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = set(OVERRIDE) {
        return folder.into();
    }
    if let Some(base) = set("XDG_RUNTIME_DIR") {
        return Path::new(&base).join("lightv");
    }
    if geteuid().is_root() {
        return "/run/lightv".into();
    }
    format!("/tmp/lightv-{}", geteuid().as_raw()).into()
}

/// Makes the directory, if it is not there, and proves that it is ours.
///
/// # Errors
/// [`RegisterError`].
pub fn ensure_folder() -> Result<PathBuf, RegisterError> {
    let folder = folder();
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(&folder);
    made.map_err(|cause| RegisterError::Make {
        folder: folder.clone(),
        cause,
    })?;
    if is_ours(&folder) {
        Ok(folder)
    } else {
        Err(RegisterError::Foreign { folder })
    }
}

/// Whether `folder` is a directory that only we can write and read. Not followed: a link that somebody else has made leads
/// where they like.
fn is_ours(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| {
        found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0
    })
}

/// The name space of process ids that this process is in: ids mean nothing in another.
fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino())
}

/// What is written once there is time.
static ANNOUNCED: Mutex<Option<Announced>> = Mutex::new(None);

struct Announced {
    id: String,
    source: Option<PathBuf>,
    api_socket: Option<PathBuf>,
    vsock_socket: Option<PathBuf>,
    started: SystemTime,
}

/// Keeps what this process says of itself for [`register_announced`]. Makes no system call.
pub fn announce(id: &str, source: Option<&Path>, api_socket: Option<&Path>) {
    *lock(&ANNOUNCED) = Some(Announced {
        id: id.to_owned(),
        source: source.map(Path::to_owned),
        api_socket: api_socket.map(Path::to_owned),
        vsock_socket: None,
        started: SystemTime::now(),
    });
}

/// The same of the socket of its vsock, once there is one. Makes no system call.
pub fn announce_vsock(path: &Path) {
    if let Some(announced) = &mut *lock(&ANNOUNCED) {
        announced.vsock_socket = Some(path.to_owned());
    }
}

/// Who registers this process, if it does not do it itself.
static REGISTRAR: OnceLock<fn()> = OnceLock::new();

/// Has `registrar` called in place of a registration: the directory is out of this process's sight.
pub fn leave_to(registrar: fn()) {
    // Once: a process enters a jail once.
    let _ = REGISTRAR.set(registrar);
}

/// Writes what was announced, once; it is taken away at the end of the process. What fails is said, and costs nothing else.
pub fn register_announced() {
    match REGISTRAR.get() {
        // It is said once, as it is registered once.
        Some(registrar) if lock(&ANNOUNCED).take().is_some() => registrar(),
        Some(_) => {}
        None => register_announced_as(std::process::id()),
    }
}

/// The same for the process `pid`, for which this one stands.
pub fn register_announced_as(pid: u32) {
    let announced = lock(&ANNOUNCED).take();
    if let Some(announced) = announced
        && let Err(error) = register(announced, pid)
    {
        report::warn(&error);
    }
}

fn register(announced: Announced, pid: u32) -> Result<(), RegisterError> {
    let folder = ensure_folder()?;
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let log = folder.join(log_name(&announced.id));
    let since_1970 = announced.started.duration_since(UNIX_EPOCH);
    let record = VmRecord {
        pid,
        pid_namespace: pid_namespace(),
        start_ticks: start_ticks(pid).unwrap_or(0),
        api_socket: announced.api_socket.map(absolute),
        vsock_socket: announced.vsock_socket.map(absolute),
        source: announced.source.map(absolute),
        log: is_our_output(&log).then_some(log),
        started_unix_s: since_1970.map_or(0, |time| time.as_secs()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        id: announced.id,
    };
    let path = folder.join(format!("{pid}.json"));
    at_end::make(|| {
        let file = NewFile::create(&path)?;
        file.write_at(&serde_json::to_vec(&record).unwrap_or_default(), 0)?;
        // A host that crashes takes the process with it: nothing to sync.
        file.publish_unsynced()?;
        Ok(((), move || drop(fs::remove_file(path))))
    })
}

/// Name of the socket in the directory by which programs are started in the guest of the process `pid`, if its configuration
/// has `exec` and names no other.
#[must_use]
pub fn vsock_name(pid: u32) -> String {
    format!("{pid}.vsock")
}

/// Of the name of a jail's folder in the directory, before the sandbox's id (docs/runtime-directory.md).
const JAIL_PREFIX: &str = "jail-";

/// Name of the folder in the directory that the jail of the host agent's sandbox `id` has of it.
#[must_use]
pub fn jail_name(id: &str) -> String {
    format!("{JAIL_PREFIX}{id}")
}

/// Whether that of some sandbox is called `name`.
#[must_use]
pub fn is_jail_name(name: &str) -> bool {
    name.starts_with(JAIL_PREFIX)
}

/// The socket of vsock in the folder `jail` of a jail.
#[must_use]
pub fn jailed_vsock(jail: &Path) -> PathBuf {
    jail.join("vsock")
}

/// Name of the file in the directory to which the output of a machine in the background goes.
#[must_use]
pub fn log_name(id: &str) -> String {
    format!("{id}.log")
}

fn is_our_output(log: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let output = fs::metadata("/proc/self/fd/1").map(identity);
    let log = fs::symlink_metadata(log).map(identity);
    matches!((output, log), (Ok(output), Ok(log)) if output == log)
}

/// The monitors that run, oldest first. Files of those that do not are taken away; what is no such file is passed over.
///
/// Those of another name space of process ids are left alone.
///
/// # Errors
/// The kernel's, when the directory is there and cannot be read; [`ListError::Foreign`].
pub fn list() -> Result<Vec<VmRecord>, ListError> {
    list_again(&[])
}

/// The same, where `known` were found before: what a process has once said of itself is not read again.
///
/// # Errors
/// [`ListError`].
pub fn list_again(known: &[VmRecord]) -> Result<Vec<VmRecord>, ListError> {
    let known: HashMap<u32, &VmRecord> = known.iter().map(|record| (record.pid, record)).collect();
    let folder = folder();
    let entries = match fs::read_dir(&folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(ListError::Read { folder, cause }),
        Ok(_) if !is_ours(&folder) => return Err(ListError::Foreign { folder }),
        Ok(entries) => entries,
    };
    let namespace = pid_namespace();
    let mut records = Vec::new();
    for entry in entries.flatten().take(limits::RUNTIME_FILES_MAX) {
        let path = entry.path();
        let known = pid_of(&path).and_then(|pid| known.get(&pid).copied());
        if let Some(record) = known.filter(|record| is_alive(record)) {
            records.push(record.clone());
            continue;
        }
        let Some(record) = read(&path) else {
            continue;
        };
        if record.pid_namespace != namespace {
            continue;
        }
        if is_alive(&record) {
            records.push(record);
        } else {
            // Somebody else may have taken them away.
            let _ = fs::remove_file(folder.join(vsock_name(record.pid)));
            let _ = fs::remove_file(&path);
        }
    }
    records.sort_by_key(|record| (record.started_unix_s, record.pid));
    Ok(records)
}

/// Why the directory is not listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The kernel refuses.
    #[error("Cannot read the runtime directory {}", folder.display())]
    Read {
        /// Which one.
        folder: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Somebody else could have written what is in it.
    #[error("Runtime directory {} is not used: it is not a directory that is this user's alone (mode 0700)", folder.display())]
    Foreign {
        /// Which one.
        folder: PathBuf,
    },
}

/// The process whose record is called so.
fn pid_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".json")?.parse().ok()
}

/// Takes away what the monitor of `record`, which was killed, has left in the directory: the record, and the sockets that it names
/// and on which nobody listens. Does nothing while it runs.
pub fn forget(record: &VmRecord) {
    let folder = folder();
    if record.pid_namespace != pid_namespace() || is_alive(record) || !is_ours(&folder) {
        return;
    }
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    let own_vsock = Some(folder.join(vsock_name(record.pid)));
    let sockets = [
        (&record.api_socket, Purpose::Api),
        (&record.vsock_socket, Purpose::Vsock),
        (&own_vsock, Purpose::Vsock),
    ];
    for (path, purpose) in sockets {
        let is_here = |path: &&PathBuf| path.parent() == Some(&folder);
        if let Some(path) = path.as_ref().filter(is_here) {
            // It ended in order, or another one of that name is there.
            let _ = remove_stale(path, purpose);
        }
    }
    let path = folder.join(format!("{}.json", record.pid));
    if read(&path).as_ref() == Some(record) {
        let _ = fs::remove_file(path);
    }
}

/// A record whose name fits it.
fn read(path: &Path) -> Option<VmRecord> {
    let pid = pid_of(path)?;
    let found = fs::symlink_metadata(path).ok()?;
    if !found.is_file() || found.size() > limits::RUNTIME_FILE_BYTES_MAX {
        return None;
    }
    let record: VmRecord = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (record.pid == pid).then_some(record)
}

/// Whether the process that wrote `record` still runs.
#[must_use]
pub fn is_alive(record: &VmRecord) -> bool {
    start_ticks(record.pid) == Some(record.start_ticks)
}

/// When the process `pid` started, in clock ticks since the host's boot (field 22 of `/proc/PID/stat`); `None` for one that is not
/// there, or has ended and is waited for.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    // One read gives all of it: some 50 numbers.
    let mut bytes = [0; 1024];
    let mut file = File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut bytes).ok()?;
    let stat = String::from_utf8_lossy(bytes.get(..length)?);
    // The name in field 2 may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: u32, start_ticks: u64) -> VmRecord {
        VmRecord {
            id: "x".to_owned(),
            pid,
            start_ticks,
            ..VmRecord::default()
        }
    }

    #[test]
    fn a_process_is_known_by_its_id_and_its_start() {
        let own = std::process::id();
        let ticks = start_ticks(own).unwrap();
        assert!(is_alive(&record(own, ticks)));
        assert!(!is_alive(&record(own, ticks + 1)));
        assert!(!is_alive(&record(u32::MAX, ticks)));
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let own = record(7, 1);
        let json = serde_json::to_vec(&own).unwrap();
        for (name, bytes, expected) in [
            ("7.json", &json[..], Some(&own)),
            ("8.json", &json[..], None),
            ("7.txt", &json[..], None),
            ("7.json", &json[1..], None),
            ("7.json", b"", None),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            assert_eq!(read(&path).as_ref(), expected, "{name}");
        }
        let link = folder.path().join("9.json");
        std::os::unix::fs::symlink("/proc/version", &link).unwrap();
        assert_eq!(read(&link), None);
    }
}
