//! One file a subcommand.

pub(crate) mod api;
pub(crate) mod bench;
pub(crate) mod build;
mod build_rootfs;
pub(crate) mod completions;
pub(crate) mod disk;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod kernel;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod pause;
pub(crate) mod pool;
pub(crate) mod profile;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod timings;
pub(crate) mod top;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anstream::AutoStream;

use crate::failure::Failure;

/// Writes a command's output at once, with colours where they are wanted.
pub(crate) fn show(
    write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    write(&mut text)
        .and_then(|()| {
            let mut stdout = AutoStream::auto(io::stdout().lock());
            stdout.write_all(&text)?;
            stdout.flush()
        })
        .map_err(Failure::Output)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes `value` as indented JSON and a line end.
fn show_json(value: &impl serde::Serialize) -> Result<ExitCode, Failure> {
    show(|out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })
}
