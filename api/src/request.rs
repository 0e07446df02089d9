//! What can be asked of a monitor, and what it answers.
//!
//! [`Request`] is a closed list: one variant for each operation of the contract. [`Request::parse`] makes one of a method,
//! a path and a body, without looking at anything else.

mod body;
mod parse;
mod route;

use serde::Serialize;

pub use self::route::Route;

use crate::contract::actions::Action;
use crate::contract::balloon::{BalloonPatch, BalloonSpec, BalloonStatsPatch, HintingStart};
use crate::contract::boot_source::BootSource;
use crate::contract::cpu::CpuSpec;
use crate::contract::drive::{DrivePatch, DriveSpec, OverlayOrder};
use crate::contract::entropy::EntropySpec;
use crate::contract::logger::LoggerSpec;
use crate::contract::machine::{MachinePatch, MachineSpec};
use crate::contract::memory_hotplug::{MemoryHotplugPatch, MemoryHotplugSpec};
use crate::contract::metrics::MetricsSpec;
use crate::contract::mmds::{MmdsConfig, MmdsData};
use crate::contract::net::{NetPatch, NetSpec};
use crate::contract::pmem::{PmemPatch, PmemSpec};
use crate::contract::serial::SerialSpec;
use crate::contract::snapshot::{ForkSpec, LoadParams, SnapshotCreate};
use crate::contract::vm::VmState;
use crate::contract::vsock::VsockSpec;
use crate::fault::Fault;

/// An operation, with what it needs. Its ids are proved: 1–64 letters, digits and `_`, the same in path and body.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each is named by its method and its resource")]
pub enum Request {
    GetInfo,
    GetVersion,
    GetMachine,
    GetFullConfig,
    GetBalloon,
    GetBalloonStats,
    GetHintingStatus,
    GetMmds,
    GetMemoryHotplug,
    /// LightV's own: metrics in Prometheus' text form.
    GetPrometheus,
    /// LightV's own: what happens, as server-sent events.
    GetEvents,
    Act(Action),
    PutBootSource(BootSource),
    PutMachine(MachineSpec),
    PatchMachine(MachinePatch),
    PutCpu(CpuSpec),
    PutDrive(DriveSpec),
    PatchDrive(DrivePatch),
    DeleteDrive(String),
    /// LightV's own: something for the overlay of this drive.
    OrderOverlay(String, OverlayOrder),
    PutPmem(PmemSpec),
    PatchPmem(PmemPatch),
    DeletePmem(String),
    PutNet(NetSpec),
    PatchNet(NetPatch),
    DeleteNet(String),
    PutVsock(VsockSpec),
    PutBalloon(BalloonSpec),
    PatchBalloon(BalloonPatch),
    PatchBalloonStats(BalloonStatsPatch),
    StartHinting(HintingStart),
    StopHinting,
    PutEntropy(EntropySpec),
    PutSerial(SerialSpec),
    PutLogger(LoggerSpec),
    PutMetrics(MetricsSpec),
    PutMmdsConfig(MmdsConfig),
    PutMmds(MmdsData),
    PatchMmds(MmdsData),
    PutMemoryHotplug(MemoryHotplugSpec),
    PatchMemoryHotplug(MemoryHotplugPatch),
    PatchVm(VmState),
    CreateSnapshot(SnapshotCreate),
    LoadSnapshot(LoadParams),
    /// LightV's own: others begin from where this machine stands.
    Fork(ForkSpec),
}

/// The methods that paths can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is HTTP's")]
pub enum Method {
    Get,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// The method of this name. Upper and lower case differ.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "GET" => Some(Self::Get),
            "PUT" => Some(Self::Put),
            "PATCH" => Some(Self::Patch),
            "DELETE" => Some(Self::Delete),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// What a client has sent, as text.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Method.
    pub method: Method,
    /// Path, and query if there is one: it counts as part of the path, and no path has one.
    pub path: &'a str,
    /// Body; empty when there is none.
    pub body: &'a [u8],
}

/// A request, and whether it uses what is deprecated.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The request.
    pub request: Request,
    /// The answer has the header `Deprecation: true`.
    pub is_deprecated: bool,
}

impl Request {
    /// Makes a request of `call`.
    ///
    /// # Errors
    /// [`Fault`], with the contract's text.
    pub fn parse(call: Call<'_>) -> Result<Parsed, Fault> {
        parse::parse(call)
    }
}

/// What a request that was granted is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// 204: it is done.
    Done,
    /// 200, with JSON.
    Json(String),
    /// 200, with a text.
    Text {
        /// What kind of text.
        content_type: &'static str,
        /// The text.
        body: String,
    },
}

impl Reply {
    /// `value` as JSON.
    ///
    /// # Errors
    /// `value` holds what JSON cannot say: a path that is not UTF-8.
    pub fn json(value: &impl Serialize) -> Result<Self, Fault> {
        serde_json::to_string(value)
            .map(Self::Json)
            .map_err(|cause| Fault::bad(format!("The answer cannot be written as JSON: {cause}.")))
    }
}
