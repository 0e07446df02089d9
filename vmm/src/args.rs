//! The command line: as typed ([`Cli`]), then as proved ([`Job`]).

mod api;
mod jail;
mod jailer;
mod outputs;
mod tuning;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, ValueEnum};
use lightv_api::contract::instance::{APP_NAME, FIRECRACKER_VERSION};

pub use self::api::ApiJob;
use self::api::{ApiArgs, is_firecracker};
pub use self::jail::JailArgs;
pub use self::jailer::{JailerCli, is_jailer};
pub use self::outputs::OutputArgs;
pub use self::tuning::{PresetArgs, TuningArgs};

use crate::confinement::Confinement;
use crate::control::{SaveMoment, SavePlan};
use crate::jail_plan::JailPlan;
use crate::metadata::MetadataFile;
use crate::net_override::NetOverride;
use crate::outputs::Outputs;
use crate::overrides::Overrides;
use crate::stamps::TimingsSink;

/// LightV's microVM monitor: one process, one microVM.
///
/// Guest output goes to standard output, the monitor's own messages to standard error.
#[derive(Debug, Parser)]
#[command(name = "lightv-vmm", version, after_long_help = EXAMPLES)]
pub struct Cli {
    /// Boot the VM that this JSON file describes (Firecracker's format); `-` reads standard input.
    #[arg(long, value_name = "FILE", group = "job")]
    config: Option<PathBuf>,
    /// Restore the snapshot in this image.
    #[arg(long, value_name = "IMAGE", group = "job")]
    restore: Option<PathBuf>,
    /// Boot the kernel that is stored in this image, with its stored configuration.
    #[arg(long, value_name = "IMAGE", group = "job")]
    boot: Option<PathBuf>,
    /// Print what an image holds, as JSON.
    #[arg(long, value_name = "IMAGE", group = "job")]
    describe: Option<PathBuf>,
    /// Print what this host offers, as JSON.
    #[arg(long, group = "job")]
    check_host: bool,
    /// Print memory, threads and open files of a running VM, as JSON.
    #[arg(long, value_name = "PID", group = "job")]
    inspect_pid: Option<u32>,
    /// Make VMs of this image for a pool, which orders them by standard input (docs/pool.md).
    #[arg(long, value_name = "IMAGE", group = "job", conflicts_with_all = [
        "id", "save", "record_working_set", "no_software_kvm_options", "tty", "timings", "started_at_ns", "api_sock",
        "metadata", "mmds_size_limit", "http_api_max_payload_size", "start_time_us", "start_time_cpu_us",
        "parent_cpu_time_us", "boot_timer", "landlock_rules", "log_path", "level", "module", "show_level",
        "show_log_origin", "log_format", "metrics_path",
    ])]
    template: Option<PathBuf>,
    /// The VMs of the template can serve the REST API: each has two threads more.
    #[arg(long, requires = "template", conflicts_with_all = [
        "config", "config_file", "restore", "boot", "api_sock", "describe", "describe_snapshot", "snapshot_version",
        "check_host", "inspect_pid",
    ])]
    template_api: bool,
    /// Name of the VM: 1–64 letters, digits and `-`.
    #[arg(long, default_value = "anonymous-instance", value_parser = parse_id)]
    id: String,
    /// Use PATH for drive ID.
    #[arg(long, value_name = "ID=PATH", action = ArgAction::Append, value_parser = parse_pair)]
    disk: Vec<(String, String)>,
    /// Use PATH for the delta of drive ID, which has an overlay.
    #[arg(long, value_name = "ID=PATH", action = ArgAction::Append, value_parser = parse_pair)]
    delta: Vec<(String, String)>,
    /// Use a tap, an inherited one (fd=N), or a network in user space (user) for network interface ID (eth0).
    ///
    /// [ID=]TAP[,queues=N][,ip=A/P[,gw=A][,dns=A]], [ID=]fd=N[,ip=A/P[,gw=A][,dns=A]] or
    /// [ID=]user[,publish=[A:]PORT:PORT[/udp]][,host-loopback] (docs/network.md). A guest with LightV's agent is told the address.
    #[arg(long, value_name = "[ID=]NET", action = ArgAction::Append)]
    net: Vec<NetOverride>,
    /// Use PATH for the socket of vsock.
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,
    /// Give the guest a variable in its environment.
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append, value_parser = parse_pair)]
    env: Vec<(String, String)>,
    /// RAM in MiB (boot only).
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Number of vCPUs (boot only).
    #[arg(long, value_name = "N")]
    vcpus: Option<u64>,
    /// Add text to the kernel command line (boot only).
    #[arg(long, value_name = "TEXT")]
    append: Option<String>,
    /// Do not add the options that a Linux kernel needs on software KVM (boot only).
    #[arg(long, conflicts_with = "restore")]
    no_software_kvm_options: bool,
    /// Save the VM as this image.
    #[arg(long, value_name = "IMAGE")]
    save: Option<PathBuf>,
    /// When to save: at the guest's READY doorbell, or at SIGUSR1.
    #[arg(long, value_enum, default_value_t = SaveAt::Ready, requires = "save")]
    save_at: SaveAt,
    /// What to do after the save.
    #[arg(long, value_enum, default_value_t = AfterSave::End, requires = "save")]
    after_save: AfterSave,
    /// Add the pages that the guest writes in this run to the image that it was restored from.
    #[arg(long, requires = "restore", conflicts_with_all = ["config", "boot"])]
    record_working_set: bool,
    /// Give the guest the terminal on standard input and output; Ctrl-] detaches.
    #[arg(long, conflicts_with = "jail")]
    tty: bool,
    /// Write where the time of the start went, as JSON, to standard error or a file.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true)]
    timings: Option<Option<PathBuf>>,
    /// Count for the timings also what the start touches: page faults, exits by address, pages (docs/profile.md).
    #[arg(long, requires = "timings")]
    profile: bool,
    /// When the caller began, in nanoseconds of CLOCK_MONOTONIC, for --timings.
    #[arg(long, value_name = "NS")]
    started_at_ns: Option<u64>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    outputs: OutputArgs,
    #[command(flatten)]
    jail: JailArgs,
    #[command(flatten)]
    tuning: TuningArgs,
    /// Arguments of this run; given at all, they replace the stored ones.
    #[arg(last = true, help_heading = None)]
    args: Option<Vec<String>>,
    /// The program was called so.
    #[arg(skip)]
    is_firecracker: bool,
}

