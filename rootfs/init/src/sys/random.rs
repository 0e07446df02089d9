//! The kernel's random pool.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct rand_pool_info` of `linux/random.h` with room for a seed.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; SEED_BYTES],
}

const SEED_BYTES: usize = 32;
/// `RNDADDENTROPY`: `_IOW('R', 3, int [2])`.
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
/// `RNDRESEEDCRNG`: `_IO('R', 7)`.
const RESEED: libc::c_ulong = 0x5207;
const _: () = assert!(size_of::<PoolInfo>() == 8 + SEED_BYTES);

/// Mixes `seed` into the pool behind `device` (`/dev/urandom`), believes all of it, and makes the generator take from the
/// pool now: the next random number of every process depends on `seed`.
///
/// # Errors
/// Those of the two ioctls.
pub fn reseed(device: &File, seed: [u8; SEED_BYTES]) -> io::Result<()> {
    let info = PoolInfo {
        entropy_bits: 256,
        bytes: 32,
        seed,
    };
    let fd = device.as_raw_fd();
    // SAFETY: ADD_ENTROPY reads a rand_pool_info with `bytes` bytes, which `info` is, and keeps no pointer to it.
    let done = unsafe { libc::ioctl(fd, ADD_ENTROPY, &raw const info) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RESEED has no argument.
    let done = unsafe { libc::ioctl(fd, RESEED) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
