//! The read side of the control device: 64 KiB that the guest reads as RAM (docs/control-device.md).

use std::sync::Mutex;

use kvm_ioctls::VcpuFd;
use lightv_devices::control::{ControlPage as Page, ControlPageError, FLAG_TTY, RunData};
use vm_memory::VolatileSlice;

use crate::arch::host::layout;
use crate::arch::host::msr;
use crate::lock::lock;
use crate::sys::mapping::{MapError, Mapping};
use crate::sys::process::{random, wall_clock_ns};

/// Why the page could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlPageFailure {
    /// No memory.
    #[error("Cannot map the control device's page")]
    Map(#[source] MapError),
    /// Arguments or environment that it cannot hold.
    #[error("What this run is told (run.args, run.env, run.agent) is refused")]
    Strings(#[source] ControlPageError),
    /// No random bytes.
    #[error("Cannot get random bytes from the host")]
    Random(#[source] std::io::Error),
}

impl ControlPageFailure {
    /// Whether the cause is what the user wrote.
    #[must_use]
    pub const fn is_bad_config(&self) -> bool {
        matches!(self, Self::Strings(_))
    }
}

/// What a run is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFacts {
    /// 0 after a boot.
    pub restores: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Frequency of the guest's time stamp counter in kHz, 0 if unknown.
    pub tsc_khz: u32,
    /// The guest's time stamp counter now.
    pub tsc: u64,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Whether the run has a terminal.
    pub is_tty: bool,
    /// What the guest's agent is to do: JSON, or nothing.
    pub agent: String,
}

/// The page in this process.
#[derive(Debug)]
pub struct ControlPage {
    mapping: Mapping,
    clock: Mutex<()>,
}

impl ControlPage {
    /// Maps an empty page; nothing is told yet.
    ///
    /// # Errors
    /// [`ControlPageFailure::Map`].
    pub fn map() -> Result<Self, ControlPageFailure> {
        let bytes = usize::try_from(layout::CONTROL_BYTES).unwrap_or(0);
        let mapping = Mapping::anonymous(bytes).map_err(ControlPageFailure::Map)?;
        Ok(Self {
            mapping,
            clock: Mutex::new(()),
        })
    }

    /// Where it lies, for the memory slot.
    #[must_use]
    pub const fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Writes what this run is told, with a fresh generation and seed. Before the guest runs.
    ///
    /// # Errors
    /// [`ControlPageFailure`].
    pub fn tell(&self, facts: RunFacts) -> Result<(), ControlPageFailure> {
        let (mut generation, mut seed) = ([0; 16], [0; 32]);
        random(&mut generation).map_err(ControlPageFailure::Random)?;
        random(&mut seed).map_err(ControlPageFailure::Random)?;
        let data = RunData {
            restores: facts.restores,
            generation,
            seed,
            wall_clock_ns: wall_clock_ns(),
            wall_clock_tsc: facts.tsc,
            tsc_khz: facts.tsc_khz,
            vcpus: u32::from(facts.vcpus),
            ram_bytes: facts.ram_bytes,
            args: facts.args,
            env: facts.env,
            flags: if facts.is_tty { FLAG_TTY } else { 0 },
            agent: facts.agent,
        };
        Page::new(self.slice())
            .publish(&data)
            .map_err(ControlPageFailure::Strings)
    }

    /// Writes the host's wall clock, and the guest's time stamp counter as `vcpu` has it.
    pub fn refresh_clock(&self, vcpu: &VcpuFd) {
        let tsc = msr::get(vcpu, msr::TSC).ok().flatten().unwrap_or(0);
        let _one_at_a_time = lock(&self.clock);
        Page::new(self.slice()).set_wall_clock(wall_clock_ns(), tsc);
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.mapping.as_volatile_slice()
    }
}
