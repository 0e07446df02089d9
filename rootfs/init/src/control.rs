//! The control device: who we are in this run (docs/control-device.md). Offsets and lengths are the device's and are
//! checked like those of any other.

use std::fs;
use std::io;

use lightv_contract::agent::AgentSpec;
use lightv_contract::control::{BYTES, FLAG_TTY, MAGIC, read};

use crate::cmdline;
use crate::sys::control_page::ControlPage;

/// Why the agent does not know what to do.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// `/proc/cmdline` cannot be read.
    #[error("cannot read {path}")]
    Cmdline {
        /// Where it was looked for.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel was not told.
    #[error("the kernel's command line has no lightv.control=0x…: this is no guest of LightV")]
    NoAddress,
    /// `/dev/mem` refuses.
    #[error("cannot map the control device at {address:#x} through {path}")]
    Map {
        /// `/dev/mem`.
        path: String,
        /// Of the device.
        address: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Something else is there.
    #[error("no control device: its first bytes are {found:#x}, not {MAGIC:#x}")]
    Magic {
        /// What stands there.
        found: u32,
    },
    /// A part that does not lie in the device.
    #[error("{what} of the control device: {bytes} bytes at {offset:#x} are not inside of it")]
    Outside {
        /// `arguments`, `environment`, `orders`.
        what: &'static str,
        /// Said to begin here.
        offset: u32,
        /// Said to be so long.
        bytes: u32,
    },
    /// Strings without an end, or another number of them.
    #[error("{what} of the control device: {said} are announced, {found} are there")]
    Count {
        /// `arguments`, `environment`.
        what: &'static str,
        /// By the device.
        said: u32,
        /// Ended by NUL.
        found: usize,
    },
    /// The agent's orders are no [`AgentSpec`].
    #[error("orders of the control device")]
    Orders(#[source] serde_json::Error),
}

/// Something that is read like the control device.
pub trait Readable {
    /// Fills `into` from `offset` on, or gives `None` when that is not inside.
    fn copy(&self, offset: usize, into: &mut [u8]) -> Option<()>;
}

/// The device named by the command line, through `/proc` and `/dev` below `base`.
///
/// # Errors
/// When there is none.
pub fn open(base: &str) -> Result<ControlPage, ControlError> {
    let path = format!("{base}/proc/cmdline");
    let cmdline =
        fs::read_to_string(&path).map_err(|cause| ControlError::Cmdline { path, cause })?;
    let address = cmdline::control_address(&cmdline).ok_or(ControlError::NoAddress)?;
    let path = format!("{base}/dev/mem");
    let page = ControlPage::map(&path, address).map_err(|cause| ControlError::Map {
        path,
        address,
        cause,
    })?;
    match u32_at(&page, read::MAGIC) {
        MAGIC => Ok(page),
        found => Err(ControlError::Magic { found }),
    }
}

/// Everything about a run that may differ after a restore, as it stands in the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// Strings, each ended by NUL.
    args: Vec<u8>,
    /// The same.
    env: Vec<u8>,
    /// Whether the program gets the terminal.
    pub has_terminal: bool,
    /// JSON, or nothing.
    agent: Vec<u8>,
}

impl Orders {
    /// Reads and checks them.
    ///
    /// # Errors
    /// When offsets, lengths or counts are wrong.
    pub fn read(page: &impl Readable) -> Result<Self, ControlError> {
        Ok(Self {
            args: strings(page, read::ARGS, "arguments")?,
            env: strings(page, read::ENV, "environment")?,
            has_terminal: u32_at(page, read::FLAGS) & FLAG_TTY != 0,
            agent: part(page, read::AGENT, "orders")?,
        })
    }

    /// The agent's orders; those by default when the device has none.
    ///
    /// # Errors
    /// When they are no [`AgentSpec`].
    pub fn spec(&self) -> Result<AgentSpec, ControlError> {
        if self.agent.is_empty() {
            return Ok(AgentSpec::default());
        }
        serde_json::from_slice(&self.agent).map_err(ControlError::Orders)
    }

    /// Whether a program that was started by `other` is the one that is meant, as far as it does not depend on the agent's
    /// orders.
    #[must_use]
    pub fn is_same_run(&self, other: &Self) -> bool {
        (&self.args, &self.env, self.has_terminal) == (&other.args, &other.env, other.has_terminal)
    }

    /// Arguments of the run.
    pub fn args(&self) -> impl Iterator<Item = &[u8]> {
        words(&self.args)
    }

    /// Its environment: `NAME=value`.
    pub fn env(&self) -> impl Iterator<Item = &[u8]> {
        words(&self.env)
    }
}

/// What differs in each boot and restore.
#[must_use]
pub fn generation(page: &impl Readable) -> [u8; 16] {
    array(page, read::GENERATION)
}

/// Random bytes for the kernel's pool.
#[must_use]
pub fn seed(page: &impl Readable) -> [u8; 32] {
    array(page, read::SEED)
}

/// The host's clock when the run began or was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallClock {
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
    /// The time stamp counter at that moment.
    pub tsc: u64,
    /// Its frequency, 0 if unknown.
    pub tsc_khz: u32,
}

