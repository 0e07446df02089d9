//! Ports of the virtio console: the program's input and output, and the monitor's line to the agent.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use lightv_contract::ports::{NAMES, STDERR, STDIN, STDIO, TERMINAL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How long ports that the device has announced may take to get their names.
const WAIT: Duration = Duration::from_secs(2);
/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(5);

/// Folder of the driver; devices that it serves are links in it.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_console";
/// Folder of the ports.
const CLASS: &str = "/sys/class/virtio-ports";

/// Why the program would have no input and output.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {path}")]
pub struct OpenPortError {
    path: String,
    #[source]
    cause: Errno,
}

/// Ports by name.
#[derive(Debug, Default)]
pub struct Ports {
    /// Name and device file.
    found: Vec<(String, String)>,
}

impl Ports {
    /// Those that the machine has: all, or none. They come from the device one by one, while the guest runs.
    #[must_use]
    pub fn find() -> Self {
        let served = |name: &str| name.starts_with("virtio");
        if !entries(DRIVER).iter().any(|name| served(name)) {
            return Self::default();
        }
        let end = Instant::now() + WAIT;
        loop {
            let found = Self::named();
            if found.found.len() >= NAMES.len() || Instant::now() > end {
                return found;
            }
            thread::sleep(PAUSE);
        }
    }

    fn named() -> Self {
        let name_of = |port: String| {
            let name = fs::read_to_string(format!("{CLASS}/{port}/name")).ok()?;
            let name = name.trim_end().to_owned();
            NAMES
                .contains(&&*name)
                .then(|| (name, format!("/dev/{port}")))
        };
        let found = entries(CLASS).into_iter().filter_map(name_of).collect();
        Self { found }
    }

    fn device(&self, name: &str) -> Option<&str> {
        let port = self.found.iter().find(|(found, _)| found == name)?;
        Some(&port.1)
    }

    /// Opens the port `name` for reads that do not wait.
    #[must_use]
    pub fn open(&self, name: &str) -> Option<File> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(self.device(name)?, flags, Mode::empty());
        fd.ok().map(File::from)
    }

    /// Makes descriptors 0, 1 and 2 of this process, and so of the program, the terminal, or the three ports of a run
    /// without one, or else the kernel's console. A port can be opened once: it is, here, and inherited.
    ///
    /// # Errors
    /// When a device cannot be opened.
    pub fn connect(&self, has_terminal: bool) -> Result<(), OpenPortError> {
        const CONSOLE: &str = "/dev/console";
        let [stdin, stdout, stderr] = if has_terminal {
            [self.device(TERMINAL).map_or(CONSOLE, |_| "/dev/hvc0"); 3]
        } else {
            [STDIN, STDIO, STDERR].map(|name| self.device(name).unwrap_or(CONSOLE))
        };
        put(stdin, rustix::stdio::dup2_stdin)?;
        put(stdout, rustix::stdio::dup2_stdout)?;
        put(stderr, rustix::stdio::dup2_stderr)
    }
}

/// Opens `path` and gives it to `to`, which makes it one of the standard descriptors.
fn put(path: &str, to: fn(OwnedFd) -> Result<(), Errno>) -> Result<(), OpenPortError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(to)
        .map_err(|cause| OpenPortError {
            path: path.to_owned(),
            cause,
        })
}

/// Names in a folder; none when it is not there.
pub(crate) fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
