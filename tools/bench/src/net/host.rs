//! The host's end of each way of using a network: the same towards a guest as over the loopback.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use lightv_workloads::network::{COUNT_BYTES, Count, Mark, PIECE_BYTES};

/// The other end says nothing for so long: it is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// After so long something is said again, and the other end looked at.
pub(super) const AGAIN: Duration = Duration::from_millis(5);

/// What one side of a round found.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// Of the data that came to its end, in all.
    pub(super) bytes: u64,
    /// How long that took.
    pub(super) seconds: f64,
    /// Of each request, in microseconds.
    pub(super) latencies: Vec<f64>,
}

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

/// Reads until the other end has sent all, and tells how much that was.
pub(super) fn receive(mut stream: TcpStream) -> io::Result<Found> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut count = Count::default();
    let began = Instant::now();
    loop {
        let bytes = stream.read(&mut piece)?;
        if bytes == 0 {
            break;
        }
        count.bytes += bytes as u64;
    }
    let seconds = began.elapsed().as_secs_f64();
    count.ns = nanoseconds(began.elapsed());
    stream.write_all(&count.to_bytes())?;
    Ok(Found {
        bytes: count.bytes,
        seconds,
        latencies: Vec::new(),
    })
}

/// Writes for `time`; it took until the other end has said that it has all.
pub(super) fn send(mut stream: TcpStream, time: Duration) -> io::Result<Found> {
    let piece = vec![0x5a; PIECE_BYTES];
    let began = Instant::now();
    let mut bytes = 0;
    while began.elapsed() < time {
        stream.write_all(&piece)?;
        bytes += piece.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0; COUNT_BYTES];
    stream.read_exact(&mut answer)?;
    let seconds = began.elapsed().as_secs_f64();
    if Count::from_bytes(answer).bytes != bytes {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(Found {
        bytes,
        seconds,
        latencies: Vec::new(),
    })
}

/// Sends one byte and waits for it to come back, for `time`.
pub(super) fn ask(mut stream: TcpStream, time: Duration) -> io::Result<Found> {
    stream.set_nodelay(true)?;
    let mut latencies = Vec::new();
    let mut byte = [0x5a];
    let began = Instant::now();
    while began.elapsed() < time {
        let asked = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        latencies.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Found {
        bytes: latencies.len() as u64,
        seconds: began.elapsed().as_secs_f64(),
        latencies,
    })
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

/// Sends datagrams of `bytes` for `time` to an end that has said where it is, and learns how many it got.
pub(super) fn send_datagrams(
    socket: &UdpSocket,
    bytes: usize,
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
    let datagram = vec![Mark::Data.byte(); bytes];
    let began = Instant::now();
    while began.elapsed() < time {
        send_one(socket, &datagram, to)?;
    }
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

/// In nanoseconds; 584 years are enough.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
