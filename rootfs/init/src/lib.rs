//! LightV's agent: PID 1 of a Linux guest (docs/linux-guest.md). It makes the root file system writable, gives the machine
//! its name and addresses, starts one program, tells the monitor when the machine can be saved, makes each restored machine
//! an own one, and ends the machine with the program.
//!
//! On software KVM each system call costs 150 µs and each page touched a fault, so it does little, and what a restore needs
//! is prepared before the save.

#![deny(unsafe_code)]

pub mod account;
pub mod arp;
pub mod auxv;
pub mod button;
pub mod cmdline;
pub mod control;
pub mod doorbell;
pub mod end;
pub mod exec;
pub mod fresh;
pub mod hold;
pub mod line;
pub mod listening;
pub mod message;
pub mod mounts;
pub mod names;
pub mod netlink;
pub mod network;
pub mod ports;
pub mod program;
pub mod ready;
pub mod renew;
pub mod run_file;
pub mod serve;
#[allow(unsafe_code)]
pub mod sys;
pub mod warm;

use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::path::Path;

use lightv_contract::{READY_HELPER, ports as port_names};
use rustix::process::Pid;
use rustix::system::RebootCommand;

use crate::control::Orders;
use crate::exec::Server;
use crate::message::say;
use crate::ports::Ports;
use crate::program::Program;
use crate::ready::Started;
use crate::renew::Identity;
use crate::serve::Duty;

/// The agent, or its helper, by the name that it is started by.
pub fn main() -> ! {
    let own = env::args_os().next();
    let name = own.as_deref().and_then(|own| Path::new(own).file_name());
    if name.is_some() && name == Path::new(READY_HELPER).file_name() {
        doorbell::ring();
        std::process::exit(0);
    }
    if rustix::process::getpid() != Pid::INIT {
        say("runs as PID 1 of a LightV guest only");
        std::process::exit(1);
    }
    match run() {
        Ok(never) => match never {},
        Err(error) => end::with_error(&*error),
    }
}

/// The life of a machine, step by step.
fn run() -> Result<Infallible, Box<dyn Error>> {
    // Ctrl-Alt-Del becomes SIGINT to us instead of a reset.
    let _ = rustix::system::reboot(RebootCommand::CadOff);
    let root = mounts::begin()?;
    let page = control::open(root.base())?;
    end::by(page);
    let orders = Orders::read(&page)?;
    let spec = orders.spec()?;
    mounts::complete(root, &spec.writable)?;
    let ports = Ports::find();
    let agent = ports.open(port_names::AGENT);
    ports.connect(orders.has_terminal)?;
    let identity = Identity::assume(page, orders, spec)?;
    doorbell::offer_helper(
        env::args_os()
            .next()
            .filter(|own| Path::new(own).is_absolute()),
    );
    let signals = serve::collect_signals()?;
    let program = match Program::plan(identity.orders(), identity.spec()) {
        Ok(program) => program,
        Err(error) => {
            say(message::with_causes(&error));
            end::with_status(error.status())
        }
    };
    // Before the program is started: when it waits, everything else has been done.
    let button = button::open();
    let exec = Server::listen(page);
    let (program, listener) = match ready::start(identity, program, &ports)? {
        Started::Running(pid) => (pid, None),
        Started::Awaited(pid, listener) => (pid, Some(listener)),
        Started::Ended(status) => end::with_status(status),
    };
    let duty = Duty {
        program,
        signals,
        orders: agent,
        button,
        listener,
        exec,
    };
    Ok(duty.serve()?)
}
