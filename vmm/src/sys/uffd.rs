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

/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`, `_IOWR(0xaa, 0x04, struct uffdio_zeropage)` and
/// `_IOR(0xaa, 0x01, struct uffdio_range)`.
const IOCTL_COPY: libc::c_ulong = 0xc028_aa03;
const IOCTL_ZERO: libc::c_ulong = 0xc020_aa04;
const IOCTL_UNREGISTER: libc::c_ulong = 0x8010_aa01;
/// `UFFD_EVENT_PAGEFAULT`.
const EVENT_FAULT: u8 = 0x12;
/// `struct uffd_msg`: its length, and where the address of a fault is.
const MESSAGE_BYTES: usize = 32;
const ADDRESS_AT: usize = 16;

/// `struct uffdio_copy`.
#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct UffdioZero {
    start: u64,
    len: u64,
    mode: u64,
    zeroed: i64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

const _: () = assert!(size_of::<UffdioCopy>() == 40 && size_of::<UffdioZero>() == 32);

/// A [`Userfault`] of another process, by which its memory is filled.
#[derive(Debug)]
pub struct ForeignFaults(OwnedFd);

impl ForeignFaults {
    /// By a descriptor that the process has sent. Whatever else it has sent fails when it is used.
    #[must_use]
    pub const fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The address there of the next fault that waits, if any.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next(&self) -> io::Result<Option<u64>> {
        let mut message = [0; MESSAGE_BYTES];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut message)) {
            Ok(MESSAGE_BYTES) if message.first() == Some(&EVENT_FAULT) => {
                let address = message.get(ADDRESS_AT..).and_then(<[u8]>::first_chunk);
                Ok(address.map(|bytes| u64::from_ne_bytes(*bytes)))
            }
            // Another event, of which none was asked for: it is no userfaultfd.
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(cause) => Err(cause.into()),
        }
    }

    /// Fills `address..+bytes` there with what lies at `offset` of `mapping`, and wakes who waits for it. Gives how many bytes were
    /// filled before one was met that is there already.
    ///
    /// # Errors
    /// The kernel's, for the first page; `ESRCH` when the process is gone. `ENOENT` when some of the range is not to be filled, or
    /// it lies in several mappings: none of it was filled then. `EINVAL` for what is not in `mapping`.
    pub fn copy(
        &self,
        address: u64,
        mapping: &Mapping,
        (offset, bytes): (usize, usize),
    ) -> io::Result<u64> {
        let inside = offset.checked_add(bytes);
        if inside.is_none_or(|end| end > mapping.bytes()) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut request = UffdioCopy {
            dst: address,
            src: (mapping.address() + offset) as u64,
            len: bytes as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: `request` is the structure that this ioctl reads and writes, and lives over the call. The kernel reads
        // `bytes` of a mapping of ours that is never taken down (checked above), and writes the other process's memory alone.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), IOCTL_COPY, &raw mut request) };
        outcome(result, request.copied)
    }

    /// Fills the pages `address..+bytes` there with zeroes, and wakes who waits for them. As [`copy`](Self::copy).
    ///
    /// # Errors
    /// As for [`copy`](Self::copy).
    pub fn zero(&self, address: u64, bytes: u64) -> io::Result<u64> {
        let mut request = UffdioZero {
            start: address,
            len: bytes,
            mode: 0,
            zeroed: 0,
        };
        // SAFETY: `request` is the structure that this ioctl reads and writes, and lives over the call; no memory of ours is
        // touched.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), IOCTL_ZERO, &raw mut request) };
        outcome(result, request.zeroed)
    }

    /// Has no more faults of `address..+bytes` told: what is not there yet is zero from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn let_go(&self, address: u64, bytes: u64) -> io::Result<()> {
        let range = UffdioRange {
            start: address,
            len: bytes,
        };
        // SAFETY: `range` is the structure that this ioctl reads, and lives over the call; no memory of ours is touched.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), IOCTL_UNREGISTER, &raw const range) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl AsFd for ForeignFaults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Of a call that fills pages: it may fail after some of them.
fn outcome(result: libc::c_int, bytes: i64) -> io::Result<u64> {
    let error = io::Error::last_os_error();
    match (result, u64::try_from(bytes)) {
        (_, Ok(bytes)) if bytes > 0 => Ok(bytes),
        (0, _) => Ok(0),
        _ => Err(error),
    }
}
