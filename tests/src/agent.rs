//! A host agent that a test runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lightv_api::agent::image::StoredImage;
use lightv_api::agent::pool::Pool;
use lightv_api::agent::sandbox::{Sandbox, SandboxState};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{Answer, Api};
use crate::host::binary;
use crate::process::{Process, wait_for};
use crate::scratch::Scratch;

/// An agent, its folder and its API.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    /// Its REST API.
    pub api: Api,
    state: PathBuf,
}

/// The command line of an agent in `scratch`, with its state in the folder `state` there.
#[must_use]
pub fn command(scratch: &Scratch, args: &[&str]) -> Command {
    let mut command = scratch.command(binary("lightv-agent"), &["--state"]);
    command
        .arg(scratch.path("state"))
        .args(args)
        .env("LIGHTV_VMM", binary("lightv-vmm"));
    command
}

impl Agent {
    /// Starts one in `scratch`, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(scratch: &Scratch, args: &[&str]) -> Self {
        Self::start_as(scratch, &mut command(scratch, args))
    }

    /// The same with a command line of one's own.
    ///
    /// # Panics
    /// When it does not serve.
    #[must_use]
    pub fn start_as(scratch: &Scratch, command: &mut Command) -> Self {
        let mut process = Process::start(command);
        let api = Api::at(scratch.path("run/agent.sock"));
        wait_for("the agent", || {
            assert!(process.is_alive(), "{:?}", process.stderr());
            api.try_call("GET", "/", "").ok()
        });
        Self {
            process,
            api,
            state: scratch.path("state"),
        }
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Its folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Kills it, and gives what it has said.
    #[must_use]
    pub fn kill(self) -> String {
        self.process.signal(rustix::process::Signal::KILL);
        self.process.finish().stderr
    }

    /// Ends it as its operator does.
    ///
    /// # Panics
    /// When it does not end with 0.
    pub fn end(self) {
        let _ = self.process.end().with_code(0);
    }

    /// Puts the image file `file`, a path in the scratch folder, under `name`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn put_image(&self, scratch: &Scratch, name: &str, file: &str) -> StoredImage {
        let body = json!({"path": scratch.text(file)});
        let answer = self.api.call("PUT", &format!("/images/{name}"), &body);
        read(&answer, 200)
    }

    /// Starts a sandbox.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    #[track_caller]
    pub fn create(&self, body: &Value) -> Sandbox {
        read(&self.api.call("POST", "/sandboxes", body), 201)
    }

    /// Starts a sandbox that begins where the sandbox `id` is now.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    #[track_caller]
    pub fn fork(&self, id: &str, body: &Value) -> Sandbox {
        let path = format!("/sandboxes/{id}/fork");
        read(&self.api.call("POST", &path, body), 201)
    }

    /// The sandbox `id`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn sandbox(&self, id: &str) -> Sandbox {
        self.ask("GET", &format!("/sandboxes/{id}"))
    }

    /// All sandboxes.
    ///
    /// # Panics
    /// When they are not to be had.
    #[must_use]
    #[track_caller]
    pub fn list(&self) -> Vec<Sandbox> {
        self.ask("GET", "/sandboxes")
    }

    /// The body of the answer to a request without one, which must be granted.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    #[track_caller]
    pub fn ask<T: DeserializeOwned>(&self, method: &str, path: &str) -> T {
        read(&self.api.call(method, path, &Value::Null), 200)
    }

    /// Forgets the sandbox `id`.
    ///
    /// # Panics
    /// When that is refused.
    #[track_caller]
    pub fn delete(&self, id: &str) {
        let answer = self
            .api
            .call("DELETE", &format!("/sandboxes/{id}"), &Value::Null);
        assert_eq!(answer.status, 204, "{answer:?}");
    }

    /// Waits until the sandbox `id` has ended.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait(&self, id: &str) -> Sandbox {
        let sandbox: Sandbox = self.ask("GET", &format!("/sandboxes/{id}/wait?timeout_ms=30000"));
        assert_eq!(sandbox.state, SandboxState::Ended, "{sandbox:?}");
        sandbox
    }

    /// Makes a pool of `image`, and waits until it has as many ready as it should.
    ///
    /// # Panics
    /// When that does not come.
    pub fn fill_pool(&self, image: &str, spec: &Value) -> Pool {
        let answer = self.api.call("PUT", &format!("/pools/{image}"), spec);
        let _: Pool = read(&answer, 200);
        self.wait_pool(image, |pool| pool.ready == pool.target)
    }

    /// Waits until the pool of `image` is so.
    ///
    /// # Panics
    /// When that does not come.
    #[track_caller]
    pub fn wait_pool(&self, image: &str, is_so: impl Fn(&Pool) -> bool) -> Pool {
        wait_for("the pool", || {
            let pool: Pool = self.ask("GET", &format!("/pools/{image}"));
            is_so(&pool).then_some(pool)
        })
    }

    /// What the sandbox `id` has printed.
    ///
    /// # Panics
    /// When it is not to be had.
    #[must_use]
    pub fn logs(&self, id: &str) -> String {
        fs::read_to_string(self.state.join(format!("logs/{id}.log"))).expect("a log")
    }

    /// Looks whether a request is refused with `status` and `words`.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn refused(&self, (method, path): (&str, &str), body: &Value, expected: (u16, &[&str])) {
        let answer = self.api.call(method, path, body);
        let (status, words) = expected;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        let text = answer.body["fault_message"].as_str().unwrap_or_default();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
}

#[track_caller]
fn read<T: DeserializeOwned>(answer: &Answer, status: u16) -> T {
    assert_eq!(answer.status, status, "{answer:?}");
    serde_json::from_value(answer.body.clone())
        .unwrap_or_else(|cause| panic!("{cause}: {answer:?}"))
}
