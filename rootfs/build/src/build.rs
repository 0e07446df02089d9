//! From a source to an image.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::additions::{self, AddError, CopySpec};
use crate::draft::{self, Draft, DraftError};
use crate::erofs::{self, WriteErofsError};
use crate::format::{Compression, Format};
use crate::read::{self, ReadSourceError};
use crate::settings::ProgramSettings;
use crate::source::Source;
use crate::staged::{self, MakeImageError};
use crate::tree::Tree;
use crate::unpack::Spool;

/// What is to be built.
#[derive(Debug, Clone, Copy)]
pub struct BuildRequest<'a> {
    /// What from.
    pub source: &'a Source,
    /// The image to write; what has this name is replaced when the new one is whole. Temporary files, as large as the
    /// source unpacked, are in its folder.
    pub out: &'a Path,
    /// The file system; erofs if absent, or that of the source when it is an image.
    pub format: Option<Format>,
    /// How it is compressed.
    pub compression: Compression,
    /// Size of an ext4 in MiB; enough for the files and some more if absent.
    pub size_mib: Option<u32>,
    /// The agent: the bytes of the program that becomes `/.lightv/init`.
    pub agent: &'a [u8],
    /// Files that are added, in this order.
    pub copies: &'a [CopySpec],
}

/// An image that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltRootfs {
    /// Its file system.
    pub format: Format,
    /// Bytes of the image.
    pub bytes: u64,
    /// What the source says about its program.
    pub settings: ProgramSettings,
    /// Whether the agent is in it.
    pub agent: AgentState,
}

/// Whether the agent was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// It was.
    Added,
    /// The source is an image that is ready; what is in it is not known.
    Unknown,
}

/// Who can mend an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The user: source or request cannot be used.
    Input,
    /// The host: a disk is full, a tool is missing.
    Host,
}

/// Why nothing was built. Nothing is left then.
#[derive(Debug, thiserror::Error)]
pub enum BuildRootfsError {
    /// Compression of an ext4.
    #[error("ext4 has no compression; erofs and squashfs have")]
    CompressedExt4,
    /// A size for a file system that is as large as its files.
    #[error("A size is for ext4, which can be written; {format} is as large as its files")]
    Size {
        /// The file system.
        format: Format,
    },
    /// Nothing is built of an image.
    #[error("{} is an image of {found} that is used as it is, and cannot become {wanted}", path.display())]
    OtherFormat {
        /// The source.
        path: PathBuf,
        /// What it is.
        found: Format,
        /// What was asked for.
        wanted: Format,
    },
    /// Nothing is added to an image.
    #[error("{} is an image that is used as it is; files can only be copied into folders, archives and OCI images", path.display())]
    CopyIntoImage {
        /// The source.
        path: PathBuf,
    },
    /// The source.
    #[error(transparent)]
    Source(ReadSourceError),
    /// What is added to it.
    #[error(transparent)]
    Add(AddError),
    /// The image's file.
    #[error(transparent)]
    Draft(DraftError),
    /// An image of erofs.
    #[error("Cannot make {}", path.display())]
    Erofs {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        cause: WriteErofsError,
    },
    /// An image that a tool makes.
    #[error("Cannot make {}", path.display())]
    Tool {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        cause: MakeImageError,
    },
    /// A copy of an image.
    #[error("Cannot copy {} to {}", from.display(), to.display())]
    Copy {
        /// The source.
        from: PathBuf,
        /// The image.
        to: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

impl BuildRootfsError {
    /// Who can mend it.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Draft(_) | Self::Erofs { .. } | Self::Copy { .. } => Blame::Host,
            Self::Tool { cause, .. } => match cause {
                MakeImageError::Small { .. } | MakeImageError::LongXattr { .. } => Blame::Input,
                _ => Blame::Host,
            },
            _ => Blame::Input,
        }
    }
}

