//! Random bytes for a Linux kernel's pool, as setup data of type 9 (`SETUP_RNG_SEED`, Linux 6.0 and later;
//! Documentation/arch/x86/boot.rst). With `CONFIG_RANDOM_TRUST_BOOTLOADER` the pool is ready before the first program
//! runs. Only the Linux entry can pass them on: PVH has no place for them.
//!
//! Linux wipes the seed when it has read it. A machine that is saved before that is given none, neither here nor in a
//! clone: two clones must not begin with the same one.

use std::io;

use lightv_devices::memory::GuestMem;
use vm_memory::{Address, Bytes};

use super::layout;
use crate::sys::process::random;

/// Link to the next setup data (none), type, length of what follows.
const HEADER_BYTES: usize = 8 + 4 + 4;
const SETUP_RNG_SEED: u32 = 9;
/// As much as the pool takes in.
const SEED_BYTES: u32 = 32;
/// Header and seed.
const ALL_BYTES: usize = HEADER_BYTES + SEED_BYTES as usize;

const _: () = assert!(
    layout::RNG_SEED.0 + ALL_BYTES as u64 <= layout::RNG_SEED_END,
    "the seed fits where it goes"
);

/// Why the seed could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteSeedError {
    /// No random bytes.
    #[error("Cannot get random bytes from the host for the guest's seed")]
    Random(#[source] io::Error),
    /// No RAM there.
    #[error("RAM has no room for the random seed at {address:#x}")]
    Room {
        /// Where it was to be written.
        address: u64,
    },
}

/// Writes a fresh seed at [`layout::RNG_SEED`].
///
/// # Errors
/// [`WriteSeedError`].
pub fn write_fresh(mem: &GuestMem) -> Result<(), WriteSeedError> {
    let mut seed = [0; SEED_BYTES as usize];
    random(&mut seed).map_err(WriteSeedError::Random)?;
    mem.write_slice(&[&header()[..], &seed].concat(), layout::RNG_SEED)
        .map_err(|_| WriteSeedError::Room {
            address: layout::RNG_SEED.raw_value(),
        })
}

/// Wipes a seed that the kernel has not read yet; the kernel then finds setup data that is none. The guest does not run.
pub fn forget(mem: &GuestMem) {
    let mut found = [0; HEADER_BYTES];
    let is_there = mem.read_slice(&mut found, layout::RNG_SEED).is_ok() && found == header();
    if is_there {
        // What could be read can be written.
        let _ = mem.write_slice(&[0; ALL_BYTES], layout::RNG_SEED);
    }
}

fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let (_next, rest) = header.split_at_mut(8);
    let (kind, length) = rest.split_at_mut(4);
    kind.copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    length.copy_from_slice(&SEED_BYTES.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    fn mem() -> GuestMem {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()
    }

    fn read(mem: &GuestMem) -> [u8; ALL_BYTES] {
        let mut found = [0; ALL_BYTES];
        mem.read_slice(&mut found, layout::RNG_SEED).unwrap();
        found
    }

    #[test]
    fn every_seed_is_another_one_of_32_bytes() {
        let (mem, mut seen) = (mem(), vec![[0; 32]]);
        for _ in 0..20 {
            write_fresh(&mem).unwrap();
            let found = read(&mem);
            let (header, seed) = found.split_first_chunk::<16>().unwrap();
            assert_eq!(header[..8], [0; 8], "no other setup data");
            assert_eq!(header[8..], [9, 0, 0, 0, 32, 0, 0, 0]);
            let seed = <[u8; 32]>::try_from(seed).unwrap();
            assert!(!seen.contains(&seed));
            seen.push(seed);
        }
    }

    #[test]
    fn a_seed_that_was_not_read_is_forgotten() {
        let mem = mem();
        write_fresh(&mem).unwrap();
        forget(&mem);
        assert_eq!(read(&mem), [0; ALL_BYTES]);
    }

    #[test]
    fn what_else_a_guest_has_there_is_left_alone() {
        let mem = mem();
        // As Linux leaves it: the length wiped too.
        for bytes in [[0; ALL_BYTES], [9; ALL_BYTES]] {
            mem.write_slice(&bytes, layout::RNG_SEED).unwrap();
            forget(&mem);
            assert_eq!(read(&mem), bytes);
        }
    }
}
