//! What is done now and then: what could not be written is written, and logs are kept from growing for ever.

use std::path::PathBuf;
use std::rc::Rc;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::agent::Agent;
use crate::folders::Durability;
use crate::limits;
use crate::logs;
use crate::refusal::chain;

/// Goes on as long as the agent.
pub async fn go_on(agent: Rc<Agent>) {
    loop {
        sleep(limits::CARE_INTERVAL).await;
        write_all(&agent).await;
        shorten_logs(&agent).await;
    }
}

/// Writes down what has changed since it was written.
pub async fn write_all(agent: &Agent) {
    for entry in agent.sandboxes.all() {
        if entry.is_unwritten()
            && let Err(error) = entry.write(Durability::Agent).await
        {
            agent.warn(chain(&error));
        }
    }
}

async fn shorten_logs(agent: &Agent) {
    let kept = agent.settings.log_mib_max << 20;
    let living = agent
        .sandboxes
        .all()
        .into_iter()
        .filter(|it| !it.has_ended());
    let paths: Vec<PathBuf> = living.map(|it| agent.folders.log(it.id())).collect();
    let shortened = spawn_blocking(move || {
        let mut fault = None;
        for path in paths {
            if let Err(cause) = logs::shorten(&path, kept) {
                fault = Some(format!("Cannot shorten {}: {cause}", path.display()));
            }
        }
        fault
    });
    if let Ok(Some(fault)) = shortened.await {
        agent.warn(fault);
    }
}
