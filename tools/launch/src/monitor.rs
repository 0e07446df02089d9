//! A monitor in the background: its command line, its log, and whether it serves.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use lightv_api::exit;
use lightv_api::runtime::VmRecord;

/// Bytes of a log's end that are searched for the monitor's last message.
const LOG_END_BYTES: u64 = 16 << 10;
/// What the monitor's messages begin with.
const MESSAGE_PREFIX: &str = "lightv-vmm: ";

/// How a monitor is to be called and reached.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Name of the microVM: see [`is_name`].
    pub id: &'a str,
    /// Where it serves its REST API.
    pub socket: &'a Path,
    /// Where its output goes. A file of an earlier one is replaced.
    pub log: &'a Path,
}

/// `program`, to be started with `args` at `place`, without input.
///
/// # Errors
/// The kernel's, when the log cannot be made.
pub fn command(program: &Path, place: Place<'_>, args: &[OsString]) -> io::Result<Command> {
    let output = open_log(place.log)?;
    let mut command = Command::new(program);
    command
        .arg("--api-sock")
        .arg(place.socket)
        .args(["--id", place.id])
        .args(args)
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output);
    Ok(command)
}

/// A new log; one of an earlier machine is gone.
///
/// # Errors
/// The kernel's.
pub fn open_log(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Whether `name` may be that of a microVM: 1–64 letters, digits and `-`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain && (1..=64).contains(&name.len())
}

/// Which is listed in the runtime directory `folder` as the microVM `id`, the process `pid` or a child of it (that in its jail): then
/// it serves. A record of another name does not count: a process that was killed has left it, which had the same id.
#[must_use]
pub fn listed(folder: &Path, pid: u32, id: &str) -> Option<u32> {
    let is_listed = |pid: &u32| {
        // It is there whole or not at all.
        let bytes = fs::read(record_of(folder, *pid)).unwrap_or_default();
        serde_json::from_slice(&bytes).is_ok_and(|record: VmRecord| record.id == id)
    };
    if is_listed(&pid) {
        return Some(pid);
    }
    children_of(pid).into_iter().find(is_listed)
}

fn record_of(folder: &Path, pid: u32) -> PathBuf {
    folder.join(format!("{pid}.json"))
}

/// The children of the process `pid`, which has one thread: those that it has not waited for too.
#[must_use]
pub fn children_of(pid: u32) -> Vec<u32> {
    let pids = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let pids = pids.split_whitespace().map(str::parse);
    pids.map_while(Result::ok).collect()
}

/// One that has ended before it was seen to serve, and not because its guest was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EarlyEnd {
    /// What it has said last.
    pub message: String,
    /// What it ended with.
    pub exit_code: u8,
}

/// What became of one that ended before it was seen to serve. A guest that was done so soon is no failure.
///
/// # Errors
/// [`EarlyEnd`].
pub fn early_end(status: ExitStatus, log: &Path) -> Result<(), EarlyEnd> {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    match (code, last_message(log)) {
        (Some(0 | 2..=127), _) | (Some(exit::FAILURE), None) => Ok(()),
        (code, message) => Err(EarlyEnd {
            message: message.unwrap_or_else(|| "it ended at once".to_owned()),
            exit_code: code.unwrap_or(exit::FAILURE),
        }),
    }
}

/// The monitor's own last message at the end of `log`. A guest may print such a line too.
#[must_use]
pub fn last_message(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_END_BYTES)))
        .ok()?;
    let mut end = Vec::new();
    file.take(LOG_END_BYTES).read_to_end(&mut end).ok()?;
    let end = String::from_utf8_lossy(&end);
    let mut lines = end.lines().rev();
    let message = lines.find_map(|line| line.strip_prefix(MESSAGE_PREFIX));
    message.map(|message| message.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "web-2", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a_b", "a/b", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    fn write_record(folder: &Path, pid: u32, id: &str) {
        let record = VmRecord {
            id: id.to_owned(),
            pid,
            ..VmRecord::default()
        };
        fs::write(record_of(folder, pid), serde_json::to_vec(&record).unwrap()).unwrap();
    }

    #[test]
    fn a_record_that_another_process_has_left_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        // Ends with its input.
        let mut parent = Command::new("sh")
            .args(["-c", "sleep 600 & read line; kill $!"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = parent.id();
        let child = loop {
            if let [child] = children_of(pid)[..] {
                break child;
            }
        };
        let check = |expected| assert_eq!(listed(folder, pid, "a"), expected);
        check(None);
        write_record(folder, pid, "b");
        check(None);
        // What is in a jail is a child of whoever was started.
        write_record(folder, child, "a");
        check(Some(child));
        fs::write(record_of(folder, child), "{").unwrap();
        check(None);
        write_record(folder, pid, "a");
        check(Some(pid));
        drop(parent.stdin.take());
        let _ = parent.wait().unwrap();
    }

    #[test]
    fn an_early_end_is_told_in_the_monitors_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("a.log");
        let check = |text: &str, code: i32, expected: Result<(), (&str, u8)>| {
            fs::write(&log, text).unwrap();
            let found = early_end(ExitStatus::from_raw(code << 8), &log);
            let found = found.map_err(|end| (end.message, end.exit_code));
            let expected = expected.map_err(|(text, code)| (text.to_owned(), code));
            assert_eq!(found, expected, "{text:?}");
        };
        check("Hello\n", 0, Ok(()));
        check("", 127, Ok(()));
        check("", 158, Err(("it ended at once", 158)));
        let text = "warning\nlightv-vmm: Cannot open tap7\n";
        check(text, 158, Err(("Cannot open tap7", 158)));
        check(text, 1, Err(("Cannot open tap7", 1)));
        // The guest's own end, after a warning.
        check(text, 3, Ok(()));
        fs::remove_file(&log).unwrap();
        assert_eq!(last_message(&log), None);
    }
}