const EXAMPLES: &str = "\
Examples:
  lightv-vmm --config vm.json
  lightv-vmm --config vm.json --save vm.lv
  lightv-vmm --restore vm.lv --net eth0=tap7 --disk data=copy.img -- words
  lightv-vmm --describe vm.lv
  lightv-vmm --api-sock vm.sock --id vm7
  lightv-vmm --api-sock vm.sock --config vm.json
  lightv-vmm --config vm.json --jail
  lightv-vmm --config vm.json --optimize-performance --pin-vcpus 0=2,1=3 -v
  lightv-vmm --restore vm.lv --jail --jail-uid 1007 --jail-gid 1007
  lightv-vmm --api-sock vm.sock --jail --jail-ro /srv/kernels --jail-rw /srv/vm7
  lightv-vmm --template vm.lv --vsock /run/user/1000/vm-{pid}.sock

Exit status: 0–127 the guest's own (0: it shut down); 1 failure; 148 a forbidden
system call; 152 bad configuration or image; 153 bad arguments; 158 host refused
something; 159 not saved; 160 triple fault; 161 KVM error; 162 guest panic;
163 a fork's memory was lost; 128+N ended by signal N.

SIGPWR asks the guest to end: by its power button, else by Ctrl-Alt-Del.";

/// What the program is called, without the folder that it was found in.
fn name_of(program: Option<&OsString>) -> Option<&OsStr> {
    Path::new(program?).file_name()
}

/// See [`Cli::save_at`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SaveAt {
    Ready,
    Signal,
}

/// See [`Cli::after_save`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AfterSave {
    End,
    Continue,
}

