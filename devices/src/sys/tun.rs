//! The kernel's tap interface (linux/if_tun.h).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

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

impl InterfaceRequest {
    const fn new() -> Self {
        Self {
            name: [0; NAME_BYTES],
            flags: 0,
            rest: [0; 22],
        }
    }
}

/// The flags of an interface that LightV attaches to: whole Ethernet frames, each with a virtio header.
const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// What a descriptor is to a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// All of it: no other descriptor can be attached.
    Whole,
    /// A queue of several.
    Queue,
}

impl Share {
    const fn flags(self) -> libc::c_int {
        match self {
            Self::Whole => TAP_FLAGS,
            Self::Queue => TAP_FLAGS | libc::IFF_MULTI_QUEUE,
        }
    }
}

/// Attaches `tun`, an open /dev/net/tun, to the tap `name`. It is created if there is none and the caller may.
///
/// # Errors
/// The kernel's; `EINVAL` for a name of 16 bytes or more, and for a tap that was made for the other share.
pub(crate) fn attach(tun: BorrowedFd<'_>, name: &str, share: Share) -> io::Result<()> {
    let mut request = InterfaceRequest::new();
    let too_long = || io::Error::from_raw_os_error(libc::EINVAL);
    if name.len() >= NAME_BYTES {
        return Err(too_long());
    }
    request
        .name
        .get_mut(..name.len())
        .ok_or_else(too_long)?
        .copy_from_slice(name.as_bytes());
    request.flags = libc::c_short::try_from(share.flags()).map_err(|_| too_long())?;
    // SAFETY: `request` has the size of `struct ifreq` (asserted above), is initialised and borrowed exclusively; its
    // name ends with a NUL byte, since it is shorter than the field.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Has `queue`, a queue of several, take part in its tap's traffic, or not.
///
/// # Errors
/// The kernel's; `EINVAL` when it does so already.
pub(crate) fn set_queue(queue: BorrowedFd<'_>, takes_part: bool) -> io::Result<()> {
    let mut request = InterfaceRequest::new();
    let flag = if takes_part {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    let impossible = |_| io::Error::from_raw_os_error(libc::EINVAL);
    request.flags = libc::c_short::try_from(flag).map_err(impossible)?;
    // SAFETY: the kernel reads a `struct ifreq`, whose size `request` has (asserted above), which is initialised and lives over
    // the call.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// What an attached descriptor is.
pub(crate) struct Identity {
    /// The interface.
    pub(crate) name: String,
    /// `IFF_*`, as it was attached.
    pub(crate) flags: libc::c_short,
}

/// What `tap` is attached to.
///
/// # Errors
/// The kernel's: ENOTTY and others when it is none.
pub(crate) fn identity(tap: BorrowedFd<'_>) -> io::Result<Identity> {
    let mut request = InterfaceRequest::new();
    // SAFETY: the kernel writes a `struct ifreq`, whose size `request` has (asserted above), and which is borrowed exclusively.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let name = request.name.split(|byte| *byte == 0).next();
    Ok(Identity {
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        flags: request.flags,
    })
}

/// Another descriptor, closed at exec, of what this process has inherited as `number`. Those that it has opened itself are
/// closed at exec, so that none of them is taken for an inherited one.
///
/// # Errors
/// EBADF when there is no such descriptor, or when it is one of our own.
pub(crate) fn duplicate_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and follows no pointer.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    check(flags)?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the call takes three numbers and follows no pointer.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    check(duplicate)?;
    // SAFETY: the kernel has just made it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
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
