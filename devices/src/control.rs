//! The LightV control device (docs/control-device.md): what a guest reads of its run, and the doorbells it rings.

pub use lightv_contract::control::{
    BYTES as CONTROL_BYTES, FLAG_TTY, MAGIC, MARK_USER_CODE, VERSION, read as field,
    write as doorbell,
};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use crate::fault::GuestFault;
use crate::limits::{CONTROL_STRINGS_BYTES_MAX, PRINT_BYTES_MAX};
use crate::memory::GuestMem;

/// Where strings stand when they end before [`DOORBELLS`].
const STRINGS_SHORT: usize = 0x100;
/// First doorbell: nothing is read from here to [`STRINGS_LONG`].
const DOORBELLS: usize = doorbell::READY;
/// Where longer strings stand.
const STRINGS_LONG: usize = 0x1000;

/// What a run is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunData {
    /// 0 after a boot; one more than in the saved image after each restore.
    pub restores: u64,
    /// Random; differs in every boot and every restore.
    pub generation: [u8; 16],
    /// Fresh random bytes.
    pub seed: [u8; 32],
    /// Nanoseconds since 1970-01-01 UTC.
    pub wall_clock_ns: u64,
    /// The guest's time stamp counter at that moment.
    pub wall_clock_tsc: u64,
    /// Frequency of the guest's time stamp counter in kHz, 0 if unknown.
    pub tsc_khz: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Size of guest RAM in bytes.
    pub ram_bytes: u64,
    /// Arguments, in order.
    pub args: Vec<String>,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// [`FLAG_TTY`].
    pub flags: u32,
    /// What the guest's agent is to do: JSON, or nothing.
    pub agent: String,
}

/// Why a run cannot be told to the guest. Nothing has been written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlPageError {
    /// Too many bytes.
    #[error("Arguments, environment and the agent's orders have {bytes} bytes, more than {max}")]
    TooLong {
        /// How many, NUL bytes included.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// An argument cannot be ended by a NUL byte.
    #[error("Argument {index} contains a NUL byte")]
    NulInArgument {
        /// Its number, from 0.
        index: usize,
    },
    /// A variable cannot be ended by a NUL byte.
    #[error("Environment variable {name:?} contains a NUL byte")]
    NulInVariable {
        /// Its name.
        name: String,
    },
    /// A name that could not be told from its value.
    #[error("Environment variable name {name:?} is empty or contains '='")]
    VariableName {
        /// The name.
        name: String,
    },
    /// The page is not [`CONTROL_BYTES`] long; a bug in the monitor.
    #[error("The control page has {bytes} bytes")]
    PageSize {
        /// Its length.
        bytes: usize,
    },
}

/// The read side, in memory that the guest reads at the same time.
#[derive(Debug)]
pub struct ControlPage<'a> {
    page: VolatileSlice<'a>,
}

/// Strings with their NUL bytes, as they stand in the page.
struct Strings {
    bytes: Vec<u8>,
    args_bytes: usize,
    env_bytes: usize,
    agent_bytes: usize,
}

impl<'a> ControlPage<'a> {
    /// The page in `page`, which has [`CONTROL_BYTES`] bytes. What is not written reads as it was: zeros at first.
    #[must_use]
    pub const fn new(page: VolatileSlice<'a>) -> Self {
        Self { page }
    }

    /// Tells the guest of its run. The generation is written last: a guest that sees a new one sees all the rest.
    ///
    /// # Errors
    /// [`ControlPageError`].
    pub fn publish(&self, run: &RunData) -> Result<(), ControlPageError> {
        let strings = Strings::of(run)?;
        if self.page.len() != CONTROL_BYTES {
            return Err(ControlPageError::PageSize {
                bytes: self.page.len(),
            });
        }
        let short = DOORBELLS.saturating_sub(STRINGS_SHORT);
        let is_short = strings.bytes.len() <= short;
        let start = if is_short {
            STRINGS_SHORT
        } else {
            STRINGS_LONG
        };
        self.put(start, &strings.bytes);
        self.put(field::MAGIC, &MAGIC.to_le_bytes());
        self.put(field::VERSION, &VERSION.to_le_bytes());
        self.put(field::RESTORES, &run.restores.to_le_bytes());
        self.put(field::SEED, &run.seed);
        self.put(field::TSC_KHZ, &run.tsc_khz.to_le_bytes());
        self.put(field::VCPUS, &run.vcpus.to_le_bytes());
        self.put(field::RAM_BYTES, &run.ram_bytes.to_le_bytes());
        let env_start = start.saturating_add(strings.args_bytes);
        let agent_start = env_start.saturating_add(strings.env_bytes);
        self.put_words(field::ARGS, &[start, strings.args_bytes, run.args.len()]);
        self.put_words(field::ENV, &[env_start, strings.env_bytes, run.env.len()]);
        self.put(field::FLAGS, &run.flags.to_le_bytes());
        self.put_words(field::AGENT, &[agent_start, strings.agent_bytes]);
        self.set_wall_clock(run.wall_clock_ns, run.wall_clock_tsc);
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        self.put(field::GENERATION, &run.generation);
        Ok(())
    }

