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

pub use self::place::{LARGE, NETMASK, PlaceError, USUAL, Wire, enter};

use self::peer::Peer;
use self::way::{Mode, Way};
use crate::guest::{Exits, Guest, GuestError};
use crate::report::{self, Case};
use crate::stats::Sample;
use crate::stream::{self, Found};

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

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum NetBenchError {
    /// There is no place for it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The guest's side failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The host's end failed.
    #[error("{case}: the host's end failed at {address}")]
    Host {
        /// Of which case.
        case: String,
        /// Where it listened.
        address: Ipv4Addr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// [`measure`]'s caller did not want to go on.
    #[error("Stopped")]
    Stopped,
    /// Nothing came to its end.
    #[error("{case}: nothing arrived")]
    Nothing {
        /// Of which case.
        case: String,
    },
}

/// What one side of a round found.
#[derive(Debug, Clone, Default)]
struct Measured {
    found: Found,
    /// Processor seconds of the whole VM; the host's own side is not told apart from ours.
    cpu_s: Option<f64>,
    /// Of the whole VM, its start and end included; the host has none.
    exits: Option<Exits>,
}

/// Measures every way with the guest and over the loopback, in turn. Units: MB/s, s/GB and exits/MB; for requests, µs and
/// exits/request. `progress` is told
/// after each round of a way, and says whether to go on.
///
/// # Errors
/// [`NetBenchError`].
pub fn measure(
    bench: &NetBench,
    progress: impl Fn(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<Case>, NetBenchError> {
    let ways = way::all().into_iter();
    let ways: Vec<Way> = ways
        .filter(|way| bench.has_uso || !way.needs_uso())
        .collect();
    let of = u32::try_from(ways.len()).unwrap_or(0) * (bench.rounds + 1);
    let mut done = 0;
    let mut cases = Vec::new();
    for way in &ways {
        let mut sides: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
        for round in 0..=bench.rounds {
            // Who is first has what the other has left in the caches: in turn.
            let (guest, native) = if round % 2 == 0 {
                let guest = with_guest(bench, way)?;
                (guest, over_loopback(bench, way)?)
            } else {
                let native = over_loopback(bench, way)?;
                (with_guest(bench, way)?, native)
            };
            done += 1;
            if progress(done, of).is_break() {
                return Err(NetBenchError::Stopped);
            }
            // The first one does not count.
            if round > 0 {
                let [guests, natives] = &mut sides;
                guests.push(guest);
                natives.push(native);
            }
        }
        cases.extend(summed_up(way, &sides));
    }
    Ok(cases)
}

fn summed_up(way: &Way, [guest, native]: &[Vec<Measured>; 2]) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |suffix: &str, unit: &str, of: &dyn Fn(&Measured) -> Vec<f64>| {
        let sample = |side: &[Measured]| Sample::new(side.iter().flat_map(of).collect());
        let names = [way.name, &native_name(way)].map(|name| format!("{name}{suffix}"));
        let [guest_name, native_name] = &names;
        let mut samples = Vec::new();
        samples.extend(sample(guest).map(|sample| (guest_name.as_str(), sample)));
        samples.extend(sample(native).map(|sample| (native_name.as_str(), sample)));
        cases.extend(report::cases(unit, &samples));
    };
    let cpu = |side: &Measured, scale: f64| {
        let each = side.cpu_s.map(|s| s / side.found.bytes as f64 * scale);
        each.into_iter().collect()
    };
    if way.mode == Mode::TcpAnswer {
        add("", "us", &|side| side.found.latencies.clone());
        add(".cpu", "us", &|side| cpu(side, 1e6));
        cases.extend(exits(way, "exits/request", guest, 1.0));
    } else {
        add("", "MB/s", &|side| {
            vec![side.found.bytes as f64 / side.found.seconds / 1e6]
        });
        add(".cpu", "s/GB", &|side| cpu(side, 1e9));
        cases.extend(exits(way, "exits/MB", guest, 1e6));
    }
    cases
}

/// Exits for each `scale` bytes; of requests each is one.
fn exits(way: &Way, unit: &str, guest: &[Measured], scale: f64) -> Vec<Case> {
    let each = |side: &Measured| Some(side.exits?.per(side.found.bytes as f64 / scale));
    let exits: Vec<Exits> = guest.iter().filter_map(each).collect();
    report::exits(way.name, unit, &exits)
}

fn native_name(way: &Way) -> String {
    format!("native.{}", way.name)
}

fn with_guest(bench: &NetBench, way: &Way) -> Result<Measured, NetBenchError> {
    let guest = if way.wire == LARGE {
        &bench.large
    } else {
        &bench.usual
    };
    let name = way.name.to_owned();
    let run = |peer: Peer| {
        guest.run(&[
            peer.mode.name(),
            &peer.to.to_string(),
            &peer.time.as_millis().max(1).to_string(),
            &peer.bytes.to_string(),
        ])
    };
    let (found, printed) = both_ends(bench, way, way.wire.host, run);
    // What the guest says is the reason, where both failed.
    let printed = printed?;
    Ok(Measured {
        found: checked(name, way.wire.host, found)?,
        cpu_s: Some(printed.cpu.as_secs_f64()),
        exits: printed.exits,
    })
}

fn over_loopback(bench: &NetBench, way: &Way) -> Result<Measured, NetBenchError> {
    let address = Ipv4Addr::LOCALHOST;
    let failed = |cause| NetBenchError::Host {
        case: native_name(way),
        address,
        cause,
    };
    let (found, peer) = both_ends(bench, way, address, Peer::run);
    let found = checked(native_name(way), address, found)?;
    peer.map_err(failed)?;
    Ok(Measured {
        found,
        ..Measured::default()
    })
}

fn checked(
    case: String,
    address: Ipv4Addr,
    found: io::Result<Found>,
) -> Result<Found, NetBenchError> {
    match found {
        Ok(found) if found.bytes == 0 || found.seconds <= 0.0 => {
            Err(NetBenchError::Nothing { case })
        }
        Ok(found) => Ok(found),
        Err(cause) => Err(NetBenchError::Host {
            case,
            address,
            cause,
        }),
    }
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
