//! The same transfer by a guest and by the host alone, in turn.

use std::io;
use std::ops::ControlFlow;

use crate::guest::{Exits, GuestError, Printed};
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

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The guest's side failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The host's end failed.
    #[error("{case}: the host's end failed at {at}")]
    Host {
        /// Of which case.
        case: String,
        /// Where it listened.
        at: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Whoever wanted it does not want to go on.
    #[error("Stopped")]
    Stopped,
    /// Nothing came to its end.
    #[error("{case}: nothing arrived")]
    Nothing {
        /// Of which case.
        case: String,
    },
}

impl Measured {
    /// What our end at `at` has `found` of the case `name`, and the guest has `printed`.
    pub(crate) fn of_guest(
        name: &str,
        at: &str,
        (found, printed): (io::Result<Found>, Result<Printed, GuestError>),
    ) -> Result<Self, TransferError> {
        // What the guest says is the reason, where both failed.
        let printed = printed?;
        Ok(Self {
            found: checked(name.to_owned(), at, found)?,
            cpu_s: Some(printed.cpu.as_secs_f64()),
            exits: printed.exits,
        })
    }

    /// The same with a thread of the host in the guest's place.
    pub(crate) fn of_native(
        name: &str,
        at: &str,
        (found, peer): (io::Result<Found>, io::Result<()>),
    ) -> Result<Self, TransferError> {
        let found = checked(native_name(name), at, found)?;
        peer.map_err(|cause| host_error(native_name(name), at, cause))?;
        Ok(Self {
            found,
            ..Self::default()
        })
    }
}

fn checked(case: String, at: &str, found: io::Result<Found>) -> Result<Found, TransferError> {
    match found {
        Ok(found) if found.bytes == 0 || found.seconds <= 0.0 => {
            Err(TransferError::Nothing { case })
        }
        Ok(found) => Ok(found),
        Err(cause) => Err(host_error(case, at, cause)),
    }
}

fn host_error(case: String, at: &str, cause: io::Error) -> TransferError {
    let at = at.to_owned();
    TransferError::Host { case, at, cause }
}

/// The two ways in which something is transferred.
pub(crate) struct Sides<G, N> {
    /// A round of a guest.
    pub(crate) guest: G,
    /// A round of the host alone.
    pub(crate) native: N,
}

/// Measures each of `ways`, which `about` names, `rounds` times with either side and once before, which does not count.
/// `progress` is told after each round, with how many there are in all, and says whether to go on.
///
/// # Errors
/// [`TransferError`].
pub(crate) fn measure<W>(
    ways: &[W],
    about: impl Fn(&W) -> (&'static str, Kind),
    rounds: u32,
    sides: &Sides<
        impl Fn(&W) -> Result<Measured, TransferError>,
        impl Fn(&W) -> Result<Measured, TransferError>,
    >,
    progress: impl Fn(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<Case>, TransferError> {
    let of = u32::try_from(ways.len()).unwrap_or(0) * (rounds + 1);
    let mut done = 0;
    let mut all = Vec::new();
    for way in ways {
        let (mut guests, mut natives) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            // Who is first has what the other has left in the caches: in turn.
            let (of_guest, of_native) = if round % 2 == 0 {
                let of_guest = (sides.guest)(way)?;
                (of_guest, (sides.native)(way)?)
            } else {
                let of_native = (sides.native)(way)?;
                ((sides.guest)(way)?, of_native)
            };
            done += 1;
            if progress(done, of).is_break() {
                return Err(TransferError::Stopped);
            }
            if round > 0 {
                guests.push(of_guest);
                natives.push(of_native);
            }
        }
        let (name, kind) = about(way);
        all.extend(cases(name, kind, &[guests, natives]));
    }
    Ok(all)
}

/// What the host's side of the case `name` is called.
fn native_name(name: &str) -> String {
    format!("native.{name}")
}

/// The cases of a report on `name`.
fn cases(name: &str, kind: Kind, [guest, native]: &[Vec<Measured>; 2]) -> Vec<Case> {
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
