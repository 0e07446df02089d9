//! A disk with its overlay as a file of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lightv_devices::virtio::block::{
    Delta, DeltaAccess, Disk, LockDiskError, OpenDiskError, Overlay, OverlayError, OverlayOptions,
};

use crate::publish::{self, NewFile, PublishError};
use crate::report;
use crate::sys::signal::waiting_end;

/// How much is copied at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// What is left out as a hole if it is zero.
const BLOCK_BYTES: usize = 4096;

/// Why a disk was not exported. What was at the path is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The path cannot take a file.
    #[error("Cannot export a disk as {}: {what}", path.display())]
    Target {
        /// Which path.
        path: PathBuf,
        /// What stands in the way.
        what: &'static str,
    },
    /// The file could not be made, written, synced or named.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The disk could not be read.
    #[error("Cannot read the disk at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A signal asked the process to end.
    #[error("Exporting {} was interrupted by signal {signal}", path.display())]
    Interrupted {
        /// Which path.
        path: PathBuf,
        /// Number of the signal.
        signal: u8,
    },
}

/// Why a base and its delta were not made one.
#[derive(Debug, thiserror::Error)]
pub enum MergeDiskError {
    /// The base cannot be opened.
    #[error(transparent)]
    Base(#[from] OpenDiskError),
    /// A machine writes to it.
    #[error(transparent)]
    Lock(#[from] LockDiskError),
    /// The delta cannot be opened, or is another disk's.
    #[error(transparent)]
    Delta(#[from] OverlayError),
    /// The file was not made.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// Writes `disk`, as the guest sees it, as the file `path`; blocks of zeroes are holes. Nobody writes to the disk meanwhile.
/// None of `in_use` is replaced.
///
/// # Errors
/// [`ExportError`].
pub fn export(disk: &Disk, path: &Path, in_use: &[&Path]) -> Result<(), ExportError> {
    check_target(path, in_use)?;
    let file = NewFile::create(path)?;
    let bytes = disk.len_bytes();
    file.set_len(bytes)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while offset < bytes {
        if let Some(signal) = waiting_end() {
            let path = path.to_owned();
            return Err(ExportError::Interrupted { path, signal });
        }
        let length =
            usize::try_from(bytes - offset).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        let chunk = buffer.get_mut(..length).unwrap_or_default();
        let read = disk.read_at(chunk, offset);
        read.map_err(|cause| ExportError::Read { offset, cause })?;
        write_data(&file, chunk, offset)?;
        offset += length as u64;
    }
    file.publish()?;
    Ok(())
}

/// Writes what of `chunk` is not zero, in as few calls as there are stretches of it.
fn write_data(file: &NewFile, chunk: &[u8], offset: u64) -> Result<(), PublishError> {
    let is_zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
    let mut at = 0;
    while at < chunk.len() {
        let rest = chunk.get(at..).unwrap_or_default();
        let blocks = || rest.chunks(BLOCK_BYTES);
        let zeroes = blocks().take_while(is_zero).count() * BLOCK_BYTES;
        if zeroes > 0 {
            at += zeroes;
            continue;
        }
        let length = blocks().take_while(|block| !is_zero(block)).count() * BLOCK_BYTES;
        let data = rest.get(..length.min(rest.len())).unwrap_or_default();
        file.write_at(data, offset + at as u64)?;
        at += length;
    }
    Ok(())
}

/// Makes one file of `base` and the `delta` over it. Both are only read.
///
/// # Errors
/// [`MergeDiskError`].
pub fn merge(base: &Path, delta: &Path, output: &Path) -> Result<(), MergeDiskError> {
    let disk = Disk::open(base, true)?.locked(base, None, Duration::ZERO)?;
    let disk = disk.with_overlay(OverlayOptions {
        delta: Delta::File {
            path: delta,
            access: DeltaAccess::Read,
            patience: Duration::ZERO,
        },
        bytes_max: None,
    })?;
    let lost_blocks = disk.overlay().map_or(0, Overlay::lost_blocks);
    if lost_blocks > 0 {
        report::say(&format!(
            "the host went down while delta {} was in use: {} KiB that were written after the last flush are left out",
            delta.display(),
            lost_blocks.saturating_mul(4)
        ));
    }
    export(&disk, output, &[base, delta])?;
    Ok(())
}

/// Proves that `path` can take a disk: it is free, or a regular file that is none of `in_use`.
fn check_target(path: &Path, in_use: &[&Path]) -> Result<(), ExportError> {
    let found = publish::check_target(path, in_use, "it is what it would be made of");
    found.map(|_| ()).map_err(|what| ExportError::Target {
        path: path.into(),
        what,
    })
}