/// What the process is to do.
#[derive(Debug, Clone)]
pub enum Job {
    /// Run a machine.
    Run(Box<RunJob>),
    /// Serve the REST API, and run a machine if there is one.
    Serve(Box<ServeJob>),
    /// Print the version of the snapshot format.
    SnapshotVersion,
    /// Print the version of the snapshot format that a file has.
    DescribeSnapshot(PathBuf),
    /// Print what an image holds.
    Describe(PathBuf),
    /// Print what the host offers.
    CheckHost,
    /// Print what a VM's process takes.
    InspectPid(u32),
    /// Make machines for a pool.
    Template(Box<TemplateJob>),
}

/// Machines that are made for a pool.
#[derive(Debug, Clone)]
pub struct TemplateJob {
    /// The image.
    pub image: PathBuf,
    /// What is changed of its configuration.
    pub overrides: Overrides,
    /// How machines are confined.
    pub confinement: Confinement,
    /// They can serve the REST API.
    pub has_api: bool,
}

/// A server of the REST API.
#[derive(Debug, Clone)]
pub struct ServeJob {
    /// Name of the machine.
    pub id: String,
    /// How it is served.
    pub api: ApiJob,
    /// Log and metrics.
    pub outputs: Outputs,
    /// How the process is confined.
    pub confinement: Confinement,
    /// The machine that is started at once.
    pub run: Option<RunJob>,
}

/// Where a machine comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file.
    Config(PathBuf),
    /// The snapshot of an image.
    Restore(PathBuf),
    /// The kernel of an image.
    Boot(PathBuf),
}

impl Origin {
    /// The image of a restore.
    #[must_use]
    pub fn restored(&self) -> Option<&Path> {
        match self {
            Self::Restore(path) => Some(path),
            _ => None,
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Config(path) | Self::Restore(path) | Self::Boot(path) => path,
        }
    }
}

/// How to run a machine.
#[derive(Debug, Clone)]
pub struct RunJob {
    /// Its name, shown as the process's.
    pub id: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What is changed of its configuration.
    pub overrides: Overrides,
    /// Whether it is saved.
    pub save: Option<SavePlan>,
    /// Whether the pages that it writes are added to its image.
    pub record_working_set: bool,
    /// Whether it is said what a preset has come to.
    pub is_verbose: bool,
    /// Whether the guest has the terminal.
    pub is_tty: bool,
    /// What the metadata service holds, if no API fills it.
    pub metadata: Option<MetadataFile>,
    /// Log and metrics.
    pub outputs: Outputs,
    /// How the process is confined.
    pub confinement: Confinement,
    /// Where timings go.
    pub timings: Option<TimingsSink>,
    /// Whether they say what the start touches.
    pub is_profile: bool,
    /// When the caller began.
    pub started_at_ns: Option<u64>,
}

impl Cli {
    /// Reads these arguments, the program's name first. Called `firecracker`, it has that program's name and version.
    ///
    /// # Errors
    /// clap's: the arguments are refused, or help or version were asked for.
    pub fn parse_from_name(args: Vec<OsString>) -> Result<Self, clap::Error> {
        let is_firecracker = is_firecracker(args.first());
        let mut command = Self::command();
        if is_firecracker {
            let version = format!(
                "v{FIRECRACKER_VERSION}\nLightV {}",
                env!("CARGO_PKG_VERSION")
            );
            command = command.name(APP_NAME).version(version);
        }
        let matches = command.try_get_matches_from(args)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.is_firecracker = is_firecracker;
        let names_work = cli.names_machine() || cli.api.job(is_firecracker).is_some();
        if cli.jail.plan().is_some() && !names_work {
            let text = "--jail needs a machine or --api-sock: there is nothing else to run in it";
            return Err(
                Self::command().error(clap::error::ErrorKind::MissingRequiredArgument, text)
            );
        }
        if cli.profile && cli.api.job(is_firecracker).is_some() {
            let text = "--profile cannot be used where the REST API is served: ask it for /metrics";
            return Err(Self::command().error(clap::error::ErrorKind::ArgumentConflict, text));
        }
        if cli.api.metadata.is_some() && !names_work {
            let text =
                "--metadata needs a machine or --api-sock: without them nobody could read it";
            return Err(
                Self::command().error(clap::error::ErrorKind::MissingRequiredArgument, text)
            );
        }
        Ok(cli)
    }

