//! The same transfer by a guest and by the host alone, in turn.

use crate::guest::Exits;
use crate::report::{self, Case};
use crate::stats::Sample;
use crate::stream::Found;

/// What one side of a round found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) found: Found,
    /// Processor seconds of the whole VM; the host's own side is not told apart from ours.
    pub(crate) cpu_s: Option<f64>,
    /// Of the whole VM, its start and end included; the host has none.
    pub(crate) exits: Option<Exits>,
}

/// What is transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes, as many as there is time for: MB/s, s/GB, exits/MB.
    Stream,
    /// Requests, each a byte: µs, and exits for each.
    Requests,
}

/// Runs `guest` and `native` `rounds` times and once before, which does not count. `after_each` round says whether to go on.
///
/// # Errors
/// Of the three.
pub(crate) fn alternate<E>(
    rounds: u32,
    guest: impl Fn() -> Result<Measured, E>,
    native: impl Fn() -> Result<Measured, E>,
    mut after_each: impl FnMut() -> Result<(), E>,
) -> Result<[Vec<Measured>; 2], E> {
    let (mut guests, mut natives) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        // Who is first has what the other has left in the caches: in turn.
        let (of_guest, of_native) = if round % 2 == 0 {
            let of_guest = guest()?;
            (of_guest, native()?)
        } else {
            let of_native = native()?;
            (guest()?, of_native)
        };
        after_each()?;
        if round > 0 {
            guests.push(of_guest);
            natives.push(of_native);
        }
    }
    Ok([guests, natives])
}

/// What the host's side of the case `name` is called.
pub(crate) fn native_name(name: &str) -> String {
    format!("native.{name}")
}

/// The cases of a report on `name`.
pub(crate) fn cases(name: &str, kind: Kind, [guest, native]: &[Vec<Measured>; 2]) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |suffix: &str, unit: &str, of: &dyn Fn(&Measured) -> Vec<f64>| {
        let sample = |side: &[Measured]| Sample::new(side.iter().flat_map(of).collect());
        let [guest_name, native_name] =
            [name, &native_name(name)].map(|name| format!("{name}{suffix}"));
        let mut samples = Vec::new();
        samples.extend(sample(guest).map(|sample| (guest_name.as_str(), sample)));
        samples.extend(sample(native).map(|sample| (native_name.as_str(), sample)));
        cases.extend(report::cases(unit, &samples));
    };
    let cpu = |side: &Measured, scale: f64| {
        let each = side.cpu_s.map(|s| s / side.found.bytes as f64 * scale);
        each.into_iter().collect()
    };
    let (exits_unit, scale) = match kind {
        Kind::Stream => {
            add("", "MB/s", &|side| {
                vec![side.found.bytes as f64 / side.found.seconds / 1e6]
            });
            add(".cpu", "s/GB", &|side| cpu(side, 1e9));
            ("exits/MB", 1e6)
        }
        Kind::Requests => {
            add("", "us", &|side| side.found.latencies.clone());
            add(".cpu", "us", &|side| cpu(side, 1e6));
            ("exits/request", 1.0)
        }
    };
    let each = |side: &Measured| Some(side.exits?.per(side.found.bytes as f64 / scale));
    let exits: Vec<Exits> = guest.iter().filter_map(each).collect();
    cases.extend(report::exits(name, exits_unit, &exits));
    cases
}
