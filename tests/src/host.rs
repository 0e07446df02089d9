//! What the tests find on this host: the binaries, KVM, and the log of what could not be tested.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::process::Pid;

/// The binary `name`, release build.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let folder = env::var_os("LIGHTV_BIN_DIR").map_or_else(default_folder, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "there is no {}: run `cargo xtask test`, which builds it, or set LIGHTV_BIN_DIR",
        path.display()
    );
    path
}

fn default_folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    target.join("x86_64-unknown-linux-gnu/release")
}

/// Whether guests run here. Where they do not, the test that asks is noted as skipped, and should end.
///
/// # Panics
/// When the note cannot be made: a skip must not go unseen.
#[must_use]
pub fn has_kvm() -> bool {
    let Err(cause) = OpenOptions::new().read(true).write(true).open("/dev/kvm") else {
        return true;
    };
    let test = thread::current().name().unwrap_or("unknown").to_owned();
    let line = format!("{test}: /dev/kvm does not open: {cause}\n");
    eprint!("skipped: {line}");
    if let Some(log) = env::var_os("LIGHTV_SKIP_LOG") {
        let mut log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)
            .expect("the skip log");
        log.write_all(line.as_bytes())
            .expect("a line in the skip log");
    }
    false
}

/// Whether this kernel's taps cut UDP and leave it whole: since Linux 6.2.
///
/// # Panics
/// When the kernel has no version.
#[must_use]
pub fn has_uso() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let mut number = || numbers.next().and_then(Result::ok);
    (number(), number()) >= (Some(6), Some(2))
}

/// Command lines of the processes whose working folder is `folder`, this process left out.
#[must_use]
pub fn processes_in(folder: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter(|entry| {
        let name = entry.file_name();
        name.as_encoded_bytes().iter().all(u8::is_ascii_digit) && *name != *own
    });
    pids.filter(|pid| fs::read_link(pid.path().join("cwd")).is_ok_and(|cwd| cwd == folder))
        .map(|pid| {
            let line = fs::read(pid.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        })
        .collect()
}

/// The processes that run the binary `name` in the working folder `folder`.
#[must_use]
pub fn pids_of(name: &str, folder: &Path) -> Vec<u32> {
    let is_named = |pid: &Pid| {
        let exe = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
        exe.is_ok_and(|exe| exe.file_name().is_some_and(|it| it == name))
    };
    let pids = pids_in(folder).into_iter().filter(is_named);
    pids.map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
        .collect()
}

/// The processes whose working folder is `folder`, this process left out.
#[must_use]
pub fn pids_in(folder: &Path) -> Vec<Pid> {
    let own = rustix::process::getpid();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pids = pids.filter_map(Pid::from_raw).filter(|pid| *pid != own);
    let is_in = |pid: &Pid| {
        let cwd = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
        cwd.is_ok_and(|cwd| cwd == folder)
    };
    pids.filter(is_in).collect()
}

/// The file `file` of process `pid` in proc.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn proc_file(pid: u32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{path}: {cause}"))
}
