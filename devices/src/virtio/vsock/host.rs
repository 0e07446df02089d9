//! The host's side: its listening socket, clients that have just come, and all connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::counters::Counters;
use crate::fault::HostOperation;
use crate::limits::{
    VSOCK_ACCEPTED_PER_TURN, VSOCK_CONNECTIONS_MAX, VSOCK_FINISH_MS, VSOCK_FINISH_STEP_MS,
    VSOCK_GREETINGS_MAX, VSOCK_REPLIES_MAX, VSOCK_TICK_MS,
};
use crate::virtio::vsock::connection::{Connection, Fate};
use crate::virtio::vsock::greeting::{Greeting, Heard};
use crate::virtio::vsock::packet::{HOST_CID, Header, Pair, op, socket_type};
use crate::virtio::vsock::slots::Slots;
use crate::virtio::vsock::state::{HOST_PORTS, STATE_CONNECTIONS_MAX};
use crate::virtio::vsock::watch::{Registration, Token, Watch};

/// A failure of the host, with what was tried.
pub(super) type Failure = (HostOperation, io::Error);

/// An RST for a connection that there is none of, or none of any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// Whom the guest had addressed.
    pub(super) cid: u64,
    pub(super) pair: Pair,
    pub(super) socket_type: u16,
}

impl Reply {
    /// To a packet of the guest.
    pub(super) const fn to(header: &Header) -> Self {
        Self {
            cid: header.dst_cid,
            pair: header.pair(),
            socket_type: header.socket_type,
        }
    }

    /// For a stream between guest and host.
    pub(super) const fn of(pair: Pair) -> Self {
        Self {
            cid: HOST_CID,
            pair,
            socket_type: socket_type::STREAM,
        }
    }
}

/// A connection in its slot.
#[derive(Debug)]
struct Entry {
    connection: Connection,
    registration: Registration,
    /// It stands in [`Host::queue`].
    is_queued: bool,
}

/// The host's side.
#[derive(Debug)]
pub(super) struct Host {
    guest_cid: u32,
    /// Where the listening socket is; the names of the sockets to which the guest connects begin with it.
    path: PathBuf,
    listener: UnixListener,
    listening: Registration,
    /// Clients are let in.
    is_open: bool,
    /// The host had no descriptors left: clients wait until the next tick.
    is_starved: bool,
    greetings: Slots<Greeting>,
    connections: Slots<Entry>,
    /// Slots of connections that the guest knows, or is to learn of.
    known: BTreeMap<Pair, usize>,
    /// Slots of connections that may have a packet for the guest, each once, in turn.
    queue: VecDeque<usize>,
    replies: VecDeque<Reply>,
    next_port: u32,
    watch: Watch,
    is_ticking: bool,
    /// The operator knows that there are too many connections.
    is_limit_told: bool,
    counters: Arc<Counters>,
}

