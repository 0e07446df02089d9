//! `GET /metrics`: what the server counts of requests, and what others have registered, in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lightv_api::request::{Reply, Route};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// What Prometheus takes for the answer's text (OpenMetrics 1.0).
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper ends of the buckets of an answer's time in seconds: from what needs no machine to a save of many GiB.
const BOUNDS_S: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0,
];

/// Requests of one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteCount {
    /// All of them.
    pub requests: u64,
    /// Those that were refused.
    pub refusals: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Labels(Route);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        [("method", self.0.method), ("route", self.0.path)].encode(encoder)
    }
}

/// All that is exported.
#[derive(Debug)]
pub struct Exporter {
    registry: Registry,
    times: Family<Labels, Histogram, fn() -> Histogram>,
    refusals: Family<Labels, Counter>,
    counts: Mutex<BTreeMap<Route, RouteCount>>,
}

impl Exporter {
    /// Exports what `others` gives too, under the prefix `lightv`.
    pub fn new(others: impl Collector) -> Self {
        let mut registry = Registry::with_prefix("lightv");
        let times: Family<Labels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BOUNDS_S));
        let refusals = Family::default();
        registry.register_with_unit(
            "api_request_duration",
            "Time from a request's last byte to its answer",
            Unit::Seconds,
            times.clone(),
        );
        registry.register(
            "api_refusals",
            "Requests that were refused",
            refusals.clone(),
        );
        registry.register_collector(Box::new(others));
        Self {
            registry,
            times,
            refusals,
            counts: Mutex::default(),
        }
    }

    /// Counts a request that was answered.
    pub(crate) fn note(&self, route: Route, is_granted: bool, took: Duration) {
        let labels = Labels(route);
        self.times
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
        if !is_granted {
            self.refusals.get_or_create(&labels).inc();
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(route).or_default();
        count.requests += 1;
        count.refusals += u64::from(!is_granted);
    }

    /// How many requests there were of each route.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Route, RouteCount> {
        let counts = self.counts.lock();
        counts.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The answer to `GET /metrics`.
    pub(crate) fn reply(&self) -> Reply {
        let mut body = String::new();
        // A text takes whatever is written.
        let _ = encode(&mut body, &self.registry);
        Reply::Text {
            content_type: CONTENT_TYPE,
            body,
        }
    }
}
