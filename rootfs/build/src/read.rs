//! Any source becomes the tree.

use std::io;
use std::path::{Path, PathBuf};

use crate::blobs::{Blobs, ReadImageError};
use crate::directory::{self, ReadDirectoryError};
use crate::docker;
use crate::oci;
use crate::region::Region;
use crate::settings::ProgramSettings;
use crate::source::{self, Source};
use crate::tar_read::{self, ReadTarError, Whiteouts};
use crate::tree::{Layer, Tree};
use crate::unpack::{Spool, UnpackError};

/// Number of a source that has no layers.
const ONLY_LAYER: Layer = Layer(1);

/// Why a source was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadSourceError {
    /// The file.
    #[error("Cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file.
    #[error("Cannot unpack {}", path.display())]
    Unpack {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: UnpackError,
    },
    /// The tar.
    #[error("Cannot read {}", path.display())]
    Tar {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<ReadTarError>,
    },
    /// The container image.
    #[error("Cannot use {}", path.display())]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<ReadImageError>,
    },
    /// The folder.
    #[error(transparent)]
    Directory(ReadDirectoryError),
}

/// The tree of a source, and what it says about its program. `None` for an image that is ready.
pub(crate) fn read(
    source: &Source,
    spool: &mut Spool,
) -> Result<Option<(Tree, ProgramSettings)>, ReadSourceError> {
    let mut tree = Tree::new();
    let settings = match source {
        Source::Image { .. } => return Ok(None),
        Source::Directory(folder) => {
            let read = directory::read_directory(folder, b"", &mut tree, ONLY_LAYER);
            read.map_err(ReadSourceError::Directory)?;
            ProgramSettings::default()
        }
        Source::OciLayout(folder) => {
            let blobs = Blobs::Folder(folder.clone());
            let read = oci::read_layout(&blobs, &mut tree, spool);
            read.map_err(|cause| image_error(folder, cause))?
        }
        Source::Archive(path) => read_archive(path, &mut tree, spool)?,
    };
    Ok(Some((tree, settings)))
}

fn read_archive(
    path: &Path,
    tree: &mut Tree,
    spool: &mut Spool,
) -> Result<ProgramSettings, ReadSourceError> {
    let path_buf = || path.to_owned();
    let packed = source::open_file(path).map_err(|cause| ReadSourceError::Open {
        path: path_buf(),
        cause,
    })?;
    let archive = spool.unpacked(&packed);
    let archive: Region = archive.map_err(|cause| ReadSourceError::Unpack {
        path: path_buf(),
        cause,
    })?;
    let tar_error = |cause| ReadSourceError::Tar {
        path: path_buf(),
        cause: Box::new(cause),
    };
    let blobs = Blobs::of_archive(&archive).map_err(tar_error)?;
    if blobs.contains(oci::LAYOUT_FILE) && blobs.contains(oci::INDEX_FILE) {
        let read = oci::read_layout(&blobs, tree, spool);
        return read.map_err(|cause| image_error(path, cause));
    }
    if let Some(images) = docker::images(&blobs) {
        let read = docker::read_archive(&blobs, &images, tree, spool);
        return read.map_err(|cause| image_error(path, cause));
    }
    let read = tar_read::read_tar(&archive, tree, ONLY_LAYER, Whiteouts::AsFiles);
    read.map_err(tar_error)?;
    Ok(ProgramSettings::default())
}

fn image_error(path: &Path, cause: ReadImageError) -> ReadSourceError {
    ReadSourceError::Image {
        path: path.to_owned(),
        cause: Box::new(cause),
    }
}
