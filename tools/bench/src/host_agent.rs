//! A host agent of a benchmark's own, all of which is in one folder: with an image, and machines of it that are ready.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lightv_api::agent::SOCKET_NAME;
use lightv_api::agent::host::AgentInfo;
use lightv_api::agent::image::ImageSpec;
use lightv_api::agent::pool::{Pool, PoolSpec};
use lightv_api::agent::run::{RUN_SOCKET_NAME, RunAnswer, RunRequest};
use lightv_api_client::{Client, ClientError};
use lightv_packet::{Packet, PacketSocket, ReceiveError, SendError};
use rustix::process::{Pid, Signal, kill_process};

use crate::sys;

/// How the image is called there, and its pool.
const IMAGE: &str = "bench";
/// For whatever the agent does. Machines that are not optimised take their time on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Why the agent is of no use.
#[derive(Debug, thiserror::Error)]
pub enum HostAgentError {
    /// It cannot be started.
    #[error("Cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Its folder cannot be made, or the image not be found.
    #[error("Cannot {what} {}", path.display())]
    File {
        /// What was done.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It has ended.
    #[error("The host agent has ended: {said}")]
    Ended {
        /// What it has said.
        said: String,
    },
    /// It cannot be asked, or refuses.
    #[error(transparent)]
    Ask(#[from] ClientError),
    /// Machines do not get ready.
    #[error("{ready} of {wanted} machines of the host agent's pool are ready after {} s{}", PATIENCE.as_secs(), said(fault.as_ref()))]
    NotReady {
        /// How many are.
        ready: u32,
        /// How many should be.
        wanted: u32,
        /// What the pool says of itself.
        fault: Option<String>,
    },
    /// The streams of a run, or its socket.
    #[error("Cannot {what}")]
    Streams {
        /// What was done.
        what: &'static str,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A run cannot be asked for.
    #[error(transparent)]
    Send(#[from] SendError),
    /// What is said of a run is not understood.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// A run failed: its time says nothing.
    #[error("A run by the host agent ended with {end}")]
    Failed {
        /// How.
        end: String,
    },
    /// It ended well but gave nothing out.
    #[error("A machine of the host agent printed nothing")]
    Silent,
}

fn said(fault: Option<&String>) -> String {
    fault.map_or_else(String::new, |fault| format!(": {fault}"))
}

/// What an agent is started of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Programs<'a> {
    /// The program `lightv-agent`.
    pub(crate) agent: &'a Path,
    /// The program `lightv-vmm`.
    pub(crate) monitor: &'a Path,
}

/// The agent. It ends when this is dropped, or with the thread that has started it, and all of it with it.
#[derive(Debug)]
pub(crate) struct HostAgent {
    child: Child,
    client: Client,
    /// Its sockets.
    runtime: PathBuf,
    /// What it says.
    log: PathBuf,
    /// The path by which runs ask for the image.
    image: String,
}

impl HostAgent {
    /// Starts one in the folder `work`, and waits until it serves.
    ///
    /// # Errors
    /// [`HostAgentError`].
    pub(crate) fn start(programs: Programs<'_>, work: &Path) -> Result<Self, HostAgentError> {
        let (runtime, log) = (work.join("run"), work.join("agent.log"));
        let made = DirBuilder::new().mode(0o700).create(&runtime);
        made.map_err(|cause| HostAgentError::File {
            what: "make",
            path: runtime.clone(),
            cause,
        })?;
        let mut command = Command::new(programs.agent);
        command
            .arg("--state")
            .arg(work.join("state"))
            .env("LIGHTV_RUNTIME_DIR", &runtime)
            .env("LIGHTV_VMM", programs.monitor)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A signal of the keyboard is for us: it ends with us, and in order.
            .process_group(0);
        sys::end_with_caller(&mut command);
        let started = File::create(&log).and_then(|log| command.stderr(log).spawn());
        let child = started.map_err(|cause| HostAgentError::Start {
            program: programs.agent.into(),
            cause,
        })?;
        let mut agent = Self {
            child,
            client: Client::with_patience(&runtime.join(SOCKET_NAME), PATIENCE),
            runtime,
            log,
            image: String::new(),
        };
        let began = Instant::now();
        while let Err(error) = agent.client.get::<AgentInfo>("/") {
            if agent.has_ended() || began.elapsed() > PATIENCE {
                let said = fs::read_to_string(&agent.log).unwrap_or_default();
                return Err(match agent.has_ended() {
                    true => HostAgentError::Ended {
                        said: said.trim().to_owned(),
                    },
                    false => error.into(),
                });
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(agent)
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Has it keep `count` machines of `image` ready.
    ///
    /// # Errors
    /// [`HostAgentError`].
    pub(crate) fn keep_ready(&mut self, image: &Path, count: u32) -> Result<(), HostAgentError> {
        let path = fs::canonicalize(image).map_err(|cause| HostAgentError::File {
            what: "find",
            path: image.into(),
            cause,
        })?;
        self.image = path.to_string_lossy().into_owned();
        self.client
            .put(&format!("/images/{IMAGE}"), &ImageSpec { path })?;
        let spec = PoolSpec {
            min: count,
            max: count,
            ..PoolSpec::default()
        };
        Ok(self.client.put(&format!("/pools/{IMAGE}"), &spec)?)
    }

    /// Waits until `count` are.
    ///
    /// # Errors
    /// [`HostAgentError`].
    pub(crate) fn wait_ready(&self, count: u32) -> Result<(), HostAgentError> {
        let began = Instant::now();
        loop {
            let pool: Pool = self.client.get(&format!("/pools/{IMAGE}"))?;
            if pool.ready >= count {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(HostAgentError::NotReady {
                    ready: pool.ready,
                    wanted: count,
                    fault: pool.fault,
                });
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Asks for a run as `lightv run` does, and waits for the guest's first byte, and then for its end. The clock runs from before the
    /// connection to the byte.
    ///
    /// # Errors
    /// [`HostAgentError`].
    pub(crate) fn run(&self) -> Result<Duration, HostAgentError> {
        let failed = |what| move |cause| HostAgentError::Streams { what, cause };
        let (mut reader, writer) = io::pipe().map_err(failed("make a pipe"))?;
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(failed("open /dev/null"))?;
        let request = RunRequest {
            image: self.image.clone(),
            args: None,
            env: BTreeMap::new(),
        };
        let began = Instant::now();
        let socket = PacketSocket::connect(&self.runtime.join(RUN_SOCKET_NAME));
        let socket = socket.map_err(failed("connect to the run socket"))?;
        socket.send(&request, &[null.as_fd(), writer.as_fd(), null.as_fd()])?;
        drop(writer);
        let mut byte = [0];
        let read = reader.read(&mut byte);
        let bytes = read.map_err(failed("read what a guest prints"))?;
        let took = began.elapsed();
        let rest = io::copy(&mut reader, &mut io::sink());
        rest.map_err(failed("read what a guest prints"))?;
        let end = loop {
            match socket.receive()? {
                Some(Packet {
                    message: RunAnswer::Running { .. },
                    ..
                }) => {}
                Some(Packet {
                    message: RunAnswer::Ended { ended: 0 },
                    ..
                }) => break Ok(()),
                Some(Packet { message, .. }) => break Err(format!("{message:?}")),
                None => break Err("the agent".to_owned()),
            }
        };
        end.map_err(|end| HostAgentError::Failed { end })?;
        match bytes {
            0 => Err(HostAgentError::Silent),
            _ => Ok(took),
        }
    }

    /// Whether it has processes: a template, machines.
    fn has_children(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let mut tasks = tasks.into_iter().flatten().flatten();
        tasks.any(|task| {
            // Where the kernel does not tell, nobody is waited for.
            let children = fs::read_to_string(task.path().join("children"));
            children.is_ok_and(|children| !children.is_empty())
        })
    }

    fn wait_while(&mut self, is_so: impl Fn(&mut Self) -> bool) {
        let began = Instant::now();
        while is_so(self) && began.elapsed() < PATIENCE {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for HostAgent {
    fn drop(&mut self) {
        // Its machines have ended when it has waited for them. An agent that is gone has left that to the kernel.
        if self.client.delete(&format!("/pools/{IMAGE}")).is_ok() {
            self.wait_while(|agent| agent.has_children());
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        self.wait_while(|agent| !agent.has_ended());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
