//! A machine whose process sees nothing of the host but what it needs: `--jail` (docs/jail.md, docs/adr/0020-jail.md).
//!
//! ```text
//!   process that was started              becomes the keeper: signals, exit status, cleaning up
//!      |  reads what the machine names, opens its API socket, makes control groups
//!      |  user name space (if it is not root), network, IPC and host name, those of processes
//!      +--fork--> process 1 of its own    enters the groups, mounts its root, leaves the host's,
//!                                         gives up user, group and all capabilities; only then KVM is opened
//! ```
//!
//! [`jailer`] is the same by Firecracker's flags: a folder as root, and another program in it.

mod cgroup;
mod identity;
pub mod jailer;
mod keeper;
mod places;
mod root;

use std::fs::{self, File, Metadata};
use std::io::{self, PipeReader, Seek as _, Write as _};
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lightv_api::config::VmSpec;
use lightv_api::contract::net as contract;
use lightv_api::exit;
use rustix::fs::{Access, MemfdFlags, access};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

pub use self::cgroup::CgroupError;
use self::cgroup::{Cgroups, Plan, Trees};
use self::identity::Identity;
use self::keeper::Line;
use self::places::{Alias, Found};
use self::root::{Contents, Devices};
use crate::args::{ApiJob, Origin, RunJob, ServeJob};
use crate::builder::{self, PrepareError};
use crate::config::{MachineConfig, NetHost};
use crate::confinement::Confinement;
use crate::jail_plan::{JailPlan, Network, Place};
use crate::listen::{ListenError, Purpose, listen};
use crate::outputs::Outputs;
use crate::sys::jail::{close_inherited, unshare};
use crate::sys::process::{Forked, fork, host_memory_bytes, monotonic_ns, signal_when_parent_ends};
use crate::sys::signal;
use crate::vm::KVM_PATH;
use crate::{at_end, report, runtime_dir, service_manager, user_net};

/// Why there is no jail. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The machine's configuration.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// Its API socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Its control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Another user needs privileges.
    #[error(
        "--jail-uid and --jail-gid need root (CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID); leave them out: the machine stays user {uid}, group {gid}"
    )]
    NotRoot {
        /// This user.
        uid: u32,
        /// And its group.
        gid: u32,
    },
    /// The machine's user may not use KVM.
    #[error(
        "User {uid} may not open {KVM_PATH}, which belongs to user {}, group {group}, mode {:o}: add the user to that group",
        found.uid(), found.mode() & 0o777
    )]
    Kvm {
        /// The user.
        uid: u32,
        /// The device's group, by name and number.
        group: String,
        /// The device.
        found: Box<Metadata>,
    },
    /// There is no user name space to be had.
    #[error(
        "A jail without root needs a user name space, which this host refuses: allow them (sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, where these exist), or start it as root with --jail-uid and --jail-gid"
    )]
    UserNameSpace(#[source] io::Error),
    /// A tap that is somewhere else.
    #[error(
        "Interface {id} is on tap {tap}, which is not in the jail's own network name space: give --jail-netns PATH, the name space that has it, or --jail-netns host"
    )]
    TapOutside {
        /// The interface.
        id: String,
        /// The tap.
        tap: String,
    },
    /// A socket that would be in the runtime directory.
    #[error(
        "exec: its socket would lie in the runtime directory, which a jail does not have: name another place with --vsock PATH"
    )]
    ExecSocket,
    /// A network in user space that could not be started.
    #[error("Cannot connect network interface {id}")]
    UserNet {
        /// The interface.
        id: String,
        /// Why.
        #[source]
        cause: user_net::UserNetError,
    },
    /// All of the host's files.
    #[error(
        "--jail-ro and --jail-rw: / is not allowed: all that the host has would be in the jail"
    )]
    WholeHost,
    /// A name space of networks.
    #[error("Cannot enter the network name space {} (--jail-netns)", path.display())]
    Netns {
        /// Its file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A file that cannot be looked at.
    #[error("Cannot look at {}, which the machine needs in its jail", path.display())]
    Look {
        /// Which one.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A file that cannot be seen in the jail.
    #[error("Cannot place {} in the jail", path.display())]
    Place {
        /// Which one.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// One of the steps.
    #[error("The jail cannot {what}")]
    Step {
        /// Which one.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
}

impl JailError {
    fn step(what: &'static str) -> impl Fn(Errno) -> Self {
        move |cause| Self::Step {
            what,
            cause: cause.into(),
        }
    }

    fn step_of(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |cause| Self::Step { what, cause }
    }

    /// The exit status of a process that ends by it.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Prepare(cause) => cause.exit_status(),
            Self::Listen(_) => exit::FAILURE,
            Self::NotRoot { .. } | Self::WholeHost => exit::BAD_ARGUMENTS,
            Self::TapOutside { .. } | Self::ExecSocket => exit::BAD_CONFIG,
            _ => exit::HOST_FAILURE,
        }
    }
}

/// What is to live in a jail.
#[derive(Debug, Clone, Copy)]
pub struct Inhabitant<'a> {
    id: &'a str,
    outputs: &'a Outputs,
    confinement: &'a Confinement,
    run: Option<&'a RunJob>,
    api: Option<&'a ApiJob>,
}

