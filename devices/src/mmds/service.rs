//! The service as all know it who have to do with it: the API, which fills it, and the cards, which ask it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::counters::{Counters, MmdsCounts};
use super::store::Store;
use super::token::Tokens;

/// Where the service is unless it is told otherwise.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How guests ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// At once.
    V1,
    /// By a token that they ask for first.
    V2,
}

/// How a guest reaches the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmdsOptions {
    /// How it asks.
    pub version: Version,
    /// Whom it asks.
    pub address: Ipv4Addr,
    /// It is answered as EC2's service does, whatever it accepts.
    pub imds_compat: bool,
}

/// The service of a machine: what it holds, who may read it, what was counted. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Mmds(Arc<Service>);

/// The parts of the service.
#[derive(Debug, Default)]
pub(super) struct Service {
    pub(super) store: Store,
    pub(super) tokens: Tokens,
    pub(super) counters: Counters,
}

impl Mmds {
    pub(super) fn service(&self) -> &Service {
        &self.0
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The store holds `data` from now on.
    pub fn put(&self, data: Map<String, Value>) {
        self.0.store.put(data);
    }

    /// What was counted, of all interfaces.
    #[must_use]
    pub fn counts(&self) -> MmdsCounts {
        self.0.counters.counts()
    }
}
