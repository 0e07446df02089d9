//! The ways of using a network that are measured.

use super::place::{LARGE, USUAL, Wire};

/// IPv4 and UDP headers.
const UDP_HEADER_BYTES: u16 = 28;
/// As many datagrams of 1,472 bytes as one of IPv4 holds, and fewer than Linux cuts at once (64).
const USO_DATAGRAMS: usize = 44;

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
    /// Datagrams that are handed over at once.
    pub(super) datagrams: usize,
}

impl Way {
    /// Bytes of a datagram that fills a frame.
    pub(super) const fn datagram_bytes(&self) -> u16 {
        self.wire.mtu.saturating_sub(UDP_HEADER_BYTES)
    }

    /// Bytes of the datagrams that are handed over at once.
    pub(super) fn burst(&self) -> Burst {
        let datagram_bytes = self.datagram_bytes();
        Burst {
            bytes: self.datagrams * usize::from(datagram_bytes),
            cut: (self.datagrams > 1).then_some(datagram_bytes),
        }
    }

    /// Whether the tap has to leave UDP whole.
    pub(super) const fn needs_uso(&self) -> bool {
        self.datagrams > 1
    }
}

/// What is handed over at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Burst {
    /// In all.
    pub(super) bytes: usize,
    /// Bytes of each datagram, where it is the network that cuts.
    pub(super) cut: Option<u16>,
}

/// All, in the order of the report.
pub(super) fn all() -> [Way; 9] {
    let way = |name, mode, wire| Way {
        name,
        mode,
        wire,
        datagrams: 1,
    };
    let whole = |name, mode| Way {
        datagrams: USO_DATAGRAMS,
        ..way(name, mode, USUAL)
    };
    [
        way("net.tcp.g2h", Mode::TcpSend, USUAL),
        way("net.tcp.h2g", Mode::TcpReceive, USUAL),
        way("net.tcp.g2h.64k", Mode::TcpSend, LARGE),
        way("net.tcp.h2g.64k", Mode::TcpReceive, LARGE),
        way("net.rr", Mode::TcpAnswer, USUAL),
        way("net.udp.g2h", Mode::UdpSend, USUAL),
        way("net.udp.h2g", Mode::UdpReceive, USUAL),
        whole("net.udp.uso.g2h", Mode::UdpSend),
        whole("net.udp.uso.h2g", Mode::UdpReceive),
    ]
}
