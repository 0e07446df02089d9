//! The host's side of a disk: a file, a block device, or a stretch of an image.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FallocateFlags, FlockOperation, OFlags, StatxFlags, fallocate, fcntl_setfl, flock,
    statx,
};
use rustix::io::{Errno, retry_on_intr};

use super::proved::{Proof, chunk_count};
use crate::sys::guest_buffers::GuestBuffers;

/// Bytes of a sector (virtio 1.2 §5.2.4).
pub(super) const SECTOR_BYTES: u64 = 512;

/// A raw file or block device that is open, or a stretch of an image.
#[derive(Debug)]
pub(super) struct RawDisk {
    file: Arc<File>,
    read_only: bool,
    /// Where the disk begins in the file.
    base: u64,
    len_bytes: u64,
    /// What is read must be proved first.
    proof: Option<Proof>,
    /// The way past the host's page cache, if it was asked for.
    direct: Option<Direct>,
    /// Holds the lock (flock(2)): as long as this is open, nobody of ours writes the file if we read it, nor has it at all if we
    /// write it. Another open of the same file by this machine has the same holder.
    lock: Option<Arc<File>>,
}

/// The same file, opened with O_DIRECT (open(2)).
#[derive(Debug)]
struct Direct {
    file: Arc<File>,
    /// What addresses and lengths of buffers must be multiples of, in bytes.
    memory_bytes: u64,
    /// What places in the file must be multiples of.
    offset_bytes: u64,
}

/// A stretch of an image file that is a disk.
#[derive(Debug, Clone)]
pub struct DiskPart {
    /// The image.
    pub file: Arc<File>,
    /// Where the disk begins, in bytes.
    pub base: u64,
    /// Its length in bytes: at least one sector.
    pub len_bytes: u64,
    /// A checksum for each [`PROOF_CHUNK_BYTES`](super::proved::PROOF_CHUNK_BYTES) of it.
    pub sums: Arc<[u64]>,
}

/// Why a disk was refused. The operator sees only this text and its causes.
#[derive(Debug, thiserror::Error)]
pub enum OpenDiskError {
    /// The kernel does not open it.
    #[error("Cannot open disk {} for {}", path.display(), if *read_only { "reading" } else { "reading and writing" })]
    Open {
        /// Its path.
        path: PathBuf,
        /// What it was opened for.
        read_only: bool,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It is something else.
    #[error("Disk {} is {found}, neither a file nor a block device", path.display())]
    NotADisk {
        /// Its path.
        path: PathBuf,
        /// What it is.
        found: NotADisk,
    },
    /// Its length cannot be found.
    #[error("Cannot find the length of disk {}", path.display())]
    Length {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It has not one sector.
    #[error("Disk {} has {len_bytes} bytes, less than one sector of 512", path.display())]
    TooShort {
        /// Its path.
        path: PathBuf,
        /// Its length.
        len_bytes: u64,
    },
}

/// Why a disk was not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockDiskError {
    /// Another machine has it.
    #[error(
        "Disk {} is in use: another microVM, or another drive of this one, {}. Give each its own copy, or make the drive read-only in all",
        path.display(), if *writes { "has it open" } else { "may write to it" }
    )]
    InUse {
        /// Its path.
        path: PathBuf,
        /// It was to be written.
        writes: bool,
    },
    /// The kernel refuses.
    #[error("Cannot lock disk {}", path.display())]
    Host {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
}

/// How often a disk that is in use is looked at again.
const LOCK_STEP: Duration = Duration::from_millis(5);

/// What was found in place of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum NotADisk {
    Directory,
    Fifo,
    Socket,
    CharacterDevice,
    Other,
}

impl fmt::Display for NotADisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::CharacterDevice => "a character device",
            Self::Other => "of an unknown kind",
        })
    }
}

