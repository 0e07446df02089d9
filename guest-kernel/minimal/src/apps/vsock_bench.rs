//! `vsock-bench`: one end of a measurement of vsock; the other is a program of the host that listens.

use alloc::vec;
use alloc::vec::Vec;

use lightv_workloads::network::{COUNT_BYTES, Count, PIECE_BYTES};
use virtio_drivers::device::socket::{
    ConnectionInfo, DisconnectReason, SocketError, StreamShutdown, VMADDR_CID_HOST, VsockAddr,
    VsockEvent, VsockEventType,
};

use super::{Refusal, STATUS_FAILED, STATUS_OK};
use crate::boot::to_usize;
use crate::machine::{BadNumber, Epoch, Machine};
use crate::vsock::Sockets;
use crate::{apic, eprintln, println, shim, time};

const USAGE: &str = "vsock-bench send|receive|answer|connect PORT MS BYTES";
/// Bytes that the host may have under way: as many as Linux allows by default.
const BUFFER_BYTES: u32 = 256 << 10;
/// Our port of the first connection; each has the next one.
const SOURCE_PORT: u32 = 1024;
const NS_PER_MS: u64 = 1_000_000;
/// Without any packet for so long, the host's end is gone.
const SILENCE_NS: u64 = 10_000 * NS_PER_MS;
/// So long is looked for packets before the CPU sleeps.
const POLL_NS: u64 = 40_000;

struct Run {
    mode: &'static str,
    port: u32,
    ns: u64,
    bytes: usize,
}

/// Why there is no result.
enum Gone {
    /// The host has closed or refused the connection.
    Closed,
    /// It has said nothing for [`SILENCE_NS`].
    Silent,
    /// The device does not do what it should.
    Device(virtio_drivers::Error),
}

impl From<virtio_drivers::Error> for Gone {
    fn from(error: virtio_drivers::Error) -> Self {
        Self::Device(error)
    }
}

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    let sockets = machine.devices.sockets.take();
    let sockets = sockets.ok_or(Refusal::NoDevice("socket"))?;
    time::init();
    let mut epoch = Epoch::now();
    machine.ready();
    epoch.changed();
    let run = read_args(machine)?;
    let done = match run.mode {
        "connect" => connects(sockets, &run),
        mode => Stream::connect(sockets, run.port, SOURCE_PORT).and_then(|stream| match mode {
            "send" => stream.send(&run),
            "receive" => stream.receive(),
            _ => stream.answer(),
        }),
    };
    match done {
        Ok(Count { bytes, ns }) => {
            println!("bytes={bytes} ns={ns}");
            return Ok(STATUS_OK);
        }
        Err(Gone::Closed) => eprintln!("vsock-bench error: {} closed the connection", run.port),
        Err(Gone::Silent) => eprintln!("vsock-bench error: {} says nothing any more", run.port),
        Err(Gone::Device(error)) => eprintln!("vsock-bench error: the device: {error}"),
    }
    Ok(STATUS_FAILED)
}

fn read_args(machine: &Machine) -> Result<Run, Refusal> {
    let mut args = machine.args();
    let usage = || Refusal::Usage(USAGE);
    let mode = args.next().ok_or_else(usage)?;
    let mut number = || -> Result<u64, Refusal> {
        let text = args.next().ok_or_else(usage)?;
        Ok(text.parse().map_err(|_| BadNumber(text))?)
    };
    let (port, ms, bytes) = (number()?, number()?, to_usize(number()?));
    let is_known = ["send", "receive", "answer", "connect"].contains(&mode);
    let port = u32::try_from(port).map_err(|_| usage())?;
    if !is_known || bytes == 0 || bytes > PIECE_BYTES {
        return Err(usage());
    }
    Ok(Run {
        mode,
        port,
        ns: ms.saturating_mul(NS_PER_MS),
        bytes,
    })
}

