//! `lightv api`: one request to the REST API of a microVM, or of the host agent.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use lightv_api::exit;
use lightv_api_client::{Client, ClientError};

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

/// Why nothing was sent.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("Cannot read the body from {name}")]
    Body {
        name: String,
        #[source]
        cause: io::Error,
    },
}

impl Coded for ApiError {
    fn exit_code(&self) -> u8 {
        exit::BAD_ARGUMENTS
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
    let has_no_end = match method.as_str() {
        "GET" => path.starts_with("/events") || path.contains("?follow"),
        method => method == "POST" && path.ends_with("/exec"),
    };
    if has_no_end {
        return follow(&client, (&method, path), body.as_deref(), told);
    }
    let answer = client.call(&method, &args.path, body.as_deref());
    let answer = answer.map_err(told)?;
    if !answer.body.is_empty() {
        show(|out| writeln!(out, "{}", answer.body.trim_end()))?;
    }
    Ok(verdict(answer.status))
}

/// Prints what has no end, as it comes.
fn follow(
    client: &Client,
    (method, path): (&str, &str),
    body: Option<&str>,
    told: impl FnOnce(ClientError) -> Failure,
) -> Result<ExitCode, Failure> {
    let (status, mut answer) = client.stream(method, path, body).map_err(told)?;
    let mut part = [0; 4096];
    loop {
        // A machine that was killed breaks off: that is its end too.
        let length = answer.read(&mut part).unwrap_or(0);
        let Some(text) = part.get(..length).filter(|text| !text.is_empty()) else {
            return Ok(verdict(status));
        };
        show(|out| out.write_all(text))?;
    }
}

fn verdict(status: u16) -> ExitCode {
    if (200..300).contains(&status) {
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
