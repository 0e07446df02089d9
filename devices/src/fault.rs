//! What goes wrong: by the guest's mistake, or by the host's failure. Never both in one type.

use std::io;

/// A guest's mistake. It ends as a status byte or DEVICE_NEEDS_RESET, and in [`crate::counters::Counters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// The available index is further ahead than the ring is long (virtio 1.2 §2.7.13.3).
    #[error("Available index {avail_index} is more than {queue_size} ahead of {next_avail}")]
    AvailIndexJump {
        /// What the driver wrote.
        avail_index: u16,
        /// Where the device stands.
        next_avail: u16,
        /// Entries of the ring.
        queue_size: u16,
    },
    /// An entry of the available ring names no descriptor.
    #[error("Descriptor {head} is not one of {queue_size}")]
    HeadOutOfTable {
        /// What the driver wrote.
        head: u16,
        /// Entries of the descriptor table.
        queue_size: u16,
    },
    /// A chain that loops, is too long, has more than 2^32 bytes, leaves its table, or nests indirect tables
    /// (virtio 1.2 §2.7.5).
    #[error("Malformed descriptor chain")]
    BadChain,
    /// A chain lacks the parts that its request needs.
    #[error("Descriptor chain too short for its request")]
    ShortChain,
    /// A buffer that does not lie wholly in RAM.
    #[error("Buffer {address:#x}+{bytes:#x} does not lie in guest RAM")]
    OutOfRam {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// A ring that does not lie wholly in RAM, is not aligned, or overlaps another (virtio 1.2 §2.7).
    #[error("Ring of queue {queue} does not lie in guest RAM, is unaligned, or overlaps")]
    BadRing {
        /// Queue index.
        queue: u32,
    },
    /// A request of a type that the device does not have.
    #[error("Unknown request type {0}")]
    UnknownType(u32),
    /// Sectors past the end of the disk, or not a whole number of them.
    #[error("Access to {bytes} bytes at sector {sector} is not on whole sectors of the disk")]
    OutOfDisk {
        /// First sector.
        sector: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// A write to a disk that the guest may only read.
    #[error("Write to a read-only disk")]
    ReadOnly,
    /// A request larger than [`crate::limits::BLOCK_REQUEST_BYTES_MAX`].
    #[error("Request of {bytes} bytes is too large")]
    TooLarge {
        /// Length in bytes.
        bytes: u64,
    },
    /// A message about a port that no driver sends.
    #[error("Message {event} about port {port} makes no sense")]
    BadMessage {
        /// Number of the port.
        port: u32,
        /// What is said of it.
        event: u16,
    },
    /// A number of queue pairs that the card does not have.
    #[error("{pairs} queue pairs are not 1 to {pairs_max}")]
    BadPairs {
        /// What the driver asked for.
        pairs: usize,
        /// What there are; 0 when the driver has not accepted that there are several.
        pairs_max: usize,
    },
    /// A network frame whose header contradicts it, or that is too short or too long.
    #[error("Malformed network frame")]
    BadFrame,
}

impl GuestFault {
    /// Status byte of virtio-blk for it (virtio 1.2 §5.2.6): 1 = IOERR, 2 = UNSUPP.
    #[must_use]
    pub const fn block_status(&self) -> u8 {
        match self {
            Self::UnknownType(_) => 2,
            _ => 1,
        }
    }
}

/// A failure of the host that the control loop has to know of. The device goes on as well as it can.
#[derive(Debug, thiserror::Error)]
#[error("Device {device}: cannot {operation}")]
pub struct HostFault {
    /// Id of the device.
    pub device: String,
    /// What was tried.
    pub operation: HostOperation,
    /// The kernel's reason.
    #[source]
    pub cause: io::Error,
}

/// What a device asks of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostOperation {
    /// Take a frame from a tap or a network in user space.
    ReceiveFrame,
    /// Give a frame to a tap or a network in user space.
    SendFrame,
    /// Tell a tap which offloads the guest accepted.
    SetOffload,
    /// Tell a tap which of its queues take part in its traffic.
    SetQueues,
    /// Read from a disk.
    ReadDisk,
    /// Write to a disk, or sync it.
    WriteDisk,
    /// Have io_uring begin, or tell what it has done.
    SubmitDisk,
    /// Get random bytes.
    GetRandom,
    /// Wait for streams of the host.
    WatchStreams,
    /// Take input from a stream.
    ReadStream,
    /// Give guest memory back.
    ReleaseMemory,
    /// Set a timer.
    SetTimer,
    /// Let a client of the host in.
    AcceptConnection,
    /// Connect the guest with a program of the host.
    OpenConnection,
}

