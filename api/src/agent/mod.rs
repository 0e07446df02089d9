//! What the host agent (`lightv serve`) is asked and answers, by its REST API and its run socket (docs/agent.md).

pub mod event;
pub mod exec;
pub mod host;
pub mod image;
pub mod pool;
pub mod run;
pub mod sandbox;
pub mod stats;

/// Name of its REST API's socket in the runtime directory.
pub const SOCKET_NAME: &str = "agent.sock";
