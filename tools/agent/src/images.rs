//! The store of images: files named by their digests, and names that lead to them.
//!
//! A name that is set anew leads to other bytes at once; whoever was started from the old ones keeps them, because a file that
//! is in use is only ever unlinked, never written.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use lightv_api::agent::image::StoredImage;
use lightv_vmm::describe::describe;
use lightv_vmm::image::read::OpenImageError;
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use crate::clock::unix_ms;
use crate::folders::{DRAFT, Durability, Folders, ReadJsonError, WriteError, publish};
use crate::folders::{read_json, write_json};
use crate::limits;

/// What a digest begins with.
const ALGORITHM: &str = "sha256:";
/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Of a file's name, before the digest; after it comes `.lv`.
const FILE_PREFIX: &str = "sha256-";

/// Why an image was not taken. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum PutImageError {
    /// The name cannot be one.
    #[error(
        "The name {name:?} is not allowed: 1–64 letters, digits, `.`, `_` and `-`, the first a letter or digit"
    )]
    Name {
        /// Which one.
        name: String,
    },
    /// There are enough.
    #[error(
        "There are {} images; no more are allowed. Delete one",
        limits::IMAGES_MAX
    )]
    TooMany,
    /// The path is not absolute.
    #[error("path: {} is not absolute; the agent has a working directory of its own", path.display())]
    Relative {
        /// Which one.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("Cannot open {}", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// It is no file.
    #[error("{} is no regular file", path.display())]
    Kind {
        /// Which one.
        path: PathBuf,
    },
    /// No room, or an I/O error.
    #[error("Cannot copy {} to {}", from.display(), to.display())]
    Copy {
        /// Which one.
        from: PathBuf,
        /// Its copy.
        to: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// It is no image, or damaged.
    #[error("{} is no image that can be used", path.display())]
    Image {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: OpenImageError,
    },
    /// A section has other bytes than its checksum says.
    #[error("{} is damaged: section {kind} has not the checksum that it should", path.display())]
    Damaged {
        /// Which one.
        path: PathBuf,
        /// Which section.
        kind: String,
    },
    /// Without a snapshot nothing can be started from it.
    #[error("{} has no snapshot to restore; build it with `lightv build`", path.display())]
    NoSnapshot {
        /// Which one.
        path: PathBuf,
    },
    /// It cannot be written down.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// By what a file is known again that nobody has written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// When it was last changed (ctime), which nobody can set: seconds, nanoseconds.
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(found: &fs::Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// A name, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    image: StoredImage,
    /// The file that it is a copy of.
    #[serde(default)]
    source: Option<FileIdentity>,
}

/// The images.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    names_file: PathBuf,
    names: RefCell<BTreeMap<String, Stored>>,
    /// Images that are being opened: their files must not go.
    held: Rc<RefCell<BTreeMap<String, usize>>>,
    /// One change after the other.
    changing: Mutex<()>,
}

/// An image that is being opened; its file stays as long as this lives.
#[derive(Debug)]
pub struct HeldImage {
    image: StoredImage,
    path: PathBuf,
    held: Rc<RefCell<BTreeMap<String, usize>>>,
}

impl HeldImage {
    /// What it is.
    #[must_use]
    pub const fn image(&self) -> &StoredImage {
        &self.image
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for HeldImage {
    fn drop(&mut self) {
        let mut held = self.held.borrow_mut();
        if let Some(count) = held.get_mut(&self.image.digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.image.digest);
            }
        }
    }
}

impl Images {
    /// The store in `folders`. What a copy has left that was never done is taken away.
    ///
    /// # Errors
    /// [`ReadJsonError`].
    pub fn open(folders: &Folders) -> Result<Self, ReadJsonError> {
        let names_file = folders.image_names();
        let names: Vec<Stored> = read_json(&names_file)?.unwrap_or_default();
        let images = Self {
            folder: folders.images(),
            names_file,
            names: RefCell::new(
                names
                    .into_iter()
                    .map(|stored| (stored.image.name.clone(), stored))
                    .collect(),
            ),
            held: Rc::default(),
            changing: Mutex::new(()),
        };
        let is_draft = |path: &Path| path.extension().is_some_and(|end| end == DRAFT);
        for entry in fs::read_dir(&images.folder).into_iter().flatten().flatten() {
            if is_draft(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        images.collect_garbage();
        Ok(images)
    }

    /// All names.
    #[must_use]
    pub fn list(&self) -> Vec<StoredImage> {
        let names = self.names.borrow();
        names.values().map(|stored| stored.image.clone()).collect()
    }

    /// How many names there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.names.borrow().len()
    }

    /// What `name`, a name or a digest, leads to.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<StoredImage> {
        let names = self.names.borrow();
        let by_digest = || {
            let mut stored = names.values();
            stored.find(|stored| stored.image.digest == name)
        };
        let stored = names.get(name).or_else(by_digest);
        stored.map(|stored| stored.image.clone())
    }

    /// The digest that `name` means: a name, a digest, or a file, as an absolute path, whose bytes an image is a copy of, unless
    /// it has changed since.
    #[must_use]
    pub fn find_bytes(&self, name: &str) -> Option<String> {
        if let Some(image) = self.find(name) {
            return Some(image.digest);
        }
        if !name.starts_with('/') {
            return None;
        }
        let found = FileIdentity::of(&fs::metadata(name).ok()?);
        let names = self.names.borrow();
        let mut stored = names.values();
        let same = stored.find(|stored| stored.source == Some(found))?;
        Some(same.image.digest.clone())
    }

    /// The same, to be opened.
    #[must_use]
    pub fn hold(&self, name: &str) -> Option<HeldImage> {
        let image = self.find(name)?;
        let path = self.path_of(&image.digest);
        *self
            .held
            .borrow_mut()
            .entry(image.digest.clone())
            .or_default() += 1;
        Some(HeldImage {
            image,
            path,
            held: Rc::clone(&self.held),
        })
    }

    /// Has `name` lead to a copy of the file `from`.
    ///
    /// # Errors
    /// [`PutImageError`].
    pub async fn put(&self, name: &str, from: PathBuf) -> Result<StoredImage, PutImageError> {
        if !is_image_name(name) {
            let name = name.to_owned();
            return Err(PutImageError::Name { name });
        }
        let _turn = self.changing.lock().await;
        let is_new = !self.names.borrow().contains_key(name);
        if is_new && self.count() >= limits::IMAGES_MAX {
            return Err(PutImageError::TooMany);
        }
        let folder = self.folder.clone();
        let taken = tokio::task::spawn_blocking(move || take_copy(&folder, &from)).await;
        // A task that panics takes the process with it (panic = abort); one is never cancelled.
        let taken = taken.unwrap_or_else(|cause| Err(lost(&self.folder, &cause)))?;
        let image = StoredImage {
            name: name.to_owned(),
            digest: taken.digest,
            bytes: taken.bytes,
            memory_mib: taken.memory_mib,
            vsock: taken.has_vsock,
            set_unix_ms: unix_ms(),
        };
        let mut names = self.names.borrow().clone();
        let stored = Stored {
            image: image.clone(),
            source: Some(taken.source),
        };
        names.insert(name.to_owned(), stored);
        let written = self.write(names).await;
        self.collect_garbage();
        written?;
        Ok(image)
    }

    /// Forgets `name`; whether it was known.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn delete(&self, name: &str) -> Result<bool, WriteError> {
        let _turn = self.changing.lock().await;
        let mut names = self.names.borrow().clone();
        if names.remove(name).is_none() {
            return Ok(false);
        }
        self.write(names).await?;
        self.collect_garbage();
        Ok(true)
    }

    /// Writes `names` down; only then they count.
    async fn write(&self, names: BTreeMap<String, Stored>) -> Result<(), WriteError> {
        let path = self.names_file.clone();
        let list: Vec<Stored> = names.values().cloned().collect();
        let written =
            tokio::task::spawn_blocking(move || write_json(&path, &list, Durability::Host)).await;
        written.unwrap_or_else(|cause| {
            Err(WriteError {
                what: "write",
                path: self.names_file.clone(),
                cause: io::Error::other(cause),
            })
        })?;
        *self.names.borrow_mut() = names;
        Ok(())
    }

    /// Takes away files that no name leads to and that nobody is opening. Those who have one open keep its bytes.
    pub fn collect_garbage(&self) {
        let names = self.names.borrow();
        let held = self.held.borrow();
        let mut used: BTreeSet<&str> = names
            .values()
            .map(|stored| stored.image.digest.as_str())
            .collect();
        used.extend(held.keys().map(String::as_str));
        let used: BTreeSet<PathBuf> = used.into_iter().map(|it| self.path_of(it)).collect();
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.take(limits::STATE_FILES_MAX) {
            let name = entry.file_name();
            let is_image = name.to_str().is_some_and(|name| {
                name.starts_with(FILE_PREFIX)
                    && Path::new(name).extension().is_some_and(|e| e == "lv")
            });
            if is_image && !used.contains(&entry.path()) {
                // It is there again at the next look if it cannot be removed now.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path_of(&self, digest: &str) -> PathBuf {
        file_of(&self.folder, digest)
    }
}

fn file_of(folder: &Path, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix(ALGORITHM).unwrap_or(digest);
    folder.join(format!("{FILE_PREFIX}{hex}.lv"))
}

/// Whether `name` may be that of an image.
#[must_use]
pub fn is_image_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let first = name.bytes().next();
    first.is_some_and(|b| b.is_ascii_alphanumeric()) && name.len() <= 64 && name.bytes().all(plain)
}

fn lost(folder: &Path, cause: &tokio::task::JoinError) -> PutImageError {
    PutImageError::Copy {
        from: folder.to_owned(),
        to: folder.to_owned(),
        cause: io::Error::other(cause.to_string()),
    }
}

/// What was copied.
struct Taken {
    digest: String,
    bytes: u64,
    memory_mib: u64,
    has_vsock: bool,
    source: FileIdentity,
}

/// A file that goes when this does, unless it got another name.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Copies `from`, proves the copy, and gives it the name of its digest.
fn take_copy(folder: &Path, from: &Path) -> Result<Taken, PutImageError> {
    let source = open_source(from)?;
    // Before its bytes are read: whoever changes it from now on makes it another one.
    let identity = source.metadata().map_err(|cause| PutImageError::Open {
        path: from.to_owned(),
        cause,
    })?;
    let draft = Draft(folder.join(format!("copy.{DRAFT}")));
    let failed = |cause| PutImageError::Copy {
        from: from.to_owned(),
        to: draft.0.clone(),
        cause,
    };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true);
    let mut copy = options.mode(0o600).open(&draft.0).map_err(failed)?;
    copy_bytes(&source, &mut copy).map_err(failed)?;
    copy.sync_all().map_err(failed)?;
    // Of the copy: whoever changes the source while it is copied gets what they deserve, under its true digest.
    let (digest, bytes) = digest_of(&draft.0).map_err(failed)?;
    let described = describe(&draft.0).map_err(|cause| PutImageError::Image {
        path: from.to_owned(),
        cause,
    })?;
    if let Some(section) = described.sections.iter().find(|section| !section.intact) {
        return Err(PutImageError::Damaged {
            path: from.to_owned(),
            kind: section.kind.clone(),
        });
    }
    if !described.has_snapshot {
        let path = from.to_owned();
        return Err(PutImageError::NoSnapshot { path });
    }
    let stored = file_of(folder, &digest);
    // The user of a jail may be about to open the same bytes by that name, and could not any more.
    if let Ok(found) = fs::metadata(&stored) {
        copy.set_permissions(found.permissions()).map_err(failed)?;
    }
    publish(&draft.0, &stored, Durability::Host)?;
    Ok(Taken {
        digest,
        bytes,
        memory_mib: described.ram_bytes.div_ceil(1 << 20),
        // `exec` is a vsock too, whose path its machine chooses.
        has_vsock: described.config.vsock.is_some() || described.config.exec.is_some(),
        source: FileIdentity::of(&identity),
    })
}

