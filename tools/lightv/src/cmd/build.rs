//! `lightv build`: boots a guest until it is ready and keeps it as an image.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{self, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Parser};
use lightv_api::config::{
    BootSource, DEFAULT_BOOT_ARGS, DriveSpec, EntropySpec, MachineSpec, Ready, RunSpec, VmSpec,
};
use lightv_api::contract::drive::OverlaySpec;
use lightv_api::contract::tuning::{Preset, TuningSpec};
use lightv_api::exit;

use lightv_rootfs::{BuildFile, ReadBuildFileError};
use lightv_vmm::args::PresetArgs;
use lightv_vmm::net_override::NetFault;

use super::build_rootfs::{ReadySign, RootfsArgs};
use super::show;
use crate::build::{self, BuildPlan, Kernel, Overwrite, SaveAt, WorkingSet};
use crate::embedded;
use crate::failure::{Coded, Failure};
use crate::rootfs::RootfsPlan;
use crate::spec_args::{DiskArg, EnvArg, NetArg, ip_parameter};
use crate::text;

/// Build an image: boot a guest until it is ready, and save it
///
/// The guest's output goes to standard error. Either the image is whole or there is none.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("guest").required(true).multiple(true).args(["name", "kernel", "app", "rootfs", "file"]))]
pub(crate) struct BuildArgs {
    /// An embedded app: hello-world, http, echo, … (an unknown name lists all)
    #[arg(conflicts_with_all = ["kernel", "app", "rootfs", "file"])]
    name: Option<String>,
    /// The image to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite an image that exists
    #[arg(long)]
    force: bool,
    /// A kernel: ELF or bzImage (with --rootfs: default is the one of `cargo xtask linux`)
    #[arg(long, value_name = "FILE")]
    kernel: Option<String>,
    /// An initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<String>,
    /// Kernel command line (default: Firecracker's, or what suits --rootfs)
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// App of the minimal guest: `app=NAME` on the command line
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Add a disk; behind its path there may be ro, root, in-image, overlay, …
    ///
    /// All options, each behind a comma: ro, root, in-image, direct, discard, queues=N, overlay[=DELTA], overlay-size=MIB,
    /// cache=writeback, engine=async (docs/api.md, docs/overlay.md).
    #[arg(long, value_name = "ID=PATH[,…]")]
    disk: Vec<DiskArg>,
    /// Add a network interface: on a tap, on an inherited one (fd=N), or on a network in user space that needs no privileges
    /// (user)
    ///
    /// [ID=]TAP[,queues=N][,mac=M][,ip=A/P[,gw=A][,dns=A]], [ID=]fd=N[,mac=M][,ip=A/P[,gw=A][,dns=A]] or
    /// [ID=]user[,mac=M][,publish=[A:]PORT:PORT[/udp]][,host-loopback] (docs/network.md). ID is eth0 when left out. The address
    /// is told to the guest as `ip=…`, with --rootfs to its agent.
    #[arg(long, value_name = "[ID=]NET")]
    net: Vec<NetArg>,
    /// Add a source of random bytes (default with --kernel)
    #[arg(long, conflicts_with = "no_entropy")]
    entropy: bool,
    /// Leave the source of random bytes out (default for embedded apps)
    #[arg(long)]
    no_entropy: bool,
    /// Guest memory in MiB (default: 128)
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Number of vCPUs (default: 1)
    #[arg(long, value_name = "N")]
    vcpus: Option<u64>,
    /// Have the guest read its devices' registers by exits: for a driver that waits until InterruptStatus is 0 (docs/api.md)
    #[arg(long)]
    no_register_pages: bool,
    /// Set a variable of the guest's environment; without VALUE it is passed through
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<EnvArg>,
    /// What tells that the guest is ready: its doorbell (default), or SIGUSR1 with `signal`. With --rootfs: the program is
    /// loaded and stands before its first instruction with `exec` (default), it says so with `doorbell`, it listens with
    /// `listen:PORT`
    #[arg(long, value_name = "SIGN")]
    ready: Option<ReadySign>,
    /// Give up when the guest is not ready by then
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Run the image once, to the guest's own end, and keep the pages it writes ready for later starts; --optimize-startup does
    /// so too
    #[arg(long)]
    warm: bool,
    #[command(flatten)]
    preset: PresetArgs,
    #[command(flatten)]
    rootfs: RootfsArgs,
    /// Arguments for the guest; `lightv run` can replace them
    #[arg(last = true, help_heading = None)]
    args: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  lightv build hello-world -o hello-world.lv
  lightv build --kernel vmlinux --disk root=rootfs.img,root,ro -o base.lv
  lightv build http --net tap0,ip=10.0.0.2/24,gw=10.0.0.1 -o web.lv -- 80
  lightv build --rootfs python.oci.tar -o py.lv -- python3 -c 'print(6 * 7)'
  lightv build --rootfs folder --ready listen:80 -o server.lv -- /bin/server
  lightv build --file lightv.toml -o app.lv

Exit codes: 0 built, 152 configuration refused, 153 command line refused, 159
not saved; `lightv --help` lists all.";

/// Why nothing is built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildArgsError {
    #[error("There is no embedded app {name}; there are: {}", embedded::names())]
    UnknownApp { name: String },
    #[error(
        "--ready {sign} is for Linux guests with LightV's agent (--rootfs); others ring the doorbell, or are saved by signal"
    )]
    NeedsAgent { sign: &'static str },
    #[error(transparent)]
    BuildFile(#[from] ReadBuildFileError),
    #[error("{} names no rootfs; add one, or give --rootfs", path.display())]
    NoRootfs { path: PathBuf },
    #[error("{}: net {text:?}: {cause}", path.display())]
    BuildFileNet {
        path: PathBuf,
        text: String,
        cause: NetFault,
    },
    #[error("Cannot make the path of disk {id} absolute")]
    DiskPath {
        id: String,
        #[source]
        cause: std::io::Error,
    },
}

impl Coded for BuildArgsError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownApp { .. } | Self::NeedsAgent { .. } | Self::DiskPath { .. } => {
                exit::BAD_ARGUMENTS
            }
            Self::BuildFile(_) | Self::NoRootfs { .. } | Self::BuildFileNet { .. } => {
                exit::BAD_CONFIG
            }
        }
    }
}

