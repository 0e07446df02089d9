//! Both ends of a stream, of TCP or of a Unix socket: ours, and that of a thread in a guest's place.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lightv_workloads::network::{COUNT_BYTES, Count, PIECE_BYTES};

/// The other end says nothing for so long: it is gone.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);

/// How often something is done that is done for a time.
const TURNS_MIN: u32 = 2;

/// Does `turn` again and again for `time`, and [`TURNS_MIN`] times at least: on a busy host the time may be over before a thread has
/// had its turn.
pub(crate) fn repeat_for<E>(
    time: Duration,
    mut turn: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    let began = Instant::now();
    let mut turns = 0;
    while turns < TURNS_MIN || began.elapsed() < time {
        turn()?;
        turns = TURNS_MIN.min(turns + 1);
    }
    Ok(())
}

/// A stream whose halves end one by one.
pub(crate) trait Stream: Read + Write {
    /// No more is sent.
    fn end(&self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for UnixStream {
    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// What one side of a round found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Of the data that came to its end, in all.
    pub(crate) bytes: u64,
    /// How long that took.
    pub(crate) seconds: f64,
    /// Of each request, in microseconds.
    pub(crate) latencies: Vec<f64>,
}

/// Reads until the other end has sent all, and tells how much that was: the other end of [`send`].
pub(crate) fn receive(mut stream: impl Stream) -> io::Result<Found> {
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

/// Writes for `time`, as [`repeat_for`] does; it took until the other end has said that it has all.
pub(crate) fn send(mut stream: impl Stream, time: Duration) -> io::Result<Found> {
    let piece = vec![0x5a; PIECE_BYTES];
    let began = Instant::now();
    let mut bytes = 0;
    repeat_for(time, || {
        bytes += piece.len() as u64;
        stream.write_all(&piece)
    })?;
    stream.end()?;
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

/// Sends one byte and waits for it to come back, for `time`, as [`repeat_for`] does.
pub(crate) fn ask(mut stream: impl Stream, time: Duration) -> io::Result<Found> {
    let mut latencies = Vec::new();
    let mut byte = [0x5a];
    let began = Instant::now();
    repeat_for(time, || {
        let asked = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        latencies.push(asked.elapsed().as_secs_f64() * 1e6);
        io::Result::Ok(())
    })?;
    Ok(Found {
        bytes: latencies.len() as u64,
        seconds: began.elapsed().as_secs_f64(),
        latencies,
    })
}

/// The other end of [`ask`].
pub(crate) fn answer(mut stream: impl Stream) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let bytes = stream.read(&mut piece)?;
        if bytes == 0 {
            return Ok(());
        }
        stream.write_all(&piece[..bytes])?;
    }
}

/// In nanoseconds; 584 years are enough.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
