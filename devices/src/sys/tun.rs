//! The kernel's tap interface (linux/if_tun.h).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes of an interface name with its NUL byte.
const NAME_BYTES: usize = libc::IFNAMSIZ;

/// The part of `struct ifreq` that the calls below use.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: libc::c_short,
    /// The kernel copies all of `struct ifreq`.
    rest: [u8; 22],
}
const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// The flags of an interface that LightV attaches to: whole Ethernet frames, each with a virtio header.
const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Attaches `tun`, an open /dev/net/tun, to the tap `name`. It is created if there is none and the caller may.
///
/// # Errors
/// The kernel's; `EINVAL` for a name of 16 bytes or more.
pub(crate) fn attach(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = InterfaceRequest {
        name: [0; NAME_BYTES],
        flags: 0,
        rest: [0; 22],
    };
    let too_long = || io::Error::from_raw_os_error(libc::EINVAL);
    if name.len() >= NAME_BYTES {
        return Err(too_long());
    }
    request
        .name
        .get_mut(..name.len())
        .ok_or_else(too_long)?
        .copy_from_slice(name.as_bytes());
    request.flags = libc::c_short::try_from(TAP_FLAGS).map_err(|_| too_long())?;
    // SAFETY: `request` has the size of `struct ifreq` (asserted above), is initialised and borrowed exclusively; its
    // name ends with a NUL byte, since it is shorter than the field.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Sets the length of the header before each frame in bytes.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_header_bytes(tap: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int through the pointer, which is valid over the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// Sets what may be left to the reader of frames: `TUN_F_*`.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_offload(tap: BorrowedFd<'_>, offload: libc::c_uint) -> io::Result<()> {
    let argument = libc::c_ulong::from(offload);
    // SAFETY: the argument is a number, the kernel follows no pointer.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, argument) })
}

/// Whether this network namespace has an interface `name`.
pub(crate) fn interface_exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else {
        return false;
    };
    // SAFETY: `name` is a NUL-terminated string that lives over the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