impl RawDisk {
    /// Opens the disk at `path`, for reading only if `read_only`. Never waits: O_NONBLOCK keeps a FIFO from doing so. A disk does not
    /// keep it: older kernels give requests of io_uring back (EAGAIN) that would have to wait then.
    ///
    /// # Errors
    /// [`OpenDiskError`].
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, OpenDiskError> {
        let path_buf = || path.to_owned();
        let opened = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(cause) if cause.kind() == ErrorKind::IsADirectory => {
                return Err(OpenDiskError::NotADisk {
                    path: path_buf(),
                    found: NotADisk::Directory,
                });
            }
            Err(cause) => {
                return Err(OpenDiskError::Open {
                    path: path_buf(),
                    read_only,
                    cause,
                });
            }
        };
        let length_error = |cause| OpenDiskError::Length {
            path: path_buf(),
            cause,
        };
        let metadata = file.metadata().map_err(length_error)?;
        if let Some(found) = not_a_disk(metadata.file_type()) {
            return Err(OpenDiskError::NotADisk {
                path: path_buf(),
                found,
            });
        }
        fcntl_setfl(&file, OFlags::empty()).map_err(|cause| OpenDiskError::Open {
            path: path_buf(),
            read_only,
            cause: cause.into(),
        })?;
        // Metadata has no length for block devices; the end has, for both.
        let len_bytes = file.seek(SeekFrom::End(0)).map_err(length_error)?;
        if len_bytes < SECTOR_BYTES {
            return Err(OpenDiskError::TooShort {
                path: path_buf(),
                len_bytes,
            });
        }
        Ok(Self {
            file: Arc::new(file),
            read_only,
            base: 0,
            len_bytes,
            proof: None,
            direct: None,
            lock: None,
        })
    }

    /// A read-only disk in an image. `None` when it is shorter than a sector, or there is not a checksum for each chunk.
    pub(super) fn in_image(part: DiskPart) -> Option<Self> {
        let DiskPart {
            file,
            base,
            len_bytes,
            sums,
        } = part;
        let fits = chunk_count(len_bytes) == sums.len() as u64 && len_bytes >= SECTOR_BYTES;
        fits.then(|| Self {
            file,
            read_only: true,
            base,
            len_bytes,
            proof: Some(Proof::new(sums)),
            direct: None,
            lock: None,
        })
    }

    /// The same disk, locked against other machines: a writer has a file alone, readers share it. `before` is the disk in whose
    /// place this one comes: of the same file, it hands its lock on. A machine that is just ending is waited for, up to
    /// `patience`.
    ///
    /// # Errors
    /// [`LockDiskError`].
    pub(super) fn locked(
        mut self,
        path: &Path,
        before: Option<&Self>,
        patience: Duration,
    ) -> Result<Self, LockDiskError> {
        if let Some(before) = before.filter(|before| before.is_same_file(&self)) {
            self.lock.clone_from(&before.lock);
            return Ok(self);
        }
        let how = if self.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        let until = Instant::now() + patience;
        let lock = || loop {
            match flock(&*self.file, how) {
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(LOCK_STEP),
                done => break done,
            }
        };
        match lock() {
            Ok(()) => {
                self.lock = Some(Arc::clone(&self.file));
                Ok(self)
            }
            Err(Errno::WOULDBLOCK) => Err(LockDiskError::InUse {
                path: path.to_owned(),
                writes: !self.read_only,
            }),
            // A file system without locks: nobody else has one either.
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL | Errno::NOLCK) => Ok(self),
            Err(cause) => Err(LockDiskError::Host {
                path: path.to_owned(),
                cause: cause.into(),
            }),
        }
    }

    fn is_same_file(&self, other: &Self) -> bool {
        let identity = |disk: &Self| disk.file.metadata().map(|found| (found.dev(), found.ino()));
        identity(self).is_ok_and(|ours| identity(other).is_ok_and(|theirs| ours == theirs))
    }

    /// The same disk, past the host's page cache. Requests that the host's disk cannot take so, for they are not aligned as
    /// it needs, go through the cache.
    ///
    /// # Errors
    /// The kernel's: EINVAL for a file system that has no direct I/O.
    pub(super) fn into_direct(mut self) -> io::Result<Self> {
        // By the descriptor: the path may name another file by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = OpenOptions::new()
            .read(true)
            .write(!self.read_only)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_DIRECT)
            .open(path)?;
        let (memory_bytes, offset_bytes) = direct_alignment(&file);
        self.direct = Some(Direct {
            file: Arc::new(file),
            memory_bytes,
            offset_bytes,
        });
        Ok(self)
    }

    /// Makes a stretch of the disk a hole of its file (fallocate(2)), which reads as zeroes.
    pub(super) fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::PUNCH_HOLE, offset, bytes)
    }

    /// Makes a stretch of the disk zero, and keeps its room.
    pub(super) fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match self.allocate(FallocateFlags::ZERO_RANGE, offset, bytes) {
            Err(cause) if cause.kind() == ErrorKind::Unsupported => self.punch(offset, bytes),
            done => done,
        }
    }

    fn allocate(&self, how: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let how = how | FallocateFlags::KEEP_SIZE;
        retry_on_intr(|| fallocate(&*self.file, how, self.place(offset), bytes))?;
        Ok(())
    }

    /// Whether the host's page cache is passed by.
    pub(super) const fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Where byte `offset` of the disk is in its file.
    pub(super) const fn place(&self, offset: u64) -> u64 {
        self.base.saturating_add(offset)
    }

    /// The file by which `buffers` are moved from or to `place` in it.
    pub(super) fn file_for(&self, buffers: &GuestBuffers, place: u64) -> &Arc<File> {
        let direct = self.direct.as_ref().filter(|direct| {
            place.is_multiple_of(direct.offset_bytes)
                && buffers.are_aligned(direct.memory_bytes, direct.offset_bytes)
        });
        direct.map_or(&self.file, |direct| &direct.file)
    }

    /// Where the disk begins in its file, in bytes.
    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// Length in bytes, as the host has it.
    pub(super) const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether the guest may only read.
    pub(super) const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The file, for what a save does with it.
    pub(super) const fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Reads the first `bytes` of `buffers`. What was read before a failure has been taken from them.
    pub(super) fn read(
        &self,
        buffers: &mut GuestBuffers,
        bytes: u64,
        offset: u64,
    ) -> io::Result<()> {
        self.prove(offset, bytes)?;
        let (start, short) = (self.place(offset), ErrorKind::UnexpectedEof);
        let file = self.file_for(buffers, start);
        transfer(buffers, (bytes, start), short, |buffers, place, left| {
            buffers.read_from(file.as_fd(), place, left)
        })
    }

    /// Reads for the host: what lies at `offset` of the disk.
    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.prove(offset, bytes.len() as u64)?;
        self.file.read_exact_at(bytes, self.place(offset))
    }

    /// Proves what is read, of a disk in an image.
    pub(super) fn prove(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match &self.proof {
            Some(proof) => proof.ensure((&self.file, self.base, self.len_bytes), offset, bytes),
            None => Ok(()),
        }
    }

    /// Whether it is a stretch of an image.
    pub(super) const fn is_in_image(&self) -> bool {
        self.proof.is_some()
    }

    /// Reads what the host has in memory, as far as it has it without a gap; true if that is all. What it read has been taken
    /// from `buffers`. A disk that passes the host's memory by, or is proved, has nothing there.
    pub(super) fn read_cached(&self, buffers: &mut GuestBuffers, offset: u64) -> bool {
        if self.direct.is_some() || self.proof.is_some() {
            return false;
        }
        let start = self.place(offset);
        let short = ErrorKind::UnexpectedEof;
        let bytes = buffers.bytes();
        let read = transfer(buffers, (bytes, start), short, |buffers, place, _| {
            buffers.read_cached(self.file.as_fd(), place)
        });
        // Whatever the reason was, the way that waits will find it too.
        read.is_ok()
    }

    /// Writes all of `buffers`. What was written before a failure has been taken from them.
    pub(super) fn write(&self, buffers: &mut GuestBuffers, offset: u64) -> io::Result<()> {
        let (start, short) = (self.place(offset), ErrorKind::WriteZero);
        let file = self.file_for(buffers, start);
        let bytes = buffers.bytes();
        transfer(buffers, (bytes, start), short, |buffers, place, left| {
            buffers.write_to(file.as_fd(), place, left)
        })
    }

    /// A disk whose writes fail on the host.
    #[cfg(test)]
    pub(super) fn pretend_writable(self) -> Self {
        Self {
            read_only: false,
            ..self
        }
    }

    /// Returns when all that was written is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Repeats `call`, with a place and how much is left, until `bytes` from `place` on are done: the kernel may stop early, or be
