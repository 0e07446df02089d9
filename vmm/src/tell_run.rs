//! What a run is told that no other run of its image is: arguments, environment, generation, seed, clock.

use kvm_ioctls::VcpuFd;

use crate::arch::host::generation::{self, WriteGenerationError};
use crate::arch::host::{acpi, layout, msr};
use crate::config::MachineConfig;
use crate::control_page::{ControlPageFailure, RunFacts};
use crate::machine::Machine;
use crate::vm::VmError;

/// Why a guest was not told.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each variant is the failure of the step that its source names"
)]
pub enum TellRunError {
    #[error(transparent)]
    ControlPage(ControlPageFailure),
    #[error(transparent)]
    Generation(WriteGenerationError),
    #[error(transparent)]
    Vm(VmError),
}

impl TellRunError {
    /// Whether the cause is what the user wrote.
    #[must_use]
    pub const fn is_bad_config(&self) -> bool {
        matches!(self, Self::ControlPage(cause) if cause.is_bad_config())
    }
}

/// Tells the guest of `machine` what is this run's own: `facts`, a seed, and another generation. Its vCPUs do not run yet.
///
/// Another generation ID comes with a word of it by the event device, if the guest has a driver for that: the first thing that
/// it does is to take that interrupt.
///
/// # Errors
/// [`TellRunError`]; facts that are refused change nothing.
pub fn tell_run(machine: &Machine, facts: RunFacts) -> Result<(), TellRunError> {
    let told = machine.control_page.tell(facts);
    told.map_err(TellRunError::ControlPage)?;
    if machine.watches_generation {
        generation::write_fresh(machine.ram.mem()).map_err(TellRunError::Generation)?;
        machine.bus.add_event(acpi::event::GENERATION);
        let raised = machine.vm.interrupt_once(layout::EVENT_GSI);
        raised.map_err(TellRunError::Vm)?;
    }
    Ok(())
}

/// The guest's time stamp counter.
#[derive(Debug, Clone, Copy)]
pub struct GuestClock {
    /// Its frequency in kHz, 0 if unknown.
    pub khz: u32,
    /// Its value now.
    pub value: u64,
}

impl GuestClock {
    /// The counter of `vcpu`, as KVM has it: what was set need not be what runs.
    #[must_use]
    pub fn of(vcpu: Option<&VcpuFd>) -> Self {
        Self {
            khz: vcpu.and_then(|vcpu| vcpu.get_tsc_khz().ok()).unwrap_or(0),
            value: vcpu
                .and_then(|vcpu| msr::get(vcpu, msr::TSC).ok().flatten())
                .unwrap_or(0),
        }
    }
}

/// What this run is told by the control device.
#[must_use]
pub fn run_facts(
    config: &MachineConfig,
    restores: u64,
    clock: GuestClock,
    is_tty: bool,
) -> RunFacts {
    RunFacts {
        restores,
        vcpus: config.vcpus(),
        ram_bytes: config.ram_bytes(),
        tsc_khz: clock.khz,
        tsc: clock.value,
        args: config.args().to_vec(),
        env: config.env(),
        is_tty,
        agent: config.agent_json(),
    }
}
