//! `lightv run`: becomes the monitor of a machine.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use lightv_api::exit;
use lightv_vmm::args::{JailArgs, Origin, OutputArgs, RunJob, TuningArgs};
use lightv_vmm::confinement::{Confinement, SeccompChoice};
use lightv_vmm::metadata::MetadataFile;
use lightv_vmm::net_override::NetOverride;
use lightv_vmm::overrides::Overrides;
use lightv_vmm::stamps::TimingsSink;
use lightv_vmm::{describe, job};

use super::timings::{self, TimingsForm};
use crate::background::Background;
use crate::failure::{Coded, Failure};
use crate::spec_args::{EnvArg, Replacement};
use crate::{agent_run, cache, embedded, monitor};

/// Run a microVM from an image
///
/// The guest's output goes to standard output, and its exit status becomes ours. The process itself is the monitor, under
/// the name lightv-vmm.
///
/// An image is as trusted as a program: it names the disks and taps that its machine opens, with your rights.
/// `lightv inspect` lists them; --disk, --net and --vsock replace them.
#[derive(Debug, Default, PartialEq, Parser)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArgs {
    /// An image file (.lv), or an embedded app: hello-world, http, echo, … (an unknown name lists all)
    pub(crate) image: PathBuf,
    /// Connect interface ID (eth0) to a tap, to an inherited one (fd=N), or to a network in user space that needs no
    /// privileges (user)
    ///
    /// [ID=]TAP[,queues=N][,ip=A/P[,gw=A][,dns=A]], [ID=]fd=N[,ip=A/P[,gw=A][,dns=A]] or
    /// [ID=]user[,publish=[A:]PORT:PORT[/udp]][,host-loopback] (docs/network.md). A Linux guest is told the address.
    #[arg(long, value_name = "[ID=]NET")]
    net: Vec<NetOverride>,
    /// Use another file for disk ID
    #[arg(long, value_name = "ID=PATH", value_parser = Replacement::disk)]
    disk: Vec<Replacement>,
    /// Use another file for the delta of disk ID, which has an overlay
    #[arg(long, value_name = "ID=PATH", value_parser = Replacement::disk)]
    delta: Vec<Replacement>,
    /// Use another path for the socket of vsock
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,
    /// Set a variable of the guest's environment; without VALUE it is passed through
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<EnvArg>,
    /// Boot the image's kernel instead of restoring its snapshot
    #[arg(long)]
    cold: bool,
    /// Guest memory in MiB (only with --cold)
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Number of vCPUs (only with --cold)
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Give the guest our terminal; Ctrl-] detaches. The default when standard input and output are a terminal and the
    /// image has a console
    #[arg(short, long, conflicts_with_all = ["no_tty", "jail"])]
    tty: bool,
    /// Give the guest standard input, output and error as they are, also when they are a terminal
    #[arg(long)]
    no_tty: bool,
    /// Run in the background, print the microVM's id, and serve its REST API (lightv ps, logs, stop, api)
    #[arg(short, long, conflicts_with_all = ["tty", "timings"])]
    detach: bool,
    /// Name of the microVM, with --detach: 1–64 letters, digits and `-` [default: from the image's name]
    #[arg(long, requires = "detach")]
    name: Option<String>,
    /// Begin with the JSON object in this file as metadata, which the guest reads by the metadata service (docs/mmds.md)
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// Do not hold the monitor's threads to the system calls that they need (docs/isolation.md)
    #[arg(long)]
    no_seccomp: bool,
    /// Start it here, also where the host agent has a microVM of this image ready (docs/agent.md)
    #[arg(long)]
    no_agent: bool,
    /// Print where the time of the start went
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    timings: Option<TimingsForm>,
    #[command(flatten)]
    outputs: OutputArgs,
    #[command(flatten)]
    jail: JailArgs,
    #[command(flatten)]
    tuning: TuningArgs,
    /// Arguments for the guest; they replace those in the image
    #[arg(last = true, help_heading = None)]
    pub(crate) args: Vec<OsString>,
    /// Whether there was a `--`: even without arguments behind it, it replaces those in the image
    #[arg(skip)]
    pub(crate) has_separator: bool,
}