/// Builds the image and prints one line about it.
pub(crate) fn run(args: BuildArgs) -> Result<ExitCode, Failure> {
    let plan = args.into_plan()?;
    let (out, memory_mib) = (plan.out.clone(), plan.spec.machine_config.mem_size_mib);
    let built = build::build(plan)?;
    let size = text::bytes(built.metadata.len());
    let allocated = text::bytes(built.metadata.blocks() * 512);
    show(|stdout| {
        use std::io::Write as _;
        writeln!(
            stdout,
            "{}: {size} (allocated {allocated}), {memory_mib} MiB RAM, built in {:.2} s",
            out.display(),
            built.took.as_secs_f64()
        )
    })
}

impl BuildArgs {
    fn into_plan(mut self) -> Result<BuildPlan, BuildArgsError> {
        let file = self.read_build_file()?;
        self.memory = self.memory.or(file.memory);
        self.vcpus = self.vcpus.or(file.vcpus);
        let save_at = self.save_at()?;
        let rootfs = self.take_rootfs(&file)?;
        let kernel = match (&rootfs, &self.kernel) {
            (None, None) => Kernel::Embedded,
            _ => Kernel::Configured,
        };
        let is_warm = self.warm || self.preset.preset() == Some(Preset::Startup);
        let working_set = match is_warm {
            true => WorkingSet::Recorded,
            false => WorkingSet::Unknown,
        };
        let overwrite = match self.force {
            true => Overwrite::Replace,
            false => Overwrite::Refuse,
        };
        let (out, timeout) = (self.out.clone(), Duration::from_secs(self.timeout));
        Ok(BuildPlan {
            spec: self.into_spec(kernel)?,
            kernel,
            rootfs,
            out,
            overwrite,
            save_at,
            timeout,
            working_set,
        })
    }

