//! Where the guest's serial port goes, if not to a standard stream: a file or FIFO, at a rate that can be limited.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lightv_api::contract::limiter::TokenBucket;
use lightv_api::contract::serial::SerialSpec;

use crate::lock::lock;
use crate::sink::LineSink;

/// The way out. Clones are the same.
#[derive(Debug, Clone)]
pub struct SerialOut(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sink: Option<Mutex<LineSink>>,
    bucket: Option<Mutex<Bucket>>,
    /// Bytes over the limit, and those that a full FIFO or disk did not take.
    dropped: AtomicU64,
}

impl SerialOut {
    /// Opens what `spec` names.
    ///
    /// # Errors
    /// The kernel's, and for what is neither a file nor a FIFO.
    pub fn open(spec: &SerialSpec) -> io::Result<Self> {
        let sink = spec.serial_out_path.as_deref().map(LineSink::open);
        Ok(Self(Arc::new(Shared {
            sink: sink.transpose()?.map(Mutex::new),
            bucket: spec.rate_limiter.and_then(Bucket::new).map(Mutex::new),
            dropped: AtomicU64::new(0),
        })))
    }

    /// Bytes that were left out.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// A writer of the serial port: into the file, or else into `other`. Never fails: what is left out is counted.
    pub fn writer(&self, other: impl io::Write + Send + 'static) -> Box<dyn io::Write + Send> {
        Box::new(Writer {
            out: self.clone(),
            other: Box::new(other),
        })
    }
}

struct Writer {
    out: SerialOut,
    other: Box<dyn io::Write + Send>,
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = &self.out.0;
        let is_allowed = shared
            .bucket
            .as_ref()
            .is_none_or(|bucket| lock(bucket).take(bytes.len() as u64));
        let is_written = is_allowed
            && match &shared.sink {
                Some(sink) => lock(sink).write(bytes),
                None => self.other.write_all(bytes).is_ok(),
            };
        if !is_written {
            shared
                .dropped
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tokens for bytes: `size` of them come back evenly in `refill`, and `burst` more are there once.
#[derive(Debug)]
struct Bucket {
    size: u64,
    refill: Duration,
    tokens: u64,
    burst: u64,
    /// When tokens came last.
    at: Instant,
}

impl Bucket {
    /// `None` when nothing is limited: size or time is 0.
    fn new(spec: TokenBucket) -> Option<Self> {
        (spec.size > 0 && spec.refill_time > 0).then(|| Self {
            size: spec.size,
            refill: Duration::from_millis(spec.refill_time),
            tokens: spec.size,
            burst: spec.one_time_burst.unwrap_or(0),
            at: Instant::now(),
        })
    }

    fn take(&mut self, bytes: u64) -> bool {
        self.refill_at(Instant::now());
        let of_burst = bytes.min(self.burst);
        let rest = bytes - of_burst;
        if rest > self.tokens {
            return false;
        }
        self.burst -= of_burst;
        self.tokens -= rest;
        true
    }

    fn refill_at(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        let whole = self.refill.as_nanos();
        let new = u128::from(self.size).saturating_mul(passed) / whole.max(1);
        let new = u64::try_from(new).unwrap_or(u64::MAX);
        // Less than one token stays on the clock.
        if new > 0 {
            self.tokens = self.tokens.saturating_add(new).min(self.size);
            self.at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_size_and_its_burst_and_fills_up_again() {
        let spec = TokenBucket {
            size: 10,
            refill_time: 1000,
            one_time_burst: Some(5),
        };
        let mut bucket = Bucket::new(spec).unwrap();
        let start = bucket.at;
        assert!(bucket.take(12) && bucket.take(3) && !bucket.take(1));
        bucket.refill_at(start + Duration::from_millis(500));
        assert_eq!(bucket.tokens, 5);
        bucket.refill_at(start + Duration::from_secs(100));
        assert_eq!(bucket.tokens, 10);
        assert!(Bucket::new(TokenBucket { size: 0, ..spec }).is_none());
    }

    #[test]
    fn what_is_over_the_limit_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial");
        let out = SerialOut::open(&SerialSpec {
            serial_out_path: Some(path.clone()),
            rate_limiter: Some(TokenBucket {
                size: 3,
                refill_time: 1_000_000,
                one_time_burst: None,
            }),
        })
        .unwrap();
        let mut writer = out.writer(io::sink());
        for byte in *b"abcde" {
            assert_eq!(writer.write(&[byte]).unwrap(), 1);
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        assert_eq!(out.dropped(), 2);
    }
}
