//! Opening an image: nothing of it is used before it is proved.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lightv_devices::state::{OverlayMapV1, Section};
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::header::{HEADER_BYTES, Header, HeaderError, SectionEntry, kind};
use crate::limits;
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::process::host_memory_bytes;

/// How much is read first: header, table and the state of a small machine in one call.
const FRONT_BYTES: u64 = 32 << 10;
/// How much is read at a time to prove large sections; stays in the second-level cache.
const CHUNK_BYTES: usize = 32 << 10;

/// An open image whose bytes are proved.
#[derive(Debug)]
pub struct Image {
    file: Arc<File>,
    path: PathBuf,
    entries: Vec<SectionEntry>,
    taken: Vec<bool>,
    front: Vec<u8>,
}

/// Why an image was refused. Nothing has been built then.
#[derive(Debug, thiserror::Error)]
pub enum OpenImageError {
    /// No file there, or none that may be read.
    #[error("Cannot open image {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A directory, FIFO, socket or device.
    #[error("Image {} is not a regular file", path.display())]
    NotAFile {
        /// Which file.
        path: PathBuf,
    },
    /// Header or table refused.
    #[error("Image {} is refused: {cause}", path.display())]
    Header {
        /// Which file.
        path: PathBuf,
        /// Why; part of the text, since it says what to do.
        cause: HeaderError,
    },
    /// The bytes of a section are not those that were written.
    #[error("Image {} is refused: section {section} is damaged (checksum); copy or build it anew", path.display())]
    Checksum {
        /// Which file.
        path: PathBuf,
        /// Which section.
        section: String,
    },
    /// The disk failed.
    #[error("Cannot read section {section} of image {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Which section.
        section: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A section is needed and is not there.
    #[error("Image {} has no section {section}; {advice}", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Which section.
        section: String,
        /// What the user can do.
        advice: &'static str,
    },
    /// A section that nothing here knows, or more of a kind than the machine has.
    #[error("Image {} is refused: nothing here knows section {section}, version {version}; it may be from a newer LightV", path.display())]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// Which section.
        section: String,
        /// Its version.
        version: u16,
    },
    /// A section of another version than this build reads.
    #[error("Image {} is refused: section {section} has version {found}, and this build reads version {expected}; build it anew with this LightV, or run it with the one that made it", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Which section.
        section: String,
        /// Its version.
        found: u16,
        /// What this build reads.
        expected: u16,
    },
    /// Right checksum, impossible contents.
    #[error("Image {} is refused: section {section} {what}", path.display())]
    Contents {
        /// Which file.
        path: PathBuf,
        /// Which section.
        section: String,
        /// What is wrong.
        what: String,
    },
}

impl Image {
    /// Opens `path` and proves header, table and all sections but disks and deltas: those are proved as the guest reads them.
    ///
    /// # Errors
    /// [`OpenImageError`].
    pub fn open(path: &Path) -> Result<Self, OpenImageError> {
        let image = Self::open_unproved(path)?;
        let mut chunk = Vec::new();
        // Sizes first: a section that nothing here takes is not read either.
        for entry in &image.entries {
            let bytes_max = bytes_max(&entry.kind);
            if entry.bytes > bytes_max {
                let what = format!("has {} bytes, more than {bytes_max}", entry.bytes);
                return Err(image.contents_error(&entry.name(), what));
            }
        }
        let at_start =
            |entry: &&SectionEntry| !matches!(entry.kind.as_str(), kind::DISK | kind::OVERLAY);
        for entry in image.entries.iter().filter(at_start) {
            if !image.is_intact(entry, &mut chunk)? {
                return Err(OpenImageError::Checksum {
                    path: path.into(),
                    section: entry.name(),
                });
            }
        }
        Ok(image)
    }

    /// Opens `path` and proves header and table only: for tools that say which section is damaged.
    ///
    /// # Errors
    /// [`OpenImageError`].
    pub fn open_unproved(path: &Path) -> Result<Self, OpenImageError> {
        let open = |cause| OpenImageError::Open {
            path: path.into(),
            cause,
        };
        // O_NONBLOCK: a FIFO without a writer must not hang us.
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(open)?;
        let metadata = file.metadata().map_err(open)?;
        if !metadata.is_file() {
            return Err(OpenImageError::NotAFile { path: path.into() });
        }
        let file_bytes = metadata.size();
        let mut front = read_at(&file, 0, file_bytes.min(FRONT_BYTES)).map_err(open)?;
        let refused = |cause| OpenImageError::Header {
            path: path.into(),
            cause,
        };
        let header = Header::decode(&front, file_bytes).map_err(refused)?;
        if header.front_bytes() > front.len() as u64 {
            front = read_at(&file, 0, header.front_bytes()).map_err(open)?;
        }
        let entries = header.decode_table(&front).map_err(refused)?;
        let taken = vec![false; entries.len()];
        Ok(Self {
            file: Arc::new(file),
            path: path.into(),
            entries,
            taken,
            front,
        })
    }

