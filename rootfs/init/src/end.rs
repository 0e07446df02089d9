//! The end of the machine.

use std::error::Error;
use std::sync::OnceLock;

use lightv_contract::control::write;
use rustix::system::RebootCommand;

use crate::message::{say, with_causes};
use crate::sys::control_page::ControlPage;
use crate::sys::process;

/// The control device, from when it was found on.
static PAGE: OnceLock<ControlPage> = OnceLock::new();

/// Lets the ends below reach the monitor.
pub fn by(page: ControlPage) {
    let _ = PAGE.set(page);
}

/// Ends the machine with the program's exit status. Disks are flushed before. What the program has written to a port is
/// with the monitor, which empties its queue before it heeds the doorbell.
pub fn with_status(status: i32) -> ! {
    rustix::fs::sync();
    drain();
    ring(write::EXIT, u32::try_from(status).unwrap_or(255));
    power_off()
}

/// Ends the machine because the agent cannot do what it is for: the message, and the monitor's exit status 162.
pub fn with_error(error: &dyn Error) -> ! {
    say(with_causes(error));
    drain();
    ring(write::PANIC, 1);
    power_off()
}

/// Waits until the terminal has sent all: the serial port takes a character at a time. Ports are no terminals, and need it
/// not.
fn drain() {
    let _ = rustix::termios::tcdrain(rustix::stdio::stdout());
}

fn ring(doorbell: usize, value: u32) {
    if let Some(page) = PAGE.get() {
        page.ring(doorbell, value);
    }
}

/// Without a control device, or with one that does not answer.
fn power_off() -> ! {
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    process::exit_now(1)
}
