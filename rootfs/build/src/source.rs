//! What a root file system is made of, known by looking at it.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::format::Format;
use crate::region::Region;
use crate::unpack::Packing;

/// Enough to know everything by: a superblock lies at 1 KiB.
const HEAD_BYTES: usize = 2048;

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder that is the root.
    Directory(PathBuf),
    /// A folder with an OCI image layout.
    OciLayout(PathBuf),
    /// A tar, plain or packed by gzip or zstd: the root itself, an OCI archive, or what `docker save` writes. Which of
    /// these is seen when it is read.
    Archive(PathBuf),
    /// A file system image that is ready.
    Image {
        /// The image.
        path: PathBuf,
        /// Its file system.
        format: Format,
    },
}

/// Why nothing can be made of a path.
#[derive(Debug, thiserror::Error)]
pub enum DetectSourceError {
    /// The host refused.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is something else.
    #[error(
        "{} is {found}; a root file system is made of a folder, a tar (plain, gzip or zstd), an OCI image layout, an \
         OCI archive, a `docker save` archive, or an erofs, squashfs or ext4 image",
        path.display()
    )]
    Unknown {
        /// The path.
        path: PathBuf,
        /// What was found.
        found: &'static str,
    },
}

impl Source {
    /// Looks at the first bytes of a file, or at the names in a folder.
    ///
    /// # Errors
    /// [`DetectSourceError`] names what was found when it is nothing of use.
    pub fn detect(path: &Path) -> Result<Self, DetectSourceError> {
        let read_error = |cause| DetectSourceError::Read {
            path: path.to_owned(),
            cause,
        };
        let metadata = path.metadata().map_err(read_error)?;
        let path_buf = path.to_owned();
        if metadata.is_dir() {
            let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
            return Ok(match is_layout {
                true => Self::OciLayout(path_buf),
                false => Self::Directory(path_buf),
            });
        }
        let region = open_file(path).map_err(read_error)?;
        let head = region.head::<HEAD_BYTES>().map_err(read_error)?;
        if let Some(format) = Format::of(&head) {
            return Ok(Self::Image {
                path: path_buf,
                format,
            });
        }
        if Packing::of(&head) != Packing::Plain || is_tar(&head) {
            return Ok(Self::Archive(path_buf));
        }
        Err(DetectSourceError::Unknown {
            path: path_buf,
            found: name_of(region.len(), &head),
        })
    }

    /// The path that was looked at.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::OciLayout(path) | Self::Archive(path) => path,
            Self::Image { path, .. } => path,
        }
    }

    /// The file system of an image that needs no building.
    #[must_use]
    pub const fn ready_format(&self) -> Option<Format> {
        match self {
            Self::Image { format, .. } => Some(*format),
            _ => None,
        }
    }
}

/// Opens a regular file; what else it may be, a FIFO for one, is not waited for.
pub(crate) fn open_file(path: &Path) -> io::Result<Region> {
    open(path, OFlags::NONBLOCK)
}

/// The same, but a symlink is refused: for paths that an image names.
pub(crate) fn open_file_itself(path: &Path) -> io::Result<Region> {
    open(path, OFlags::NONBLOCK | OFlags::NOFOLLOW)
}

fn open(path: &Path, flags: OFlags) -> io::Result<Region> {
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Region::whole(file)
}

/// By the header's checksum: archives older than ustar have no magic number.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512) else {
        return false;
    };
    let header = tar::Header::from_byte_slice(block);
    let around_the_sum = block[..148].iter().chain(&block[156..]);
    let sum = around_the_sum.fold(8 * u32::from(b' '), |sum, byte| sum + u32::from(*byte));
    header.cksum().is_ok_and(|found| found == sum)
}

fn name_of(len: u64, head: &[u8]) -> &'static str {
    const NAMES: &[(&[u8], &str)] = &[
        (b"\x7fELF", "an ELF file (a kernel or program)"),
        (b"\xfd7zXZ\0", "packed by xz"),
        (b"BZh", "packed by bzip2"),
        (b"\x04\x22\x4d\x18", "packed by lz4"),
        (b"PK\x03\x04", "a zip archive"),
        (b"QFI\xfb", "a qcow2 disk"),
        (b"07070", "a cpio archive"),
        (b"!<arch>", "a Debian package or ar archive"),
        (b"#!", "a script"),
    ];
    if len == 0 {
        return "empty";
    }
    if head[510..512] == [0x55, 0xaa] {
        return "a disk with partitions";
    }
    let known = NAMES.iter().find(|(magic, _)| head.starts_with(magic));
    known.map_or("of no known kind", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn detect(content: &[u8]) -> Result<Source, DetectSourceError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("source");
        fs::write(&path, content).expect("written");
        Source::detect(&path)
    }

    fn superblock(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[at..at + magic.len()].copy_from_slice(magic);
        image
    }

    #[test]
    fn images_are_known_by_their_magic() {
        let formats = [
            (
                superblock(1024, &0xe0f5_e1e2_u32.to_le_bytes()),
                Format::Erofs,
            ),
            (
                superblock(1024 + 0x38, &0xef53_u16.to_le_bytes()),
                Format::Ext4,
            ),
            (superblock(0, b"hsqs"), Format::Squashfs),
        ];
        for (image, format) in formats {
            let found = detect(&image).expect("known").ready_format();
            assert_eq!(found, Some(format));
        }
    }

    #[test]
    fn archives_are_known_packed_or_not() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_old();
        header.set_size(0);
        builder
            .append_data(&mut header, "x", io::empty())
            .expect("in memory");
        let plain = builder.into_inner().expect("in memory");
        for content in [plain.as_slice(), b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"] {
            assert!(
                matches!(detect(content), Ok(Source::Archive(_))),
                "{content:?}"
            );
        }
    }

    #[test]
    fn other_files_are_named() {
        let cases: [(&[u8], &str); 4] = [
            (b"", "is empty"),
            (b"\x7fELF\x02", "an ELF file"),
            (b"\xfd7zXZ\0\0", "packed by xz"),
            (b"hello", "of no known kind"),
        ];
        for (content, expected) in cases {
            let text = detect(content).expect_err("unknown").to_string();
            assert!(
                text.contains(expected) && text.contains("OCI archive"),
                "{text}"
            );
        }
    }

    #[test]
    fn folders_are_roots_or_layouts() {
        let folder = tempfile::tempdir().expect("a folder");
        let detect = || Source::detect(folder.path()).expect("a folder");
        assert!(matches!(detect(), Source::Directory(_)));
        fs::write(folder.path().join("oci-layout"), "{}").expect("written");
        fs::write(folder.path().join("index.json"), "{}").expect("written");
        assert!(matches!(detect(), Source::OciLayout(_)));
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let error = Source::detect(Path::new("/dev/null")).expect_err("a device");
        assert!(matches!(error, DetectSourceError::Read { .. }));
    }
}
