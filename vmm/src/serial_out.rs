//! Where the guest's serial port goes, if not to a standard stream: a file or FIFO, at a rate that can be limited.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lightv_api::contract::limiter::RateLimiter;
use lightv_api::contract::serial::SerialSpec;
use lightv_devices::limiter::Limiter;

use crate::config::limiter;
use crate::lock::lock;
use crate::sink::LineSink;

/// The way out. Clones are the same.
#[derive(Debug, Clone)]
pub struct SerialOut(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sink: Option<Mutex<LineSink>>,
    limiter: Option<Mutex<Limiter>>,
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
            limiter: spec.rate_limiter.map(|bandwidth| {
                Mutex::new(Limiter::new(limiter::options(Some(RateLimiter {
                    bandwidth: Some(bandwidth),
                    ops: None,
                }))))
            }),
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
        let is_allowed = shared.limiter.as_ref().is_none_or(|limiter| {
            let mut limiter = lock(limiter);
            let is_allowed = !limiter.is_blocked();
            if is_allowed {
                limiter.charge(bytes.len() as u64);
            }
            is_allowed
        });
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

#[cfg(test)]
mod tests {
    use lightv_api::contract::limiter::TokenBucket;

    use super::*;

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