    /// Whether the log is to say how long the guest took to boot.
    #[must_use]
    pub const fn has_boot_timer(&self) -> bool {
        self.api.boot_timer
    }

    /// Whether a flag was given that does nothing here.
    #[must_use]
    pub const fn has_enable_pci(&self) -> bool {
        self.api.enable_pci
    }

    /// The jail in which it is to be done, if in one.
    #[must_use]
    pub fn jail(&self) -> Option<JailPlan> {
        self.jail.plan()
    }

    const fn names_machine(&self) -> bool {
        self.config.is_some()
            || self.api.config_file.is_some()
            || self.restore.is_some()
            || self.boot.is_some()
    }

    /// What was asked for; `None` when nothing was.
    #[must_use]
    pub fn into_job(self) -> Option<Job> {
        if self.api.snapshot_version {
            return Some(Job::SnapshotVersion);
        }
        if let Some(path) = self.api.describe_snapshot {
            return Some(Job::DescribeSnapshot(path));
        }
        if let Some(image) = self.describe {
            return Some(Job::Describe(image));
        }
        if self.check_host {
            return Some(Job::CheckHost);
        }
        if let Some(pid) = self.inspect_pid {
            return Some(Job::InspectPid(pid));
        }
        if let Some(image) = &self.template {
            return Some(Job::Template(Box::new(TemplateJob {
                image: image.clone(),
                overrides: self.overrides(),
                confinement: self.api.confinement(),
                has_api: self.template_api,
            })));
        }
        let api = self.api.job(self.is_firecracker);
        let id = self.id.clone();
        let outputs = self.outputs.outputs();
        let confinement = self.api.confinement();
        let run = self.into_run();
        match api {
            Some(api) => Some(Job::Serve(Box::new(ServeJob {
                id,
                api,
                outputs,
                confinement,
                run,
            }))),
            None => run.map(|run| Job::Run(Box::new(run))),
        }
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            is_from_api: false,
            disks: with_paths(self.disk.clone()),
            deltas: with_paths(self.delta.clone()),
            nets: self.net.clone(),
            vsock: self.vsock.clone(),
            env: self.env.clone(),
            args: self.args.clone(),
            cpu: None,
            memory_mib: self.memory,
            vcpus: self.vcpus,
            huge_pages: self.tuning.huge_pages(),
            tuning: self.tuning.spec(),
            append: self.append.clone(),
            no_software_kvm_options: self.no_software_kvm_options,
        }
    }

    fn into_run(self) -> Option<RunJob> {
        let metadata = self.api.metadata_file();
        let confinement = self.api.confinement();
        let overrides = self.overrides();
        let origin = match (
            self.config.or(self.api.config_file),
            self.restore,
            self.boot,
        ) {
            (Some(path), ..) => Origin::Config(path),
            (_, Some(path), _) => Origin::Restore(path),
            (.., Some(path)) => Origin::Boot(path),
            _ => return None,
        };
        let by_us = self.api.start_time_us.map(|us| us.saturating_mul(1000));
        let moment = match self.save_at {
            SaveAt::Ready => SaveMoment::Ready,
            SaveAt::Signal => SaveMoment::Signal,
        };
        let go_on = self.after_save == AfterSave::Continue;
        Some(RunJob {
            id: self.id,
            origin,
            overrides,
            save: self.save.map(|path| SavePlan {
                path,
                moment,
                go_on,
            }),
            record_working_set: self.record_working_set,
            is_verbose: self.tuning.verbose,
            is_tty: self.tty,
            metadata,
            outputs: self.outputs.outputs(),
            confinement,
            timings: self
                .timings
                .map(|path| path.map_or(TimingsSink::Stderr, TimingsSink::File)),
            is_profile: self.profile,
            started_at_ns: self.started_at_ns.or(by_us),
        })
    }
}

/// Whether these arguments, the program's name first, ask for a machine without a terminal and a jail, which can be begun
/// before they are parsed: with either, this process is not the monitor.
#[must_use]
pub fn names_a_machine(args: impl Iterator<Item = OsString>) -> bool {
    let options = [
        "--config",
        "--restore",
        "--boot",
        "--config-file",
        "--api-sock",
    ];
    let options = options.map(str::as_bytes);
    let mut is_named = false;
    for arg in args.skip(1).take_while(|arg| arg != "--") {
        let name = arg.as_encoded_bytes().split(|byte| *byte == b'=').next();
        is_named |= name.is_some_and(|name| options.contains(&name));
        if arg == "--tty" || arg == "--jail" {
            return false;
        }
    }
    is_named
}

