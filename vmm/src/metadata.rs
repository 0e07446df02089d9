//! `--metadata`: what the metadata service holds from the beginning.

use std::fs;
use std::path::PathBuf;

use lightv_api::contract::mmds::MmdsData;

use crate::kernel::{ReadFileError, read_file};

/// The file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataFile {
    /// Its path.
    pub path: PathBuf,
    /// Bytes that it may have.
    pub bytes_max: u64,
}

/// Why it is refused.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// It is no JSON object.
    #[error("Metadata {} is refused: {cause}; allowed: a JSON object", path.display())]
    Json {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
    /// It is too long.
    #[error(
        "Metadata {} is refused: it makes {bytes} bytes; allowed: {bytes_max} (--mmds-size-limit)",
        path.display()
    )]
    Size {
        /// Its path.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The machine has no way to it.
    #[error(
        "Metadata {} could be read by nobody: the machine has no mmds-config, and the process serves no API (--api-sock)",
        path.display()
    )]
    Unreachable {
        /// Its path.
        path: PathBuf,
    },
}

impl MetadataFile {
    /// Bytes that it may have unless something else is said: as a body of the REST API, which metadata comes by.
    pub const BYTES_MAX_DEFAULT: u64 = 51_200;

    /// One of at most [`BYTES_MAX_DEFAULT`](Self::BYTES_MAX_DEFAULT) bytes.
    #[must_use]
    pub const fn of_default_size(path: PathBuf) -> Self {
        let bytes_max = Self::BYTES_MAX_DEFAULT;
        Self { path, bytes_max }
    }

    /// What is in it.
    ///
    /// # Errors
    /// [`MetadataError`].
    pub fn read(&self) -> Result<MmdsData, MetadataError> {
        let Self { path, bytes_max } = self;
        let bytes = fs::metadata(path).map_or(0, |found| found.len());
        if bytes > *bytes_max {
            return Err(MetadataError::Size {
                path: path.clone(),
                bytes,
                bytes_max: *bytes_max,
            });
        }
        let bytes = read_file("metadata", path, *bytes_max)?;
        serde_json::from_slice(&bytes).map_err(|cause| MetadataError::Json {
            path: path.clone(),
            cause,
        })
    }
}
