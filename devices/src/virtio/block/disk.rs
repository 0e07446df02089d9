//! A disk as its guest sees it: what the host has, or a layer of its own over that.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{DiskPart, LockDiskError, OpenDiskError, RawDisk, SECTOR_BYTES};
use super::overlay::{DeltaAccess, Overlay, OverlayError, SavedDelta};
use crate::sys::guest_buffers::GuestBuffers;

/// A disk that is open.
#[derive(Debug)]
pub struct Disk {
    raw: RawDisk,
    /// What the guest writes goes there.
    overlay: Option<Box<Overlay>>,
    /// What the guest discards is given back to the host.
    discards: bool,
}

/// What a layer over a disk is to be.
#[derive(Debug, Clone)]
pub struct OverlayOptions<'a> {
    /// Where it is kept.
    pub delta: Delta<'a>,
    /// Bytes of data that it may have.
    pub bytes_max: Option<u64>,
}

/// Where what the guest writes is kept.
#[derive(Debug, Clone)]
pub enum Delta<'a> {
    /// In memory; and what lies between that and the disk.
    Memory(Option<SavedDelta>),
    /// In a file.
    File {
        /// Its path. Symbolic links are followed.
        path: &'a Path,
        /// How it is opened.
        access: DeltaAccess,
        /// How long another machine that has it is waited for.
        patience: Duration,
    },
}

impl Disk {
    const fn new(raw: RawDisk) -> Self {
        Self {
            raw,
            overlay: None,
            discards: false,
        }
    }

    /// Opens the disk at `path`, for reading only if `read_only`. Never waits: O_NONBLOCK keeps a FIFO from doing so.
    ///
    /// # Errors
    /// [`OpenDiskError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenDiskError> {
        RawDisk::open(path, read_only).map(Self::new)
    }

    /// A read-only disk in an image. `None` when it is shorter than a sector, or there is not a checksum for each chunk.
    #[must_use]
    pub fn in_image(part: DiskPart) -> Option<Self> {
        RawDisk::in_image(part).map(Self::new)
    }

    /// The same disk, locked against other machines: a writer has a file alone, readers share it. `before` is the disk in whose
    /// place this one comes: of the same file, it hands its lock on. A machine that is just ending is waited for, up to
    /// `patience`.
    ///
    /// # Errors
    /// [`LockDiskError`].
    pub fn locked(
        mut self,
        path: &Path,
        before: Option<&Self>,
        patience: Duration,
    ) -> Result<Self, LockDiskError> {
        let before = before.map(|before| &before.raw);
        self.raw = self.raw.locked(path, before, patience)?;
        Ok(self)
    }

    /// The same disk, past the host's page cache. Requests that the host's disk cannot take so, for they are not aligned as
    /// it needs, go through the cache.
    ///
    /// # Errors
    /// The kernel's: EINVAL for a file system that has no direct I/O.
    pub fn into_direct(mut self) -> io::Result<Self> {
        self.raw = self.raw.into_direct()?;
        Ok(self)
    }

    /// The same disk under a layer that is this machine's own: the guest may write.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn with_overlay(mut self, options: OverlayOptions<'_>) -> Result<Self, OverlayError> {
        let overlay = match options.delta {
            Delta::Memory(saved) => Overlay::in_memory(&self.raw, saved)?,
            Delta::File {
                path,
                access,
                patience,
            } => Overlay::in_file(&self.raw, path, access, patience)?,
        };
        self.overlay = Some(Box::new(overlay.with_limit(options.bytes_max)));
        Ok(self)
    }

    /// The same disk; what the guest discards is given back to the host, unless it may not write.
    #[must_use]
    pub const fn with_discard(mut self) -> Self {
        self.discards = !self.is_read_only();
        self
    }

    /// Whether what the guest discards is given back to the host.
    #[must_use]
    pub const fn discards(&self) -> bool {
        self.discards
    }

    /// What the host has, without an overlay.
    pub(super) const fn raw(&self) -> &RawDisk {
        &self.raw
    }

    /// The layer over it.
    #[must_use]
    pub fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_deref()
    }

    /// The same, to be reset.
    pub(super) fn overlay_mut(&mut self) -> Option<&mut Overlay> {
        self.overlay.as_deref_mut()
    }

    /// Whether the host's page cache is passed by.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.raw.is_direct()
    }

    /// Where the disk begins in its file, in bytes.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.raw.base()
    }

    /// Length in bytes, as the host has it.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.raw.len_bytes()
    }

    /// Length in whole sectors: what the guest has.
    #[must_use]
    pub const fn capacity_sectors(&self) -> u64 {
        self.raw.len_bytes() / SECTOR_BYTES
    }

    /// Whether the host's file ends with part of a sector, which the guest does not see.
    #[must_use]
    pub const fn has_partial_sector(&self) -> bool {
        !self.raw.len_bytes().is_multiple_of(SECTOR_BYTES)
    }

    /// Whether the guest may only read.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.raw.is_read_only() && self.overlay.is_none()
    }

    /// The file below, for what a save does with it.
    #[must_use]
    pub const fn file(&self) -> &Arc<File> {
        self.raw.file()
    }

    /// Makes a stretch of the disk zero, and gives its room back.
    pub(super) fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.zero(&self.raw, offset, bytes),
            None => self.raw.punch(offset, bytes),
        }
    }

    /// Makes a stretch of the disk zero, and keeps its room if it had any.
    pub(super) fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.zero(&self.raw, offset, bytes),
            None => self.raw.zero(offset, bytes),
        }
    }

    /// Reads into all of `buffers`. What was read before a failure has been taken from them.
    pub(super) fn read(&self, buffers: &mut GuestBuffers, offset: u64) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.read(&self.raw, buffers, offset),
            None => self.raw.read(buffers, buffers.bytes(), offset),
        }
    }

    /// Reads for the host what the guest would read at `offset`.
    ///
    /// # Errors
    /// The kernel's, or that an image is damaged there.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.read_at(&self.raw, bytes, offset),
            None => self.raw.read_at(bytes, offset),
        }
    }

    /// Writes all of `buffers`. What was written before a failure has been taken from them.
    pub(super) fn write(&self, buffers: &mut GuestBuffers, offset: u64) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.write(&self.raw, buffers, offset),
            None => self.raw.write(buffers, offset),
        }
    }

    /// A disk whose writes fail on the host.
    #[cfg(test)]
    pub(super) fn pretend_writable(mut self) -> Self {
        self.raw = self.raw.pretend_writable();
        self
    }

    /// Returns when all that was written is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.sync(),
            None => self.raw.sync(),
        }
    }
}
