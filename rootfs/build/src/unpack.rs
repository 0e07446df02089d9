//! gzip and zstd, known by their first bytes, unpacked into files without a name.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::limits::UNPACKED_BYTES_MAX;
use crate::region::Region;

/// Why something could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The packed bytes.
    #[error("The {packing} data cannot be unpacked after {unpacked_bytes} bytes")]
    Data {
        /// gzip or zstd.
        packing: &'static str,
        /// How far it went.
        unpacked_bytes: u64,
        /// What the decoder says.
        #[source]
        cause: io::Error,
    },
    /// More than is accepted.
    #[error("The layers unpack to more than {} GiB", UNPACKED_BYTES_MAX >> 30)]
    Long,
    /// The temporary file.
    #[error("Cannot write a temporary file in {}", folder.display())]
    Spool {
        /// Where.
        folder: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The packed file.
    #[error("Cannot read it")]
    Read(#[source] io::Error),
}

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Packing {
    /// By the first bytes; a skippable frame of zstd may come first, as those of seekable formats do.
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Where unpacked data go, and how much more may come.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    bytes_left: u64,
}

impl Spool {
    /// Files without a name in `folder`: whatever happens, nothing is left.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            bytes_left: UNPACKED_BYTES_MAX,
        }
    }

    /// The same bytes, unpacked when they are packed.
    pub(crate) fn unpacked(&mut self, region: &Region) -> Result<Region, UnpackError> {
        let head = region.head::<4>().map_err(UnpackError::Read)?;
        let packed = BufReader::with_capacity(1 << 16, region.reader());
        match Packing::of(&head) {
            Packing::Plain => Ok(region.clone()),
            Packing::Gzip => self.fill(MultiGzDecoder::new(packed), Packing::Gzip),
            Packing::Zstd => {
                let decoder = zstd::Decoder::with_buffer(packed).map_err(UnpackError::Read)?;
                self.fill(decoder, Packing::Zstd)
            }
        }
    }

    fn fill(&mut self, mut data: impl Read, packing: Packing) -> Result<Region, UnpackError> {
        let spool_error = |cause| UnpackError::Spool {
            folder: self.folder.clone(),
            cause,
        };
        let mut file = tempfile::tempfile_in(&self.folder).map_err(spool_error)?;
        let mut buffer = vec![0; 1 << 16];
        let mut unpacked_bytes = 0;
        loop {
            let count = match data.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => {
                    return Err(UnpackError::Data {
                        packing: packing.name(),
                        unpacked_bytes,
                        cause,
                    });
                }
            };
            unpacked_bytes += count as u64;
            if unpacked_bytes > self.bytes_left {
                return Err(UnpackError::Long);
            }
            io::Write::write_all(&mut file, &buffer[..count]).map_err(spool_error)?;
        }
        self.bytes_left -= unpacked_bytes;
        Region::whole(file).map_err(spool_error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn region(bytes: &[u8]) -> Region {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        Region::whole(file).expect("a region")
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn unpack(bytes: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let unpacked = Spool::new(&std::env::temp_dir()).unpacked(&region(bytes))?;
        let mut found = Vec::new();
        unpacked.reader().read_to_end(&mut found).expect("readable");
        Ok(found)
    }

    #[test]
    fn packed_bytes_come_out_as_they_were() {
        let zstd = zstd::encode_all(&b"some text"[..], 1).expect("in memory");
        let members = [gzip(b"some "), gzip(b"text")].concat();
        for packed in [b"some text".to_vec(), gzip(b"some text"), members, zstd] {
            assert_eq!(unpack(&packed).expect("whole"), b"some text");
        }
    }

    #[test]
    fn truncated_data_are_refused() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for packed in [
            gzip(&text),
            zstd::encode_all(&text[..], 1).expect("in memory"),
        ] {
            let result = unpack(&packed[..packed.len() / 2]);
            assert!(
                matches!(result, Err(UnpackError::Data { .. })),
                "{result:?}"
            );
        }
    }

    #[test]
    fn what_unpacks_to_too_much_is_refused() {
        let mut spool = Spool::new(&std::env::temp_dir());
        spool.bytes_left = 10;
        let packed = region(&gzip(b"seven b"));
        assert!(spool.unpacked(&packed).is_ok());
        assert!(matches!(spool.unpacked(&packed), Err(UnpackError::Long)));
    }
}