const EXAMPLES: &str = "\
Examples:
  lightv run hello-world                   an embedded app, built once and kept
  lightv run hello.lv -- everyone          arguments for the guest
  lightv run web.lv --net tap7 -e TOKEN    another tap; our TOKEN
  lightv run web.lv --net user,publish=8080:80   by passt, without privileges
  lightv run hello.lv --timings            where the time went, after the run
  lightv run --cold --memory 256 hello.lv  boot instead of restore
  lightv run -t shell.lv                   at the terminal; Ctrl-] detaches
  lightv run --jail web.lv --net user      sees its own files alone
  lightv run --no-agent web.lv             whatever the host agent has ready
  lightv run --optimize-performance -v web.lv    says what it chose
  lightv run -d --name web web.lv          in the background; lightv stop web

Signals: a guest with LightV's agent gets SIGHUP, SIGINT, SIGQUIT, SIGTERM and
SIGUSR2 as its program's; 10 seconds after SIGTERM, or at the second one, it is
ended. Without the agent they end it at once.

Exit codes: the guest's own (0-127); `lightv --help` lists the others.";

/// What a run by the host agent has of its own: arguments and environment.
type AgentWords = (Option<Vec<String>>, BTreeMap<String, String>);

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(
        "There is no image {}. Build one: lightv build hello-world -o {}; or run an embedded app: {}",
        path.display(), path.with_extension("lv").display(), embedded::names()
    )]
    Missing { path: PathBuf },
    #[error(
        "{option} needs --cold: a snapshot has the memory and vCPUs with which it was built \
         (lightv build {option})"
    )]
    NeedsCold { option: &'static str },
    #[error("The argument {arg:?} is not valid UTF-8; a guest takes no other")]
    NotUtf8 { arg: OsString },
    #[error("--tty: standard input and output are not a terminal; leave --tty out")]
    NoTerminal,
}

impl Coded for RunError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Missing { .. } => exit::BAD_CONFIG,
            Self::NeedsCold { .. } | Self::NotUtf8 { .. } | Self::NoTerminal => exit::BAD_ARGUMENTS,
        }
    }
}

impl RunArgs {
    /// `lightv run [--no-seccomp | --optimize-PRESET] IMAGE [-- ARGS]`, without a parser; `None` for everything else.
    ///
    /// Building the parser takes 45 µs, two per cent of a start.
    pub(crate) fn parse_plain(args: &[OsString]) -> Option<Self> {
        let [_, command, rest @ ..] = args else {
            return None;
        };
        let (no_seccomp, rest) = match rest {
            [option, rest @ ..] if option == "--no-seccomp" => (true, rest),
            _ => (false, rest),
        };
        let preset = rest.first().filter(|_| !no_seccomp);
        let (tuning, rest) = match preset.and_then(|word| TuningArgs::of_preset(word)) {
            Some(tuning) => (tuning, rest.get(1..).unwrap_or_default()),
            None => (TuningArgs::default(), rest),
        };
        let [image, rest @ ..] = rest else {
            return None;
        };
        let is_plain = command == "run" && !image.as_encoded_bytes().starts_with(b"-");
        let (has_separator, args) = match rest {
            [] => (false, &[][..]),
            [separator, args @ ..] if separator == "--" => (true, args),
            _ => return None,
        };
        is_plain.then(|| Self {
            image: image.into(),
            no_seccomp,
            tuning,
            args: args.to_vec(),
            has_separator,
            ..Self::default()
        })
    }

