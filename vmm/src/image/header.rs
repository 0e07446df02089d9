//! Header and section table: fixed layout, little-endian, readable without decoding.

use std::collections::BTreeSet;

use xxhash_rust::xxh3::Xxh3;

use crate::limits;

/// First bytes of every image. The control byte makes a file that went through a text conversion fail here.
pub const MAGIC: [u8; 8] = *b"LightV\x1a\n";
/// Version of the container that this build writes, and the only one that it reads.
pub const FORMAT_VERSION: u16 = 1;
/// Architecture number of x86_64.
pub const ARCH_X86_64: u16 = 1;
/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 64;
/// Length of one entry of the section table in bytes.
pub const ENTRY_BYTES: usize = 64;
/// Bytes between two sections, which nobody reads: less than the largest alignment, a page.
const GAP_BYTES_MAX: u64 = 4096;
/// Longest name of a kind.
pub const KIND_BYTES: usize = 24;

/// Kinds of sections that are bytes, not state: their version is 1.
pub mod kind {
    /// JSON, see [`super::super::manifest`].
    pub const MANIFEST: &str = "manifest";
    /// The kernel file as it was.
    pub const KERNEL: &str = "kernel";
    /// The initial RAM disk as it was.
    pub const INITRD: &str = "initrd";
    /// Pages of guest RAM, in the order of `memory-map`.
    pub const MEMORY: &str = "memory";
    /// A disk. Proved chunk by chunk, when the guest reads it.
    pub const DISK: &str = "disk";
    /// XXH3-64 of each 64 KiB of the disk with the same index, little-endian.
    pub const DISK_SUMS: &str = "disk-sums";
    /// Blocks of a drive's delta, in the order of `overlay-map`. Proved like a disk.
    pub const OVERLAY: &str = "overlay";
    /// XXH3-64 of each 64 KiB of the delta with the same index, little-endian.
    pub const OVERLAY_SUMS: &str = "overlay-sums";
    /// Their version.
    pub const BYTES_VERSION: u16 = 1;
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of sections.
    pub sections: u32,
    /// Length of the whole file in bytes.
    pub file_bytes: u64,
    /// XXH3-64 of the header, this field taken as zero, and the table.
    pub checksum: u64,
}

/// An entry of the section table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionEntry {
    /// What the section is.
    pub kind: String,
    /// Which of several of its kind.
    pub index: u32,
    /// Version of its contents.
    pub version: u16,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// XXH3-64 of its bytes.
    pub checksum: u64,
}

impl SectionEntry {
    /// The section's name in messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}[{}]", self.kind, self.index)
    }
}

/// Why a header or table was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Something else than an image.
    #[error("it is not a LightV image (its first bytes are others)")]
    Magic,
    /// Cut off.
    #[error("it is truncated: it has {found} bytes, and {needed} are needed")]
    Truncated {
        /// Its length.
        found: u64,
        /// What the header says, or needs itself.
        needed: u64,
    },
    /// Bytes after the end.
    #[error("it has {found} bytes, and its header says {expected}")]
    Length {
        /// Its length.
        found: u64,
        /// What the header says.
        expected: u64,
    },
    /// Another format.
    #[error(
        "it has format {found}, and this build reads format {FORMAT_VERSION}; use the LightV that wrote it, or build it anew"
    )]
    Version {
        /// What the header says.
        found: u16,
    },
    /// Made for another processor.
    #[error(
        "it is for architecture {found}, and this build runs architecture {ARCH_X86_64} (x86_64)"
    )]
    Architecture {
        /// What the header says.
        found: u16,
    },
    /// More sections than any image has.
    #[error(
        "its header says {found} sections; at most {} are allowed",
        limits::SECTIONS_MAX
    )]
    TooManySections {
        /// What the header says.
        found: u32,
    },
    /// A use of the format that this build does not know.
    #[error("its header uses a field that this build does not know; it may be from a newer LightV")]
    Reserved,
    /// The header or the table was changed.
    #[error("its header or section table is damaged (checksum)")]
    Checksum,
    /// An entry that cannot be.
    #[error("entry {entry} of its section table is damaged: {what}")]
    Entry {
        /// Number of the entry.
        entry: u32,
        /// What is wrong.
        what: &'static str,
    },
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(from) = bytes.get(at..at + N) {
        out.copy_from_slice(from);
    }
    out
}

