//! What the agent counts where it happens, and what `GET /metrics` makes of that: Prometheus' text.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lightv_api::agent::host::AgentInfo;
use lightv_api::agent::pool::Pool;
use lightv_api::agent::stats::{StartCounts, TimeCounts};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::meter::Look;

/// What Prometheus takes for the answer's text (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper ends of the buckets of a start's time in microseconds, from a warm start to the longest that is waited for. Up to half
/// a second each is at most one and a half times the one before, so that percentiles can be read from them.
const START_BOUNDS_US: [u64; 34] = [
    100, 150, 200, 250, 300, 400, 500, 700, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 7_000,
    10_000, 15_000, 20_000, 25_000, 30_000, 40_000, 50_000, 70_000, 100_000, 150_000, 200_000,
    300_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Upper ends of the buckets of an answer's time in seconds.
const REQUEST_BOUNDS_S: [f64; 12] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0,
];

/// Names and values of a series.
type Labels = Vec<(&'static str, String)>;

fn histogram(bounds_s: &[f64]) -> Histogram {
    Histogram::new(bounds_s.iter().copied())
}

fn start_histogram() -> Histogram {
    let bounds = START_BOUNDS_US.map(|us| Duration::from_micros(us).as_secs_f64());
    histogram(&bounds)
}

fn request_histogram() -> Histogram {
    histogram(&REQUEST_BOUNDS_S)
}

/// Where a sandbox came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartWay {
    /// From a pool.
    Warm,
    /// As a process of its own.
    Cold,
}

impl StartWay {
    /// The way of a sandbox that is, or is not, from a pool.
    #[must_use]
    pub const fn of(is_warm: bool) -> Self {
        if is_warm { Self::Warm } else { Self::Cold }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Its method, if it is one that the API has.
    pub method: &'static str,
    /// Its path, with `{id}` in place of what names a thing; `-` if the API has no such path.
    pub route: &'static str,
    /// Status of the answer.
    pub status: u16,
    /// From its head to the answer's.
    pub took: Duration,
}

/// What is counted where it happens.
#[derive(Debug)]
pub struct Figures {
    registry: Registry,
    told: Told,
    starts: RefCell<StartCounts>,
    start_times: RefCell<[u64; START_BOUNDS_US.len() + 1]>,
    start_durations: Family<Labels, Histogram, fn() -> Histogram>,
    start_counts: Family<Labels, Counter>,
    start_failures: Counter,
    requests: Family<Labels, Counter>,
    request_durations: Family<Labels, Histogram, fn() -> Histogram>,
    intruders: Counter,
}

impl Default for Figures {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lightv_agent");
        let mut figures = Self {
            told: Told::register(&mut registry),
            registry,
            starts: RefCell::default(),
            start_times: RefCell::new([0; START_BOUNDS_US.len() + 1]),
            start_durations: Family::new_with_constructor(start_histogram),
            start_counts: Family::default(),
            start_failures: Counter::default(),
            requests: Family::default(),
            request_durations: Family::new_with_constructor(request_histogram),
            intruders: Counter::default(),
        };
        figures.register();
        figures
    }
}

