//! Guest RAM as a file of its own, as clients of the REST API have it: all RAM in address order, without the hole below
//! 4 GiB, zero pages as holes of the file. The state that goes with it is an image without memory; it knows the length
//! and some pages of the file, so that it is not given another machine's.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::iter;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lightv_devices::memory::GuestMem;
use lightv_devices::state::Section;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};
use xxhash_rust::xxh3::xxh3_64;

use super::page_map::{Page, for_each_page};
use crate::arch::host::layout;
use crate::image::manifest::MemoryRunV1;
use crate::limits;
use crate::memory::{GuestRam, RamRun};
use crate::publish::{self, NewFile, PublishError, SyncedFile};
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::process::wall_clock_ns;
use crate::sys::signal::waiting_end;

const PAGE: u64 = PAGE_BYTES as u64;
/// How much RAM is copied at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// What a state knows of its memory file, version 1. Never edit: add a V2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFileV1 {
    /// Length of the file in bytes: that of RAM.
    pub bytes: u64,
    /// When it was saved, in nanoseconds since 1970.
    pub saved_unix_ns: u64,
    /// Some of its pages, at most [`limits::MEMORY_SAMPLES`].
    pub samples: Vec<PageSampleV1>,
}

/// A page of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSampleV1 {
    /// Offset in the file in bytes.
    pub offset: u64,
    /// XXH3-64 of the page.
    pub checksum: u64,
}

impl Section for MemoryFileV1 {
    const KIND: &'static str = "memory-file";
    const VERSION: u16 = 1;
}

/// Why a memory file was not written. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteMemoryError {
    /// The path cannot take it.
    #[error("Cannot save guest memory as {}: {what}", path.display())]
    Target {
        /// Which path.
        path: PathBuf,
        /// What stands in the way.
        what: &'static str,
    },
    /// The file could not be made, written, synced or named.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// RAM could not be read; a bug in us.
    #[error("Cannot read guest RAM at {address:#x}")]
    Ram {
        /// Where.
        address: u64,
    },
    /// The page map could not be read.
    #[error("Cannot read the page map of the process")]
    PageMap(#[source] io::Error),
    /// Where the file has data cannot be learnt.
    #[error("Cannot find the holes of {}", path.display())]
    Holes {
        /// Which path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// What was written is not told from what was not.
    #[error(
        "Cannot save a Diff as {}: its file system shows {found} bytes of data where {written} were written, and what was not would be \
         laid over the base as zeros; save it where single pages of 4 KiB are data or holes (ext4, XFS, tmpfs without huge pages), or \
         save Full",
        path.display()
    )]
    CoarseHoles {
        /// Which path.
        path: PathBuf,
        /// Bytes of data by lseek(2).
        found: u64,
        /// Bytes that were written.
        written: u64,
    },
    /// A signal asked the process to end.
    #[error("Saving {} was interrupted by signal {signal}", path.display())]
    Interrupted {
        /// Which path.
        path: PathBuf,
        /// Number of the signal.
        signal: u8,
    },
}

/// Why a memory file was refused.
#[derive(Debug, thiserror::Error)]
pub enum OpenMemoryError {
    /// It cannot be opened or read.
    #[error("Cannot read memory file {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A directory, FIFO, socket or device.
    #[error("Memory file {} is not a regular file", path.display())]
    NotAFile {
        /// Which file.
        path: PathBuf,
    },
    /// Another length than RAM has.
    #[error("Memory file {} has {found} bytes; the snapshot's has {expected}: name the one that was written with this state", path.display())]
    Length {
        /// Which file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What is needed.
        expected: u64,
    },
    /// Not the memory that was saved with this state.
    #[error(
        "Memory file {} does not belong to this snapshot: its page at {offset:#x} is another (checksum); name the one that was written with \
         this state",
        path.display()
    )]
    Other {
        /// Which file.
        path: PathBuf,
        /// Where they differ.
        offset: u64,
    },
}

/// Proves that `path` can take guest memory: it is free, or a regular file that is none of `in_use`, the machine's disks.
///
/// # Errors
/// [`WriteMemoryError::Target`].
pub fn check_target(path: &Path, in_use: &[&Path]) -> Result<(), WriteMemoryError> {
    let found = publish::check_target(path, in_use, "it is a disk of the machine");
    found.map(|_| ()).map_err(|what| WriteMemoryError::Target {
        path: path.into(),
        what,
    })
}

