//! Jails by the flags of Firecracker's jailer: a folder of the host as root, in which others have placed what the machine needs,
//! and a monitor that is run in it by its descriptor, so that nothing has to be copied.
//!
//! What was made stays when the machine has ended, as it does there: whoever placed files in the folder removes it.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use lightv_api::exit;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, open, openat, unlinkat,
};
use rustix::io::{Errno, dup};
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::{
    Pid, Resource, WaitOptions, chdir, getrlimit, pivot_root, setrlimit, setsid, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{
    CapabilitySet, UnshareFlags, capabilities, set_capabilities, set_keep_capabilities,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::cgroup::{CgroupError, Cgroups, Plan, Trees};
use super::root;
use crate::foreground::status_of;
use crate::jail_plan::{JailerPlan, ResourceLimit, Version};
use crate::report;
use crate::sys::jail::{close_at_exec, close_inherited, exec, unshare};
use crate::sys::process::{Forked, cpu_us, fork, monotonic_ns};

/// What the monitor is called, by which it knows that its caller takes it for Firecracker.
const PROGRAM: &str = "firecracker";
/// Folders that belong to the machine's user, each after the one it is in.
const FOLDERS: [&str; 4] = ["/", "/dev", "/dev/net", "/run"];
/// Their mode.
const FOLDER_MODE: u32 = 0o700;
/// Devices that the machine's user has, if the host has them.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", "/dev/userfaultfd"];
/// Descriptors that a monitor may have, unless it is said: Firecracker's number.
const FILES_MAX: u64 = 2048;
/// The only variable of the monitor's environment: where it puts its record, in its root.
const ENVIRONMENT: &str = "LIGHTV_RUNTIME_DIR=/run/lightv";
/// Written by the process in the jail before it ends without having become the monitor.
const FAILED: u8 = b'x';

/// Why there is no monitor in a jail. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
enum JailerError {
    #[error(
        "The jailer needs root's privileges (CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_MKNOD, CAP_CHOWN, CAP_SETUID, CAP_SETGID); a jail without them: lightv-vmm --jail"
    )]
    NotRoot,
    #[error("--exec-file {}: {what}", path.display())]
    ExecFile { path: PathBuf, what: &'static str },
    #[error("Cannot open --exec-file {}", path.display())]
    OpenExecFile {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("Cannot use --chroot-base-dir {}", path.display())]
    Base {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("Cannot make {}", path.display())]
    Make {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{} is in the jail's folder already: does another machine of this --id run? If not, remove the folder", path.display())]
    Taken { path: PathBuf },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("Cannot enter the network name space {} (--netns)", path.display())]
    Netns {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("Cannot set the limit {limit:?} (--resource-limit)")]
    Limit {
        limit: ResourceLimit,
        #[source]
        cause: io::Error,
    },
    #[error(
        "Cannot run {} as user {uid}, group {gid}{}", path.display(), exec_advice(cause)
    )]
    Exec {
        path: PathBuf,
        uid: u32,
        gid: u32,
        #[source]
        cause: io::Error,
    },
    #[error("The jail cannot {what}")]
    Step {
        what: &'static str,
        #[source]
        cause: io::Error,
    },
}

fn exec_advice(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EACCES) => " (that user may not run it: chmod a+rx, or chown)",
        Some(libc::ENOENT) => " (it needs a loader that is not in the jail: use a static program)",
        Some(libc::ENOEXEC) => " (it is no program)",
        _ => "",
    }
}

impl JailerError {
    fn step(what: &'static str) -> impl Fn(Errno) -> Self {
        move |cause| Self::Step {
            what,
            cause: cause.into(),
        }
    }

    fn step_of(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |cause| Self::Step { what, cause }
    }

    const fn exit_status(&self) -> u8 {
        match self {
            Self::ExecFile { .. } | Self::OpenExecFile { .. } | Self::Base { .. } => {
                exit::BAD_ARGUMENTS
            }
            _ => exit::HOST_FAILURE,
        }
    }
}

