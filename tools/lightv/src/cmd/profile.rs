//! `lightv profile`: where the time of a start went, and what it touched.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lightv_api::exit;
use lightv_api_client::ClientError;

use super::run::find_image;
use super::{show, show_json};
use crate::failure::{Coded, Failure};
use crate::profile::measure::{self, Plan};
use crate::profile::{Profile, page, running, text};
use crate::report_file::{folder_of, publish};
use crate::vms::{self, VmError};
use crate::{embedded, monitor};

/// Show where the time of a start went, and what it touched
///
/// An image is started again and again, once under strace and once for warming up; each start is ended when its guest has given
/// out its first byte and 0.2 seconds have passed. Shown are steps and threads (medians), system calls (of the start under
/// strace, which takes longer), page faults, the vCPUs' exits by reason and address, and pages of RAM. Of a microVM that runs,
/// what its monitor has counted anyway: the steps of its start, exits by reason, devices.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv profile hello-world.lv                    20 starts, as tables
  lightv profile web.lv --html web.html            the same as a web page
  lightv profile app.lv --cold --starts 3          boots
  lightv profile hello-world.lv -- everyone        with arguments for the guest
  lightv profile web                               a microVM that runs")]
pub(crate) struct ProfileArgs {
    /// An image file (.lv), a microVM that runs (id, name of a sandbox, beginning of an id, or process id), or an embedded app
    subject: String,
    /// How many starts are measured
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    starts: u32,
    /// Boot the image's kernel instead of restoring its snapshot
    #[arg(long)]
    cold: bool,
    /// Do not count system calls, which takes strace
    #[arg(long)]
    no_system_calls: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page for a browser into FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a picture of steps and threads into FILE
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Arguments for the guest; they replace those in the image
    #[arg(last = true)]
    args: Option<Vec<OsString>>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
enum ProfileError {
    #[error(
        "{subject} is no image file, no microVM that runs (`lightv ps`), and no embedded app ({})",
        embedded::names()
    )]
    Unknown { subject: String },
    #[error(
        "{option} is for an image; {id} runs already, and only shows what its monitor has counted"
    )]
    NeedsImage { option: &'static str, id: String },
    #[error("The monitor of {id} refuses to give its metrics: {answer}")]
    Metrics { id: String, answer: String },
    #[error("{} cannot be written: there is no folder {}", path.display(), folder.display())]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error("Cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl Coded for ProfileError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Unknown { .. } | Self::NeedsImage { .. } | Self::NoFolder { .. } => {
                exit::BAD_ARGUMENTS
            }
            Self::Metrics { .. } | Self::Write { .. } => exit::FAILURE,
        }
    }
}

/// Profiles what was named.
pub(crate) fn run(args: &ProfileArgs) -> Result<ExitCode, Failure> {
    // Before anything is measured for long.
    for path in args.html.iter().chain(&args.svg) {
        let folder = folder_of(path);
        if !folder.is_dir() {
            return Err(ProfileError::NoFolder {
                path: path.clone(),
                folder: folder.into(),
            }
            .into());
        }
    }
    let profile = profile(args)?;
    for (path, text) in [
        (&args.html, page::html as fn(&Profile) -> String),
        (&args.svg, page::svg),
    ] {
        if let Some(path) = path {
            publish(path, text(&profile).as_bytes()).map_err(|cause| ProfileError::Write {
                path: path.clone(),
                cause,
            })?;
        }
    }
    if args.json {
        return show_json(&profile);
    }
    if args.html.is_some() || args.svg.is_some() {
        return show(|out| {
            io::Write::write_fmt(out, format_args!("{}\n", text::heading(&profile)))
        });
    }
    show(|out| text::write(out, &profile))
}

/// An image where there is such a file; else a microVM of that name; else an embedded app.
fn profile(args: &ProfileArgs) -> Result<Profile, Failure> {
    let subject = &args.subject;
    let path = Path::new(subject);
    if path.exists() {
        return measure_image(args, path);
    }
    match vms::find(subject) {
        Ok(_) => of_running(args),
        Err(VmError::Missing { .. }) if embedded::app(subject).is_some() => {
            measure_image(args, path)
        }
        Err(VmError::Missing { .. }) => Err(ProfileError::Unknown {
            subject: subject.clone(),
        }
        .into()),
        Err(error) => Err(error.into()),
    }
}

fn measure_image(args: &ProfileArgs, path: &Path) -> Result<Profile, Failure> {
    let plan = Plan {
        image: find_image(path)?,
        monitor: monitor::find()?,
        is_cold: args.cold,
        args: args.args.clone(),
        starts: args.starts,
        is_traced: !args.no_system_calls,
    };
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} starts") {
        bar.set_style(style);
    }
    let measured = measure::measure(&plan, |done, all| {
        bar.set_length(all.into());
        bar.set_position(done.into());
    });
    bar.finish_and_clear();
    let mut profile = measured?;
    profile.subject.clone_from(&args.subject);
    Ok(profile)
}

fn of_running(args: &ProfileArgs) -> Result<Profile, Failure> {
    let vm = vms::find(&args.subject)?;
    let id = vm.id.clone();
    for (option, is_given) in [
        ("--cold", args.cold),
        ("--no-system-calls", args.no_system_calls),
        ("An argument after --", args.args.is_some()),
    ] {
        if is_given {
            return Err(ProfileError::NeedsImage { option, id }.into());
        }
    }
    let answer = vms::client(&vm.pid.to_string())?.call("GET", "/metrics", None);
    let answer = answer.map_err(|cause: ClientError| VmError::Client(cause))?;
    if answer.status != 200 {
        return Err(ProfileError::Metrics {
            id,
            answer: answer.body,
        }
        .into());
    }
    Ok(running::profile(&id, &answer.body))
}
