//! The microVMs that run on this host, and how one of them is named on the command line.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use lightv_api::agent::sandbox::SandboxState;
use lightv_api::contract::instance::{InstanceInfo, InstanceState};
use lightv_api::exit;
use lightv_api::runtime::VmRecord;
use lightv_api_client::{Client, ClientError};
use lightv_vmm::runtime_dir::{self, ListError};

use crate::agent;
use crate::failure::Coded;

/// Why a microVM is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error(transparent)]
    List(#[from] ListError),
    #[error("There is no microVM {name}; `lightv ps` lists those that run")]
    Missing { name: String },
    #[error("{name} may be any of these processes: {list}; name one by its number")]
    Ambiguous { name: String, list: String },
    #[error(
        "MicroVM {id} (process {pid}) serves no REST API; start it with `lightv run --detach`, or lightv-vmm --api-sock"
    )]
    NoApi { id: String, pid: u32 },
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Coded for VmError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::List(_) => exit::HOST_FAILURE,
            Self::Missing { .. } | Self::Ambiguous { .. } | Self::NoApi { .. } => {
                exit::BAD_ARGUMENTS
            }
            Self::Client(_) => exit::FAILURE,
        }
    }
}

/// All that run.
pub(crate) fn list() -> Result<Vec<VmRecord>, VmError> {
    Ok(runtime_dir::list()?)
}

/// The same, where `known` were found before.
pub(crate) fn list_again(known: &[VmRecord]) -> Result<Vec<VmRecord>, VmError> {
    Ok(runtime_dir::list_again(known)?)
}

/// The one that `name` means: a process id, an id, the name of a host agent's sandbox, or the beginning of just one id.
pub(crate) fn find(name: &str) -> Result<VmRecord, VmError> {
    choose(&list()?, name, names_of_sandboxes)
}

/// Ids of sandboxes that have a name and have not ended, by that.
fn names_of_sandboxes() -> BTreeMap<String, String> {
    let sandboxes = agent::sandboxes().into_values();
    let living = sandboxes.filter(|it| it.state != SandboxState::Ended);
    living.filter_map(|it| Some((it.name?, it.id))).collect()
}

/// `names` is asked only where neither a process nor an id is called so.
fn choose(
    vms: &[VmRecord],
    name: &str,
    names: impl FnOnce() -> BTreeMap<String, String>,
) -> Result<VmRecord, VmError> {
    let names = LazyCell::new(names);
    let tests: [&dyn Fn(&VmRecord) -> bool; 4] = [
        &|vm| vm.pid.to_string() == name,
        &|vm| vm.id == name,
        &|vm| names.get(name) == Some(&vm.id),
        &|vm| !name.is_empty() && vm.id.starts_with(name),
    ];
    for test in tests {
        let mut found: Vec<&VmRecord> = vms.iter().filter(|vm| test(vm)).collect();
        let name = name.to_owned();
        match (found.pop(), found.is_empty()) {
            (None, _) => {}
            (Some(vm), true) => return Ok(vm.clone()),
            (Some(last), false) => {
                found.push(last);
                let list: Vec<String> = found
                    .iter()
                    .map(|vm| format!("{} ({})", vm.pid, vm.id))
                    .collect();
                let list = list.join(", ");
                return Err(VmError::Ambiguous { name, list });
            }
        }
    }
    Err(VmError::Missing {
        name: name.to_owned(),
    })
}

/// How long a monitor may take to say what it does: it is answered at once, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a microVM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It says so, or nobody can be asked and it runs.
    Known(InstanceState),
    /// It serves an API and does not answer.
    Silent,
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(state) => state.fmt(out),
            Self::Silent => out.write_str("Not answering"),
        }
    }
}

/// What `vm` does now.
pub(crate) fn state(vm: &VmRecord) -> State {
    state_by(asker(vm).as_ref())
}

/// The same by a client of it.
pub(crate) fn state_by(asker: Option<&Client>) -> State {
    let Some(asker) = asker else {
        return State::Known(InstanceState::Running);
    };
    let asked = asker.get::<InstanceInfo>("/");
    asked.map_or(State::Silent, |info| State::Known(info.state))
}

/// Who asks `vm` for what is answered at once, however much of it, on one connection. `None`: it serves no API.
pub(crate) fn asker(vm: &VmRecord) -> Option<Client> {
    let socket = vm.api_socket.as_deref()?;
    Some(Client::with_patience(socket, PATIENCE))
}

/// The API of the one that `name` means.
pub(crate) fn client(name: &str) -> Result<Client, VmError> {
    let vm = find(name)?;
    match &vm.api_socket {
        Some(socket) => Ok(Client::at(socket)),
        None => Err(VmError::NoApi {
            id: vm.id,
            pid: vm.pid,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(id: &str, pid: u32) -> VmRecord {
        VmRecord {
            id: id.to_owned(),
            pid,
            ..VmRecord::default()
        }
    }

    #[test]
    fn a_name_is_a_number_an_id_a_sandboxs_or_the_beginning_of_an_id() {
        let vms = || vec![vm("web", 7), vm("web-2", 8), vm("web-2", 9), vm("12", 10)];
        let names = || {
            let names = [("db", "web"), ("w", "12"), ("web", "12"), ("gone", "x")];
            BTreeMap::from(names.map(|(name, id)| (name.to_owned(), id.to_owned())))
        };
        let pid_of = |name| choose(&vms(), name, names).map(|vm| vm.pid).ok();
        assert_eq!(pid_of("db"), Some(7));
        assert_eq!(pid_of("w"), Some(10), "before the beginning of an id");
        assert_eq!(pid_of("8"), Some(8));
        assert_eq!(pid_of("web"), Some(7));
        assert_eq!(pid_of("12"), Some(10));
        assert_eq!(pid_of("1"), Some(10));
        for name in ["web-", "web-2", "we", "gone", ""] {
            assert_eq!(pid_of(name), None, "{name}");
        }
        let text = choose(&vms(), "web-2", names).expect_err("two").to_string();
        assert!(text.contains("8 (web-2), 9 (web-2)"), "{text}");
    }
}