fn with_paths(pairs: Vec<(String, String)>) -> Vec<(String, PathBuf)> {
    let pairs = pairs.into_iter();
    pairs.map(|(id, path)| (id, path.into())).collect()
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE is needed".to_owned()),
    }
}

fn parse_id(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if plain && (1..=64).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("1–64 letters, digits and `-` are allowed".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(args: &[&str]) -> Result<Option<Job>, clap::Error> {
        Cli::try_parse_from([&["lightv-vmm"], args].concat()).map(Cli::into_job)
    }

    #[test]
    fn a_restore_with_all_its_changes_is_understood() {
        let Ok(Some(Job::Run(run))) = job(&[
            "--restore",
            "a.lv",
            "--net",
            "eth0=t",
            "--disk",
            "d=/p=q",
            "--delta",
            "d=x",
            "--vsock",
            "v.sock",
            "--env",
            "A=",
            "--",
            "x",
            "--y",
        ]) else {
            panic!("refused");
        };
        assert_eq!(run.origin, Origin::Restore("a.lv".into()));
        assert_eq!(
            run.overrides.disks,
            [("d".to_owned(), PathBuf::from("/p=q"))]
        );
        let deltas = [("d".to_owned(), PathBuf::from("x"))];
        assert_eq!(run.overrides.deltas, deltas);
        assert_eq!(run.overrides.vsock, Some("v.sock".into()));
        assert_eq!(run.overrides.env, [("A".to_owned(), String::new())]);
        assert_eq!(
            run.overrides.args,
            Some(vec!["x".to_owned(), "--y".to_owned()])
        );
    }

    #[test]
    fn a_template_has_what_all_its_machines_have_in_common() {
        let args = [
            "--template",
            "a.lv",
            "--template-api",
            "--vsock",
            "{pid}",
            "--",
            "x",
        ];
        let Ok(Some(Job::Template(found))) = job(&args) else {
            panic!("refused");
        };
        assert_eq!(found.image, PathBuf::from("a.lv"));
        assert!(found.has_api);
        assert_eq!(found.overrides.vsock, Some("{pid}".into()));
        assert_eq!(found.overrides.args, Some(vec!["x".to_owned()]));
    }

    #[test]
    fn two_jobs_or_half_a_pair_are_refused() {
        for args in [
            &["--template", "a", "--restore", "b"][..],
            &["--template", "a", "--id", "b"],
            &["--template", "a", "--save", "b"],
            &["--restore", "a", "--template-api"],
            &["--restore", "a", "--config", "b"],
            &["--restore", "a", "--net", "eth0="],
            &["--restore", "a", "--net", "=tap"],
            &["--restore", "a", "--id", "a_b"],
            &["--restore", "a", "--id", ""],
            &["--save-at", "ready", "--restore", "a"],
            &["--config", "a", "--record-working-set"],
            &["--nope"],
        ] {
            assert!(job(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_machine_is_named_by_its_option_and_not_by_an_argument_of_the_guest() {
        let named = |line: &str| names_a_machine(line.split_whitespace().map(OsString::from));
        for line in [
            "v --restore a -- --tty",
            "v --restore a",
            "v --id x --boot=a",
            "v --config -",
        ] {
            assert!(named(line), "{line}");
        }
        for line in [
            "v",
            "v --check-host",
            "v --describe a -- --restore b",
            "v --restored a",
            "v --restore a --tty",
            "v --restore a --jail",
            "v --tty --config=a",
        ] {
            assert!(!named(line), "{line}");
        }
    }

    #[test]
    fn no_arguments_after_the_dashes_are_not_the_same_as_no_dashes() {
        let args_of = |args: &[&str]| match job(args) {
            Ok(Some(Job::Run(run))) => run.overrides.args,
            other => panic!("{other:?}"),
        };
        assert_eq!(args_of(&["--restore", "a"]), None);
    }
}
