//! What a guest prints, on its way out: to the standard streams, unbuffered.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::MachineConfig;
use crate::report;
use crate::sys::file::StandardStream;

/// A guest's way to a standard stream. Clones know of each other's losses.
#[derive(Debug, Clone)]
pub struct GuestOutput {
    stream: StandardStream,
    is_lost: Arc<AtomicBool>,
}

impl GuestOutput {
    /// The way to standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self {
            stream: StandardStream::Stdout,
            is_lost: Arc::default(),
        }
    }

    /// The same, to `stream`.
    #[must_use]
    pub fn to(&self, stream: StandardStream) -> Self {
        Self {
            stream,
            is_lost: Arc::clone(&self.is_lost),
        }
    }

    /// The serial port's part of it: standard output, or beside a console, which has that for the guest's programs,
    /// standard error.
    #[must_use]
    pub fn of_serial(&self, config: &MachineConfig) -> Self {
        if config.console() {
            self.to(StandardStream::Stderr)
        } else {
            self.clone()
        }
    }

    /// Whether output was lost that somebody wanted: a full disk, a failed device. A reader that went away wanted no more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// Output was lost for this reason.
    pub fn note(&self, cause: &io::Error) {
        let counts = !matches!(
            cause.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::Interrupted
        );
        if counts && !self.is_lost.swap(true, Ordering::Relaxed) {
            report::say(&format!(
                "cannot write the guest's output: {cause}; some of it is lost"
            ));
        }
    }
}

impl Write for GuestOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes);
        if let Err(cause) = &written {
            self.note(cause);
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