/// Writes `runs` of `ram` as what will be the memory file `path`; all else of it is holes. It is to be given its name when the state
/// that knows it is written too. The guest is paused.
///
/// # Errors
/// [`WriteMemoryError`].
pub fn write(
    ram: &GuestRam,
    runs: &[MemoryRunV1],
    path: &Path,
) -> Result<(SyncedFile, MemoryFileV1), WriteMemoryError> {
    let file = NewFile::create(path)?;
    let bytes = ram.bytes();
    file.set_len(bytes)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    for run in runs {
        copy_run(ram.mem(), *run, &file, &mut buffer)?;
    }
    let samples = samples(ram, runs)?;
    let file = file.sync()?;
    let known = MemoryFileV1 {
        bytes,
        saved_unix_ns: wall_clock_ns(),
        samples,
    };
    Ok((file, known))
}

/// Proves that `file`, a difference that consists of `runs`, has holes everywhere else, and no hole in these: file systems with larger
/// blocks or pages have data around each write, and some make holes of zeros.
///
/// # Errors
/// [`WriteMemoryError::CoarseHoles`], [`WriteMemoryError::Holes`].
pub fn prove_holes(file: &SyncedFile, runs: &[MemoryRunV1]) -> Result<(), WriteMemoryError> {
    let path = || file.path().to_owned();
    let metadata = file.file().metadata();
    let extents = metadata.and_then(|found| extents(file.file(), found.size()));
    let extents = extents.map_err(|cause| WriteMemoryError::Holes {
        path: path(),
        cause,
    })?;
    let found = extents.iter().map(|(_, bytes)| bytes).sum();
    let written = runs.iter().map(|run| run.bytes).sum();
    if found == written {
        return Ok(());
    }
    Err(WriteMemoryError::CoarseHoles {
        path: path(),
        found,
        written,
    })
}

/// What a state knows of memory that is in no file: its length alone.
#[must_use]
pub fn unwritten(ram: &GuestRam) -> MemoryFileV1 {
    MemoryFileV1 {
        bytes: ram.bytes(),
        saved_unix_ns: wall_clock_ns(),
        samples: Vec::new(),
    }
}

fn copy_run(
    mem: &GuestMem,
    run: MemoryRunV1,
    file: &NewFile,
    buffer: &mut [u8],
) -> Result<(), WriteMemoryError> {
    let mut done = 0;
    while done < run.bytes {
        if let Some(signal) = waiting_end() {
            let path = file.path().to_owned();
            return Err(WriteMemoryError::Interrupted { path, signal });
        }
        let left = usize::try_from(run.bytes - done).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let chunk = buffer.get_mut(..length).unwrap_or_default();
        let address = run.address + done;
        mem.read_slice(chunk, GuestAddress(address))
            .map_err(|_| WriteMemoryError::Ram { address })?;
        file.write_at(chunk, file_offset(address))?;
        done += length as u64;
    }
    Ok(())
}

/// Pages from all over those that exist, and from all over `runs`: a difference without its base, and a base without its
/// difference, are told from the whole however little has changed.
fn samples(ram: &GuestRam, runs: &[MemoryRunV1]) -> Result<Vec<PageSampleV1>, WriteMemoryError> {
    let mut existing: Vec<u64> = Vec::new();
    for_each_page(ram, |address, page| {
        if matches!(page, Page::View | Page::Own) {
            existing.push(address);
        }
    })
    .map_err(WriteMemoryError::PageMap)?;
    let written = runs
        .iter()
        .flat_map(|run| (run.address..run.address + run.bytes).step_by(PAGE_BYTES));
    let mut chosen: BTreeSet<u64> = spread(existing.into_iter()).collect();
    chosen.extend(spread(written));
    let mut bytes = vec![0; PAGE_BYTES];
    let mut samples = Vec::with_capacity(chosen.len());
    for address in chosen {
        ram.mem()
            .read_slice(&mut bytes, GuestAddress(address))
            .map_err(|_| WriteMemoryError::Ram { address })?;
        samples.push(PageSampleV1 {
            offset: file_offset(address),
            checksum: xxh3_64(&bytes),
        });
    }
    Ok(samples)
}