fn open_source(from: &Path) -> Result<File, PutImageError> {
    let path = || from.to_owned();
    if !from.is_absolute() {
        return Err(PutImageError::Relative { path: path() });
    }
    let open = |cause| PutImageError::Open {
        path: path(),
        cause,
    };
    // Nothing waits for a FIFO's writer.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    let source = options.read(true).custom_flags(flags).open(from);
    let source = source.map_err(open)?;
    if !source.metadata().map_err(open)?.is_file() {
        return Err(PutImageError::Kind { path: path() });
    }
    Ok(source)
}

/// Shares the blocks where the file system can; else the kernel copies them.
fn copy_bytes(source: &File, copy: &mut File) -> io::Result<()> {
    let length = source.metadata()?.size();
    if rustix::fs::ioctl_ficlone(&*copy, source).is_ok() {
        return Ok(());
    }
    copy.set_len(length)?;
    let mut source = source;
    let mut offset = 0;
    // Holes stay holes.
    while let Some(data) = seek_data(source, offset)?.filter(|data| *data < length) {
        let hole = rustix::fs::seek(source, SeekFrom::Hole(data))?.min(length);
        source.seek(io::SeekFrom::Start(data))?;
        copy.seek(io::SeekFrom::Start(data))?;
        if io::copy(&mut source.take(hole - data), copy)? < hole - data {
            return Err(io::Error::other("it became shorter while it was copied"));
        }
        offset = hole;
    }
    Ok(())
}

/// Where bytes are that are no hole, from `offset` on.
fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(cause) => Err(cause.into()),
    }
}

fn digest_of(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => {
                hash.update(piece.get(..length).unwrap_or_default());
                bytes += length as u64;
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok((format!("{ALGORITHM}{hex}"), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_paths() {
        for good in ["a", "web-2.1_x", "9", &"x".repeat(64)] {
            assert!(is_image_name(good), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", ".", "..", ".a", "a/b", "-a", "sha256:ab", "ä", &long] {
            assert!(!is_image_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_digest_is_that_of_all_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "abc").unwrap();
        let (digest, bytes) = digest_of(&path).unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((digest.as_str(), bytes), (expected, 3));
    }

    #[test]
    fn what_is_no_image_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.lv");
        fs::write(&source, "no image").unwrap();
        let store = folder.path().join("store");
        fs::create_dir(&store).unwrap();
        for path in [&source, &store, &folder.path().join("none"), Path::new("a")] {
            assert!(take_copy(&store, path).is_err(), "{}", path.display());
            assert_eq!(fs::read_dir(&store).unwrap().count(), 0);
        }
    }
}
