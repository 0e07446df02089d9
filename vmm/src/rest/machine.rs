//! The machine as the REST API's controller sees it.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvError, Sender, channel};
use std::time::Instant;

use lightv_api::config::VmSpec;
use lightv_api::contract::balloon::HintingStart;
use lightv_api::contract::cpu::{CpuConfig, CpuSpec};
use lightv_api::contract::drive::{DrivePatch, OverlayOrder};
use lightv_api::contract::mmds::MmdsData;
use lightv_api::contract::net::NetPatch;
use lightv_api::contract::snapshot::{
    ForkSpec, LoadParams, MemBackendType, SnapshotCreate, SnapshotType,
};
use lightv_api::event::Happening;
use lightv_api::exit;
use lightv_api::request::Reply;
use lightv_api_server::machine::{Change, DeviceCall, Machine, Output, Part, Refusal};
use lightv_devices::mmds::Mmds;
use serde::Serialize;

use crate::args::{Origin, RunJob};
use crate::boot::Site;
use crate::builder::{Builder, MemoryFrom, PrepareError, SnapshotFiles};
use crate::config::limiter::LimitsPatch;
use crate::config::{ConfigFaults, MachineConfig};
use crate::control_thread::{Assignment, ControlThread};
use crate::device_set::{HeldBackends, HostSide};
use crate::event::{Event, EventSender};
use crate::feed;
use crate::job::stamps_of;
use crate::listen::{Purpose, listen};
use crate::log;
use crate::machine::{Machine as BuiltMachine, StartError};
use crate::metrics::{self, Timed};
use crate::net_override::NetOverride;
use crate::orders::{BalloonOrder, ForkTarget, Order, SnapshotTarget};
use crate::outputs;
use crate::overrides::Overrides;
use crate::sandbox::ConfineError;
use crate::seat::ApiWork;
use crate::serial_out::SerialOut;
use crate::snapshot::page_log::PageLog;
use crate::stamps::{Stamps, TimingsSink};
use crate::starter;
use crate::sys::process;
use crate::vcpu::Vcpu;

