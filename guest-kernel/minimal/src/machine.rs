//! What an app has to work with.

use guest_text::args::{self, Args, NulStrings};
use guest_text::cmdline::Cmdline;
use guest_text::ip::Ipv4Setup;

use crate::console;
use crate::control::{self, Generation};
use crate::time;
use crate::virtio::Devices;

/// Environment entry that sets the guest's IPv4 address.
const ENV_IP: &str = "LIGHTV_IP";

/// The machine, set up.
pub struct Machine {
    /// The kernel command line.
    pub cmdline: Cmdline<'static>,
    /// Size of RAM in bytes, from address 0 on.
    pub ram_bytes: usize,
    /// The virtio devices.
    pub devices: Devices,
}

impl Machine {
    /// Tells the monitor that the guest is ready. The next line runs in this guest and in every one restored from here:
    /// arguments, environment and generation are read again after it.
    #[inline]
    pub fn ready(&self) {
        if let Some(control) = control::get() {
            control.ready();
            console::begin();
        }
    }

    /// Arguments of this run as text.
    pub fn args(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.raw_args().map(args::text)
    }

    /// Arguments of this run: those that the run brought, else those of the command line.
    fn raw_args(&self) -> Args<'static> {
        match control::get().and_then(|control| control.args()) {
            Some(strings) => Args::Run(NulStrings::new(strings)),
            None => Args::Cmdline(self.cmdline.arguments()),
        }
    }

    /// The first argument of this run, by the shortest way.
    #[inline]
    pub fn first_arg(&self) -> Option<&'static [u8]> {
        match control::get().and_then(|control| control.args()) {
            Some(strings) => NulStrings::new(strings).next(),
            None => self.cmdline.arguments().next().map(str::as_bytes),
        }
    }

    /// Environment of this run, `NAME=value` each.
    pub fn env(&self) -> impl Iterator<Item = &'static str> + use<> {
        NulStrings::new(control::get().map_or(&[], |control| control.env())).map(args::text)
    }

    /// Argument `index` as a number; `default` if there is none.
    ///
    /// # Errors
    /// [`BadNumber`] if it is none.
    pub fn number(&self, index: usize, default: u64) -> Result<u64, BadNumber> {
        match self.args().nth(index) {
            Some(text) => text.parse().map_err(|_| BadNumber(text)),
            None => Ok(default),
        }
    }

    /// The guest's IPv4 address in this run: from the environment, else from the command line.
    ///
    /// # Errors
    /// [`NoAddress`] if neither has one, or what they have is malformed.
    pub fn ipv4(&self) -> Result<Ipv4Setup, NoAddress> {
        let of_run = self
            .env()
            .find_map(|entry| entry.strip_prefix(ENV_IP)?.strip_prefix('='));
        match (of_run, self.cmdline.value("ip")) {
            (Some(text), _) => Ipv4Setup::from_short(text).ok_or(NoAddress { text }),
            (None, Some(text)) => Ipv4Setup::from_linux(text).ok_or(NoAddress { text }),
            (None, None) => Err(NoAddress { text: "" }),
        }
    }
}

/// An argument that should be a number.
#[derive(Debug)]
pub struct BadNumber(pub &'static str);

/// Neither `ip=` nor `LIGHTV_IP` gives an address.
#[derive(Debug)]
pub struct NoAddress {
    /// What was given instead; empty if nothing was.
    pub text: &'static str,
}

/// Notices restores.
#[derive(Debug)]
pub struct Epoch(Option<Generation>);

impl Epoch {
    /// The run up to now.
    pub fn now() -> Self {
        Self(generation())
    }

    /// True once after each restore. Monotonic time then goes on where it stood.
    pub fn changed(&mut self) -> bool {
        let now = generation();
        let changed = now != self.0;
        if changed {
            self.0 = now;
            time::resume();
        }
        changed
    }
}

fn generation() -> Option<Generation> {
    control::get().map(|control| control.generation())
}
