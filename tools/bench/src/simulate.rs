//! How many machines a host carries, from what was measured of fewer. Arithmetic alone: no clock, no file, no chance.
//!
//! Each cost of a machine is taken as a line over the number of machines, through what reports say of it: one report gives a cost
//! that stays, more give one that grows (or falls, which is taken as staying) with their number. What a host has is divided by
//! that.

use crate::report::Report;

/// Machines that no host carries: where a search ends.
const MACHINES_MAX: u64 = 100_000_000;

/// What one machine costs, as a line over how many there are: `first + slope × machines`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// With one machine.
    pub first: f64,
    /// More for each that there is; 0 or more.
    pub slope: f64,
}

impl Line {
    /// Through `points`, each a number of machines and a cost, by least squares; level, through their mean, if all have the same
    /// number or it would fall. `None` without a point.
    #[must_use]
    pub fn through(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        let rise = |point: &(f64, f64)| (point.0 - x) * (point.1 - y);
        let slope = points.iter().map(rise).sum::<f64>() / spread;
        let slope = if slope.is_finite() {
            slope.max(0.0)
        } else {
            0.0
        };
        let first = (y - slope * x).max(0.0);
        (!points.is_empty()).then_some(Self { first, slope })
    }

    /// What each of `machines` costs.
    #[must_use]
    pub fn each(self, machines: u64) -> f64 {
        self.first + self.slope * machines as f64
    }

    /// What all of them cost.
    #[must_use]
    pub fn all(self, machines: u64) -> f64 {
        self.each(machines) * machines as f64
    }
}

/// What a machine costs, as far as it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// The host's memory, in KiB.
    pub memory_kib: Line,
    /// Processor time while it has nothing to do, in cores.
    pub idle_cores: Line,
    /// Processor time of a start, in seconds of one core.
    pub start_s: Line,
    /// Threads, each of which takes a process id.
    pub threads: Option<Line>,
    /// Open files.
    pub files: Option<Line>,
}

/// Why reports give no costs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CostsError {
    /// A case is missing.
    #[error("the report has no case {case}; a report of `lightv bench density` is needed")]
    Missing {
        /// Its name.
        case: &'static str,
    },
    /// There is none.
    #[error("no report was given")]
    None,
}

/// What one report measured of a number of machines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Machines.
    pub machines: u64,
    /// For each, of the host's memory, in KiB.
    pub memory_kib: f64,
    /// For each, in cores.
    pub idle_cores: f64,
    /// Seconds until all had started.
    pub start_all_s: f64,
    /// Cores of the host.
    pub cores: u32,
    /// For each.
    pub threads: Option<f64>,
    /// For each.
    pub files: Option<f64>,
}

impl Point {
    /// What a report of `lightv bench density` says.
    ///
    /// # Errors
    /// [`CostsError::Missing`].
    pub fn of(report: &Report) -> Result<Self, CostsError> {
        let find = |name: &str| report.cases.iter().find(|case| case.name == name);
        let p50 = |case: &'static str| {
            let found = find(case).ok_or(CostsError::Missing { case })?;
            Ok(found.p50)
        };
        let each = find("density.pss_per_vm").ok_or(CostsError::Missing {
            case: "density.pss_per_vm",
        })?;
        let machines = each.n.max(1) as u64;
        Ok(Self {
            machines,
            // Less than a process's own share is what other processes gave back meanwhile.
            memory_kib: p50("density.memory_per_vm")?.max(each.p50),
            idle_cores: p50("density.idle_cpu")? / 100.0 / machines as f64,
            start_all_s: p50("density.start_all")? / 1000.0,
            cores: report.host.cores.max(1),
            threads: find("density.threads_per_vm").map(|case| case.p50),
            files: find("density.files_per_vm").map(|case| case.p50),
        })
    }
}

impl Costs {
    /// Of what reports say.
    ///
    /// # Errors
    /// [`CostsError::None`].
    pub fn of(points: &[Point]) -> Result<Self, CostsError> {
        let line = |of: &dyn Fn(&Point) -> Option<f64>| {
            let found = points
                .iter()
                .filter_map(|point| Some((point.machines as f64, of(point)?)));
            Line::through(&found.collect::<Vec<_>>())
        };
        let needed = |of: &dyn Fn(&Point) -> Option<f64>| line(of).ok_or(CostsError::None);
        Ok(Self {
            memory_kib: needed(&|point| Some(point.memory_kib))?,
            idle_cores: needed(&|point| Some(point.idle_cores))?,
            start_s: needed(&|point| {
                Some(point.start_all_s * f64::from(point.cores) / point.machines as f64)
            })?,
            threads: line(&|point| point.threads),
            files: line(&|point| point.files),
        })
    }
}