    /// Refreshes the wall clock: `ns` since 1970-01-01 UTC, and the guest's time stamp counter at that moment.
    pub fn set_wall_clock(&self, ns: u64, tsc: u64) {
        self.put(field::WALL_CLOCK_NS, &ns.to_le_bytes());
        self.put(field::WALL_CLOCK_TSC, &tsc.to_le_bytes());
    }

    /// Words of 32 bits: offsets, lengths and counts of strings, all below 2^16.
    fn put_words(&self, offset: usize, words: &[usize]) {
        for (value, at) in words.iter().zip((offset..).step_by(4)) {
            self.put(at, &u32::try_from(*value).unwrap_or(0).to_le_bytes());
        }
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        // Inside the page: `publish` has checked its length, and that of the strings.
        let _ = self.page.write_slice(bytes, offset);
    }
}

impl Strings {
    fn of(run: &RunData) -> Result<Self, ControlPageError> {
        let mut bytes = Vec::new();
        for (index, argument) in run.args.iter().enumerate() {
            if argument.contains('\0') {
                return Err(ControlPageError::NulInArgument { index });
            }
            bytes.extend_from_slice(argument.as_bytes());
            bytes.push(0);
        }
        let args_bytes = bytes.len();
        for (name, value) in &run.env {
            if name.contains('\0') || value.contains('\0') {
                return Err(ControlPageError::NulInVariable { name: name.clone() });
            }
            if name.is_empty() || name.contains('=') {
                return Err(ControlPageError::VariableName { name: name.clone() });
            }
            for part in [name.as_str(), "=", value.as_str(), "\0"] {
                bytes.extend_from_slice(part.as_bytes());
            }
        }
        let env_bytes = bytes.len().saturating_sub(args_bytes);
        bytes.extend_from_slice(run.agent.as_bytes());
        if bytes.len() > CONTROL_STRINGS_BYTES_MAX {
            let (bytes, max) = (bytes.len(), CONTROL_STRINGS_BYTES_MAX);
            return Err(ControlPageError::TooLong { bytes, max });
        }
        Ok(Self {
            bytes,
            args_bytes,
            env_bytes,
            agent_bytes: run.agent.len(),
        })
    }
}

/// Where a guest wants its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// The monitor's standard output.
    Stdout,
    /// The monitor's standard error.
    Stderr,
}

/// What a guest says by a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbell {
    /// It is ready: the image may be saved here.
    Ready,
    /// Print a buffer.
    Print {
        /// Where to.
        stream: OutputStream,
        /// Guest-physical address, 48 bits, unchecked.
        addr: u64,
        /// Length in bytes, 0–65,535.
        len: u32,
    },
    /// It has ended with this status.
    Exit(u8),
    /// A time stamp with this number.
    Mark(u32),
    /// Refresh the wall clock.
    Clock,
    /// It has panicked.
    Panic,
}

impl Doorbell {
    /// What the write of `data` at `offset` means; `None` for a width or offset without meaning, which is to be
    /// counted and ignored.
    #[must_use]
    pub fn decode(offset: u64, data: &[u8]) -> Option<Self> {
        let offset = usize::try_from(offset).ok()?;
        match offset {
            doorbell::PRINT | doorbell::PRINT_ERR => {
                let [a, b, c, d, e, f, low, high] = *<&[u8; 8]>::try_from(data).ok()?;
                let is_stdout = offset == doorbell::PRINT;
                let stream = if is_stdout {
                    OutputStream::Stdout
                } else {
                    OutputStream::Stderr
                };
                let addr = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
                let len = u32::from(u16::from_le_bytes([low, high]));
                Some(Self::Print { stream, addr, len })
            }
            _ => {
                let bytes @ [status, ..] = *<&[u8; 4]>::try_from(data).ok()?;
                match offset {
                    doorbell::READY => Some(Self::Ready),
                    doorbell::EXIT => Some(Self::Exit(status)),
                    doorbell::MARK => Some(Self::Mark(u32::from_le_bytes(bytes))),
                    doorbell::CLOCK => Some(Self::Clock),
                    doorbell::PANIC => Some(Self::Panic),
                    _ => None,
                }
            }
        }
    }
}

/// Copies the buffer of a [`Doorbell::Print`] into `buffer`, which grows to [`PRINT_BYTES_MAX`] at most and can be
/// used again.
///
/// # Errors
/// [`GuestFault::OutOfRam`] unless all of it lies in RAM.
pub fn copy_print_buffer<'a>(
    mem: &GuestMem,
    addr: u64,
    len: u32,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], GuestFault> {
    let fault = GuestFault::OutOfRam {
        address: addr,
        bytes: u64::from(len),
    };
    let length = usize::try_from(len)
        .ok()
        .filter(|&length| length <= PRINT_BYTES_MAX)
        .ok_or(fault)?;
    buffer.clear();
    buffer.resize(length, 0);
    mem.read_slice(buffer, GuestAddress(addr))
        .map_err(|_| fault)?;
    Ok(buffer)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
