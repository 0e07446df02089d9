//! What the agent tells of itself and its host to who looks: `GET /metrics` and `GET /stats`.

use std::rc::Rc;

use lightv_api::agent::stats::AgentStats;

use crate::agent::Agent;
use crate::clock::unix_ms;
use crate::figures::Now;
use crate::host;
use crate::meter::Look;
use crate::pool_requests;

/// The answer to `GET /metrics`.
pub async fn metrics(agent: &Agent) -> String {
    let look = look(agent).await;
    agent.figures.text(&Now {
        info: agent.info(),
        pools: pool_requests::list(agent),
        look,
        requests: agent.requests(),
        open_files: host::open_files(),
    })
}

/// The answer to `GET /stats`.
pub async fn stats(agent: &Agent) -> AgentStats {
    let look = look(agent).await;
    let info = agent.info();
    AgentStats {
        lightv_version: info.lightv_version,
        host_name: host::name(),
        now_unix_ms: unix_ms(),
        started_unix_ms: info.started_unix_ms,
        counts: info.counts,
        limits: info.limits,
        starts: agent.figures.starts(),
        start_times: agent.figures.start_times(),
        host: look.host,
        usage: look.usage.clone(),
    }
}

/// A look at the processes of the sandboxes.
async fn look(agent: &Agent) -> Rc<Look> {
    let processes = || {
        let all = agent.sandboxes.all().into_iter();
        let living = all.filter_map(|entry| Some((entry.id().to_owned(), entry.sandbox().pid?)));
        living.collect()
    };
    agent.meter.look(processes).await
}