/// A host, and what of it machines may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Host {
    /// Cores.
    pub cores: f64,
    /// Memory that machines may have, in KiB.
    pub memory_kib: f64,
    /// The part of all cores that idle machines and starts may take, up to 1.
    pub cpu_share: f64,
    /// Starts a second that go on all the time, of machines that end again.
    pub starts_per_s: f64,
    /// Seconds in which all are to have started, with all cores; any time if not said.
    pub start_within_s: Option<f64>,
    /// Process ids; as many as are wanted if not said.
    pub threads_max: Option<f64>,
    /// Open files; as many as are wanted if not said.
    pub files_max: Option<f64>,
}

/// What can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// The host's memory.
    Memory,
    /// Processor time.
    Cpu,
    /// Time to start all.
    Start,
    /// Process ids.
    Threads,
    /// Open files.
    Files,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Memory,
        Self::Cpu,
        Self::Start,
        Self::Threads,
        Self::Files,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "CPU",
            Self::Start => "start time",
            Self::Threads => "process ids",
            Self::Files => "open files",
        }
    }
}

/// The part of `resource` that `machines` take of what `host` has: 1 is all. `None` if it was not measured, or is not limited.
#[must_use]
pub fn taken(costs: &Costs, host: &Host, resource: Resource, machines: u64) -> Option<f64> {
    let part = match resource {
        Resource::Memory => costs.memory_kib.all(machines) / host.memory_kib,
        Resource::Cpu => {
            let starts = host.starts_per_s * costs.start_s.each(machines);
            let idle = costs.idle_cores.all(machines);
            (idle + starts) / (host.cores * host.cpu_share)
        }
        Resource::Start => costs.start_s.all(machines) / host.cores / host.start_within_s?,
        Resource::Threads => costs.threads?.all(machines) / host.threads_max?,
        Resource::Files => costs.files?.all(machines) / host.files_max?,
    };
    Some(part)
}

/// How many machines `host` carries as far as `resource` goes: the most of which not more than all of it is taken. `None` if it
/// sets no limit below a hundred million.
#[must_use]
pub fn carried(costs: &Costs, host: &Host, resource: Resource) -> Option<u64> {
    let fits = |machines| taken(costs, host, resource, machines).is_none_or(|part| part <= 1.0);
    if fits(MACHINES_MAX) {
        return None;
    }
    // What is taken never falls with more machines.
    let (mut least, mut over) = (0, MACHINES_MAX);
    while over - least > 1 {
        let middle = least + (over - least) / 2;
        if fits(middle) {
            least = middle;
        } else {
            over = middle;
        }
    }
    Some(least)
}

/// How many machines `host` carries, and what runs out first; `None` if nothing does.
#[must_use]
pub fn limit(costs: &Costs, host: &Host) -> Option<(u64, Resource)> {
    let each = |resource| Some((carried(costs, host, resource)?, resource));
    Resource::ALL.into_iter().filter_map(each).min()
}

/// Something that was foretold, and what was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Check {
    /// What.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// By the costs.
    pub foretold: f64,
    /// By a report.
    pub measured: f64,
}

impl Check {
    /// How far it is off, as a factor of 1 or more: 1.25 is a quarter, either way.
    #[must_use]
    pub fn off_by(&self) -> f64 {
        let (foretold, measured) = (
            self.foretold.max(f64::EPSILON),
            self.measured.max(f64::EPSILON),
        );
        (foretold / measured).max(measured / foretold)
    }
}

