//! Making an image: whole or not at all.
//!
//! A file that is published when it is complete ([`crate::publish`]): header and table last, then sync and name.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lightv_devices::memory::GuestMem;
use lightv_devices::state::Section;
use lightv_devices::virtio::block::{StoredDelta, StoredPiece, chunk_sums};
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress};
use xxhash_rust::xxh3::Xxh3;

use super::disk::StoredDisk;
use super::header::{ENTRY_BYTES, HEADER_BYTES, Header, MAGIC, SectionEntry, kind};
use super::manifest::MemoryRunV1;
use super::read::Image;
use crate::limits;
use crate::publish::{self, NewFile, PublishError, SyncedFile};
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::signal::waiting_end;

/// Alignment of sections in the file.
const ALIGNMENT: u64 = 8;
/// How much RAM is copied at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Why no image was made. The target is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum WriteImageError {
    /// The path cannot take a file.
    #[error("Cannot save an image as {}: {what}", path.display())]
    Target {
        /// Which path.
        path: PathBuf,
        /// What stands in the way.
        what: &'static str,
    },
    /// The file could not be made, written, synced or named.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A section of another image could not be read.
    #[error("Cannot copy section {section} of an image")]
    Copy {
        /// Which section.
        section: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A disk that is to be part of the image could not be read.
    #[error("Cannot read drives[{index}], which is to be part of the image")]
    Disk {
        /// Its number in the configuration.
        index: u32,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A delta of very many stretches.
    #[error(
        "The delta of drives[{index}] has {stretches} stretches, too many for an image: give it a file (overlay.path)"
    )]
    Scattered {
        /// Its number in the configuration.
        index: u32,
        /// How many.
        stretches: usize,
    },
    /// State could not be encoded; a bug in us.
    #[error("Cannot encode section {kind}")]
    Encode {
        /// Which kind.
        kind: &'static str,
        /// What postcard says.
        #[source]
        cause: postcard::Error,
    },
    /// RAM could not be read; a bug in us.
    #[error("Cannot read guest RAM at {address:#x}")]
    Ram {
        /// Where.
        address: u64,
    },
    /// A signal asked the process to end.
    #[error("Saving image {} was interrupted by signal {signal}", path.display())]
    Interrupted {
        /// Which path.
        path: PathBuf,
        /// Number of the signal.
        signal: u8,
    },
}

/// What goes into an image, in file order: what a restore reads should come first.
#[derive(Debug, Default)]
pub struct ImageContents {
    sections: Vec<(SectionEntry, Body)>,
}

/// Where the bytes of a section come from.
#[derive(Debug)]
enum Body {
    Bytes(Vec<u8>),
    /// Stretches of guest RAM.
    Ram(Vec<MemoryRunV1>),
    /// A section of another image.
    Copy(SectionEntry),
    /// A disk.
    Disk(StoredDisk),
    /// Stretches of files.
    Pieces(Vec<StoredPiece>),
}