impl<'a> Inhabitant<'a> {
    /// A machine without an API.
    #[must_use]
    pub const fn run(run: &'a RunJob) -> Self {
        Self {
            id: run.id.as_str(),
            outputs: &run.outputs,
            confinement: &run.confinement,
            run: Some(run),
            api: None,
        }
    }

    /// A server, and the machine that it begins with.
    #[must_use]
    pub const fn serve(job: &'a ServeJob) -> Self {
        Self {
            id: job.id.as_str(),
            outputs: &job.outputs,
            confinement: &job.confinement,
            run: job.run.as_ref(),
            api: Some(&job.api),
        }
    }

    /// What its machine is configured with, if it has one from the beginning.
    fn spec(self) -> Result<Option<VmSpec>, JailError> {
        let Some(run) = self.run else {
            return Ok(None);
        };
        if run.origin == Origin::Config("-".into()) {
            hold_stdin()?;
        }
        let spec = builder::spec_of(&run.origin, run.overrides.clone());
        if run.origin == Origin::Config("-".into()) {
            // To be read again.
            io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .and_then(|stdin| File::from(stdin).rewind())
                .map_err(JailError::step_of("read standard input twice"))?;
        }
        Ok(Some(spec?))
    }

    fn places(self, spec: Option<&VmSpec>) -> Vec<Place> {
        let mut all = places::of_outputs(self.outputs);
        all.extend(places::of_confinement(self.confinement));
        all.extend(self.run.map(places::of_run).unwrap_or_default());
        all.extend(spec.map(places::of_spec).unwrap_or_default());
        let metadata = self.api.and_then(|api| api.metadata.as_ref());
        all.extend(places::of_metadata(metadata));
        all
    }
}

/// A configuration on standard input is read by two processes: it becomes a file.
fn hold_stdin() -> Result<(), JailError> {
    let held = || -> io::Result<()> {
        let bytes = builder::read_stdin()?;
        let mut file = File::from(rustix::fs::memfd_create(
            "configuration",
            MemfdFlags::CLOEXEC,
        )?);
        file.write_all(&bytes)?;
        file.rewind()?;
        Ok(rustix::stdio::dup2_stdin(&file)?)
    };
    held().map_err(JailError::step_of(
        "read the configuration on standard input",
    ))
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The one in the jail.
    Inside(Inside),
    /// The one outside: the machine has ended with this status.
    Outside(u8),
}

/// What was opened for the machine outside.
#[derive(Debug)]
pub struct Inside {
    /// Its API's socket.
    pub listener: Option<UnixListener>,
    /// When the process began that is outside, in nanoseconds of CLOCK_MONOTONIC.
    pub began_ns: u64,
    /// When each step was done.
    pub marks: Vec<(&'static str, u64)>,
}

static LINE: OnceLock<Line> = OnceLock::new();

/// Whether this process is in a jail: then others outside do what it cannot.
#[must_use]
pub fn is_inside() -> bool {
    LINE.get().is_some()
}

/// Becomes two processes, of which one is in the jail. To be called before there is a second thread, and before anything is
/// opened. In the other it comes back when the machine has ended.
///
/// # Errors
/// [`JailError`], in either.
pub fn enter(plan: &JailPlan, inhabitant: Inhabitant<'_>) -> Result<Side, JailError> {
    let mut steps = Steps::begin();
    let identity = Identity::of(plan.uid, plan.gid)?;
    ensure_kvm(identity)?;
    let spec = inhabitant.spec()?;
    // What comes from here on waits, and is passed on. Until now it ended the process, which may have waited for its input.
    signal::prepare().map_err(JailError::step_of("set up signals"))?;
    let site = Site::prepare(plan, inhabitant, identity, spec.as_ref())?;
    steps.done("jail: what it needs is known");
    let cgroups = make_cgroups(plan, inhabitant.id)?;
    steps.done("jail: control groups made");
    leave_name_spaces(plan, site.identity)?;
    steps.done("jail: name spaces made");
    let (reader, line) = keeper::line().map_err(JailError::step_of("make a pipe"))?;
    match fork().map_err(JailError::step_of("start its process"))? {
        Forked::Child => {
            drop(reader);
            // The other one's.
            at_end::forget();
            steps.done("jail: process started");
            cgroups.enter()?;
            cgroups.keep();
            site.move_in(line, steps).map(Side::Inside)
        }
        Forked::Parent(pid) => {
            drop((line, site));
            user_net::let_go();
            let kept = keep(inhabitant, pid, reader);
            drop(cgroups);
            kept.map(Side::Outside)
                .map_err(JailError::step_of("wait for its process"))
        }
    }
}

/// When each step was done.
#[derive(Debug)]
struct Steps {
    began_ns: u64,
    marks: Vec<(&'static str, u64)>,
}

impl Steps {
    fn begin() -> Self {
        Self {
            began_ns: monotonic_ns(),
            marks: Vec::new(),
        }
    }

