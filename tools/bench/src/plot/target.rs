//! What is claimed of a case (docs/performance.md, "Targets").

use crate::report::Case;

/// On which side of the line a value should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    AtMost,
    AtLeast,
}

/// What the line is drawn over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// The median, in the case's unit.
    P50,
    /// The ratio to the reference.
    Ratio,
}

/// A line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    pub(super) of: Of,
    pub(super) side: Side,
    pub(super) value: f64,
}

impl Target {
    /// Whether the case is where it should be.
    pub(super) fn is_met(self, case: &Case) -> bool {
        let value = match self.of {
            Of::P50 => case.p50,
            Of::Ratio => case.ratio,
        };
        match self.side {
            Side::AtMost => value <= self.value,
            Side::AtLeast => value >= self.value,
        }
    }
}

/// That of `case`, if there is one.
pub(super) fn of(case: &Case) -> Option<Target> {
    let target = |of, side, value| Some(Target { of, side, value });
    let name = case.name.as_str();
    match (name, case.unit.as_str()) {
        ("run", "us") => target(Of::P50, Side::AtMost, 2500.0),
        ("cold", "us") => target(Of::P50, Side::AtMost, 10_000.0),
        ("pool.1", "us") => target(Of::P50, Side::AtMost, 500.0),
        ("net.rr", "us") => target(Of::P50, Side::AtMost, 150.0),
        (_, "MB/s") if name.starts_with("net.tcp.") => target(Of::Ratio, Side::AtLeast, 0.5),
        (_, "MB/s") if name.starts_with("disk.") && name.ends_with(".qd32") => {
            target(Of::Ratio, Side::AtLeast, 0.9)
        }
        (_, "M/s") if name.starts_with("cpu.") => target(Of::Ratio, Side::AtLeast, 0.95),
        (_, "M/s") if name.starts_with("mem.") => target(Of::Ratio, Side::AtLeast, 0.98),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, unit: &str) -> Case {
        Case {
            name: name.into(),
            unit: unit.into(),
            n: 1,
            min: 1.0,
            p50: 2.0,
            p99: 3.0,
            max: 3.0,
            reference: format!("native.{name}"),
            ratio: 0.94,
        }
    }

    #[test]
    fn targets_are_of_guests_and_not_of_their_costs() {
        for (name, unit, expected) in [
            ("disk.seq.read.direct.qd32", "MB/s", Some((0.9, true))),
            ("disk.seq.read.direct.qd1", "MB/s", None),
            ("native.disk.seq.read.direct.qd32", "MB/s", None),
            ("net.tcp.h2g", "MB/s", Some((0.5, true))),
            ("net.tcp.h2g.cpu", "s/GB", None),
            ("net.udp.h2g", "MB/s", None),
            ("net.rr", "us", Some((150.0, true))),
            ("run", "us", Some((2500.0, true))),
            ("cpu.sha256", "M/s", Some((0.95, false))),
            ("floor", "us", None),
        ] {
            let case = case(name, unit);
            let found = of(&case).map(|target| (target.value, target.is_met(&case)));
            assert_eq!(found, expected, "{name}");
        }
    }
}
