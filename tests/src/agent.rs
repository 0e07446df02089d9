//! A host agent that a test runs.

use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lightv_api::agent::event::{AgentEvent, AgentHappening};
use lightv_api::agent::exec::{ExecEnd, ExecLine};
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
    command_at(scratch, "state", args)
}

/// The same with its state in the folder `state` there.
#[must_use]
pub fn command_at(scratch: &Scratch, state: &str, args: &[&str]) -> Command {
    let mut command = scratch.command(binary("lightv-agent"), &["--state"]);
    command
        .arg(scratch.path(state))
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

    /// The same, which may live longer than other processes of tests: Linux guests take their time.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        let process = self.process.with_deadline(deadline);
        Self { process, ..self }
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

    /// Starts a program in the guest of the sandbox `id`; its lines come as they are read.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    #[track_caller]
    pub fn exec(&self, id: &str, body: &Value) -> Exec {
        let mut stream = self.api.connect().expect("a connection");
        let body = body.to_string();
        // To HTTP/1.0 a body without a length is sent as it is.
        let head = format!(
            "POST /sandboxes/{id}/exec HTTP/1.0\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let request = [head, body].concat();
        stream.write_all(request.as_bytes()).expect("a request");
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let status = lines.next().expect("an answer");
        if !status.starts_with("HTTP/1.0 200 ") {
            panic!("{status}: {:?}", lines.last());
        }
        let _ = lines.find(String::is_empty).expect("the head's end");
        Exec {
            lines: Box::new(lines),
        }
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

    /// What has happened since its start, up to the first event of which `is_last` holds.
    ///
    /// # Panics
    /// When that does not come.
    #[must_use]
    pub fn events(&self, is_last: impl Fn(&AgentHappening) -> bool) -> Vec<AgentHappening> {
        let mut stream = self.api.connect().expect("a connection");
        // To HTTP/1.0 a body without a length is sent as it is.
        let request = b"GET /events HTTP/1.0\r\n\r\n";
        stream.write_all(request).expect("a request");
        let lines = BufReader::new(stream).lines();
        let mut lines = lines.map(|line| line.expect("a line"));
        let _ = lines.find(String::is_empty).expect("the head's end");
        let mut all = Vec::new();
        loop {
            let line = lines.next().expect("an event");
            let event: AgentEvent =
                serde_json::from_str(&line).unwrap_or_else(|cause| panic!("{cause}: {line:?}"));
            all.push(event.what);
            if all.last().is_some_and(&is_last) {
                return all;
            }
        }
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

/// The answer of a program that was started.
pub struct Exec {
    lines: Box<dyn Iterator<Item = String>>,
}

impl fmt::Debug for Exec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Exec")
    }
}

impl Exec {
    /// Its next line.
    ///
    /// # Panics
    /// When that is not what it should be.
    pub fn next_line(&mut self) -> Option<ExecLine> {
        let line = self.lines.find(|line| !line.is_empty())?;
        Some(serde_json::from_str(&line).unwrap_or_else(|cause| panic!("{cause}: {line}")))
    }

    /// All that comes: standard output and error, which are text, and the last line.
    ///
    /// # Panics
    /// When there is no last line.
    #[must_use]
    pub fn finish(mut self) -> (String, String, ExecLine) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        loop {
            match self.next_line().expect("another line") {
                ExecLine::Stdout(text) => stdout += &text,
                ExecLine::Stderr(text) => stderr += &text,
                last => {
                    assert_eq!(self.next_line(), None, "after {last:?}");
                    return (stdout, stderr, last);
                }
            }
        }
    }
}

/// The last line of a program that has ended by itself.
#[must_use]
pub const fn ended(exit_code: u8) -> ExecLine {
    let timed_out = false;
    ExecLine::Ended(ExecEnd {
        exit_code,
        timed_out,
    })
}

#[track_caller]
fn read<T: DeserializeOwned>(answer: &Answer, status: u16) -> T {
    assert_eq!(answer.status, status, "{answer:?}");
    serde_json::from_value(answer.body.clone())
        .unwrap_or_else(|cause| panic!("{cause}: {answer:?}"))
}
