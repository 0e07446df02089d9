//! Taps that are opened before there is a machine: clients of the REST API learn at once of one that cannot be had, and
//! find it on the host when they set its address.

use std::sync::{Arc, Mutex};

use lightv_devices::virtio::net::{OpenTapError, Tap};

use crate::lock::lock;

/// Open taps, by name. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct HeldTaps(Arc<Mutex<Vec<(String, Tap)>>>);

impl HeldTaps {
    /// Opens the tap `name`, unless it is held already, and lets go of those that are not among `names`.
    ///
    /// # Errors
    /// [`OpenTapError`]; what was held is held.
    pub fn hold(&self, name: &str, names: &[&str]) -> Result<(), OpenTapError> {
        let mut held = lock(&self.0);
        if !held.iter().any(|(known, _)| known == name) {
            held.push((name.to_owned(), Tap::open(name)?));
        }
        held.retain(|(known, _)| names.contains(&known.as_str()));
        Ok(())
    }

    /// The tap `name`, if it is held; it is not any more.
    #[must_use]
    pub fn take(&self, name: &str) -> Option<Tap> {
        let mut held = lock(&self.0);
        let place = held.iter().position(|(known, _)| known == name)?;
        Some(held.swap_remove(place).1)
    }
}
