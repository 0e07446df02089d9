//! `lightv ps`: the microVMs that run.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use lightv_api::agent::sandbox::Sandbox;
use lightv_api::runtime::VmRecord;
use serde::Serialize;

use super::{show, show_json};
use crate::failure::Failure;
use crate::table::Table;
use crate::{agent, text, vms};

/// List the microVMs that run
///
/// One that was started by `lightv run` is listed after its first idle second. STATE is asked for where a REST API is
/// served. NAME is that of a host agent's sandbox, while that serves; JSON has its labels too.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv ps             a table
  lightv ps --json      the same for a script")]
pub(crate) struct PsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A microVM, as it is listed.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    record: VmRecord,
    /// What it does; `Running` where nobody can be asked.
    state: String,
    /// What the host agent knows of it, if it is one of its sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<ListedSandbox>,
}

/// What only the host agent knows of a microVM.
#[derive(Debug, Serialize)]
struct ListedSandbox {
    name: Option<String>,
    labels: BTreeMap<String, String>,
}

/// Lists them.
pub(crate) fn run(args: &PsArgs) -> Result<ExitCode, Failure> {
    let mut listed: Vec<Listed> = vms::list()?.into_iter().map(look_at).collect();
    add_sandboxes(&mut listed);
    if args.json {
        return show_json(&listed);
    }
    let mut table = Table::new(&["ID", "NAME", ">PID", "STATE", ">UP", "API", "SOURCE"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |time| time.as_secs());
    for vm in listed {
        let path = |path: Option<std::path::PathBuf>| {
            path.map_or_else(|| "-".to_owned(), |path| path.display().to_string())
        };
        table.row([
            vm.record.id,
            vm.sandbox
                .and_then(|sandbox| sandbox.name)
                .unwrap_or_else(|| "-".to_owned()),
            vm.record.pid.to_string(),
            vm.state,
            text::duration(now.saturating_sub(vm.record.started_unix_s)),
            path(vm.record.api_socket),
            path(vm.record.source),
        ]);
    }
    show(|out| table.write(out))
}

fn look_at(record: VmRecord) -> Listed {
    let state = vms::state(&record).to_string();
    let sandbox = None;
    Listed {
        record,
        state,
        sandbox,
    }
}

/// Adds what the host agent knows. Where none serves, or none answers, nothing is added: microVMs are there without it.
fn add_sandboxes(listed: &mut [Listed]) {
    let mut sandboxes = agent::sandboxes();
    for vm in listed {
        let sandbox = sandboxes.remove(&vm.record.id);
        vm.sandbox = sandbox.map(|Sandbox { name, labels, .. }| ListedSandbox { name, labels });
    }
}