/// Half of [`limits::MEMORY_SAMPLES`] of `pages`, or all where there are fewer.
fn spread(pages: impl Iterator<Item = u64> + Clone) -> impl Iterator<Item = u64> {
    let step = pages.clone().count().div_ceil(limits::MEMORY_SAMPLES / 2);
    pages.step_by(step.max(1))
}

/// Where the byte at guest-physical `address` lies in the file.
#[must_use]
pub const fn file_offset(address: u64) -> u64 {
    if address < layout::HOLE_START {
        address
    } else {
        address - (layout::HOLE_END - layout::HOLE_START)
    }
}

/// A memory file, and what of it is laid over RAM.
#[derive(Debug)]
pub struct MemoryLayer {
    /// The file.
    pub file: Arc<File>,
    /// Where its parts go, in order.
    pub runs: Vec<RamRun>,
}

/// Opens the memory file `base` of a state that knows `known` of it, and the differences `diffs` that are laid over it in
/// this order.
///
/// # Errors
/// [`OpenMemoryError`].
pub fn open(
    base: &Path,
    diffs: &[PathBuf],
    known: &MemoryFileV1,
) -> Result<Vec<MemoryLayer>, OpenMemoryError> {
    let mut layers = vec![MemoryLayer {
        file: open_file(base, known.bytes)?,
        runs: runs(known.bytes),
    }];
    for path in diffs {
        let file = open_file(path, known.bytes)?;
        let extents = extents(&file, known.bytes).map_err(|cause| OpenMemoryError::Io {
            path: path.clone(),
            cause,
        })?;
        let runs = extents.into_iter().flat_map(ram_runs).collect();
        layers.push(MemoryLayer { file, runs });
    }
    for sample in &known.samples {
        prove_sample(&layers, sample, diffs.last().map_or(base, PathBuf::as_path))?;
    }
    Ok(layers)
}

fn open_file(path: &Path, bytes: u64) -> Result<Arc<File>, OpenMemoryError> {
    let failed = |cause| OpenMemoryError::Io {
        path: path.into(),
        cause,
    };
    // O_NONBLOCK: a FIFO without a writer must not hang us.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(OpenMemoryError::NotAFile { path: path.into() });
    }
    if metadata.size() != bytes {
        return Err(OpenMemoryError::Length {
            path: path.into(),
            found: metadata.size(),
            expected: bytes,
        });
    }
    Ok(Arc::new(file))
}

/// Proves a page of what the layers make together.
fn prove_sample(
    layers: &[MemoryLayer],
    sample: &PageSampleV1,
    path: &Path,
) -> Result<(), OpenMemoryError> {
    let holds =
        |run: &RamRun| (run.file_offset..run.file_offset + run.bytes).contains(&sample.offset);
    let top = layers
        .iter()
        .rev()
        .find(|layer| layer.runs.iter().any(holds));
    let Some(layer) = top else {
        return Ok(());
    };
    let mut page = vec![0; PAGE_BYTES];
    let read = layer.file.read_exact_at(&mut page, sample.offset);
    read.map_err(|cause| OpenMemoryError::Io {
        path: path.into(),
        cause,
    })?;
    if xxh3_64(&page) == sample.checksum {
        return Ok(());
    }
    Err(OpenMemoryError::Other {
        path: path.into(),
        offset: sample.offset,
    })
}

/// The parts of a file that are no holes, by offset and length, widened to whole pages (lseek(2), SEEK_DATA).
fn extents(file: &File, file_bytes: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut extents: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < file_bytes {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start / PAGE * PAGE,
            // No data after `at`.
            Err(Errno::NXIO) => break,
            Err(cause) => return Err(cause.into()),
        };
        let end = seek(file, SeekFrom::Hole(start.max(at)))?.next_multiple_of(PAGE);
        extents.push((start, end.min(file_bytes) - start));
        at = end;
    }
    Ok(extents)
}

/// Where a part of a memory file goes in RAM: in two parts, if it has the hole below 4 GiB in it.
fn ram_runs((offset, bytes): (u64, u64)) -> impl Iterator<Item = RamRun> {
    let below = layout::HOLE_START.saturating_sub(offset).min(bytes);
    let parts = [(offset, below), (offset + below, bytes - below)];
    let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
    parts.map(|(file_offset, bytes)| RamRun {
        address: address_of(file_offset),
        bytes,
        file_offset,
    })
}