/// Becomes the monitor in its jail. Comes back with an exit status when that failed; and, when the monitor is a process of its
/// own (`--daemonize`, `--new-pid-ns`), once it runs.
#[must_use]
pub fn run(plan: &JailerPlan) -> u8 {
    match start(plan) {
        Ok(()) => exit::OK,
        Err(Failure::Here(error)) => {
            report::warn(&error);
            error.exit_status()
        }
        Err(Failure::Told(status)) => status,
    }
}

enum Failure {
    Here(JailerError),
    /// The other process has said it.
    Told(u8),
}

impl<E: Into<JailerError>> From<E> for Failure {
    fn from(cause: E) -> Self {
        Self::Here(cause.into())
    }
}

/// What is known before anything is made.
struct Site<'a> {
    plan: &'a JailerPlan,
    started_us: u64,
    cpu_us: u64,
    program: OwnedFd,
    /// Name of its file.
    name: OsString,
    /// The folder that becomes the root.
    root: PathBuf,
}

fn start(plan: &JailerPlan) -> Result<(), Failure> {
    let (started_us, cpu_us) = (monotonic_ns() / 1000, cpu_us());
    ensure_privileges()?;
    close_inherited(&[]).map_err(JailerError::step_of("close inherited descriptors"))?;
    let (program, name) = open_program(&plan.exec_file)?;
    let base = fs::canonicalize(&plan.chroot_base)
        .and_then(|base| Ok((open_folder(&base)?, base)))
        .map_err(|cause| JailerError::Base {
            path: plan.chroot_base.clone(),
            cause,
        });
    let (base_fd, base) = base?;
    let within = Path::new(&name).join(&plan.id).join("root");
    let site = Site {
        plan,
        started_us,
        cpu_us,
        program,
        root: base.join(&within),
        name,
    };
    let mut made = Made::new(base_fd);
    made.folders(&within).map_err(|cause| JailerError::Make {
        path: site.root.clone(),
        cause,
    })?;
    // Before anything is changed that may be another machine's.
    let mut pid_file = PidFile::make(&site, &mut made, &within)?;
    let is_apart = plan.daemonize || plan.new_pid_ns;
    if !is_apart {
        pid_file.write(std::process::id())?;
    }
    let cgroups = make_cgroups(&site)?;
    if let Some(path) = &plan.netns {
        super::join_network(path).map_err(|cause| JailerError::Netns {
            path: path.clone(),
            cause,
        })?;
    }
    if is_apart {
        return start_apart(&site, (made, &within), cgroups, pid_file);
    }
    cgroups.enter()?;
    let error = become_monitor(&site, &mut made, &within);
    cgroups.leave();
    // What was made goes with these.
    drop((made, cgroups));
    match error {
        Ok(never) => match never {},
        Err(error) => Err(error.into()),
    }
}

/// The monitor in a process of its own. This one ends once it runs.
fn start_apart(
    site: &Site<'_>,
    (made, within): (Made, &Path),
    cgroups: Cgroups,
    mut pid_file: PidFile,
) -> Result<(), Failure> {
    if site.plan.new_pid_ns {
        unshare(UnshareFlags::NEWPID).map_err(JailerError::step_of(
            "have processes of its own (--new-pid-ns)",
        ))?;
    }
    // Closed by exec.
    let (reader, writer) = io::pipe().map_err(JailerError::step_of("make a pipe"))?;
    match fork().map_err(JailerError::step_of("start its process"))? {
        Forked::Child => {
            drop(reader);
            // What was made so far is the other one's to take away.
            let mut inside = made.hand_over();
            let entered = cgroups.enter().map_err(JailerError::from);
            cgroups.keep();
            let became = entered.and_then(|()| become_monitor(site, &mut inside, within));
            drop(inside);
            say_failed(writer);
            match became {
                Ok(never) => match never {},
                Err(error) => Err(error.into()),
            }
        }
        Forked::Parent(pid) => {
            drop(writer);
            let written = pid_file.write(pid.unsigned_abs());
            let runs = is_monitor(reader);
            let pid = Pid::from_raw(pid);
            if let Err(error) = written {
                if let Some(pid) = pid {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    let _ = waitpid(Some(pid), WaitOptions::empty());
                }
                return Err(error.into());
            }
            if runs {
                made.keep();
                cgroups.keep();
                return Ok(());
            }
            let ended = waitpid(pid, WaitOptions::empty()).ok().flatten();
            let status = ended.map_or(exit::HOST_FAILURE, |(_, status)| status_of(status));
            Err(Failure::Told(status))
        }
    }
}

