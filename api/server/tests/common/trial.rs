//! A controller, without a server, in front of a monitor that only notes what it is asked.

use lightv_api::request::{Call, Method, Reply, Request};
use lightv_api_server::controller::{Controller, Setup};
use serde_json::{Value, json};

use super::{FakeMachine, Record};

/// A controller in front of it, asked as the server asks it.
pub struct Trial {
    pub controller: Controller<FakeMachine>,
    pub record: Record,
}

impl Trial {
    /// As this version offers it.
    pub fn new() -> Self {
        Self::with(Setup::new("trial"))
    }

    /// With everything that the contract has.
    pub fn with_all() -> Self {
        let mut setup = Setup::new("trial");
        setup.lacking = &[];
        Self::with(setup)
    }

    pub fn with(setup: Setup) -> Self {
        let (machine, record, _) = FakeMachine::new();
        let controller = Controller::new(machine, setup);
        Self { controller, record }
    }

    pub fn ask(&mut self, method: &str, path: &str, body: &Value) -> Result<Reply, (u16, String)> {
        let text = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let call = Call {
            method: Method::of(method).unwrap(),
            path,
            body: text.as_bytes(),
        };
        Request::parse(call)
            .and_then(|parsed| self.controller.handle(parsed.request))
            .map_err(|fault| (fault.status.code(), fault.message))
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "calls read better with the body as it is"
    )]
    pub fn ok(&mut self, method: &str, path: &str, body: Value) {
        let answer = self.ask(method, path, &body);
        assert_eq!(answer, Ok(Reply::Done), "{method} {path} {body}");
    }

    pub fn get(&mut self, path: &str) -> Value {
        match self.ask("GET", path, &Value::Null) {
            Ok(Reply::Json(json)) => serde_json::from_str(&json).unwrap(),
            other => panic!("GET {path}: {other:?}"),
        }
    }

    /// Refused with 400 in words with `part`, and nothing has changed.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "calls read better with the body as it is"
    )]
    pub fn no(&mut self, method: &str, path: &str, body: Value, part: &str) {
        let before = self.get("/vm/config");
        let (status, message) = self.ask(method, path, &body).expect_err(path);
        assert_eq!(status, 400, "{message}");
        assert!(message.contains(part), "{method} {path} {body}: {message}");
        assert_eq!(self.get("/vm/config"), before, "{method} {path} {body}");
    }

    pub fn start(&mut self) {
        self.ok("PUT", "/boot-source", json!({"kernel_image_path": FILE}));
        self.ok("PUT", "/actions", json!({"action_type": "InstanceStart"}));
    }

    pub fn state(&mut self) -> Value {
        self.get("/")["state"].take()
    }
}

/// A file that exists: tests run in the folder of their crate.
pub const FILE: &str = "Cargo.toml";

pub const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
pub const AFTER: &str = "The requested operation is not supported after starting the microVM.";

pub fn paused(state: &str) -> Value {
    json!({ "state": state })
}

pub fn drive(id: &str) -> Value {
    json!({"drive_id": id, "is_root_device": false, "path_on_host": FILE})
}

pub fn net(id: &str, tap: &str, mac: &str) -> Value {
    json!({"iface_id": id, "host_dev_name": tap, "guest_mac": mac})
}

pub const SNAPSHOT: &str = r#"{"snapshot_path":"s","mem_file_path":"m"}"#;

pub fn snapshot() -> Value {
    serde_json::from_str(SNAPSHOT).unwrap()
}