/// What sections are copied from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Guest RAM; the guest is paused: pages changed during the copy would be torn.
    Ram(&'a GuestMem),
    /// Another image.
    Image(&'a Image),
}

impl ImageContents {
    /// Adds a section of state.
    ///
    /// # Errors
    /// [`WriteImageError::Encode`].
    pub fn add<T: Section + Serialize>(
        &mut self,
        index: u32,
        state: &T,
    ) -> Result<(), WriteImageError> {
        let bytes = postcard::to_stdvec(state).map_err(|cause| WriteImageError::Encode {
            kind: T::KIND,
            cause,
        })?;
        self.sections
            .push((entry(T::KIND, index, T::VERSION), Body::Bytes(bytes)));
        Ok(())
    }

    /// Adds bytes.
    pub fn add_bytes(&mut self, kind: &'static str, bytes: Vec<u8>) {
        self.sections
            .push((entry(kind, 0, kind::BYTES_VERSION), Body::Bytes(bytes)));
    }

    /// Adds stretches of guest RAM as the `memory` section.
    pub fn add_memory(&mut self, runs: Vec<MemoryRunV1>) {
        if !runs.is_empty() {
            self.sections
                .push((entry(kind::MEMORY, 0, kind::BYTES_VERSION), Body::Ram(runs)));
        }
    }

    /// Adds a disk, with a checksum for each chunk of it.
    ///
    /// # Errors
    /// [`WriteImageError::Disk`].
    pub fn add_disk(&mut self, disk: StoredDisk) -> Result<(), WriteImageError> {
        let read = |chunk: &mut [u8], at| disk.file.read_exact_at(chunk, disk.base + at);
        let sums = chunk_sums(disk.len_bytes, read).map_err(|cause| WriteImageError::Disk {
            index: disk.index,
            cause,
        })?;
        let sums = sums.into_iter().flat_map(u64::to_le_bytes).collect();
        let index = disk.index;
        self.sections.push((
            entry(kind::DISK_SUMS, index, kind::BYTES_VERSION),
            Body::Bytes(sums),
        ));
        self.sections.push((
            entry(kind::DISK, index, kind::BYTES_VERSION),
            Body::Disk(disk),
        ));
        Ok(())
    }

    /// Adds the delta of drive `index`, with a checksum for each chunk of it.
    ///
    /// # Errors
    /// [`WriteImageError`].
    pub fn add_overlay(&mut self, index: u32, delta: StoredDelta) -> Result<(), WriteImageError> {
        self.add(index, &delta.map)?;
        if let Some((_, Body::Bytes(bytes))) = self.sections.last()
            && bytes.len() as u64 > limits::OVERLAY_MAP_BYTES_MAX
        {
            let stretches = delta.map.runs.len();
            return Err(WriteImageError::Scattered { index, stretches });
        }
        if delta.pieces.is_empty() {
            return Ok(());
        }
        let bytes = delta.pieces.iter().map(|piece| piece.bytes).sum();
        // Chunk after chunk, as the section is written.
        let mut reader = PieceReader::new(&delta.pieces);
        let sums = chunk_sums(bytes, |chunk, _| reader.read(chunk));
        let sums = sums.map_err(|cause| WriteImageError::Disk { index, cause })?;
        let sums = sums.into_iter().flat_map(u64::to_le_bytes).collect();
        let version = kind::BYTES_VERSION;
        let sums_entry = entry(kind::OVERLAY_SUMS, index, version);
        self.sections.push((sums_entry, Body::Bytes(sums)));
        let overlay_entry = entry(kind::OVERLAY, index, version);
        self.sections
            .push((overlay_entry, Body::Pieces(delta.pieces)));
        Ok(())
    }

    /// Adds a section of another image.
    pub fn add_copy(&mut self, from: &SectionEntry) {
        self.sections.push((from.clone(), Body::Copy(from.clone())));
    }
}

fn entry(kind: &str, index: u32, version: u16) -> SectionEntry {
    SectionEntry {
        kind: kind.to_owned(),
        index,
        version,
        offset: 0,
        bytes: 0,
        checksum: 0,
    }
}

/// Writes `contents` as the image `path`, replacing an image that is there. Returns its length in bytes.
///
/// # Errors
/// [`WriteImageError`]; the target is then as it was.
pub fn write_image(
    path: &Path,
    contents: ImageContents,
    source: Source<'_>,
) -> Result<u64, WriteImageError> {
    let (target, end) = write_unnamed(path, contents, source)?;
    target.publish()?;
    Ok(end)
}

/// The same without a sync: for what means nothing after a crash of the host.
///
/// # Errors
/// [`WriteImageError`]; the target is then as it was.
pub fn write_image_unsynced(
    path: &Path,
    contents: ImageContents,
    source: Source<'_>,
) -> Result<u64, WriteImageError> {
    let (target, end) = fill(path, contents, source)?;
    target.publish_unsynced()?;
    Ok(end)
}

/// Writes what will be the image `path`, and syncs it; it is to be given its name. Returns its length in bytes too.
///
/// # Errors
/// [`WriteImageError`].
pub fn write_unnamed(
    path: &Path,
    contents: ImageContents,
    source: Source<'_>,
) -> Result<(SyncedFile, u64), WriteImageError> {
    let (target, end) = fill(path, contents, source)?;
    Ok((target.sync()?, end))
}

fn fill(
    path: &Path,
    contents: ImageContents,
    source: Source<'_>,
) -> Result<(NewFile, u64), WriteImageError> {
    check_target(path, &[])?;
    let target = NewFile::create(path)?;
    let mut end = (HEADER_BYTES + contents.sections.len() * ENTRY_BYTES) as u64;
    let mut entries = Vec::with_capacity(contents.sections.len());
    for (mut entry, body) in contents.sections {
        let alignment = match entry.kind.as_str() {
            kind::MEMORY | kind::DISK | kind::OVERLAY => PAGE_BYTES as u64,
            _ => ALIGNMENT,
        };
        entry.offset = end.next_multiple_of(alignment);
        let mut section = SectionWriter {
            target: &target,
            position: entry.offset,
            hash: Xxh3::new(),
        };
        match body {
            Body::Bytes(bytes) => section.write(&bytes)?,
            Body::Ram(runs) => section.write_ram(&runs, source)?,
            Body::Copy(from) => section.write_copy(&from, source)?,
            Body::Disk(disk) => section.write_disk(&disk)?,
            Body::Pieces(pieces) => section.write_pieces(&pieces, entry.index)?,
        }
        end = section.position;
        entry.bytes = end - entry.offset;
        entry.checksum = section.hash.digest();
        entries.push(entry);
    }
    target.write_at(&Header::encode(end, &entries), 0)?;
    Ok((target, end))
}

/// Proves that `path` can take an image: it is free, or an image that is to be replaced, and none of `in_use`, which are
/// the machine's disks. A disk holds what a guest wrote, and that may well look like an image.
///
/// # Errors
/// [`WriteImageError::Target`].
pub fn check_target(path: &Path, in_use: &[&Path]) -> Result<(), WriteImageError> {
    let refused = |what| WriteImageError::Target {
        path: path.into(),
        what,
    };
    let found = publish::check_target(path, in_use, "it is a disk of the machine");
    let bytes = found.map_err(refused)?;
    // An empty file is what tools reserve a name with.
    if bytes.is_some_and(|bytes| bytes > 0) && !is_image(path) {
        return Err(refused(
            "it exists and is not a LightV image; remove it, or choose another name",
        ));
    }
    Ok(())
}

fn is_image(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    // It was a regular file a moment ago; what somebody has put in its place is not waited for.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path);
    let read = opened.and_then(|file| file.read_exact_at(&mut magic, 0));
    read.is_ok() && magic == MAGIC
}

/// Reads stretches of files one after the other.
struct PieceReader<'a> {
    pieces: std::slice::Iter<'a, StoredPiece>,
    current: Option<&'a StoredPiece>,
    /// Bytes of it that are read.
    done: u64,
}