/// Opens connections and closes them, one after the other, two at least: what the host measures is the time between them. What
/// is counted are connections.
fn connects(sockets: &'static mut Sockets, run: &Run) -> Result<Count, Gone> {
    let start_ns = time::now_ns();
    let mut count = Count::default();
    let mut sockets = Some(sockets);
    let mut port = SOURCE_PORT;
    while count.bytes < 2 || count.ns < run.ns {
        let taken = sockets.take().ok_or(Gone::Closed)?;
        let stream = Stream::connect(taken, run.port, port)?;
        sockets = Some(stream.finish()?);
        count.add(1, start_ns, time::now_ns());
        // Another each time: the host may still have the last one.
        port = port.wrapping_add(1).max(SOURCE_PORT);
    }
    Ok(count)
}

/// A connection.
struct Stream {
    sockets: &'static mut Sockets,
    info: ConnectionInfo,
    is_open: bool,
    /// The host sends no more.
    is_host_done: bool,
    is_gone: bool,
    /// What has come and was not taken.
    received: Vec<u8>,
    /// Bytes that were taken since the host was told of room.
    untold: u32,
    /// Bytes that were sent, modulo 2^32.
    sent: u32,
    /// Bytes of ours that the host can keep, as it has said last.
    host_bytes: u32,
    /// Bytes that it has passed on, modulo 2^32.
    host_forwarded: u32,
    heard_ns: u64,
}

impl Stream {
    fn connect(sockets: &'static mut Sockets, port: u32, our_port: u32) -> Result<Self, Gone> {
        let host = VsockAddr {
            cid: VMADDR_CID_HOST,
            port,
        };
        let mut info = ConnectionInfo::new(host, our_port);
        info.buf_alloc = BUFFER_BYTES;
        sockets.driver.connect(&info)?;
        // Wakes a sleep that no packet ends; a connection that is measured for longer hears of the host all the time.
        apic::arm_timer(SILENCE_NS);
        let mut stream = Self {
            sockets,
            info,
            is_open: false,
            is_host_done: false,
            is_gone: false,
            received: Vec::with_capacity(BUFFER_BYTES as usize),
            untold: 0,
            sent: 0,
            host_bytes: 0,
            host_forwarded: 0,
            heard_ns: time::now_ns(),
        };
        while !stream.is_open {
            stream.wait()?;
        }
        Ok(stream)
    }

    /// Takes all packets that are there. True if there was any.
    fn poll(&mut self) -> Result<bool, Gone> {
        let mut was_any = false;
        loop {
            let Self {
                sockets,
                info,
                received,
                ..
            } = &mut *self;
            let event = sockets.driver.poll(|event, body| {
                let is_ours = event.source == info.dst && event.destination.port == info.src_port;
                if is_ours {
                    info.update_for_event(&event);
                    received.extend_from_slice(body);
                }
                Ok(is_ours.then_some(event))
            })?;
            let Some(event) = event else {
                break;
            };
            was_any = true;
            self.react(&event)?;
        }
        if was_any {
            self.heard_ns = time::now_ns();
        }
        Ok(was_any)
    }

    fn react(&mut self, event: &VsockEvent) -> Result<(), Gone> {
        self.host_bytes = event.buffer_status.buffer_allocation;
        self.host_forwarded = event.buffer_status.forward_count;
        match event.event_type {
            VsockEventType::Connected => self.is_open = true,
            VsockEventType::Disconnected {
                reason: DisconnectReason::Shutdown,
            } => self.is_host_done = true,
            VsockEventType::Disconnected {
                reason: DisconnectReason::Reset,
            } => {
                self.is_gone = true;
                self.is_host_done = true;
            }
            VsockEventType::CreditRequest => self.sockets.driver.credit_update(&self.info)?,
            VsockEventType::ConnectionRequest
            | VsockEventType::Received { .. }
            | VsockEventType::CreditUpdate => {}
        }
        Ok(())
    }

    /// Waits for a packet, and takes it.
    fn wait(&mut self) -> Result<(), Gone> {
        let start_ns = time::now_ns();
        while time::now_ns() - start_ns < POLL_NS {
            if self.poll()? {
                return self.still_there();
            }
            core::hint::spin_loop();
        }
        // Acknowledge before looking once more: an interrupt from now on ends the sleep.
        self.sockets.acknowledge();
        if !self.poll()? {
            shim::wait();
            self.poll()?;
        }
        if time::now_ns() - self.heard_ns >= SILENCE_NS {
            return Err(Gone::Silent);
        }
        self.still_there()
    }

