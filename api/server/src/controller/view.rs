//! What is known without asking the machine: answered at once, however busy the controller is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lightv_api::config::VmSpec;
use lightv_api::contract::cpu::CpuConfig;
use lightv_api::contract::instance::{
    APP_NAME, FIRECRACKER_VERSION, InstanceInfo, InstanceState, VersionInfo,
};
use lightv_api::contract::mmds::MmdsData;
use lightv_api::contract::vm::FullConfig;
use lightv_api::fault::Area;
use lightv_api::request::{Reply, Request};

use super::metadata::NOT_INITIALIZED;
use crate::service::Answer;

/// LightV's own version.
const LIGHTV_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What has been configured, and what the machine does.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) state: InstanceState,
    pub(super) spec: VmSpec,
    pub(super) metadata: Option<MmdsData>,
}

impl Configured {
    /// Whether metadata can be stored. After the start only if a store was set up before.
    pub(super) fn has_store(&self) -> bool {
        self.state == InstanceState::NotStarted
            || self.metadata.is_some()
            || self.spec.mmds_config.is_some()
    }
}

/// The same, for all who look at it. Only the controller changes it; nobody holds the lock while anything else is called.
#[derive(Debug)]
pub(super) struct Shared {
    id: String,
    configured: Mutex<Configured>,
}

impl Shared {
    pub(super) fn new(id: String, configured: Configured) -> Self {
        Self {
            id,
            configured: Mutex::new(configured),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Configured> {
        // Nothing that is done under the lock can stop half-way.
        self.configured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, state: InstanceState) {
        self.lock().state = state;
    }
}

/// Answers what needs no machine, from any thread.
#[derive(Debug, Clone)]
pub struct View(pub(super) Arc<Shared>);

impl View {
    /// The answer to `request`, if it needs no machine.
    #[must_use]
    pub fn answer(&self, request: &Request) -> Option<Answer> {
        match request {
            Request::GetInfo => Some(self.info()),
            Request::GetVersion => Some(Self::version()),
            Request::GetMachine => Some(self.machine()),
            Request::GetFullConfig => Some(self.full_config()),
            Request::GetBalloon => Some(self.balloon()),
            Request::GetMmds => Some(self.metadata()),
            _ => None,
        }
    }

    /// What the machine does.
    #[must_use]
    pub fn state(&self) -> InstanceState {
        self.0.lock().state
    }

    pub(super) fn info(&self) -> Answer {
        Reply::json(&InstanceInfo {
            id: self.0.id.clone(),
            state: self.state(),
            vmm_version: FIRECRACKER_VERSION.to_owned(),
            app_name: APP_NAME.to_owned(),
            lightv_version: LIGHTV_VERSION.to_owned(),
        })
    }

    pub(super) fn version() -> Answer {
        Reply::json(&VersionInfo {
            firecracker_version: FIRECRACKER_VERSION.to_owned(),
            lightv_version: LIGHTV_VERSION.to_owned(),
        })
    }

    pub(super) fn machine(&self) -> Answer {
        Reply::json(&self.0.lock().spec.machine_config)
    }

    pub(super) fn balloon(&self) -> Answer {
        let configured = self.0.lock();
        match (&configured.spec.balloon, configured.state) {
            (Some(balloon), _) => Reply::json(balloon),
            (None, InstanceState::NotStarted) => {
                Err(Area::Balloon.fault("No balloon device found."))
            }
            (None, InstanceState::Running | InstanceState::Paused) => {
                Err(Area::InternalVmm.fault("Cannot find the balloon: Device not found"))
            }
        }
    }

    pub(super) fn metadata(&self) -> Answer {
        let configured = self.0.lock();
        match &configured.metadata {
            Some(data) => Reply::json(data),
            None if configured.has_store() => Reply::json(&MmdsData::new()),
            None => Err(Area::Mmds.fault(NOT_INITIALIZED)),
        }
    }

    pub(super) fn full_config(&self) -> Answer {
        let configured = self.0.lock();
        let spec = &configured.spec;
        // As in Firecracker, which forgets these three at the start.
        let not_started = configured.state == InstanceState::NotStarted;
        Reply::json(&FullConfig {
            balloon: spec.balloon.clone(),
            drives: spec.drives.clone(),
            boot_source: spec.boot_source.clone(),
            cpu_config: match &spec.cpu_config {
                Some(CpuConfig::Spec(cpu)) if not_started => Some(cpu.clone()),
                _ => None,
            },
            logger: spec.logger.clone().filter(|_| not_started),
            machine_config: spec.machine_config.clone(),
            metrics: spec.metrics.clone().filter(|_| not_started),
            mmds_config: spec.mmds_config.clone(),
            network_interfaces: spec.network_interfaces.clone(),
            vsock: spec.vsock.clone(),
            entropy: spec.entropy.clone(),
            pmem: spec.pmem.clone().unwrap_or_default(),
            memory_hotplug: spec.memory_hotplug.clone(),
        })
    }
}