/// Why a machine was not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartMachineError {
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("Cannot track changed pages: no random bytes from the host")]
    PageLog(#[source] std::io::Error),
    #[error("The machine has no vCPU")]
    NoVcpu,
    #[error("Cannot start the thread of vCPU 0")]
    FirstVcpu(#[source] std::io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

impl StartMachineError {
    /// The exit status of a process that ends by it.
    pub(super) const fn exit_status(&self) -> u8 {
        match self {
            Self::Prepare(cause) => cause.exit_status(),
            Self::Start(_) | Self::FirstVcpu(_) | Self::Confine(_) => exit::HOST_FAILURE,
            Self::NoVcpu | Self::PageLog(_) => exit::FAILURE,
        }
    }
}

/// A machine that is there from the beginning.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) run: RunJob,
    /// When the process began, in nanoseconds of CLOCK_MONOTONIC.
    pub(super) main_ns: u64,
}

/// The process's machine, from before it is configured to its end.
#[derive(Debug)]
pub(super) struct Monitor {
    control: ControlThread,
    /// The machine's name, for logs and metrics.
    id: String,
    held: HeldBackends,
    serial: Option<SerialOut>,
    /// What the CPU is to be: it may be said before a load too.
    cpu: Option<CpuSpec>,
    /// The metadata service, which can be filled before there is a machine.
    mmds: Mmds,
    /// The way to the loop, once there is a machine.
    events: Option<EventSender>,
}

impl Monitor {
    pub(super) fn new(control: ControlThread, id: &str) -> Self {
        Self {
            control,
            id: id.to_owned(),
            serial: None,
            cpu: None,
            mmds: Mmds::default(),
            held: HeldBackends::default(),
            events: None,
        }
    }

    /// Of a machine that runs already.
    pub(super) fn of_running(control: ControlThread, work: &ApiWork) -> Self {
        Self {
            mmds: work.mmds.clone(),
            events: Some(work.events.clone()),
            ..Self::new(control, &work.id)
        }
    }

    /// Builds and starts a machine that flags have named. Gives what it is, and its first vCPU, which the caller runs.
    pub(super) fn begin(&mut self, begin: Begin) -> Result<(VmSpec, Vcpu), StartMachineError> {
        let Begin { mut run, main_ns } = begin;
        run.timings
            .get_or_insert(TimingsSink::Keep(metrics::note_start));
        let builder = Builder {
            is_verbose: run.is_verbose,
            ..self.builder(stamps_of(&run, main_ns))
        };
        let counts = metrics::get();
        let (started, failed) = match run.origin {
            Origin::Restore(_) => (&counts.restores, &counts.restore_failures),
            Origin::Config(_) | Origin::Boot(_) => (&counts.boots, &counts.boot_failures),
        };
        let built = builder.build(&run.origin, run.overrides);
        metrics::count(if built.is_ok() { started } else { failed });
        let machine = built?;
        let spec = machine.config.spec().clone();
        Ok((spec, self.assign(machine, false)?))
    }

    fn builder(&self, stamps: Arc<Stamps>) -> Builder<'_> {
        Builder {
            site: Site {
                control: &self.control,
                stamps,
                host: HostSide::default(),
                held: Some(self.held.clone()),
                serial: self.serial.clone(),
                mmds: self.mmds.clone(),
            },
            id: &self.id,
            save_as: None,
            is_verbose: false,
        }
    }

    /// Gives a machine to the loop.
    fn assign(
        &mut self,
        mut machine: BuiltMachine,
        is_paused: bool,
    ) -> Result<Vcpu, StartMachineError> {
        let events = machine.sender.clone();
        outputs::attach(&machine);
        if machine.config.tracks_dirty_pages() {
            let log = PageLog::new(&machine.ram).map_err(StartMachineError::PageLog)?;
            machine.page_log = Some(log);
        }
        let was_restored = machine.restores > 0;
        let _at = self.control.wait_confined()?;
        let (running, first) = machine.start(is_paused)?;
        let first = first.ok_or(StartMachineError::NoVcpu)?;
        feed::publish(|| match was_restored {
            true => Happening::Loaded { paused: is_paused },
            false => Happening::Started,
        });
        self.control.assign(Assignment {
            running,
            rules: None,
            plan: None,
            leash: None,
            seat: None,
        });
        self.events = Some(events);
        Ok(first)
    }

    fn run(&mut self, machine: BuiltMachine, is_paused: bool) -> Result<(), StartMachineError> {
        let first = self.assign(machine, is_paused)?;
        starter::end();
        let thread = first.spawn().map_err(StartMachineError::FirstVcpu)?;
        Ok(thread.wait_confined()?)
    }

    /// Gives an order, and waits until it is carried out.
    fn order(&self, order: Order) -> Result<(), Refusal> {
        let Some(events) = &self.events else {
            return Err(Refusal::new("the machine was not started"));
        };
        let (reply, answer) = channel();
        events.send(Event::Order(order, reply));
        match answer.recv() {
            Ok(done) => done.map_err(|error| Refusal::of(&error)),
            Err(RecvError) => Err(Refusal::new("the machine has ended")),
        }
    }

    fn boot(&mut self, spec: &VmSpec) -> Result<(), StartMachineError> {
        let machine = self.builder(start_stamps("boot")).boot_spec(spec.clone())?;
        self.run(machine, false)
    }

    fn restore(&mut self, params: &LoadParams) -> Result<VmSpec, StartMachineError> {
        let files = SnapshotFiles {
            state: &params.snapshot_path,
            memory: match params.memory.backend_type {
                MemBackendType::File => MemoryFrom::Files {
                    base: &params.memory.backend_path,
                    diffs: &params.memory.diffs,
                },
                MemBackendType::Uffd => MemoryFrom::Served(&params.memory.backend_path),
            },
            tracks: params.track_dirty_pages,
            advance_clock: params.clock_realtime,
        };
        let builder = self.builder(start_stamps("restore"));
        let overrides = Overrides {
            cpu: self.cpu.clone(),
            ..overrides_of(params)
        };
        let machine = builder.restore_files(files, overrides)?;
        let spec = machine.config.spec().clone();
        self.run(machine, !params.resume)?;
        Ok(spec)
    }

    /// Gives an order, and notes how long it took if it was carried out.
    fn timed(&self, timed: &Timed, order: Order) -> Result<(), Refusal> {
        let began = Instant::now();
        self.order(order)?;
        timed.record_since(began);
        Ok(())
    }

    fn patch_drive(&self, patch: &DrivePatch) -> Result<Reply, Refusal> {
        let id = patch.drive_id.clone();
        if let Some(path) = patch.path_on_host.clone() {
            let id = id.clone();
            self.order(Order::ReplaceDisk { id, path })?;
        }
        if let Some(limiter) = patch.rate_limiter {
            let limiter = Some(limiter);
            self.order(Order::ChangeLimits(LimitsPatch::Drive { id, limiter }))?;
        }
        Ok(Reply::Done)
    }

    fn order_overlay(&self, id: &str, order: &OverlayOrder) -> Result<Reply, Refusal> {
        let id = id.to_owned();
        self.order(match order {
            OverlayOrder::Reset => Order::ResetOverlay { id },
            OverlayOrder::Export { path } => Order::ExportDisk {
                id,
                path: path.clone(),
            },
        })?;
        Ok(Reply::Done)
    }

    fn patch_net(&self, patch: &NetPatch) -> Result<Reply, Refusal> {
        self.order(Order::ChangeLimits(LimitsPatch::Net {
            id: patch.iface_id.clone(),
            receive: patch.rx_rate_limiter,
            transmit: patch.tx_rate_limiter,
        }))?;
        Ok(Reply::Done)
    }
}

