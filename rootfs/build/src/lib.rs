//! Root file systems for Linux guests: a folder, a tar, an OCI image or a `docker save` archive becomes an image of
//! erofs, ext4 or squashfs with LightV's agent in it.
//!
//! Nobody has to be root for it. Nothing is extracted with its owners: the layers are merged in memory into one tree,
//! whose files' contents stay where they are, in the source or unpacked in a file without a name, until they are
//! written into the image. Archives are not trusted: a path, wherever its symlinks lead, is a place in that tree, and
//! what an archive can take of memory and disk is bounded (`limits.rs`).

mod additions;
mod blobs;
mod build;
mod build_file;
mod content;
mod digest;
mod directory;
mod docker;
mod draft;
mod entry_path;
mod erofs;
mod format;
mod limits;
mod oci;
mod read;
mod region;
mod settings;
mod source;
mod staged;
mod tar_read;
mod tar_write;
mod tools;
mod tree;
mod unpack;
mod xattr_dump;

pub use additions::{AddError, CopySpec, Owner};
pub use blobs::ReadImageError;
pub use build::{AgentState, Blame, BuildRequest, BuildRootfsError, BuiltRootfs, build};
pub use build_file::{BuildFile, FILE_NAME, ReadBuildFileError};
pub use content::CopyContentError;
pub use directory::ReadDirectoryError;
pub use draft::DraftError;
pub use entry_path::PathFault;
pub use erofs::WriteErofsError;
pub use format::{Compression, Format, UnknownFormat};
pub use read::ReadSourceError;
pub use settings::ProgramSettings;
pub use source::{DetectSourceError, Source};
pub use staged::MakeImageError;
pub use tar_read::{EntryFault, ReadTarError};
pub use tar_write::WriteTarError;
pub use tools::{Said, ToolError};
pub use tree::PlaceError;
pub use unpack::UnpackError;
