//! From just before a process is spawned to the first byte that it gives out.

use std::fs::File;
use std::io::{self, Read as _};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A start that was measured, and how the process ended.
#[derive(Debug)]
pub(crate) struct Start {
    /// `None` when the process ended without a byte.
    pub(crate) first_byte: Option<Duration>,
    pub(crate) status: ExitStatus,
}

/// Spawns `command` (posix_spawn: nothing in it asks for more), blocks on its standard output, and waits for its end.
///
/// The pipe is made before the clock starts; standard error is ours. `Instant` is `CLOCK_MONOTONIC`.
pub(crate) fn measure(command: &mut Command) -> io::Result<Start> {
    let (mut reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::from(File::open("/dev/null")?))
        .stdout(Stdio::from(writer));
    let spawned_at = Instant::now();
    let mut child = command.spawn()?;
    // Closes our end of the pipe, so that a child that dies without a byte gives an end of file.
    command.stdout(Stdio::null());
    let mut byte = [0];
    let len = reader.read(&mut byte)?;
    let first_byte = (len > 0).then(|| spawned_at.elapsed());
    io::copy(&mut reader, &mut io::sink())?;
    Ok(Start {
        first_byte,
        status: child.wait()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_byte_is_timed_before_the_end() {
        let began = Instant::now();
        let start =
            measure(Command::new("sh").args(["-c", "echo a; sleep 0.5; exit 3"])).expect("sh");
        // However long it took until it came.
        let rest = began.elapsed() - start.first_byte.expect("a byte came");
        assert!(rest > Duration::from_millis(200), "{rest:?}");
        assert_eq!(start.status.code(), Some(3));
    }

    #[test]
    fn silent_process_has_no_first_byte() {
        let start = measure(&mut Command::new("true")).expect("true");
        assert_eq!(start.first_byte, None);
    }
}
