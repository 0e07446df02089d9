//! Features, configuration and queues of the balloon (virtio 1.2 §5.5.2–§5.5.4).

use std::ops::Range;

/// Feature bits (virtio 1.2 §5.5.3).
///
/// Not offered: `MUST_TELL_HOST`, since a page is there again when it is touched; `PAGE_POISON`, since then the device
/// would have to put the poison back. A Linux that poisons or clears free pages does not report them without it.
pub mod feature {
    /// The driver tells statistics of its memory.
    pub const STATS_VQ: u64 = 1 << 1;
    /// The driver may take pages back when it has none left.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The driver can be asked which pages are free.
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    /// The driver tells which pages have become free.
    pub const REPORTING: u64 = 1 << 5;
}

/// Fields of the configuration, 32 bits each (virtio 1.2 §5.5.4).
pub(super) mod field {
    /// `num_pages`: pages that are wanted.
    pub(in super::super) const NUM_PAGES: usize = 0;
    /// `actual`: pages that there are, as the driver tells.
    pub(in super::super) const ACTUAL: usize = 1;
    /// `free_page_hint_cmd_id`.
    pub(in super::super) const HINT_COMMAND: usize = 2;
}

/// Fields that the driver writes.
pub(super) const DRIVER_FIELDS: Range<usize> = field::ACTUAL..field::ACTUAL + 1;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueRole {
    /// Pages that go into the balloon.
    Inflate,
    /// Pages that come out.
    Deflate,
    /// Statistics.
    Stats,
    /// Commands and pages of free page hinting.
    Hinting,
    /// Pages that have become free.
    Reporting,
}

/// The queues of a device with `features`, offered or accepted, in the order of their indices.
///
/// Virtio 1.2 §5.5.2 numbers all five, whether they are there or not. Linux, and so QEMU and Firecracker, number those
/// that there are; drivers of all guests do what these expect.
pub fn queue_roles(features: u64) -> impl Iterator<Item = QueueRole> {
    let has = move |bit| features & bit != 0;
    let all = [
        (true, QueueRole::Inflate),
        (true, QueueRole::Deflate),
        (has(feature::STATS_VQ), QueueRole::Stats),
        (has(feature::FREE_PAGE_HINT), QueueRole::Hinting),
        (has(feature::REPORTING), QueueRole::Reporting),
    ];
    let there = all.into_iter().filter(|(is_there, _)| *is_there);
    there.map(|(_, role)| role)
}
