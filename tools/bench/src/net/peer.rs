//! What the guest's app `net-bench` does, as a thread of the host: the other end over the loopback.

use std::io;
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use lightv_workloads::network::{COUNT_BYTES, Count, Mark, PIECE_BYTES};

use super::host::{self, AGAIN};
use super::way::Mode;
use crate::stream::{self, SILENCE, nanoseconds};

/// One end of a measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) mode: Mode,
    /// Where the other end listens.
    pub(super) to: SocketAddrV4,
    pub(super) time: Duration,
    /// Of a call.
    pub(super) bytes: usize,
    /// Of a datagram, if a call is to be cut into many.
    pub(super) cut: Option<u16>,
}

impl Peer {
    /// Does it.
    pub(super) fn run(self) -> io::Result<()> {
        match self.mode {
            Mode::TcpSend => stream::send(self.connect()?, self.time).map(drop),
            Mode::TcpReceive => stream::receive(self.connect()?).map(drop),
            Mode::TcpAnswer => stream::answer(self.connect()?),
            Mode::UdpSend => self.send_datagrams(&self.socket()?),
            Mode::UdpReceive => self.receive_datagrams(&self.socket()?),
        }
    }

    fn connect(self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.to)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn socket(self) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((*self.to.ip(), 0))?;
        socket.connect(self.to)?;
        host::cut(&socket, self.cut)?;
        socket.set_read_timeout(Some(AGAIN))?;
        Ok(socket)
    }

    fn send_datagrams(self, socket: &UdpSocket) -> io::Result<()> {
        let datagram = vec![Mark::Data.byte(); self.bytes];
        stream::repeat_for(self.time, || socket.send(&datagram).map(drop))?;
        let ended = Instant::now();
        let mut answer = [0; 2 * COUNT_BYTES];
        while ended.elapsed() < SILENCE {
            socket.send(&[Mark::End.byte()])?;
            if let Ok(bytes) = socket.recv(&mut answer)
                && Mark::of(&answer[..bytes]) == Some(Mark::Count)
            {
                return Ok(());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn receive_datagrams(self, socket: &UdpSocket) -> io::Result<()> {
        let mut datagram = vec![0; PIECE_BYTES];
        let mut count = Count::default();
        let (mut first, mut heard) = (None, Instant::now());
        while heard.elapsed() < SILENCE {
            if first.is_none() {
                socket.send(&[Mark::Hello.byte()])?;
            }
            let Ok(bytes) = socket.recv(&mut datagram) else {
                continue;
            };
            heard = Instant::now();
            match Mark::of(&datagram[..bytes]) {
                Some(Mark::Data) => {
                    let first = *first.get_or_insert(heard);
                    count.add(bytes, 0, nanoseconds(heard - first));
                }
                Some(Mark::End) => {
                    // Nothing is lost on the way to a socket that nobody floods.
                    socket.send(&count.to_datagram())?;
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}
