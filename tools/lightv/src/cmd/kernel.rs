//! `lightv kernel`: the embedded guest as a file, for other monitors and for configuration files.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lightv_api::exit;

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
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
#[error("Cannot write {}", path.display())]
struct WriteKernelError {
    path: PathBuf,
    #[source]
    cause: std::io::Error,
}

impl Coded for WriteKernelError {
    fn exit_code(&self) -> u8 {
        exit::HOST_FAILURE
    }
}

/// Writes it.
pub(crate) fn run(args: &KernelArgs) -> Result<ExitCode, Failure> {
    let path = args.output.clone();
    fs::write(&path, embedded::GUEST).map_err(|cause| WriteKernelError { path, cause })?;
    Ok(ExitCode::SUCCESS)
}
