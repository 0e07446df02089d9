//! Where the loop is between running and standing still.

use std::path::PathBuf;
use std::time::Instant;

use lightv_devices::virtio::block::Disk;

use crate::orders::{ForkTarget, OrderReply, SnapshotTarget};
use crate::snapshot::saved::SavedDevices;
use crate::snapshot::vcpu_state::VcpuStateV1;

/// What the vCPUs do, and why.
#[derive(Debug)]
pub(super) enum Phase {
    Running,
    Parking {
        deadline: Instant,
        next_kick: Instant,
        purpose: Purpose,
    },
    Capturing {
        devices: SavedDevices,
        states: Vec<Option<VcpuStateV1>>,
        save: SaveFor,
    },
    Paused {
        devices: SavedDevices,
    },
}

/// Another disk for a drive.
#[derive(Debug)]
pub(super) struct DiskChange {
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) disk: Disk,
}

/// What is made of a machine that goes on.
#[derive(Debug)]
pub(super) enum LiveTarget {
    Save(SnapshotTarget),
    Fork(ForkTarget),
}

/// A snapshot or fork of a machine that goes on.
#[derive(Debug)]
pub(super) struct LiveSave {
    pub(super) target: LiveTarget,
    pub(super) reply: OrderReply,
    /// When the machine was first told to stand still.
    pub(super) began: Instant,
    /// It stood still before, and goes on standing still.
    pub(super) was_paused: bool,
}

/// Why the vCPUs are parked.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A save that the command line asked for.
    Plan,
    /// A pause; of a machine that begins with one, nobody waits for it.
    Pause(Option<OrderReply>),
    /// A snapshot, after whose first part the machine goes on.
    SaveLive(LiveSave),
    /// Another disk for a drive.
    ReplaceDisk(DiskChange, OrderReply),
    /// The overlay of the drive with this id is emptied.
    ResetOverlay(String, OrderReply),
}

/// Who asked for a save.
#[derive(Debug)]
pub(super) enum SaveFor {
    /// The command line.
    Plan,
    /// The REST API.
    Order(SnapshotTarget, OrderReply),
    /// The REST API, of a machine that goes on.
    Live(LiveSave),
}
