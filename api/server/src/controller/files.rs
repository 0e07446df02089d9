//! Whether files that a configuration names can be opened: told when they are named, not at the start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileFault {
    #[error("{cause}: {path}")]
    Open { path: String, cause: io::Error },
    #[error("not a regular file{}: {path}", if *.or_device { " or block device" } else { "" })]
    Kind { path: String, or_device: bool },
}

/// A regular file that can be read.
pub(super) fn check_readable(path: &Path) -> Result<(), FileFault> {
    let file = open(path, OpenOptions::new().read(true))?;
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    is_kind(path, is_file, false)
}

/// A regular file or block device that can be read, and, unless `read_only`, written.
pub(super) fn check_disk(path: &Path, read_only: bool) -> Result<(), FileFault> {
    let file = open(path, OpenOptions::new().read(true).write(!read_only))?;
    let is_disk = file
        .metadata()
        .is_ok_and(|found| found.is_file() || found.file_type().is_block_device());
    is_kind(path, is_disk, true)
}

/// Does not wait for the other end of a FIFO.
fn open(path: &Path, options: &mut OpenOptions) -> Result<File, FileFault> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = options.custom_flags(flags).open(path);
    opened.map_err(|cause| FileFault::Open {
        path: path.display().to_string(),
        cause,
    })
}

fn is_kind(path: &Path, is_right: bool, or_device: bool) -> Result<(), FileFault> {
    if is_right {
        return Ok(());
    }
    let path = path.display().to_string();
    Err(FileFault::Kind { path, or_device })
}
