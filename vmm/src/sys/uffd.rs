//! Pages that another process serves (userfaultfd(2), ioctl_userfaultfd(2)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::mapping::Mapping;

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MODE_MISSING: u64 = 1;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)` and `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const IOCTL_API: libc::c_ulong = 0xc018_aa3f;
const IOCTL_REGISTER: libc::c_ulong = 0xc020_aa00;

/// `struct uffdio_api`.
#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// Gives those who may open it a descriptor.
const DEVICE: &str = "/dev/userfaultfd";
/// `USERFAULTFD_IOC_NEW`: `_IO(0xaa, 0x00)`.
const IOCTL_NEW: libc::c_ulong = 0xaa00;

/// A descriptor of `device`, [`DEVICE`].
fn by_device(device: &File) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: this ioctl takes flags and gives a new descriptor, which is only used for mappings of this process that are
    // never unmapped.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_NEW, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The same by the system call.
fn by_call() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: the descriptor is only used for mappings of this process that are never unmapped.
    Ok(unsafe { userfaultfd(flags) }?)
}

/// A descriptor by which faults are told and served.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// A new one. KVM's faults come from the kernel, so the process needs a `/dev/userfaultfd` that it may open, as a jail has
    /// one; or CAP_SYS_PTRACE, or `vm.unprivileged_userfaultfd` of 1.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let fd = match File::open(DEVICE) {
            Ok(device) => by_device(&device)?,
            Err(_) => by_call()?,
        };
        let mut api = UffdioApi {
            api: API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: `api` is the structure that this ioctl reads and writes, and lives over the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), IOCTL_API, &raw mut api) };
        if result == 0 {
            Ok(Self(fd))
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Has faults of untouched pages of `mapping` told.
    ///
    /// # Errors
    /// The kernel's.
    pub fn register(&self, mapping: &Mapping) -> io::Result<()> {
        let mut register = UffdioRegister {
            start: mapping.address() as u64,
            len: mapping.bytes() as u64,
            mode: MODE_MISSING,
            ioctls: 0,
        };
        let fd = self.0.as_raw_fd();
        // SAFETY: `register` is the structure that this ioctl reads and writes, and lives over the call. Who reads the
        // mapping then waits for whoever serves it: that is what is wanted.
        let result = unsafe { libc::ioctl(fd, IOCTL_REGISTER, &raw mut register) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
