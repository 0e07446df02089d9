//! `lightv run` by the host agent: where it has a VM of these very bytes ready, the run is that VM's, with our standard streams.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use lightv_api::agent::run::{RUN_SOCKET_NAME, RunAnswer, RunRequest, RunSignal};
use lightv_api::exit;
use lightv_packet::PacketSocket;
use lightv_vmm::runtime_dir;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::failure::{Coded, Failure};

/// Signals that a guest with LightV's agent is told of; the others end it, as they end a run without the host agent.
const FORWARDED: [i32; 5] = [
    signal_hook::consts::SIGHUP,
    signal_hook::consts::SIGINT,
    signal_hook::consts::SIGQUIT,
    signal_hook::consts::SIGTERM,
    signal_hook::consts::SIGUSR2,
];

/// Why a run's status is not known.
#[derive(Debug, thiserror::Error)]
enum AgentRunError {
    #[error(
        "The host agent has ended during the run; the microVM has ended too, with a status that is not known"
    )]
    AgentEnded,
    #[error(
        "The host agent has ended before it answered; whether the run had begun is not known. Run it again, or with --no-agent"
    )]
    NoAnswer,
    #[error("{refused}")]
    Failed { refused: String, exit_code: u8 },
    #[error("Cannot follow the run")]
    Follow(#[source] io::Error),
}

impl Coded for AgentRunError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { exit_code, .. } => *exit_code,
            _ => exit::FAILURE,
        }
    }
}

/// Runs `image` with `args` and `env` by the host agent; `None` when there is none, or when it has nothing ready: then the run
/// is ours.
pub(crate) fn try_run(
    image: &Path,
    args: Option<Vec<String>>,
    env: BTreeMap<String, String>,
) -> Option<Result<ExitCode, Failure>> {
    let path = runtime_dir::folder().join(RUN_SOCKET_NAME);
    if !path.exists() {
        return None;
    }
    let socket = PacketSocket::connect(&path).ok()?;
    let image = std::path::absolute(image).ok()?;
    let image = image.to_str()?.to_owned();
    let signals = signals().ok()?;
    let request = RunRequest { image, args, env };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    socket.send(&request, &streams).ok()?;
    // It says at once whether it has one, and from then on the run is the guest's. Until then a signal ends us, and an agent that
    // goes on sees that we are gone.
    loop {
        match wait(&socket, &signals) {
            Ok(true) => break,
            Ok(false) => {}
            Err(cause) => return Some(Err(AgentRunError::Follow(cause).into())),
        }
        if let Some(code) = signalled(&signals) {
            return Some(Ok(code));
        }
    }
    let answer = socket.receive::<RunAnswer>().ok().flatten();
    let Some(answer) = answer else {
        return Some(Err(AgentRunError::NoAnswer.into()));
    };
    match answer.message {
        RunAnswer::Running { pid, .. } => Some(follow(&socket, &signals, pid)),
        // Nobody else has heard of a signal that came meanwhile.
        RunAnswer::Refused { begun: false, .. } => signalled(&signals).map(Ok),
        RunAnswer::Refused {
            refused, exit_code, ..
        } => Some(Err(AgentRunError::Failed { refused, exit_code }.into())),
        RunAnswer::Ended { .. } => Some(Err(AgentRunError::NoAnswer.into())),
    }
}

/// A stream on which there is a byte for each signal, by its place in [`FORWARDED`].
fn signals() -> io::Result<Vec<(i32, UnixStream)>> {
    let one = |signal| {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(signal, write)?;
        Ok((signal, read))
    };
    FORWARDED.into_iter().map(one).collect()
}

/// Waits for the agent or a signal. True: the agent has said something, or is gone.
fn wait(socket: &PacketSocket, signals: &[(i32, UnixStream)]) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    fds.extend(
        signals
            .iter()
            .map(|(_, stream)| PollFd::new(stream, PollFlags::IN)),
    );
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
        Err(cause) => Err(cause.into()),
    }
}

/// The exit code of a run that a signal has ended before it began, if one has come.
fn signalled(signals: &[(i32, UnixStream)]) -> Option<ExitCode> {
    let has_come = |(_, stream): &&(i32, UnixStream)| {
        io::Read::read(&mut &*stream, &mut [0]).is_ok_and(|length| length > 0)
    };
    let (signal, _) = signals.iter().find(has_come)?;
    let code = exit::by_signal(u8::try_from(*signal).unwrap_or_default());
    Some(ExitCode::from(code))
}

/// Hands on signals until the run has ended.
fn follow(
    socket: &PacketSocket,
    signals: &[(i32, UnixStream)],
    pid: u32,
) -> Result<ExitCode, Failure> {
    // Looked at only if the agent ends before it: then it is still this very process.
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = raw.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        let is_told = wait(socket, signals).map_err(AgentRunError::Follow)?;
        for (signal, stream) in signals {
            let mut byte = [0];
            while io::Read::read(&mut &*stream, &mut byte).is_ok_and(|length| length > 0) {
                let signal = RunSignal { signal: *signal };
                // An agent that is gone is seen below.
                let _ = socket.send(&signal, &[]);
            }
        }
        if is_told {
            return match socket.receive::<RunAnswer>() {
                Ok(Some(packet)) => match packet.message {
                    RunAnswer::Ended { ended } => Ok(ExitCode::from(ended)),
                    _ => continue,
                },
                Ok(None) | Err(_) => Err(outlive(process)),
            };
        }
    }
}

/// The agent is gone and the microVM goes on: waits for its end.
fn outlive(process: Option<OwnedFd>) -> Failure {
    if let Some(process) = process {
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        while poll(&mut fds, None) == Err(Errno::INTR) {}
    }
    AgentRunError::AgentEnded.into()
}
