//! What has happened to the agent's sandboxes, images and pools: a line of JSON each, by `GET /events`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A line of `GET /events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentEvent {
    /// Its number; they count from 1 at each start of the agent. 0 for `missed`.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub time_unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: AgentHappening,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum AgentHappening {
    /// The agent serves: the first event.
    AgentStarted {
        /// Sandboxes that it found running.
        adopted: u64,
        /// Starts that were never answered, and what was left of them is gone.
        reaped: u64,
    },
    /// A sandbox runs.
    Created {
        /// Which one.
        sandbox: String,
        /// From the request to the running VM, in microseconds.
        start_us: u64,
        /// Whether it came from a pool.
        warm: bool,
    },
    /// A sandbox could not be started.
    Failed {
        /// Which one was to be.
        sandbox: String,
        /// Why not.
        reason: String,
    },
    /// A sandbox stands still.
    Paused {
        /// Which one.
        sandbox: String,
    },
    /// A sandbox goes on.
    Resumed {
        /// Which one.
        sandbox: String,
    },
    /// A sandbox has ended.
    Ended {
        /// Which one.
        sandbox: String,
        /// Exit status of its process, if it is known.
        exit_code: Option<u8>,
        /// Why.
        reason: String,
    },
    /// A sandbox is forgotten.
    Deleted {
        /// Which one.
        sandbox: String,
    },
    /// A name leads to an image.
    ImageSet {
        /// The name.
        image: String,
        /// The image.
        digest: String,
    },
    /// A name is gone.
    ImageDeleted {
        /// The name.
        image: String,
    },
    /// A pool was made or changed.
    PoolSet {
        /// Its image.
        image: String,
    },
    /// A pool is gone.
    PoolDeleted {
        /// Its image.
        image: String,
    },
    /// Events before the next one are lost to this reader.
    Missed {
        /// How many.
        count: u64,
    },
}