    /// Parses `run …` with the parser, but without the other subcommands: a start must not wait for them.
    pub(crate) fn parse(args: &[OsString]) -> Result<Self, clap::Error> {
        let mut command = Self::command().name("run").bin_name("lightv run");
        let mut parsed = command
            .try_get_matches_from_mut(args)
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| error.format(&mut command))?;
        parsed.has_separator = args.iter().any(|arg| arg == "--");
        Ok(parsed)
    }

    /// The same for another `lightv-vmm`.
    fn monitor_args(&self, image: &Path, is_tty: bool) -> Vec<OsString> {
        let mut args = Vec::with_capacity(16);
        args.push(if self.cold { "--boot" } else { "--restore" }.into());
        args.push(image.into());
        if is_tty {
            args.push("--tty".into());
        }
        if self.no_seccomp {
            args.push("--no-seccomp".into());
        }
        let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
        for net in &self.net {
            option("--net", net.to_string().into());
        }
        for disk in &self.disk {
            option("--disk", disk.0.clone().into());
        }
        for delta in &self.delta {
            option("--delta", delta.0.clone().into());
        }
        if let Some(vsock) = &self.vsock {
            option("--vsock", vsock.into());
        }
        if let Some(metadata) = &self.metadata {
            option("--metadata", metadata.into());
        }
        for EnvArg { name, value } in &self.env {
            option("--env", format!("{name}={value}").into());
        }
        if let Some(memory_mib) = self.memory {
            option("--memory", memory_mib.to_string().into());
        }
        if let Some(vcpus) = self.vcpus {
            option("--vcpus", vcpus.to_string().into());
        }
        args.extend(self.outputs.words());
        args.extend(self.jail.words());
        args.extend(self.tuning.words());
        if self.has_separator {
            args.push("--".into());
            args.extend_from_slice(&self.args);
        }
        args
    }

    /// What the monitor is to do.
    fn into_job(
        self,
        image: PathBuf,
        is_tty: bool,
        started_at_ns: Option<u64>,
    ) -> Result<RunJob, RunError> {
        let utf8 = |arg: OsString| arg.into_string().map_err(|arg| RunError::NotUtf8 { arg });
        let args = self.args.into_iter().map(utf8).collect::<Result<_, _>>()?;
        let overrides = Overrides {
            disks: self.disk.iter().map(Replacement::pair).collect(),
            deltas: self.delta.iter().map(Replacement::pair).collect(),
            nets: self.net,
            vsock: self.vsock,
            env: self
                .env
                .into_iter()
                .map(|env| (env.name, env.value))
                .collect(),
            args: self.has_separator.then_some(args),
            memory_mib: self.memory.map(u64::from),
            vcpus: self.vcpus.map(u64::from),
            huge_pages: self.tuning.huge_pages(),
            tuning: self.tuning.spec(),
            ..Overrides::default()
        };
        let origin = if self.cold {
            Origin::Boot(image)
        } else {
            Origin::Restore(image)
        };
        let sink = |form: TimingsForm| TimingsSink::Call(form.printer());
        Ok(RunJob {
            id: "anonymous-instance".to_owned(),
            origin,
            overrides,
            save: None,
            record_working_set: false,
            is_verbose: self.tuning.verbose,
            is_tty,
            metadata: self.metadata.map(MetadataFile::of_default_size),
            outputs: self.outputs.outputs(),
            confinement: Confinement {
                seccomp: match self.no_seccomp {
                    true => SeccompChoice::Off,
                    false => SeccompChoice::BuiltIn,
                },
                ..Confinement::default()
            },
            timings: self.timings.map(sink),
            is_profile: false,
            started_at_ns,
        })
    }

    /// Arguments and environment, if these are all that is asked for: then any microVM of the image will do.
    fn for_agent(&self) -> Result<Option<AgentWords>, RunError> {
        let Self {
            image,
            args,
            has_separator,
            env,
            no_tty,
            ..
        } = self;
        let plain = Self {
            image: image.clone(),
            args: args.clone(),
            has_separator: *has_separator,
            env: env.clone(),
            no_tty: *no_tty,
            ..Self::default()
        };
        if *self != plain || monitor::overridden().is_some() {
            return Ok(None);
        }
        let utf8 = |arg: OsString| arg.into_string().map_err(|arg| RunError::NotUtf8 { arg });
        let args = plain.args.into_iter().map(utf8).collect::<Result<_, _>>()?;
        let env = plain.env.into_iter().map(|env| (env.name, env.value));
        Ok(Some((has_separator.then_some(args), env.collect())))
    }

    /// Whether the guest gets our terminal.
    fn wants_terminal(&self, image: &Path) -> Result<bool, RunError> {
        let is_terminal = || io::stdin().is_terminal() && io::stdout().is_terminal();
        if self.tty && !is_terminal() {
            return Err(RunError::NoTerminal);
        }
        // The image is looked at last: only at a terminal does that take time.
        Ok(self.tty
            || (!self.no_tty
                && self.jail.plan().is_none()
                && is_terminal()
                && describe::has_console(image)))
    }
}

/// The file to run: the one that is named, or that of an embedded app.
pub(crate) fn find_image(path: &Path) -> Result<PathBuf, Failure> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    match path
        .to_str()
        .and_then(|name| Some((name, embedded::app(name)?)))
    {
        Some((name, app)) => Ok(cache::image(name, app)?),
        // A directory, a device: the monitor says why it is no image.
        None if path.exists() => Ok(path.to_owned()),
        None => Err(RunError::Missing {
            path: path.to_owned(),
        }
        .into()),
    }
}