impl Monitor {
    fn order_balloon(&self, order: BalloonOrder) -> Result<Reply, Refusal> {
        self.order(Order::Balloon(order))?;
        Ok(Reply::Done)
    }

    /// The answer to a question, as JSON.
    fn ask_balloon<T: Serialize>(
        &self,
        question: impl FnOnce(Sender<T>) -> BalloonOrder,
    ) -> Result<Reply, Refusal> {
        let (sender, answer) = channel();
        self.order(Order::Balloon(question(sender)))?;
        // It was sent before the order was answered.
        let answer = answer.try_recv();
        let answer = answer.map_err(|_| Refusal::new("the machine has ended"))?;
        Reply::json(&answer).map_err(|_| Refusal::new("the answer is no JSON"))
    }
}

fn start_stamps(way: &'static str) -> Arc<Stamps> {
    let sink = TimingsSink::Keep(metrics::note_start);
    Arc::new(Stamps::new(way, process::monotonic_ns(), None, Some(sink)))
}

impl Machine for Monitor {
    fn admit(&mut self, change: Change<'_>) -> Result<(), Refusal> {
        let config = MachineConfig::prove(change.spec.clone(), process::host_memory_bytes());
        let config = config.map_err(|faults: ConfigFaults| Refusal::of(&faults))?;
        if let Part::Net(id) = change.part
            && let Some(net) = config.nets().iter().find(|net| net.id == id)
        {
            let held = self.held.taps.hold(net, config.nets());
            held.map_err(|error| Refusal::of(&error))?;
        }
        if let (Part::Vsock, Some(vsock)) = (change.part, config.vsock()) {
            let held = self.held.vsock.hold(&vsock.path);
            held.map_err(|error| Refusal::of(&error))?;
        }
        if let (Part::Cpu, Some(CpuConfig::Spec(cpu))) = (change.part, &change.spec.cpu_config) {
            self.cpu = Some(cpu.clone());
        }
        Ok(())
    }

    fn set_output(&mut self, output: Output<'_>) -> Result<(), Refusal> {
        match output {
            Output::Logger(spec) => {
                log::configure(spec, &self.id).map_err(|error| Refusal::of(&error))
            }
            Output::Metrics(spec) => {
                metrics::open(spec, &self.id).map_err(|error| Refusal::of(&error))
            }
            Output::Serial(spec) => {
                let opened = SerialOut::open(spec);
                let opened = opened.map_err(|cause| {
                    let path = spec.serial_out_path.as_deref().unwrap_or(Path::new(""));
                    Refusal::new(format!("Cannot open {}: {cause}", path.display()))
                });
                self.serial = Some(opened?);
                Ok(())
            }
        }
    }

    fn start(&mut self, spec: &VmSpec) -> Result<(), Refusal> {
        let counts = metrics::get();
        match self.boot(spec) {
            Ok(()) => {
                metrics::count(&counts.boots);
                tracing::info!("the machine was booted");
                Ok(())
            }
            Err(error) => {
                metrics::count(&counts.boot_failures);
                Err(Refusal::of(&error))
            }
        }
    }

