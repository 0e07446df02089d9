//! `lightv stop`: asks a microVM to end, and ends it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use lightv_api::contract::actions::{Action, ActionSpec};
use lightv_api::exit;
use lightv_api::runtime::VmRecord;
use lightv_api_client::Client;
use lightv_vmm::runtime_dir;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::failure::{Coded, Failure};
use crate::vms::{self, VmError};

/// Ask a microVM to end; end it when it does not
///
/// Where a REST API is served and the guest has a keyboard driver, Ctrl-Alt-Del is pressed, and half of the time is the
/// guest's. Then the monitor gets SIGTERM, which LightV's agent passes on to its program, and which ends a guest without an
/// agent. After all of the time it is killed.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv stop web               up to 10 seconds
  lightv stop web --time 60     a guest that has much to write
  lightv stop web --kill        at once")]
pub(crate) struct StopArgs {
    /// Ids, beginnings of ids, or process ids
    #[arg(required = true)]
    vms: Vec<String>,
    /// Seconds until it is killed
    #[arg(short, long, value_name = "S", default_value_t = PATIENCE_S, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    time: u64,
    /// Kill it at once
    #[arg(long, conflicts_with = "time")]
    kill: bool,
}

/// How long a microVM may take to end by itself, where nothing else is said, in seconds.
pub(crate) const PATIENCE_S: u64 = 10;

/// How long a monitor may take to press keys.
const PRESS_PATIENCE: Duration = Duration::from_secs(1);

/// Why it was not stopped.
#[derive(Debug, thiserror::Error)]
enum StopError {
    #[error("Cannot signal microVM {id} (process {pid})")]
    Signal {
        id: String,
        pid: u32,
        #[source]
        cause: Errno,
    },
}

impl Coded for StopError {
    fn exit_code(&self) -> u8 {
        exit::HOST_FAILURE
    }
}

/// Stops them, one after the other. What cannot be is told, and keeps none of the others; the exit code is the first one's.
pub(crate) fn run(args: &StopArgs) -> Result<ExitCode, Failure> {
    let patience = (!args.kill).then(|| Duration::from_secs(args.time));
    let mut failed = None;
    for name in &args.vms {
        let stopped = vms::find(name).map_err(Failure::from);
        if let Err(failure) = stopped.and_then(|vm| stop(&vm, patience)) {
            let code = failure.report();
            failed.get_or_insert(code);
        }
    }
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

/// Stops `vm`: it is asked to end, and killed after `patience`; without, at once. What one that was killed leaves in the runtime
/// directory is taken away.
pub(crate) fn stop(vm: &VmRecord, patience: Option<Duration>) -> Result<(), Failure> {
    end(vm, patience)?;
    runtime_dir::forget(vm);
    Ok(())
}

fn end(vm: &VmRecord, patience: Option<Duration>) -> Result<(), Failure> {
    let failed = |cause| StopError::Signal {
        id: vm.id.clone(),
        pid: vm.pid,
        cause,
    };
    let Some(process) = open(vm).map_err(failed)? else {
        return Err(VmError::Missing {
            name: vm.id.clone(),
        }
        .into());
    };
    let began = Instant::now();
    let mut steps = vec![(Signal::KILL, Duration::MAX)];
    if let Some(whole) = patience {
        if press_ctrl_alt_del(vm) && ends_within(&process, whole / 2).map_err(failed)? {
            return Ok(());
        }
        steps.insert(0, (Signal::TERM, whole.saturating_sub(began.elapsed())));
    }
    for (signal, patience) in steps {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(()),
            Err(cause) => return Err(failed(cause).into()),
        }
        if ends_within(&process, patience).map_err(failed)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a guest was told that hears of it.
fn press_ctrl_alt_del(vm: &VmRecord) -> bool {
    let action = ActionSpec {
        action_type: Action::SendCtrlAltDel,
    };
    let client = vm.api_socket.as_deref();
    let client = client.map(|socket| Client::with_patience(socket, PRESS_PATIENCE));
    client.is_some_and(|client| client.put("/actions", &action).is_ok())
}

/// The process, if it is still the one that wrote `vm`.
fn open(vm: &VmRecord) -> Result<Option<OwnedFd>, Errno> {
    let pid = i32::try_from(vm.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) if runtime_dir::is_alive(vm) => Ok(Some(process)),
        Ok(_) | Err(Errno::SRCH) => Ok(None),
        Err(cause) => Err(cause),
    }
}

fn ends_within(process: &OwnedFd, patience: Duration) -> Result<bool, Errno> {
    let began = Instant::now();
    loop {
        let left = patience.saturating_sub(began.elapsed());
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(cause) => return Err(cause),
        }
    }
}