impl Figures {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register_with_unit(
            "start_duration",
            "Time from a request for a sandbox to its running microVM",
            Unit::Seconds,
            self.start_durations.clone(),
        );
        registry.register(
            "starts",
            "Sandboxes that were started",
            self.start_counts.clone(),
        );
        registry.register(
            "start_failures",
            "Sandboxes that were asked for as it is allowed, and could not be started",
            self.start_failures.clone(),
        );
        registry.register(
            "requests",
            "Requests that were answered",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from a request's head to its answer",
            Unit::Seconds,
            self.request_durations.clone(),
        );
        registry.register(
            "intruders",
            "Requests over TCP that came without a valid token",
            self.intruders.clone(),
        );
        // Both are told from the beginning: a rate needs a 0 before the first one.
        for way in [StartWay::Warm, StartWay::Cold] {
            let labels = vec![("way", way.name().to_owned())];
            drop(self.start_counts.get_or_create(&labels));
        }
    }

    /// Counts a sandbox that was started `us` microseconds after it was asked for.
    pub fn note_start(&self, way: StartWay, us: u64) {
        let labels = vec![("way", way.name().to_owned())];
        let seconds = Duration::from_micros(us).as_secs_f64();
        self.start_durations.get_or_create(&labels).observe(seconds);
        self.start_counts.get_or_create(&labels).inc();
        let mut starts = self.starts.borrow_mut();
        *match way {
            StartWay::Warm => &mut starts.warm,
            StartWay::Cold => &mut starts.cold,
        } += 1;
        let place = START_BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.start_times.borrow_mut().get_mut(place) {
            *count += 1;
        }
    }

    /// Counts one that could not be.
    pub fn note_failure(&self) {
        self.start_failures.inc();
        self.starts.borrow_mut().failed += 1;
    }

    /// Counts a request that was answered.
    pub fn note_request(&self, done: &Done) {
        let mut labels = vec![
            ("method", done.method.to_owned()),
            ("route", done.route.to_owned()),
        ];
        self.request_durations
            .get_or_create(&labels)
            .observe(done.took.as_secs_f64());
        labels.push(("status", done.status.to_string()));
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts a request without a valid token.
    pub fn note_intruder(&self) {
        self.intruders.inc();
    }

    /// Sandboxes that were started.
    #[must_use]
    pub fn starts(&self) -> StartCounts {
        *self.starts.borrow()
    }

    /// The answer to `GET /metrics`, with what is the case `now`.
    #[must_use]
    pub fn text(&self, now: &Now) -> String {
        self.told.set(now);
        let mut text = String::new();
        // A text takes whatever is written.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// How long that took.
    #[must_use]
    pub fn start_times(&self) -> TimeCounts {
        TimeCounts {
            bounds_us: START_BOUNDS_US.to_vec(),
            counts: self.start_times.borrow().to_vec(),
        }
    }
}

/// What is the case when somebody asks.
#[derive(Debug)]
pub struct Now {
    /// The agent.
    pub info: AgentInfo,
    /// Its pools.
    pub pools: Vec<Pool>,
    /// What sandboxes take of the host.
    pub look: Rc<Look>,
    /// Requests that are being carried out.
    pub requests: u64,
    /// Descriptors that the agent has open.
    pub open_files: u64,
}

/// What is set when somebody asks.
#[derive(Debug, Default)]
struct Told {
    sandboxes: Family<Labels, Gauge>,
    limits: Family<Labels, Gauge>,
    images: Gauge,
    programs: Gauge,
    requests_in_progress: Gauge,
    guest_memory: Gauge,
    sandbox_memory: Gauge,
    sandbox_cpu: Counter<f64, std::sync::atomic::AtomicU64>,
    host_memory: Family<Labels, Gauge>,
    host_cpu: Counter<f64, std::sync::atomic::AtomicU64>,
    host_cpus: Gauge,
    pools: Pools,
    open_files: Gauge,
}

/// Of each pool.
#[derive(Debug, Default)]
struct Pools {
    vms: Family<Labels, Gauge>,
    served: Family<Labels, Counter>,
    missed: Family<Labels, Counter>,
}

impl Told {
    fn register(registry: &mut Registry) -> Self {
        let told = Self::default();
        let bytes = Unit::Bytes;
        let seconds = Unit::Seconds;
        registry.register(
            "sandboxes",
            "Sandboxes, by what they do",
            told.sandboxes.clone(),
        );
        registry.register("limit", "How many there may be", told.limits.clone());
        registry.register("images", "Names of images", told.images.clone());
        registry.register(
            "programs",
            "Programs that were started in guests and run",
            told.programs.clone(),
        );
        registry.register(
            "requests_in_progress",
            "Requests that change something and are being carried out",
            told.requests_in_progress.clone(),
        );
        registry.register_with_unit(
            "guest_memory",
            "RAM of the sandboxes that have not ended: what they may come to take",
            bytes.clone(),
            told.guest_memory.clone(),
        );
        registry.register_with_unit(
            "sandbox_memory",
            "Memory that the sandboxes take: neither a file's nor shared, the guests' included",
            bytes.clone(),
            told.sandbox_memory.clone(),
        );
        registry.register_with_unit(
            "sandbox_cpu",
            "Processor time that the sandboxes were seen to take, the guests' included",
            seconds.clone(),
            told.sandbox_cpu.clone(),
        );
        registry.register_with_unit(
            "host_memory",
            "Memory of the host",
            bytes,
            told.host_memory.clone(),
        );
        registry.register_with_unit(
            "host_cpu",
            "Time that the host's processors were busy, together",
            seconds,
            told.host_cpu.clone(),
        );
        registry.register(
            "host_cpus",
            "Processors of the host",
            told.host_cpus.clone(),
        );
        told.pools.register(registry);
        registry.register(
            "open_files",
            "Descriptors that the agent has open",
            told.open_files.clone(),
        );
        told
    }

    fn set(&self, now: &Now) {
        let (info, look) = (&now.info, &now.look);
        let counts = &info.counts;
        set_all(
            &self.sandboxes,
            "state",
            [
                ("starting", counts.starting),
                ("running", counts.running),
                ("paused", counts.paused),
                ("ended", counts.ended),
            ],
        );
        set_all(
            &self.limits,
            "kind",
            [
                ("sandboxes", info.limits.sandboxes),
                ("requests", info.limits.requests),
                ("programs", info.limits.programs),
                ("connections", info.limits.connections),
            ],
        );
        set(&self.images, counts.images);
        set(&self.programs, counts.programs);
        set(&self.requests_in_progress, now.requests);
        set(&self.guest_memory, counts.memory_mib << 20);
        set(
            &self.sandbox_memory,
            look.usage.iter().map(|it| it.memory_bytes).sum(),
        );
        set_seconds(&self.sandbox_cpu, look.cpu_ms);
        let host = &look.host;
        set_all(
            &self.host_memory,
            "kind",
            [
                ("total", host.memory_bytes),
                ("available", host.memory_available_bytes),
            ],
        );
        set_seconds(&self.host_cpu, host.cpu_busy_ms);
        set(&self.host_cpus, host.cpus);
        set(&self.open_files, now.open_files);
        self.pools.set(&now.pools);
    }
}

impl Pools {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "pool_vms",
            "MicroVMs of a pool: those that are ready, those that come, and how many are to be ready",
            self.vms.clone(),
        );
        registry.register(
            "pool_served",
            "Sandboxes that came from the pool",
            self.served.clone(),
        );
        registry.register(
            "pool_missed",
            "Sandboxes of the pool's image that found none ready",
            self.missed.clone(),
        );
    }

    /// Those that there are: one that is gone is told no more.
    fn set(&self, pools: &[Pool]) {
        self.vms.clear();
        self.served.clear();
        self.missed.clear();
        for pool in pools {
            let image = || vec![("image", pool.image.clone())];
            for (kind, count) in [
                ("ready", pool.ready),
                ("starting", pool.starting),
                ("target", pool.target),
                ("min", pool.min),
                ("max", pool.max),
            ] {
                let mut labels = image();
                labels.push(("kind", kind.to_owned()));
                set(&self.vms.get_or_create(&labels), count.into());
            }
            for (family, count) in [(&self.served, pool.served), (&self.missed, pool.missed)] {
                let counter = family.get_or_create(&image());
                counter.inner().store(count, Ordering::Relaxed);
            }
        }
    }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn set_all<const N: usize>(
    family: &Family<Labels, Gauge>,
    label: &'static str,
    values: [(&str, u64); N],
) {
    for (name, value) in values {
        let labels = vec![(label, name.to_owned())];
        set(&family.get_or_create(&labels), value);
    }
}

