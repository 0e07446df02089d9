//! What devices count.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::histogram::Histogram;

/// Counters of one device: totals since it was made. Shared by the device, its register front and whoever reads them.
///
/// Relaxed additions: each counter is right, two of them read together need not belong to one moment.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes_to_guest: AtomicU64,
    pub(crate) bytes_from_guest: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) discards: AtomicU64,
    pub(crate) host_syncs: AtomicU64,
    pub(crate) frames_dropped_to_guest: AtomicU64,
    pub(crate) frames_dropped_from_guest: AtomicU64,
    pub(crate) connections_opened: AtomicU64,
    pub(crate) connections_closed: AtomicU64,
    pub(crate) connections_killed: AtomicU64,
    pub(crate) guest_faults: AtomicU64,
    pub(crate) host_faults: AtomicU64,
    pub(crate) last_host_errno: AtomicI32,
    pub(crate) needs_resets: AtomicU64,
    pub(crate) activations: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) ignored_accesses: AtomicU64,
    pub(crate) interrupts: AtomicU64,
    pub(crate) throttled_to_guest: AtomicU64,
    pub(crate) throttled_from_guest: AtomicU64,
    pub(crate) read_time: Histogram,
    pub(crate) write_time: Histogram,
    pub(crate) flush_time: Histogram,
    pub(crate) balloon: BalloonCounters,
}

/// What the balloon alone counts.
#[derive(Debug, Default)]
pub struct BalloonCounters {
    pub(crate) inflates: AtomicU64,
    pub(crate) deflates: AtomicU64,
    pub(crate) stats_updates: AtomicU64,
    pub(crate) stats_update_fails: AtomicU64,
    pub(crate) reports: AtomicU64,
    pub(crate) report_bytes: AtomicU64,
    pub(crate) report_fails: AtomicU64,
    pub(crate) hints: AtomicU64,
    pub(crate) hint_bytes: AtomicU64,
    pub(crate) hint_fails: AtomicU64,
}

/// [`BalloonCounters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonCountersSnapshot {
    /// Arrays of pages that went into the balloon.
    pub inflates: u64,
    /// Arrays of pages that came out.
    pub deflates: u64,
    /// Reports of statistics.
    pub stats_updates: u64,
    /// Reports that could not be read, and entries with unknown tags.
    pub stats_update_fails: u64,
    /// Stretches that were told to have become free.
    pub reports: u64,
    /// Bytes of them that were given back.
    pub report_bytes: u64,
    /// Those that were not given back.
    pub report_fails: u64,
    /// Stretches that were told to be free when the driver was asked.
    pub hints: u64,
    /// Bytes of them that were given back.
    pub hint_bytes: u64,
    /// Those that were not given back.
    pub hint_fails: u64,
}

impl BalloonCounters {
    /// Adds stretches of free memory, bytes of them, and those that were left out.
    pub(crate) fn add_free(
        (stretches, bytes, fails): (&AtomicU64, &AtomicU64, &AtomicU64),
        (count, freed, refused): (u64, u64, u64),
    ) {
        Counters::add(stretches, count);
        Counters::add(bytes, freed);
        Counters::add(fails, refused);
    }

    /// All of them now.
    #[must_use]
    pub fn snapshot(&self) -> BalloonCountersSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BalloonCountersSnapshot {
            inflates: load(&self.inflates),
            deflates: load(&self.deflates),
            stats_updates: load(&self.stats_updates),
            stats_update_fails: load(&self.stats_update_fails),
            reports: load(&self.reports),
            report_bytes: load(&self.report_bytes),
            report_fails: load(&self.report_fails),
            hints: load(&self.hints),
            hint_bytes: load(&self.hint_bytes),
            hint_fails: load(&self.hint_fails),
        }
    }
}

