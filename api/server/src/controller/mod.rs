//! What is legal when, and what is configured so far.
//!
//! ```text
//!   Not started --InstanceStart--> Running <--PATCH /vm--> Paused
//!        |                            ^                      ^
//!        +------ snapshot/load -------+----------------------+
//! ```
//!
//! The controller keeps the configuration, and calls the monitor ([`Machine`]) for what only it can do. A request that is
//! refused has changed nothing: a change is made on a copy, which is kept once all have agreed.

mod after_start;
mod before_start;
mod files;
mod metadata;
mod rules;
mod view;
mod worker;

use std::sync::Arc;

use lightv_api::config::VmSpec;
use lightv_api::contract::actions::Action;
use lightv_api::contract::instance::InstanceState;
use lightv_api::contract::mmds::MmdsData;
use lightv_api::contract::snapshot::{ForkSpec, LoadParams, SnapshotCreate};
use lightv_api::contract::vm::VmState;
use lightv_api::fault::{Area, Fault, after_start, before_start};
use lightv_api::offer::{Feature, NOT_OFFERED};
use lightv_api::request::{Reply, Request};

use crate::feed::Feed;
use crate::limits;
use crate::machine::{DeviceCall, Machine, Refusal};
use crate::service::Answer;

pub use self::view::View;
pub use self::worker::{ControllerService, Worker, split};

use self::view::{Configured, Shared};

/// What a controller begins with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The machine's name.
    pub id: String,
    /// What is configured already, by a file.
    pub spec: VmSpec,
    /// Whether that machine has been started already.
    pub state: InstanceState,
    /// What the metadata store holds already.
    pub metadata: Option<MmdsData>,
    /// Bytes of JSON that the metadata store can hold.
    pub metadata_bytes_max: usize,
    /// What is refused by name.
    pub lacking: &'static [Feature],
    /// Where the monitor tells what happens.
    pub feed: Feed,
}

impl Setup {
    /// A machine of this name, with nothing configured.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            spec: VmSpec::default(),
            state: InstanceState::NotStarted,
            metadata: None,
            metadata_bytes_max: limits::BODY_BYTES_MAX,
            lacking: NOT_OFFERED,
            feed: Feed::default(),
        }
    }
}

/// The state machine.
#[derive(Debug)]
pub struct Controller<M> {
    machine: M,
    view: View,
    metadata_bytes_max: usize,
    lacking: &'static [Feature],
    feed: Feed,
    /// Something was configured that a snapshot would bring with it.
    is_for_boot: bool,
}

impl<M: Machine> Controller<M> {
    /// Controls `machine`.
    pub fn new(machine: M, setup: Setup) -> Self {
        let is_for_boot = setup.spec != VmSpec::default();
        let configured = Configured {
            state: setup.state,
            spec: setup.spec,
            metadata: setup.metadata,
        };
        Self {
            machine,
            view: View(Arc::new(Shared::new(setup.id, configured))),
            metadata_bytes_max: setup.metadata_bytes_max,
            lacking: setup.lacking,
            feed: setup.feed,
            is_for_boot,
        }
    }

    /// What can be asked from any thread while this controller is busy.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Grants or refuses `request`.
    ///
    /// # Errors
    /// The refusal.
    pub fn handle(&mut self, request: Request) -> Answer {
        match request {
            Request::GetInfo => self.view.info(),
            Request::GetVersion => View::version(),
            Request::GetMachine => self.view.machine(),
            Request::GetFullConfig => self.view.full_config(),
            Request::GetBalloon => self.view.balloon(),
            Request::GetMmds => self.view.metadata(),
            Request::GetPrometheus => Err(not_offered("GET /metrics")),
            // The server streams them itself.
            Request::GetEvents => Err(Fault::bad("GET /events is answered by the server.")),
            Request::PutBootSource(boot) => self.put_boot_source(&boot),
            Request::PutMachine(machine) => self.put_machine(machine),
            Request::PatchMachine(patch) => self.patch_machine(&patch),
            Request::PutCpu(cpu) => self.put_cpu(cpu),
            Request::PutDrive(drive) => self.put_drive(&drive),
            Request::PutPmem(pmem) => self.put_pmem(&pmem),
            Request::PutNet(net) => self.put_net(&net),
            Request::PutVsock(vsock) => self.put_vsock(vsock),
            Request::PutBalloon(balloon) => self.put_balloon(balloon),
            Request::PutEntropy(entropy) => self.put_entropy(entropy),
            Request::PutMmdsConfig(config) => self.put_mmds_config(config),
            Request::PutMemoryHotplug(hotplug) => self.put_memory_hotplug(hotplug),
            Request::PutSerial(serial) => self.put_serial(&serial),
            Request::PutLogger(logger) => self.put_logger(logger),
            Request::PutMetrics(metrics) => self.put_metrics(&metrics),
            Request::PutMmds(data) => self.put_metadata(data),
            Request::PatchMmds(patch) => self.patch_metadata(patch),
            Request::Act(action) => self.act(action),
            Request::PatchVm(state) => self.patch_vm(state),
            Request::CreateSnapshot(target) => self.save(&target),
            Request::Fork(spec) => self.fork(&spec),
            Request::LoadSnapshot(params) => self.load(&params),
            Request::PatchDrive(patch) => self.patch_drive(&patch),
            Request::PatchNet(patch) => self.patch_net(&patch),
            Request::PatchPmem(patch) => self.patch_pmem(&patch),
            Request::OrderOverlay(id, order) => self.order_overlay(&id, &order),
            Request::DeleteDrive(id) => self.delete(Area::Drive, &id),
            Request::DeletePmem(id) => self.delete(Area::Pmem, &id),
            Request::DeleteNet(id) => self.delete(Area::Network, &id),
            Request::PatchBalloon(patch) => self.patch_balloon(patch),
            Request::PatchBalloonStats(patch) => self.patch_balloon_stats(patch),
            Request::GetBalloonStats => self.ask_balloon(DeviceCall::GetBalloonStats),
            Request::StartHinting(start) => self.ask_balloon(DeviceCall::StartHinting(start)),
            Request::StopHinting => self.ask_balloon(DeviceCall::StopHinting),
            Request::GetHintingStatus => self.ask_balloon(DeviceCall::GetHintingStatus),
            Request::PatchMemoryHotplug(patch) => {
                self.ask_memory(DeviceCall::PatchMemoryHotplug(patch))
            }
            Request::GetMemoryHotplug => self.ask_memory(DeviceCall::GetMemoryHotplug),
        }
    }

