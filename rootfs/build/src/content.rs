//! Contents on their way from where they are to an image.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use rustix::fs::OFlags;

use crate::tree::Content;

/// Why a content could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyContentError {
    /// Reading it.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file; empty when it stands in an archive.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file that is written to while the image is built.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Writing it.
    #[error("Cannot write the image")]
    Write(#[source] io::Error),
}

/// Writes all of `content`.
pub(crate) fn copy(content: &Content, out: &mut impl Write) -> Result<(), CopyContentError> {
    match content {
        Content::Bytes(bytes) => out.write_all(bytes).map_err(CopyContentError::Write),
        Content::Region(region) => {
            let path = PathBuf::from("an archive");
            copy_exactly(region.reader(), region.len(), out, &path)
        }
        Content::Path { path, len } => {
            let read_error = |cause| CopyContentError::Read {
                path: path.clone(),
                cause,
            };
            // What was a file may be something else by now.
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let flags = i32::try_from(flags.bits()).unwrap_or(0);
            let file = File::options().read(true).custom_flags(flags).open(path);
            let file = file.map_err(read_error)?;
            let metadata = file.metadata().map_err(read_error)?;
            let kind = metadata.file_type();
            if metadata.len() != *len || kind.is_fifo() || kind.is_dir() {
                return Err(CopyContentError::Changed { path: path.clone() });
            }
            copy_exactly(file, *len, out, path)
        }
    }
}

fn copy_exactly(
    mut from: impl Read,
    len: u64,
    out: &mut impl Write,
    path: &std::path::Path,
) -> Result<(), CopyContentError> {
    let mut buffer = vec![0; 1 << 16];
    let mut left = len;
    while left > 0 {
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = match from.read(&mut buffer[..wanted]) {
            Ok(0) => return Err(CopyContentError::Changed { path: path.into() }),
            Ok(count) => count,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => {
                let path = path.into();
                return Err(CopyContentError::Read { path, cause });
            }
        };
        let written = out.write_all(&buffer[..count]);
        written.map_err(CopyContentError::Write)?;
        left -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_changed_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        fs::write(&path, "longer").expect("written");
        let content = Content::Path { path, len: 3 };
        let error = copy(&content, &mut Vec::new()).expect_err("it is longer");
        assert!(
            error
                .to_string()
                .ends_with("/log changed while it was read"),
            "{error}"
        );
    }
}