    /// Whether the bytes of `entry` have its checksum.
    ///
    /// # Errors
    /// [`OpenImageError::Read`].
    pub fn is_intact(
        &self,
        entry: &SectionEntry,
        chunk: &mut Vec<u8>,
    ) -> Result<bool, OpenImageError> {
        if let Some(bytes) = self.in_front(entry) {
            return Ok(xxh3_64(bytes) == entry.checksum);
        }
        chunk.resize(CHUNK_BYTES, 0);
        let mut hash = Xxh3::new();
        let mut done = 0;
        while done < entry.bytes {
            let length = usize::try_from(entry.bytes - done)
                .map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            let part = chunk.get_mut(..length).unwrap_or_default();
            self.file
                .read_exact_at(part, entry.offset + done)
                .map_err(|cause| self.read_error(entry, cause))?;
            hash.update(part);
            done += length as u64;
        }
        Ok(hash.digest() == entry.checksum)
    }

    fn in_front(&self, entry: &SectionEntry) -> Option<&[u8]> {
        let start = usize::try_from(entry.offset).ok()?;
        let end = start.checked_add(usize::try_from(entry.bytes).ok()?)?;
        self.front.get(start..end)
    }

    fn read_error(&self, entry: &SectionEntry, cause: io::Error) -> OpenImageError {
        OpenImageError::Read {
            path: self.path.clone(),
            section: entry.name(),
            cause,
        }
    }

    /// All sections, in file order.
    #[must_use]
    pub fn entries(&self) -> &[SectionEntry] {
        &self.entries
    }

    /// The file, for mapping.
    #[must_use]
    pub const fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the image was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of sections of `kind`.
    #[must_use]
    pub fn count(&self, kind: &str) -> usize {
        self.entries
            .iter()
            .filter(|entry| entry.kind == kind)
            .count()
    }

    /// Takes the entry of a section that is mapped or read later: `None` if there is none.
    ///
    /// # Errors
    /// [`OpenImageError::Version`].
    pub fn take_entry(
        &mut self,
        kind: &str,
        index: u32,
        version: u16,
    ) -> Result<Option<SectionEntry>, OpenImageError> {
        let place = self
            .entries
            .iter()
            .position(|entry| entry.kind == kind && entry.index == index);
        let Some((place, entry)) = place.and_then(|place| Some((place, self.entries.get(place)?)))
        else {
            return Ok(None);
        };
        if entry.version != version {
            let (path, section) = (self.path.clone(), entry.name());
            return Err(OpenImageError::Version {
                path,
                section,
                found: entry.version,
                expected: version,
            });
        }
        if let Some(taken) = self.taken.get_mut(place) {
            *taken = true;
        }
        Ok(Some(entry.clone()))
    }

    /// The bytes of a section, at most `bytes_max`.
    ///
    /// # Errors
    /// [`OpenImageError`].
    pub fn bytes_of(
        &self,
        entry: &SectionEntry,
        bytes_max: u64,
    ) -> Result<Vec<u8>, OpenImageError> {
        if entry.bytes > bytes_max {
            let what = format!("has {} bytes, more than {bytes_max}", entry.bytes);
            return Err(self.contents_error(&entry.name(), what));
        }
        if let Some(bytes) = self.in_front(entry) {
            return Ok(bytes.to_vec());
        }
        read_at(&self.file, entry.offset, entry.bytes)
            .map_err(|cause| self.read_error(entry, cause))
    }

