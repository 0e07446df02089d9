//! Guest memory as it was at one moment, given out to machines that begin from there: the other end of
//! [`crate::snapshot::served`], in a process beside the machine's (docs/adr/0022-live-snapshots.md).
//!
//! A machine that connects sends where its memory lies, and a userfaultfd. Who closes a connection without a word says that one
//! less will come. What it touches comes at once; all else that was ever
//! written comes in between, from the lowest address up. Then the machine is told of no fault any more, and needs nobody.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, accept_with, recvmsg,
};
use serde::Deserialize;

use crate::limits;
use crate::memory::GuestRam;
use crate::snapshot::page_map::{Page, PageKinds};
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::uffd::ForeignFaults;

const PAGE: u64 = PAGE_BYTES as u64;

/// Memory that does not change any more.
#[derive(Debug)]
pub struct FrozenMemory<'a> {
    /// The memory.
    pub ram: &'a GuestRam,
    /// What its pages were.
    pub pages: &'a PageKinds,
}

/// A part of the memory of a machine that is filled, as it says.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Region {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
}

/// A machine that is being filled.
#[derive(Debug)]
struct Clone {
    faults: ForeignFaults,
    regions: Vec<Region>,
    /// Up to here, in the memory file, it has all.
    filled: u64,
}

/// Who has connected.
#[derive(Debug)]
enum Guest {
    /// A machine to be filled.
    Clone(Clone),
    /// Somebody who says that one machine less will come.
    Cancels,
    /// Somebody who sends nonsense, or nothing for a while: none of those who are waited for.
    Stranger,
}

/// What was sent.
#[derive(Debug)]
enum Hello {
    Machine(Vec<Region>, OwnedFd),
    /// The connection was closed without a word.
    Nothing,
    Nonsense,
}

/// How far a machine is.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Whole,
    /// Its process has ended.
    Gone,
}

impl FrozenMemory<'_> {
    /// Gives out the memory to `count` machines that connect to `listener`, and comes back when all have all of it, or are gone, or
    /// when nobody has come for [`limits::FROZEN_WAIT_MS`].
    ///
    /// # Errors
    /// The kernel's: no more can be waited for.
    pub fn give_out(&self, listener: &UnixListener, count: u32) -> io::Result<()> {
        let wait = Duration::from_millis(limits::FROZEN_WAIT_MS);
        let mut clones: Vec<Clone> = Vec::new();
        let (mut to_come, mut until) = (count, Instant::now() + wait);
        while to_come > 0 || !clones.is_empty() {
            let patience = match clones.is_empty() {
                true => until.saturating_duration_since(Instant::now()),
                // There is something to do in any case.
                false => Duration::ZERO,
            };
            let has_come = wait_for(listener, patience)?;
            if !has_come && clones.is_empty() {
                return Ok(());
            }
            match has_come.then(|| self.accept(listener)) {
                Some(Guest::Clone(clone)) => {
                    clones.push(clone);
                    to_come = to_come.saturating_sub(1);
                    until = Instant::now() + wait;
                }
                Some(Guest::Cancels) => to_come = to_come.saturating_sub(1),
                Some(Guest::Stranger) | None => {}
            }
            clones.retain_mut(|clone| self.serve(clone) == Progress::More);
        }
        Ok(())
    }

    fn accept(&self, listener: &UnixListener) -> Guest {
        let Ok(stream) = accept_with(listener, SocketFlags::CLOEXEC) else {
            return Guest::Stranger;
        };
        let patience = Timespec {
            tv_sec: limits::FROZEN_HELLO_S,
            tv_nsec: 0,
        };
        let mut ready = [PollFd::new(&stream, PollFlags::IN)];
        if !poll(&mut ready, Some(&patience)).is_ok_and(|count| count > 0) {
            return Guest::Stranger;
        }
        let (regions, fd) = match receive(&stream) {
            Hello::Machine(regions, fd) => (regions, fd),
            Hello::Nothing => return Guest::Cancels,
            Hello::Nonsense => return Guest::Stranger,
        };
        let is_inside = |region: &Region| {
            let end = region.offset.checked_add(region.size);
            let is_whole = region.offset.is_multiple_of(PAGE) && region.size.is_multiple_of(PAGE);
            is_whole && end.is_some_and(|end| end <= self.ram.bytes())
        };
        if !regions.iter().all(is_inside) {
            return Guest::Stranger;
        }
        Guest::Clone(Clone {
            faults: ForeignFaults::new(fd),
            regions,
            filled: 0,
        })
    }

    /// What it waits for, then a piece of the rest.
    fn serve(&self, clone: &mut Clone) -> Progress {
        for _ in 0..limits::FROZEN_FAULTS_PER_TURN {
            match clone.faults.next() {
                Ok(Some(address)) => {
                    let Some(offset) = clone.offset_of(address) else {
                        continue;
                    };
                    if self.fill(clone, offset, PAGE).is_err() {
                        return Progress::Gone;
                    }
                }
                Ok(None) => break,
                Err(_) => return Progress::Gone,
            }
        }
        self.fill_more(clone)
    }

    fn fill_more(&self, clone: &mut Clone) -> Progress {
        let rest = self.pages.next_held(clone.filled / PAGE);
        let Some((first, count)) = rest else {
            return match clone.let_go() {
                Ok(()) => Progress::Whole,
                Err(_) => Progress::Gone,
            };
        };
        let bytes = (count * PAGE).min(limits::FROZEN_CHUNK_BYTES);
        match self.fill(clone, first * PAGE, bytes) {
            Ok(done) => {
                clone.filled = first * PAGE + done.max(PAGE);
                Progress::More
            }
            Err(_) => Progress::Gone,
        }
    }

    /// Fills up to `bytes` at `offset` of the memory file; gives how many. What is there already, or is the machine's own by now,
    /// stays.
    fn fill(&self, clone: &Clone, offset: u64, bytes: u64) -> io::Result<u64> {
        let Some((address, room)) = clone.address_of(offset) else {
            return Ok(bytes);
        };
        let Some((part, place, room_here)) = self.locate(offset) else {
            return Ok(bytes);
        };
        let bytes = bytes.min(room).min(room_here);
        let length = usize::try_from(bytes).unwrap_or(PAGE_BYTES);
        let done = match self.pages.kind(offset / PAGE) {
            Page::Own | Page::View => clone.faults.copy(address, &part, (place, length)),
            Page::Absent | Page::GivenBack => clone.faults.zero(address, bytes),
        };
        match done {
            Err(error) if is_there(&error) => Ok(0),
            other => other,
        }
    }

    /// Where the byte at `offset` of the memory file lies here, and how much there is from there on.
    fn locate(&self, offset: u64) -> Option<(crate::sys::mapping::Mapping, usize, u64)> {
        let mut begin = 0;
        for part in self.ram.parts() {
            let bytes = part.mapping.bytes() as u64;
            if (begin..begin + bytes).contains(&offset) {
                let place = usize::try_from(offset - begin).ok()?;
                return Some((part.mapping, place, begin + bytes - offset));
            }
            begin += bytes;
        }
        None
    }
}

