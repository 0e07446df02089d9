//! Owned descriptor chains, and access to the guest memory that they name.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::fault::GuestFault;
use crate::memory::{self, GuestMem};

/// One buffer of a chain, as its descriptor was read: not checked against RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Guest-physical address.
    pub(crate) address: u64,
    /// Length in bytes, not 0.
    pub(crate) bytes: u32,
}

/// A descriptor chain, copied out of guest memory once. It goes back to its ring by value, so exactly once.
#[derive(Debug, Default)]
#[must_use = "a popped chain has to be completed"]
pub(crate) struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Chain {
    pub(crate) const fn head(&self) -> u16 {
        self.head
    }

    /// What the driver gives to the device, in order.
    pub(crate) fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// What the device may fill, in order.
    pub(crate) fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Forgets its buffers, keeping their space, and becomes the chain at `head`.
    pub(crate) fn restart(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
    }

    /// Appends a buffer. Empty ones are left out: they name nothing.
    ///
    /// # Errors
    /// A readable buffer after a writable one (virtio 1.2 §2.7.4.2).
    pub(crate) fn push(&mut self, segment: Segment, is_writable: bool) -> Result<(), GuestFault> {
        if !is_writable && !self.writable.is_empty() {
            return Err(GuestFault::BadChain);
        }
        if segment.bytes != 0 {
            let list = if is_writable {
                &mut self.writable
            } else {
                &mut self.readable
            };
            list.push(segment);
        }
        Ok(())
    }
}

/// Sum of the lengths in bytes. A chain has at most 2^32 bytes, so it cannot overflow.
pub(crate) fn total_bytes(segments: &[Segment]) -> u64 {
    segments
        .iter()
        .map(|segment| u64::from(segment.bytes))
        .sum()
}

/// Whether all of them lie wholly in RAM.
pub(crate) fn lie_in_ram(mem: &GuestMem, segments: &[Segment]) -> bool {
    segments.iter().all(|segment| {
        let address = GuestAddress(segment.address);
        GuestMemoryBackend::check_range(mem, address, segment.bytes as usize)
    })
}

/// The parts of `segments` that bytes `skip..skip + bytes` of them lie in, fewer when they end before.
pub(crate) fn parts(
    segments: &[Segment],
    skip: u64,
    bytes: u64,
) -> impl Iterator<Item = Segment> + '_ {
    let mut skip = skip;
    let mut left = bytes;
    segments.iter().filter_map(move |segment| {
        let length = u64::from(segment.bytes);
        if skip >= length {
            skip = skip.saturating_sub(length);
            return None;
        }
        let taken = length.saturating_sub(skip).min(left);
        // A buffer that goes round the end of addresses ends there: nothing is in RAM at the last one, and its use fails.
        let address = segment.address.saturating_add(skip);
        skip = 0;
        left = left.saturating_sub(taken);
        let bytes = u32::try_from(taken).ok()?;
        (bytes != 0).then_some(Segment { address, bytes })
    })
}

/// Fills `target` from byte `skip` of `segments` on.
///
/// # Errors
/// [`GuestFault::ShortChain`], [`GuestFault::OutOfRam`]; `target` is then undefined.
pub(crate) fn read_at(
    mem: &GuestMem,
    segments: &[Segment],
    skip: u64,
    target: &mut [u8],
) -> Result<(), GuestFault> {
    let mut rest = target;
    for part in parts(segments, skip, rest.len() as u64) {
        let taken = rest.len().min(part.bytes as usize);
        let (now, later) = rest.split_at_mut(taken);
        memory::read_bytes(mem, part.address, now).map_err(|_| part.out_of_ram())?;
        rest = later;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(GuestFault::ShortChain)
    }
}

/// Puts `source` into `segments` from their byte `skip` on.
///
/// # Errors
/// [`GuestFault::ShortChain`], [`GuestFault::OutOfRam`]; a part may then have been written.
pub(crate) fn write_at(
    mem: &GuestMem,
    segments: &[Segment],
    skip: u64,
    source: &[u8],
) -> Result<(), GuestFault> {
    let mut rest = source;
    for part in parts(segments, skip, rest.len() as u64) {
        let taken = rest.len().min(part.bytes as usize);
        let (now, later) = rest.split_at(taken);
        memory::write_bytes(mem, part.address, now).map_err(|_| part.out_of_ram())?;
        rest = later;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(GuestFault::ShortChain)
    }
}

impl Segment {
    /// That it does not lie in RAM.
    pub(crate) const fn out_of_ram(&self) -> GuestFault {
        GuestFault::OutOfRam {
            address: self.address,
            bytes: self.bytes as u64,
        }
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
