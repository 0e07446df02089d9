//! KVM's own counters of a vCPU: how often it left the guest, and why (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD).
//!
//! A vCPU's exits that KVM serves itself are seen here alone: the monitor sees only those that come back to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kvm_ioctls::VcpuFd;

use crate::limits;
use crate::sys::kvm::stats_file;

/// The counters that are told of, by KVM's names: all exits, and what they were for. Some exits are of none of these kinds, and
/// where KVM emulates a guest's kernel, an exit may stand for many instructions.
pub const NAMES: [&str; 8] = [
    "exits",
    "halt_exits",
    "hypercalls",
    "insn_emulation",
    "io_exits",
    "irq_exits",
    "mmio_exits",
    "signal_exits",
];

/// `struct kvm_stats_header`.
const HEADER_BYTES: usize = 24;
/// `struct kvm_stats_desc` without the name.
const DESCRIPTOR_BYTES: usize = 16;

/// The counters of one vCPU.
#[derive(Debug)]
pub struct VcpuStats {
    file: File,
}

impl VcpuStats {
    /// Those of `vcpu`, which does not run yet.
    ///
    /// # Errors
    /// The kernel's: KVM may not have them.
    pub fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        stats_file(vcpu).map(|file| Self { file })
    }

    /// Those of [`NAMES`] that KVM has, as they are now.
    ///
    /// # Errors
    /// The kernel's, and for a layout that is none.
    pub fn read(&self) -> io::Result<BTreeMap<&'static str, u64>> {
        let mut header = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut header, 0)?;
        let layout = Layout::parse(&header).ok_or_else(bad_layout)?;
        let mut descriptors = vec![0; layout.descriptors_bytes];
        self.file
            .read_exact_at(&mut descriptors, layout.descriptors_at)?;
        let mut counters = BTreeMap::new();
        for (name, offset) in descriptors
            .chunks_exact(layout.descriptor_bytes)
            .filter_map(wanted)
        {
            let mut value = [0; 8];
            self.file
                .read_exact_at(&mut value, layout.data_at + u64::from(offset))?;
            counters.insert(name, u64::from_ne_bytes(value));
        }
        Ok(counters)
    }
}

fn bad_layout() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "KVM describes its counters in a way that is not known",
    )
}

/// Where things lie in the file.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    descriptor_bytes: usize,
    descriptors_bytes: usize,
    descriptors_at: u64,
    data_at: u64,
}

impl Layout {
    fn parse(header: &[u8; HEADER_BYTES]) -> Option<Self> {
        let [_flags, name_bytes, count, _id_at, descriptors_at, data_at] = words(header)?;
        if name_bytes > limits::KVM_STAT_NAME_BYTES_MAX || count > limits::KVM_STATS_MAX {
            return None;
        }
        let descriptor_bytes = DESCRIPTOR_BYTES + usize::try_from(name_bytes).ok()?;
        Some(Self {
            descriptor_bytes,
            descriptors_bytes: descriptor_bytes * usize::try_from(count).ok()?,
            descriptors_at: descriptors_at.into(),
            data_at: data_at.into(),
        })
    }
}

/// The numbers at the start of `bytes`.
fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let (words, _) = bytes.as_chunks::<4>();
    let words: Vec<u32> = words
        .iter()
        .take(N)
        .map(|word| u32::from_ne_bytes(*word))
        .collect();
    words.try_into().ok()
}

/// Name and place of a counter, if it is one of [`NAMES`] and one number.
fn wanted(descriptor: &[u8]) -> Option<(&'static str, u32)> {
    let (fields, name) = descriptor.split_at_checked(DESCRIPTOR_BYTES)?;
    let [_flags, _exponent_and_size, offset, _bucket] = words(fields)?;
    let [_, size] = fields.get(4..8)?.as_chunks::<2>().0 else {
        return None;
    };
    let name = name.split(|byte| *byte == 0).next()?;
    let name = NAMES.into_iter().find(|known| known.as_bytes() == name)?;
    (u16::from_ne_bytes(*size) == 1).then_some((name, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(name: &str, size: u16, offset: u32) -> Vec<u8> {
        let mut bytes = vec![0; 6];
        bytes.extend(size.to_ne_bytes());
        bytes.extend(offset.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name.as_bytes());
        bytes.resize(DESCRIPTOR_BYTES + 48, 0);
        bytes
    }

    #[test]
    fn only_plain_counters_of_known_names_are_taken() {
        for (name, size, expected) in [
            ("exits", 1, Some(("exits", 904))),
            ("exits", 32, None),
            ("exit", 1, None),
            ("exits2", 1, None),
            ("", 1, None),
        ] {
            assert_eq!(wanted(&descriptor(name, size, 904)), expected, "{name}");
        }
        assert_eq!(wanted(&[0; DESCRIPTOR_BYTES - 1]), None);
    }

    #[test]
    fn a_header_may_not_ask_for_more_than_there_can_be() {
        let header = |words: [u32; 6]| -> [u8; HEADER_BYTES] {
            let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
            bytes.try_into().expect("six words")
        };
        let layout = Layout {
            descriptor_bytes: 64,
            descriptors_bytes: 64 * 47,
            descriptors_at: 72,
            data_at: 3080,
        };
        assert_eq!(
            Layout::parse(&header([0, 48, 47, 24, 72, 3080])),
            Some(layout)
        );
        for (name_bytes, count) in [
            (limits::KVM_STAT_NAME_BYTES_MAX + 1, 47),
            (48, limits::KVM_STATS_MAX + 1),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(
                Layout::parse(&header([0, name_bytes, count, 24, 72, 3080])),
                None
            );
        }
    }
}
