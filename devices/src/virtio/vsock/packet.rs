//! Packets (virtio 1.2 §5.10.6): a header of 44 bytes, read once into an owned value, and the bytes after it.
//!
//! The crate `virtio-vsock` reads packets from chains of `virtio-queue`, which [`Ring`](crate::virtio::ring::Ring) keeps
//! to itself; so the header is read here.

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 44;
/// The host's context id (virtio 1.2 §5.10.4).
pub const HOST_CID: u64 = 2;

/// What a packet does (virtio 1.2 §5.10.6).
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Grants one.
    pub const RESPONSE: u16 = 2;
    /// Refuses one, or ends it at once.
    pub const RST: u16 = 3;
    /// Says what the sender does no more.
    pub const SHUTDOWN: u16 = 4;
    /// Carries bytes.
    pub const RW: u16 = 5;
    /// Says how much the sender can take.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Types of sockets (virtio 1.2 §5.10.6).
pub mod socket_type {
    /// A stream of bytes: the only one here.
    pub const STREAM: u16 = 1;
}

/// Flags of [`op::SHUTDOWN`] (virtio 1.2 §5.10.6.6).
pub mod shutdown {
    /// The sender takes no more bytes.
    pub const RECEIVE: u32 = 1;
    /// The sender sends no more bytes.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// The ports of a connection: it is known by both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// A header, `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes that follow.
    pub(super) len: u32,
    pub(super) socket_type: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes that the sender can keep for the connection.
    pub(super) buf_alloc: u32,
    /// Bytes that it has received and keeps no more, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            socket_type: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let cids = [self.src_cid, self.dst_cid].map(u64::to_le_bytes);
        let first = [self.src_port, self.dst_port, self.len].map(u32::to_le_bytes);
        let kinds = [self.socket_type, self.op].map(u16::to_le_bytes);
        let last = [self.flags, self.buf_alloc, self.fwd_cnt].map(u32::to_le_bytes);
        let cids = cids.as_flattened().iter().chain(first.as_flattened());
        let all = cids.chain(kinds.as_flattened()).chain(last.as_flattened());
        let mut bytes = [0; HEADER_BYTES];
        bytes
            .iter_mut()
            .zip(all)
            .for_each(|(target, byte)| *target = *byte);
        bytes
    }

    /// The connection that a packet of the guest belongs to.
    pub(super) const fn pair(&self) -> Pair {
        Pair {
            guest: self.src_port,
            host: self.dst_port,
        }
    }
}

/// The next `N` bytes of `rest`, which has them.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((first, after)) => {
            *rest = after;
            *first
        }
        None => [0; N],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let mut bytes = [0; HEADER_BYTES];
        for (number, byte) in (1..).zip(&mut bytes) {
            *byte = number;
        }
        let header = Header::decode(&bytes);
        let expected = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            socket_type: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        assert_eq!(header, expected);
        assert_eq!(header.encode(), bytes);
    }
}