    fn done(&mut self, name: &'static str) {
        self.marks.push((name, monotonic_ns()));
    }
}

/// What is known and open before there is a jail.
struct Site {
    identity: Identity,
    places: Vec<Found>,
    aliases: Vec<Alias>,
    working: PathBuf,
    listener: Option<UnixListener>,
}

impl Site {
    fn prepare(
        plan: &JailPlan,
        inhabitant: Inhabitant<'_>,
        identity: Identity,
        spec: Option<&VmSpec>,
    ) -> Result<Self, JailError> {
        if spec.is_some_and(|spec| spec.exec.is_some() && spec.vsock.is_none()) {
            return Err(JailError::ExecSocket);
        }
        close_inherited(&fds_of(spec)).map_err(JailError::step_of(
            "close descriptors that it was started with",
        ))?;
        let mut wanted = inhabitant.places(spec);
        wanted.extend(plan.places.iter().cloned());
        let (places, aliases) = places::find(&wanted)?;
        if places.iter().any(|place| place.path == Path::new("/")) {
            return Err(JailError::WholeHost);
        }
        let working =
            std::env::current_dir().map_err(JailError::step_of("find its working folder"))?;
        let listener = listen_for(inhabitant.api)?;
        start_networks(plan, spec)?;
        // It is not seen from the jail.
        lightv_devices::virtio::block::note_boot();
        Ok(Self {
            identity,
            places,
            aliases,
            working,
            listener,
        })
    }

    /// In the new process.
    fn move_in(self, line: Line, mut steps: Steps) -> Result<Inside, JailError> {
        // In its groups by now: what is above them is not its affair.
        unshare(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP).map_err(JailError::step_of(
            "have mounts and control groups of its own",
        ))?;
        let identity = self.identity;
        root::enter(&Contents {
            places: &self.places,
            aliases: &self.aliases,
            devices: if identity.is_privileged {
                Devices::Own(identity.uid, identity.gid)
            } else {
                Devices::Hosts
            },
            working: &self.working,
        })?;
        steps.done("jail: root entered");
        identity.assume()?;
        // After the change of user, which forgets it. Nobody would clean up after a machine that goes on.
        signal_when_parent_ends(libc::SIGKILL).map_err(JailError::step_of(
            "be told of the end of the process outside",
        ))?;
        line.tell_settled().map_err(JailError::step_of(
            "find the process outside, which has ended",
        ))?;
        steps.done("jail: privileges given up");
        // Set once, here.
        let _ = LINE.set(line);
        runtime_dir::leave_to(|| {
            if let Some(line) = LINE.get() {
                line.tell_running();
            }
        });
        Ok(Inside {
            listener: self.listener,
            began_ns: steps.began_ns,
            marks: steps.marks,
        })
    }
}

/// Waits for the machine's process `pid`; gives its exit status.
fn keep(inhabitant: Inhabitant<'_>, pid: i32, reader: PipeReader) -> io::Result<u8> {
    let source = inhabitant.run.map(|run| run.origin.path());
    let socket = inhabitant.api.map(|api| api.socket.as_path());
    runtime_dir::announce(inhabitant.id, source, socket);
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    keeper::keep(pid, reader, || {
        if inhabitant.api.is_some() {
            service_manager::tell_ready();
        }
    })
}

/// The host's device with the host's rights has to be this user's to open. In a user name space it would not be seen whose it is.
fn ensure_kvm(identity: Identity) -> Result<(), JailError> {
    if identity.is_privileged {
        return Ok(());
    }
    match (
        access(KVM_PATH, Access::READ_OK | Access::WRITE_OK),
        fs::metadata(KVM_PATH),
    ) {
        (Err(Errno::ACCESS | Errno::PERM), Ok(found)) => Err(JailError::Kvm {
            uid: identity.uid.as_raw(),
            group: group_name(found.gid()),
            found: Box::new(found),
        }),
        // What else is wrong is found by who opens it.
        _ => Ok(()),
    }
}

fn group_name(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let named = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        (number.parse() == Ok(gid)).then_some(name)
    });
    named.map_or_else(|| gid.to_string(), |name| format!("{name} ({gid})"))
}

