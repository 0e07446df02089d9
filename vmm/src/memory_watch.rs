//! Whether the process that serves guest memory is still there.
//!
//! ```text
//!   lightv-fork:  accepts --SERVES--> serves, fills ... all pages are there --WHOLE--> ends
//!   thread here:  reads ------------------------------------------------------^ memory is the machine's own; ends
//!                   \--the connection ends before that--> tells the loop, waits for it; then _exit
//! ```
//!
//! A thread of its own, which touches no guest memory: the loop, a vCPU, or whoever builds the machine may be waiting for a page
//! that does not come. Firecracker's servers say nothing, and may end the connection when they like.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use lightv_api::exit;

use crate::limits;
use crate::memory::Served;
use crate::sandbox::violation;
use crate::sys::process;
use crate::{at_end, feed, report};

/// Said by a server that tells when all memory has come: until then its end is the machine's.
pub const SERVES: u8 = 1;
/// Said by it when all has come.
pub const WHOLE: u8 = 2;

/// Stack of the thread: at the end of the process it may have to take files away.
const STACK_BYTES: usize = 256 << 10;

/// Why a machine cannot go on.
#[derive(Debug, thiserror::Error)]
#[error(
    "The process that served guest memory (lightv-fork) has ended before all of it had come: the guest cannot go on. Fork or load the machine again"
)]
pub struct MemoryLost;

static IS_LOST: AtomicBool = AtomicBool::new(false);

/// Whether guest memory that is missing will not come any more: the process has to end.
#[must_use]
pub fn is_lost() -> bool {
    IS_LOST.load(Ordering::Acquire)
}

/// Watches the other end of `stream`, until `served` has all or is gone.
///
/// # Errors
/// The kernel's: no threads left.
pub fn start(stream: UnixStream, served: &Arc<Served>) -> io::Result<()> {
    let served = Arc::downgrade(served);
    let thread = thread::Builder::new()
        .name("memory-watch".into())
        .stack_size(STACK_BYTES);
    thread.spawn(move || watch(stream, &served)).map(drop)
}

fn watch(mut stream: UnixStream, served: &Weak<Served>) {
    let mut has_greeted = false;
    let mut word = [0];
    let is_lost = loop {
        match stream.read(&mut word) {
            Ok(1) if word == [SERVES] => has_greeted = true,
            Ok(1) if word == [WHOLE] => {
                if let Some(served) = served.upgrade() {
                    served.end();
                }
                return;
            }
            // Somebody else's word.
            Ok(1) => {}
            Ok(_) => break has_greeted,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            // What it was sent was never read, so whoever it was serves nothing.
            Err(cause) => break has_greeted || cause.kind() == io::ErrorKind::ConnectionReset,
        }
    };
    // A machine that could not be built waits for nothing.
    if is_lost && served.upgrade().is_some() {
        end_process();
    }
}

/// By the loop in good order, or, if it is waiting for a page itself, from here.
fn end_process() -> ! {
    IS_LOST.store(true, Ordering::Release);
    violation::tell_loop();
    thread::sleep(Duration::from_millis(limits::LOST_MEMORY_SERVED_MS));
    report::warn(&MemoryLost);
    feed::note_end(exit::MEMORY_LOST, || report::text_of(&MemoryLost));
    at_end::run();
    process::exit_now(exit::MEMORY_LOST)
}