    /// What the build file says; nothing when there is none. Its network interfaces come before those that were typed.
    fn read_build_file(&mut self) -> Result<BuildFile, BuildArgsError> {
        let Some(path) = self.rootfs.file.clone() else {
            return Ok(BuildFile::default());
        };
        let file = BuildFile::read(&path)?;
        if self.rootfs.rootfs.is_none() && file.rootfs.is_none() {
            return Err(BuildArgsError::NoRootfs { path });
        }
        let parse = |text: &String| {
            text.parse::<NetArg>()
                .map_err(|cause| BuildArgsError::BuildFileNet {
                    path: path.clone(),
                    text: text.clone(),
                    cause,
                })
        };
        let nets = file.net.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        self.net.splice(0..0, nets);
        Ok(file)
    }

    fn save_at(&self) -> Result<SaveAt, BuildArgsError> {
        match self.ready {
            Some(ReadySign::Signal) => Ok(SaveAt::Signal),
            None | Some(ReadySign::Agent(Ready::Doorbell)) => Ok(SaveAt::Doorbell),
            Some(ReadySign::Agent(_)) if self.rootfs.is_wanted() => Ok(SaveAt::Doorbell),
            Some(ReadySign::Agent(Ready::Exec)) => Err(BuildArgsError::NeedsAgent { sign: "exec" }),
            Some(ReadySign::Agent(Ready::Listen(_))) => {
                Err(BuildArgsError::NeedsAgent { sign: "listen" })
            }
        }
    }

    /// The root file system, with all that its agent is told.
    fn take_rootfs(&mut self, file: &BuildFile) -> Result<Option<RootfsPlan>, BuildArgsError> {
        if !self.rootfs.is_wanted() {
            return Ok(None);
        }
        let rootfs = std::mem::take(&mut self.rootfs);
        let args = std::mem::take(&mut self.args);
        let Some(mut plan) = rootfs.plan(file, args) else {
            return Ok(None);
        };
        let addresses = self.net.iter().enumerate();
        plan.network = addresses
            .filter_map(|(index, net)| Some(net.address.as_ref()?.for_agent(index)))
            .collect();
        plan.env.extend(
            std::mem::take(&mut self.env)
                .into_iter()
                .map(|env| (env.name, env.value)),
        );
        if let Some(ReadySign::Agent(ready)) = self.ready {
            plan.ready = ready;
        }
        plan.kernel = self.kernel.take().map(PathBuf::from).or(plan.kernel);
        plan.cmdline = self.cmdline.take();
        Ok(Some(plan))
    }

    /// The machine; with a root file system, kernel, root disk and program are added later.
    fn into_spec(self, kernel: Kernel) -> Result<VmSpec, BuildArgsError> {
        let boot_args = self.boot_args()?;
        let has_entropy = self.entropy || (kernel == Kernel::Configured && !self.no_entropy);
        let env: BTreeMap<String, String> = self
            .env
            .into_iter()
            .map(|env| (env.name, env.value))
            .collect();
        let run = RunSpec {
            args: self.args,
            env,
            agent: None,
        };
        let machine = MachineSpec::default();
        Ok(VmSpec {
            boot_source: Some(BootSource {
                kernel_image_path: self.kernel.unwrap_or_default().into(),
                initrd_path: self.initrd.map(PathBuf::from),
                boot_args,
                ..BootSource::default()
            }),
            machine_config: MachineSpec {
                vcpu_count: self.vcpus.unwrap_or(machine.vcpu_count),
                mem_size_mib: self.memory.unwrap_or(machine.mem_size_mib),
                register_pages: !self.no_register_pages,
                tuning: self.preset.preset().map(|preset| TuningSpec {
                    optimize: Some(preset),
                    ..TuningSpec::default()
                }),
                ..machine
            },
            drives: self
                .disk
                .into_iter()
                .map(absolute)
                .collect::<Result<_, _>>()?,
            network_interfaces: self.net.into_iter().map(|net| net.spec).collect(),
            entropy: has_entropy.then(EntropySpec::default),
            run: (run != RunSpec::default()).then_some(run),
            ..VmSpec::default()
        })
    }

