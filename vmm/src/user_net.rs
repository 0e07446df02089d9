//! Networks in user space: passt, a child that translates between the guest's frames and sockets of this user, and ends with
//! this process. It needs no privileges.
//!
//! The socket is its standard input, so that it is its only other descriptor of ours; it says by a line on standard output,
//! as its PID file, that it is ready: what it could not do, such as taking a port, is known by then.

use std::io::{self, PipeReader, Read as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use lightv_devices::virtio::net::{FrameStream, StreamPeer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use crate::config::{Protocol, UserNetConfig};
use crate::limits;
use crate::lock::lock;
use crate::starter::{self, OverError};

/// The program.
pub const PROGRAM: &str = "passt";
/// Address of the guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Length of the network's prefix.
pub const PREFIX: u32 = 24;
/// Address of the gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Address of the name server: the host's own answers.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// MTU where none is configured: Ethernet's.
const MTU_DEFAULT: u16 = 1500;

/// Why there is no network in user space. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum UserNetError {
    /// It is not installed.
    #[error(
        "There is no {PROGRAM} in PATH, which makes networks in user space: apt-get install passt, or dnf install passt; or use a tap"
    )]
    NotInstalled,
    /// It could not be started.
    #[error("Cannot start {PROGRAM}")]
    Start(#[source] io::Error),
    /// The machine runs already.
    #[error(transparent)]
    Over(#[from] OverError),
    /// It has ended at once.
    #[error("{PROGRAM} ended with {status}: {text}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last that it said.
        text: String,
    },
    /// It does not get ready.
    #[error("{PROGRAM} was not ready after {} s: {text}", limits::PASST_START_MS_MAX / 1000)]
    NotReady {
        /// The last that it said.
        text: String,
    },
}

/// The child at work, or what is left of it.
#[derive(Debug)]
struct Passt {
    /// Of a jail it is the child of the process outside.
    child: Option<Child>,
    /// Its standard error. A full pipe loses what it says, and does not hold it up.
    said: PipeReader,
}

impl Passt {
    /// The last line that it has said, with what it said before cut off.
    fn last_words(&mut self) -> String {
        let mut all = Vec::new();
        let mut piece = [0; limits::PASST_TEXT_BYTES_MAX];
        while let Ok(bytes @ 1..) = self.said.read(&mut piece) {
            all.extend_from_slice(piece.get(..bytes).unwrap_or_default());
            let surplus = all.len().saturating_sub(limits::PASST_TEXT_BYTES_MAX);
            all.drain(..surplus);
        }
        let text = String::from_utf8_lossy(&all);
        // It notes that there is no system log, before each line that would have gone there.
        let lines = text.lines().map(str::trim);
        let words: Vec<&str> = lines
            .filter(|line| !line.is_empty() && !line.ends_with("to syslog"))
            .filter(|line| !line.starts_with("Don't run as root"))
            .collect();
        if words.is_empty() {
            "it said nothing".to_owned()
        } else {
            words.join("; ")
        }
    }
}

impl StreamPeer for Passt {
    fn name(&self) -> &'static str {
        PROGRAM
    }

    fn why_gone(&mut self) -> String {
        let text = self.last_words();
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => format!("it ended with {status}: {text}"),
            _ => text,
        }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // It has ended, or is about to: its socket is closed. Neither fails for a child that was not waited for.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A passt that was started before there is a machine, and our end.
#[derive(Debug)]
struct Held {
    config: UserNetConfig,
    mtu: Option<u16>,
    ours: UnixStream,
    passt: Passt,
}

/// Of a machine that will be in a jail, where no passt can be started.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

/// Starts passt for a guest that will come: [`start`] gives it out, in a process that this one has become by fork.
///
/// # Errors
/// [`UserNetError`].
pub fn hold(config: &UserNetConfig, mtu: Option<u16>) -> Result<(), UserNetError> {
    let (ours, mut passt) = spawn(config, mtu)?;
    // It is not the child of who will have it, where its number may be another's.
    passt.child = None;
    lock(&HELD).push(Held {
        config: config.clone(),
        mtu,
        ours,
        passt,
    });
    Ok(())
}

/// Lets go of those that are held, which are another process's by now.
pub fn let_go() {
    lock(&HELD).clear();
}

/// A passt for a guest with `mtu`: one that is held, or a new one, once it is ready.
///
/// # Errors
/// [`UserNetError`].
pub fn start(config: &UserNetConfig, mtu: Option<u16>) -> Result<FrameStream, UserNetError> {
    let held = {
        let mut held = lock(&HELD);
        let place = held
            .iter()
            .position(|held| held.config == *config && held.mtu == mtu);
        place.map(|place| held.swap_remove(place))
    };
    if let Some(Held { ours, passt, .. }) = held {
        return stream(ours, passt);
    }
    let config = config.clone();
    starter::run(move || {
        let (ours, passt) = spawn(&config, mtu)?;
        stream(ours, passt)
    })?
}

