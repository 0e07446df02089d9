//! Network name spaces of a test's own, with taps whose names are nobody else's concern.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{DEADLINE, Process, tool, wait_for};

/// Address of the host's end in every name space.
pub const HOST_ADDRESS: &str = "10.0.0.1/24";

/// How long one attempt to connect may take: a guest that is not there answers nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network name space; it goes when this is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// A new one, without a tap.
    ///
    /// # Panics
    /// When it cannot be made: the tests run as root.
    #[must_use]
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lvt-{}-{number}", std::process::id());
        let _ = tool(&format!("ip netns add {name}"));
        let handle = File::open(format!("/run/netns/{name}")).expect("the new name space");
        Self { name, handle }
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// A new one with the tap `tap0`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn with_tap() -> Self {
        let netns = Self::new();
        netns.add_tap("tap0");
        netns
    }

    /// Makes a tap that has [`HOST_ADDRESS`] and is up.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn add_tap(&self, tap: &str) {
        self.add_tap_of("tap", tap);
    }

    /// The same, with several queues.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn add_queued_tap(&self, tap: &str) {
        self.add_tap_of("tap multi_queue", tap);
    }

    fn add_tap_of(&self, mode: &str, tap: &str) {
        self.ip(&format!("tuntap add dev {tap} mode {mode}"));
        self.ip(&format!("addr add {HOST_ADDRESS} dev {tap}"));
        self.ip(&format!("link set {tap} up"));
    }

    /// Runs `ip` in it.
    ///
    /// # Panics
    /// When that fails.
    pub fn ip(&self, line: &str) {
        let _ = tool(&format!("ip -n {} {line}", self.name));
    }

    /// Names of its interfaces.
    ///
    /// # Panics
    /// When they cannot be listed.
    #[must_use]
    pub fn links(&self) -> Vec<String> {
        let listed = tool(&format!("ip -n {} -brief link", self.name));
        let first = |line: &str| line.split([' ', '@']).next().unwrap_or_default().to_owned();
        listed.lines().map(first).collect()
    }

    /// Does `work` in it, on a thread of its own.
    ///
    /// # Panics
    /// When the name space cannot be entered, or `work` panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.handle.as_fd(), kind).expect("our name space");
            work()
        };
        let done = thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts `command` in it.
    #[must_use]
    pub fn start(&self, command: &mut Command) -> Process {
        self.within(|| Process::start(command))
    }

    /// A connection from here to `address`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.within(|| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection from here to `address`, once someone listens there.
    ///
    /// # Panics
    /// When nobody does.
    #[must_use]
    pub fn connect(&self, address: SocketAddr) -> TcpStream {
        wait_for(&format!("someone at {address}"), || {
            self.try_connect(address).ok()
        })
    }

    /// A UDP socket from here to `address`.
    ///
    /// # Panics
    /// When there is none to be had.
    #[must_use]
    pub fn udp(&self, address: SocketAddr) -> UdpSocket {
        let socket = self
            .within(|| UdpSocket::bind("0.0.0.0:0"))
            .expect("a UDP socket");
        socket.connect(address).expect("an address");
        socket
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}
