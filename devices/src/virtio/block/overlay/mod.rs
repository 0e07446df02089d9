//! A private layer over a disk that is only read (docs/adr/0016).
//!
//! ```text
//!   guest --> delta     what this machine has written: memory, or a file
//!             saved     what a machine had written that was saved as an image: a section of it, shared by its clones
//!             base      a file, a block device, or a section of an image
//! ```
//!
//! Each block of 4 KiB comes from the topmost layer that has it. A write to part of a block copies the rest of it up first. A
//! block that is discarded becomes one of zeroes in the delta.

mod blocks;
mod error;
mod file;
mod format;
mod saved;

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::io::retry_on_intr;
use xxhash_rust::xxh3::Xxh3;

pub use self::error::{OpenDeltaError, OverlayError};
pub use self::file::{DeltaAccess, note_boot};
pub use self::format::HeaderFault;
pub use self::saved::{SavedDelta, StoredDelta, StoredPiece};

use self::blocks::BlockSet;
use self::file::DeltaFile;
use self::format::{BLOCK, BLOCK_BYTES, BaseId, Layout};
use self::saved::SavedLayer;
use super::backend::{RawDisk, transfer};
use crate::limits::{OVERLAY_DISK_BYTES_MAX, OVERLAY_SAMPLES};
use crate::sys::guest_buffers::GuestBuffers;

/// A private layer over a disk.
#[derive(Debug)]
pub struct Overlay {
    /// Of the disk.
    blocks: u64,
    file: Arc<File>,
    /// Where the first block of the disk is in `file`.
    data_at: u64,
    /// What is known of the disk below, if the delta can be given another.
    base: Option<u64>,
    saved: Option<SavedLayer>,
    /// Blocks of data that the delta may have.
    blocks_max: Option<u64>,
    map: RefCell<Map>,
    /// Blocks that were written after the last flush before the host went down.
    lost_blocks: u64,
}

/// Which blocks the delta has.
#[derive(Debug)]
struct Map {
    /// All of them.
    owned: BlockSet,
    /// Those of which it has data. The others are holes, and zero.
    stored: BlockSet,
    /// Of a delta in a file.
    kept: Option<DeltaFile>,
}

/// Where a block comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Delta,
    /// With its place in the section, in blocks.
    Saved(u64),
    Base,
}

/// Where, in the section, the byte `offset` of the disk is, whose block is at `place` there.
const fn saved_place(place: u64, offset: u64) -> u64 {
    let start = place.saturating_mul(BLOCK_BYTES);
    start.saturating_add(offset % BLOCK_BYTES)
}

