//! A disk request: read once, checked, owned (virtio 1.2 §5.2.6).

use crate::fault::GuestFault;
use crate::limits::{BLOCK_DISCARD_SECTORS_MAX, BLOCK_REQUEST_BYTES_MAX};
use crate::memory::GuestMem;
use crate::virtio::block::backend::SECTOR_BYTES;
use crate::virtio::block::disk::Disk;
use crate::virtio::chain::{Chain, read_at, total_bytes};

/// Bytes of `struct virtio_blk_req` before the data: type, reserved, sector.
pub(super) const HEADER_BYTES: u64 = 16;
/// Bytes of the serial number.
pub(super) const ID_BYTES: usize = 20;
/// The same, for the used ring.
pub(super) const ID_BYTES_U32: u32 = 20;

/// Types of requests.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Read the data from byte `offset` of the disk on.
    Read {
        /// In bytes.
        offset: u64,
    },
    /// Write the data from byte `offset` of the disk on.
    Write {
        /// In bytes.
        offset: u64,
    },
    /// Make what was written safe.
    Flush,
    /// Tell the serial number.
    GetId,
    /// Give `bytes` from `offset` on back to the host; what they hold afterwards is the host's business.
    Discard {
        /// In bytes.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Make `bytes` from `offset` on zero.
    WriteZeroes {
        /// In bytes.
        offset: u64,
        /// How many.
        bytes: u64,
        /// They may be given back to the host.
        may_unmap: bool,
    },
}

/// Bytes of `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const RANGE_BYTES: u64 = 16;
/// Its flag `unmap`.
const RANGE_UNMAP: u32 = 1;

/// A request that can be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) action: Action,
    /// Bytes of data: of the readable buffers after the header, or of the writable ones before the status byte.
    pub(super) data_bytes: u64,
}

/// Where in the writable buffers the status byte is, and the request or why it fails.
pub(super) type Parsed = (u64, Result<Request, GuestFault>);

impl Request {
    /// Reads the header of the request in `chain` and checks it against `disk`. Nothing is assumed about how the
    /// request is spread over buffers (virtio 1.2 §2.7.4.1): the header is the first 16 readable bytes, the status the
    /// last writable one.
    ///
    /// # Errors
    /// There is no place for a status byte.
    pub(super) fn parse(mem: &GuestMem, chain: &Chain, disk: &Disk) -> Result<Parsed, GuestFault> {
        let writable = total_bytes(chain.writable());
        let status_at = writable.checked_sub(1).ok_or(GuestFault::ShortChain)?;
        Ok((status_at, Self::parse_header(mem, chain, disk, status_at)))
    }

    fn parse_header(
        mem: &GuestMem,
        chain: &Chain,
        disk: &Disk,
        room: u64,
    ) -> Result<Self, GuestFault> {
        let mut header = [0; 16];
        read_at(mem, chain.readable(), 0, &mut header)?;
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let given = total_bytes(chain.readable()).saturating_sub(HEADER_BYTES);
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            kind::IN => {
                let offset = check_extent(disk, sector, room)?;
                Ok(Self {
                    action: Action::Read { offset },
                    data_bytes: room,
                })
            }
            kind::OUT => {
                // Also when the driver did not accept the read-only bit.
                if disk.is_read_only() {
                    return Err(GuestFault::ReadOnly);
                }
                let offset = check_extent(disk, sector, given)?;
                Ok(Self {
                    action: Action::Write { offset },
                    data_bytes: given,
                })
            }
            kind::FLUSH => Ok(Self {
                action: Action::Flush,
                data_bytes: 0,
            }),
            kind::GET_ID if room >= ID_BYTES as u64 => Ok(Self {
                action: Action::GetId,
                data_bytes: 0,
            }),
            kind::GET_ID => Err(GuestFault::ShortChain),
            kind @ (kind::DISCARD | kind::WRITE_ZEROES) if disk.discards() => {
                if disk.is_read_only() {
                    return Err(GuestFault::ReadOnly);
                }
                let action = read_range(mem, chain, disk, kind)?;
                Ok(Self {
                    action,
                    data_bytes: 0,
                })
            }
            other => Err(GuestFault::UnknownType(other)),
        }
    }
}

/// The one range that a discard or a write of zeroes may name (virtio 1.2 §5.2.6.2).
fn read_range(mem: &GuestMem, chain: &Chain, disk: &Disk, kind: u32) -> Result<Action, GuestFault> {
    let given = total_bytes(chain.readable()).saturating_sub(HEADER_BYTES);
    if given != RANGE_BYTES {
        return Err(GuestFault::ShortChain);
    }
    let mut range = [0; 16];
    read_at(mem, chain.readable(), HEADER_BYTES, &mut range)?;
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] = range;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let bytes = u64::from(sectors).saturating_mul(SECTOR_BYTES);
    if sectors > BLOCK_DISCARD_SECTORS_MAX {
        return Err(GuestFault::TooLarge { bytes });
    }
    let offset = check_place(disk, sector, bytes)?;
    match (kind, flags) {
        (kind::DISCARD, 0) => Ok(Action::Discard { offset, bytes }),
        (kind::WRITE_ZEROES, 0 | RANGE_UNMAP) => Ok(Action::WriteZeroes {
            offset,
            bytes,
            may_unmap: flags == RANGE_UNMAP,
        }),
        // A flag that nobody has defined (§5.2.6.2: UNSUPP).
        _ => Err(GuestFault::UnknownType(kind)),
    }
}

/// Where `bytes` at `sector` lie on the disk, in bytes, if they are whole sectors of it and not too many.
fn check_extent(disk: &Disk, sector: u64, bytes: u64) -> Result<u64, GuestFault> {
    if bytes > BLOCK_REQUEST_BYTES_MAX {
        return Err(GuestFault::TooLarge { bytes });
    }
    check_place(disk, sector, bytes)
}

/// Where `bytes` at `sector` lie on the disk, in bytes, if they are whole sectors of it.
fn check_place(disk: &Disk, sector: u64, bytes: u64) -> Result<u64, GuestFault> {
    let fault = GuestFault::OutOfDisk { sector, bytes };
    let capacity = disk
        .capacity_sectors()
        .checked_mul(SECTOR_BYTES)
        .ok_or(fault)?;
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(fault)?;
    let end = offset.checked_add(bytes).ok_or(fault)?;
    if bytes.is_multiple_of(SECTOR_BYTES) && end <= capacity {
        Ok(offset)
    } else {
        Err(fault)
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