/// Descriptors that the machine is given.
fn fds_of(spec: Option<&VmSpec>) -> Vec<RawFd> {
    let nets = spec.map(|spec| spec.network_interfaces.as_slice());
    let number = |host| match host {
        contract::NetHost::Fd(number) => Some(number),
        _ => None,
    };
    let nets = nets.unwrap_or_default().iter();
    nets.filter_map(|net| number(net.host())).collect()
}

/// The socket is made outside, by whoever may, and taken away there.
fn listen_for(api: Option<&ApiJob>) -> Result<Option<UnixListener>, JailError> {
    let Some(api) = api else {
        return Ok(None);
    };
    let listener = at_end::make(|| {
        let (listener, socket) = listen(&api.socket, Purpose::Api)?;
        Ok::<_, ListenError>((listener, move || socket.remove()))
    })?;
    Ok(Some(listener))
}

/// Networks in user space are processes outside; taps must be where the machine is.
fn start_networks(plan: &JailPlan, spec: Option<&VmSpec>) -> Result<(), JailError> {
    let Some(spec) = spec else {
        return Ok(());
    };
    let mut has_user = false;
    for net in &spec.network_interfaces {
        match net.host() {
            contract::NetHost::Tap(tap) if plan.network == Network::Own => {
                let id = net.iface_id.clone();
                return Err(JailError::TapOutside { id, tap });
            }
            contract::NetHost::Tap(_) | contract::NetHost::Fd(_) => {}
            contract::NetHost::User(_) => has_user = true,
        }
    }
    if !has_user {
        return Ok(());
    }
    let config = MachineConfig::prove(spec.clone(), host_memory_bytes());
    for net in config.map_err(PrepareError::Config)?.nets() {
        if let NetHost::User(user) = &net.host {
            user_net::hold(user, net.mtu).map_err(|cause| JailError::UserNet {
                id: net.id.clone(),
                cause,
            })?;
        }
    }
    Ok(())
}

fn make_cgroups(plan: &JailPlan, id: &str) -> Result<Cgroups, JailError> {
    let trees = if plan.limits.is_empty() {
        Trees::default()
    } else {
        Trees::of_host()?
    };
    let groups = Cgroups::make(
        &trees,
        Plan {
            version: None,
            parent: &plan.parent_cgroup,
            name: &format!("{id}-{}", std::process::id()),
            limits: &plan.limits,
        },
    );
    Ok(groups?)
}

/// All that the keeper can be in too; mounts are not among them, for it cleans up.
fn leave_name_spaces(plan: &JailPlan, identity: Identity) -> Result<(), JailError> {
    if let Network::Named(path) = &plan.network {
        join_network(path).map_err(|cause| JailError::Netns {
            path: path.clone(),
            cause,
        })?;
    }
    if !identity.is_privileged {
        identity.enter_user_name_space()?;
    }
    let mut flags = UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    flags.set(UnshareFlags::NEWNET, plan.network == Network::Own);
    unshare(flags).map_err(JailError::step_of(
        "have processes, network, IPC and host name of its own",
    ))
}

fn join_network(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let kind = Some(LinkNameSpaceType::Network);
    Ok(move_into_link_name_space(file.as_fd(), kind)?)
}

/// The same, with what goes wrong said; gives the exit status of a process that is not in the jail, or not any more.
///
/// # Errors
/// The exit status.
pub fn enter_or_end(plan: &JailPlan, inhabitant: Inhabitant<'_>) -> Result<Inside, u8> {
    let status = match enter(plan, inhabitant) {
        Ok(Side::Inside(inside)) => return Ok(inside),
        Ok(Side::Outside(status)) => status,
        Err(error) => {
            report::warn(&error);
            error.exit_status()
        }
    };
    // Not every caller ends the process by `job::end_process`.
    at_end::run();
    Err(status)
}
