//! `net-bench`: one end of a measurement of the network; the other is a program of the host that listens.
//!
//! Datagrams that are longer than the network's are cut by the device, or have come whole from it (USO).

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddrV4;

use lightv_workloads::network::{Count, Mark, PIECE_BYTES};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use super::{Refusal, STATUS_FAILED, STATUS_OK, network};
use crate::boot::to_usize;
use crate::machine::{BadNumber, Epoch, Machine};
use crate::network::Network;
use crate::{eprintln, println, time};

const USAGE: &str =
    "net-bench tcp-send|tcp-receive|tcp-answer|udp-send|udp-receive ADDRESS:PORT MS BYTES";
/// Of each direction of the connection: some segments of the largest size.
const STREAM_BYTES: usize = 512 * 1024;
/// Of each direction of the UDP socket: as many datagrams as the device has buffers, four times.
const DATAGRAMS: usize = 128;
/// Of each direction of the UDP socket: room for some of those that the device cuts.
const DATAGRAMS_BYTES_MAX: usize = 1024 * 1024;
const DATAGRAM_BYTES_MAX: usize = 65_507;
const PORT: u16 = 5000;
const NS_PER_MS: u64 = 1_000_000;
/// Without any progress for so long, the other end is gone.
const SILENCE_NS: u64 = 10_000 * NS_PER_MS;
/// After so long something is said again.
const AGAIN_NS: u64 = 5 * NS_PER_MS;
/// When the other end says nothing more for so long after the end, it has heard the answer.
const LAST_NS: u64 = 100 * NS_PER_MS;

struct Run {
    mode: &'static str,
    to: SocketAddrV4,
    ns: u64,
    bytes: usize,
}

/// Why there is no result.
enum Gone {
    /// The other end has closed or refused the connection.
    Closed,
    /// It has said nothing for [`SILENCE_NS`].
    Silent,
}

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    let mut network = network(machine)?;
    let mut epoch = Epoch::now();
    machine.ready();
    epoch.changed();
    let run = read_args(machine)?;
    if run.mode == "udp-send" && run.bytes > network.datagram_bytes_max() {
        eprintln!("net-bench error: datagrams of this size need a device that cuts them");
        return Ok(STATUS_FAILED);
    }
    network.start(machine.ipv4()?);
    let done = match run.mode {
        "udp-send" => Datagrams::new(network, &run).send(&run),
        "udp-receive" => Datagrams::new(network, &run).receive(),
        mode => {
            let stream = Stream::new(network, &run);
            match mode {
                "tcp-send" => stream.send(&run),
                "tcp-receive" => stream.receive(),
                "tcp-answer" => stream.answer(),
                _ => return Err(Refusal::Usage(USAGE)),
            }
        }
    };
    match done {
        Ok(Count { bytes, ns }) => {
            println!("bytes={bytes} ns={ns}");
            Ok(STATUS_OK)
        }
        Err(gone) => {
            let what = match gone {
                Gone::Closed => "closed the connection",
                Gone::Silent => "says nothing any more",
            };
            eprintln!("net-bench error: {} {what}", run.to);
            Ok(STATUS_FAILED)
        }
    }
}

fn read_args(machine: &Machine) -> Result<Run, Refusal> {
    let mut args = machine.args();
    let usage = || Refusal::Usage(USAGE);
    let mode = args.next().ok_or_else(usage)?;
    let to = args.next().and_then(|text| text.parse().ok());
    let to = to.ok_or_else(usage)?;
    let mut number = || -> Result<u64, Refusal> {
        let text = args.next().ok_or_else(usage)?;
        Ok(text.parse().map_err(|_| BadNumber(text))?)
    };
    let (ms, bytes) = (number()?, to_usize(number()?));
    let most = match mode.starts_with("udp") {
        true => DATAGRAM_BYTES_MAX,
        false => PIECE_BYTES,
    };
    if bytes == 0 || bytes > most {
        return Err(usage());
    }
    Ok(Run {
        mode,
        to,
        ns: ms.saturating_mul(NS_PER_MS),
        bytes,
    })
}