/// A counter that somebody else counts.
fn set_seconds(counter: &Counter<f64, std::sync::atomic::AtomicU64>, ms: u64) {
    let seconds = Duration::from_millis(ms).as_secs_f64();
    counter.inner().store(seconds.to_bits(), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_counted_at_the_first_bound_that_it_does_not_exceed() {
        let figures = Figures::default();
        for us in [0, 100, 101, 60_000_000, 60_000_001] {
            figures.note_start(StartWay::Cold, us);
        }
        figures.note_start(StartWay::Warm, 150);
        figures.note_failure();
        let times = figures.start_times();
        assert_eq!(times.counts.len(), times.bounds_us.len() + 1);
        assert_eq!(times.counts[..3], [2, 2, 0]);
        assert_eq!(times.counts[times.bounds_us.len() - 1..], [1, 1]);
        let starts = figures.starts();
        assert_eq!((starts.warm, starts.cold, starts.failed), (1, 5, 1));
        assert!(times.bounds_us.is_sorted());
    }

    #[test]
    fn both_forms_count_alike() {
        let figures = Figures::default();
        for us in [300, 301, 25_000, 90_000_000] {
            figures.note_start(StartWay::Cold, us);
        }
        let mut text = String::new();
        encode(&mut text, &figures.registry).unwrap();
        let mut below = 0;
        for (bound, count) in START_BOUNDS_US.iter().zip(figures.start_times().counts) {
            below += count;
            let seconds = Duration::from_micros(*bound).as_secs_f64();
            let line =
                format!("start_duration_seconds_bucket{{le=\"{seconds:?}\",way=\"cold\"}} {below}");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn pools_that_are_gone_are_told_no_more() {
        let pools = Pools::default();
        let pool = |image: &str| Pool {
            image: image.to_owned(),
            digest: String::new(),
            min: 1,
            max: 4,
            ready: 2,
            target: 3,
            starting: 1,
            served: 7,
            missed: 5,
            template_pid: None,
            fault: None,
        };
        pools.set(&[pool("a"), pool("b")]);
        pools.set(&[pool("b")]);
        let mut registry = Registry::default();
        registry.register("vms", "x", pools.vms.clone());
        registry.register("served", "x", pools.served.clone());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(!text.contains("\"a\""), "{text}");
        assert!(text.contains("vms{image=\"b\",kind=\"ready\"} 2"), "{text}");
        assert!(text.contains("served_total{image=\"b\"} 7"), "{text}");
    }
}
