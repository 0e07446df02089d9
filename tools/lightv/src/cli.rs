//! The command line as a tree of subcommands.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use lightv_api::exit;

use crate::cmd::api::ApiArgs;
use crate::cmd::bench::BenchArgs;
use crate::cmd::build::BuildArgs;
use crate::cmd::completions::CompletionsArgs;
use crate::cmd::disk::DiskArgs;
use crate::cmd::doctor::DoctorArgs;
use crate::cmd::exec::ExecArgs;
use crate::cmd::fork::ForkArgs;
use crate::cmd::images::ImagesArgs;
use crate::cmd::inspect::InspectArgs;
use crate::cmd::kernel::KernelArgs;
use crate::cmd::logs::LogsArgs;
use crate::cmd::man::ManArgs;
use crate::cmd::pause::{PauseArgs, ResumeArgs};
use crate::cmd::pool::PoolArgs;
use crate::cmd::profile::ProfileArgs;
use crate::cmd::ps::PsArgs;
use crate::cmd::run::RunArgs;
use crate::cmd::serve::ServeCommand;
use crate::cmd::snapshot::SnapshotArgs;
use crate::cmd::stats::StatsArgs;
use crate::cmd::stop::StopArgs;
use crate::cmd::top::TopArgs;
use crate::cmd::{
    api, bench, build, completions, disk, doctor, exec, fork, images, inspect, kernel, logs, man,
    pause, pool, profile, ps, run, serve, snapshot, stats, stop, top,
};
use crate::failure::Failure;

/// Starts isolated microVMs in milliseconds
#[derive(Debug, Parser)]
#[command(name = "lightv", version, after_help = EXIT_CODES, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Examples:
  lightv run hello-world                    its image is built once
  lightv build hello-world -o hello.lv      keep its image in a file
  lightv run hello.lv -- everyone           run it with arguments

Exit codes:
  0-127  the guest's own status          158  the host refused something
  1      failure without its own code    159  image not saved
  128+N  ended by signal N               160  guest CPU shut down (triple fault)
  148    a forbidden system call         161  KVM could not run the guest
  152    configuration or image refused  162  the guest panicked
  153    command line refused            163  a fork's memory was lost";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<RunArgs>),
    Build(Box<BuildArgs>),
    Images(ImagesArgs),
    Inspect(InspectArgs),
    Ps(PsArgs),
    Stats(StatsArgs),
    Top(TopArgs),
    Profile(ProfileArgs),
    Pause(PauseArgs),
    Resume(ResumeArgs),
    Stop(StopArgs),
    Logs(LogsArgs),
    Exec(ExecArgs),
    Snapshot(SnapshotArgs),
    Fork(ForkArgs),
    Disk(DiskArgs),
    Api(ApiArgs),
    Serve(Box<ServeCommand>),
    Pool(PoolArgs),
    Doctor(DoctorArgs),
    Bench(BenchArgs),
    Kernel(KernelArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Parses `args` and carries them out.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode, Failure> {
    let command = match parse(args) {
        Ok(command) => command,
        Err(error) => return Ok(refuse(&error)),
    };
    match command {
        Command::Run(args) => run::run(*args),
        Command::Kernel(args) => kernel::run(&args),
        Command::Build(args) => build::run(*args),
        Command::Images(args) => images::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Ps(args) => ps::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Pause(args) => pause::pause(&args),
        Command::Resume(args) => pause::resume(&args),
        Command::Stop(args) => stop::run(&args),
        Command::Logs(args) => logs::run(&args),
        Command::Exec(args) => exec::run(args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Fork(args) => fork::run(&args),
        Command::Disk(args) => disk::run(&args),
        Command::Api(args) => api::run(&args),
        Command::Serve(_) => Err(serve::run(args.get(2..).unwrap_or_default())),
        Command::Pool(args) => pool::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}

fn parse(args: &[OsString]) -> Result<Command, clap::Error> {
    if args.get(1).is_some_and(|name| name == "run") {
        return RunArgs::parse(&args[1..]).map(|run| Command::Run(Box::new(run)));
    }
    Cli::try_parse_from(args).map(|cli| cli.command)
}

/// Prints help, the version or what is wrong. A closed pipe is the reader's wish.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(exit::BAD_ARGUMENTS);
    }
    let text = error.to_string();
    let message = text.strip_prefix("error: ").unwrap_or(&text);
    let _ = writeln!(io::stderr(), "lightv: {}", message.trim_end());
    ExitCode::from(exit::BAD_ARGUMENTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Command, clap::Error> {
        parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn tree_is_sound() {
        Cli::command().debug_assert();
        RunArgs::command().debug_assert();
    }

    /// What a terminal of 80 columns shows in one piece.
    #[test]
    fn help_fits_a_terminal() {
        fn look_at(command: &clap::Command) {
            let name = command.get_name();
            let takes_values = |arg: &&clap::Arg| arg.get_action().takes_values();
            for arg in command.get_arguments().filter(takes_values) {
                let values = arg.get_value_names().unwrap_or_default().join(" ");
                assert!(values.chars().count() <= 24, "{name}: {values}");
            }
            let texts = [command.get_after_help(), command.get_after_long_help()];
            let texts = texts.into_iter().flatten().map(ToString::to_string);
            for line in texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()) {
                assert!(line.chars().count() <= 80, "{name}: {line}");
            }
            command.get_subcommands().for_each(look_at);
        }
        look_at(&Cli::command());
        look_at(&lightv_vmm::args::Cli::command());
    }

    #[test]
    fn run_is_parsed_alike_with_and_without_the_tree() {
        let line = "lightv run a.lv --net tap0 --cold --memory 64 -- x --y";
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let Ok(Command::Run(alone)) = parse(&words) else {
            panic!("run alone")
        };
        let Ok(Cli {
            command: Command::Run(mut in_tree),
        }) = Cli::try_parse_from(&words)
        else {
            panic!("run in the tree")
        };
        in_tree.has_separator = true;
        assert_eq!(alone, in_tree);
        assert_eq!(alone.args, ["x", "--y"]);
    }

    #[test]
    fn bad_command_lines_are_refused() {
        for line in [
            "lightv",
            "lightv walk",
            "lightv run",
            "lightv run a.lv b",
            "lightv run a.lv --memory x",
            "lightv build -o a.lv",
            "lightv build hello --kernel k -o a.lv",
            "lightv build hello",
            "lightv inspect",
            "lightv inspect a.lv --pid 3",
            "lightv exec",
            "lightv exec vm",
            "lightv exec vm ls",
            "lightv exec vm --",
        ] {
            let error = parse_words(line).expect_err(line);
            assert_ne!(error.exit_code(), 0, "{line}");
        }
    }
}
