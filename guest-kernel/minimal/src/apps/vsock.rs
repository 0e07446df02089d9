//! `vsock [PORT [HOST_PORT BYTES]]`: echoes what clients of the host send to PORT; and sends a pattern to the host's
//! HOST_PORT first, of which it says what it is answered.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use virtio_drivers::device::socket::{
    ConnectionInfo, DisconnectReason, StreamShutdown, VMADDR_CID_HOST, VsockAddr, VsockEvent,
    VsockEventType,
};

use super::{Refusal, STATUS_FAILED};
use crate::machine::Machine;
use crate::vsock::Sockets;
use crate::{eprintln, println, shim, time};

const PORT: u64 = 7;
/// Our port of the connection to the host.
const SOURCE_PORT: u32 = 1024;
/// Bytes of a connection that are kept here: as many as the host may have under way.
const BUFFER_BYTES: u32 = 64 << 10;
/// Bytes of a packet.
const PIECE_BYTES: usize = 8192;
/// Ticks without a packet before the CPU sleeps: some 40 µs. What is polled for is taken from other machines of the host.
const POLL_TICKS: u64 = 100_000;

/// A connection.
struct Connection {
    info: ConnectionInfo,
    is_open: bool,
    /// What is to be sent.
    pending: VecDeque<u8>,
    /// The host sends no more.
    is_host_done: bool,
    /// The host knows that we are done.
    is_shut: bool,
    /// Bytes that have come in since the host was told of room.
    untold: u32,
    kind: Kind,
}

enum Kind {
    Echo,
    /// Sends so many bytes of the pattern, from this one on, and hears the answer.
    Pattern {
        sent: u64,
        bytes: u64,
        answer: Vec<u8>,
    },
}

/// Byte number `at` of the pattern: words of four bytes that count.
fn pattern(at: u64) -> u8 {
    let word = (at / 4).to_le_bytes();
    word[usize::from((at % 4).to_le_bytes()[0])]
}

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    let sockets = machine.devices.sockets.take();
    let sockets = sockets.ok_or(Refusal::NoDevice("socket"))?;
    sockets.sleep_while_sending();
    machine.ready();
    let usage = Refusal::Usage("[PORT [HOST_PORT BYTES]]");
    let (port, host_port) = (machine.number(0, PORT)?, machine.number(1, 0)?);
    let (Ok(port), Ok(host_port)) = (u32::try_from(port), u32::try_from(host_port)) else {
        return Err(usage);
    };
    let bytes = machine.number(2, 0)?;
    let mut server = Server {
        sockets,
        port,
        connections: Vec::new(),
    };
    println!(
        "vsock cid={} port={port}",
        server.sockets.driver.guest_cid()
    );
    if machine.args().nth(1).is_some() {
        server.connect(host_port, bytes);
    }
    let status = server.serve();
    eprintln!("vsock: the device failed");
    Ok(status)
}

struct Server {
    sockets: &'static mut Sockets,
    port: u32,
    connections: Vec<Connection>,
}

impl Server {
    fn connect(&mut self, host_port: u32, bytes: u64) {
        let host = VsockAddr {
            cid: VMADDR_CID_HOST,
            port: host_port,
        };
        let kind = Kind::Pattern {
            sent: 0,
            bytes,
            answer: Vec::new(),
        };
        let connection = Connection::new(host, SOURCE_PORT, kind);
        if self.sockets.driver.connect(&connection.info).is_ok() {
            self.connections.push(connection);
        }
    }

    /// For ever; comes back when the device does not do what it should.
    fn serve(&mut self) -> u8 {
        let mut moved_at = time::ticks();
        let mut is_acknowledged = false;
        loop {
            let mut has_moved = false;
            loop {
                match self.receive() {
                    Ok(true) => has_moved = true,
                    Ok(false) => break,
                    Err(error) => {
                        eprintln!("vsock: {error}");
                        return STATUS_FAILED;
                    }
                }
            }
            for connection in &mut self.connections {
                match connection.send(self.sockets) {
                    Ok(moved) => has_moved |= moved,
                    Err(error) => eprintln!("vsock: {error}"),
                }
            }
            if has_moved {
                moved_at = time::ticks();
                is_acknowledged = false;
            } else if is_acknowledged {
                is_acknowledged = false;
                shim::wait();
                moved_at = time::ticks();
            } else if time::ticks().saturating_sub(moved_at) >= POLL_TICKS {
                // One more round before it sleeps.
                self.sockets.acknowledge();
                is_acknowledged = true;
            }
        }
    }

    /// Takes a packet. False if there is none.
    fn receive(&mut self) -> Result<bool, virtio_drivers::Error> {
        let connections = &mut self.connections;
        let mut was_any = false;
        let event = self.sockets.driver.poll(|event, body| {
            was_any = true;
            if let Some(connection) = find(connections, &event) {
                connection.info.update_for_event(&event);
                connection.take(body);
            }
            Ok(Some(event))
        })?;
        if let Some(event) = event {
            self.react(&event)?;
        }
        Ok(was_any)
    }

