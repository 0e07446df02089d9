//! A Linux guest of a root file system: what `lightv build --rootfs` adds to a machine.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};

use lightv_api::config::{
    AgentSpec, BootSource, ConsoleSpec, DriveSpec, ExecSpec, InterfaceSpec, Ready, RunSpec, VmSpec,
    Writable,
};
use lightv_api::exit;
use lightv_contract::AGENT_PATH;
use lightv_rootfs::{
    AgentState, Blame, BuildRequest, BuildRootfsError, Compression, CopySpec, DetectSourceError,
    Format, ProgramSettings, Source,
};

use crate::cache_folder;
use crate::embedded;
use crate::failure::Coded;

/// Names a kernel for Linux guests.
const KERNEL_VARIABLE: &str = "LIGHTV_LINUX_KERNEL";
/// Where an installed kernel lies, from the folder of our program.
const INSTALLED_KERNEL: &str = "../lib/lightv/vmlinux";
/// The kernel's command line when none is given: its log tells of the worst only (a panic, an oops), and a panic ends the
/// machine at once.
const CMDLINE: &str = "console=ttyS0 loglevel=3 reboot=k panic=-1";
/// Id of the root disk.
const ROOT_ID: &str = "root";

/// What is to be built and run.
#[derive(Debug, Default)]
pub(crate) struct RootfsPlan {
    /// What the root file system is made of.
    pub(crate) source: PathBuf,
    pub(crate) format: Option<Format>,
    pub(crate) compression: Compression,
    pub(crate) copies: Vec<CopySpec>,
    /// `None`: that of the source.
    pub(crate) entrypoint: Option<Vec<String>>,
    /// `None`: that of the source, unless there is another entrypoint.
    pub(crate) cmd: Option<Vec<String>>,
    /// Added to that of the source.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) workdir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) network: Vec<InterfaceSpec>,
    /// Whether programs can be started in it while it runs.
    pub(crate) has_exec: bool,
    pub(crate) ready: Ready,
    pub(crate) writable: Writable,
    /// `None`: [`find_kernel`].
    pub(crate) kernel: Option<PathBuf>,
    /// The user's part of the command line. `None`: [`CMDLINE`].
    pub(crate) cmdline: Option<String>,
}

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error(transparent)]
    Source(#[from] DetectSourceError),
    #[error(transparent)]
    Build(#[from] BuildRootfsError),
    #[error(
        "There is nothing to run in {}: it names no program; give one with --cmd, --entrypoint, or after --",
        source_path.display()
    )]
    NoProgram { source_path: PathBuf },
    #[error(
        "There is no Linux kernel: neither {KERNEL_VARIABLE} nor {} nor {} names a file. Build it with `cargo xtask \
         linux`, or give another with --kernel", installed.display(), cached.display()
    )]
    NoKernel { installed: PathBuf, cached: PathBuf },
}

impl Coded for RootfsError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Build(cause) if cause.blame() == Blame::Host => exit::HOST_FAILURE,
            Self::Source(_) | Self::Build(_) | Self::NoProgram { .. } | Self::NoKernel { .. } => {
                exit::BAD_CONFIG
            }
        }
    }
}

/// Builds the root file system in the folder `work`, and makes `spec` a machine that runs the program in it.
pub(crate) fn add(plan: RootfsPlan, work: &Path, spec: &mut VmSpec) -> Result<(), RootfsError> {
    let kernel = match &plan.kernel {
        Some(kernel) => kernel.clone(),
        None => find_kernel()?,
    };
    let source = Source::detect(&plan.source)?;
    let image = work.join("root.img");
    let built = lightv_rootfs::build(&BuildRequest {
        source: &source,
        out: &image,
        format: plan.format,
        compression: plan.compression,
        size_mib: None,
        agent: embedded::AGENT,
        copies: &plan.copies,
    })?;
    if built.agent == AgentState::Unknown {
        eprintln!(
            "lightv: {} is used as it is: it must have LightV's agent as {AGENT_PATH}",
            plan.source.display()
        );
    }
    spec.boot_source = Some(BootSource {
        kernel_image_path: kernel,
        boot_args: Some(boot_args(plan.cmdline.as_deref(), built.format)),
        ..BootSource::default()
    });
    let root = DriveSpec {
        drive_id: ROOT_ID.into(),
        is_root_device: true,
        path_on_host: image,
        is_read_only: true,
        in_image: Some(true),
        ..DriveSpec::default()
    };
    spec.drives.insert(0, root);
    spec.console = Some(ConsoleSpec::default());
    spec.exec = plan.has_exec.then(ExecSpec::default);
    spec.run = Some(run_spec(plan, built.settings)?);
    Ok(())
}