impl<'a> PieceReader<'a> {
    fn new(pieces: &'a [StoredPiece]) -> Self {
        let mut pieces = pieces.iter();
        let current = pieces.next();
        Self {
            pieces,
            current,
            done: 0,
        }
    }

    /// Fills `chunk` with what follows.
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<()> {
        let mut rest = chunk;
        while !rest.is_empty() {
            let piece = self.current.ok_or(io::ErrorKind::UnexpectedEof)?;
            let left = usize::try_from(piece.bytes - self.done).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at_mut(left.min(rest.len()));
            piece.file.read_exact_at(part, piece.offset + self.done)?;
            self.done += part.len() as u64;
            rest = after;
            if self.done == piece.bytes {
                self.current = self.pieces.next();
                self.done = 0;
            }
        }
        Ok(())
    }
}

/// Writes one section and takes its checksum.
struct SectionWriter<'a> {
    target: &'a NewFile,
    position: u64,
    hash: Xxh3,
}

impl SectionWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteImageError> {
        if let Some(signal) = waiting_end() {
            return Err(WriteImageError::Interrupted {
                path: self.target.path().to_owned(),
                signal,
            });
        }
        self.hash.update(bytes);
        self.target.write_at(bytes, self.position)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn write_ram(
        &mut self,
        runs: &[MemoryRunV1],
        source: Source<'_>,
    ) -> Result<(), WriteImageError> {
        for run in runs {
            self.write_chunks(run.bytes, |chunk, done| {
                let address = run.address + done;
                let Source::Ram(mem) = source else {
                    return Err(WriteImageError::Ram { address });
                };
                mem.read_slice(chunk, GuestAddress(address))
                    .map_err(|_| WriteImageError::Ram { address })
            })?;
        }
        Ok(())
    }

    fn write_copy(
        &mut self,
        from: &SectionEntry,
        source: Source<'_>,
    ) -> Result<(), WriteImageError> {
        self.write_chunks(from.bytes, |chunk, done| {
            let Source::Image(image) = source else {
                return Err(WriteImageError::Ram { address: 0 });
            };
            let read = image.file().read_exact_at(chunk, from.offset + done);
            read.map_err(|cause| WriteImageError::Copy {
                section: from.name(),
                cause,
            })
        })
    }

    fn write_disk(&mut self, disk: &StoredDisk) -> Result<(), WriteImageError> {
        self.write_chunks(disk.len_bytes, |chunk, done| {
            let read = disk.file.read_exact_at(chunk, disk.base + done);
            read.map_err(|cause| WriteImageError::Disk {
                index: disk.index,
                cause,
            })
        })
    }

    fn write_pieces(&mut self, pieces: &[StoredPiece], index: u32) -> Result<(), WriteImageError> {
        let mut reader = PieceReader::new(pieces);
        let bytes = pieces.iter().map(|piece| piece.bytes).sum();
        self.write_chunks(bytes, |chunk, _| {
            let read = reader.read(chunk);
            read.map_err(|cause| WriteImageError::Disk { index, cause })
        })
    }

    fn write_chunks(
        &mut self,
        bytes: u64,
        mut fill: impl FnMut(&mut [u8], u64) -> Result<(), WriteImageError>,
    ) -> Result<(), WriteImageError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut done = 0;
        while done < bytes {
            let length =
                usize::try_from(bytes - done).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            let chunk = buffer.get_mut(..length).unwrap_or_default();
            fill(chunk, done)?;
            self.write(chunk)?;
            done += length as u64;
        }
        Ok(())
    }
}
