//! A delta in a file, which outlives its machine.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, SeekFrom, flock, seek};
use rustix::io::Errno;

use super::blocks::BlockSet;
use super::error::OpenDeltaError;
use super::format::{BaseId, Condition, HEADER_BYTES, Header, Layout, MAP_PAGE, MAP_PAGE_BYTES};

/// How often a delta that is in use is looked at again.
const LOCK_STEP: Duration = Duration::from_millis(5);
/// Blocks of a page of a map.
const BLOCKS_PER_PAGE: u64 = MAP_PAGE_BYTES * 8;

/// How a delta is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaAccess {
    /// To be written; made if it is not there, or empty.
    Create,
    /// To be written; what was in it is needed.
    Continue,
    /// To be read only.
    Read,
}

/// A file of [`super::format`], locked.
#[derive(Debug)]
pub(super) struct DeltaFile {
    file: Arc<File>,
    path: PathBuf,
    header: Header,
    layout: Layout,
    access: DeltaAccess,
    /// Pages of the map whose safe copy is older than the live one.
    unsafe_pages: BTreeSet<u64>,
    /// We made it: it goes if it is of no use, and its name is to be made safe.
    is_new: bool,
}

/// What was found in a delta.
pub(super) struct Found {
    pub(super) delta: DeltaFile,
    pub(super) owned: BlockSet,
    /// Blocks that were written after the last flush before the host went down: they are lost.
    pub(super) lost_blocks: u64,
}