/// Where the byte at `offset` of the file lies in RAM: the reverse of [`file_offset`].
const fn address_of(offset: u64) -> u64 {
    if offset < layout::HOLE_START {
        offset
    } else {
        offset + (layout::HOLE_END - layout::HOLE_START)
    }
}

/// Makes one memory file, `out`, of `base` and the differences `diffs` over it, in this order.
///
/// # Errors
/// [`MergeError`]; what was there is as it was.
pub fn merge(base: &Path, diffs: &[PathBuf], out: &Path) -> Result<(), MergeError> {
    check_target(out, &[])?;
    let bytes = std::fs::metadata(base).map_or(0, |found| found.size());
    let target = NewFile::create(out).map_err(WriteMemoryError::Publish)?;
    target.set_len(bytes).map_err(WriteMemoryError::Publish)?;
    let paths = iter::once(base).chain(diffs.iter().map(PathBuf::as_path));
    for path in paths {
        let file = open_file(path, bytes)?;
        copy_data(&file, path, bytes, &target)?;
    }
    target.publish().map_err(WriteMemoryError::Publish)?;
    Ok(())
}

fn copy_data(file: &File, path: &Path, bytes: u64, target: &NewFile) -> Result<(), MergeError> {
    let failed = |cause| OpenMemoryError::Io {
        path: path.into(),
        cause,
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    for (offset, length) in extents(file, bytes).map_err(failed)? {
        let mut done = 0;
        while done < length {
            let left = usize::try_from(length - done).unwrap_or(usize::MAX);
            let chunk = buffer.get_mut(..left.min(CHUNK_BYTES)).unwrap_or_default();
            file.read_exact_at(chunk, offset + done).map_err(failed)?;
            let written = target.write_at(chunk, offset + done);
            written.map_err(WriteMemoryError::Publish)?;
            done += chunk.len() as u64;
        }
    }
    Ok(())
}

/// Why memory files were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// One of them is refused.
    #[error(transparent)]
    Open(#[from] OpenMemoryError),
    /// The result could not be written.
    #[error(transparent)]
    Write(#[from] WriteMemoryError),
}

/// All RAM of a machine with `ram_bytes`, as it lies in its memory file.
#[must_use]
pub fn runs(ram_bytes: u64) -> Vec<RamRun> {
    let (low, high) = layout::ram_ranges(ram_bytes);
    let parts = [(0, low), (layout::HOLE_END, high)];
    let runs = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
    runs.map(|(address, bytes)| RamRun {
        address,
        bytes,
        file_offset: file_offset(address),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::ram_scan;

    fn save_memory(ram: &GuestRam, runs: &[MemoryRunV1], path: &Path) -> MemoryFileV1 {
        let (file, known) = write(ram, runs, path).unwrap();
        file.publish().unwrap();
        known
    }

    #[test]
    fn the_file_has_no_hole_below_4_gib() {
        assert_eq!(file_offset(layout::HOLE_START - 1), layout::HOLE_START - 1);
        assert_eq!(file_offset(layout::HOLE_END), layout::HOLE_START);
        let all = runs(layout::HOLE_START + (16 << 20));
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].file_offset, layout::HOLE_START);
        assert_eq!(runs(16 << 20).len(), 1);
    }

    #[test]
    fn what_was_written_is_found_again_and_another_machines_memory_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let save = |name: &str, value: u8| {
            let ram = GuestRam::allocate(layout::HOLE_START + (16 << 20)).unwrap();
            for address in [0x5000, layout::HOLE_END + 0x3007] {
                ram.mem().write_obj(value, GuestAddress(address)).unwrap();
            }
            let path = folder.path().join(name);
            let runs = ram_scan::all_runs(&ram).unwrap();
            let known = save_memory(&ram, &runs, &path);
            (path, known)
        };
        let (path, known) = save("a", 7);
        let (other, _) = save("b", 8);
        let layers = open(&path, &[], &known).unwrap();
        let file = &layers[0].file;
        assert_eq!(known.samples.len(), 2);
        let mut byte = [0];
        let at = layout::HOLE_START + 0x3007;
        file.read_exact_at(&mut byte, at).unwrap();
        assert_eq!(byte, [7]);
        let refused = open(&other, &[], &known).unwrap_err().to_string();
        assert!(refused.contains("does not belong"), "{refused}");
        let short = OpenOptions::new().write(true).open(&path).unwrap();
        short.set_len(known.bytes - 1).unwrap();
        let refused = open(&path, &[], &known).unwrap_err().to_string();
        assert!(refused.contains("bytes"), "{refused}");
    }

    #[test]
    fn a_difference_with_data_that_was_not_written_or_without_what_was_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ram = GuestRam::allocate(16 << 20).unwrap();
        let run = |address, bytes| MemoryRunV1 { address, bytes };
        // A page of zeros is a difference too.
        let written = [run(0x5000, PAGE), run(0x20_0000, 3 * PAGE)];
        let (file, _) = write(&ram, &written, &folder.path().join("diff")).unwrap();
        prove_holes(&file, &written).unwrap();
        for (others, numbers) in [
            (&written[..1], "16384 bytes of data where 4096"),
            (&[run(0, 32 * PAGE)][..], "16384 bytes of data where 131072"),
        ] {
            let refused = prove_holes(&file, others).unwrap_err().to_string();
            assert!(refused.contains(numbers), "{refused}");
        }
    }

    #[test]
    fn differences_are_laid_over_the_base_by_a_load_and_by_a_merge() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let ram = GuestRam::allocate(layout::HOLE_START + (16 << 20)).unwrap();
        let set = |address, value: u8| {
            ram.mem().write_obj(value, GuestAddress(address)).unwrap();
        };
        let page = |address| MemoryRunV1 {
            address,
            bytes: PAGE,
        };
        set(0x5000, 1);
        set(layout::HOLE_END, 1);
        save_memory(&ram, &ram_scan::all_runs(&ram).unwrap(), &path("base"));
        // Two neighbours in the file, on both sides of the hole.
        set(layout::HOLE_START - 1, 2);
        set(layout::HOLE_END, 2);
        let changed = [page(layout::HOLE_START - PAGE), page(layout::HOLE_END)];
        save_memory(&ram, &changed, &path("first"));
        set(0x5000, 0);
        let known = save_memory(&ram, &[page(0x5000)], &path("second"));
        save_memory(&ram, &ram_scan::all_runs(&ram).unwrap(), &path("full"));
        let diffs = [path("first"), path("second")];
        let layers = open(&path("base"), &diffs, &known).unwrap();
        assert_eq!(layers.len(), 3);
        assert_eq!(layers[1].runs.len(), 2, "{:?}", layers[1].runs);
        let refused = open(&path("base"), &diffs[1..], &known).unwrap_err();
        assert!(refused.to_string().contains("does not belong"), "{refused}");
        merge(&path("base"), &diffs, &path("merged")).unwrap();
        let same = |a: &Path, b: &Path| {
            let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
            let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
            for at in [0, layout::HOLE_START - (1 << 20), layout::HOLE_START] {
                a.read_exact_at(&mut left, at).unwrap();
                b.read_exact_at(&mut right, at).unwrap();
                assert_eq!(left, right, "{at:#x}");
            }
            assert_eq!(a.metadata().unwrap().len(), b.metadata().unwrap().len());
        };
        same(&path("merged"), &path("full"));
        let other = path("other");
        File::create(&other).unwrap().set_len(4096).unwrap();
        let refused = merge(&path("base"), &[other], &path("m")).unwrap_err();
        assert!(refused.to_string().contains("bytes"), "{refused}");
        assert!(!path("m").exists());
    }

    #[test]
    fn samples_are_few_and_from_all_over() {
        let ram = GuestRam::allocate(64 << 20).unwrap();
        for address in (0..64 << 20).step_by(PAGE_BYTES * 8) {
            ram.mem().write_obj(1_u8, GuestAddress(address)).unwrap();
        }
        let changed = MemoryRunV1 {
            address: 0x2a_5000,
            bytes: PAGE_BYTES as u64,
        };
        let found = samples(&ram, &[changed]).unwrap();
        assert!(found.iter().any(|sample| sample.offset == 0x2a_5000));
        assert!(found.len() <= limits::MEMORY_SAMPLES && found.len() > 30);
        assert!(found.last().unwrap().offset > 60 << 20);
    }

    proptest! {
        /// The file has each byte of RAM once, without gaps.
        #[test]
        fn runs_fill_the_file(mib in 1..1_u64 << 26) {
            let mut end = 0;
            for run in runs(mib << 20) {
                prop_assert_eq!((run.file_offset, file_offset(run.address)), (end, end));
                end += run.bytes;
            }
            prop_assert_eq!(end, mib << 20);
        }
    }
}
