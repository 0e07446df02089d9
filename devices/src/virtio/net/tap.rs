//! The host's side of a network card: a tap.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::sys::tun::{self, Share};
use crate::virtio::net::config::feature;
use crate::virtio::net::frame::HEADER_BYTES;
use crate::virtio::net::tap_queues::TapQueues;

/// Where the kernel gives out taps.
const TUN_PATH: &str = "/dev/net/tun";

/// An open tap that gives and takes whole frames, each after a virtio header.
#[derive(Debug)]
pub struct Tap {
    /// Its first queue.
    fd: OwnedFd,
    /// Of a tap with several.
    queues: Option<Box<TapQueues>>,
    source: Source,
    has_uso: bool,
    offload: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The kernel's.
    Tun,
    /// A socket of frames, which has no offloads to set.
    FrameSocket,
}

/// Why a tap was refused. The operator sees only this text and its causes.
#[derive(Debug, thiserror::Error)]
pub enum OpenTapError {
    /// No interface can have this name.
    #[error("Tap name {name:?} is not 1 to 15 bytes without '/', '%', ':' and white space")]
    Name {
        /// The name.
        name: String,
    },
    /// The kernel's tun driver cannot be opened.
    #[error("Cannot open {TUN_PATH} for tap {name}")]
    OpenTun {
        /// The tap.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// Another process has it.
    #[error("Tap {name} is in use by another process: give each machine its own (--net ID=TAP)")]
    Busy {
        /// The tap.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It belongs to another user.
    #[error(
        "No permission to use tap {name}: it needs CAP_NET_ADMIN, or a tap of this user's own \
         (ip tuntap add dev {name} mode {mode} user USER)"
    )]
    NotPermitted {
        /// The tap.
        name: String,
        /// How it is to be made.
        mode: &'static str,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// There is none, and this process cannot make one.
    #[error(
        "Tap {name} does not exist, and creating it needs CAP_NET_ADMIN \
         (ip tuntap add dev {name} mode {mode} user USER)"
    )]
    Missing {
        /// The tap.
        name: String,
        /// How it is to be made.
        mode: &'static str,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// The interface is of another kind.
    #[error(
        "Interface {name} is not a tap that one process can use: it is no tap, or a tun, or was made with multi_queue, \
         which is for cards with num_queues of 2 or more"
    )]
    WrongKind {
        /// The interface.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// The interface has one queue, or is of another kind.
    #[error(
        "Interface {name} is not a tap with several queues, which a card with num_queues of 2 or more needs: \
         make it with multi_queue (ip tuntap add dev {name} mode tap multi_queue user USER)"
    )]
    OneQueue {
        /// The interface.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// Its queues cannot be watched together.
    #[error("Cannot watch the queues of tap {name}")]
    Watch {
        /// The tap.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// There is no such descriptor.
    #[error(
        "Descriptor {number} is not one that was passed to this process: open the tap, and let its descriptor be inherited (no FD_CLOEXEC) under that number"
    )]
    Inherit {
        /// The descriptor.
        number: i32,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It is of something else.
    #[error("Descriptor {number} is no tap")]
    NoTap {
        /// The descriptor.
        number: i32,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It is a tap that cannot be used.
    #[error("Descriptor {number}, interface {name}: {what}")]
    InheritedKind {
        /// The descriptor.
        number: i32,
        /// The interface.
        name: String,
        /// What is wrong, and what to do.
        what: &'static str,
    },
    /// Something else.
    #[error("Cannot attach to tap {name}")]
    Attach {
        /// The tap.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It cannot carry virtio headers.
    #[error("Cannot set up the header of tap {name}")]
    Header {
        /// The tap.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It cannot even do without offloads.
    #[error("Cannot set up the offloads of tap {name}")]
    Offload {
        /// The tap.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
}

impl Tap {
    /// Attaches to the tap `name` of this network namespace, with a queue for each of `pairs` pairs of the card's. If there is
    /// none, and the process may, it is made, and goes away with the process.
    ///
    /// A tap with several queues is not the process's alone: the kernel lets others have further ones.
    ///
    /// # Errors
    /// [`OpenTapError`].
    pub fn open(name: &str, pairs: u16) -> Result<Self, OpenTapError> {
        if !is_interface_name(name) {
            return Err(OpenTapError::Name {
                name: name.to_owned(),
            });
        }
        if pairs <= 1 {
            return Self::set_up(attach(name, Share::Whole)?, name);
        }
        let tap = Self::set_up(attach(name, Share::Queue)?, name)?;
        let further = (1..pairs).map(|_| {
            let queue = attach(name, Share::Queue)?;
            set_header(&queue, name)?;
            Ok(queue)
        });
        let further = further.collect::<Result<_, _>>()?;
        tap.with_further(further)
            .map_err(|cause| OpenTapError::Watch {
                name: name.to_owned(),
                cause,
            })
    }

    /// Itself with more queues: of the same tap, or frame sockets as the first is one. They take part in its traffic as they are.
    ///
    /// # Errors
    /// The kernel's, when they cannot be watched together.
    pub fn with_further(mut self, further: Vec<OwnedFd>) -> io::Result<Self> {
        self.queues = Some(Box::new(TapQueues::new(further)?));
        Ok(self)
    }

    /// A tap that the caller has attached already, with IFF_VNET_HDR, and made non-blocking. `name` is for messages.
    ///
    /// # Errors
    /// [`OpenTapError::Header`].
    pub fn from_fd(fd: OwnedFd, name: &str) -> Result<Self, OpenTapError> {
        Self::set_up(fd, name)
    }

    /// The tap that the process has inherited as descriptor `number`: somebody with the rights has attached it, with
    /// IFF_VNET_HDR, and passed it on. It stays open until the process ends, and can be inherited again.
    ///
    /// # Errors
    /// [`OpenTapError`].
    pub fn inherit(number: i32) -> Result<Self, OpenTapError> {
        let failed = |cause| OpenTapError::Inherit { number, cause };
        let fd = tun::duplicate_inherited(number).map_err(failed)?;
        let found =
            tun::identity(fd.as_fd()).map_err(|cause| OpenTapError::NoTap { number, cause })?;
        let refused = |what| OpenTapError::InheritedKind {
            number,
            name: found.name.clone(),
            what,
        };
        let flags = libc::c_int::from(found.flags);
        if flags & libc::IFF_TAP == 0 {
            return Err(refused("it is a tun: attach it with IFF_TAP"));
        }
        if flags & libc::IFF_NO_PI == 0 {
            return Err(refused("it is attached without IFF_NO_PI"));
        }
        if flags & libc::IFF_VNET_HDR == 0 {
            return Err(refused("it is attached without IFF_VNET_HDR"));
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(|cause| failed(cause.into()))?;
        Self::set_up(fd, &found.name)
    }

    fn set_up(fd: OwnedFd, name: &str) -> Result<Self, OpenTapError> {
        set_header(&fd, name)?;
        let has_uso = probe_uso(fd.as_fd()).map_err(|cause| OpenTapError::Offload {
            name: name.to_owned(),
            cause,
        })?;
        Ok(Self {
            fd,
            queues: None,
            source: Source::Tun,
            has_uso,
            offload: 0,
        })
    }

    /// A socket that keeps message boundaries (SOCK_SEQPACKET or SOCK_DGRAM), non-blocking, on whose other end someone
    /// gives and takes frames with 12-byte headers: a switch in user space, or a test.
    #[must_use]
    pub const fn from_frame_socket(fd: OwnedFd) -> Self {
        Self {
            fd,
            queues: None,
            source: Source::FrameSocket,
            has_uso: false,
            offload: 0,
        }
    }

    /// Tells the kernel what it may leave to the guest: exactly what the guest has accepted.
    pub(super) fn set_offload(&mut self, acked_features: u64) -> io::Result<()> {
        let offload = offload_for(acked_features);
        if self.source == Source::Tun {
            tun::set_offload(self.fd.as_fd(), offload)?;
        }
        self.offload = offload;
        Ok(())
    }

    /// Number of its queues in each direction: 1 or more.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.queues.as_ref().map_or(1, |queues| queues.count())
    }

    /// How many of them take part in its traffic.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.queues.as_ref().map_or(1, |queues| queues.attached())
    }

    /// Queue `number`: the first in place of one that does not take part.
    pub(super) fn queue(&self, number: usize) -> BorrowedFd<'_> {
        let further = self.queues.as_ref().and_then(|queues| queues.get(number));
        further.unwrap_or_else(|| self.fd.as_fd())
    }

    /// Has the first `count` queues take part in its traffic, and no others.
    pub(super) fn attach(&mut self, count: usize) -> io::Result<()> {
        let Some(queues) = &mut self.queues else {
            return Ok(());
        };
        let before = queues.attached();
        let are_of_tun = self.source == Source::Tun;
        let attached = queues.attach(count, are_of_tun);
        if attached.is_err() {
            // As it was, if that can be had.
            let _ = queues.attach(before, are_of_tun);
        }
        attached
    }

    /// Watches queue `number` of several, or not. That of one queue is watched by who calls.
    pub(super) fn watch(&mut self, number: usize, is_wanted: bool) {
        let Some(queues) = &mut self.queues else {
            return;
        };
        queues.watch(number, self.fd.as_fd(), is_wanted);
    }

    /// What is readable when a queue is that is watched.
    pub(super) fn watched(&self) -> BorrowedFd<'_> {
        match &self.queues {
            Some(queues) => queues.as_fd(),
            None => self.fd.as_fd(),
        }
    }

    /// Whether the kernel cuts UDP for the guest, and leaves it whole for a guest that takes that: from Linux 6.2 on.
    #[must_use]
    pub const fn has_uso(&self) -> bool {
        self.has_uso
    }

    /// What was set last: `TUN_F_*`.
    #[must_use]
    pub const fn offload(&self) -> u32 {
        self.offload
    }
}

/// A new descriptor of the tap `name`.
fn attach(name: &str, share: Share) -> Result<OwnedFd, OpenTapError> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(TUN_PATH)
        .map_err(|cause| OpenTapError::OpenTun {
            name: name.to_owned(),
            cause,
        })?;
    tun::attach(tun.as_fd(), name, share).map_err(|cause| attach_error(name, share, cause))?;
    Ok(OwnedFd::from(tun))
}

