//! Guest memory as it was at one moment, given out to machines that begin from there: the other end of
//! [`crate::snapshot::served`], in a process beside the machine's (docs/adr/0022-live-snapshots.md).
//!
//! A machine that connects is greeted, and sends where its memory lies, and a userfaultfd. Who closes a connection without a word
//! says that one less will come. What it touches comes at once, with what lies around it; all else that was ever written follows when
//! it has become quiet, from the lowest address up. Then the machine is told that it has all and of no fault any more, and needs nobody.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, accept_with,
    recvmsg, send,
};
use serde::Deserialize;

use crate::limits;
use crate::memory::GuestRam;
use crate::memory_watch::{SERVES, WHOLE};
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
    /// The connection: it ends with the machine's process.
    stream: OwnedFd,
    came: Instant,
    /// When it was last sent what it has touched.
    touched: Instant,
    /// Up to here, in the memory file, it has all.
    filled: u64,
}

/// Who has something to say.
#[derive(Debug)]
struct Heard {
    listener: bool,
    clones: Vec<CloneSays>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloneSays {
    Nothing,
    /// It waits for a page.
    Touches,
    /// Its process has ended.
    Gone,
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
            let next = clones.iter().map(Clone::fills_at).min();
            let heard = listen(listener, &clones, next.unwrap_or(until))?;
            if clones.is_empty() && !heard.listener && Instant::now() >= until {
                return Ok(());
            }
            let mut says = heard.clones.into_iter();
            clones.retain_mut(|clone| {
                let says = says.next().unwrap_or(CloneSays::Nothing);
                self.serve(clone, says) == Progress::More
            });
            match heard.listener.then(|| self.accept(listener)) {
                Some(Guest::Clone(clone)) => {
                    clones.push(clone);
                    to_come = to_come.saturating_sub(1);
                    until = Instant::now() + wait;
                }
                Some(Guest::Cancels) => to_come = to_come.saturating_sub(1),
                Some(Guest::Stranger) | None => {}
            }
        }
        Ok(())
    }

    fn accept(&self, listener: &UnixListener) -> Guest {
        let Ok(stream) = accept_with(listener, SocketFlags::CLOEXEC) else {
            return Guest::Stranger;
        };
        // First of all: a machine that was not greeted does not know whose end is its own.
        say(&stream, SERVES);
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
        let now = Instant::now();
        Guest::Clone(Clone {
            faults: ForeignFaults::new(fd),
            regions,
            stream,
            came: now,
            touched: now,
            filled: 0,
        })
    }

    /// What it waits for; when it is time for that, a piece of the rest.
    fn serve(&self, clone: &mut Clone, says: CloneSays) -> Progress {
        let served = match says {
            CloneSays::Nothing => Ok(()),
            CloneSays::Touches => self.serve_faults(clone),
            CloneSays::Gone => return Progress::Gone,
        };
        match served {
            Ok(()) if Instant::now() >= clone.fills_at() => self.fill_more(clone),
            Ok(()) => Progress::More,
            Err(_) => Progress::Gone,
        }
    }

    fn serve_faults(&self, clone: &mut Clone) -> io::Result<()> {
        for _ in 0..limits::FROZEN_FAULTS_PER_TURN {
            let Some(address) = clone.faults.next()? else {
                break;
            };
            let Some(offset) = clone.offset_of(address) else {
                continue;
            };
            self.fill(clone, offset, PAGE)?;
            self.fill_around(clone, offset)?;
            clone.touched = Instant::now();
        }
        Ok(())
    }

    /// What lies beside a page that is there now: it will be touched soon, and would follow anyway.
    fn fill_around(&self, clone: &Clone, offset: u64) -> io::Result<()> {
        let begin = offset - offset % limits::FROZEN_AROUND_BYTES;
        let end = begin + limits::FROZEN_AROUND_BYTES;
        let most = limits::FROZEN_AROUND_BYTES / PAGE;
        for (mut at, end) in [(offset + PAGE, end), (begin, offset)] {
            while let Some((first, count)) = self.pages.next_held(at / PAGE..end / PAGE, most) {
                let done = self.fill(clone, first * PAGE, count * PAGE)?;
                at = first * PAGE + done.max(PAGE);
            }
        }
        Ok(())
    }

    fn fill_more(&self, clone: &mut Clone) -> Progress {
        let most = limits::FROZEN_CHUNK_BYTES / PAGE;
        let rest = self.pages.next_held(clone.filled / PAGE..u64::MAX, most);
        let Some((first, count)) = rest else {
            return match clone.let_go() {
                Ok(()) => {
                    say(&clone.stream, WHOLE);
                    Progress::Whole
                }
                Err(_) => Progress::Gone,
            };
        };
        match self.fill(clone, first * PAGE, count * PAGE) {
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
            // The kernel fills nothing that is not in one mapping, and memory that was given back there is another one: what lies
            // before it is still to be filled.
            Err(error) if bytes > PAGE && error.raw_os_error() == Some(libc::ENOENT) => {
                self.fill(clone, offset, PAGE)
            }
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
    /// From when on it is sent what it has not asked for. Until then it needs the processors itself, to come to run.
    fn fills_at(&self) -> Instant {
        let quiet = self.touched + Duration::from_millis(limits::FROZEN_QUIET_MS);
        quiet.min(self.came + Duration::from_millis(limits::FROZEN_HOLD_MS))
    }

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

/// Says a word to a machine. One that is gone does not hear it.
fn say(stream: &OwnedFd, word: u8) {
    let _ = send(stream, &[word], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// Waits until somebody has something to say, or until `until`.
fn listen(listener: &UnixListener, clones: &[Clone], until: Instant) -> io::Result<Heard> {
    let patience = until.saturating_duration_since(Instant::now());
    let patience = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
    for clone in clones {
        fds.push(PollFd::new(&clone.faults, PollFlags::IN));
        // Its end is told in any case.
        fds.push(PollFd::new(&clone.stream, PollFlags::empty()));
    }
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&patience)))?;
    let mut results = fds.iter().map(PollFd::revents);
    let listener = results.next().is_some_and(|found| !found.is_empty());
    let mut clones = Vec::with_capacity(clones.len());
    while let (Some(faults), Some(stream)) = (results.next(), results.next()) {
        clones.push(match (faults.is_empty(), stream.is_empty()) {
            (_, false) => CloneSays::Gone,
            (false, true) => CloneSays::Touches,
            (true, true) => CloneSays::Nothing,
        });
    }
    Ok(Heard { listener, clones })
}

/// The hand-shake.
fn receive(stream: &OwnedFd) -> Hello {
    let mut text = [0; limits::FROZEN_HELLO_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = match recvmsg(stream.as_fd(), &mut parts, &mut ancillary, flags) {
        Ok(message) => message,
        // Closed before the greeting was read.
        Err(Errno::CONNRESET) => return Hello::Nothing,
        Err(_) => return Hello::Nonsense,
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::sys::uffd::Userfault;

    /// A machine of one part, in this process.
    fn clone_of(ram: &GuestRam, userfault: &Userfault) -> Clone {
        let mapping = ram.parts()[0].mapping;
        let (stream, _machine) = UnixStream::pair().unwrap();
        Clone {
            faults: ForeignFaults::new(userfault.as_fd().try_clone_to_owned().unwrap()),
            regions: vec![Region {
                base_host_virt_addr: mapping.address() as u64,
                size: mapping.bytes() as u64,
                offset: 0,
            }],
            stream: stream.into(),
            came: Instant::now(),
            touched: Instant::now(),
            filled: 0,
        }
    }

    #[test]
    fn what_lies_beside_memory_that_a_clone_has_given_back_comes_too() {
        const PAGES: u64 = 64;
        let userfault = match Userfault::new() {
            // As machines that are served, it takes a privilege.
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => return,
            found => found.unwrap(),
        };
        let byte = |ram: &GuestRam, number: u64| -> u8 {
            let address = GuestAddress(number * PAGE + 5);
            ram.mem().read_obj(address).unwrap()
        };
        let target = GuestRam::allocate(1 << 20).unwrap();
        let mapping = target.parts()[0].mapping;
        userfault.register(&mapping).unwrap();
        mapping.replace(10 * PAGE_BYTES, 20 * PAGE_BYTES).unwrap();
        let source = GuestRam::allocate(1 << 20).unwrap();
        for number in 0..PAGES {
            let address = GuestAddress(number * PAGE + 5);
            source.mem().write_obj(7_u8, address).unwrap();
        }
        let mut clone = clone_of(&target, &userfault);
        let memory = FrozenMemory {
            ram: &source,
            pages: &PageKinds::read(&source).unwrap(),
        };
        // What lies around a page that is touched, and then the rest.
        memory.fill_around(&clone, 31 * PAGE).unwrap();
        while memory.fill_more(&mut clone) == Progress::More {}
        for number in 0..PAGES {
            let expected = if (10..30).contains(&number) { 0 } else { 7 };
            assert_eq!(byte(&target, number), expected, "page {number}");
        }
        assert_eq!(byte(&target, PAGES), 0, "the source has none");
    }
}
