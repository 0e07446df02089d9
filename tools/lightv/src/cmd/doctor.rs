//! `lightv doctor`: whether microVMs run here, and what to do where they do not.

use std::fs;
use std::io::{self, Write};
use std::process::{Command, ExitCode};

use clap::Parser;
use lightv_api::host::{HostCheck, HostReport, Verdict};
use lightv_vmm::user_net;

use super::{show, show_json};
use crate::failure::Failure;
use crate::text::{BAD, BOLD, GOOD, WARN, styled};
use crate::{monitor, text};

/// Check whether microVMs run on this host
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv doctor          what was found, with a remedy for what is wrong
  lightv doctor --json   the same for programs

Exit codes: 0 microVMs run here (perhaps with warnings), 1 they do not.")]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints all checks; exit code 1 when one has failed.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let report = report();
    match args.json {
        true => show_json(&report)?,
        false => show(|out| write(out, &report))?,
    };
    let has_failed = report
        .checks
        .iter()
        .any(|check| check.verdict == Verdict::Failure);
    Ok(if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What the monitor finds, and what belongs to the command line.
fn report() -> HostReport {
    let ours = vec![check_monitor(), check_static(), check_passt()];
    match monitor::query::<HostReport>(&["--check-host".as_ref()]) {
        Ok(mut report) => {
            report.checks.extend(ours);
            report
        }
        Err(error) => {
            let failure = HostCheck {
                name: "host".into(),
                verdict: Verdict::Failure,
                found: error.to_string(),
                remedy: "install lightv-vmm of the same version beside lightv".into(),
            };
            HostReport {
                kvm: "none".into(),
                kernel: String::new(),
                cpu: String::new(),
                cores: 0,
                memory_bytes: 0,
                checks: [vec![failure], ours].concat(),
            }
        }
    }
}

fn check_monitor() -> HostCheck {
    let ours = env!("CARGO_PKG_VERSION");
    let place = match monitor::find() {
        Ok(program) => program.display().to_string(),
        Err(error) => {
            return found(
                "lightv-vmm",
                Verdict::Failure,
                &error.to_string(),
                "install it beside lightv",
            );
        }
    };
    match monitor::version() {
        Ok(version) if version == ours => found(
            "lightv-vmm",
            Verdict::Ok,
            &format!("{place}, version {version}"),
            "",
        ),
        Ok(version) => found(
            "lightv-vmm",
            Verdict::Warning,
            &format!("{place} is version {version}, lightv is {ours}"),
            "install both from one release",
        ),
        Err(error) => found(
            "lightv-vmm",
            Verdict::Warning,
            &format!("{place} does not tell its version: {error}"),
            "install both from one release",
        ),
    }
}

/// A dynamic linker costs 200 µs a start.
fn check_static() -> HostCheck {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    match maps.contains("/ld-linux") || maps.contains("/libc.so") {
        false => found("binary", Verdict::Ok, "static", ""),
        true => found(
            "binary",
            Verdict::Warning,
            "dynamically linked: each start is 0.2 ms slower",
            "build with the repository's own .cargo/config.toml",
        ),
    }
}

/// Networks without privileges are had with it; machines run without.
fn check_passt() -> HostCheck {
    let remedy =
        "for networks without privileges (--net user): apt-get install passt, or dnf install passt";
    let name = user_net::PROGRAM;
    match Command::new(name).arg("--version").output() {
        Ok(told) if told.status.success() => {
            let text = String::from_utf8_lossy(&told.stdout);
            // Packages do not always know their version: `passt unknown version`.
            let version = text.lines().next().unwrap_or_default().trim();
            let version = version.strip_prefix("passt ").unwrap_or(version);
            found(name, Verdict::Ok, &format!("installed, {version}"), "")
        }
        Ok(told) => {
            let text = format!(
                "does not work: `passt --version` ended with {}",
                told.status
            );
            found(name, Verdict::Warning, &text, remedy)
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => found(
            name,
            Verdict::Ok,
            "not installed; only --net user needs it",
            remedy,
        ),
        Err(cause) => {
            let text = format!("cannot be started: {cause}");
            found(name, Verdict::Warning, &text, remedy)
        }
    }
}

fn found(name: &str, verdict: Verdict, found: &str, remedy: &str) -> HostCheck {
    HostCheck {
        name: name.into(),
        verdict,
        found: found.into(),
        remedy: remedy.into(),
    }
}

fn write(out: &mut impl Write, report: &HostReport) -> io::Result<()> {
    if report.cores > 0 {
        writeln!(
            out,
            "{}, {} cores, {} memory, Linux {}, {} KVM",
            report.cpu,
            report.cores,
            text::bytes(report.memory_bytes),
            report.kernel,
            report.kvm
        )?;
    }
    let width = report
        .checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    for check in &report.checks {
        let mark = match check.verdict {
            Verdict::Ok => styled(GOOD, "✔"),
            Verdict::Warning => styled(WARN, "!"),
            Verdict::Failure => styled(BAD, "✘"),
        };
        writeln!(
            out,
            "{mark} {} {}",
            styled(BOLD, &format!("{:<width$}", check.name)),
            check.found
        )?;
        if !check.remedy.is_empty() {
            writeln!(out, "  {:<width$} → {}", "", check.remedy)?;
        }
    }
    Ok(())
}