    fn load(&mut self, params: &LoadParams) -> Result<VmSpec, Refusal> {
        let (counts, began) = (metrics::get(), Instant::now());
        match self.restore(params) {
            Ok(spec) => {
                metrics::count(&counts.restores);
                counts.load.record_since(began);
                tracing::info!("the machine was restored");
                Ok(spec)
            }
            Err(error) => {
                metrics::count(&counts.restore_failures);
                Err(Refusal::of(&error))
            }
        }
    }

    fn pause(&mut self) -> Result<(), Refusal> {
        self.timed(&metrics::get().pause, Order::Pause)
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        self.timed(&metrics::get().resume, Order::Resume)
    }

    fn save(&mut self, target: &SnapshotCreate) -> Result<(), Refusal> {
        let counts = metrics::get();
        let timed = match (target.live, target.snapshot_type) {
            (true, _) => &counts.save_live,
            (false, SnapshotType::Full) => &counts.save_full,
            (false, SnapshotType::Diff) => &counts.save_diff,
        };
        let target = SnapshotTarget {
            state: target.snapshot_path.clone(),
            memory: target.mem_file_path.clone(),
            extent: target.snapshot_type,
            is_live: target.live,
        };
        self.timed(timed, Order::Save(target))
    }

    fn fork(&mut self, spec: &ForkSpec) -> Result<(), Refusal> {
        let made = listen(&spec.mem_socket_path, Purpose::Frozen);
        let (listener, socket) = made.map_err(|error| Refusal::of(&error))?;
        let target = ForkTarget {
            state: spec.snapshot_path.clone(),
            listener,
            socket,
            clones: spec.clones,
        };
        self.timed(&metrics::get().fork, Order::Fork(target))
    }

    fn device(&mut self, call: DeviceCall<'_>) -> Result<Reply, Refusal> {
        match call {
            DeviceCall::PatchDrive(patch) => self.patch_drive(patch),
            DeviceCall::OrderOverlay(id, order) => self.order_overlay(id, order),
            DeviceCall::PatchNet(patch) => self.patch_net(patch),
            DeviceCall::PatchBalloon(patch) => self.order_balloon(BalloonOrder::SetAmount {
                mib: patch.amount_mib,
            }),
            DeviceCall::PatchBalloonStats(patch) => {
                self.order_balloon(BalloonOrder::SetPollingInterval {
                    seconds: patch.stats_polling_interval_s,
                })
            }
            DeviceCall::StartHinting(HintingStart {
                acknowledge_on_stop,
            }) => self.order_balloon(BalloonOrder::StartHinting {
                acknowledge_on_stop,
            }),
            DeviceCall::StopHinting => self.order_balloon(BalloonOrder::StopHinting),
            DeviceCall::GetBalloonStats => self.ask_balloon(BalloonOrder::GetStats),
            DeviceCall::GetHintingStatus => self.ask_balloon(BalloonOrder::GetHinting),
            // The controller asks about devices that there are; of these there are none yet.
            _ => Err(Refusal::new("Device not found")),
        }
    }

    fn send_ctrl_alt_del(&mut self) -> Result<(), Refusal> {
        self.order(Order::PressCtrlAltDel)
    }

    /// Without a metrics file there is nothing to do, as in Firecracker.
    fn flush_metrics(&mut self) -> Result<(), Refusal> {
        metrics::flush();
        Ok(())
    }

    fn put_metadata(&mut self, data: &MmdsData) {
        self.mmds.put(data.clone());
    }
}

fn overrides_of(params: &LoadParams) -> Overrides {
    let drives = params.drive_overrides.iter();
    let nets = params.network_overrides.iter();
    Overrides {
        is_from_api: true,
        huge_pages: params.huge_pages,
        tuning: params.tuning.clone().unwrap_or_default(),
        disks: drives
            .clone()
            .filter_map(|drive| Some((drive.drive_id.clone(), drive.path_on_host.clone()?)))
            .collect(),
        deltas: drives
            .filter_map(|drive| Some((drive.drive_id.clone(), drive.overlay_path.clone()?)))
            .collect(),
        vsock: params
            .vsock_override
            .as_ref()
            .map(|vsock| vsock.uds_path.clone()),
        nets: nets
            .map(|net| NetOverride {
                id: net.iface_id.clone(),
                host: net.host(),
                address: None,
                queues: None,
            })
            .collect(),
        ..Overrides::default()
    }
}
