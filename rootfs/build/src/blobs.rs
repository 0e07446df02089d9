//! The files of a container image, in a folder or in an archive, and the steps that OCI's and Docker's form share.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::digest::{Digest, HashingReader};
use crate::entry_path::{EntryPath, display};
use crate::limits::{ENTRIES_MAX, IMAGE_FILE_NAME_BYTES_MAX, JSON_BYTES_MAX, LAYERS_MAX};
use crate::region::Region;
use crate::source::open_file_itself;
use crate::tar_read::{self, ReadTarError, Whiteouts};
use crate::tree::{Layer, Tree};
use crate::unpack::{Spool, UnpackError};

/// Why a container image was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadImageError {
    /// A file of it.
    #[error("The image has no {name}")]
    Missing {
        /// Its path in the image.
        name: String,
    },
    /// A file of it cannot be read.
    #[error("Cannot read the image's {name}")]
    Read {
        /// Its path in the image.
        name: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A document that is no document of its kind.
    #[error("The image's {name} is not what it should be")]
    Json {
        /// Its path in the image.
        name: String,
        /// Where and why.
        #[source]
        cause: serde_json::Error,
    },
    /// A document.
    #[error("The image's {name} has {bytes} bytes, more than {JSON_BYTES_MAX}")]
    LongJson {
        /// Its path in the image.
        name: String,
        /// How many.
        bytes: u64,
    },
    /// A digest that nothing can be looked up by.
    #[error("The image uses the digest {digest:?}; only sha256 is possible")]
    UnsupportedDigest {
        /// As it stands there.
        digest: String,
    },
    /// A damaged blob.
    #[error("The image's {name} is damaged: its digest is {found}, not {expected}")]
    Digest {
        /// Its path in the image.
        name: String,
        /// The digest of what is there.
        found: String,
        /// The digest that it should have.
        expected: String,
    },
    /// A damaged blob.
    #[error("The image's {name} is damaged: it has {found} bytes, not {expected}")]
    Size {
        /// Its path in the image.
        name: String,
        /// What it has.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// For other processors or systems.
    #[error("The image is for {found}; guests are linux/amd64")]
    Platform {
        /// Platforms that are there.
        found: String,
    },
    /// Nothing says which of them is meant.
    #[error(
        "The archive holds {count} images for linux/amd64 ({names}), one is possible; save one alone"
    )]
    Several {
        /// How many.
        count: usize,
        /// Their names.
        names: String,
    },
    /// Indexes in indexes.
    #[error("The image's indexes are nested too deep")]
    DeepIndex,
    /// Too many layers.
    #[error("The image has {found} layers, more than {LAYERS_MAX}")]
    Layers {
        /// How many.
        found: usize,
    },
    /// Docker's form names a digest for each layer.
    #[error("The image has {layers} layers, and digests of {digests}")]
    LayerDigests {
        /// Layers.
        layers: usize,
        /// Digests.
        digests: usize,
    },
    /// A layer.
    #[error("Cannot unpack layer {name}")]
    UnpackLayer {
        /// Its path in the image.
        name: String,
        /// Why.
        #[source]
        cause: UnpackError,
    },
    /// A layer.
    #[error("Cannot read layer {name}")]
    Layer {
        /// Its path in the image.
        name: String,
        /// Why.
        #[source]
        cause: ReadTarError,
    },
}

/// Where the files of an image are.
#[derive(Debug)]
pub(crate) enum Blobs {
    Folder(PathBuf),
    /// Regular files of a tar, by their path without `./`.
    Archive(HashMap<String, Region>),
}

impl Blobs {
    /// Reads the names of an unpacked tar.
    pub(crate) fn of_archive(archive: &Region) -> Result<Self, ReadTarError> {
        let mut files = HashMap::new();
        tar_read::walk(archive, |record| {
            // What is no path of ours is no file of an image; a root file system may hold it.
            if record.is_file()
                && record.path.len() <= IMAGE_FILE_NAME_BYTES_MAX
                && files.len() < ENTRIES_MAX
                && let Ok(path) = EntryPath::parse(&record.path)
            {
                files.insert(display(&path.names().join(&b'/')), record.content);
            }
            Ok(())
        })?;
        Ok(Self::Archive(files))
    }

