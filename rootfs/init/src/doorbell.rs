//! A program that says itself when it is ready: it reads a FIFO to its end. The agent opens the FIFO for writing, which
//! takes until somebody opens it for reading; saves the machine; and closes it, which is the end that the reader waits for.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Duration;

use lightv_contract::{AGENT_PATH, READY_HELPER, READY_PATH};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::end;
use crate::renew::Identity;

/// A reader that has looked the name up before it was replaced needs no longer to open the file.
const STRAGGLER: Duration = Duration::from_millis(100);

/// Makes the folder, and the helper in it, which is the agent under another name. `own` is the name that the kernel has
/// started it by.
pub fn offer_helper(own: Option<OsString>) {
    if let Some((folder, _)) = READY_PATH.rsplit_once('/') {
        let _ = fs::create_dir_all(folder);
    }
    let _ = symlink(own.unwrap_or_else(|| AGENT_PATH.into()), READY_HELPER);
}

/// What the helper does: it says that the program is ready, and nothing where there is nobody to say it to.
pub fn ring() {
    let _ = fs::read(READY_PATH);
}

/// Makes the FIFO. It must be there before the program is.
///
/// # Errors
/// When it cannot be made.
pub fn install() -> io::Result<()> {
    rustix::fs::mknodat(CWD, READY_PATH, FileType::Fifo, Mode::empty(), 0)?;
    // Not subject to the umask: whoever runs the program may say that it is ready.
    rustix::fs::chmod(READY_PATH, Mode::from_raw_mode(0o666))?;
    Ok(())
}

/// Waits for the program in a thread, so that the rest of the agent goes on.
///
/// # Errors
/// When there can be no thread.
pub fn answer(identity: Identity) -> io::Result<()> {
    let answer = move || {
        if let Err(error) = save_when_read(identity) {
            end::with_error(&error);
        }
    };
    thread::Builder::new()
        .name("doorbell".to_owned())
        .stack_size(64 << 10)
        .spawn(answer)?;
    Ok(())
}

fn save_when_read(mut identity: Identity) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(READY_PATH, flags, Mode::empty())?;
    let writer = File::options().write(true).open(READY_PATH)?;
    // Who reads later finds an empty file: nothing is saved twice, and nobody waits. Before the save, as what follows it is
    // part of every start.
    let empty = format!("{READY_PATH}.empty");
    File::create(&empty)?;
    fs::rename(&empty, READY_PATH)?;
    let is_restored = identity.ready_while_running()?;
    drop(writer);
    if is_restored {
        identity.announce();
    }
    thread::sleep(STRAGGLER);
    let again = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // ENXIO when there is no straggler, which is as good.
    let _ = rustix::fs::open(again, flags, Mode::empty());
    Ok(())
}