/// Nothing has to be done: the page is there, nobody waits for it any more, or the mapping is about to change.
fn is_there(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EEXIST | libc::ENOENT | libc::EAGAIN)
    )
}

impl Clone {
    /// Where in the memory file the page of `address` there is.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let found = self.regions.iter().find_map(|region| {
            let inside = address.checked_sub(region.base_host_virt_addr)?;
            (inside < region.size).then(|| region.offset + inside)
        });
        found.map(|offset| offset - offset % PAGE)
    }

    /// Where the byte at `offset` of the memory file is there, and how much of it.
    fn address_of(&self, offset: u64) -> Option<(u64, u64)> {
        self.regions.iter().find_map(|region| {
            let inside = offset.checked_sub(region.offset)?;
            let address = region.base_host_virt_addr.checked_add(inside)?;
            (inside < region.size).then(|| (address, region.size - inside))
        })
    }

    fn let_go(&self) -> io::Result<()> {
        let mut regions = self.regions.iter();
        regions.try_for_each(|region| {
            let (address, bytes) = (region.base_host_virt_addr, region.size);
            self.faults.let_go(address, bytes)
        })
    }
}

fn wait_for(listener: &UnixListener, patience: Duration) -> io::Result<bool> {
    let patience = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    let count = rustix::io::retry_on_intr(|| poll(&mut ready, Some(&patience)))?;
    Ok(count > 0)
}

/// The hand-shake.
fn receive(stream: &OwnedFd) -> Hello {
    let mut text = [0; limits::FROZEN_HELLO_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let Ok(message) = recvmsg(stream.as_fd(), &mut parts, &mut ancillary, flags) else {
        return Hello::Nonsense;
    };
    if message.bytes == 0 {
        return Hello::Nothing;
    }
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let bytes = text.get(..message.bytes).unwrap_or_default();
    // A text that was cut off is none.
    match (fd, serde_json::from_slice(bytes)) {
        // It is not waited for, whatever it is.
        (Some(fd), Ok(regions)) if rustix::io::ioctl_fionbio(&fd, true).is_ok() => {
            Hello::Machine(regions, fd)
        }
        _ => Hello::Nonsense,
    }
}
