//! Why a disk has no overlay.

use std::io;
use std::path::PathBuf;

use super::format::HeaderFault;

/// Why a file is no delta for a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenDeltaError {
    /// The kernel does not open, read or lock it.
    #[error("Cannot open delta {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A directory, FIFO, socket or device.
    #[error("Delta {} is not a regular file", path.display())]
    NotAFile {
        /// Its path.
        path: PathBuf,
    },
    /// Another machine has it.
    #[error(
        "Delta {} is in use: another microVM, or another drive of this one, has it open. Give each its own (overlay.path)",
        path.display()
    )]
    InUse {
        /// Its path.
        path: PathBuf,
    },
    /// It does not begin as a delta does.
    #[error("Delta {} is refused: {cause}", path.display())]
    Header {
        /// Its path.
        path: PathBuf,
        /// Why; part of the text, since it says what to do.
        cause: HeaderFault,
    },
    /// A delta of a longer or shorter disk.
    #[error(
        "Delta {} is for a disk of {delta_bytes} bytes, and this one has {base_bytes}: name the disk that it was made over",
        path.display()
    )]
    OtherLength {
        /// Its path.
        path: PathBuf,
        /// What it was made over.
        delta_bytes: u64,
        /// What it is to lie over.
        base_bytes: u64,
    },
    /// A delta of another disk of the same length.
    #[error(
        "Delta {} was made over another disk, or the disk was changed since (checksum of samples): name the disk as it was",
        path.display()
    )]
    OtherBase {
        /// Its path.
        path: PathBuf,
    },
    /// Cut off.
    #[error("Delta {} has {found_bytes} bytes, and {needed_bytes} are needed: it is truncated", path.display())]
    Truncated {
        /// Its path.
        path: PathBuf,
        /// Its length.
        found_bytes: u64,
        /// What its header says.
        needed_bytes: u64,
    },
}

/// Why a disk has no overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The disk is too large.
    #[error("the disk has {len_bytes} bytes; an overlay can have {bytes_max}")]
    TooLarge {
        /// Its length.
        len_bytes: u64,
        /// What is allowed.
        bytes_max: u64,
    },
    /// The host has no memory for it.
    #[error("cannot make a delta in memory")]
    Memory(#[source] io::Error),
    /// The disk cannot be read.
    #[error("cannot read the disk that it is to lie over")]
    Base(#[source] io::Error),
    /// Its file is of no use.
    #[error(transparent)]
    File(#[from] OpenDeltaError),
    /// A saved delta of another disk.
    #[error(
        "the saved delta was made over another disk, or the disk was changed since: name the disk as it was"
    )]
    OtherBase,
    /// A saved delta that says what cannot be.
    #[error("the saved delta does not fit the disk")]
    Saved,
}