    fn still_there(&self) -> Result<(), Gone> {
        if self.is_gone {
            Err(Gone::Closed)
        } else {
            Ok(())
        }
    }

    /// Bytes that the host has room for, as far as it has said.
    fn room(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.host_forwarded);
        self.host_bytes.saturating_sub(under_way)
    }

    /// Looks for packets until the host has room for `bytes`, but not for long: it says so by itself when it has passed on what it
    /// was sent, and the driver, if it has no room, asks for it by a packet, which costs both sides a turn.
    fn poll_for_room(&mut self, bytes: u32) -> Result<(), Gone> {
        let start_ns = time::now_ns();
        while self.room() < bytes && time::now_ns() - start_ns < POLL_NS {
            if !self.poll()? {
                core::hint::spin_loop();
            }
            self.still_there()?;
        }
        Ok(())
    }

    /// Sends a piece, as soon as the host has room for it.
    fn write(&mut self, piece: &[u8]) -> Result<(), Gone> {
        let bytes = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        loop {
            self.poll_for_room(bytes)?;
            match self.sockets.driver.send(piece, &mut self.info) {
                Ok(()) => {
                    self.untold = 0;
                    self.sent = self.sent.wrapping_add(bytes);
                    return Ok(());
                }
                Err(virtio_drivers::Error::SocketDeviceError(
                    SocketError::InsufficientBufferSpaceInPeer,
                )) => self.wait()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What has come is used: there is room for as much again.
    fn take(&mut self) -> Result<usize, Gone> {
        let bytes = self.received.len();
        self.received.clear();
        self.info.done_forwarding(bytes);
        self.untold += u32::try_from(bytes).unwrap_or(u32::MAX);
        if self.untold >= BUFFER_BYTES / 2 {
            self.untold = 0;
            self.sockets.driver.credit_update(&self.info)?;
        }
        Ok(bytes)
    }

    fn send(mut self, run: &Run) -> Result<Count, Gone> {
        let piece = vec![0x5a; run.bytes];
        let start_ns = time::now_ns();
        // On a busy host the time may be over before anything was sent.
        loop {
            self.write(&piece)?;
            if time::now_ns() - start_ns >= run.ns {
                break;
            }
        }
        let half = StreamShutdown::SEND;
        self.sockets.driver.shutdown_with_hints(&self.info, half)?;
        // What the host has got.
        while self.received.len() < COUNT_BYTES {
            self.wait()?;
        }
        let theirs = self.received.first_chunk().copied().unwrap_or_default();
        self.finish()?;
        Ok(Count::from_bytes(theirs))
    }

    fn receive(mut self) -> Result<Count, Gone> {
        let start_ns = time::now_ns();
        let mut count = Count::default();
        loop {
            let bytes = self.take()?;
            if bytes > 0 {
                count.add(bytes, start_ns, time::now_ns());
            } else if self.is_host_done {
                break;
            } else {
                self.wait()?;
            }
        }
        self.write(&count.to_bytes())?;
        self.finish()?;
        Ok(count)
    }

    fn answer(mut self) -> Result<Count, Gone> {
        let start_ns = time::now_ns();
        let mut count = Count::default();
        loop {
            let piece = self.received.clone();
            if !piece.is_empty() {
                self.take()?;
                self.write(&piece)?;
                count.add(piece.len(), start_ns, time::now_ns());
            } else if self.is_host_done {
                break;
            } else {
                self.wait()?;
            }
        }
        self.finish()?;
        Ok(count)
    }

    /// Closes it, and gives the device back when the host has closed it too.
    fn finish(mut self) -> Result<&'static mut Sockets, Gone> {
        self.sockets.driver.shutdown(&self.info)?;
        while !self.is_gone {
            match self.wait() {
                Err(Gone::Closed) => break,
                result => result?,
            }
        }
        Ok(self.sockets)
    }
}