fn set_header(fd: &OwnedFd, name: &str) -> Result<(), OpenTapError> {
    let header_bytes = i32::try_from(HEADER_BYTES).unwrap_or(i32::MAX);
    tun::set_header_bytes(fd.as_fd(), header_bytes).map_err(|cause| OpenTapError::Header {
        name: name.to_owned(),
        cause,
    })
}

/// Both together: the kernel takes neither alone.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Asks the kernel whether it knows of USO, which it says in no other way. The tap is then without offloads: what comes
/// before the guest's driver is for no driver yet.
fn probe_uso(tap: BorrowedFd<'_>) -> io::Result<bool> {
    let has_uso = tun::set_offload(tap, libc::TUN_F_CSUM | USO).is_ok();
    match tun::set_offload(tap, 0) {
        // Deleted since it was opened: the guest has then a card without a cable.
        Err(cause) if cause.raw_os_error() == Some(libc::EBADFD) => Ok(has_uso),
        result => result.map(|()| has_uso),
    }
}

/// The kernel takes segmentation only together with checksums.
const fn offload_for(acked_features: u64) -> u32 {
    if acked_features & feature::GUEST_CSUM == 0 {
        return 0;
    }
    let mut offload = libc::TUN_F_CSUM;
    if acked_features & feature::GUEST_TSO4 != 0 {
        offload |= libc::TUN_F_TSO4;
    }
    if acked_features & feature::GUEST_TSO6 != 0 {
        offload |= libc::TUN_F_TSO6;
    }
    let uso = feature::GUEST_USO4 | feature::GUEST_USO6;
    if acked_features & uso == uso {
        offload |= USO;
    }
    offload
}