/// Whether the process at the other end has become the monitor: it closes its end without a word.
fn is_monitor(mut reader: PipeReader) -> bool {
    matches!(reader.read(&mut [0]), Ok(0))
}

fn say_failed(mut writer: PipeWriter) {
    // Who does not hear it sees the exit status.
    let _ = writer.write_all(&[FAILED]);
}

fn ensure_privileges() -> Result<(), JailerError> {
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::SYS_CHROOT
        | CapabilitySet::MKNOD
        | CapabilitySet::CHOWN
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID;
    match capabilities(None) {
        Ok(own) if own.effective.contains(needed) => Ok(()),
        _ => Err(JailerError::NotRoot),
    }
}

/// The monitor's file, and its name.
fn open_program(path: &Path) -> Result<(OwnedFd, OsString), JailerError> {
    let failed = |cause| JailerError::OpenExecFile {
        path: path.to_owned(),
        cause,
    };
    let real = fs::canonicalize(path).map_err(failed)?;
    if !fs::metadata(&real).map_err(failed)?.is_file() {
        return Err(JailerError::ExecFile {
            path: path.to_owned(),
            what: "it is not a regular file",
        });
    }
    let program = open(&real, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let program = program.map_err(|cause| failed(cause.into()))?;
    let name = real.file_name().unwrap_or(OsStr::new(PROGRAM)).to_owned();
    Ok((program, name))
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

fn make_cgroups(site: &Site<'_>) -> Result<Cgroups, CgroupError> {
    let plan = site.plan;
    if plan.limits.is_empty() {
        return match (&plan.parent_cgroup, plan.cgroup_version) {
            // It is entered as it is.
            (Some(parent), Version::V2) => Cgroups::existing(&Trees::of_host()?, parent),
            _ => Cgroups::make(&Trees::default(), site.cgroup_plan()),
        };
    }
    Cgroups::make(&Trees::of_host()?, site.cgroup_plan())
}

impl Site<'_> {
    fn cgroup_plan(&self) -> Plan<'_> {
        let parent = self.plan.parent_cgroup.as_deref();
        Plan {
            version: Some(self.plan.cgroup_version),
            parent: parent.unwrap_or(Path::new(&self.name)),
            name: &self.plan.id,
            limits: &self.plan.limits,
        }
    }
}

/// `NAME.pid` in the root: who has made it has the root. Closed by exec.
struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Makes it, empty still.
    fn make(site: &Site<'_>, made: &mut Made, within: &Path) -> Result<Self, JailerError> {
        let mut name = site.name.clone();
        name.push(".pid");
        let path = site.root.join(&name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o644).open(&path);
        let file = file.map_err(|cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => JailerError::Taken { path: path.clone() },
            _ => JailerError::Make {
                path: path.clone(),
                cause,
            },
        })?;
        made.note(within.join(&name), AtFlags::empty());
        Ok(Self { path, file })
    }

    fn write(&mut self, number: u32) -> Result<(), JailerError> {
        write!(self.file, "{number}").map_err(|cause| JailerError::Make {
            path: self.path.clone(),
            cause,
        })
    }
}

/// Enters the jail and runs the monitor in it.
fn become_monitor(
    site: &Site<'_>,
    made: &mut Made,
    within: &Path,
) -> Result<Infallible, JailerError> {
    let said = dup(std::io::stderr()).map_err(JailerError::step("keep standard error"))?;
    let error = settle(site, made, within).and_then(|()| run_program(site));
    // Privileges that were kept until now, for this alone: without them what was made stays, which is no reason to say
    // anything else than why.
    regain_privileges();
    let _ = unmount("/proc", UnmountFlags::DETACH);
    let _ = dup2_stderr(&said);
    error
}

