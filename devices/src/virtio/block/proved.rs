//! A disk that is a stretch of an image file, each part proved when it is first read (docs/adr/0011).
//!
//! A root file system of a few hundred MiB cannot be hashed at every start; a guest reads little of it. So the image
//! keeps a checksum for each [`PROOF_CHUNK_BYTES`], and a chunk is checked once, before the first byte of it goes to the
//! guest.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

/// Bytes that one checksum covers; the last chunk of a disk may be shorter.
pub const PROOF_CHUNK_BYTES: u64 = 64 << 10;

/// XXH3-64 of each chunk of what `read` fills in order, `bytes` in all.
///
/// # Errors
/// Those of `read`.
pub fn chunk_sums(
    bytes: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<Vec<u64>> {
    let mut buffer = Vec::new();
    let mut sums = Vec::new();
    let mut start = 0;
    while start < bytes {
        let part = chunk(&mut buffer, start, bytes);
        read(part, start)?;
        sums.push(xxh3_64(part));
        start = start.saturating_add(PROOF_CHUNK_BYTES);
    }
    Ok(sums)
}

/// Number of checksums of a disk of `bytes`.
#[must_use]
pub const fn chunk_count(bytes: u64) -> u64 {
    bytes.div_ceil(PROOF_CHUNK_BYTES)
}

/// The part of `buffer` that holds the chunk at `start` of a disk of `bytes`.
fn chunk(buffer: &mut Vec<u8>, start: u64, bytes: u64) -> &mut [u8] {
    let length = bytes.saturating_sub(start).min(PROOF_CHUNK_BYTES);
    // At most 64 KiB.
    buffer.resize(usize::try_from(length).unwrap_or(0), 0);
    buffer
}

/// What is known of the chunks of a disk.
#[derive(Debug)]
pub(super) struct Proof {
    sums: Arc<[u64]>,
    progress: RefCell<Progress>,
}

#[derive(Debug)]
struct Progress {
    is_proved: Vec<bool>,
    buffer: Vec<u8>,
}

impl Proof {
    /// Nothing is proved yet.
    pub(super) fn new(sums: Arc<[u64]>) -> Self {
        let is_proved = vec![false; sums.len()];
        let progress = Progress {
            is_proved,
            buffer: Vec::new(),
        };
        Self {
            sums,
            progress: RefCell::new(progress),
        }
    }

    /// Proves the chunks that `length` bytes from `offset` on touch, on a disk of `bytes` that begins in `file` at `base`.
    ///
    /// # Errors
    /// The host's, or that a chunk is not what was saved.
    pub(super) fn ensure(
        &self,
        (file, base, bytes): (&File, u64, u64),
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut progress = self.progress.borrow_mut();
        let Progress { is_proved, buffer } = &mut *progress;
        let first = offset / PROOF_CHUNK_BYTES;
        for index in first..chunk_count(offset.saturating_add(length)) {
            let place = usize::try_from(index).unwrap_or(usize::MAX);
            let (Some(done), Some(sum)) = (is_proved.get_mut(place), self.sums.get(place)) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            if *done {
                continue;
            }
            let start = index.saturating_mul(PROOF_CHUNK_BYTES);
            let part = chunk(buffer, start, bytes);
            file.read_exact_at(part, base.saturating_add(start))?;
            if xxh3_64(part) != *sum {
                return Err(io::Error::other(format!(
                    "the image is damaged: bytes {start}–{} of this disk are not what was saved (checksum)",
                    start.saturating_add(part.len() as u64)
                )));
            }
            *done = true;
        }
        Ok(())
    }
}