/// [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CountersSnapshot {
    /// Chains taken from queues, malformed ones included.
    pub requests: u64,
    /// Data bytes put into guest RAM.
    pub bytes_to_guest: u64,
    /// Data bytes taken from guest RAM.
    pub bytes_from_guest: u64,
    /// Disk reads, frames to the guest, or requests for random bytes that succeeded.
    pub reads: u64,
    /// Disk writes or frames from the guest that succeeded.
    pub writes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Discards and writes of zeroes that succeeded.
    pub discards: u64,
    /// Times the host's file was synced.
    pub host_syncs: u64,
    /// Frames for the guest that were dropped: no buffer was large enough.
    pub frames_dropped_to_guest: u64,
    /// Frames of the guest that were dropped: malformed, or the tap did not take them.
    pub frames_dropped_from_guest: u64,
    /// Connections that were made, or that a program of the host has asked the guest for.
    pub connections_opened: u64,
    /// Of them, those that are no more.
    pub connections_closed: u64,
    /// Of those, the ones that took too long, or whose guest broke the rules.
    pub connections_killed: u64,
    /// Mistakes of the guest.
    pub guest_faults: u64,
    /// Failures of the host.
    pub host_faults: u64,
    /// Error number of the last failure of the host, 0 if there was none.
    pub last_host_errno: i32,
    /// How often the device asked to be reset.
    pub needs_resets: u64,
    /// Times the driver started the device.
    pub activations: u64,
    /// Times the driver reset the device.
    pub resets: u64,
    /// Register accesses without meaning: wrong width, offset, or moment.
    pub ignored_accesses: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// How often frames for the guest had to wait for the rate limiter.
    pub throttled_to_guest: u64,
    /// How often the guest's requests or frames had to wait for the rate limiter.
    pub throttled_from_guest: u64,
}

impl Counters {
    pub(crate) fn add_one(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn guest_fault(&self) {
        Self::add_one(&self.guest_faults);
    }

    pub(crate) fn host_fault(&self, cause: &std::io::Error) {
        Self::add_one(&self.host_faults);
        self.last_host_errno
            .store(cause.raw_os_error().unwrap_or(0), Ordering::Relaxed);
    }

    /// How long the host took for disk reads.
    #[must_use]
    pub const fn read_time(&self) -> &Histogram {
        &self.read_time
    }

    /// How long the host took for disk writes, or to take a frame.
    #[must_use]
    pub const fn write_time(&self) -> &Histogram {
        &self.write_time
    }

    /// How long the host took for flushes.
    #[must_use]
    pub const fn flush_time(&self) -> &Histogram {
        &self.flush_time
    }

    /// What the balloon alone counts.
    #[must_use]
    pub const fn balloon(&self) -> &BalloonCounters {
        &self.balloon
    }

    /// All of them now.
    #[must_use]
    pub fn snapshot(&self) -> CountersSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountersSnapshot {
            requests: load(&self.requests),
            bytes_to_guest: load(&self.bytes_to_guest),
            bytes_from_guest: load(&self.bytes_from_guest),
            reads: load(&self.reads),
            writes: load(&self.writes),
            flushes: load(&self.flushes),
            discards: load(&self.discards),
            host_syncs: load(&self.host_syncs),
            frames_dropped_to_guest: load(&self.frames_dropped_to_guest),
            frames_dropped_from_guest: load(&self.frames_dropped_from_guest),
            connections_opened: load(&self.connections_opened),
            connections_closed: load(&self.connections_closed),
            connections_killed: load(&self.connections_killed),
            guest_faults: load(&self.guest_faults),
            host_faults: load(&self.host_faults),
            last_host_errno: self.last_host_errno.load(Ordering::Relaxed),
            needs_resets: load(&self.needs_resets),
            activations: load(&self.activations),
            resets: load(&self.resets),
            ignored_accesses: load(&self.ignored_accesses),
            interrupts: load(&self.interrupts),
            throttled_to_guest: load(&self.throttled_to_guest),
            throttled_from_guest: load(&self.throttled_from_guest),
        }
    }
}
