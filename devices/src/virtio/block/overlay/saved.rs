//! What of a delta in memory becomes part of an image, and comes from there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

use super::blocks::BlockSet;
use super::format::BLOCK_BYTES;
use super::{Layer, Overlay, OverlayError};
use crate::virtio::block::backend::{DiskPart, RawDisk};
use crate::virtio::block::state::{OverlayMapV1, OverlayRunV1};

/// How much is copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// A delta of an image.
#[derive(Debug, Clone)]
pub struct SavedDelta {
    /// Which blocks it has.
    pub map: OverlayMapV1,
    /// Where they are, if there is any that is not zero.
    pub part: Option<DiskPart>,
}

/// A delta that a save puts into an image.
#[derive(Debug, Clone)]
pub struct StoredDelta {
    /// Which blocks it has.
    pub map: OverlayMapV1,
    /// Where they are now, in order.
    pub pieces: Vec<StoredPiece>,
}

/// A stretch of a file.
#[derive(Debug, Clone)]
pub struct StoredPiece {
    /// The file.
    pub file: Arc<File>,
    /// From where on, in bytes.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// The machine writes them when it goes on.
    pub changes: bool,
}

impl StoredDelta {
    /// Bytes that the machine writes when it goes on.
    #[must_use]
    pub fn changing_bytes(&self) -> u64 {
        let changing = self.pieces.iter().filter(|piece| piece.changes);
        changing.map(|piece| piece.bytes).sum()
    }

    /// The same delta with a copy of what the machine writes when it goes on. To be called while it stands still.
    ///
    /// # Errors
    /// The host's: no memory, or no descriptors left.
    pub fn copied(mut self) -> io::Result<Self> {
        if self.changing_bytes() == 0 {
            return Ok(self);
        }
        let copy = File::from(memfd_create("lightv-delta-copy", MemfdFlags::CLOEXEC)?);
        let copy = Arc::new(copy);
        let mut buffer = vec![0; COPY_BYTES];
        let mut end = 0;
        for piece in self.pieces.iter_mut().filter(|piece| piece.changes) {
            let mut done = 0;
            while done < piece.bytes {
                let left = usize::try_from(piece.bytes.saturating_sub(done)).unwrap_or(COPY_BYTES);
                let chunk = buffer.get_mut(..left.min(COPY_BYTES)).unwrap_or_default();
                piece
                    .file
                    .read_exact_at(chunk, piece.offset.saturating_add(done))?;
                copy.write_all_at(chunk, end)?;
                end = end.saturating_add(chunk.len() as u64);
                done = done.saturating_add(chunk.len() as u64);
            }
            piece.offset = end.saturating_sub(piece.bytes);
            piece.file = Arc::clone(&copy);
            piece.changes = false;
        }
        Ok(self)
    }
}

/// A saved delta that lies under that of a machine, and is only read.
#[derive(Debug)]
pub(super) struct SavedLayer {
    /// The section; none if all blocks are zero.
    disk: Option<RawDisk>,
    /// In order, disjoint.
    runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    block: u64,
    end: u64,
    /// Its first block in the section.
    place: u64,
}

impl SavedLayer {
    /// Proves `saved` against `disk` and what is known of it. The blocks that are zero become part of `owned`.
    pub(super) fn open(
        saved: SavedDelta,
        (disk, base): (&RawDisk, Option<u64>),
        owned: &mut BlockSet,
    ) -> Result<Self, OverlayError> {
        let SavedDelta { map, part } = saved;
        if map.disk_bytes != disk.len_bytes() || map.base != base {
            return Err(OverlayError::OtherBase);
        }
        let blocks = disk.len_bytes().div_ceil(BLOCK_BYTES);
        let (mut after, mut place) = (0, 0_u64);
        let mut runs = Vec::new();
        for run in &map.runs {
            let end = run.block.checked_add(run.blocks);
            let end = end.filter(|end| run.block >= after && run.blocks > 0 && *end <= blocks);
            after = end.ok_or(OverlayError::Saved)?;
            if run.is_zero {
                owned.insert(run.block..after);
                continue;
            }
            runs.push(Run {
                block: run.block,
                end: after,
                place,
            });
            // At most as many as the disk has.
            place = place.saturating_add(run.blocks);
        }
        let bytes = part.as_ref().map_or(0, |part| part.len_bytes);
        if bytes != place.saturating_mul(BLOCK_BYTES) {
            return Err(OverlayError::Saved);
        }
        let disk = match part {
            Some(part) => Some(RawDisk::in_image(part).ok_or(OverlayError::Saved)?),
            None => None,
        };
        Ok(Self { disk, runs })
    }

