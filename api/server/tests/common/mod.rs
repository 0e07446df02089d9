//! A monitor without a machine, and a server in front of it.
#![expect(
    dead_code,
    unreachable_pub,
    reason = "each test file uses what it needs of this"
)]

pub mod trial;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lightv_api::config::VmSpec;
use lightv_api::contract::mmds::MmdsData;
use lightv_api::contract::snapshot::{ForkSpec, LoadParams, SnapshotCreate};
use lightv_api::request::Reply;
use lightv_api_server::controller::{Controller, Setup, split};
use lightv_api_server::feed::Feed;
use lightv_api_server::machine::{Change, DeviceCall, Machine, Output, Part, Refusal};
use lightv_api_server::server;
use lightv_api_server::settings::Settings;
use tempfile::TempDir;

/// What a test sees of its machine.
#[derive(Debug, Clone, Default)]
pub struct Record {
    calls: Arc<Mutex<Vec<String>>>,
    refuse: Arc<Mutex<Option<String>>>,
}

impl Record {
    /// The calls since the last look.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// The next call is refused in these words.
    pub fn refuse_next(&self, text: &str) {
        *self.refuse.lock().unwrap() = Some(text.to_owned());
    }

    fn note(&self, call: impl Into<String>) -> Result<(), Refusal> {
        self.calls.lock().unwrap().push(call.into());
        match self.refuse.lock().unwrap().take() {
            Some(text) => Err(Refusal::new(text)),
            None => Ok(()),
        }
    }
}

/// A monitor that notes what it is asked. A save of the path `slow` waits until the test lets it go.
#[derive(Debug)]
pub struct FakeMachine {
    record: Record,
    let_go: Receiver<()>,
}

impl FakeMachine {
    pub fn new() -> (Self, Record, Sender<()>) {
        let record = Record::default();
        let (sender, let_go) = channel();
        let machine = Self {
            record: record.clone(),
            let_go,
        };
        (machine, record, sender)
    }
}

impl Machine for FakeMachine {
    fn admit(&mut self, change: Change<'_>) -> Result<(), Refusal> {
        self.record.note(match change.part {
            Part::Drive(id) => format!("admit drive {id} of {}", change.spec.drives.len()),
            part => format!("admit {part:?}"),
        })
    }

    fn set_output(&mut self, output: Output<'_>) -> Result<(), Refusal> {
        self.record.note(match output {
            Output::Logger(logger) => format!("logger {:?}", logger.level),
            Output::Metrics(metrics) => format!("metrics {}", metrics.metrics_path.display()),
            Output::Serial(_) => "serial".to_owned(),
        })
    }

    fn start(&mut self, spec: &VmSpec) -> Result<(), Refusal> {
        let kernel = spec
            .boot_source
            .as_ref()
            .expect("a start has a boot source");
        let path = kernel.kernel_image_path.display();
        self.record.note(format!("start {path}"))
    }

    fn load(&mut self, params: &LoadParams) -> Result<VmSpec, Refusal> {
        let path = params.snapshot_path.display();
        self.record.note(format!("load {path}"))?;
        let mut spec = VmSpec::default();
        spec.machine_config.mem_size_mib = 77;
        Ok(spec)
    }

    fn pause(&mut self) -> Result<(), Refusal> {
        self.record.note("pause")
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        self.record.note("resume")
    }

    fn save(&mut self, target: &SnapshotCreate) -> Result<(), Refusal> {
        if target.snapshot_path == Path::new("slow") {
            // A test that has ended lets it go too.
            let _ = self.let_go.recv();
        }
        self.record.note("save")
    }

    fn fork(&mut self, spec: &ForkSpec) -> Result<(), Refusal> {
        self.record.note(format!("fork {}", spec.clones))
    }

    fn device(&mut self, call: DeviceCall<'_>) -> Result<Reply, Refusal> {
        self.record.note(match call {
            DeviceCall::OrderOverlay(id, order) => format!("overlay {id} {order:?}"),
            DeviceCall::PatchDrive(patch) => format!("patch drive {}", patch.drive_id),
            DeviceCall::PatchNet(patch) => format!("patch net {}", patch.iface_id),
            other => format!("{other:?}"),
        })?;
        Ok(Reply::Done)
    }

    fn send_ctrl_alt_del(&mut self) -> Result<(), Refusal> {
        self.record.note("ctrl-alt-del")
    }

    fn flush_metrics(&mut self) -> Result<(), Refusal> {
        self.record.note("flush")
    }

    fn put_metadata(&mut self, data: &MmdsData) {
        let noted = self.record.note(format!("metadata of {}", data.len()));
        noted.expect("metadata is never refused");
    }
}

/// A server with a fake machine behind it.
#[derive(Debug)]
pub struct Running {
    pub path: PathBuf,
    pub record: Record,
    pub let_go: Sender<()>,
    pub feed: Feed,
    _folder: TempDir,
}

impl Running {
    pub fn new(setup: Setup, settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (machine, record, let_go) = FakeMachine::new();
        let feed = setup.feed.clone();
        let (service, worker) = split(Controller::new(machine, setup), None);
        let confined = worker.spawn(|| Ok::<(), std::io::Error>(()));
        confined.unwrap().unwrap();
        server::spawn(
            listener,
            service,
            settings,
            || Ok(()),
            |error| panic!("{error}"),
        )
        .unwrap();
        Self {
            path,
            record,
            let_go,
            feed,
            _folder: folder,
        }
    }

    pub fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        // Far longer than anything takes: only a hang is found by it.
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Client {
            stream,
            read: Vec::new(),
        }
    }

    /// One request on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut client = self.connect();
        client.send(request(method, path, body));
        client.answer()
    }
}

/// A request as most clients write it.
pub fn request(method: &str, path: &str, body: &str) -> String {
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}")
}

/// A client that writes bytes and reads whole answers.
#[derive(Debug)]
pub struct Client {
    pub stream: UnixStream,
    read: Vec<u8>,
}

impl Client {
    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// The next answer, head and body.
    pub fn answer(&mut self) -> String {
        loop {
            if let Some(length) = self.whole() {
                let rest = self.read.split_off(length);
                let answer = std::mem::replace(&mut self.read, rest);
                return String::from_utf8(answer).unwrap();
            }
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer).unwrap();
            let so_far = String::from_utf8_lossy(&self.read);
            assert!(read > 0, "the connection ended after {so_far:?}");
            self.read.extend_from_slice(&buffer[..read]);
        }
    }

    /// Whether the server has ended the connection, without another byte.
    pub fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 64];
        self.read.is_empty() && matches!(self.stream.read(&mut buffer), Ok(0) | Err(_))
    }

    fn whole(&self) -> Option<usize> {
        let text = String::from_utf8_lossy(&self.read);
        let head = text.find("\r\n\r\n")? + 4;
        let length = text[..head].lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        });
        let whole = head + length.unwrap_or(0_usize);
        (self.read.len() >= whole).then_some(whole)
    }
}