fn settle(site: &Site<'_>, made: &mut Made, within: &Path) -> Result<(), JailerError> {
    let plan = site.plan;
    let owner = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    // As long as they can be seen.
    let devices = DEVICES.map(|path| fs::metadata(path).ok().map(|found| (path, found.rdev())));
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    enter_root(&site.root)?;
    for path in FOLDERS {
        let made = own_folder(path, owner, made, within);
        made.map_err(|cause| JailerError::Make {
            path: path.into(),
            cause,
        })?;
    }
    for (path, number) in devices.into_iter().flatten() {
        let made_device = own_device(Path::new(path), number, owner);
        made_device.map_err(|cause| JailerError::Make {
            path: path.into(),
            cause,
        })?;
        made.note(within.join(path.trim_start_matches('/')), AtFlags::empty());
    }
    mount_processes(made, within)?;
    set_limits(&plan.resource_limits)?;
    if plan.daemonize {
        null.and_then(|null| leave_terminal(&null))
            .map_err(JailerError::step_of("leave the terminal (--daemonize)"))?;
    }
    drop_privileges(owner)
}

fn enter_root(root: &Path) -> Result<(), JailerError> {
    unshare(UnshareFlags::NEWNS).map_err(JailerError::step_of("have mounts of its own"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(JailerError::step("keep its mounts to itself"))?;
    // A root is a mount.
    mount_bind_recursive(root, root).map_err(JailerError::step("mount its root"))?;
    chdir(root).map_err(JailerError::step("enter its root"))?;
    pivot_root(".", ".").map_err(JailerError::step("make its root the root (pivot_root)"))?;
    unmount(".", UnmountFlags::DETACH).map_err(JailerError::step("leave the host's root"))?;
    chdir("/").map_err(JailerError::step("enter its root"))
}

/// A folder, made if it is not there, that is the machine's user's. Links are not followed: they would give away what they
/// lead to.
fn own_folder(
    path: &str,
    (uid, gid): (Uid, Gid),
    made: &mut Made,
    within: &Path,
) -> io::Result<()> {
    let mode = Mode::from_raw_mode(FOLDER_MODE);
    match mkdirat(CWD, path, mode) {
        Ok(()) => made.note(
            within.join(path.trim_start_matches('/')),
            AtFlags::REMOVEDIR,
        ),
        Err(Errno::EXIST) => {}
        Err(cause) => return Err(cause.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(CWD, path, flags, Mode::empty())?;
    fchmod(&folder, mode)?;
    Ok(fchown(&folder, Some(uid), Some(gid))?)
}

/// A device that is the machine's user's alone. One of an earlier machine is replaced.
fn own_device(path: &Path, number: u64, owner: (Uid, Gid)) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.rdev() == number) {
        fs::remove_file(path)?;
    }
    Ok(root::own_device(path, number, owner)?)
}

/// Proc, in which the machine's process sees no other: it names its own files by it when it saves.
fn mount_processes(made: &mut Made, within: &Path) -> Result<(), JailerError> {
    match mkdirat(CWD, "/proc", Mode::from_raw_mode(0o755)) {
        Ok(()) => made.note(within.join("proc"), AtFlags::REMOVEDIR),
        Err(Errno::EXIST) => {}
        Err(cause) => return Err(JailerError::step("make a folder for proc")(cause)),
    }
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC
        | rustix::mount::MountFlags::RDONLY;
    mount(
        "proc",
        "/proc",
        "proc",
        flags,
        c"subset=pid,hidepid=ptraceable",
    )
    .map_err(JailerError::step("mount proc (Linux 5.8 or later)"))
}

fn set_limits(limits: &[ResourceLimit]) -> Result<(), JailerError> {
    let has_files = limits
        .iter()
        .any(|limit| matches!(limit, ResourceLimit::Files(_)));
    let default = (!has_files).then_some(ResourceLimit::Files(FILES_MAX));
    for limit in default.iter().chain(limits) {
        let (resource, value) = match *limit {
            ResourceLimit::FileBytes(bytes) => (Resource::Fsize, bytes),
            ResourceLimit::Files(count) => (Resource::Nofile, count),
        };
        let mut changed = getrlimit(resource);
        (changed.current, changed.maximum) = (Some(value), Some(value));
        setrlimit(resource, changed).map_err(|cause| JailerError::Limit {
            limit: *limit,
            cause: cause.into(),
        })?;
    }
    Ok(())
}

fn leave_terminal(null: &File) -> io::Result<()> {
    setsid()?;
    dup2_stdin(null)?;
    dup2_stdout(null)?;
    Ok(dup2_stderr(null)?)
}

/// Becomes the machine's user. Capabilities are not in force any more, but could be again until the exec.
fn drop_privileges((uid, gid): (Uid, Gid)) -> Result<(), JailerError> {
    set_keep_capabilities(true).map_err(JailerError::step("keep a way to clean up"))?;
    set_thread_groups(&[]).map_err(JailerError::step("leave all groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(JailerError::step("become its group (--gid)"))?;
    set_thread_res_uid(uid, uid, uid).map_err(JailerError::step("become its user (--uid)"))
}

fn regain_privileges() {
    if let Ok(mut sets) = capabilities(None) {
        sets.effective = sets.permitted;
        let _ = set_capabilities(None, sets);
    }
}

fn run_program(site: &Site<'_>) -> Result<Infallible, JailerError> {
    let run = || {
        let args = arguments(site)?;
        let environment = [CString::new(ENVIRONMENT)?];
        close_at_exec()?;
        exec(site.program.as_fd(), &args, &environment)
    };
    run().map_err(|cause| JailerError::Exec {
        path: site.plan.exec_file.clone(),
        uid: site.plan.uid,
        gid: site.plan.gid,
        cause,
    })
}

fn arguments(site: &Site<'_>) -> io::Result<Vec<CString>> {
    let name = site.name.to_string_lossy();
    let called = if name.starts_with(PROGRAM) {
        &name
    } else {
        PROGRAM
    };
    let own_cpu_us = cpu_us().saturating_sub(site.cpu_us);
    let words = [
        called.to_owned(),
        "--id".to_owned(),
        site.plan.id.clone(),
        "--start-time-us".to_owned(),
        site.started_us.to_string(),
        "--start-time-cpu-us".to_owned(),
        // A process made by fork begins at 0, and so does its jailer's share.
        cpu_us().to_string(),
        "--parent-cpu-time-us".to_owned(),
        own_cpu_us.to_string(),
    ];
    let given = site
        .plan
        .args
        .iter()
        .map(|word| CString::new(word.as_bytes()));
    let words = words.into_iter().map(CString::new).chain(given);
    Ok(words.collect::<Result<_, _>>()?)
}

/// What was made of a jail's folder: gone when this is dropped, the last first.
struct Made {
    base: OwnedFd,
    paths: Vec<(PathBuf, AtFlags)>,
}

impl Made {
    const fn new(base: OwnedFd) -> Self {
        let paths = Vec::new();
        Self { base, paths }
    }

    fn note(&mut self, path: PathBuf, flags: AtFlags) {
        self.paths.push((path, flags));
    }

    /// Makes the folders of `path` that are not there.
    fn folders(&mut self, path: &Path) -> io::Result<()> {
        let mut folder = PathBuf::new();
        for part in path {
            folder.push(part);
            match mkdirat(&self.base, &folder, Mode::from_raw_mode(0o755)) {
                Ok(()) => self.note(folder.clone(), AtFlags::REMOVEDIR),
                Err(Errno::EXIST) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(())
    }

    /// For the process that goes on: nothing is its own yet.
    fn hand_over(mut self) -> Self {
        self.paths.clear();
        self
    }

    fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for (path, flags) in self.paths.iter().rev() {
            // What cannot be removed is left: others have put something into it.
            let _ = unlinkat(&self.base, path, *flags);
        }
    }
}