/// interrupted. `short` is a call that does nothing.
pub(super) fn transfer(
    buffers: &mut GuestBuffers,
    (bytes, place): (u64, u64),
    short: ErrorKind,
    call: impl Fn(&mut GuestBuffers, u64, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let (mut left, mut place) = (bytes, place);
    while left > 0 {
        match call(buffers, place, left) {
            Ok(0) => return Err(short.into()),
            Ok(moved) => {
                buffers.advance(moved);
                place = place.saturating_add(moved as u64);
                left = left.saturating_sub(moved as u64);
            }
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// What direct I/O on `file` needs to be a multiple of, in bytes: of memory, and of places and lengths in the file (statx(2),
/// since Linux 6.1). Where the kernel does not tell: a page, which suits every disk.
fn direct_alignment(file: &File) -> (u64, u64) {
    const PAGE_BYTES: u64 = 4096;
    let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let told = told.ok().filter(|told| {
        told.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && told.stx_dio_offset_align != 0
    });
    told.map_or((PAGE_BYTES, PAGE_BYTES), |told| {
        let (memory, offset) = (told.stx_dio_mem_align, told.stx_dio_offset_align);
        (u64::from(memory.max(1)), u64::from(offset))
    })
}

fn not_a_disk(kind: std::fs::FileType) -> Option<NotADisk> {
    if kind.is_file() || kind.is_block_device() {
        return None;
    }
    Some(if kind.is_dir() {
        NotADisk::Directory
    } else if kind.is_fifo() {
        NotADisk::Fifo
    } else if kind.is_socket() {
        NotADisk::Socket
    } else if kind.is_char_device() {
        NotADisk::CharacterDevice
    } else {
        NotADisk::Other
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::fcntl_getfl;

    use super::*;

    #[test]
    fn what_is_read_and_written_may_be_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let may_wait = |file: &File| !fcntl_getfl(file).unwrap().contains(OFlags::NONBLOCK);
        let disk = RawDisk::open(file.path(), false).unwrap();
        assert!(may_wait(&disk.file));
        // Not every file system has direct I/O.
        if let Ok(disk) = disk.into_direct() {
            assert!(may_wait(&disk.direct.unwrap().file));
        }
    }
}