/// Builds an image. The same request gives the same bytes.
///
/// # Errors
/// [`BuildRootfsError`]; there is no image then, and what had its name before is untouched.
pub fn build(request: &BuildRequest<'_>) -> Result<BuiltRootfs, BuildRootfsError> {
    if let Source::Image { path, format } = request.source {
        return pass_through(request, path, *format);
    }
    let format = request.format.unwrap_or_default();
    check_options(request, format)?;
    let work = draft::folder_of(request.out);
    let mut spool = Spool::new(work);
    let read = read::read(request.source, &mut spool).map_err(BuildRootfsError::Source)?;
    let (mut tree, settings) = read.unwrap_or_else(|| (Tree::new(), ProgramSettings::default()));
    additions::add(&mut tree, request.agent, request.copies).map_err(BuildRootfsError::Add)?;
    let draft = Draft::create(request.out).map_err(BuildRootfsError::Draft)?;
    write(request, format, &tree, &draft)?;
    Ok(BuiltRootfs {
        format,
        bytes: draft.publish().map_err(BuildRootfsError::Draft)?,
        settings,
        agent: AgentState::Added,
    })
}

fn check_options(request: &BuildRequest<'_>, format: Format) -> Result<(), BuildRootfsError> {
    match format {
        Format::Ext4 if request.compression != Compression::None => {
            Err(BuildRootfsError::CompressedExt4)
        }
        Format::Erofs | Format::Squashfs if request.size_mib.is_some() => {
            Err(BuildRootfsError::Size { format })
        }
        _ => Ok(()),
    }
}

fn write(
    request: &BuildRequest<'_>,
    format: Format,
    tree: &Tree,
    draft: &Draft,
) -> Result<(), BuildRootfsError> {
    let work = draft::folder_of(request.out);
    let made = match (format, request.compression) {
        (Format::Erofs, Compression::None) => return write_erofs(request, tree, draft),
        (Format::Erofs, Compression::Lz4) => staged::erofs_lz4(tree, draft.path(), work),
        (Format::Squashfs, compression) => staged::squashfs(tree, compression, draft.path()),
        (Format::Ext4, _) => staged::ext4(tree, request.size_mib, draft.path(), work),
    };
    made.map_err(|cause| BuildRootfsError::Tool {
        path: request.out.to_owned(),
        cause,
    })
}

fn write_erofs(
    request: &BuildRequest<'_>,
    tree: &Tree,
    draft: &Draft,
) -> Result<(), BuildRootfsError> {
    let mut out = BufWriter::with_capacity(1 << 20, draft.file());
    let written = erofs::write(tree, &mut out);
    let written = written.and_then(|()| out.flush().map_err(WriteErofsError::Write));
    written.map_err(|cause| BuildRootfsError::Erofs {
        path: request.out.to_owned(),
        cause,
    })
}

/// A copy of an image that is ready; the file system shares its blocks where it can.
fn pass_through(
    request: &BuildRequest<'_>,
    path: &Path,
    found: Format,
) -> Result<BuiltRootfs, BuildRootfsError> {
    let path_buf = || path.to_owned();
    if let Some(wanted) = request.format.filter(|wanted| *wanted != found) {
        return Err(BuildRootfsError::OtherFormat {
            path: path_buf(),
            found,
            wanted,
        });
    }
    if !request.copies.is_empty() {
        return Err(BuildRootfsError::CopyIntoImage { path: path_buf() });
    }
    let draft = Draft::create(request.out).map_err(BuildRootfsError::Draft)?;
    let copied = File::open(path).and_then(|mut from| io::copy(&mut from, &mut draft.file()));
    copied.map_err(|cause| BuildRootfsError::Copy {
        from: path_buf(),
        to: request.out.to_owned(),
        cause,
    })?;
    Ok(BuiltRootfs {
        format: found,
        bytes: draft.publish().map_err(BuildRootfsError::Draft)?,
        settings: ProgramSettings::default(),
        agent: AgentState::Unknown,
    })
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
