//! What the REST API tells the loop to do with a machine: a closed list.

use std::error::Error;
use std::fmt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::Sender;

use lightv_api::contract::balloon::{BalloonStats, HintingStatus};
use lightv_api::contract::snapshot::SnapshotType;

use crate::config::limiter::LimitsPatch;
use crate::listen::SocketFile;

/// Something to do.
#[derive(Debug)]
pub enum Order {
    /// Stop all vCPUs and devices.
    Pause,
    /// Let them go on.
    Resume,
    /// Save the machine: paused, or, if the target says so, while it runs.
    Save(SnapshotTarget),
    /// Let others begin from where the machine stands.
    Fork(ForkTarget),
    /// Give a drive another disk.
    ReplaceDisk {
        /// Id of the drive.
        id: String,
        /// Path of the disk.
        path: PathBuf,
    },
    /// Forget what was written into the overlay of a drive.
    ResetOverlay {
        /// Id of the drive.
        id: String,
    },
    /// Write the disk of a drive into a file. The machine is paused.
    ExportDisk {
        /// Id of the drive.
        id: String,
        /// The file.
        path: PathBuf,
    },
    /// Limit a device otherwise.
    ChangeLimits(LimitsPatch),
    /// Press Ctrl-Alt-Del.
    PressCtrlAltDel,
    /// Do something with the balloon.
    Balloon(BalloonOrder),
}

/// What can be done with the balloon. What is asked for is sent before the order's own answer.
#[derive(Debug)]
pub enum BalloonOrder {
    /// Want another size.
    SetAmount {
        /// In MiB.
        mib: u32,
    },
    /// Ask for statistics as often.
    SetPollingInterval {
        /// In seconds.
        seconds: u16,
    },
    /// Begin a run of hinting.
    StartHinting {
        /// Whether it ends by itself.
        acknowledge_on_stop: bool,
    },
    /// End it.
    StopHinting,
    /// Tell statistics.
    GetStats(Sender<BalloonStats>),
    /// Tell where hinting stands.
    GetHinting(Sender<HintingStatus>),
}

/// A snapshot as the REST API has it: two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotTarget {
    /// For the state.
    pub state: PathBuf,
    /// For guest memory.
    pub memory: PathBuf,
    /// How much of it.
    pub extent: SnapshotType,
    /// Of a machine that runs, which stands still only while its state is taken.
    pub is_live: bool,
}

/// What machines begin from that are made of one that goes on.
#[derive(Debug)]
pub struct ForkTarget {
    /// For the state.
    pub state: PathBuf,
    /// Where they connect to.
    pub listener: UnixListener,
    /// Its file, which goes with the memory.
    pub socket: SocketFile,
    /// How many will come.
    pub clones: u32,
}

/// Why an order was not carried out; the machine is as it was.
#[derive(Debug)]
pub struct OrderError(Box<dyn Error + Send + Sync>);

impl fmt::Display for OrderError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl Error for OrderError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl OrderError {
    /// For this reason.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

/// Where the answer to an order goes.
pub type OrderReply = Sender<Result<(), OrderError>>;
