//! `lightv api`: one request to the REST API of a microVM, or of the host agent.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use lightv_api::exit;
use lightv_api_client::Client;

use super::show;
use crate::agent::{self, AgentError};
use crate::failure::{Coded, Failure};
use crate::vms::{self, VmError};

/// Bytes of a body that is read from a file or standard input.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// Send a request to the REST API of a microVM or of the host agent, and print the answer's body
#[derive(Debug, Parser)]
#[command(group = ArgGroup::new("whom").required(true).args(["vm", "socket", "agent"]))]
#[command(after_help = "\
Examples:
  lightv api --vm web GET /vm/config
  lightv api --vm web PATCH /vm '{\"state\": \"Paused\"}'
  lightv api --socket vm.sock PUT /boot-source @boot.json
  lightv api --vm web GET /events
  lightv api --agent POST /sandboxes '{\"image\": \"web\"}'
  lightv api --agent GET '/sandboxes/web/logs?follow'
  lightv api --agent POST /sandboxes/web/exec '{\"args\": [\"ps\"]}'

Exit codes: 0 granted, 1 refused or no answer; the status of a refusal goes to
standard error.")]
pub(crate) struct ApiArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    #[arg(long, value_name = "VM")]
    vm: Option<String>,
    /// The API's socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The host agent of this host (lightv serve)
    #[arg(long)]
    agent: bool,
    /// GET, PUT, PATCH, POST or DELETE
    method: String,
    /// A path of the API, for example /vm/config
    path: String,
    /// JSON; @FILE reads a file, - standard input
    body: Option<String>,
}

/// Why nothing was sent, or not all of the answer came.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("The log broke off")]
    Log(#[source] io::Error),
    #[error("Cannot read the body from {name}")]
    Body {
        name: String,
        #[source]
        cause: io::Error,
    },
}

impl Coded for ApiError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Log(_) => exit::FAILURE,
            Self::Body { .. } => exit::BAD_ARGUMENTS,
        }
    }
}

/// How the answer to a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coming {
    /// At once.
    Now,
    /// Once something has happened.
    Later,
    /// In pieces, perhaps without an end; an end of the connection is one.
    Endless,
    /// In pieces too: any bytes, any number of them.
    Log,
}

impl Coming {
    fn of(method: &str, path: &str) -> Self {
        let path = path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        match (method, parts.as_slice()) {
            ("GET", ["", "events"]) | ("POST", ["", "sandboxes", _, "exec"]) => Self::Endless,
            ("GET", ["", "sandboxes", _, "logs"]) => Self::Log,
            ("GET", ["", "sandboxes", _, "wait"]) => Self::Later,
            _ => Self::Now,
        }
    }
}

/// Sends it.
pub(crate) fn run(args: &ApiArgs) -> Result<ExitCode, Failure> {
    let body = args.body.as_deref().map(read_body).transpose()?;
    let client = match (&args.socket, &args.vm) {
        (Some(socket), _) => Client::at(socket),
        (None, _) if args.agent => agent::client(),
        (None, vm) => vms::client(vm.as_deref().unwrap_or_default())?,
    };
    let method = args.method.to_ascii_uppercase();
    let told = |cause| match args.agent {
        true => Failure::from(AgentError::from(cause)),
        false => Failure::from(VmError::Client(cause)),
    };
    let path = args.path.as_str();
    let coming = Coming::of(&method, path);
    let client = match coming {
        Coming::Endless | Coming::Log => {
            let streamed = client.stream(&method, path, body.as_deref());
            return show_stream(streamed.map_err(told)?, coming);
        }
        Coming::Later => client.without_limit(),
        Coming::Now => client,
    };
    let answer = client.call(&method, path, body.as_deref());
    let answer = answer.map_err(told)?;
    if !answer.body.is_empty() {
        show(|out| writeln!(out, "{}", answer.body.trim_end()))?;
    }
    Ok(verdict(answer.status))
}

/// Prints what comes in pieces, as it comes; a refusal is a line.
fn show_stream(
    (status, mut answer): (u16, impl io::Read),
    coming: Coming,
) -> Result<ExitCode, Failure> {
    let mut part = [0; 4096];
    loop {
        let length = match answer.read(&mut part) {
            Err(cause) if coming == Coming::Log => return Err(ApiError::Log(cause).into()),
            // A machine that was killed breaks off: that is its end too.
            read => read.unwrap_or(0),
        };
        let Some(text) = part.get(..length).filter(|text| !text.is_empty()) else {
            if !is_granted(status) {
                show(|out| writeln!(out))?;
            }
            return Ok(verdict(status));
        };
        // As it is: what is no text to a terminal is a guest's all the same.
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text).and_then(|()| stdout.flush());
        written.map_err(Failure::Output)?;
    }
}

const fn is_granted(status: u16) -> bool {
    status >= 200 && status < 300
}

fn verdict(status: u16) -> ExitCode {
    if is_granted(status) {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "lightv: refused with status {status}");
    ExitCode::FAILURE
}

fn read_body(text: &str) -> Result<String, ApiError> {
    let read = |name: &str, source: io::Result<Box<dyn io::Read>>| {
        let mut body = String::new();
        let read =
            source.and_then(|source| source.take(BODY_BYTES_MAX + 1).read_to_string(&mut body));
        let is_too_large = |length: usize| length as u64 > BODY_BYTES_MAX;
        let read = read.and_then(|length| match is_too_large(length) {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(length),
        });
        match read {
            Ok(_) => Ok(body),
            Err(cause) => Err(ApiError::Body {
                name: name.to_owned(),
                cause,
            }),
        }
    };
    match text.strip_prefix('@') {
        Some(path) => read(path, fs::File::open(path).map(|file| Box::new(file) as _)),
        None if text == "-" => read("standard input", Ok(Box::new(io::stdin()))),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_an_answer_comes_is_known_by_its_path() {
        for (method, path, coming) in [
            ("GET", "/events", Coming::Endless),
            ("GET", "/events?since=7", Coming::Endless),
            ("POST", "/sandboxes/web/exec", Coming::Endless),
            ("GET", "/sandboxes/web/logs", Coming::Log),
            ("GET", "/sandboxes/web/logs?follow", Coming::Log),
            ("GET", "/sandboxes/web/logs?tail=5&follow", Coming::Log),
            ("GET", "/sandboxes/web/wait", Coming::Later),
            ("GET", "/sandboxes/web/wait?timeout_ms=9", Coming::Later),
            ("GET", "/sandboxes/web", Coming::Now),
            ("POST", "/sandboxes", Coming::Now),
            ("GET", "/sandboxes/logs", Coming::Now),
            ("GET", "/images/wait", Coming::Now),
        ] {
            assert_eq!(Coming::of(method, path), coming, "{method} {path}");
        }
    }
}