impl Header {
    /// Where the checksum stands in the header.
    const CHECKSUM_AT: usize = 56;

    /// Reads the header; everything but the checksum is checked.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(front: &[u8], file_bytes: u64) -> Result<Self, HeaderError> {
        let present = front.len().min(MAGIC.len());
        if present == 0 || front.get(..present) != MAGIC.get(..present) {
            return Err(HeaderError::Magic);
        }
        if front.len() < HEADER_BYTES {
            return Err(HeaderError::Truncated {
                found: file_bytes,
                needed: HEADER_BYTES as u64,
            });
        }
        let version = u16::from_le_bytes(field(front, 8));
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version { found: version });
        }
        let architecture = u16::from_le_bytes(field(front, 10));
        if architecture != ARCH_X86_64 {
            return Err(HeaderError::Architecture {
                found: architecture,
            });
        }
        let header = Self {
            sections: u32::from_le_bytes(field(front, 12)),
            file_bytes: u64::from_le_bytes(field(front, 16)),
            checksum: u64::from_le_bytes(field(front, Self::CHECKSUM_AT)),
        };
        if field::<32>(front, 24) != [0; 32] {
            return Err(HeaderError::Reserved);
        }
        if header.sections > limits::SECTIONS_MAX {
            return Err(HeaderError::TooManySections {
                found: header.sections,
            });
        }
        if file_bytes < header.file_bytes.max(header.front_bytes()) {
            let needed = header.file_bytes.max(header.front_bytes());
            return Err(HeaderError::Truncated {
                found: file_bytes,
                needed,
            });
        }
        if file_bytes != header.file_bytes {
            return Err(HeaderError::Length {
                found: file_bytes,
                expected: header.file_bytes,
            });
        }
        Ok(header)
    }

    /// Length of header and table in bytes.
    #[must_use]
    pub const fn front_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.sections as u64 * ENTRY_BYTES as u64
    }

    /// Reads the table that follows the header.
    ///
    /// Entries lie in file order without overlap, inside the file, after the table.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode_table(&self, front: &[u8]) -> Result<Vec<SectionEntry>, HeaderError> {
        let length = usize::try_from(self.front_bytes()).unwrap_or(usize::MAX);
        let front = front.get(..length).ok_or(HeaderError::Checksum)?;
        if front_checksum(front) != self.checksum {
            return Err(HeaderError::Checksum);
        }
        let table = front.get(HEADER_BYTES..).unwrap_or_default();
        let mut end = self.front_bytes();
        let mut names = BTreeSet::new();
        let mut entries = Vec::with_capacity(table.len() / ENTRY_BYTES);
        for (number, bytes) in (0_u32..).zip(table.chunks_exact(ENTRY_BYTES)) {
            let bad = |what| HeaderError::Entry {
                entry: number,
                what,
            };
            let entry = SectionEntry::decode(bytes).ok_or(bad(
                "its kind is no name, or it uses a field that this build does not know",
            ))?;
            let entry_end = entry
                .offset
                .checked_add(entry.bytes)
                .ok_or(bad("its end is beyond 2^64"))?;
            if entry.offset < end {
                return Err(bad("it overlaps the entry before it"));
            }
            if entry.offset - end >= GAP_BYTES_MAX {
                return Err(bad("there is a gap before it"));
            }
            if !names.insert((entry.kind.clone(), entry.index)) {
                return Err(bad("its section is there twice"));
            }
            if entry_end > self.file_bytes {
                return Err(bad("it ends after the file"));
            }
            end = entry_end;
            entries.push(entry);
        }
        if end != self.file_bytes {
            return Err(HeaderError::Length {
                found: self.file_bytes,
                expected: end,
            });
        }
        Ok(entries)
    }

    /// Header and table as bytes, the checksum filled in.
    #[must_use]
    pub fn encode(file_bytes: u64, entries: &[SectionEntry]) -> Vec<u8> {
        let mut front = Vec::with_capacity(HEADER_BYTES + entries.len() * ENTRY_BYTES);
        front.extend_from_slice(&MAGIC);
        front.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        front.extend_from_slice(&ARCH_X86_64.to_le_bytes());
        front.extend_from_slice(
            &u32::try_from(entries.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        front.extend_from_slice(&file_bytes.to_le_bytes());
        front.resize(HEADER_BYTES, 0);
        for entry in entries {
            entry.encode(&mut front);
        }
        let checksum = front_checksum(&front);
        if let Some(place) = front.get_mut(Self::CHECKSUM_AT..Self::CHECKSUM_AT + 8) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
        front
    }
}

fn front_checksum(front: &[u8]) -> u64 {
    let (header, table) = front.split_at(HEADER_BYTES.min(front.len()));
    let mut hash = Xxh3::new();
    hash.update(header.get(..Header::CHECKSUM_AT).unwrap_or_default());
    hash.update(&[0; 8]);
    hash.update(table);
    hash.digest()
}

impl SectionEntry {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let name: [u8; KIND_BYTES] = field(bytes, 0);
        let length = name.iter().position(|b| *b == 0).unwrap_or(KIND_BYTES);
        let (name, rest) = name.split_at(length);
        let plain = name
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        let reserved = (field::<2>(bytes, 30), field::<8>(bytes, 56));
        if reserved != ([0; 2], [0; 8]) {
            return None;
        }
        if name.is_empty() || !plain || rest.iter().any(|b| *b != 0) {
            return None;
        }
        Some(Self {
            kind: String::from_utf8(name.to_vec()).ok()?,
            index: u32::from_le_bytes(field(bytes, 24)),
            version: u16::from_le_bytes(field(bytes, 28)),
            offset: u64::from_le_bytes(field(bytes, 32)),
            bytes: u64::from_le_bytes(field(bytes, 40)),
            checksum: u64::from_le_bytes(field(bytes, 48)),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(self.kind.bytes().take(KIND_BYTES));
        out.resize(start + KIND_BYTES, 0);
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.checksum.to_le_bytes());
        out.resize(start + ENTRY_BYTES, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(kind: &str, offset: u64, bytes: u64) -> SectionEntry {
        SectionEntry {
            kind: kind.into(),
            index: 0,
            version: 1,
            offset,
            bytes,
            checksum: 7,
        }
    }

    #[test]
    fn header_and_table_survive_the_way_there_and_back() {
        let entries = [entry("manifest", 192, 10), entry("memory", 4096, 8192)];
        let front = Header::encode(12_288, &entries);
        let header = Header::decode(&front, 12_288).unwrap();
        assert_eq!(header.decode_table(&front).unwrap(), entries);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let entries = [entry("manifest", 192, 10), entry("memory", 4096, 8192)];
        let front = Header::encode(12_288, &entries);
        for bit in 0..front.len() * 8 {
            let mut bad = front.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = Header::decode(&bad, 12_288).and_then(|header| header.decode_table(&bad));
            assert!(found.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn overlapping_and_overlong_sections_are_refused_though_the_checksum_is_right() {
        for entries in [
            vec![entry("a", 100, 10)],
            vec![entry("a", 192, 100), entry("b", 200, 10)],
            vec![entry("a", 128, 12_288)],
            vec![entry("a", u64::MAX, 2)],
            vec![entry("a", 192, 10), entry("a", 208, 12_080)],
            vec![entry("a", 128, 10), entry("b", 8192, 4096)],
        ] {
            let front = Header::encode(12_288, &entries);
            let header = Header::decode(&front, 12_288).unwrap();
            assert!(
                matches!(header.decode_table(&front), Err(HeaderError::Entry { .. })),
                "{entries:?}"
            );
        }
    }

    #[test]
    fn another_format_is_named_before_the_checksum() {
        let mut front = Header::encode(64, &[]);
        front[8] = 2;
        assert_eq!(
            Header::decode(&front, 64),
            Err(HeaderError::Version { found: 2 })
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), length: u64) {
            let mut front = MAGIC.to_vec();
            front.extend_from_slice(&[1, 0, 1, 0]);
            front.extend(bytes);
            if let Ok(header) = Header::decode(&front, length) {
                let _ = header.decode_table(&front);
            }
        }
    }
}