    /// The section.
    pub(super) const fn disk(&self) -> Option<&RawDisk> {
        self.disk.as_ref()
    }

    /// Where `block` is in the section, if it is there, and up to which block that holds for those that follow it.
    pub(super) fn locate(&self, block: u64) -> (Option<u64>, u64) {
        let next = self.runs.partition_point(|run| run.end <= block);
        match self.runs.get(next) {
            Some(run) if run.block <= block => {
                let place = run.place.saturating_add(block.saturating_sub(run.block));
                (Some(place), run.end)
            }
            Some(run) => (None, run.block),
            None => (None, u64::MAX),
        }
    }
}

impl Overlay {
    /// What a save puts into an image: all that lies over the base. `None` for a delta in a file, which is named by its path.
    #[must_use]
    pub fn stored(&self, disk_bytes: u64) -> Option<StoredDelta> {
        let map = self.map.borrow();
        if map.kept.is_some() {
            return None;
        }
        let mut runs: Vec<OverlayRunV1> = Vec::new();
        let mut pieces = Vec::new();
        for (layer, stretch) in self.stretches(0, self.blocks.saturating_mul(BLOCK_BYTES)) {
            let file = match (layer, self.saved.as_ref().and_then(SavedLayer::disk)) {
                (Layer::Delta, _) => None,
                (Layer::Saved(place), Some(disk)) => Some((disk, place)),
                (Layer::Base | Layer::Saved(_), _) => continue,
            };
            let mut block = stretch.start / BLOCK_BYTES;
            let end = stretch.end / BLOCK_BYTES;
            while block < end {
                let (is_stored, run_end) = match file {
                    Some(_) => (true, end),
                    None => map.stored.run(block..end),
                };
                let blocks = run_end.saturating_sub(block);
                if is_stored {
                    let (file, offset) = match file {
                        Some((disk, place)) => {
                            let offset = place.saturating_mul(BLOCK_BYTES);
                            (disk.file(), disk.base().saturating_add(offset))
                        }
                        None => (&self.file, self.place(block.saturating_mul(BLOCK_BYTES))),
                    };
                    pieces.push(StoredPiece {
                        file: Arc::clone(file),
                        offset,
                        bytes: blocks.saturating_mul(BLOCK_BYTES),
                        changes: layer == Layer::Delta,
                    });
                }
                add_run(&mut runs, (block, blocks), !is_stored);
                block = run_end;
            }
        }
        Some(StoredDelta {
            map: OverlayMapV1 {
                disk_bytes,
                base: self.base,
                runs,
            },
            pieces,
        })
    }

    /// The file of what was saved before, if there is any of that.
    #[must_use]
    pub fn saved_file(&self) -> Option<&Arc<File>> {
        self.saved.as_ref()?.disk().map(RawDisk::file)
    }

    /// Proves all that is in an image, before it is copied into another.
    ///
    /// # Errors
    /// The host's, or that it is not what was saved.
    pub fn prove_saved(&self) -> io::Result<()> {
        match self.saved.as_ref().and_then(SavedLayer::disk) {
            Some(disk) => disk.prove(0, disk.len_bytes()),
            None => Ok(()),
        }
    }
}

/// Adds a run, or makes the last one longer.
fn add_run(runs: &mut Vec<OverlayRunV1>, (block, blocks): (u64, u64), is_zero: bool) {
    match runs.last_mut() {
        Some(last)
            if last.is_zero == is_zero && last.block.saturating_add(last.blocks) == block =>
        {
            last.blocks = last.blocks.saturating_add(blocks);
        }
        _ => runs.push(OverlayRunV1 {
            block,
            blocks,
            is_zero,
        }),
    }
}