    /// Takes and decodes a section of state: `None` if there is none.
    ///
    /// # Errors
    /// [`OpenImageError`]; bytes left over are an error too.
    pub fn take<T: Section + DeserializeOwned>(
        &mut self,
        index: u32,
    ) -> Result<Option<T>, OpenImageError> {
        let Some(entry) = self.take_entry(T::KIND, index, T::VERSION)? else {
            return Ok(None);
        };
        let bytes = self.bytes_of(&entry, bytes_max(T::KIND))?;
        match postcard::take_from_bytes::<T>(&bytes) {
            Ok((state, [])) => Ok(Some(state)),
            Ok((_, rest)) => {
                Err(self
                    .contents_error(&entry.name(), format!("has {} bytes too many", rest.len())))
            }
            Err(cause) => {
                Err(self.contents_error(&entry.name(), format!("cannot be decoded: {cause}")))
            }
        }
    }

    /// As [`take`](Self::take), for a section of version `Old` or `T`.
    ///
    /// # Errors
    /// [`OpenImageError`]; of a version that is neither, it names that of `T`.
    pub fn take_either<Old, T>(&mut self, index: u32) -> Result<Option<T>, OpenImageError>
    where
        Old: Section + DeserializeOwned,
        T: Section + DeserializeOwned + From<Old>,
    {
        let is_old = self.entries.iter().any(|entry| {
            entry.kind == Old::KIND && entry.index == index && entry.version == Old::VERSION
        });
        if is_old {
            return Ok(self.take::<Old>(index)?.map(T::from));
        }
        self.take(index)
    }

    /// As [`take`](Self::take), for a section that must be there.
    ///
    /// # Errors
    /// [`OpenImageError::Missing`] too.
    pub fn take_needed<T: Section + DeserializeOwned>(
        &mut self,
        index: u32,
    ) -> Result<T, OpenImageError> {
        let advice = "build it anew with `lightv build`";
        self.take(index)?
            .ok_or_else(|| self.missing(T::KIND, index, advice))
    }

    /// Takes and decodes the manifest.
    ///
    /// # Errors
    /// [`OpenImageError`].
    pub fn take_manifest(&mut self) -> Result<super::manifest::Manifest, OpenImageError> {
        let entry = self
            .take_entry(kind::MANIFEST, 0, kind::BYTES_VERSION)?
            .ok_or_else(|| self.missing(kind::MANIFEST, 0, "build it anew with `lightv build`"))?;
        let bytes = self.bytes_of(&entry, limits::STATE_SECTION_BYTES_MAX)?;
        serde_json::from_slice(&bytes).map_err(|cause| {
            self.contents_error(&entry.name(), format!("is not a manifest: {cause}"))
        })
    }

    /// Proves that every section was taken.
    ///
    /// # Errors
    /// [`OpenImageError::Unknown`] names the first that was not.
    pub fn ensure_all_taken(&self) -> Result<(), OpenImageError> {
        let left = self
            .entries
            .iter()
            .zip(&self.taken)
            .find(|(_, taken)| !**taken);
        match left {
            None => Ok(()),
            Some((entry, _)) => Err(OpenImageError::Unknown {
                path: self.path.clone(),
                section: entry.name(),
                version: entry.version,
            }),
        }
    }

    /// An error about a missing section.
    #[must_use]
    pub fn missing(&self, kind: &str, index: u32, advice: &'static str) -> OpenImageError {
        OpenImageError::Missing {
            path: self.path.clone(),
            section: format!("{kind}[{index}]"),
            advice,
        }
    }

    /// An error about what stands in a section.
    #[must_use]
    pub fn contents_error(&self, section: &str, what: impl Into<String>) -> OpenImageError {
        OpenImageError::Contents {
            path: self.path.clone(),
            section: section.to_owned(),
            what: what.into(),
        }
    }
}

/// The most that a section of `kind` may have.
fn bytes_max(kind: &str) -> u64 {
    match kind {
        kind::KERNEL => limits::KERNEL_BYTES_MAX,
        kind::INITRD => limits::INITRD_BYTES_MAX,
        kind::MEMORY => host_memory_bytes(),
        // Never read as a whole.
        kind::DISK | kind::OVERLAY => u64::MAX,
        kind::DISK_SUMS | kind::OVERLAY_SUMS => limits::DISK_SUMS_BYTES_MAX,
        OverlayMapV1::KIND => limits::OVERLAY_MAP_BYTES_MAX,
        _ => limits::STATE_SECTION_BYTES_MAX,
    }
}

fn read_at(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    let mut buffer = vec![0; length];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}

const _: () = assert!(FRONT_BYTES > HEADER_BYTES as u64 && CHUNK_BYTES.is_multiple_of(PAGE_BYTES));