impl Host {
    pub(super) fn new(
        guest_cid: u32,
        path: &Path,
        listener: UnixListener,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            guest_cid,
            path: path.to_owned(),
            listener,
            listening: Registration::default(),
            is_open: false,
            is_starved: false,
            greetings: Slots::new(VSOCK_GREETINGS_MAX),
            connections: Slots::new(VSOCK_CONNECTIONS_MAX),
            known: BTreeMap::new(),
            queue: VecDeque::new(),
            replies: VecDeque::new(),
            next_port: *HOST_PORTS.start(),
            watch: Watch::new()?,
            is_ticking: false,
            is_limit_told: false,
            counters,
        })
    }

    pub(super) const fn guest_cid(&self) -> u32 {
        self.guest_cid
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Has [`serve`](Self::serve) called once more.
    pub(super) fn ring(&self) {
        self.watch.ring();
    }

    pub(super) const fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on with the ports of a machine that was saved, whose connections have ended: the guest is told of each.
    pub(super) fn take_over(&mut self, next_port: u32, ended: impl Iterator<Item = Pair>) {
        self.next_port = next_port;
        self.replies.extend(ended.map(Reply::of));
    }

    /// All that the guest knows, or may believe to have, as far as a saved state has room for it.
    pub(super) fn pairs(&self) -> Vec<Pair> {
        let replies = self.replies.iter().filter(|reply| reply.cid == HOST_CID);
        let known = self.known.keys().copied();
        let all: BTreeSet<Pair> = known.chain(replies.map(|reply| reply.pair)).collect();
        all.into_iter().take(STATE_CONNECTIONS_MAX).collect()
    }

    /// Lets clients in, or leaves them waiting.
    pub(super) fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
        self.update_listening();
    }

    /// Time has not passed while the machine stood still.
    pub(super) fn restart_clocks(&mut self) {
        let now = Instant::now();
        for greeting in self.greetings.iter_mut() {
            greeting.restart_clock(now);
        }
        for entry in self.connections.iter_mut() {
            entry.connection.restart_clock(now);
        }
        self.keep_ticking();
    }

    /// The driver has gone, and with it all that the guest knew.
    pub(super) fn forget_guest(&mut self) {
        self.replies.clear();
        let known: Vec<usize> = std::mem::take(&mut self.known).into_values().collect();
        for slot in known {
            self.remove(slot);
        }
    }

    /// Whether the guest is to be heard no further before it has taken what it was answered.
    pub(super) fn is_full(&self) -> bool {
        self.replies.len() >= VSOCK_REPLIES_MAX
    }

    /// Answers `header` with RST, unless it is one.
    pub(super) fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.replies.push_back(Reply::to(header));
        }
    }

    /// Takes a packet of the guest for the host. False if it broke the rules.
    pub(super) fn take(
        &mut self,
        header: &Header,
        payload: Option<&[u8]>,
    ) -> Result<bool, Failure> {
        let pair = header.pair();
        let Some(slot) = self.known.get(&pair).copied() else {
            return match header.op {
                op::REQUEST => self.connect(header),
                _ => {
                    self.refuse(header);
                    Ok(true)
                }
            };
        };
        let Some(entry) = self.connections.get_mut(slot) else {
            return Ok(true);
        };
        match entry.connection.take(header, payload) {
            Fate::Stays => {
                self.settle(slot);
                Ok(true)
            }
            Fate::Closed => {
                self.refuse(header);
                self.close(slot);
                Ok(true)
            }
            Fate::Gone => {
                entry.connection.flush();
                self.remove(slot);
                Ok(true)
            }
            Fate::Broken => {
                self.break_off(slot);
                Ok(false)
            }
        }
    }

    /// The guest asks for a connection.
    fn connect(&mut self, request: &Header) -> Result<bool, Failure> {
        let pair = request.pair();
        // An answer to an older connection of these ports would end this one.
        self.replies.retain(|reply| reply.pair != pair);
        if self.connections.is_full() {
            self.refuse(request);
            return self.tell_limit().map_or(Ok(true), Err);
        }
        let stream = match self.connect_host(pair.host) {
            Ok(stream) => stream,
            Err(cause) => {
                self.refuse(request);
                // Who is not there refuses; only what the host lacks is its failure.
                return match cause {
                    Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => {
                        Err((HostOperation::OpenConnection, cause.into()))
                    }
                    _ => Ok(true),
                };
            }
        };
        let connection = Connection::accepted(stream, request);
        self.add(connection, Registration::default());
        Ok(true)
    }

    /// Connects to the socket for `port`: `<path>_<port>`.
    fn connect_host(&self, port: u32) -> rustix::io::Result<OwnedFd> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(Path::new(&path))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        Ok(socket)
    }

    /// That there are too many connections, said once until there are fewer.
    fn tell_limit(&mut self) -> Option<Failure> {
        if std::mem::replace(&mut self.is_limit_told, true) {
            return None;
        }
        let text = format!("all {VSOCK_CONNECTIONS_MAX} connections are in use");
        Some((HostOperation::OpenConnection, io::Error::other(text)))
    }

    /// Adds one; `registration` is that of its socket.
    fn add(&mut self, connection: Connection, registration: Registration) {
        let pair = connection.pair;
        let entry = Entry {
            connection,
            registration,
            is_queued: false,
        };
        // Dropped when there is no room, which the caller has looked for.
        if let Ok(slot) = self.connections.insert(entry) {
            Counters::add_one(&self.counters.connections_opened);
            self.known.insert(pair, slot);
            self.settle(slot);
        }
    }

    fn remove(&mut self, slot: usize) {
        let Some(entry) = self.connections.remove(slot) else {
            return;
        };
        Counters::add_one(&self.counters.connections_closed);
        self.is_limit_told = false;
        if self.known.get(&entry.connection.pair) == Some(&slot) {
            self.known.remove(&entry.connection.pair);
        }
        if entry.is_queued {
            self.queue.retain(|queued| *queued != slot);
        }
    }

    /// The guest has closed it and forgets it; the host may have bytes to take.
    fn close(&mut self, slot: usize) {
        let Some(entry) = self.connections.get_mut(slot) else {
            return;
        };
        self.known.remove(&entry.connection.pair);
        if entry.connection.drain(Instant::now()) {
            self.settle(slot);
        } else {
            self.remove(slot);
        }
    }

    /// Ends it on both sides at once.
    fn break_off(&mut self, slot: usize) {
        if let Some(entry) = self.connections.get_mut(slot) {
            Counters::add_one(&self.counters.connections_killed);
            let pair = entry.connection.pair;
            if entry.connection.is_known_to_guest() {
                self.replies.push_back(Reply::of(pair));
            }
            self.remove(slot);
        }
    }

    /// After any change: has it watched for what it waits for, and served if it has something for the guest.
    fn settle(&mut self, slot: usize) {
        let Some(entry) = self.connections.get_mut(slot) else {
            return;
        };
        let connection = &entry.connection;
        if connection.is_draining() && !connection.has_bytes_for_host() {
            return self.remove(slot);
        }
        if connection.has_for_guest() && !entry.is_queued {
            entry.is_queued = true;
            self.queue.push_back(slot);
        }
        let has_deadline = connection.deadline().is_some();
        let watched = self.watch.set(
            connection.stream.as_fd(),
            Token::Connection(slot),
            &mut entry.registration,
            connection.wanted_events(),
        );
        if watched.is_err() {
            self.break_off(slot);
        } else if has_deadline {
            self.keep_ticking();
        }
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_for_guest(&self) -> bool {
        !self.replies.is_empty() || !self.queue.is_empty()
    }

    /// The next packet for the guest, with the bytes after its header in `target`: as many as its length says.
    pub(super) fn next_for_guest(&mut self, target: &mut [u8]) -> Option<Header> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(Header {
                src_cid: reply.cid,
                socket_type: reply.socket_type,
                op: op::RST,
                ..self.header_for(reply.pair)
            });
        }
        let now = Instant::now();
        // Each once: one that has nothing after all does not hold the others up.
        for _ in 0..self.queue.len() {
            let slot = self.queue.pop_front()?;
            let Some(entry) = self.connections.get_mut(slot) else {
                continue;
            };
            entry.is_queued = false;
            let pair = entry.connection.pair;
            let Some(outgoing) = entry.connection.next_for_guest(target, now) else {
                self.settle(slot);
                continue;
            };
            let mut header = Header {
                len: u32::try_from(outgoing.len).unwrap_or(0),
                op: outgoing.op,
                flags: outgoing.flags,
                ..Header::default()
            };
            entry.connection.tell_credit(&mut header);
            let header = Header {
                len: header.len,
                op: header.op,
                flags: header.flags,
                buf_alloc: header.buf_alloc,
                fwd_cnt: header.fwd_cnt,
                ..self.header_for(pair)
            };
            self.settle(slot);
            return Some(header);
        }
        None
    }

    fn header_for(&self, pair: Pair) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: u64::from(self.guest_cid),
            src_port: pair.host,
            dst_port: pair.guest,
            socket_type: socket_type::STREAM,
            ..Header::default()
        }
    }

    /// Serves what is ready on the host's side, up to the limit of a turn.
    pub(super) fn serve(&mut self) -> Result<(), Failure> {
        let ready = self.watch.take();
        let ready = ready.map_err(|cause| (HostOperation::WatchStreams, cause))?;
        let mut result = Ok(());
        // It may break off a connection whose place another one takes at once: what has happened is of the one before.
        let ticks = ready.iter().any(|(token, _)| *token == Token::Tick);
        for (token, events) in ready {
            let served = match token {
                Token::Listener => {
                    self.listening.fired();
                    self.accept()
                }
                Token::Greeting(slot) => self.listen(slot),
                Token::Connection(slot) => {
                    self.fired(slot, events);
                    Ok(())
                }
                Token::Tick | Token::More => Ok(()),
            };
            result = result.and(served);
        }
        if ticks {
            self.tick();
        }
        self.update_listening();
        result
    }

    fn fired(&mut self, slot: usize, events: EventFlags) {
        if let Some(entry) = self.connections.get_mut(slot) {
            entry.registration.fired();
            entry.connection.fired(events);
            self.settle(slot);
        }
    }

    /// Lets clients in that wait, so many as there is room for.
    fn accept(&mut self) -> Result<(), Failure> {
        for _ in 0..VSOCK_ACCEPTED_PER_TURN {
            if !self.is_open || self.greetings.is_full() {
                break;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(stream) => {
                    let greeting = Greeting::new(stream, Instant::now());
                    if let Ok(slot) = self.greetings.insert(greeting) {
                        self.keep_ticking();
                        // What it says may be there already.
                        self.listen(slot)?;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(cause) => {
                    self.is_starved = true;
                    self.keep_ticking();
                    return Err((HostOperation::AcceptConnection, cause.into()));
                }
            }
        }
        Ok(())
    }

    /// A client has said something, or has gone.
    fn listen(&mut self, slot: usize) -> Result<(), Failure> {
        let Some(greeting) = self.greetings.get_mut(slot) else {
            return Ok(());
        };
        greeting.registration.fired();
        let port = match greeting.listen() {
            Heard::Part => {
                let watched = self.watch.set(
                    greeting.stream.as_fd(),
                    Token::Greeting(slot),
                    &mut greeting.registration,
                    Some(EventFlags::IN),
                );
                if watched.is_err() {
                    self.greetings.remove(slot);
                }
                return Ok(());
            }
            Heard::Port(port) => Some(port),
            Heard::Nothing => None,
        };
        let (Some(greeting), Some(guest)) = (self.greetings.remove(slot), port) else {
            return Ok(());
        };
        if self.connections.is_full() {
            return self.tell_limit().map_or(Ok(()), Err);
        }
        let Greeting {
            stream,
            registration,
            ..
        } = greeting;
        let host = self.free_port(guest);
        let connection = Connection::asked(Pair { guest, host }, stream, Instant::now());
        self.add(connection, registration);
        Ok(())
    }

    /// A port of the host that has no connection with `guest`: of more ports than there can be connections.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = match host.checked_add(1) {
                Some(next) if HOST_PORTS.contains(&next) => next,
                _ => *HOST_PORTS.start(),
            };
            if !self.known.contains_key(&Pair { guest, host }) {
                return host;
            }
        }
    }

    fn update_listening(&mut self) {
        let is_wanted = self.is_open && !self.is_starved && !self.greetings.is_full();
        let wanted = is_wanted.then_some(EventFlags::IN);
        let listening = &mut self.listening;
        let fd = self.listener.as_fd();
        if self
            .watch
            .set(fd, Token::Listener, listening, wanted)
            .is_err()
        {
            self.is_starved = true;
            self.keep_ticking();
        }
    }

    /// Has time looked at once more.
    pub(super) fn keep_ticking(&mut self) {
        if !self.is_ticking {
            self.is_ticking = true;
            self.watch.tick_after(Duration::from_millis(VSOCK_TICK_MS));
        }
    }

    /// Ends what has taken too long.
    fn tick(&mut self) {
        self.is_ticking = false;
        self.is_starved = false;
        let now = Instant::now();
        let late = self.greetings.iter();
        let late: Vec<usize> = late
            .filter(|(_, greeting)| greeting.deadline <= now)
            .map(|(slot, _)| slot)
            .collect();
        for slot in late {
            self.greetings.remove(slot);
        }
        let late = self.connections.iter();
        let late: Vec<usize> = late
            .filter(|(_, entry)| {
                let deadline = entry.connection.deadline();
                deadline.is_some_and(|deadline| deadline <= now)
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in late {
            self.break_off(slot);
        }
        let has_deadline = |(_, entry): (usize, &Entry)| entry.connection.deadline().is_some();
        let is_any = self.connections.iter().any(has_deadline);
        if is_any || !self.greetings.is_empty() {
            self.keep_ticking();
        }
    }

    /// Gives the host what it takes at once.
    pub(super) fn flush(&mut self) {
        for entry in self.connections.iter_mut() {
            if entry.connection.has_bytes_for_host() {
                entry.connection.flush();
            }
        }
    }

    /// Gives the host all that it has not taken, waiting for it until `gives_up` and not for long.
    pub(super) fn flush_last(&mut self, gives_up: &dyn Fn() -> bool) {
        let until = Instant::now() + Duration::from_millis(VSOCK_FINISH_MS);
        loop {
            self.flush();
            let entries = self.connections.iter();
            let slow = entries.filter(|(_, entry)| entry.connection.has_bytes_for_host());
            let mut fds: Vec<PollFd<'_>> = slow
                .map(|(_, entry)| PollFd::new(&entry.connection.stream, PollFlags::OUT))
                .collect();
            if fds.is_empty() || gives_up() || Instant::now() >= until {
                return;
            }
            let step = Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(VSOCK_FINISH_STEP_MS) * 1_000_000,
            };
            let _ = poll(&mut fds, Some(&step));
        }
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
