//! The ways of using a network that are measured.

use super::place::{LARGE, USUAL, Wire};

/// IPv4 and UDP headers.
const UDP_HEADER_BYTES: u16 = 28;

/// What the other end does: the guest, or a thread of the host in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    TcpSend,
    TcpReceive,
    TcpAnswer,
    UdpSend,
    UdpReceive,
}

impl Mode {
    /// As the guest's app calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TcpSend => "tcp-send",
            Self::TcpReceive => "tcp-receive",
            Self::TcpAnswer => "tcp-answer",
            Self::UdpSend => "udp-send",
            Self::UdpReceive => "udp-receive",
        }
    }
}

/// One way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) mode: Mode,
    pub(super) wire: Wire,
}

impl Way {
    /// Bytes of a datagram that fills a frame.
    pub(super) fn datagram_bytes(&self) -> usize {
        usize::from(self.wire.mtu.saturating_sub(UDP_HEADER_BYTES))
    }
}

/// All, in the order of the report.
pub(super) fn all() -> [Way; 7] {
    let way = |name, mode, wire| Way { name, mode, wire };
    [
        way("net.tcp.g2h", Mode::TcpSend, USUAL),
        way("net.tcp.h2g", Mode::TcpReceive, USUAL),
        way("net.tcp.g2h.64k", Mode::TcpSend, LARGE),
        way("net.tcp.h2g.64k", Mode::TcpReceive, LARGE),
        way("net.rr", Mode::TcpAnswer, USUAL),
        way("net.udp.g2h", Mode::UdpSend, USUAL),
        way("net.udp.h2g", Mode::UdpReceive, USUAL),
    ]
}
