//! `lightv man`: manual pages, made from the command line itself.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Command, Parser};
use clap_mangen::Man;
use lightv_api::exit;

use super::show;
use crate::failure::{Coded, Failure};

/// Print the manual page, or write all pages into a folder
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv man | man -l -
  lightv man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The folder; it is created
    dir: Option<PathBuf>,
}

/// Why pages were not written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot write manual pages into {}", folder.display())]
pub(crate) struct WritePagesError {
    folder: PathBuf,
    #[source]
    cause: io::Error,
}

impl Coded for WritePagesError {
    fn exit_code(&self) -> u8 {
        exit::FAILURE
    }
}

/// Prints or writes the pages of `tree`.
pub(crate) fn run(args: &ManArgs, tree: Command) -> Result<ExitCode, Failure> {
    let tree = tree.disable_help_subcommand(true);
    let Some(folder) = &args.dir else {
        return show(|out| Man::new(tree).render(out));
    };
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(tree, folder))
        .map_err(|cause| WritePagesError {
            folder: folder.clone(),
            cause,
        })?;
    Ok(ExitCode::SUCCESS)
}
