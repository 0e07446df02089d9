//! The background work of `server`: writes blocks for ever and reads earlier ones back.

use core::fmt;

use lightv_workloads::block::{self, Block};
use lightv_workloads::random::SplitMix64;

use crate::blk::{Disk, SECTOR_BYTES};
use crate::boot::to_usize;
use crate::eprintln;

/// What has been done so far.
#[derive(Clone, Copy, Default, Debug)]
pub struct DiskStats {
    blocks_written: u64,
    blocks_verified: u64,
    errors: u64,
    /// Over all blocks written, in order (`block::fold`).
    checksum: u64,
}

/// The job and its disk.
pub struct DiskJob {
    disk: &'static mut Disk,
    seed: u64,
    capacity_blocks: u64,
    random: SplitMix64,
    stats: DiskStats,
}

impl DiskJob {
    /// A job that writes the blocks of `seed`, round and round. `None` if not one block fits the disk.
    pub fn new(disk: &'static mut Disk, seed: u64) -> Option<Self> {
        let capacity_blocks = disk.capacity_sectors() / sectors(1);
        let random = SplitMix64::new(seed);
        let stats = DiskStats::default();
        (capacity_blocks > 0).then_some(Self {
            disk,
            seed,
            capacity_blocks,
            random,
            stats,
        })
    }

    /// What has been done so far.
    pub fn stats(&self) -> DiskStats {
        self.stats
    }

    /// Writes the next block, then verifies one of those that are on the disk.
    pub fn step(&mut self) {
        let next = self.stats.blocks_written;
        let mut data: Block = [0; block::BYTES];
        let sum = block::fill(&mut data, self.seed, next);
        if let Err(error) = self.disk.write(self.sector(next), &data) {
            self.fail(next, "write", &error);
            return;
        }
        self.stats.checksum = block::fold(self.stats.checksum, sum);
        self.stats.blocks_written += 1;

        let kept = self.stats.blocks_written.min(self.capacity_blocks);
        let number = next - self.random.below(kept);
        match self.disk.read(self.sector(number), &mut data) {
            Err(error) => self.fail(number, "read", &error),
            Ok(()) => match block::verify(&data, self.seed, number) {
                Ok(_) => self.stats.blocks_verified += 1,
                Err(fault) => self.fail(number, "verify", &as_debug(&fault)),
            },
        }
    }

    fn sector(&self, number: u64) -> usize {
        to_usize(sectors(number % self.capacity_blocks))
    }

    fn fail(&mut self, number: u64, what: &str, error: &dyn fmt::Display) {
        self.stats.errors += 1;
        eprintln!("disk error {what} block={number}: {error}");
    }
}

const fn sectors(blocks: u64) -> u64 {
    blocks * (block::BYTES / SECTOR_BYTES) as u64
}

fn as_debug(value: &impl fmt::Debug) -> impl fmt::Display {
    fmt::from_fn(move |f| value.fmt(f))
}

impl fmt::Display for DiskStats {
    /// As JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            blocks_written,
            blocks_verified,
            errors,
            checksum,
        } = self;
        writeln!(
            f,
            "{{\"blocks_written\":{blocks_written},\"blocks_verified\":{blocks_verified},\
             \"errors\":{errors},\"checksum\":\"{checksum:016x}\"}}"
        )
    }
}