impl Overlay {
    /// A delta in memory that nobody else has, over `disk`; `saved` is what lies between.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub(super) fn in_memory(
        disk: &RawDisk,
        saved: Option<SavedDelta>,
    ) -> Result<Self, OverlayError> {
        let layout = layout(disk)?;
        // What an image holds itself is never another's.
        let base = if disk.is_in_image() {
            None
        } else {
            Some(sample(disk)?)
        };
        let file = memfd_create("lightv-delta", MemfdFlags::CLOEXEC);
        let file = file.map_err(|cause| OverlayError::Memory(cause.into()))?;
        let file = File::from(file);
        let data_bytes = layout.blocks.saturating_mul(BLOCK_BYTES);
        file.set_len(data_bytes).map_err(OverlayError::Memory)?;
        let mut owned = BlockSet::new(layout.blocks);
        let saved = match saved {
            Some(saved) => Some(SavedLayer::open(saved, (disk, base), &mut owned)?),
            None => None,
        };
        Ok(Self {
            blocks: layout.blocks,
            file: Arc::new(file),
            data_at: 0,
            base,
            saved,
            blocks_max: None,
            map: RefCell::new(Map {
                owned,
                stored: BlockSet::new(layout.blocks),
                kept: None,
            }),
            lost_blocks: 0,
        })
    }

    /// The delta in the file `path`, over `disk`. One that another machine has is waited for, up to `patience`.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub(super) fn in_file(
        disk: &RawDisk,
        path: &Path,
        access: DeltaAccess,
        patience: Duration,
    ) -> Result<Self, OverlayError> {
        let layout = layout(disk)?;
        let base = BaseId {
            len_bytes: disk.len_bytes(),
            sample: sample(disk)?,
        };
        let found = DeltaFile::open(path, base, access, patience)?;
        let mut stored = BlockSet::new(layout.blocks);
        // Which of them are holes is not known any more.
        let bytes = found.owned.bytes(0..usize::MAX);
        stored.add_bytes(0, &bytes, layout.blocks);
        Ok(Self {
            blocks: layout.blocks,
            file: Arc::clone(found.delta.file()),
            data_at: found.delta.data_at(),
            base: Some(base.sample),
            saved: None,
            blocks_max: None,
            map: RefCell::new(Map {
                owned: found.owned,
                stored,
                kept: Some(found.delta),
            }),
            lost_blocks: found.lost_blocks,
        })
    }

    /// The same; the delta may have `bytes` of data.
    #[must_use]
    pub(super) const fn with_limit(mut self, bytes: Option<u64>) -> Self {
        self.blocks_max = match bytes {
            Some(bytes) => Some(bytes / BLOCK_BYTES),
            None => None,
        };
        self
    }

    /// Blocks that were written after the last flush before the host went down: they are not in the delta any more.
    #[must_use]
    pub const fn lost_blocks(&self) -> u64 {
        self.lost_blocks
    }

    /// Bytes of data that the delta has.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.map.borrow().stored.count().saturating_mul(BLOCK_BYTES)
    }

    /// Where `block` comes from, and up to where those that follow it come from there too, at most `end`.
    fn locate(&self, block: u64, end: u64) -> (Layer, u64) {
        let (is_owned, run_end) = self.map.borrow().owned.run(block..end);
        if is_owned {
            return (Layer::Delta, run_end);
        }
        match self.saved.as_ref().map(|saved| saved.locate(block)) {
            Some((Some(place), saved_end)) => (Layer::Saved(place), run_end.min(saved_end)),
            Some((None, saved_end)) => (Layer::Base, run_end.min(saved_end)),
            None => (Layer::Base, run_end),
        }
    }

    /// The stretches of the disk from `start` to `end` that come from one layer each.
    fn stretches(&self, start: u64, end: u64) -> impl Iterator<Item = (Layer, Range<u64>)> {
        let mut position = start;
        std::iter::from_fn(move || {
            if position >= end {
                return None;
            }
            let (layer, run_end) = self.locate(position / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            let stretch = position..run_end.saturating_mul(BLOCK_BYTES).min(end);
            position = stretch.end;
            Some((layer, stretch))
        })
    }

    const fn place(&self, offset: u64) -> u64 {
        self.data_at.saturating_add(offset)
    }

    /// Reads into all of `buffers`.
    pub(super) fn read(
        &self,
        disk: &RawDisk,
        buffers: &mut GuestBuffers,
        offset: u64,
    ) -> io::Result<()> {
        let end = offset.saturating_add(buffers.bytes());
        for (layer, stretch) in self.stretches(offset, end) {
            let bytes = stretch.end.saturating_sub(stretch.start);
            match (layer, self.saved.as_ref().and_then(SavedLayer::disk)) {
                (Layer::Saved(place), Some(saved)) => {
                    saved.read(buffers, bytes, saved_place(place, stretch.start))?;
                }
                (Layer::Base | Layer::Saved(_), _) => {
                    disk.read(buffers, bytes, stretch.start)?;
                }
                (Layer::Delta, _) => {
                    let (place, short) = (self.place(stretch.start), io::ErrorKind::UnexpectedEof);
                    transfer(buffers, (bytes, place), short, |buffers, place, left| {
                        buffers.read_from(self.file.as_fd(), place, left)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The same for the host: what lies at `offset` of the disk.
    pub(super) fn read_at(&self, disk: &RawDisk, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        let mut rest = bytes;
        for (layer, stretch) in self.stretches(offset, end) {
            let length = stretch.end.saturating_sub(stretch.start);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let (part, after) = std::mem::take(&mut rest)
                .split_at_mut_checked(length)
                .ok_or(io::ErrorKind::InvalidInput)?;
            rest = after;
            match (layer, self.saved.as_ref().and_then(SavedLayer::disk)) {
                (Layer::Saved(place), Some(saved)) => {
                    saved.read_at(part, saved_place(place, stretch.start))?;
                }
                (Layer::Base | Layer::Saved(_), _) => disk.read_at(part, stretch.start)?,
                (Layer::Delta, _) => self.file.read_exact_at(part, self.place(stretch.start))?,
            }
        }
        Ok(())
    }

    /// Writes all of `buffers`. After a failure the blocks that were not in the delta before are still not in it.
    pub(super) fn write(
        &self,
        disk: &RawDisk,
        buffers: &mut GuestBuffers,
        offset: u64,
    ) -> io::Result<()> {
        let end = offset.saturating_add(buffers.bytes());
        if end == offset {
            return Ok(());
        }
        let range = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        self.ensure_room(range.clone())?;
        self.copy_edges_up(disk, offset, end)?;
        let (place, short) = (self.place(offset), io::ErrorKind::WriteZero);
        transfer(
            buffers,
            (buffers.bytes(), place),
            short,
            |buffers, place, left| buffers.write_to(self.file.as_fd(), place, left),
        )?;
        let mut map = self.map.borrow_mut();
        map.stored.insert(range.clone());
        map.own(range)
    }

    fn ensure_room(&self, range: Range<u64>) -> io::Result<()> {
        let Some(blocks_max) = self.blocks_max else {
            return Ok(());
        };
        let map = self.map.borrow();
        let missing = map.stored.missing(range);
        if missing == 0 || map.stored.count().saturating_add(missing) <= blocks_max {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "the delta of the overlay is full: it has the {} MiB of overlay.size_mib",
                blocks_max.saturating_mul(BLOCK_BYTES) >> 20
            ),
        ))
    }

    /// Copies what a write from `start` to `end` leaves of the blocks at its ends, if the delta has not got them.
    fn copy_edges_up(&self, disk: &RawDisk, start: u64, end: u64) -> io::Result<()> {
        let (first, last) = (start / BLOCK_BYTES, end / BLOCK_BYTES);
        let starts_inside = !start.is_multiple_of(BLOCK_BYTES);
        let ends_inside = !end.is_multiple_of(BLOCK_BYTES) && end < disk.len_bytes();
        if starts_inside {
            self.copy_up(disk, first)?;
        }
        if ends_inside && !(starts_inside && first == last) {
            self.copy_up(disk, last)?;
        }
        Ok(())
    }

    /// Copies a block into the delta, which does not own it by that.
    fn copy_up(&self, disk: &RawDisk, block: u64) -> io::Result<()> {
        if self.map.borrow().owned.contains(block) {
            return Ok(());
        }
        let mut bytes = [0; BLOCK];
        let start = block.saturating_mul(BLOCK_BYTES);
        let length = disk.len_bytes().saturating_sub(start).min(BLOCK_BYTES);
        let length = usize::try_from(length).unwrap_or(BLOCK);
        let part = bytes.get_mut(..length).unwrap_or_default();
        self.read_at(disk, part, start)?;
        self.file.write_all_at(&bytes, self.place(start))
    }

    /// Makes a stretch zero. Whole blocks of it take no room.
    pub(super) fn zero(&self, disk: &RawDisk, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset.saturating_add(bytes);
        // The last block of a disk may be a part of one.
        let whole_end = if end >= disk.len_bytes() {
            end.div_ceil(BLOCK_BYTES)
        } else {
            end / BLOCK_BYTES
        };
        let whole = offset.div_ceil(BLOCK_BYTES)..whole_end;
        if whole.is_empty() {
            return self.write_zeroes(disk, offset, end);
        }
        let inner_start = whole.start.saturating_mul(BLOCK_BYTES);
        let inner_end = whole.end.saturating_mul(BLOCK_BYTES);
        self.write_zeroes(disk, offset, inner_start)?;
        self.write_zeroes(disk, inner_end, end)?;
        // Whether or not it is known to have anything there: a write that failed has left something.
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let length = inner_end.saturating_sub(inner_start);
        retry_on_intr(|| fallocate(&*self.file, how, self.place(inner_start), length))?;
        let mut map = self.map.borrow_mut();
        map.stored.remove(whole.clone());
        map.own(whole)
    }

    /// Writes zeroes into a part of one block.
    fn write_zeroes(&self, disk: &RawDisk, start: u64, end: u64) -> io::Result<()> {
        if start >= end {
            return Ok(());
        }
        let range = start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        self.ensure_room(range.clone())?;
        self.copy_edges_up(disk, start, end)?;
        // A part of a block may span two, when none of them is whole.
        let zeroes = [0; 2 * BLOCK];
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        let zeroes = zeroes.get(..length).ok_or(io::ErrorKind::InvalidInput)?;
        self.file.write_all_at(zeroes, self.place(start))?;
        let mut map = self.map.borrow_mut();
        map.stored.insert(range.clone());
        map.own(range)
    }

    /// Returns when all that was written outlives the host, if it is to outlive the machine.
    pub(super) fn sync(&self) -> io::Result<()> {
        let Map { owned, kept, .. } = &mut *self.map.borrow_mut();
        match kept {
            Some(kept) => kept.settle(owned),
            None => Ok(()),
        }
    }

    /// Forgets all that was written: the disk is its base again. After a failure it is that too, but nothing can be written.
    pub(super) fn reset(&mut self) -> io::Result<()> {
        let Map {
            owned,
            stored,
            kept,
        } = self.map.get_mut();
        let done = match kept {
            Some(kept) => kept.reset(),
            None => {
                let data_bytes = self.blocks.saturating_mul(BLOCK_BYTES);
                let emptied = self.file.set_len(0);
                emptied.and_then(|()| self.file.set_len(data_bytes))
            }
        };
        owned.clear();
        stored.clear();
        self.saved = None;
        done
    }
}

impl Map {
    fn own(&mut self, range: Range<u64>) -> io::Result<()> {
        if !self.owned.insert(range.clone()) {
            return Ok(());
        }
        match &mut self.kept {
            Some(kept) => kept.note(&self.owned, range),
            None => Ok(()),
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let Map { owned, kept, .. } = self.map.get_mut();
        if let Some(kept) = kept.as_ref().filter(|_| owned.count() == 0) {
            kept.discard_if_new();
        }
    }
}

fn layout(disk: &RawDisk) -> Result<Layout, OverlayError> {
    let len_bytes = disk.len_bytes();
    if len_bytes > OVERLAY_DISK_BYTES_MAX {
        return Err(OverlayError::TooLarge {
            len_bytes,
            bytes_max: OVERLAY_DISK_BYTES_MAX,
        });
    }
    Ok(Layout::of(len_bytes))
}

/// XXH3-64 of some blocks of `disk`: its first, where most file systems have what changes when they are mounted, the one at
/// 64 KiB, where btrfs has it, its last, and others from all over.
fn sample(disk: &RawDisk) -> Result<u64, OverlayError> {
    let blocks = disk.len_bytes().div_ceil(BLOCK_BYTES);
    let step = blocks.div_ceil(OVERLAY_SAMPLES).max(1);
    let last = blocks.saturating_sub(1);
    let places = (0..OVERLAY_SAMPLES).map(|number| number.saturating_mul(step));
    let places = places.take_while(|block| *block < last);
    let mut hash = Xxh3::new();
    let mut buffer = [0; BLOCK];
    for block in places.chain([16.min(last), last]) {
        let start = block.saturating_mul(BLOCK_BYTES);
        let length = disk.len_bytes().saturating_sub(start).min(BLOCK_BYTES);
        let length = usize::try_from(length).unwrap_or(BLOCK);
        let part = buffer.get_mut(..length).unwrap_or_default();
        let read = disk.read_at(part, start);
        read.map_err(OverlayError::Base)?;
        hash.update(part);
    }
    Ok(hash.digest())
}

#[cfg(test)]
mod tests;
