//! The host's end of each way of using a network: the same towards a guest as over the loopback.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use lightv_workloads::network::{COUNT_BYTES, Count, Mark, PIECE_BYTES};

use super::way::Burst;
use crate::stream::{Found, SILENCE, nanoseconds, repeat_for};
use crate::sys::link;

/// After so long something is said again, and the other end looked at.
pub(super) const AGAIN: Duration = Duration::from_millis(5);

/// A connection from the other end.
pub(super) fn accept(listener: &TcpListener, is_alive: &dyn Fn() -> bool) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let began = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_write_timeout(Some(SILENCE))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                if !is_alive() || began.elapsed() > SILENCE {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(cause) => return Err(cause),
        }
    }
}

/// Counts datagrams until the other end has sent all.
pub(super) fn receive_datagrams(
    socket: &UdpSocket,
    is_alive: &dyn Fn() -> bool,
) -> io::Result<Found> {
    let mut datagram = vec![0; PIECE_BYTES];
    let mut count = Count::default();
    let mut first = None;
    loop {
        let (bytes, from) = next(socket, &mut datagram, is_alive)?;
        let now = Instant::now();
        match Mark::of(&datagram[..bytes]) {
            Some(Mark::Data) => {
                let first = *first.get_or_insert(now);
                count.add(bytes, 0, nanoseconds(now - first));
            }
            Some(Mark::End) => {
                socket.send_to(&count.to_datagram(), from)?;
                return Ok(found(count));
            }
            _ => {}
        }
    }
}

/// Sends datagrams for `time` to an end that has said where it is, and learns how many it got.
pub(super) fn send_datagrams(
    socket: &UdpSocket,
    burst: Burst,
    time: Duration,
    is_alive: &dyn Fn() -> bool,
) -> io::Result<Found> {
    let mut answer = [0; 2 * COUNT_BYTES];
    let to = loop {
        let (bytes, from) = next(socket, &mut answer, is_alive)?;
        if Mark::of(&answer[..bytes]) == Some(Mark::Hello) {
            break from;
        }
    };
    cut(socket, burst.cut)?;
    let datagram = vec![Mark::Data.byte(); burst.bytes];
    repeat_for(time, || send_one(socket, &datagram, to))?;
    let ended = Instant::now();
    while ended.elapsed() < SILENCE && is_alive() {
        send_one(socket, &[Mark::End.byte()], to)?;
        let Ok(bytes) = socket.recv(&mut answer) else {
            continue;
        };
        if let Some(count) = Count::from_datagram(&answer[..bytes]) {
            return Ok(found(count));
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// Has the network cut what is sent by `socket` into datagrams of so many bytes, if any are said.
pub(super) fn cut(socket: &UdpSocket, bytes: Option<u16>) -> io::Result<()> {
    bytes.map_or(Ok(()), |bytes| link::set_datagram_bytes(socket, bytes))
}

/// A queue that is full is a datagram that is lost, not an error.
fn send_one(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
    match socket.send_to(datagram, to) {
        Err(cause) if cause.raw_os_error() != Some(libc::ENOBUFS) => Err(cause),
        _ => Ok(()),
    }
}

fn next(
    socket: &UdpSocket,
    datagram: &mut [u8],
    is_alive: &dyn Fn() -> bool,
) -> io::Result<(usize, SocketAddr)> {
    let began = Instant::now();
    loop {
        match socket.recv_from(datagram) {
            Err(cause) if is_timeout(&cause) && is_alive() && began.elapsed() < SILENCE => {}
            result => return result,
        }
    }
}

fn is_timeout(cause: &io::Error) -> bool {
    [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&cause.kind())
}

/// A socket at `address` that waits [`AGAIN`].
pub(super) fn datagram_socket(address: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(AGAIN))?;
    Ok(socket)
}

fn found(count: Count) -> Found {
    Found {
        bytes: count.bytes,
        seconds: count.ns as f64 / 1e9,
        latencies: Vec::new(),
    }
}
