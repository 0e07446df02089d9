//! `lightv bench net`: a guest and the host over a tap, and the host with itself over its loopback, in turn.

mod host;
mod peer;
mod place;
mod way;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use lightv_workloads::network::PIECE_BYTES;

pub use self::place::{LARGE, NETMASK, PlaceError, USUAL, Wire, congestion, enter};

use self::peer::Peer;
use self::way::{Mode, Way};
use crate::guest::Guest;
use crate::report::Case;
use crate::stream::{self, Found};
use crate::two_sided::{self, Kind, Measured, Sides, TransferError};

/// What is measured. The calling thread is where [`enter`] has brought it.
#[derive(Debug, Clone)]
pub struct NetBench {
    /// A guest on [`USUAL`].
    pub usual: Guest,
    /// A guest on [`LARGE`].
    pub large: Guest,
    /// The taps leave UDP whole, as [`enter`] has found; what needs that is left out otherwise.
    pub has_uso: bool,
    /// Rounds that count.
    pub rounds: u32,
    /// How long each side sends in a round.
    pub time: Duration,
}

/// Measures every way with the guest and over the loopback, in turn. Units: MB/s, s/GB and exits/MB; for requests, µs and
/// exits/request. `progress` is told after each round of a way, and says whether to go on.
///
/// # Errors
/// [`TransferError`].
pub fn measure(
    bench: &NetBench,
    progress: impl Fn(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<Case>, TransferError> {
    let ways = way::all().into_iter();
    let ways: Vec<Way> = ways
        .filter(|way| bench.has_uso || !way.needs_uso())
        .collect();
    let about = |way: &Way| {
        let kind = match way.mode {
            Mode::TcpAnswer => Kind::Requests,
            _ => Kind::Stream,
        };
        (way.name, kind)
    };
    let sides = Sides {
        guest: |way: &Way| with_guest(bench, way),
        native: |way: &Way| over_loopback(bench, way),
    };
    two_sided::measure(&ways, about, bench.rounds, &sides, progress)
}

fn with_guest(bench: &NetBench, way: &Way) -> Result<Measured, TransferError> {
    let guest = if way.wire == LARGE {
        &bench.large
    } else {
        &bench.usual
    };
    let run = |peer: Peer| {
        guest.run(&[
            peer.mode.name(),
            &peer.to.to_string(),
            &peer.time.as_millis().max(1).to_string(),
            &peer.bytes.to_string(),
        ])
    };
    let ends = both_ends(bench, way, way.wire.host, run);
    Measured::of_guest(way.name, &way.wire.host.to_string(), ends)
}

fn over_loopback(bench: &NetBench, way: &Way) -> Result<Measured, TransferError> {
    let address = Ipv4Addr::LOCALHOST;
    let ends = both_ends(bench, way, address, Peer::run);
    Measured::of_native(way.name, &address.to_string(), ends)
}

/// Our end listens at `address`, and `run` is the other one, on a thread of its own.
fn both_ends<T: Send>(
    bench: &NetBench,
    way: &Way,
    address: Ipv4Addr,
    run: impl FnOnce(Peer) -> T + Send,
) -> (io::Result<Found>, T) {
    let end = match End::listen(way, address) {
        Ok(end) => end,
        // The other end finds nobody, and says so.
        Err(cause) => {
            return (
                Err(cause),
                run(peer(bench, way, SocketAddrV4::new(address, 9))),
            );
        }
    };
    thread::scope(|scope| {
        let peer = peer(bench, way, end.address);
        let other = scope.spawn(move || run(peer));
        let found = end.serve(bench, way, &|| !other.is_finished());
        drop(end);
        let other = other.join();
        (
            found,
            other.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    })
}

fn peer(bench: &NetBench, way: &Way, to: SocketAddrV4) -> Peer {
    Peer {
        mode: way.mode,
        to,
        time: bench.time,
        cut: way.burst().cut,
        bytes: match way.mode {
            Mode::UdpSend | Mode::UdpReceive => way.burst().bytes,
            Mode::TcpSend | Mode::TcpReceive | Mode::TcpAnswer => PIECE_BYTES,
        },
    }
}

/// Our end, listening.
struct End {
    address: SocketAddrV4,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl End {
    fn listen(way: &Way, address: Ipv4Addr) -> io::Result<Self> {
        let any_port = SocketAddrV4::new(address, 0);
        let socket = match way.mode {
            Mode::UdpSend | Mode::UdpReceive => Socket::Udp(host::datagram_socket(any_port)?),
            Mode::TcpSend | Mode::TcpReceive | Mode::TcpAnswer => {
                Socket::Tcp(TcpListener::bind(any_port)?)
            }
        };
        let bound = match &socket {
            Socket::Tcp(listener) => listener.local_addr()?,
            Socket::Udp(socket) => socket.local_addr()?,
        };
        Ok(Self {
            address: SocketAddrV4::new(address, bound.port()),
            socket,
        })
    }

    fn serve(&self, bench: &NetBench, way: &Way, is_alive: &dyn Fn() -> bool) -> io::Result<Found> {
        match (&self.socket, way.mode) {
            (Socket::Tcp(listener), mode) => {
                let stream = host::accept(listener, is_alive)?;
                match mode {
                    Mode::TcpSend => stream::receive(stream),
                    Mode::TcpReceive => stream::send(stream, bench.time),
                    _ => stream::ask(stream, bench.time),
                }
            }
            (Socket::Udp(socket), Mode::UdpReceive) => {
                host::send_datagrams(socket, way.burst(), bench.time, is_alive)
            }
            (Socket::Udp(socket), _) => host::receive_datagrams(socket, is_alive),
        }
    }
}
