//! A file in the making: it has its name when it is whole, or never.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Why a file could not be made or named.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// In its folder.
    #[error("Cannot create a file in {}", folder.display())]
    Create {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// At the end.
    #[error("Cannot write {}", path.display())]
    Publish {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// The file. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Draft {
    file: NamedTempFile,
    out: PathBuf,
}

impl Draft {
    /// In the folder of `out`: a name is changed in one step within a file system only.
    pub(crate) fn create(out: &Path) -> Result<Self, DraftError> {
        let folder = folder_of(out);
        let mut builder = tempfile::Builder::new();
        // As any new file; the umask takes from it.
        let builder = builder
            .permissions(Permissions::from_mode(0o666))
            .prefix(".lightv-");
        let file = builder
            .tempfile_in(folder)
            .map_err(|cause| DraftError::Create {
                folder: folder.to_owned(),
                cause,
            })?;
        let out = out.to_owned();
        Ok(Self { file, out })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Gives it its name, in the place of what had it before. Bytes of it.
    pub(crate) fn publish(self) -> Result<u64, DraftError> {
        let Self { file, out } = self;
        let publish = || {
            file.as_file().sync_all()?;
            let bytes = file.as_file().metadata()?.len();
            file.persist(&out).map_err(|failed| failed.error)?;
            // The name is on the disk when its folder is.
            File::open(folder_of(&out))?.sync_all()?;
            Ok(bytes)
        };
        publish().map_err(|cause| DraftError::Publish {
            path: out.clone(),
            cause,
        })
    }
}

/// The folder that a path is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}