/// What `costs` foretell of the host and the number of machines of `point`, next to what was measured there. Processor time of idle
/// machines is compared where it is at least a hundredth of a core on one side: below, it is the host's noise.
#[must_use]
pub fn check(costs: &Costs, point: &Point) -> Vec<Check> {
    let machines = point.machines;
    let all = machines as f64;
    let mut checks = vec![
        Check {
            what: "memory of all",
            unit: "MiB",
            foretold: costs.memory_kib.all(machines) / 1024.0,
            measured: point.memory_kib * all / 1024.0,
        },
        Check {
            what: "time to start all",
            unit: "s",
            foretold: costs.start_s.all(machines) / f64::from(point.cores),
            measured: point.start_all_s,
        },
    ];
    let idle = Check {
        what: "CPU of all, idle",
        unit: "cores",
        foretold: costs.idle_cores.all(machines),
        measured: point.idle_cores * all,
    };
    if idle.foretold.max(idle.measured) >= 0.01 {
        checks.push(idle);
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(machines: u64, start_all_s: f64) -> Point {
        Point {
            machines,
            memory_kib: 1024.0,
            idle_cores: 0.0001,
            start_all_s,
            cores: 2,
            threads: Some(3.0),
            files: None,
        }
    }

    const HOST: Host = Host {
        cores: 2.0,
        memory_kib: 20_480.0 * 1024.0,
        cpu_share: 0.5,
        starts_per_s: 0.0,
        start_within_s: None,
        threads_max: Some(32_768.0),
        files_max: Some(1.0),
    };

    #[test]
    fn lines_go_through_their_points_and_never_fall() {
        let line =
            |points: &[(f64, f64)]| Line::through(points).map(|line| (line.first, line.slope));
        assert_eq!(line(&[(100.0, 3.0)]), Some((3.0, 0.0)));
        assert_eq!(line(&[(100.0, 3.0), (200.0, 4.0)]), Some((2.0, 0.01)));
        assert_eq!(line(&[(100.0, 4.0), (200.0, 3.0)]), Some((3.5, 0.0)));
        assert_eq!(line(&[(100.0, 4.0), (100.0, 3.0)]), Some((3.5, 0.0)));
        assert_eq!(line(&[]), None);
    }

    #[test]
    fn what_runs_out_first_is_named() {
        let costs = Costs::of(&[point(1000, 5.0)]).expect("costs");
        assert_eq!(carried(&costs, &HOST, Resource::Memory), Some(20_480));
        assert_eq!(carried(&costs, &HOST, Resource::Cpu), Some(10_000));
        assert_eq!(carried(&costs, &HOST, Resource::Threads), Some(10_922));
        // Not asked for, and not measured.
        assert_eq!(carried(&costs, &HOST, Resource::Start), None);
        assert_eq!(carried(&costs, &HOST, Resource::Files), None);
        assert_eq!(limit(&costs, &HOST), Some((10_000, Resource::Cpu)));
        let soon = Host {
            start_within_s: Some(5.0),
            ..HOST
        };
        assert_eq!(limit(&costs, &soon), Some((1000, Resource::Start)));
        // 50 starts a second at 10 ms of a core leave half a core for idle machines.
        let busy = Host {
            starts_per_s: 50.0,
            ..HOST
        };
        assert_eq!(limit(&costs, &busy), Some((5000, Resource::Cpu)));
        let overrun = Host {
            starts_per_s: 101.0,
            ..HOST
        };
        assert_eq!(limit(&costs, &overrun), Some((0, Resource::Cpu)));
    }

    #[test]
    fn starts_that_take_longer_the_more_there_are_are_foretold_so() {
        // 4 and 5 ms of a start on two cores: 8 and 10 ms of one.
        let costs = Costs::of(&[point(200, 0.8), point(1000, 5.0)]).expect("costs");
        let [memory, start, idle] = check(&costs, &point(600, 2.7))[..] else {
            panic!("three, for idle machines take 0.06 cores");
        };
        assert!((idle.off_by() - 1.0).abs() < 1e-9, "{idle:?}");
        assert_eq!((memory.foretold, memory.off_by()), (600.0, 1.0));
        assert!((start.foretold - 2.7).abs() < 1e-9, "{start:?}");
        let slow = check(&costs, &point(600, 5.4));
        assert!((slow[1].off_by() - 2.0).abs() < 1e-9, "{slow:?}");
    }

    #[test]
    fn no_report_and_other_reports_give_no_costs() {
        assert_eq!(Costs::of(&[]), Err(CostsError::None));
        let json = r#"{"bench":"start","host":{"kernel":"6","cpu":"c","cores":2,"kvm":"software"},"cases":[]}"#;
        let report: Report = serde_json::from_str(json).expect("a report");
        let missing = Point::of(&report).expect_err("nothing in it");
        assert!(missing.to_string().contains("bench density"), "{missing}");
    }
}
