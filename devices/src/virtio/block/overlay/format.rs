//! The file of a delta, format 1. All numbers are little-endian.
//!
//! ```text
//! 0      header: 512 bytes, the rest of its page zero
//! 4096   safe map: a bit for each block of 4 KiB that was in the delta at the last flush; whole pages
//! …      live map: the same, as it is now; whole pages
//! …      data: block N of the disk at N * 4096
//! ```
//!
//! The safe map is written when the data that it names is on the disk: after a crash of the host it is what holds. The live
//! map is written as the guest writes, without a sync: after the end of the process alone it is what holds, for the page cache
//! has all of it. Which of them it is, the header's boot id tells.

use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a block.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// The same, for buffers.
pub(super) const BLOCK: usize = 4096;
/// Bytes of a page of a map.
pub(super) const MAP_PAGE_BYTES: u64 = 4096;
/// The same, for buffers.
pub(super) const MAP_PAGE: usize = 4096;
/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 512;
/// First bytes of every delta.
const MAGIC: [u8; 8] = *b"LVDelta\x1a";
/// Version of the format.
const VERSION: u32 = 1;
/// Where the header's checksum stands.
const CHECKSUM_AT: usize = 504;

/// What is known of the disk that a delta lies over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaseId {
    /// Its length in bytes.
    pub(super) len_bytes: u64,
    /// XXH3-64 of some of its blocks.
    pub(super) sample: u64,
}

/// Whether the contents hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// They do.
    Whole,
    /// A reset was begun: all of them are void.
    Resetting,
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) base: BaseId,
    /// The host's boot during which the live map was written.
    pub(super) boot_id: [u8; 16],
    pub(super) condition: Condition,
}

/// Why some bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Something else.
    #[error(
        "it is not a delta of LightV (its first bytes are others): name another file, or one that does not exist yet"
    )]
    Magic,
    /// Damaged.
    #[error("its header is damaged (checksum)")]
    Checksum,
    /// Another format.
    #[error(
        "it has format {0}, and this build reads format {VERSION}: use the LightV that wrote it"
    )]
    Version(u32),
    /// Right checksum, impossible contents.
    #[error("its header says what cannot be")]
    Contents,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let condition = match self.condition {
            Condition::Whole => 0_u32,
            Condition::Resetting => 1,
        };
        let fields = [
            &MAGIC[..],
            &VERSION.to_le_bytes(),
            &4096_u32.to_le_bytes(),
            &self.base.len_bytes.to_le_bytes(),
            &self.base.sample.to_le_bytes(),
            &self.boot_id,
            &condition.to_le_bytes(),
        ];
        let fields = fields.concat();
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
        let (covered, checksum) = bytes.split_at_mut(CHECKSUM_AT);
        checksum.copy_from_slice(&xxh3_64(covered).to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderFault> {
        let (covered, checksum) = bytes.split_at(CHECKSUM_AT);
        let mut fields = Fields(covered);
        if fields.take::<8>() != MAGIC {
            return Err(HeaderFault::Magic);
        }
        if xxh3_64(covered).to_le_bytes() != checksum {
            return Err(HeaderFault::Checksum);
        }
        let version = u32::from_le_bytes(fields.take());
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        let block_bytes = u32::from_le_bytes(fields.take());
        let base = BaseId {
            len_bytes: u64::from_le_bytes(fields.take()),
            sample: u64::from_le_bytes(fields.take()),
        };
        let boot_id = fields.take();
        let condition = match u32::from_le_bytes(fields.take()) {
            0 => Condition::Whole,
            1 => Condition::Resetting,
            _ => return Err(HeaderFault::Contents),
        };
        let is_possible = u64::from(block_bytes) == BLOCK_BYTES && fields.0.iter().all(|b| *b == 0);
        is_possible
            .then_some(Self {
                base,
                boot_id,
                condition,
            })
            .ok_or(HeaderFault::Contents)
    }
}

/// What of a header is not read yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let Some((field, rest)) = self.0.split_first_chunk::<BYTES>() else {
            return [0; BYTES];
        };
        self.0 = rest;
        *field
    }
}

/// Where everything lies, of a delta over a disk of `len_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) blocks: u64,
    pub(super) safe_at: u64,
    pub(super) live_at: u64,
    /// Bytes of each map.
    pub(super) map_bytes: u64,
    pub(super) data_at: u64,
    pub(super) file_bytes: u64,
}

impl Layout {
    /// `len_bytes` is bounded by [`OVERLAY_DISK_BYTES_MAX`](crate::limits::OVERLAY_DISK_BYTES_MAX): no sum wraps.
    pub(super) const fn of(len_bytes: u64) -> Self {
        let blocks = len_bytes.div_ceil(BLOCK_BYTES);
        let map_bytes = blocks.div_ceil(8).next_multiple_of(MAP_PAGE_BYTES);
        let safe_at = MAP_PAGE_BYTES;
        let live_at = safe_at + map_bytes;
        let data_at = live_at + map_bytes;
        Self {
            blocks,
            safe_at,
            live_at,
            map_bytes,
            data_at,
            file_bytes: data_at + blocks * BLOCK_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            base: BaseId {
                len_bytes: 0x0102_0304,
                sample: 7,
            },
            boot_id: *b"0123456789abcdef",
            condition: Condition::Whole,
        }
    }

    #[test]
    fn a_header_comes_back_and_damage_is_found() {
        let header = header();
        let bytes = header.encode();
        assert_eq!(&bytes[..16], b"LVDelta\x1a\x01\0\0\0\0\x10\0\0");
        assert_eq!(&bytes[16..24], &[4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(&bytes[32..48], b"0123456789abcdef");
        assert_eq!(Header::decode(&bytes), Ok(header));
        for at in 0..HEADER_BYTES {
            let mut bytes = bytes;
            bytes[at] ^= 1;
            let expected = if at < 8 {
                HeaderFault::Magic
            } else {
                HeaderFault::Checksum
            };
            assert_eq!(Header::decode(&bytes), Err(expected), "{at}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_right_checksum_too() {
        for (at, byte, expected) in [
            (8, 2, HeaderFault::Version(2)),
            (13, 8, HeaderFault::Contents),
            (48, 2, HeaderFault::Contents),
            (60, 1, HeaderFault::Contents),
        ] {
            let mut bytes = header().encode();
            bytes[at] = byte;
            let checksum = xxh3_64(&bytes[..CHECKSUM_AT]).to_le_bytes();
            bytes[CHECKSUM_AT..].copy_from_slice(&checksum);
            assert_eq!(Header::decode(&bytes), Err(expected), "{at}");
        }
    }

    #[test]
    fn nothing_overlaps() {
        for len_bytes in [512, 4096, 4097, 128 << 20, (128 << 20) + 1, 4 << 40] {
            let layout = Layout::of(len_bytes);
            assert!(layout.map_bytes * 8 >= layout.blocks);
            assert_eq!(layout.safe_at + layout.map_bytes, layout.live_at);
            assert_eq!(layout.live_at + layout.map_bytes, layout.data_at);
            assert!(layout.file_bytes - layout.data_at >= len_bytes);
        }
    }
}
