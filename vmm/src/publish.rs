//! Files that are there whole or not at all.
//!
//! The bytes go to a file without a name in the target's directory, are synced, and get the name by link and rename.
//! Until then the old file, if any, stays what it is; when the process dies, nothing is left.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
    /// A file that will be `path`, mode 0600.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn create(path: &Path) -> Result<Self, PublishError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let opened = open_unnamed(&directory).map(|file| (file, None));
        let opened = match opened {
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                open_temporary(path)
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
        let synced = self.file.sync_all();
        synced.map_err(|cause| self.failed("sync", cause))?;
        let (folder, path) = (self.directory.clone(), self.path.clone());
        self.publish_unsynced()?;
        let synced = File::open(folder).and_then(|directory| directory.sync_all());
        synced.map_err(|cause| PublishError {
            path,
            what: "sync the directory of",
            cause,
        })
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
            let temporary =
                temporary_name(&self.path).map_err(|cause| self.failed("name", cause))?;
            link_unnamed(&self.file, &temporary).map_err(|cause| self.failed("name", cause))?;
            self.name = Some(temporary);
        }
        if let Some(temporary) = &self.name {
            fs::rename(temporary, &self.path).map_err(|cause| self.failed("name", cause))?;
        }
        self.name = None;
        Ok(())
    }

    fn failed(&self, what: &'static str, cause: io::Error) -> PublishError {
        PublishError {
            path: self.path.clone(),
            what,
            cause,
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

/// A file with a temporary name beside `path`.
fn open_temporary(path: &Path) -> io::Result<(File, Option<PathBuf>)> {
    let temporary = temporary_name(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    Ok((options.open(&temporary)?, Some(temporary)))
}

/// A name beside `path` that nobody else takes, of a length that every file system allows.
fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let mut number = [0; 8];
    random(&mut number)?;
    let number = u64::from_le_bytes(number);
    Ok(path.with_file_name(format!(".lightv-{number:016x}.tmp")))
}
