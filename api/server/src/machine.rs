//! What the monitor implements.

use std::error::Error;
use std::fmt;

use lightv_api::config::VmSpec;
use lightv_api::contract::balloon::{BalloonPatch, BalloonStatsPatch, HintingStart};
use lightv_api::contract::drive::{DrivePatch, OverlayOrder};
use lightv_api::contract::logger::LoggerSpec;
use lightv_api::contract::memory_hotplug::MemoryHotplugPatch;
use lightv_api::contract::metrics::MetricsSpec;
use lightv_api::contract::mmds::MmdsData;
use lightv_api::contract::net::NetPatch;
use lightv_api::contract::pmem::PmemPatch;
use lightv_api::contract::serial::SerialSpec;
use lightv_api::contract::snapshot::{ForkSpec, LoadParams, SnapshotCreate};
use lightv_api::request::Reply;

/// Why the monitor refuses: what the client is told after the words of the resource. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// In these words.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the reason `error`, and for what it came from.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self(text)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A machine, from its first configuration to its end.
///
/// The controller calls it from one thread, one call after the other, and only when it is legal:
///
/// ```text
///   admit, set_output, put_metadata --start--> Running <--pause, resume--> Paused --save--> Paused
///                 |                                ^                          ^
///                 +------------- load -------------+--------------------------+
/// ```
///
/// A call may take as long as it needs: clients that ask for what needs no machine are answered meanwhile. When a machine
/// ends, its process ends.
pub trait Machine: Send + 'static {
    /// Whether the host lets the machine be `change.spec`, of which `change.part` is new. What is to be opened now is
    /// opened here; what an earlier configuration had opened for the same part is let go.
    ///
    /// # Errors
    /// [`Refusal`]; the configuration stays as it was.
    fn admit(&mut self, change: Change<'_>) -> Result<(), Refusal>;

    /// Sets where logs, metrics or the serial port go, before the start.
    ///
    /// # Errors
    /// [`Refusal`].
    fn set_output(&mut self, output: Output<'_>) -> Result<(), Refusal>;

    /// Boots `spec`, which has a boot source. Returns once its vCPUs run.
    ///
    /// # Errors
    /// [`Refusal`]; another start may follow, of the same or of another `spec`.
    fn start(&mut self, spec: &VmSpec) -> Result<(), Refusal>;

    /// Restores a snapshot. The machine runs if `params.resume`, else it stands still. Returns what it is.
    ///
    /// # Errors
    /// [`Refusal`]; another load, or a start, may follow.
    fn load(&mut self, params: &LoadParams) -> Result<VmSpec, Refusal>;

    /// Stops all vCPUs of a running machine.
    ///
    /// # Errors
    /// [`Refusal`]; the machine runs.
    fn pause(&mut self) -> Result<(), Refusal>;

    /// Lets all vCPUs of a paused machine run.
    ///
    /// # Errors
    /// [`Refusal`]; the machine stands still.
    fn resume(&mut self) -> Result<(), Refusal>;

    /// Saves a paused machine, which stays so, or, if `target.live`, one that runs and goes on meanwhile.
    ///
    /// # Errors
    /// [`Refusal`]; no file was left that looks whole, and the machine can go on.
    fn save(&mut self, target: &SnapshotCreate) -> Result<(), Refusal>;

    /// Lets others begin from where this machine stands, which goes on at once, if it runs.
    ///
    /// # Errors
    /// [`Refusal`]; the machine goes on, and nothing was left.
    fn fork(&mut self, spec: &ForkSpec) -> Result<(), Refusal>;

    /// Does something with a device that the started machine has.
    ///
    /// # Errors
    /// [`Refusal`]; the device is as it was.
    fn device(&mut self, call: DeviceCall<'_>) -> Result<Reply, Refusal>;

    /// Presses Ctrl-Alt-Del. Does not wait for the guest.
    ///
    /// # Errors
    /// [`Refusal`].
    fn send_ctrl_alt_del(&mut self) -> Result<(), Refusal>;

    /// Writes the metrics now.
    ///
    /// # Errors
    /// [`Refusal`].
    fn flush_metrics(&mut self) -> Result<(), Refusal>;

    /// The metadata store holds `data` from now on.
    fn put_metadata(&mut self, data: &MmdsData);
}

/// A machine that is to be configured, and what of it is new.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// What is new.
    pub part: Part<'a>,
    /// The whole machine, with it.
    pub spec: &'a VmSpec,
}

/// A part of a configuration. Devices of which there can be several have their id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named like its resource")]
pub enum Part<'a> {
    BootSource,
    Machine,
    Cpu,
    Drive(&'a str),
    Net(&'a str),
    Pmem(&'a str),
    Vsock,
    Balloon,
    Entropy,
    MmdsConfig,
    MemoryHotplug,
}

/// Something that goes out of the process.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each is named like its resource")]
pub enum Output<'a> {
    Logger(&'a LoggerSpec),
    Metrics(&'a MetricsSpec),
    Serial(&'a SerialSpec),
}

/// What can be done with devices of a started machine. The device is there: the controller knows those that the machine
/// was started with. Calls whose device this version does not offer never come.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each is named like its operation")]
pub enum DeviceCall<'a> {
    PatchDrive(&'a DrivePatch),
    /// Something for the overlay of this drive, which has one. An export comes while the machine stands still.
    OrderOverlay(&'a str, &'a OverlayOrder),
    PatchNet(&'a NetPatch),
    PatchPmem(&'a PmemPatch),
    PatchBalloon(BalloonPatch),
    PatchBalloonStats(BalloonStatsPatch),
    StartHinting(HintingStart),
    StopHinting,
    PatchMemoryHotplug(MemoryHotplugPatch),
    /// Answered with [`BalloonStats`](lightv_api::contract::balloon::BalloonStats) as JSON.
    GetBalloonStats,
    /// Answered with [`HintingStatus`](lightv_api::contract::balloon::HintingStatus) as JSON.
    GetHintingStatus,
    /// Answered with [`MemoryHotplugStatus`](lightv_api::contract::memory_hotplug::MemoryHotplugStatus) as JSON.
    GetMemoryHotplug,
}
