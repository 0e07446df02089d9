//! Why vCPUs leave the guest, and, for a profile, where.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use crate::limits;
use crate::lock::lock;

/// Why a vCPU left the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is named like KVM's exit")]
pub enum ExitKind {
    MmioRead,
    MmioWrite,
    IoIn,
    IoOut,
    SystemEvent,
    /// A signal, or nothing that KVM asks for.
    Interrupted,
    /// The guest cannot go on.
    Failed,
}

impl ExitKind {
    /// All of them, with their names in metrics.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::MmioRead, "mmio_read"),
        (Self::MmioWrite, "mmio_write"),
        (Self::IoIn, "io_in"),
        (Self::IoOut, "io_out"),
        (Self::SystemEvent, "system_event"),
        (Self::Interrupted, "interrupted"),
        (Self::Failed, "failed"),
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|(kind, _)| *kind == self);
        found.map_or("", |(_, name)| name)
    }
}

/// Why, and the guest-physical address or the port of the access: `None` where there is none, and for those of all addresses
/// that came when there were too many.
pub type ExitPlace = (ExitKind, Option<u64>);

/// Exits of one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExitCount {
    /// How many there were; one is counted when its service begins.
    pub count: u64,
    /// How long they were served, in nanoseconds.
    pub ns: u64,
}

/// How often vCPUs left the guest by each address: for a profile alone. A guest can choose among many addresses, so there is a
/// limit to those that are told apart.
#[derive(Debug, Default)]
pub struct ExitPlaces(Mutex<BTreeMap<ExitPlace, ExitCount>>);

impl ExitPlaces {
    /// An exit begins to be served; gives the place to [`end`](Self::end) it by.
    pub fn begin(&self, (kind, address): ExitPlace) -> ExitPlace {
        let mut places = lock(&self.0);
        let is_told =
            places.len() < limits::EXIT_PLACES_MAX || places.contains_key(&(kind, address));
        let place = (kind, address.filter(|_| is_told));
        places.entry(place).or_default().count += 1;
        place
    }

    /// An exit was served, since `began`.
    pub fn end(&self, place: ExitPlace, began: Instant) {
        let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = lock(&self.0).get_mut(&place) {
            count.ns = count.ns.saturating_add(ns);
        }
    }

    /// All of them, as they are now.
    #[must_use]
    pub fn counts(&self) -> Vec<(ExitPlace, ExitCount)> {
        let places = lock(&self.0);
        places
            .iter()
            .map(|(place, count)| (*place, *count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_uses_all_addresses_does_not_grow_the_list() {
        let places = ExitPlaces::default();
        for round in 0..2 {
            for address in 0..10_000 {
                let place = places.begin((ExitKind::MmioRead, Some(address)));
                places.end(place, Instant::now());
            }
            let counts = places.counts();
            assert_eq!(counts.len(), limits::EXIT_PLACES_MAX + 1, "{round}");
            let sum: u64 = counts.iter().map(|(_, count)| count.count).sum();
            assert_eq!(sum, 10_000 * (round + 1));
        }
    }
}
