//! A system call that a filter forbids: what is said of it, and how the process ends.
//!
//! ```text
//!   thread: forbidden call --SIGSYS--> says which, on standard error --> tells the loop, waits for it; then _exit
//!   loop:   Ending::Forbidden --> files that stand for the process go, log, metrics, events --> _exit
//! ```
//!
//! The loop's own forbidden call ends the process at once.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use lightv_api::exit;
use syscalls::Sysno;

use super::ThreadKind;
use crate::limits;
use crate::sys::file::StandardStream;
use crate::sys::process;
use crate::sys::signal::{self, KickTarget};
use crate::sys::sigsys::{self, ForbiddenCall};

/// A thread: its kind, and of a vCPU its number.
type Thread = (ThreadKind, Option<u8>);

thread_local! {
    /// This thread, once it is confined. Without a destructor, so that a signal handler may read it.
    static THREAD: Cell<Option<Thread>> = const { Cell::new(None) };
}

/// How many there were.
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// The last one, packed.
static LAST: AtomicU64 = AtomicU64::new(0);
/// The loop's thread.
static LOOP: OnceLock<KickTarget> = OnceLock::new();

/// Says who the calling thread is. The one of the loop is told of what others do.
pub(super) fn name_thread(kind: ThreadKind, number: Option<u8>) {
    THREAD.set(Some((kind, number)));
    if kind == ThreadKind::Control {
        let _ = LOOP.set(KickTarget::current_thread());
    }
}

/// Has forbidden calls end the process.
///
/// # Errors
/// The kernel's.
pub(super) fn catch() -> std::io::Result<()> {
    sigsys::catch(end)
}

/// Has the loop look whether the process can go on. May be called in a signal handler. False when it is the caller's to end the
/// process: it is the loop, or there is none yet.
pub fn tell_loop() -> bool {
    let is_loop = matches!(THREAD.get(), Some((ThreadKind::Control, _)));
    let target = LOOP.get().filter(|_| !is_loop);
    if let Some(target) = target {
        target.send(signal::cannot_go_on());
    }
    target.is_some()
}

/// How many forbidden calls there were.
#[must_use]
pub fn count() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// The last forbidden call in words, if there was one.
#[must_use]
pub fn last() -> Option<String> {
    let packed = LAST.load(Ordering::Acquire);
    (count() > 0).then(|| unpack(packed).to_string())
}

/// In a signal handler: nothing here allocates or takes a lock.
fn end(call: ForbiddenCall) -> ! {
    let violation = Violation {
        call,
        thread: THREAD.get(),
    };
    LAST.store(pack(violation), Ordering::Release);
    FAULTS.fetch_add(1, Ordering::Relaxed);
    let mut line = Line::default();
    // What does not fit is cut off.
    let _ = write!(line, "lightv-vmm: {violation}");
    let _ = StandardStream::Stderr.write_all(line.text());
    let _ = StandardStream::Stderr.write_all(b"\r\n");
    if tell_loop() {
        sigsys::sleep_in_handler(limits::VIOLATION_SERVED_MS);
    }
    process::exit_now(exit::FORBIDDEN_CALL)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Violation {
    call: ForbiddenCall,
    thread: Option<Thread>,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.thread {
            Some((kind, Some(number))) => write!(out, "thread '{}-{number}'", kind.name())?,
            Some((kind, None)) => write!(out, "thread '{}'", kind.name())?,
            None => out.write_str("a thread")?,
        }
        let ForbiddenCall { number, second } = self.call;
        let name = usize::try_from(number).ok().and_then(Sysno::new);
        let name = name.map_or("unknown", |name| name.name());
        write!(
            out,
            " made the system call {name} ({number}; second argument {second:#x}), which its filter does not allow; the process ends with status {} (docs/isolation.md)",
            exit::FORBIDDEN_CALL
        )
    }
}

/// Of a call that is none, of a thread without a number, and of none.
const NO_CALL: u16 = u16::MAX;
const NO_NUMBER: u8 = u8::MAX;
const NO_THREAD: u8 = u8::MAX;

/// From the top: call (16 bits), its second argument (32), number of the thread (8), its kind (8).
fn pack(violation: Violation) -> u64 {
    let call = u16::try_from(violation.call.number).unwrap_or(NO_CALL);
    let (kind, number) = violation.thread.map_or((NO_THREAD, NO_NUMBER), |thread| {
        (thread.0 as u8, thread.1.unwrap_or(NO_NUMBER))
    });
    (u64::from(call) << 48)
        | (u64::from(violation.call.second) << 16)
        | u64::from(u16::from_be_bytes([number, kind]))
}

fn unpack(packed: u64) -> Violation {
    let [call @ .., s3, s2, s1, s0, number, kind] = packed.to_be_bytes();
    let call = u16::from_be_bytes(call);
    let kind = ThreadKind::ALL
        .into_iter()
        .find(|found| *found as u8 == kind);
    Violation {
        call: ForbiddenCall {
            number: if call == NO_CALL { -1 } else { call.into() },
            second: u32::from_be_bytes([s3, s2, s1, s0]),
        },
        thread: kind.map(|kind| (kind, Some(number).filter(|number| *number != NO_NUMBER))),
    }
}

/// A text of limited length that needs no heap.
struct Line {
    bytes: [u8; Self::BYTES],
    used: usize,
}

impl Line {
    const BYTES: usize = 256;

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; Self::BYTES],
            used: 0,
        }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let space = self.bytes.get_mut(self.used..).unwrap_or_default();
        let count = text.len().min(space.len());
        for (place, byte) in space.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        self.used += count;
        if count == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_call_is_named_with_its_thread() {
        for (number, second, thread, expected) in [
            (
                257,
                0x7fff_1234,
                Some((ThreadKind::Vcpu, Some(3))),
                "thread 'vcpu-3' made the system call openat (257; second argument 0x7fff1234), which",
            ),
            (
                16,
                0xae01,
                Some((ThreadKind::ApiMachine, None)),
                "thread 'api-machine' made the system call ioctl (16; second argument 0xae01), which",
            ),
            (
                -1,
                0,
                None,
                "a thread made the system call unknown (-1; second argument 0x0), which",
            ),
        ] {
            let call = ForbiddenCall { number, second };
            let violation = Violation { call, thread };
            assert_eq!(unpack(pack(violation)), violation);
            let text = violation.to_string();
            assert!(text.starts_with(expected), "{text}");
            let mut line = Line::default();
            assert!(write!(line, "lightv-vmm: {text}").is_ok(), "{text}");
            assert!(line.text().ends_with(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_line_is_cut_off_at_its_end() {
        let mut line = Line::default();
        assert!(line.write_str(&"x".repeat(Line::BYTES + 1)).is_err());
        assert_eq!(line.text().len(), Line::BYTES);
    }
}