fn boot_args(cmdline: Option<&str>, format: Format) -> String {
    format!(
        "{} rootfstype={format} init={AGENT_PATH}",
        cmdline.unwrap_or(CMDLINE)
    )
}

/// What was asked for, and the source's own settings where nothing was. As everywhere, another entrypoint does away with
/// the words that were to follow the old one.
fn run_spec(plan: RootfsPlan, source: ProgramSettings) -> Result<RunSpec, RootfsError> {
    let own_cmd = if plan.entrypoint.is_some() {
        Vec::new()
    } else {
        source.cmd
    };
    let entrypoint = plan.entrypoint.unwrap_or(source.entrypoint);
    let args = plan.cmd.unwrap_or(own_cmd);
    if entrypoint.is_empty() && args.is_empty() {
        return Err(RootfsError::NoProgram {
            source_path: plan.source,
        });
    }
    let mut env = source.env;
    env.extend(plan.env);
    Ok(RunSpec {
        args,
        env,
        agent: Some(AgentSpec {
            entrypoint,
            workdir: plan.workdir.or(source.workdir),
            user: plan.user.or(source.user),
            hostname: plan.hostname,
            network: plan.network,
            ready: plan.ready,
            writable: plan.writable,
        }),
    })
}

/// The kernel that LIGHTV_LINUX_KERNEL names, else the one that was installed with us, else the one that `cargo xtask
/// linux` built last.
fn find_kernel() -> Result<PathBuf, RootfsError> {
    if let Some(named) = env::var_os(KERNEL_VARIABLE) {
        return Ok(named.into());
    }
    let beside = env::current_exe().ok();
    let installed = beside
        .as_deref()
        .and_then(Path::parent)
        .unwrap_or(Path::new("."))
        .join(INSTALLED_KERNEL);
    let cached = cache_folder::base()
        .unwrap_or_default()
        .join("linux")
        .join("vmlinux");
    let found = [&installed, &cached]
        .into_iter()
        .find(|path| path.is_file())
        .cloned();
    found.ok_or(RootfsError::NoKernel { installed, cached })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn source() -> ProgramSettings {
        ProgramSettings {
            entrypoint: words("entry"),
            cmd: words("a b"),
            env: BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2".into())]),
            workdir: Some("/srv".into()),
            user: Some("www".into()),
            ..ProgramSettings::default()
        }
    }

    #[test]
    fn words_of_the_source_follow_its_own_entrypoint_only() {
        let told = |entrypoint: Option<&str>, cmd: Option<&str>| {
            let plan = RootfsPlan {
                entrypoint: entrypoint.map(words),
                cmd: cmd.map(words),
                ..RootfsPlan::default()
            };
            let run = run_spec(plan, source()).expect("a program");
            let agent = run.agent.expect("orders");
            [agent.entrypoint, run.args].concat().join(" ")
        };
        assert_eq!(told(None, None), "entry a b");
        assert_eq!(told(None, Some("c")), "entry c");
        assert_eq!(told(None, Some("")), "entry");
        assert_eq!(told(Some("other"), None), "other");
        assert_eq!(told(Some("other"), Some("c d")), "other c d");
    }

    #[test]
    fn settings_of_the_source_hold_where_nothing_else_was_said() {
        let plan = RootfsPlan {
            env: BTreeMap::from([("B".into(), "3".into())]),
            user: Some("0".into()),
            ..RootfsPlan::default()
        };
        let run = run_spec(plan, source()).expect("a program");
        let agent = run.agent.expect("orders");
        assert_eq!(agent.workdir.as_deref(), Some("/srv"));
        assert_eq!(agent.user.as_deref(), Some("0"));
        let env: Vec<String> = run.env.into_iter().map(|(k, v)| k + "=" + &v).collect();
        assert_eq!(env, ["A=1", "B=3"]);
    }

    #[test]
    fn nothing_to_run_is_said_before_anything_boots() {
        let plan = RootfsPlan {
            source: "folder".into(),
            ..RootfsPlan::default()
        };
        let refused = run_spec(plan, ProgramSettings::default());
        let text = refused.expect_err("no program").to_string();
        assert!(text.contains("folder") && text.contains("--cmd"), "{text}");
    }

    #[test]
    fn the_command_line_says_what_the_root_is() {
        let found = boot_args(Some("debug"), Format::Squashfs);
        assert_eq!(found, "debug rootfstype=squashfs init=/.lightv/init");
        assert!(boot_args(None, Format::Erofs).starts_with("console=ttyS0 loglevel=3"));
    }
}