/// The kernel's `dev_valid_name`, and no `%`, for which it would choose a number.
fn is_interface_name(name: &str) -> bool {
    let is_allowed =
        |byte: u8| !matches!(byte, b'/' | b'%' | b':' | 0) && !byte.is_ascii_whitespace();
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| is_allowed(byte) && byte != 0x0b)
        && !name.chars().any(char::is_whitespace)
}

fn attach_error(name: &str, share: Share, cause: io::Error) -> OpenTapError {
    let exists = tun::interface_exists(name);
    let name = name.to_owned();
    let mode = match share {
        Share::Whole => "tap",
        Share::Queue => "tap multi_queue",
    };
    match (cause.raw_os_error(), share) {
        (Some(libc::EBUSY), _) => OpenTapError::Busy { name, cause },
        (Some(libc::EPERM | libc::EACCES), _) if exists => {
            OpenTapError::NotPermitted { name, mode, cause }
        }
        (Some(libc::EPERM | libc::EACCES), _) => OpenTapError::Missing { name, mode, cause },
        (Some(libc::EINVAL), Share::Whole) => OpenTapError::WrongKind { name, cause },
        (Some(libc::EINVAL), Share::Queue) => OpenTapError::OneQueue { name, cause },
        _ => OpenTapError::Attach { name, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused_before_the_kernel_sees_them() {
        for name in [
            "",
            "0123456789abcdef",
            "../x",
            "tap%d",
            "a b",
            "a\tb",
            ".",
            "..",
            "a:b",
            "a\0b",
            "a\u{a0}b",
        ] {
            let found = Tap::open(name, 1);
            assert!(
                matches!(found, Err(OpenTapError::Name { .. })),
                "{name:?}: {found:?}"
            );
        }
        assert!(is_interface_name("0123456789abcde"));
        assert!(is_interface_name("tap0"));
    }

    #[test]
    fn offloads_are_those_accepted_and_none_without_checksums() {
        use feature::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6};
        for (features, offload) in [
            (0, 0),
            (GUEST_TSO4 | GUEST_TSO6, 0),
            (GUEST_CSUM, 1),
            (GUEST_CSUM | GUEST_TSO4, 3),
            (GUEST_CSUM | GUEST_TSO6, 5),
            (GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6, 7),
            (GUEST_USO4 | GUEST_USO6, 0),
            (GUEST_CSUM | GUEST_USO4, 1),
            (GUEST_CSUM | GUEST_USO4 | GUEST_USO6, 0x61),
        ] {
            assert_eq!(offload_for(features), offload, "{features:#x}");
        }
    }

    #[test]
    fn errors_name_the_tap_and_what_to_do() {
        let of = |share, errno| {
            let cause = io::Error::from_raw_os_error(errno);
            attach_error("lv-none0", share, cause).to_string()
        };
        let text = |errno| of(Share::Whole, errno);
        assert!(text(libc::EBUSY).contains("lv-none0 is in use"));
        assert!(text(libc::EPERM).contains("lv-none0 does not exist"));
        assert!(text(libc::EINVAL).contains("multi_queue"));
        assert!(text(libc::ENOMEM).contains("lv-none0"));
        for errno in [libc::EPERM, libc::EINVAL] {
            let text = of(Share::Queue, errno);
            assert!(
                text.contains("ip tuntap add dev lv-none0 mode tap multi_queue user USER"),
                "{text}"
            );
        }
    }
}