    /// The command line: what was typed, else the default; then the app and the addresses. `None`: all default.
    fn boot_args(&self) -> Result<Option<String>, BuildArgsError> {
        let named = self.name.as_deref().map(|name| {
            embedded::app(name).ok_or_else(|| BuildArgsError::UnknownApp { name: name.into() })
        });
        let app = named
            .transpose()?
            .or(self.app.as_deref())
            .map(|app| format!("app={app}"));
        let addresses = self.net.iter().enumerate();
        let addresses =
            addresses.filter_map(|(index, net)| Some(ip_parameter(net.address.as_ref()?, index)));
        let added: Vec<String> = app.into_iter().chain(addresses).collect();
        let base = match &self.cmdline {
            Some(text) => text.as_str(),
            None if self.kernel.is_some() && added.is_empty() => return Ok(None),
            None if self.kernel.is_some() => DEFAULT_BOOT_ARGS,
            None => "",
        };
        // What comes after a stand-alone `--` is for init: ours goes before it.
        let (parameters, for_init) = match base.split_once(" -- ") {
            Some((parameters, for_init)) => (parameters, Some(format!("-- {for_init}"))),
            None => (base, None),
        };
        let parts = [parameters.to_owned()]
            .into_iter()
            .chain(added)
            .chain(for_init);
        let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
        Ok(Some(parts.join(" ")))
    }
}

/// An image is run from other folders than the one in which it was built.
fn absolute(disk: DiskArg) -> Result<DriveSpec, BuildArgsError> {
    let drive = disk.0;
    let id = drive.drive_id.clone();
    let absolute = |path: PathBuf| {
        let id = id.clone();
        path::absolute(path).map_err(|cause| BuildArgsError::DiskPath { id, cause })
    };
    let overlay = match drive.overlay {
        Some(overlay) => Some(OverlaySpec {
            path: overlay.path.map(absolute).transpose()?,
            ..overlay
        }),
        None => None,
    };
    Ok(DriveSpec {
        path_on_host: absolute(drive.path_on_host)?,
        overlay,
        ..drive
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> BuildPlan {
        let args = BuildArgs::try_parse_from(line.split(' ')).expect(line);
        args.into_plan().expect(line)
    }

    fn boot_args(line: &str) -> Option<String> {
        plan(line).spec.boot_source.and_then(|boot| boot.boot_args)
    }

    #[test]
    fn command_lines_hold_app_and_addresses() {
        let check = |line: &str, expected: Option<&str>| {
            assert_eq!(boot_args(line).as_deref(), expected, "{line}");
        };
        check("build hello-world -o x", Some("app=hello"));
        check("build --app echo --cmdline a=b -o x", Some("a=b app=echo"));
        check("build --kernel k -o x", None);
        check("build --kernel k --cmdline quiet -o x", Some("quiet"));
        check(
            "build --app echo --net tap0,ip=10.0.0.2/24 -o x",
            Some("app=echo ip=10.0.0.2:::255.255.255.0::eth0:off"),
        );
        let added = boot_args("build --kernel k --app echo -o x");
        assert_eq!(added, Some(format!("{DEFAULT_BOOT_ARGS} app=echo")));
    }

    #[test]
    fn parameters_go_before_what_is_for_init() {
        let args = BuildArgs::try_parse_from([
            "build",
            "--kernel",
            "k",
            "--cmdline",
            "quiet -- init x",
            "--app",
            "a",
            "-o",
            "x",
        ]);
        let spec = args.expect("valid").into_plan().expect("valid").spec;
        let boot_args = spec.boot_source.and_then(|boot| boot.boot_args);
        assert_eq!(boot_args.as_deref(), Some("quiet app=a -- init x"));
    }

    #[test]
    fn entropy_is_for_kernels_of_others() {
        let has_entropy = |line: &str| plan(line).spec.entropy.is_some();
        assert!(!has_entropy("build hello -o x"));
        assert!(has_entropy("build hello --entropy -o x"));
        assert!(has_entropy("build --kernel k -o x"));
        assert!(!has_entropy("build --kernel k --no-entropy -o x"));
    }

    #[test]
    fn unknown_apps_are_named() {
        let args = BuildArgs::try_parse_from(["build", "nothing", "-o", "x"]).expect("valid");
        let message = args.into_plan().expect_err("no such app").to_string();
        assert!(
            message.contains("nothing") && message.contains("hello-world"),
            "{message}"
        );
    }

    #[test]
    fn disks_are_found_from_anywhere() {
        let drives = plan("build hello --disk d=x.img -o x").spec.drives;
        assert!(drives[0].path_on_host.is_absolute());
    }
}
