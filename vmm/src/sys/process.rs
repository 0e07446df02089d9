//! What the process takes away from itself, and what it knows of itself.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::OnceLock;

use rustix::process::Resource;

/// No privileges gained by exec from here on (PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// The kernel's.
pub fn set_no_new_privileges() -> io::Result<()> {
    // SAFETY: integers only.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Names the calling thread, and with the main thread the process.
pub fn set_name(name: &CStr) {
    // SAFETY: `name` is a NUL-terminated string that lives over the call; the kernel copies 16 bytes at most of it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// No core file: a crash must not write what the guest held to the host's disk.
///
/// # Errors
/// The kernel's.
pub fn forbid_core_files() -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is initialised.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

static PAGE_MAP: OnceLock<File> = OnceLock::new();

/// Keeps other processes of the same user from reading or changing this one's memory (PR_SET_DUMPABLE), and the kernel from
/// writing it down. What `/proc` says of it belongs to root then, but for what is said to all, and but for this process.
///
/// # Errors
/// The kernel's.
pub fn forbid_dumps() -> io::Result<()> {
    // The only file of its own that a process could not open any more. Without it a save fails, and says so.
    if let Ok(file) = File::open("/proc/self/pagemap") {
        let _ = PAGE_MAP.set(file);
    }
    forbid_dumps_of_template()
}

/// The same for a process that has no machine of its own: its page map is nobody's business.
///
/// # Errors
/// The kernel's.
pub fn forbid_dumps_of_template() -> io::Result<()> {
    // SAFETY: integers only.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The page map of this process (proc_pid_pagemap(5)).
///
/// # Errors
/// The kernel's.
pub fn page_map() -> io::Result<File> {
    match PAGE_MAP.get() {
        Some(file) => file.try_clone(),
        None => File::open("/proc/self/pagemap"),
    }
}

/// Lets the process have `count` descriptors, as far as the host lets it; never fewer than it may have already.
pub fn allow_files(count: u64) {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    let now = limit.current.unwrap_or(u64::MAX);
    let wanted = limit.maximum.map_or(count, |maximum| count.min(maximum));
    if now < wanted {
        limit.current = Some(wanted);
        // It stays as it is, and is told of when it is reached.
        let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    }
}

/// Keeps the C library from making a heap for every thread: each would reserve 64 MiB of address space and touch
/// pages of its own, and the threads here allocate next to nothing.
pub fn use_one_heap() {
    // SAFETY: integers only; called before there is a second thread. A refusal costs memory, nothing else.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

unsafe extern "C" {
    /// First byte of the program in memory, and the first after its code: defined by the linker.
    static __executable_start: u8;
    static etext: u8;
}

/// Takes the program's code and constants out of this process's page tables. They stay in the page cache, and what is
/// used again comes back by a fault: of nearly 2 MiB that a start maps, an idle VM needs a tenth.
pub fn give_back_code() {
    let start = (&raw const __executable_start).addr();
    let pages = ((&raw const etext).addr() - start) & !(super::mapping::PAGE_BYTES - 1);
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the linker lays constants and code, mapped read-only from the program's file, between the two symbols;
    // such pages are read from the file again (it cannot be written while it runs), and nothing of them is lost.
    unsafe { libc::madvise(start, pages, libc::MADV_DONTNEED) };
}

/// Page faults of this process so far, with and without the host reading a file.
#[must_use]
pub fn page_faults() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` has room for what the kernel writes, and lives over the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: zeroes are a value of it, and the kernel writes nothing but numbers.
    let usage = unsafe { usage.assume_init() };
    let count = usage.ru_minflt.saturating_add(usage.ru_majflt);
    u64::try_from(count).unwrap_or(0)
}

/// Gives whole pages of the heap that hold nothing any more back to the host.
pub fn give_back_heap() {
    // SAFETY: integers only; the allocator takes its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// CLOCK_MONOTONIC in nanoseconds, in which other processes of the host stamp their starts.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Processor time of this process in microseconds.
#[must_use]
pub fn cpu_us() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID) / 1000
}

/// CLOCK_REALTIME in nanoseconds since 1970.
#[must_use]
pub fn wall_clock_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the write; all clocks of ours exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// Fills `buffer` with random bytes of the host.
///
/// # Errors
/// The kernel's.
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is valid for a write of its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(bytes) => done += bytes,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Memory of the host in bytes.
#[must_use]
pub fn host_memory_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    u64::try_from(pages)
        .unwrap_or(0)
        .saturating_mul(super::mapping::PAGE_BYTES as u64)
}

/// A process that [`fork`] has made, or is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// We are the new one.
    Child,
    /// We are the old one; the new one has this process id, above 0.
    Parent(i32),
}

/// `EBUSY` when there are more threads than the calling one.
fn ensure_one_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() == 1 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }
}

/// Makes a second process that goes on from here. For a process with one thread.
///
/// # Errors
/// The kernel's; `EBUSY` when there are more threads, which would be missing in the new process with all they hold.
pub fn fork() -> io::Result<Forked> {
    ensure_one_thread()?;
    // SAFETY: this is the only thread (counted above, and no other could start one), so no lock is held in the new process
    // by a thread that is not in it.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Ok(Forked::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process that [`fork_sibling`] has made, or is.
#[derive(Debug)]
pub enum Sibling {
    /// We are the new one.
    New,
    /// We are the old one.
    Made {
        /// Process id of the new one.
        pid: u32,
        /// It, for as long as this is held.
        pidfd: OwnedFd,
    },
}

/// Makes a second process that goes on from here and is a child of our parent, not ours (CLONE_PARENT): the parent waits for
/// it. For a process with one thread.
///
/// The C library does not know of it: what it would have done is to set right its locks, which nobody holds, and the number of
/// the main thread that it keeps for mutexes which one thread may lock twice. That stays the old one's, which is no number of
/// another thread as long as the old process lives, and is asked for by nothing of ours.
///
/// # Errors
/// The kernel's; `EBUSY` when there are more threads, which would be missing in the new process with all they hold.
pub fn fork_sibling() -> io::Result<Sibling> {
    ensure_one_thread()?;
    let mut pidfd: libc::c_int = -1;
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: no memory is shared with the new process (no CLONE_VM), which goes on with copies of this stack and of all else;
    // this is the only thread, so no lock is held there by a thread that is not in it. `pidfd` is valid for the write.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match pid {
        0 => Ok(Sibling::New),
        pid if pid > 0 => {
            // SAFETY: the kernel has made it for us, and nobody else has its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = u32::try_from(pid).unwrap_or(0);
            Ok(Sibling::Made { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the process open what `/proc` says of itself once more, until [`forbid_dumps`] forbids it. For a process that is the
/// copy of one in which it was forbidden.
///
/// # Errors
/// The kernel's.
pub fn allow_dumps() -> io::Result<()> {
    // SAFETY: integers only.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Asks the kernel for `signal` when the parent's thread that made this process is gone.
///
/// # Errors
/// The kernel's.
pub fn signal_when_parent_ends(signal: libc::c_int) -> io::Result<()> {
    let signal = libc::c_ulong::try_from(signal).unwrap_or(0);
    // SAFETY: integers only.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ends the process at once with `status`: no destructors, no waiting for threads that are in the guest.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit has no preconditions. Output of ours is unbuffered.
    unsafe { libc::_exit(i32::from(status)) }
}