/// When something last moved.
struct Progress(u64);

impl Progress {
    fn now() -> Self {
        Self(time::now_ns())
    }

    /// Waits for the network if nothing has moved.
    fn note(&mut self, network: &mut Network, has_moved: bool) -> Result<(), Gone> {
        if has_moved {
            *self = Self::now();
            return Ok(());
        }
        if time::now_ns().saturating_sub(self.0) > SILENCE_NS {
            return Err(Gone::Silent);
        }
        network.sleep();
        Ok(())
    }
}

/// A connection.
struct Stream {
    network: Network,
    handle: SocketHandle,
    piece: Vec<u8>,
}

impl Stream {
    fn new(mut network: Network, run: &Run) -> Self {
        let handle = network.add_tcp(STREAM_BYTES, STREAM_BYTES);
        network.connect(handle, (*run.to.ip(), run.to.port()), PORT);
        Self {
            network,
            handle,
            piece: vec![0x5a; run.bytes],
        }
    }

    /// Calls `turn` each time that the network has moved, until it gives something. It says too whether it has moved anything.
    fn until<T>(
        &mut self,
        mut turn: impl FnMut(&mut Self) -> (bool, Option<T>),
    ) -> Result<T, Gone> {
        let mut progress = Progress::now();
        loop {
            let has_changed = self.network.poll();
            let (has_moved, result) = turn(self);
            if let Some(result) = result {
                return Ok(result);
            }
            if !self.network.tcp(self.handle).is_open() {
                return Err(Gone::Closed);
            }
            progress.note(&mut self.network, has_changed || has_moved)?;
        }
    }

    fn connected(&mut self) -> Result<u64, Gone> {
        self.until(|stream| {
            let is_there = stream.network.tcp(stream.handle).may_send();
            (false, is_there.then(time::now_ns))
        })
    }

    /// Closes our half, and waits until the other end has all, and has closed its own.
    fn finish(mut self) -> Result<(), Gone> {
        self.network.tcp(self.handle).close();
        self.until(|stream| {
            let state = stream.network.tcp(stream.handle).state();
            (
                false,
                matches!(state, State::TimeWait | State::Closed).then_some(()),
            )
        })?;
        // The last acknowledgement.
        self.network.poll();
        Ok(())
    }

    fn send(mut self, run: &Run) -> Result<Count, Gone> {
        let start_ns = self.connected()?;
        let mut count = Count::default();
        self.until(|stream| {
            let socket = stream.network.tcp(stream.handle);
            let mut has_moved = false;
            while socket.can_send() {
                let sent = socket.send_slice(&stream.piece).unwrap_or(0);
                count.add(sent, start_ns, time::now_ns());
                has_moved = true;
            }
            (has_moved, (count.ns >= run.ns).then_some(()))
        })?;
        self.network.tcp(self.handle).close();
        // What the other end has got.
        let theirs = self.until(|stream| {
            let mut answer = Count::default().to_bytes();
            let socket = stream.network.tcp(stream.handle);
            let is_there = socket.recv_queue() >= answer.len();
            if is_there {
                let _ = socket.recv_slice(&mut answer);
            }
            (is_there, is_there.then(|| Count::from_bytes(answer)))
        })?;
        self.finish()?;
        Ok(theirs)
    }

    fn receive(mut self) -> Result<Count, Gone> {
        let start_ns = self.connected()?;
        let mut count = Count::default();
        self.until(|stream| {
            let socket = stream.network.tcp(stream.handle);
            let mut has_moved = false;
            while socket.can_recv() {
                let got = socket.recv_slice(&mut stream.piece).unwrap_or(0);
                count.add(got, start_ns, time::now_ns());
                has_moved = true;
            }
            let is_over = socket.state() == State::CloseWait && !socket.can_recv();
            (has_moved, is_over.then_some(()))
        })?;
        // The buffer is empty: there is room.
        let _ = self.network.tcp(self.handle).send_slice(&count.to_bytes());
        self.finish()?;
        Ok(count)
    }

