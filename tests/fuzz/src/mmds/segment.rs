//! TCP segments between a guest and the metadata service, as frames.

/// Bits of a segment.
pub(super) mod flags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
}

/// Who has 169.254.169.254? Tell 10.0.0.2.
pub(super) const ARP_REQUEST: [u8; 42] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 6, 0, 0xac, 0x10, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 6, 0,
    0xac, 0x10, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254,
];
/// The Ethernet header of the guest's frames.
const ETHERNET: [u8; 14] = [6, 1, 0x23, 0x45, 0x67, 1, 6, 0, 0xac, 0x10, 0, 2, 8, 0];
const GUEST: [u8; 4] = [10, 0, 0, 2];
const SERVICE: [u8; 4] = [169, 254, 169, 254];
const SERVICE_PORT: u16 = 80;
const IP_BYTES: usize = 20;
const TCP_BYTES: usize = 20;

/// A segment from the guest's port, or to it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Segment<'a> {
    pub(super) port: u16,
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// The number after its last byte.
    pub(super) fn end(&self) -> u32 {
        let bytes = u32::try_from(self.payload.len()).unwrap_or(0);
        let marks =
            u32::from(self.flags & flags::SYN != 0) + u32::from(self.flags & flags::FIN != 0);
        self.sequence.wrapping_add(bytes).wrapping_add(marks)
    }

    /// It as a frame of the guest, checksums right.
    pub(super) fn frame(&self) -> Vec<u8> {
        let tcp_bytes = TCP_BYTES + self.payload.len();
        let length = u16::try_from(IP_BYTES + tcp_bytes).unwrap_or(u16::MAX);
        let mut ip = vec![0x45, 0];
        ip.extend_from_slice(&length.to_be_bytes());
        ip.extend_from_slice(&[0, 1, 0, 0, 64, 6, 0, 0]);
        ip.extend_from_slice(&GUEST);
        ip.extend_from_slice(&SERVICE);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        let mut tcp = Vec::new();
        tcp.extend_from_slice(&self.port.to_be_bytes());
        tcp.extend_from_slice(&SERVICE_PORT.to_be_bytes());
        tcp.extend_from_slice(&self.sequence.to_be_bytes());
        tcp.extend_from_slice(&self.acknowledged.to_be_bytes());
        tcp.extend_from_slice(&[0x50, self.flags]);
        tcp.extend_from_slice(&self.window.to_be_bytes());
        tcp.extend_from_slice(&[0; 4]);
        tcp.extend_from_slice(self.payload);
        let tcp_length = u16::try_from(tcp_bytes).unwrap_or(u16::MAX).to_be_bytes();
        let pseudo = [&GUEST[..], &SERVICE, &[0, 6], &tcp_length, &tcp].concat();
        let sum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&sum);
        [&ETHERNET[..], &ip, &tcp].concat()
    }

    /// A segment of the service in `frame`, if it is one.
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let ip = frame
            .strip_prefix(frame.get(..12)?)?
            .strip_prefix(&[8, 0])?;
        let length = usize::from(u16::from_be_bytes(field(ip, 2)?));
        let ip = ip.get(..length)?;
        let tcp = ip.get(usize::from(ip.first()? & 0xf) * 4..)?;
        if *ip.get(9)? != 6 {
            return None;
        }
        Some(Self {
            port: u16::from_be_bytes(field(tcp, 2)?),
            sequence: u32::from_be_bytes(field(tcp, 4)?),
            acknowledged: u32::from_be_bytes(field(tcp, 8)?),
            flags: *tcp.get(13)?,
            window: u16::from_be_bytes(field(tcp, 14)?),
            payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?,
        })
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from_be_bytes([0, 0, pair[0], pair.get(1).copied().unwrap_or(0)]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap_or(0)).to_be_bytes()
}