impl DeltaFile {
    /// Opens or makes the delta `path` over `base`.
    pub(super) fn open(
        path: &Path,
        base: BaseId,
        access: DeltaAccess,
        patience: Duration,
    ) -> Result<Found, OpenDeltaError> {
        let existed = path.exists();
        let opened = OpenOptions::new()
            .read(true)
            .write(access != DeltaAccess::Read)
            .create(access == DeltaAccess::Create)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let failed = |cause| OpenDeltaError::Open {
            path: path.to_owned(),
            cause,
        };
        let file = opened.map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(OpenDeltaError::NotAFile {
                path: path.to_owned(),
            });
        }
        lock(&file, path, access, patience)?;
        let layout = Layout::of(base.len_bytes);
        let found = file.metadata().map_err(failed)?;
        let is_empty = found.len() == 0
            || (found.len() == layout.file_bytes && is_unfinished(&file).map_err(failed)?);
        let mut delta = Self {
            file: Arc::new(file),
            path: path.to_owned(),
            header: Header {
                base,
                boot_id: boot_id(),
                condition: Condition::Whole,
            },
            layout,
            access,
            unsafe_pages: BTreeSet::new(),
            is_new: !existed,
        };
        if is_empty && access == DeltaAccess::Create {
            delta.file.set_len(layout.file_bytes).map_err(failed)?;
            delta.write_header().map_err(failed)?;
            return Ok(Found {
                delta,
                owned: BlockSet::new(layout.blocks),
                lost_blocks: 0,
            });
        }
        let header = delta.read_header(base)?;
        let (owned, lost_blocks) = delta.take_over(header).map_err(failed)?;
        Ok(Found {
            delta,
            owned,
            lost_blocks,
        })
    }

    pub(super) const fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) const fn data_at(&self) -> u64 {
        self.layout.data_at
    }

    fn read_header(&self, base: BaseId) -> Result<Header, OpenDeltaError> {
        let path = || self.path.clone();
        let refused = |cause| OpenDeltaError::Header {
            path: path(),
            cause,
        };
        let mut bytes = [0; HEADER_BYTES];
        if let Err(cause) = self.file.read_exact_at(&mut bytes, 0)
            && cause.kind() != io::ErrorKind::UnexpectedEof
        {
            return Err(OpenDeltaError::Open {
                path: path(),
                cause,
            });
        }
        let header = Header::decode(&bytes).map_err(refused)?;
        if header.base.len_bytes != base.len_bytes {
            return Err(OpenDeltaError::OtherLength {
                path: path(),
                delta_bytes: header.base.len_bytes,
                base_bytes: base.len_bytes,
            });
        }
        if header.base.sample != base.sample {
            return Err(OpenDeltaError::OtherBase { path: path() });
        }
        let found_bytes = self.file.metadata().map_or(0, |found| found.len());
        // A reset that was cut off may have cut the file.
        if header.condition == Condition::Whole && found_bytes != self.layout.file_bytes {
            return Err(OpenDeltaError::Truncated {
                path: path(),
                found_bytes,
                needed_bytes: self.layout.file_bytes,
            });
        }
        Ok(header)
    }

    /// Reads the map that holds, and makes the other one equal to it.
    fn take_over(&mut self, found: Header) -> io::Result<(BlockSet, u64)> {
        let blocks = self.layout.blocks;
        if found.condition == Condition::Resetting {
            if self.access != DeltaAccess::Read {
                self.reset()?;
            }
            return Ok((BlockSet::new(blocks), 0));
        }
        let safe = self.read_map(self.layout.safe_at)?;
        let live = self.read_map(self.layout.live_at)?;
        let differing = self.differing_pages(&safe, &live);
        if found.boot_id == self.header.boot_id && found.boot_id != [0; 16] {
            self.unsafe_pages = differing;
            return Ok((live, 0));
        }
        if self.access != DeltaAccess::Read {
            for page in &differing {
                let (range, at) = page_place(*page, self.layout.live_at);
                self.file.write_all_at(&safe.bytes(range), at)?;
            }
            // Before the header says that the live map is of this boot.
            if !differing.is_empty() {
                self.file.sync_data()?;
            }
            self.write_header()?;
        }
        // The live map has all that the safe one has.
        let lost = live.count().saturating_sub(safe.count());
        Ok((safe, lost))
    }

    fn differing_pages(&self, safe: &BlockSet, live: &BlockSet) -> BTreeSet<u64> {
        let pages = 0..self.layout.map_bytes / MAP_PAGE_BYTES;
        let differs = |page: &u64| {
            let (range, _) = page_place(*page, 0);
            safe.bytes(range.clone()) != live.bytes(range)
        };
        pages.filter(differs).collect()
    }

    /// The map at `at`. Holes of the file are passed over.
    fn read_map(&self, at: u64) -> io::Result<BlockSet> {
        let mut set = BlockSet::new(self.layout.blocks);
        let end = at.saturating_add(self.layout.map_bytes);
        let mut position = at;
        let mut page = [0; MAP_PAGE];
        while position < end {
            position = match seek(&*self.file, SeekFrom::Data(position)) {
                Ok(data) => position.max(data / MAP_PAGE_BYTES * MAP_PAGE_BYTES),
                Err(Errno::NXIO) => break,
                // A file system that cannot tell: all of it is read.
                Err(_) => position,
            };
            if position >= end {
                break;
            }
            self.file.read_exact_at(&mut page, position)?;
            let start = usize::try_from(position.saturating_sub(at)).unwrap_or(usize::MAX);
            set.add_bytes(start, &page, self.layout.blocks);
            position = position.saturating_add(MAP_PAGE_BYTES);
        }
        Ok(set)
    }

    fn write_header(&self) -> io::Result<()> {
        self.file.write_all_at(&self.header.encode(), 0)
    }

    /// What is written after a reset that failed would be void when the file is opened next.
    fn ensure_whole(&self) -> io::Result<()> {
        match self.header.condition {
            Condition::Whole => Ok(()),
            Condition::Resetting => Err(io::Error::other(
                "the reset of the delta has failed; nothing is written until one succeeds",
            )),
        }
    }

    /// `range` of the disk has become part of `owned`.
    pub(super) fn note(&mut self, owned: &BlockSet, range: Range<u64>) -> io::Result<()> {
        self.ensure_whole()?;
        let pages = range.start / BLOCKS_PER_PAGE..range.end.div_ceil(BLOCKS_PER_PAGE);
        self.unsafe_pages.extend(pages);
        let words = range.start / 64 * 8..range.end.div_ceil(64).saturating_mul(8);
        let at = self.layout.live_at.saturating_add(words.start);
        let bytes = owned.bytes(usize_range(words));
        self.file.write_all_at(&bytes, at)
    }

    /// Returns when all that was written is on the disk, and the safe map says so.
    pub(super) fn settle(&mut self, owned: &BlockSet) -> io::Result<()> {
        self.ensure_whole()?;
        self.file.sync_data()?;
        if self.is_new {
            // What is safe must also be found.
            self.file.sync_all()?;
            let folder = self
                .path
                .parent()
                .filter(|path| !path.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
            self.is_new = false;
        }
        if self.unsafe_pages.is_empty() {
            return Ok(());
        }
        for page in &self.unsafe_pages {
            let (range, at) = page_place(*page, self.layout.safe_at);
            self.file.write_all_at(&owned.bytes(range), at)?;
        }
        self.file.sync_data()?;
        self.unsafe_pages.clear();
        Ok(())
    }

    /// Forgets all blocks. Cut off in the middle, it is completed when the file is opened next.
    pub(super) fn reset(&mut self) -> io::Result<()> {
        self.header.condition = Condition::Resetting;
        self.write_header()?;
        self.file.sync_data()?;
        self.file.set_len(self.layout.safe_at)?;
        self.file.set_len(self.layout.file_bytes)?;
        self.file.sync_data()?;
        self.unsafe_pages.clear();
        let whole = Header {
            condition: Condition::Whole,
            ..self.header
        };
        self.file.write_all_at(&whole.encode(), 0)?;
        self.header = whole;
        Ok(())
    }

    /// Nothing was written by the guest: a file that we made for it is not left behind.
    pub(super) fn discard_if_new(&self) {
        let identity = |found: &std::fs::Metadata| (found.dev(), found.ino());
        let is_ours = || {
            let ours = self.file.metadata().ok()?;
            let named = std::fs::symlink_metadata(&self.path).ok()?;
            (identity(&ours) == identity(&named)).then_some(())
        };
        if self.is_new && is_ours().is_some() {
            // If it cannot be removed, an empty delta stays, which is as good as none.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Which bytes of a map page `page` has, and where they are in the file of which the map begins at `map_at`.
fn page_place(page: u64, map_at: u64) -> (Range<usize>, u64) {
    let start = page.saturating_mul(MAP_PAGE_BYTES);
    let range = start..start.saturating_add(MAP_PAGE_BYTES);
    (usize_range(range), map_at.saturating_add(start))
}

/// A map has 128 MiB at most.
fn usize_range(range: Range<u64>) -> Range<usize> {
    let place = |at| usize::try_from(at).unwrap_or(usize::MAX);
    place(range.start)..place(range.end)
}

/// Whether a file that is as long as a delta was made by a process that was killed before it wrote the header: all of it is a
/// hole. A file system may count blocks late, so its first bytes are looked at too.
fn is_unfinished(file: &File) -> io::Result<bool> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    Ok(file.metadata()?.blocks() == 0 && header.iter().all(|byte| *byte == 0))
}

/// One machine has a delta; those who only read share it.
fn lock(
    file: &File,
    path: &Path,
    access: DeltaAccess,
    patience: Duration,
) -> Result<(), OpenDeltaError> {
    let how = match access {
        DeltaAccess::Read => FlockOperation::NonBlockingLockShared,
        DeltaAccess::Create | DeltaAccess::Continue => FlockOperation::NonBlockingLockExclusive,
    };
    let until = Instant::now() + patience;
    loop {
        match flock(file, how) {
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(LOCK_STEP),
            Err(Errno::WOULDBLOCK) => {
                return Err(OpenDeltaError::InUse {
                    path: path.to_owned(),
                });
            }
            // A file system without locks: nobody else has one either.
            Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL | Errno::NOLCK) => {
                return Ok(());
            }
            Err(cause) => {
                return Err(OpenDeltaError::Open {
                    path: path.to_owned(),
                    cause: cause.into(),
                });
            }
        }
    }
}

/// The number that the host has got at its last start (random(4)); zeroes, which are nobody's, where it does not tell.
fn boot_id() -> [u8; 16] {
    static NOTED: OnceLock<[u8; 16]> = OnceLock::new();
    *NOTED.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes()
    })
}

/// Notes at which of its starts the host is, which deltas depend on: for a process that will not see it later.
pub fn note_boot() {
    boot_id();
}
