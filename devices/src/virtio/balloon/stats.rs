//! What a driver tells of its memory (virtio 1.2 §5.5.6.3).

use serde::{Deserialize, Serialize};

use crate::fault::GuestFault;
use crate::limits::BALLOON_STATS_PER_REPORT;
use crate::memory::GuestMem;
use crate::virtio::chain::{Segment, read_at, total_bytes};

/// Bytes of an entry: a tag of 16 bits and a value of 64, packed.
const ENTRY_BYTES: usize = 10;
const TAG_BYTES: usize = 2;
/// Tags from `VIRTIO_BALLOON_S_SWAP_IN` to Linux's `VIRTIO_BALLOON_S_DIRECT_RECLAIM` (include/uapi/linux/virtio_balloon.h).
pub(super) const TAGS: u16 = 16;

/// An entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatV1 {
    /// What it is: the `VIRTIO_BALLOON_S_…` of virtio 1.2 §5.5.6.3, and Linux's after them, below 16.
    pub tag: u16,
    /// How much.
    pub value: u64,
}

/// A report: by tag, so that a tag that comes twice counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report([Option<u64>; TAGS as usize]);

impl Report {
    /// The value of `tag`, if the driver has told it.
    #[must_use]
    pub fn get(&self, tag: u16) -> Option<u64> {
        self.0.get(usize::from(tag)).copied().flatten()
    }

    fn set(&mut self, stat: StatV1) -> bool {
        match self.0.get_mut(usize::from(stat.tag)) {
            Some(known) => {
                *known = Some(stat.value);
                true
            }
            None => false,
        }
    }

    /// Reads a report, and gives how many entries have unknown tags: a newer driver's. What comes after
    /// [`BALLOON_STATS_PER_REPORT`] entries is not looked at, nor is a part of an entry at the end.
    ///
    /// # Errors
    /// A buffer without an entry, or outside RAM.
    pub(super) fn read(mem: &GuestMem, buffer: &[Segment]) -> Result<(Self, u64), GuestFault> {
        let entries = usize::try_from(total_bytes(buffer)).unwrap_or(usize::MAX) / ENTRY_BYTES;
        let entries = entries.min(BALLOON_STATS_PER_REPORT);
        if entries == 0 {
            return Err(GuestFault::ShortChain);
        }
        let mut bytes = vec![0; entries * ENTRY_BYTES];
        read_at(mem, buffer, 0, &mut bytes)?;
        let mut report = Self::default();
        let mut unknown = 0_u64;
        for entry in bytes.as_chunks::<ENTRY_BYTES>().0 {
            let (tag, value) = entry.split_at(TAG_BYTES);
            let (Ok(tag), Ok(value)) = (tag.try_into(), value.try_into()) else {
                continue;
            };
            let (tag, value) = (u16::from_le_bytes(tag), u64::from_le_bytes(value));
            if !report.set(StatV1 { tag, value }) {
                unknown = unknown.saturating_add(1);
            }
        }
        Ok((report, unknown))
    }

    /// The saved form: what was told, in the order of the tags.
    pub(super) fn save(&self) -> Vec<StatV1> {
        let told = (0..TAGS).zip(&self.0);
        let stats = told.filter_map(|(tag, value)| value.map(|value| StatV1 { tag, value }));
        stats.collect()
    }

    /// The report of a saved form; `None` when no report can have been so.
    pub(super) fn restore(stats: &[StatV1]) -> Option<Self> {
        let mut report = Self::default();
        for stat in stats {
            if report.get(stat.tag).is_some() || !report.set(*stat) {
                return None;
            }
        }
        Some(report)
    }
}
