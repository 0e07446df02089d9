//! `lightv kernel`: the embedded guest as a file, for other monitors and for configuration files.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lightv_api::exit;
use lightv_vmm::publish::{NewFile, PublishError, check_target};

use crate::embedded;
use crate::failure::{Coded, Failure};

/// Write the embedded guest's kernel to a file
///
/// It is one static ELF with Linux 64-bit and PVH entry: any microVM monitor boots it.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv kernel -o lightv-guest
  lightv-vmm --config vm.json        with \"kernel_image_path\": \"lightv-guest\"")]
pub(crate) struct KernelArgs {
    /// The file; it is replaced if it exists
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// With the app `raw` too, which breaks the rules of every device: for tests of monitors
    #[arg(long)]
    raw: bool,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
enum WriteKernelError {
    #[error("Cannot write {}: {what}", path.display())]
    Target { path: PathBuf, what: &'static str },
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl Coded for WriteKernelError {
    fn exit_code(&self) -> u8 {
        exit::HOST_FAILURE
    }
}

/// Writes it.
pub(crate) fn run(args: &KernelArgs) -> Result<ExitCode, Failure> {
    let guest = match args.raw {
        true => embedded::RAW_GUEST,
        false => embedded::GUEST,
    };
    write(args.output.clone(), guest)?;
    Ok(ExitCode::SUCCESS)
}

fn write(path: PathBuf, guest: &[u8]) -> Result<(), WriteKernelError> {
    if let Err(what) = check_target(&path, &[], "it is in use") {
        return Err(WriteKernelError::Target { path, what });
    }
    let file = NewFile::create_public(&path)?;
    file.write_at(guest, 0)?;
    file.publish()?;
    Ok(())
}