/// Runs the image in this process, which becomes the monitor (docs/adr/0007-run-is-the-monitor.md). Comes back only when
/// nothing was started.
pub(crate) fn run(args: RunArgs) -> Result<ExitCode, Failure> {
    let started_at_ns = args.timings.map(|_| timings::started_at_ns());
    for (option, is_given) in [
        ("--memory", args.memory.is_some()),
        ("--vcpus", args.vcpus.is_some()),
    ] {
        if is_given && !args.cold {
            return Err(RunError::NeedsCold { option }.into());
        }
    }
    let image = find_image(&args.image)?;
    if args.detach {
        let background = Background::named(args.name.as_deref(), &image)?;
        return background
            .start(&args.monitor_args(&image, false))?
            .show_id();
    }
    let is_tty = args.wants_terminal(&image)?;
    if !is_tty
        && let Some((words, env)) = args.for_agent()?
        && let Some(status) = agent_run::try_run(&image, words, env)
    {
        return status;
    }
    if let Some(program) = monitor::overridden() {
        return Err(monitor::exec(program, &args.monitor_args(&image, is_tty)).into());
    }
    if is_tty {
        let job = args.into_job(image, is_tty, started_at_ns)?;
        return Ok(ExitCode::from(job::run_with_terminal(job)));
    }
    if let Some(jail) = args.jail.plan() {
        let job = args.into_job(image, is_tty, started_at_ns)?;
        return Ok(ExitCode::from(job::run_in_jail(&jail, job)));
    }
    let begun = job::begin();
    job::name_process();
    Ok(ExitCode::from(
        begun.run(args.into_job(image, is_tty, started_at_ns)?, None),
    ))
}

/// Our own program, for commands that start `lightv run`.
pub(crate) fn own_program() -> PathBuf {
    env::current_exe().unwrap_or_else(|_| "lightv".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn plain_lines_are_parsed_as_the_parser_does() {
        for line in [
            "lightv run a.lv",
            "lightv run a.lv -- b --c",
            "lightv run a.lv --",
            "lightv run --no-seccomp a.lv -- b",
            "lightv run --optimize-startup a.lv",
            "lightv run --optimize-concurrency a.lv -- b",
        ] {
            let args = words(line);
            let plain = RunArgs::parse_plain(&args).expect(line);
            assert_eq!(plain, RunArgs::parse(&args[1..]).expect(line), "{line}");
        }
    }

    #[test]
    fn other_lines_go_to_the_parser() {
        for line in [
            "lightv",
            "lightv run",
            "lightv build a.lv",
            "lightv run --help",
            "lightv run a.lv --cold",
            "lightv run a.lv b",
            "lightv run -- a.lv",
        ] {
            assert_eq!(RunArgs::parse_plain(&words(line)), None, "{line}");
        }
    }

    #[test]
    fn options_reach_the_monitor() {
        let check = |line: &str, expected: &str| {
            let args = RunArgs::parse(&words(line)).expect(line);
            let found = args.monitor_args(&args.image, args.tty);
            assert_eq!(found, words(expected), "{line}");
        };
        check("run a.lv", "--restore a.lv");
        check("run a.lv -- b --c", "--restore a.lv -- b --c");
        check("run a.lv --", "--restore a.lv --");
        check("run -t a.lv", "--restore a.lv --tty");
        check("run --no-seccomp a.lv", "--restore a.lv --no-seccomp");
        check(
            "run --cold --memory 64 --vcpus 2 a.lv",
            "--boot a.lv --memory 64 --vcpus 2",
        );
        check(
            "run a.lv --jail --jail-uid 5 --jail-netns /n --jail-cgroup pids.max=9 --jail-rw /d -- b",
            "--restore a.lv --jail --jail-uid 5 --jail-netns /n --jail-cgroup pids.max=9 --jail-rw /d -- b",
        );
        check(
            "run a.lv --optimize-concurrency --pin-vcpus 1=3,0=2 --pin-control 0 --huge-pages transparent --halt-poll-us 9 --prefetch -v",
            "--restore a.lv --optimize-concurrency --pin-vcpus 0=2,1=3 --huge-pages transparent --pin-control 0 --halt-poll-us 9 --prefetch=true --verbose",
        );
        check(
            "run a.lv --metadata m --show-level --log-path l --level debug --module x --log-format json --metrics-path f --show-log-origin",
            "--restore a.lv --metadata m --log-path l --level Debug --module x --log-format json --metrics-path f --show-level --show-log-origin",
        );
        check(
            "run a.lv --net tap1 --disk d=x --delta d=y --vsock v -e A=b --env C=",
            "--restore a.lv --net eth0=tap1 --disk d=x --delta d=y --vsock v --env A=b --env C=",
        );
    }
}
