//! Files that are there whole or not at all.
//!
//! The bytes go to a file without a name in the target's directory, are synced, and get the name by link and rename.
//! Until then the old file, if any, stays what it is; when the process dies, nothing is left. Where the file system has no
//! unnamed files, or between link and rename, the file has a temporary name, which a process that is killed leaves behind: it
//! is locked, so the next that uses such a name in this directory knows that nobody writes it, and takes it away.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::limits;
use crate::sys::file::{link_unnamed, open_unnamed};
use crate::sys::process::random;

/// Why a file was not published. What was there is as it was.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {what} {}", path.display())]
pub struct PublishError {
    /// Which file.
    pub path: PathBuf,
    /// What was being done.
    pub what: &'static str,
    /// The kernel's reason.
    #[source]
    pub cause: io::Error,
}

/// What stands at a path that a file is to be published as: nothing that can be looked at, or a regular file, of this length in
/// bytes.
///
/// # Errors
/// Why no file can be published there; `in_use` is one of `used`, which must stay.
pub fn check_target(
    path: &Path,
    used: &[&Path],
    in_use: &'static str,
) -> Result<Option<u64>, &'static str> {
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err("it is no file name");
    }
    // What cannot be looked at is found when the file is made.
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(None);
    };
    if found.is_dir() {
        return Err("it is a directory, not a regular file");
    }
    if !found.is_file() {
        return Err("it exists and is not a regular file");
    }
    let is_same = |other: &&Path| {
        let other = fs::metadata(other);
        other.is_ok_and(|other| (other.dev(), other.ino()) == (found.dev(), found.ino()))
    };
    if used.iter().any(is_same) {
        return Err(in_use);
    }
    Ok(Some(found.size()))
}

/// Mode of what is secret.
const OWNERS_MODE: u32 = 0o600;
/// Mode of what is not.
const PUBLIC_MODE: u32 = 0o666;

/// A file that is being written.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    directory: PathBuf,
    file: File,
    /// Its temporary name, where the file system has no unnamed files, or while it is being published.
    name: Option<PathBuf>,
}

impl NewFile {
    /// A file that will be `path`, its owner's alone (mode 0600): most hold what a guest held.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn create(path: &Path) -> Result<Self, PublishError> {
        Self::create_with_mode(path, OWNERS_MODE)
    }

    /// A file that will be `path` and that anybody may read, as far as the process's umask lets them.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn create_public(path: &Path) -> Result<Self, PublishError> {
        Self::create_with_mode(path, PUBLIC_MODE)
    }

    fn create_with_mode(path: &Path, mode: u32) -> Result<Self, PublishError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let opened = open_unnamed(&directory, mode).map(|file| (file, None));
        let opened = match opened {
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                open_temporary(path, mode)
            }
            other => other,
        };
        let (file, name) = opened.map_err(|cause| PublishError {
            path: path.into(),
            what: "create",
            cause,
        })?;
        Ok(Self {
            path: path.into(),
            directory,
            file,
            name,
        })
    }

    /// What it will be called.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), PublishError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|cause| self.failed("write", cause))
    }

    /// Makes it `bytes` long; what is not written is a hole.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn set_len(&self, bytes: u64) -> Result<(), PublishError> {
        let set = self.file.set_len(bytes);
        set.map_err(|cause| self.failed("make room in", cause))
    }

    /// Syncs it and gives it its name; what had that name is gone then.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(self) -> Result<(), PublishError> {
        self.sync()?.publish()
    }

    /// Syncs it: but for its name it is done.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn sync(self) -> Result<SyncedFile, PublishError> {
        let opened = File::open(&self.directory);
        let folder = opened.map_err(|cause| self.failed("open the directory of", cause))?;
        let synced = self.file.sync_all();
        synced.map_err(|cause| self.failed("sync", cause))?;
        Ok(SyncedFile { file: self, folder })
    }

    /// Gives it its name without a sync: for what means nothing after a crash of the host.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish_unsynced(mut self) -> Result<(), PublishError> {
        self.take_name()
    }

    /// A free name is taken at once. An image that is there is replaced by rename, from a name beside it.
    fn take_name(&mut self) -> Result<(), PublishError> {
        if self.name.is_none() {
            match link_unnamed(&self.file, &self.path) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other.map_err(|cause| self.failed("name", cause)),
            }
            self.name = Some(
                self.link_temporary()
                    .map_err(|cause| self.failed("name", cause))?,
            );
        }
        if let Some(temporary) = &self.name {
            fs::rename(temporary, &self.path).map_err(|cause| self.failed("name", cause))?;
        }
        self.name = None;
        Ok(())
    }

    fn link_temporary(&self) -> io::Result<PathBuf> {
        remove_leftovers(&self.directory);
        // Held by nobody: it has no name yet. A file system without locks has no leftovers taken away either.
        let _ = self.file.try_lock();
        let temporary = temporary_name(&self.path)?;
        link_unnamed(&self.file, &temporary)?;
        Ok(temporary)
    }

    fn failed(&self, what: &'static str, cause: io::Error) -> PublishError {
        PublishError {
            path: self.path.clone(),
            what,
            cause,
        }
    }
}

