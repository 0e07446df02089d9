//! The host agent of this host, as a client sees it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lightv_api::agent::sandbox::Sandbox;
use lightv_api::exit;
use lightv_api_client::{Client, ClientError};
use lightv_vmm::runtime_dir;

use crate::failure::{Coded, Failure};

/// Why the agent gave no answer, or none that was wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("No host agent serves {}; `lightv serve` starts one", socket.display())]
    NotServed { socket: PathBuf },
    #[error("The host agent at {} did not answer in time", socket.display())]
    Silent { socket: PathBuf },
    #[error(transparent)]
    Client(ClientError),
}

impl Coded for AgentError {
    fn exit_code(&self) -> u8 {
        exit::FAILURE
    }
}

impl From<ClientError> for AgentError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotServed { socket, .. } => Self::NotServed { socket },
            ClientError::Timeout { socket } => Self::Silent { socket },
            other => Self::Client(other),
        }
    }
}

/// How long it may take to say what it knows, where microVMs are there without it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where it serves.
pub(crate) fn socket() -> PathBuf {
    runtime_dir::folder().join(lightv_api::agent::SOCKET_NAME)
}

/// A client of it.
pub(crate) fn client() -> Client {
    Client::at(&socket())
}

/// Has it forget each of `names` in `list`, as `/images`. What it refuses is told, and keeps none of the others.
pub(crate) fn delete_each(list: &str, names: &[String]) -> Result<ExitCode, Failure> {
    let client = client();
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match client.delete(&format!("{list}/{name}")) {
            Ok(()) => {}
            Err(refused @ ClientError::Refused(_)) => {
                code = Failure::from(AgentError::from(refused)).report();
            }
            // It would not answer the others either.
            Err(other) => return Err(AgentError::from(other).into()),
        }
    }
    Ok(code)
}

/// Its sandboxes by id; none where no agent serves, or answers.
pub(crate) fn sandboxes() -> BTreeMap<String, Sandbox> {
    let agent = Client::with_patience(&socket(), PATIENCE);
    let sandboxes: Vec<Sandbox> = agent.get("/sandboxes").unwrap_or_default();
    sandboxes
        .into_iter()
        .map(|it| (it.id.clone(), it))
        .collect()
}
