//! A part of a file, read without moving the file's own position: contents stay where they are until they are written
//! into the image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// `len` bytes of `file` from `start` on, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    file: Arc<File>,
    start: u64,
    len: u64,
}

impl Region {
    /// The whole of `file` as long as it is now.
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            start: 0,
            len,
        })
    }

    /// Bytes of this region; `None` when it has not so many.
    pub(crate) fn part(&self, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self {
            file: Arc::clone(&self.file),
            start: self.start + start,
            len,
        })
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    pub(crate) const fn reader(&self) -> RegionReader<'_> {
        RegionReader {
            region: self,
            position: 0,
        }
    }

    /// The first bytes, at most `N`; zeros follow when there are fewer.
    pub(crate) fn head<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut head = [0; N];
        let mut reader = self.reader();
        let mut filled = 0;
        while filled < N {
            match reader.read(&mut head[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(head)
    }
}

/// Reads a region from its start.
#[derive(Debug)]
pub(crate) struct RegionReader<'a> {
    region: &'a Region,
    position: u64,
}

impl Read for RegionReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.region.len.saturating_sub(self.position);
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let at = self.region.start + self.position;
        let count = self.region.file.read_at(&mut buffer[..count], at)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for RegionReader<'_> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
            SeekFrom::End(distance) => self.region.len.checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
