//! What the guest reads of devices as RAM: 64 KiB of the control device (docs/control-device.md), and after them the
//! registers of virtio devices (docs/adr/0017-register-pages.md). One memory slot for all.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use kvm_ioctls::VcpuFd;
use lightv_devices::control::{ControlPage as Page, ControlPageError, FLAG_TTY, RunData};
use lightv_devices::register_page::RegisterPage;
use vm_memory::{Bytes as _, VolatileSlice};

use crate::arch::host::layout;
use crate::arch::host::msr;
use crate::lock::lock;
use crate::sys::mapping::{MapError, Mapping};
use crate::sys::process::{random, wall_clock_ns};

#[expect(clippy::cast_possible_truncation, reason = "64 KiB and 4 KiB")]
const CONTROL_BYTES: usize = layout::CONTROL_BYTES as usize;
#[expect(clippy::cast_possible_truncation, reason = "as above")]
const REGISTER_BYTES: usize = layout::MMIO_BYTES as usize;

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
    /// Maps an empty page, and empty registers of `devices` devices; nothing is told yet.
    ///
    /// # Errors
    /// [`ControlPageFailure::Map`].
    pub fn map(devices: usize) -> Result<Self, ControlPageFailure> {
        let bytes = CONTROL_BYTES + devices * REGISTER_BYTES;
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

    /// Where the guest reads the registers of the device at `place`, if they are mapped.
    #[must_use]
    pub fn registers(&self, place: usize) -> Option<RegisterPage> {
        let start = CONTROL_BYTES + place * REGISTER_BYTES;
        if start >= self.mapping.bytes() {
            return None;
        }
        let mapping = self.mapping;
        Some(RegisterPage::new(move |offset, value| {
            let offset = start + usize::try_from(offset).unwrap_or(REGISTER_BYTES);
            let memory = mapping.as_volatile_slice();
            // One access: a guest reads a register while it changes. Registers lie inside the mapping.
            let stored = memory.store(value.to_le(), offset, Ordering::Release);
            debug_assert!(stored.is_ok(), "a register outside its page: {offset:#x}");
        }))
    }

    fn slice(&self) -> VolatileSlice<'_> {
        let memory = self.mapping.as_volatile_slice();
        // The mapping is at least this long.
        memory.subslice(0, CONTROL_BYTES).unwrap_or(memory)
    }
}
