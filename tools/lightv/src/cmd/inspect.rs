//! `lightv inspect`: what an image holds, or what a running microVM uses.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use lightv_api::config::VmSpec;
use lightv_api::describe::{ImageDescription, ProcessDescription};

use super::{show, show_json};
use crate::failure::Failure;
use crate::table::Table;
use crate::text::{BAD, BOLD, GOOD, styled};
use crate::{monitor, text};

/// Show what an image holds, or what a running microVM uses
#[derive(Debug, Parser)]
#[command(group = ArgGroup::new("subject").required(true).args(["image", "pid"]))]
#[command(after_help = "\
Examples:
  lightv inspect hello-world.lv     what it holds; checksums are verified
  lightv inspect --pid 4242         memory, threads, open files of a monitor

Exit codes: 0 sound, 1 an image with a damaged section, 152 no image at all.")]
pub(crate) struct InspectArgs {
    /// An image file (.lv)
    image: Option<PathBuf>,
    /// The process of a running microVM
    #[arg(long)]
    pid: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what was asked for.
pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode, Failure> {
    if let Some(pid) = args.pid {
        let pid = pid.to_string();
        let process: ProcessDescription =
            monitor::query(&["--inspect-pid".as_ref(), pid.as_ref()])?;
        return match args.json {
            true => show_json(&process),
            false => show(|out| write_process(out, &process)),
        };
    }
    image(&args.image.clone().unwrap_or_default(), args.json)
}

/// Prints what an image holds.
pub(crate) fn image(path: &Path, is_json: bool) -> Result<ExitCode, Failure> {
    let image: ImageDescription = monitor::query(&["--describe".as_ref(), path.as_os_str()])?;
    match is_json {
        true => show_json(&image)?,
        false => show(|out| write_image(out, &image))?,
    };
    let is_intact = image.sections.iter().all(|section| section.intact);
    Ok(if is_intact {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_image(out: &mut impl Write, image: &ImageDescription) -> io::Result<()> {
    let facts = [
        ("Image", image.path.clone()),
        (
            "Size",
            format!(
                "{}, {} allocated",
                text::bytes(image.file_bytes),
                text::bytes(image.allocated_bytes)
            ),
        ),
        (
            "Format",
            format!(
                "{} for {}, written by LightV {}",
                image.format_version, image.architecture, image.written_by
            ),
        ),
        ("Created", text::utc(image.created_unix_s)),
        (
            "Starts by",
            if image.has_snapshot {
                "snapshot, or --cold boot"
            } else {
                "boot"
            }
            .into(),
        ),
        ("Restores", image.restores.to_string()),
        ("RAM", text::bytes(image.ram_bytes)),
    ];
    write_facts(out, &facts)?;
    write_config(out, &image.config)?;
    writeln!(out)?;
    let mut table = Table::new(&[
        "section", ">index", ">version", ">offset", ">length", "checksum", "intact",
    ]);
    for section in &image.sections {
        table.row([
            section.kind.clone(),
            section.index.to_string(),
            section.version.to_string(),
            format!("{:#x}", section.offset),
            section.length.to_string(),
            section.checksum.clone(),
            if section.intact {
                styled(GOOD, "✔")
            } else {
                styled(BAD, "✘ damaged")
            },
        ]);
    }
    table.write(out)
}

fn write_config(out: &mut impl Write, config: &VmSpec) -> io::Result<()> {
    let mut facts = vec![("vCPUs", config.machine_config.vcpu_count.to_string())];
    if let Some(boot_args) = config
        .boot_source
        .as_ref()
        .and_then(|boot| boot.boot_args.clone())
    {
        facts.push(("Command line", boot_args));
    }
    for drive in &config.drives {
        let root = if drive.is_root_device { ", root" } else { "" };
        let overlay = drive.overlay.as_ref().map(|overlay| &overlay.path);
        let access = match overlay {
            Some(Some(delta)) => format!("overlay in {}", delta.display()),
            Some(None) => "overlay in memory".to_owned(),
            None if drive.is_read_only => "read-only".to_owned(),
            None => "read-write".to_owned(),
        };
        let path = drive.path_on_host.display();
        facts.push((
            "Disk",
            format!("{}={path} ({access}{root})", drive.drive_id),
        ));
    }
    for net in &config.network_interfaces {
        let mac = net.guest_mac.as_deref().unwrap_or("MAC from its id");
        facts.push((
            "Network",
            format!("{}={} ({mac})", net.iface_id, net.host()),
        ));
    }
    if config.entropy.is_some() {
        facts.push(("Entropy", "yes".into()));
    }
    if config.console.is_some() {
        facts.push(("Console", "yes".into()));
    }
    if config.exec.is_some() {
        facts.push(("Exec", "yes".into()));
    }
    if let Some(balloon) = &config.balloon {
        facts.push(("Balloon", format!("{} MiB", balloon.amount_mib)));
    }
    if let Some(run) = &config.run {
        let entrypoint = run.agent.as_ref().map(|agent| agent.entrypoint.join(" "));
        facts.extend(entrypoint.map(|entrypoint| ("Entrypoint", entrypoint)));
        facts.push(("Arguments", run.args.join(" ")));
        let names: Vec<&str> = run.env.keys().map(String::as_str).collect();
        facts.push(("Environment", names.join(" ")));
    }
    write_facts(out, &facts)
}

fn write_process(out: &mut impl Write, process: &ProcessDescription) -> io::Result<()> {
    let kib = |count: u64| text::bytes(count.saturating_mul(1024));
    let facts = [
        ("Process", process.pid.to_string()),
        ("Resident", kib(process.resident_kib)),
        ("Threads", process.threads.join(", ")),
    ];
    write_facts(out, &facts)?;
    let Some(details) = &process.details else {
        let text = "what it is made of, and open files, are told root alone";
        return write_facts(out, &[("Memory", text.to_owned())]);
    };
    let facts = [
        (
            "Monitor",
            format!("{} (proportional)", kib(details.own_pss_kib)),
        ),
        (
            "Guest RAM",
            format!("{} (proportional)", kib(details.guest_pss_kib)),
        ),
        ("of it alone", kib(details.guest_private_kib)),
    ];
    write_facts(out, &facts)?;
    details
        .open_files
        .iter()
        .try_for_each(|file| write_facts(out, &[("Open file", file.clone())]))
}

fn write_facts(out: &mut impl Write, facts: &[(&str, String)]) -> io::Result<()> {
    facts.iter().try_for_each(|(name, value)| {
        writeln!(out, "{} {value}", styled(BOLD, &format!("{name:<13}")))
    })
}
