//! A machine: all parts of a VM, built and not yet running.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd};
use lightv_devices::mmds::Mmds;

use crate::arch::VcpuId;
use crate::bus::Bus;
use crate::config::MachineConfig;
use crate::control_page::ControlPage;
use crate::device_set::DeviceSet;
use crate::event::{EventReceiver, EventSender};
use crate::kernel::BootFiles;
use crate::memory::GuestRam;
use crate::sandbox::ConfineError;
use crate::snapshot::page_log::PageLog;
use crate::stamps::Stamps;
use crate::vcpu::{self, Vcpu, VcpuContext, VcpuHandle};
use crate::vm::Vm;

/// The parts. Made by `boot` and `restore`, run by `control`.
#[derive(Debug)]
pub struct Machine {
    /// What it is.
    pub config: MachineConfig,
    /// KVM.
    pub kvm: Kvm,
    /// KVM's VM.
    pub vm: Vm,
    /// RAM.
    pub ram: GuestRam,
    /// The control device's page.
    pub control_page: Arc<ControlPage>,
    /// Devices.
    pub devices: DeviceSet,
    /// The metadata service.
    pub mmds: Mmds,
    /// Where accesses go.
    pub bus: Arc<Bus>,
    /// vCPUs that have their state.
    pub vcpus: Vec<VcpuFd>,
    /// The vCPUs' way to the loop.
    pub sender: EventSender,
    /// The loop's end of it.
    pub receiver: EventReceiver,
    /// Restores that lie between the boot and now.
    pub restores: u64,
    /// The guest has a driver that looks at the generation ID, and is to be told of another one.
    pub watches_generation: bool,
    /// Pages as of the last snapshot, if changed ones are tracked.
    pub page_log: Option<PageLog>,
    /// For a save.
    pub boot_files: BootFiles,
    /// When each step was done.
    pub stamps: Arc<Stamps>,
}

/// Why the machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There are no threads left.
    #[error("Cannot start the thread of vCPU {id}")]
    Thread {
        /// Which vCPU.
        id: VcpuId,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A thread could not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// A machine whose vCPUs run, or are about to: what the loop owns.
#[derive(Debug)]
pub struct Running {
    /// The machine.
    pub machine: Machine,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuHandle>,
    /// They stand still from the beginning, and the devices with them.
    pub is_paused: bool,
}

impl Machine {
    /// Starts the threads of all vCPUs but the first, which the caller runs itself: on the way to the first instruction of a
    /// guest with one vCPU there is then no thread to wait for. They are confined when this comes back, and wait for the
    /// first. `is_paused`: none enters the guest before it is told to.
    ///
    /// # Errors
    /// [`StartError`]; threads that were started end with the process.
    pub fn start(mut self, is_paused: bool) -> Result<(Running, Option<Vcpu>), StartError> {
        self.stamps.report_to(self.sender.clone());
        let context = VcpuContext {
            bus: Arc::clone(&self.bus),
            events: self.sender.clone(),
            control_page: Arc::clone(&self.control_page),
            gate: Arc::default(),
            cpus: Arc::new(self.config.tuning().vcpu_cpus.clone()),
        };
        let mut handles = Vec::with_capacity(self.vcpus.len());
        let (mut first, mut spawned) = (None, Vec::new());
        for (id, fd) in (0..).zip(std::mem::take(&mut self.vcpus)) {
            let (vcpu, handle) = vcpu::prepare(id, fd, context.clone());
            if is_paused {
                handle.ask_to_park();
            }
            handles.push(handle);
            if id == 0 {
                first = Some(vcpu);
            } else {
                let thread = vcpu.spawn();
                spawned.push(thread.map_err(|cause| StartError::Thread { id, cause })?);
            }
        }
        for vcpu in spawned {
            vcpu.wait_confined()?;
        }
        Ok((
            Running {
                machine: self,
                vcpus: handles,
                is_paused,
            },
            first,
        ))
    }
}