impl WallClock {
    /// As the device has it.
    #[must_use]
    pub fn read(page: &impl Readable) -> Self {
        Self {
            unix_ns: u64::from_le_bytes(array(page, read::WALL_CLOCK_NS)),
            tsc: u64::from_le_bytes(array(page, read::WALL_CLOCK_TSC)),
            tsc_khz: u32_at(page, read::TSC_KHZ),
        }
    }

    /// Nanoseconds since 1970 when the counter shows `tsc`. A counter that went back, or a day ahead, is not believed.
    #[must_use]
    pub fn at(&self, tsc: u64) -> u64 {
        const DAY_NS: u128 = 86_400 * 1_000_000_000;
        let ticks = u128::from(tsc.saturating_sub(self.tsc));
        let passed_ns = (ticks * 1_000_000)
            .checked_div(self.tsc_khz.into())
            .filter(|passed| *passed < DAY_NS)
            .and_then(|passed| u64::try_from(passed).ok());
        self.unix_ns.saturating_add(passed_ns.unwrap_or(0))
    }
}

fn array<const N: usize>(page: &impl Readable, offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    // The fields have fixed places inside of the device; of a shorter one they read 0.
    let _ = page.copy(offset, &mut bytes);
    bytes
}

fn u32_at(page: &impl Readable, offset: usize) -> u32 {
    u32::from_le_bytes(array(page, offset))
}

/// The bytes that offset and length at `field` tell of.
fn part(page: &impl Readable, field: usize, what: &'static str) -> Result<Vec<u8>, ControlError> {
    let (offset, bytes) = (u32_at(page, field), u32_at(page, field + 4));
    let outside = || ControlError::Outside {
        what,
        offset,
        bytes,
    };
    let length = usize::try_from(bytes).map_err(|_| outside())?;
    if length > BYTES {
        return Err(outside());
    }
    let mut content = vec![0; length];
    let start = usize::try_from(offset).map_err(|_| outside())?;
    page.copy(start, &mut content).ok_or_else(outside)?;
    Ok(content)
}

/// Strings that offset, length and count at `field` tell of.
fn strings(
    page: &impl Readable,
    field: usize,
    what: &'static str,
) -> Result<Vec<u8>, ControlError> {
    let content = part(page, field, what)?;
    let said = u32_at(page, field + 8);
    let ends = content.iter().filter(|byte| **byte == 0).count();
    let is_ended = content.last().is_none_or(|byte| *byte == 0);
    if !is_ended || u32::try_from(ends) != Ok(said) {
        let found = ends;
        return Err(ControlError::Count { what, said, found });
    }
    Ok(content)
}

fn words(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content
        .split_inclusive(|byte| *byte == 0)
        .map(|word| word.strip_suffix(&[0]).unwrap_or(word))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
