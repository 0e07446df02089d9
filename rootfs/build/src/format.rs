//! File systems that images can have.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Read-only; uncompressed, its pages are the disk's.
    #[default]
    Erofs,
    /// Can be written.
    Ext4,
    /// Read-only.
    Squashfs,
}

/// How an image is compressed. ext4 has no compression.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not: a guest on software KVM emulates each instruction of a decompressor.
    #[default]
    None,
    /// LZ4.
    Lz4,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Erofs, Self::Ext4, Self::Squashfs];

    /// The name that Linux has for it (`rootfstype=`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }

    /// By the magic number in an image's first 2 KiB.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"hsqs") {
            return Some(Self::Squashfs);
        }
        let superblock = head.get(1024..1024 + 0x3a)?;
        match superblock {
            [0xe2, 0xe1, 0xf5, 0xe0, ..] => Some(Self::Erofs),
            [.., 0x53, 0xef] => Some(Self::Ext4),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A word that is no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("formats are erofs, ext4 and squashfs, not {0:?}")]
pub struct UnknownFormat(pub String);

impl std::str::FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        let mut all = Self::ALL.into_iter();
        all.find(|format| format.name() == text)
            .ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_the_names_that_are_typed() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        assert_eq!("xfs".parse::<Format>(), Err(UnknownFormat("xfs".into())));
    }
}
