//! `lightv logs`: what a microVM in the background has printed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use lightv_api::exit;
use lightv_api::runtime::VmRecord;
use lightv_vmm::runtime_dir;

use crate::failure::{Coded, Failure};
use crate::vms::{self, VmError};

/// Between two looks at a file that may have grown.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Show what a microVM in the background has printed
///
/// Both of its standard streams, and the monitor's messages. The file stays when the microVM has ended, until another one of
/// the same name is started.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv logs web        all so far
  lightv logs -f web     and what comes, until it ends")]
pub(crate) struct LogsArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    vm: String,
    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,
}

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
enum LogsError {
    #[error(
        "MicroVM {name} has no log: only one that was started with `lightv run --detach` has; of a sandbox: \
         lightv api --agent GET /sandboxes/{name}/logs"
    )]
    None { name: String },
    #[error("Cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl Coded for LogsError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::None { .. } => exit::BAD_ARGUMENTS,
            Self::Read { .. } => exit::FAILURE,
        }
    }
}

/// Shows them.
pub(crate) fn run(args: &LogsArgs) -> Result<ExitCode, Failure> {
    let (path, vm) = find(&args.vm)?;
    let read = |cause| LogsError::Read {
        path: path.clone(),
        cause,
    };
    let mut file = File::open(&path).map_err(read)?;
    let mut piece = vec![0; 64 << 10];
    loop {
        // Looked at before the last read: what it printed before its end is then read.
        let is_alive = vm.as_ref().is_some_and(runtime_dir::is_alive);
        loop {
            let length = file.read(&mut piece).map_err(read)?;
            let Some(text) = piece.get(..length).filter(|text| !text.is_empty()) else {
                break;
            };
            let mut out = io::stdout().lock();
            let written = out.write_all(text).and_then(|()| out.flush());
            written.map_err(Failure::Output)?;
        }
        if !args.follow || !is_alive {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// The log of one that runs, or else of one that has run under this very name.
fn find(name: &str) -> Result<(PathBuf, Option<VmRecord>), Failure> {
    let none = || LogsError::None {
        name: name.to_owned(),
    };
    match vms::find(name) {
        Ok(vm) => Ok((vm.log.clone().ok_or_else(none)?, Some(vm))),
        Err(missing @ VmError::Missing { .. }) => {
            let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            let path = runtime_dir::folder().join(runtime_dir::log_name(name));
            if is_name && path.is_file() {
                Ok((path, None))
            } else {
                Err(missing.into())
            }
        }
        Err(other) => Err(other.into()),
    }
}