fn stream(ours: UnixStream, passt: Passt) -> Result<FrameStream, UserNetError> {
    FrameStream::new(OwnedFd::from(ours), Box::new(passt)).map_err(UserNetError::Start)
}

/// Starts passt, and waits until it is ready.
fn spawn(config: &UserNetConfig, mtu: Option<u16>) -> Result<(UnixStream, Passt), UserNetError> {
    let start = UserNetError::Start;
    let (ours, theirs) = UnixStream::pair().map_err(start)?;
    let (ready, pid_file) = io::pipe().map_err(start)?;
    let (said, to_say) = io::pipe().map_err(start)?;
    // Started by root it is nobody by the time it opens the file.
    rustix::fs::fchmod(&pid_file, Mode::from_bits_truncate(0o622))
        .map_err(|cause| start(cause.into()))?;
    for end in [said.as_fd(), to_say.as_fd()] {
        rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK).map_err(|cause| start(cause.into()))?;
    }
    let child = Command::new(PROGRAM)
        .args(arguments(config, mtu))
        .stdin(OwnedFd::from(theirs))
        .stdout(pid_file)
        .stderr(to_say)
        // A terminal's signals are for the guest, which may go on for a while.
        .process_group(0)
        .spawn()
        .map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => UserNetError::NotInstalled,
            _ => UserNetError::Start(cause),
        })?;
    let mut passt = Passt {
        child: Some(child),
        said,
    };
    wait_until_ready(&mut passt, ready)?;
    Ok((ours, passt))
}

fn arguments(config: &UserNetConfig, mtu: Option<u16>) -> Vec<String> {
    let mut words: Vec<String> = [
        "--foreground",
        "--quiet",
        "--one-off",
        "--fd",
        "0",
        "--pid",
        "/proc/self/fd/1",
        "--ipv4-only",
    ]
    .map(str::to_owned)
    .into();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("--address", GUEST.to_string());
    add("--netmask", PREFIX.to_string());
    add("--gateway", GATEWAY.to_string());
    add("--dns-forward", NAME_SERVER.to_string());
    add("--mtu", mtu.unwrap_or(MTU_DEFAULT).to_string());
    for port in &config.publish {
        let option = match port.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        let ports = format!("{}:{}", port.port, port.guest_port);
        let address = port.address.map(|address| format!("{address}/"));
        add(option, address.unwrap_or_default() + &ports);
    }
    if !config.host_loopback {
        words.push("--no-map-gw".to_owned());
    }
    words
}

/// Reads the line with its number, or its end.
fn wait_until_ready(passt: &mut Passt, mut ready: PipeReader) -> Result<(), UserNetError> {
    let until = Instant::now() + Duration::from_millis(limits::PASST_START_MS_MAX);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&ready, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(1) => break,
            Ok(_) => {
                let text = passt.last_words();
                return Err(UserNetError::NotReady { text });
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(UserNetError::Start(cause.into())),
        }
    }
    let mut number = [0; 16];
    match ready.read(&mut number) {
        Ok(1..) => Ok(()),
        Ok(0) => {
            // Nothing holds the pipe any more: it has ended, or does so now.
            let status = loop {
                match passt
                    .child
                    .as_mut()
                    .map(Child::try_wait)
                    .transpose()
                    .map_err(UserNetError::Start)?
                    .flatten()
                {
                    None if Instant::now() < until => thread::sleep(Duration::from_millis(1)),
                    status => break status,
                }
            };
            let text = passt.last_words();
            Err(match status {
                Some(status) => UserNetError::Ended { status, text },
                None => UserNetError::NotReady { text },
            })
        }
        Err(cause) => Err(UserNetError::Start(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_passed_on_and_the_hosts_loopback_only_if_asked_for() {
        let mut config = UserNetConfig {
            publish: ["8080:80", "127.0.0.1:53:5353/udp"]
                .map(|text| text.parse().unwrap())
                .into(),
            host_loopback: false,
        };
        let words = arguments(&config, None).join(" ");
        for part in [
            "--fd 0 --pid /proc/self/fd/1",
            "--address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --dns-forward 10.0.2.3 --mtu 1500",
            "--tcp-ports 8080:80 --udp-ports 127.0.0.1/53:5353 --no-map-gw",
        ] {
            assert!(words.contains(part), "{words}");
        }
        config.host_loopback = true;
        let words = arguments(&config, Some(9000)).join(" ");
        assert!(
            !words.contains("--no-map-gw") && words.contains("--mtu 9000"),
            "{words}"
        );
    }
}
