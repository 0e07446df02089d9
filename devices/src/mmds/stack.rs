//! TCP for the service: smoltcp, with as many sockets as there are connections and a few that wait for more.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration as TcpDuration, Instant as TcpInstant};
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Cidr};

use super::connection::{Connection, Use};
use super::counters::count;
use super::link::Link;
use super::service::{Mmds, MmdsOptions};
use crate::limits::{
    MMDS_ANSWERS_BYTES_MAX, MMDS_CONNECTIONS_MAX, MMDS_FRAMES_WAITING_MAX, MMDS_LISTENERS,
    MMDS_SEND_BYTES, MMDS_SILENT_MS, MMDS_WINDOW_BYTES,
};
use crate::sys::random;

/// Where HTTP is.
const PORT: u16 = 80;

/// The stack of one interface.
pub(super) struct Stack {
    mmds: Mmds,
    options: MmdsOptions,
    began: Instant,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    /// The wire.
    pub(super) link: Link,
}

impl Stack {
    /// A stack without connections.
    pub(super) fn new(mmds: Mmds, options: MmdsOptions) -> Self {
        let mut link = Link::new(mmds.clone());
        let mut config = Config::new(HardwareAddress::Ip);
        let mut seed = [0; 8];
        // Without random bytes, the guest can guess numbers of its own connections.
        let _ = random::fill(&mut seed);
        config.random_seed = u64::from_le_bytes(seed);
        let mut interface = Interface::new(config, &mut link, TcpInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // Whatever addresses the guest has, they are on the other end of the wire. A fresh interface has room for one.
            let _ = addresses.push(everywhere(options.address));
        });
        Self {
            mmds,
            options,
            began: Instant::now(),
            interface,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            link,
        }
    }

    /// Takes a TCP segment with its IP header.
    pub(super) fn receive(&mut self, packet: &[u8], now: Instant) {
        self.listen(now);
        self.link.set_incoming(packet);
        let (at, sockets) = (self.tcp_time(now), &mut self.sockets);
        let _ = self
            .interface
            .poll_ingress_single(at, &mut self.link, sockets);
        let counters = self.mmds.counters();
        if self.link.drop_incoming() {
            count(&counters.rx_accepted_err);
        } else {
            count(&counters.rx_count);
        }
        self.note_begun();
    }

    /// Reads and answers requests, and makes frames of what is to be sent. True if anything was moved.
    pub(super) fn serve(&mut self, now: Instant) -> bool {
        let mut has_moved = false;
        let mut waiting_bytes: usize = self.connections.iter().map(Connection::waiting_bytes).sum();
        for connection in &mut self.connections {
            let before = connection.waiting_bytes();
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            let may_answer = waiting_bytes < MMDS_ANSWERS_BYTES_MAX;
            let service = (self.mmds.service(), &self.options);
            has_moved |= connection.serve(socket, service, may_answer, now);
            waiting_bytes = waiting_bytes
                .saturating_sub(before)
                .saturating_add(connection.waiting_bytes());
        }
        let at = self.tcp_time(now);
        // Each socket sends a segment, then each the next.
        for _ in 0..MMDS_FRAMES_WAITING_MAX {
            let sent = self
                .interface
                .poll_egress(at, &mut self.link, &mut self.sockets);
            if sent == PollResult::None {
                break;
            }
            has_moved = true;
        }
        self.forget_ended();
        has_moved
    }

    /// When it has to be served again at the latest, if nothing comes.
    pub(super) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let at = self.tcp_time(now);
        let delay = self.interface.poll_delay(at, &self.sockets)?;
        now.checked_add(Duration::from_micros(delay.total_micros()))
    }

    /// Bytes of answers that wait for their readers.
    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.connections.iter().map(Connection::waiting_bytes).sum()
    }

    /// Connections, and sockets that wait for some.
    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    fn tcp_time(&self, now: Instant) -> TcpInstant {
        let passed = now.saturating_duration_since(self.began).as_micros();
        TcpInstant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX))
    }

    /// Sees to it that sockets wait for connections. When there are as many as there can be, the one of least use gives way
    /// for the next.
    fn listen(&mut self, now: Instant) {
        let listening = self.connections.iter();
        let mut listening = listening.filter(|known| !known.is_begun).count();
        if listening == 0 && self.connections.len() >= MMDS_CONNECTIONS_MAX {
            self.give_way(now);
        }
        while listening < MMDS_LISTENERS && self.connections.len() < MMDS_CONNECTIONS_MAX {
            let mut socket = Socket::new(
                SocketBuffer::new(vec![0; MMDS_WINDOW_BYTES]),
                SocketBuffer::new(vec![0; MMDS_SEND_BYTES]),
            );
            socket.set_timeout(Some(TcpDuration::from_millis(MMDS_SILENT_MS)));
            // Answers are written whole, and an acknowledgement goes with them.
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            // The port is not 0, and the socket is new.
            let _ = socket.listen(PORT);
            let socket = self.sockets.add(socket);
            self.connections.push(Connection::new(socket, now));
            listening = listening.saturating_add(1);
        }
    }

    fn give_way(&mut self, now: Instant) {
        let uses = self.connections.iter().enumerate().map(|(place, known)| {
            let socket = self.sockets.get::<Socket<'_>>(known.socket);
            (known.usefulness(socket, now), place)
        });
        // Its client learns of it when it sends again.
        if let Some(((usefulness, _), place)) = uses.min()
            && usefulness != Use::Busy
        {
            self.forget(place);
        }
    }

    fn note_begun(&mut self) {
        for connection in self.connections.iter_mut().filter(|known| !known.is_begun) {
            let socket = self.sockets.get::<Socket<'_>>(connection.socket);
            if socket.state() != State::Listen {
                connection.is_begun = true;
                count(&self.mmds.counters().connections_created);
            }
        }
    }

    /// Lets go of connections that have said all that there was to say.
    fn forget_ended(&mut self) {
        // Unless the last words may still be waiting.
        if !self.link.has_room() {
            return;
        }
        for place in (0..self.connections.len()).rev() {
            let Some(connection) = self.connections.get(place) else {
                continue;
            };
            let socket = self.sockets.get::<Socket<'_>>(connection.socket);
            let has_ended = match socket.state() {
                // One that was broken off has an end of its own to send.
                State::Closed => socket.remote_endpoint().is_none(),
                State::TimeWait => true,
                // Reset while it was being opened: it listens again.
                State::Listen => connection.is_begun,
                _ => false,
            };
            if has_ended {
                self.forget(place);
            }
        }
    }

    fn forget(&mut self, place: usize) {
        let connection = self.connections.remove(place);
        let _ = self.sockets.remove(connection.socket);
        if connection.is_begun {
            count(&self.mmds.counters().connections_destroyed);
        }
    }
}

fn everywhere(address: Ipv4Addr) -> IpCidr {
    IpCidr::Ipv4(Ipv4Cidr::new(address, 0))
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("options", &self.options)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}
