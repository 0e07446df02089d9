//! A program in a running guest: the connection to its agent (docs/exec.md), and what goes over it. What the guest sends is not
//! trusted: each message and each wait before the program runs has a limit.

mod dial;
mod streams;

use std::io;
use std::path::PathBuf;

use lightv_api::exit;
use lightv_contract::exec_host::HearError;
use rustix::process::Signal;

pub(crate) use self::dial::Connection;
pub(crate) use self::streams::{Seat, carry, size};
use crate::failure::Coded;

/// Why no program was started, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error(
        "MicroVM {id} has no vsock, by which programs are started in its guest; build its image with `lightv build --rootfs … --exec`"
    )]
    NoVsock { id: String },
    #[error("MicroVM {id} is paused; `lightv resume {id}` lets it go on")]
    Paused { id: String },
    #[error(
        "MicroVM {id} is not started yet; lightv api --vm {id} PUT /actions '{{\"action_type\": \"InstanceStart\"}}' starts it"
    )]
    NotStarted { id: String },
    #[error("The program's words and environment have {bytes} bytes; allowed: at most {allowed}")]
    TooLong { bytes: usize, allowed: usize },
    #[error("--tty: standard input and output are not a terminal; leave --tty out")]
    NoTerminal,
    #[error("Cannot use the terminal")]
    Terminal(#[source] io::Error),
    #[error("Cannot set up signals and streams")]
    Setup(#[source] io::Error),
    #[error("Cannot connect to {}, the socket of the microVM's vsock", socket.display())]
    Connect {
        socket: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "The guest did not answer within {seconds} s: it is still booting, stands still, or has very much to do"
    )]
    Silent { seconds: u64 },
    #[error("In the guest: {text}")]
    Refused { text: String, status: u8 },
    #[error(transparent)]
    Hear(#[from] HearError),
    #[error("Cannot talk to the guest's agent")]
    Talk(#[source] io::Error),
    #[error("The microVM ended before the program")]
    MachineEnded,
    #[error(
        "The connection to the guest's agent ended before the program; it has got SIGHUP, unless the guest was restored or has failed"
    )]
    Lost,
}

impl Coded for ExecError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoVsock { .. } | Self::TooLong { .. } | Self::NoTerminal => exit::BAD_ARGUMENTS,
            Self::Terminal(_) | Self::Setup(_) => exit::HOST_FAILURE,
            Self::Refused { status, .. } => *status,
            // As a process that is killed with its machine.
            Self::MachineEnded => killed_by(Signal::KILL),
            _ => exit::FAILURE,
        }
    }
}

/// The exit code of what `signal` has ended.
pub(crate) fn killed_by(signal: Signal) -> u8 {
    exit::by_signal(u8::try_from(signal.as_raw()).unwrap_or(0))
}