    /// Whether there is a file of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Archive(files) => files.contains_key(name),
        }
    }

    /// The file `name`: of a constant, of a digest, or of an archive's own names.
    pub(crate) fn get(&self, name: &str) -> Result<Region, ReadImageError> {
        let missing = || ReadImageError::Missing {
            name: name.to_owned(),
        };
        match self {
            Self::Archive(files) => files.get(name).cloned().ok_or_else(missing),
            Self::Folder(folder) => open_below(folder, name).map_err(|cause| match cause.kind() {
                io::ErrorKind::NotFound => missing(),
                _ => read_error(name, cause),
            }),
        }
    }

    /// The file `name`, which is a document without a digest.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ReadImageError> {
        parse(name, &self.get(name)?)
    }

    /// The blob of a digest, which must have that digest.
    pub(crate) fn blob(&self, digest: &str, size: u64) -> Result<Blob, ReadImageError> {
        let parsed = Digest::parse(digest).ok_or_else(|| ReadImageError::UnsupportedDigest {
            digest: digest.to_owned(),
        })?;
        let name = format!("blobs/sha256/{}", parsed.digits());
        let region = self.get(&name)?;
        if region.len() != size {
            return Err(ReadImageError::Size {
                name,
                found: region.len(),
                expected: size,
            });
        }
        verify(&name, &region, &parsed)?;
        Ok(Blob { name, region })
    }
}

/// A file whose digest is as it should be.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) name: String,
    pub(crate) region: Region,
}

impl Blob {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ReadImageError> {
        parse(&self.name, &self.region)
    }
}

/// Reads `region` and compares its digest.
pub(crate) fn verify(name: &str, region: &Region, expected: &Digest) -> Result<(), ReadImageError> {
    let found = HashingReader::new(region.reader()).finish();
    let found = found.map_err(|cause| read_error(name, cause))?;
    if found == *expected {
        return Ok(());
    }
    Err(ReadImageError::Digest {
        name: name.to_owned(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

/// Adds one layer; the lowest has number 0. `diff_id`: the digest that it must have when it is unpacked.
pub(crate) fn add_layer(
    blob: &Blob,
    number: usize,
    diff_id: Option<&Digest>,
    (tree, spool): (&mut Tree, &mut Spool),
) -> Result<(), ReadImageError> {
    let Blob { name, region } = blob;
    let unpacked = spool.unpacked(region);
    let unpacked = unpacked.map_err(|cause| ReadImageError::UnpackLayer {
        name: name.clone(),
        cause,
    })?;
    if let Some(diff_id) = diff_id {
        verify(name, &unpacked, diff_id)?;
    }
    let layer = u32::try_from(number + 1).map_err(|_| ReadImageError::Layers { found: number })?;
    let read = tar_read::read_tar(&unpacked, tree, Layer(layer), Whiteouts::Apply);
    read.map_err(|cause| ReadImageError::Layer {
        name: name.clone(),
        cause,
    })
}

pub(crate) fn check_layer_count(found: usize) -> Result<(), ReadImageError> {
    match found <= LAYERS_MAX {
        true => Ok(()),
        false => Err(ReadImageError::Layers { found }),
    }
}

fn open_below(folder: &Path, name: &str) -> io::Result<Region> {
    open_file_itself(&folder.join(name))
}

fn parse<T: DeserializeOwned>(name: &str, region: &Region) -> Result<T, ReadImageError> {
    if region.len() > JSON_BYTES_MAX {
        return Err(ReadImageError::LongJson {
            name: name.to_owned(),
            bytes: region.len(),
        });
    }
    let mut bytes = Vec::new();
    let read = region.reader().read_to_end(&mut bytes);
    read.map_err(|cause| read_error(name, cause))?;
    serde_json::from_slice(&bytes).map_err(|cause| ReadImageError::Json {
        name: name.to_owned(),
        cause,
    })
}

fn read_error(name: &str, cause: io::Error) -> ReadImageError {
    ReadImageError::Read {
        name: name.to_owned(),
        cause,
    }
}