    fn react(&mut self, event: &VsockEvent) -> Result<(), virtio_drivers::Error> {
        let driver = &mut self.sockets.driver;
        match event.event_type {
            VsockEventType::ConnectionRequest => {
                let port = event.destination.port;
                let mut new = Connection::new(event.source, port, Kind::Echo);
                new.info.update_for_event(event);
                if port != self.port {
                    return driver.force_close(&new.info);
                }
                driver.accept(&new.info)?;
                new.is_open = true;
                self.connections.push(new);
            }
            VsockEventType::Connected => {
                if let Some(connection) = find(&mut self.connections, event) {
                    connection.is_open = true;
                    println!("vsock connected to {}", event.source.port);
                }
            }
            VsockEventType::Disconnected {
                reason: DisconnectReason::Shutdown,
            } => {
                if let Some(connection) = find(&mut self.connections, event) {
                    connection.is_host_done = true;
                }
            }
            VsockEventType::Disconnected {
                reason: DisconnectReason::Reset,
            } => {
                if let Some(connection) = find(&mut self.connections, event) {
                    connection.say_end();
                }
                let source = event.source;
                let port = event.destination.port;
                let is_it = |info: &ConnectionInfo| info.dst == source && info.src_port == port;
                self.connections
                    .retain(|connection| !is_it(&connection.info));
            }
            VsockEventType::CreditRequest => {
                if let Some(connection) = find(&mut self.connections, event) {
                    driver.credit_update(&connection.info)?;
                }
            }
            VsockEventType::Received { .. } | VsockEventType::CreditUpdate => {}
        }
        Ok(())
    }
}

fn find<'a>(connections: &'a mut [Connection], event: &VsockEvent) -> Option<&'a mut Connection> {
    connections.iter_mut().find(|connection| {
        connection.info.dst == event.source && connection.info.src_port == event.destination.port
    })
}

impl Connection {
    fn new(host: VsockAddr, port: u32, kind: Kind) -> Self {
        let mut info = ConnectionInfo::new(host, port);
        info.buf_alloc = BUFFER_BYTES;
        Self {
            info,
            is_open: false,
            pending: VecDeque::new(),
            is_host_done: false,
            is_shut: false,
            untold: 0,
            kind,
        }
    }

    /// Bytes have come.
    fn take(&mut self, body: &[u8]) {
        match &mut self.kind {
            Kind::Echo => self.pending.extend(body),
            Kind::Pattern { answer, .. } => {
                answer.extend_from_slice(body);
                self.done(body.len());
            }
        }
    }

    /// So many bytes that came are kept no more.
    fn done(&mut self, bytes: usize) {
        self.info.done_forwarding(bytes);
        self.untold += u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// Sends what there is, as far as the host has room. True if anything was.
    fn send(&mut self, sockets: &mut Sockets) -> Result<bool, virtio_drivers::Error> {
        if !self.is_open || self.is_shut {
            return Ok(false);
        }
        self.fill();
        let driver = &mut sockets.driver;
        let piece: Vec<u8> = self.pending.iter().take(PIECE_BYTES).copied().collect();
        let mut has_moved = false;
        // Room is asked for by the driver when there is none.
        if !piece.is_empty() && driver.send(&piece, &mut self.info).is_ok() {
            has_moved = true;
            self.pending.drain(..piece.len());
            if matches!(self.kind, Kind::Echo) {
                self.info.done_forwarding(piece.len());
            }
            self.untold = 0;
        }
        if self.untold >= BUFFER_BYTES / 2 {
            self.untold = 0;
            driver.credit_update(&self.info)?;
        }
        if self.pending.is_empty() {
            has_moved |= self.end(sockets)?;
        }
        Ok(has_moved)
    }

    /// The next bytes of a pattern.
    fn fill(&mut self) {
        if let Kind::Pattern { sent, bytes, .. } = &mut self.kind
            && self.pending.is_empty()
        {
            let end = (*bytes).min(*sent + PIECE_BYTES as u64);
            self.pending.extend((*sent..end).map(pattern));
            *sent = end;
        }
    }

    /// Says that no more comes, when that is so.
    fn end(&mut self, sockets: &mut Sockets) -> Result<bool, virtio_drivers::Error> {
        let driver = &mut sockets.driver;
        match &mut self.kind {
            // All of the pattern is sent: now the host answers.
            Kind::Pattern { sent, bytes, .. } if sent == bytes && *bytes > 0 => {
                *bytes = 0;
                *sent = 0;
                driver.shutdown_with_hints(&self.info, StreamShutdown::SEND)?;
                Ok(true)
            }
            _ if self.is_host_done => {
                self.is_shut = true;
                driver.shutdown(&self.info)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn say_end(&self) {
        if let Kind::Pattern { answer, .. } = &self.kind {
            if self.is_open {
                let text = core::str::from_utf8(answer).unwrap_or("(no text)");
                println!("vsock answer: {}", text.trim_end());
            } else {
                println!("vsock refused at {}", self.info.dst.port);
            }
        }
    }
}
