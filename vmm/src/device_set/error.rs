//! Why devices could not be made.

use std::io;
use std::path::PathBuf;

use lightv_devices::serial::RestoreSerialError;
use lightv_devices::state::RestoreDeviceError;
use lightv_devices::virtio::block::{LockDiskError, OpenDiskError, OverlayError};
use lightv_devices::virtio::net::OpenTapError;
use lightv_devices::virtio::transport_state::RestoreTransportError;

use crate::listen::ListenError;
use crate::runtime_dir::RegisterError;
use crate::user_net::UserNetError;
use crate::vm::VmError;

/// Why devices could not be made. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum DeviceSetError {
    /// A disk could not be opened.
    #[error("Drive {id}")]
    Disk {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: OpenDiskError,
    },
    /// A disk is another machine's.
    #[error("Drive {id}")]
    Lock {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: LockDiskError,
    },
    /// A disk gets no layer of its own.
    #[error("Drive {id}: overlay")]
    Overlay {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: OverlayError,
    },
    /// The host does not pass its page cache by for this disk.
    #[error("Drive {id}: {} cannot be read past the host's page cache (direct): choose another file system, or leave it out", path.display())]
    Direct {
        /// Its id.
        id: String,
        /// The disk.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// The host has no io_uring for us.
    #[error(
        "Drive {id}: no io_uring here (io_engine Async): allow it (sysctl kernel.io_uring_disabled, a container's seccomp filter), or choose Sync"
    )]
    Engine {
        /// Its id.
        id: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A section that is no disk.
    #[error(
        "Drive {id}: the image holds {bytes} bytes for it, less than a sector of 512, or not their checksums"
    )]
    DiskInImage {
        /// Its id.
        id: String,
        /// Length of the section.
        bytes: u64,
    },
    /// A tap could not be opened.
    #[error("Network interface {id}")]
    Tap {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: OpenTapError,
    },
    /// A network in user space could not be started.
    #[error("Network interface {id}")]
    UserNet {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: UserNetError,
    },
    /// The image has other devices than its configuration.
    #[error("The image holds {found} devices and its configuration names {expected}")]
    Count {
        /// Devices of the configuration.
        expected: usize,
        /// Devices of the image.
        found: usize,
    },
    /// A saved device is of another kind than the configuration says.
    #[error("The image's device {place} is not the one that its configuration names there, {id}")]
    Kind {
        /// Its place.
        place: usize,
        /// Id in the configuration.
        id: String,
    },
    /// A saved device does not fit what it is given now.
    #[error("Device {id} cannot be restored")]
    Restore {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: RestoreDeviceError,
    },
    /// A disk does not fit what was saved.
    #[error("Drive {id} cannot be restored with disk {}", path.display())]
    RestoreDisk {
        /// Its id.
        id: String,
        /// The disk that was to be used.
        path: PathBuf,
        /// Why.
        #[source]
        cause: RestoreDeviceError,
    },
    /// Saved registers or queues make no sense.
    #[error("The registers of device {id} cannot be restored")]
    Transport {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        cause: RestoreTransportError,
    },
    /// The balloon has no timer.
    #[error("Cannot make the timer of the balloon's statistics")]
    BalloonTimer(#[source] io::Error),
    /// A standard stream could not be opened for the console.
    #[error("Cannot connect the console to the standard streams")]
    Streams(#[source] io::Error),
    /// The socket of vsock could not be made.
    #[error("vsock")]
    Vsock(#[source] ListenError),
    /// The same, for a snapshot.
    #[error(
        "vsock: the snapshot's socket cannot be made; another can be named by vsock_override, or --vsock"
    )]
    RestoreVsock(#[source] ListenError),
    /// There is no runtime directory for it.
    #[error(
        "exec: its socket lies in the runtime directory; another place can be named by --vsock"
    )]
    RuntimeDir(#[source] RegisterError),
    /// There are no descriptors left.
    #[error("vsock cannot wait for its clients")]
    WatchVsock(#[source] io::Error),
    /// The saved serial port makes no sense.
    #[error("The serial port cannot be restored")]
    Serial(#[source] RestoreSerialError),
    /// No descriptors left.
    #[error("Cannot make an eventfd")]
    EventFd(#[source] io::Error),
    /// KVM refused a connection.
    #[error("Cannot connect a device")]
    Connect(#[source] VmError),
}

impl DeviceSetError {
    /// Whether the cause is what the user wrote, or an image, and not the host.
    #[must_use]
    pub const fn is_bad_config(&self) -> bool {
        !matches!(
            self,
            Self::EventFd(_)
                | Self::Connect(_)
                | Self::Streams(_)
                | Self::BalloonTimer(_)
                | Self::WatchVsock(_)
                | Self::RuntimeDir(_)
                | Self::Overlay {
                    cause: OverlayError::Memory(_),
                    ..
                }
        )
    }
}
