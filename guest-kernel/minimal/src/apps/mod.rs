//! The apps: what the guest does. One is named on the command line by `app=NAME`.

mod args;
mod balloon;
mod blk;
mod dirty;
mod disk_bench;
mod disk_job;
mod echo;
mod ends;
mod entropy;
mod hello;
mod http;
mod measure;
mod metadata;
mod net_bench;
#[cfg(feature = "raw")]
mod raw;
mod server;
mod smp;
mod tick;
mod vsock;
mod vsock_bench;

use crate::eprintln;
use crate::machine::{BadNumber, Machine, NoAddress};
use crate::network::Network;
use crate::trap;

/// Runs to its end and gives the exit status.
type App = fn(&mut Machine) -> Result<u8, Refusal>;

const APPS: &[(&str, App)] = &[
    ("hello", hello::run),
    ("args", args::run),
    ("bad-instruction", ends::bad_instruction),
    ("balloon", balloon::run),
    ("blk", blk::run),
    ("cpu", measure::cpu),
    ("dirty", dirty::run),
    ("disk-bench", disk_bench::run),
    ("echo", echo::run),
    ("entropy", entropy::run),
    ("exit", ends::exit),
    ("http", server::http),
    ("idle", ends::idle),
    ("mark", ends::mark),
    ("mem", measure::mem),
    ("metadata", metadata::run),
    ("net-bench", net_bench::run),
    ("panic", ends::panic),
    #[cfg(feature = "raw")]
    ("raw", raw::run),
    ("reset", ends::reset),
    ("server", server::server),
    ("smp", smp::run),
    ("tick", tick::run),
    ("vsock", vsock::run),
    ("vsock-bench", vsock_bench::run),
    ("triple-fault", ends::triple_fault),
];

const STATUS_OK: u8 = 0;
/// The app did its work and found something wrong.
const STATUS_FAILED: u8 = 1;
/// The app could not begin.
const STATUS_USAGE: u8 = 2;

/// Why an app cannot begin.
enum Refusal {
    BadNumber(BadNumber),
    NoAddress(NoAddress),
    NoDevice(&'static str),
    Usage(&'static str),
}

impl From<BadNumber> for Refusal {
    fn from(number: BadNumber) -> Self {
        Self::BadNumber(number)
    }
}

impl From<NoAddress> for Refusal {
    fn from(address: NoAddress) -> Self {
        Self::NoAddress(address)
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadNumber(BadNumber(text)) => write!(f, "not a number: {text:?}"),
            Self::NoAddress(NoAddress { text: "" }) => {
                write!(
                    f,
                    "no IPv4 address: give ip= on the command line, or LIGHTV_IP"
                )
            }
            Self::NoAddress(NoAddress { text }) => write!(f, "not an IPv4 address: {text:?}"),
            Self::NoDevice(what) => write!(f, "there is no {what} device"),
            Self::Usage(usage) => write!(f, "usage: {usage}"),
        }
    }
}

/// Runs the app that the command line names, `hello` if it names none, and ends the guest with its status.
#[unsafe(link_section = ".text.hot.apps")]
pub fn run(machine: &mut Machine) -> ! {
    let name = machine.cmdline.value("app").unwrap_or("hello");
    let status = match APPS.iter().find(|(known, _)| *known == name) {
        Some((_, app)) => app(machine).unwrap_or_else(|refusal| refuse(name, &refusal)),
        None => unknown(name),
    };
    trap::exit(status)
}

#[cold]
fn refuse(name: &str, refusal: &Refusal) -> u8 {
    eprintln!("app {name}: {refusal}");
    STATUS_USAGE
}

#[cold]
fn unknown(name: &str) -> u8 {
    eprintln!("no app {name}; there are:{Names}");
    STATUS_USAGE
}

struct Names;

impl core::fmt::Display for Names {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        APPS.iter().try_for_each(|(name, _)| write!(f, " {name}"))
    }
}

/// The network over the machine's network device.
fn network(machine: &mut Machine) -> Result<Network, Refusal> {
    machine
        .devices
        .nic
        .take()
        .map(Network::new)
        .ok_or(Refusal::NoDevice("network"))
}