impl std::fmt::Display for HostOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ReceiveFrame => "receive a frame from its network",
            Self::SendFrame => "send a frame to its network",
            Self::SetOffload => "set the offloads of its tap",
            Self::SetQueues => "set the number of queues of its tap",
            Self::ReadDisk => "read from its disk",
            Self::WriteDisk => "write to its disk",
            Self::SubmitDisk => "begin I/O on its disk",
            Self::GetRandom => "get random bytes",
            Self::WatchStreams => "wait for its streams",
            Self::ReadStream => "read its input",
            Self::ReleaseMemory => "give guest memory back to the host",
            Self::SetTimer => "set its timer",
            Self::AcceptConnection => "let a client in",
            Self::OpenConnection => "open a connection",
        })
    }
}

/// Why a device did not start work. The guest sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver brought fewer or more queues than the device has.
    #[error("Device {device} has {expected} queues, not {found}")]
    QueueCount {
        /// Id of the device.
        device: String,
        /// Queues of the device.
        expected: usize,
        /// Queues brought.
        found: usize,
    },
    /// It works already; a bug in the transport.
    #[error("Device {device} is active already")]
    AlreadyActive {
        /// Id of the device.
        device: String,
    },
    /// The host does not play along.
    #[error("Cannot start work")]
    Host(#[source] HostFault),
}

impl ActivateError {
    /// The check with which every device begins: `is_active` when it works already.
    pub(crate) fn unless_idle(device: &str, is_active: bool) -> Result<(), Self> {
        if is_active {
            let device = device.to_owned();
            return Err(Self::AlreadyActive { device });
        }
        Ok(())
    }
}

/// Why a device could not be made from its saved form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreDeviceError {
    /// The disk is not the one that was saved.
    #[error("Disk {device} had {saved_bytes} bytes when it was saved and has {found_bytes} now")]
    DiskSize {
        /// Id of the device.
        device: String,
        /// Length when it was saved, in bytes.
        saved_bytes: u64,
        /// Length now, in bytes.
        found_bytes: u64,
    },
    /// The guest could write to the disk and now could not, or the other way round.
    #[error("Disk {device} was saved with read-only {saved} and is opened with read-only {found}")]
    DiskReadOnly {
        /// Id of the device.
        device: String,
        /// When it was saved.
        saved: bool,
        /// Now.
        found: bool,
    },
    /// The saved network address is none that a card can have.
    #[error("Network interface {device} was saved with a MAC address that no interface can have")]
    Mac {
        /// Id of the device.
        device: String,
    },
    /// The saved MTU is none that an interface can have.
    #[error("Network interface {device} was saved with an MTU of {mtu}, outside 68-65535")]
    Mtu {
        /// Id of the device.
        device: String,
        /// What was saved.
        mtu: u16,
    },
    /// The driver would use more queue pairs than there are, or none.
    #[error(
        "Network interface {device} was saved with {saved} queue pairs in use, and has {found} now"
    )]
    QueuePairs {
        /// Id of the device.
        device: String,
        /// When it was saved.
        saved: u16,
        /// What there are now.
        found: usize,
    },
    /// The saved balloon is none that a guest can have brought about.
    #[error("Balloon {device} was saved with {what} in a state that is impossible")]
    Balloon {
        /// Id of the device.
        device: String,
        /// What of it.
        what: &'static str,
    },
    /// The guest would have another context id.
    #[error(
        "Socket device {device} was saved with guest_cid {saved} and the configuration has {found}"
    )]
    GuestCid {
        /// Id of the device.
        device: String,
        /// When it was saved.
        saved: u32,
        /// Now.
        found: u32,
    },
    /// The saved connections are none that a guest can have had.
    #[error("Socket device {device} was saved with connections that are impossible")]
    Connections {
        /// Id of the device.
        device: String,
    },
    /// The saved ports are none that a guest can have brought about.
    #[error("Console {device} was saved with ports in a state that is impossible")]
    Ports {
        /// Id of the device.
        device: String,
    },
}