    fn answer(mut self) -> Result<Count, Gone> {
        let start_ns = self.connected()?;
        let mut count = Count::default();
        self.until(|stream| {
            let socket = stream.network.tcp(stream.handle);
            let mut has_moved = false;
            while socket.can_recv() && socket.can_send() {
                // Both were asked for, and what is under way is far less than there is room.
                let got = socket.recv_slice(&mut stream.piece).unwrap_or(0);
                let _ = socket.send_slice(&stream.piece[..got]);
                count.add(got, start_ns, time::now_ns());
                has_moved = true;
            }
            let is_over = socket.state() == State::CloseWait && !socket.can_recv();
            (has_moved, is_over.then_some(()))
        })?;
        self.finish()?;
        Ok(count)
    }
}

/// A UDP socket.
struct Datagrams {
    network: Network,
    handle: SocketHandle,
    to: SocketAddrV4,
    datagram: Vec<u8>,
    said_ns: u64,
}

impl Datagrams {
    fn new(mut network: Network, run: &Run) -> Self {
        let handle = network.add_udp_of(DATAGRAMS, DATAGRAMS_BYTES_MAX.min(DATAGRAMS * run.bytes));
        // The socket is new and the port is not 0, which is all that can be wrong.
        let _ = network.udp(handle).bind(PORT);
        Self {
            network,
            handle,
            to: run.to,
            datagram: vec![Mark::Data.byte(); run.bytes],
            said_ns: 0,
        }
    }

    /// Says something that may be lost, and so is said again after a while.
    fn say(&mut self, what: &[u8]) {
        let now_ns = time::now_ns();
        if now_ns.saturating_sub(self.said_ns) < AGAIN_NS {
            return;
        }
        self.said_ns = now_ns;
        let _ = self.network.udp(self.handle).send_slice(what, self.to);
    }

    fn send(mut self, run: &Run) -> Result<Count, Gone> {
        let start_ns = time::now_ns();
        let mut sent = 0_u64;
        // Two at least: what the other end measures is the time between them.
        while sent < 2 || time::now_ns() - start_ns < run.ns {
            let socket = self.network.udp(self.handle);
            let mut has_moved = false;
            while socket.can_send() && socket.send_slice(&self.datagram, self.to).is_ok() {
                has_moved = true;
                sent += 1;
            }
            // What has been sent makes room for more.
            has_moved |= self.network.poll();
            if !has_moved {
                self.network.sleep();
            }
        }
        let end_ns = time::now_ns();
        loop {
            self.say(&[Mark::End.byte()]);
            self.network.poll();
            if let Ok((answer, _)) = self.network.udp(self.handle).recv()
                && let Some(count) = Count::from_datagram(answer)
            {
                return Ok(count);
            }
            if time::now_ns() - end_ns > SILENCE_NS {
                return Err(Gone::Silent);
            }
            self.network.sleep_at_most(AGAIN_NS);
        }
    }

    fn receive(mut self) -> Result<Count, Gone> {
        let mut count = Count::default();
        let (mut first_ns, mut end_ns) = (None, None);
        let mut heard_ns = time::now_ns();
        loop {
            if first_ns.is_none() && end_ns.is_none() {
                self.say(&[Mark::Hello.byte()]);
            }
            self.network.poll();
            let now_ns = time::now_ns();
            let mut has_moved = false;
            while let Ok((len, _)) = self.network.udp(self.handle).recv_slice(&mut self.datagram) {
                has_moved = true;
                match Mark::of(&self.datagram[..len]) {
                    Some(Mark::Data) => {
                        count.add(len, *first_ns.get_or_insert(now_ns), now_ns);
                    }
                    Some(Mark::End) => {
                        end_ns = Some(now_ns);
                        self.say(&count.to_datagram());
                    }
                    _ => {}
                }
            }
            if has_moved {
                heard_ns = now_ns;
                continue;
            }
            let silence_ns = now_ns - heard_ns;
            if end_ns.is_some() && silence_ns > LAST_NS {
                return Ok(count);
            }
            if silence_ns > SILENCE_NS {
                return Err(Gone::Silent);
            }
            self.network.sleep_at_most(AGAIN_NS);
        }
    }
}