/// A file that is written and synced, and has no name yet.
#[derive(Debug)]
pub struct SyncedFile {
    file: NewFile,
    /// Opened before it has its name: who may not read the folder, and so not sync it, learns it while nothing is replaced.
    folder: File,
}

impl SyncedFile {
    /// The path that it will have.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file.file
    }

    /// Gives it its name; what had that name is gone then.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(self) -> Result<(), PublishError> {
        let path = self.file.path.clone();
        self.file.publish_unsynced()?;
        match self.folder.sync_all() {
            // A file system whose folders are not synced (fsync(2)).
            Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            synced => synced.map_err(|cause| PublishError {
                path,
                what: "sync the directory of",
                cause,
            }),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Nothing more can be done about a temporary file that cannot be removed.
            let _ = fs::remove_file(name);
        }
    }
}

/// Names that are tried: each may be taken for a leftover before it is locked.
const TRIES_MAX: u32 = 8;

/// A file with a temporary name beside `path`.
fn open_temporary(path: &Path, mode: u32) -> io::Result<(File, Option<PathBuf>)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode);
    for _ in 0..TRIES_MAX {
        let temporary = temporary_name(path)?;
        remove_leftovers(temporary.parent().unwrap_or(path));
        let file = options.open(&temporary)?;
        let is_taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if !is_taken && file.metadata()?.nlink() > 0 {
            return Ok((file, Some(temporary)));
        }
    }
    Err(io::Error::other(
        "other processes take its temporary files away",
    ))
}

/// Parts of a temporary name before and after its number.
const NAME_PARTS: (&str, &str) = (".lightv-", ".tmp");

/// A name beside `path` that nobody else takes, of a length that every file system allows.
fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let mut number = [0; 8];
    random(&mut number)?;
    let number = u64::from_le_bytes(number);
    let (before, after) = NAME_PARTS;
    Ok(path.with_file_name(format!("{before}{number:016x}{after}")))
}

/// Takes away what processes that were killed have left in `directory`. What cannot be is left.
fn remove_leftovers(directory: &Path) {
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.take(limits::LEFTOVERS_SCANNED_MAX) {
        if is_temporary_name(&entry.file_name()) {
            let _ = remove_unless_in_use(&entry.path());
        }
    }
}

fn is_temporary_name(name: &OsStr) -> bool {
    let (before, after) = NAME_PARTS;
    let number = name
        .to_str()
        .and_then(|name| name.strip_prefix(before)?.strip_suffix(after));
    number.is_some_and(|number| number.len() == 16 && number.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn remove_unless_in_use(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = options.read(true).custom_flags(flags).open(path)?;
    // Whoever writes it has it locked, and looks after that whether it has its name still.
    if file.metadata()?.is_file() && file.try_lock().is_ok() {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;

    #[test]
    fn what_a_killed_process_has_left_is_taken_away_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let left = [
            ".lightv-0123456789abcdef.tmp",
            ".lightv-0000000000000000.tmp",
        ];
        let others = [
            ".lightv-0123.tmp",
            ".lightv-0123456789abcdef",
            "x.lv",
            ".lightv-0123456789abcdeg.tmp",
        ];
        for name in left.iter().chain(&others) {
            fs::write(path(name), "x").unwrap();
        }
        let in_use = path(".lightv-00000000000000ff.tmp");
        let writer = File::create(&in_use).unwrap();
        writer.lock().unwrap();
        for text in ["first", "second"] {
            let file = NewFile::create(&path("new")).unwrap();
            file.write_at(text.as_bytes(), 0).unwrap();
            file.publish().unwrap();
        }
        let found = |name: &str| path(name).exists();
        assert!(!left.iter().any(|name| found(name)));
        assert!(others.iter().all(|name| found(name)) && in_use.exists());
        assert_eq!(fs::read(path("new")).unwrap(), b"second");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            others.len() + 2
        );
    }

    #[test]
    fn a_file_with_a_temporary_name_is_no_leftover_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        let (file, name) = open_temporary(&target, OWNERS_MODE).unwrap();
        let name = name.unwrap();
        remove_leftovers(folder.path());
        assert!(name.exists());
        drop(file);
        remove_leftovers(folder.path());
        assert!(!name.exists());
    }

    #[test]
    fn a_folder_that_cannot_be_synced_is_told_of_before_the_old_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "old").unwrap();
        let set_mode = |mode| {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        };
        // Root may read any folder; this thread may not.
        let mut own = capabilities(None).unwrap();
        own.effective
            .remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, own).unwrap();
        set_mode(0o300);
        let refused = NewFile::create(&path).unwrap().publish().unwrap_err();
        let found = fs::read(&path).unwrap();
        set_mode(0o700);
        assert_eq!(refused.cause.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(found, b"old");
    }

    #[test]
    fn what_holds_a_guests_memory_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        NewFile::create(&path).unwrap().publish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        NewFile::create_public(&path).unwrap().publish().unwrap();
        assert_ne!(fs::metadata(&path).unwrap().mode() & 0o400, 0);
    }
}