    fn act(&mut self, action: Action) -> Answer {
        match action {
            Action::InstanceStart => self.start(),
            Action::FlushMetrics => {
                self.started()?;
                done(Area::Metrics, self.machine.flush_metrics())
            }
            Action::SendCtrlAltDel => {
                self.started()?;
                done(Area::InternalVmm, self.machine.send_ctrl_alt_del())
            }
        }
    }

    fn start(&mut self) -> Answer {
        let spec = self.not_started()?;
        if spec.boot_source.is_none() {
            let cause = "Cannot start microvm without kernel configuration.";
            return Err(Area::Start.fault(cause));
        }
        let started = self.machine.start(&spec);
        started.map_err(|refusal| Area::Start.fault(refusal))?;
        self.view.0.enter(InstanceState::Running);
        Ok(Reply::Done)
    }

    fn patch_vm(&mut self, state: VmState) -> Answer {
        let now = self.started()?;
        let (moved, next) = match (now, state) {
            (InstanceState::Running, VmState::Paused) => {
                (self.machine.pause(), InstanceState::Paused)
            }
            (InstanceState::Paused, VmState::Resumed) => {
                (self.machine.resume(), InstanceState::Running)
            }
            // It does so already.
            _ => return Ok(Reply::Done),
        };
        moved.map_err(|refusal| Area::InternalVmm.fault(refusal))?;
        self.view.0.enter(next);
        Ok(Reply::Done)
    }

    fn save(&mut self, target: &SnapshotCreate) -> Answer {
        if self.started()? == InstanceState::Running && !target.live {
            return Err(Area::CreateSnapshot.fault(
                "Cannot save the microVM state: Operation not allowed: \
                 save/restore unavailable while running",
            ));
        }
        done(Area::CreateSnapshot, self.machine.save(target))
    }

    fn fork(&mut self, spec: &ForkSpec) -> Answer {
        self.started()?;
        if !(1..=limits::FORK_CLONES_MAX).contains(&spec.clones) {
            let max = limits::FORK_CLONES_MAX;
            let found = spec.clones;
            return Err(Area::Fork.fault(format!("clones is {found}; allowed: 1–{max}.")));
        }
        done(Area::Fork, self.machine.fork(spec))
    }

    fn load(&mut self, params: &LoadParams) -> Answer {
        self.not_started()?;
        if self.is_for_boot {
            return Err(Area::LoadSnapshot.fault(
                "Loading a microVM snapshot not allowed after configuring boot-specific resources.",
            ));
        }
        let loaded = self.machine.load(params);
        let spec = loaded.map_err(|refusal| Area::LoadSnapshot.fault(refusal))?;
        let mut configured = self.view.0.lock();
        configured.spec = spec;
        configured.state = if params.resume {
            InstanceState::Running
        } else {
            InstanceState::Paused
        };
        Ok(Reply::Done)
    }

    /// The configuration, if it can still be changed.
    fn not_started(&self) -> Result<VmSpec, Fault> {
        let configured = self.view.0.lock();
        match configured.state {
            InstanceState::NotStarted => Ok(configured.spec.clone()),
            InstanceState::Running | InstanceState::Paused => Err(after_start()),
        }
    }

    /// What the machine does, if it has been started.
    fn started(&self) -> Result<InstanceState, Fault> {
        match self.view.0.lock().state {
            InstanceState::NotStarted => Err(before_start()),
            state => Ok(state),
        }
    }
}

fn done(area: Area, result: Result<(), Refusal>) -> Answer {
    match result {
        Ok(()) => Ok(Reply::Done),
        Err(refusal) => Err(area.fault(refusal)),
    }
}

fn not_offered(what: &str) -> Fault {
    Fault::bad(format!("{what}: this version of LightV does not offer it."))
}
