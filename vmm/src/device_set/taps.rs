//! Taps that are opened before there is a machine: clients of the REST API learn at once of one that cannot be had, and
//! find it on the host when they set its address.

use std::sync::{Arc, Mutex};

use lightv_devices::virtio::net::{OpenTapError, Tap};

use crate::config::NetHost;
use crate::lock::lock;

/// Open taps, by what was asked for. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct HeldTaps(Arc<Mutex<Vec<(NetHost, Tap)>>>);

impl HeldTaps {
    /// Opens the tap of `host`, unless it is held already or is none, and lets go of those that are not among `hosts`.
    ///
    /// # Errors
    /// [`OpenTapError`]; what was held is held.
    pub fn hold(&self, host: &NetHost, hosts: &[&NetHost]) -> Result<(), OpenTapError> {
        let mut held = lock(&self.0);
        if !held.iter().any(|(known, _)| known == host)
            && let Some(tap) = open_tap(host)
        {
            held.push((host.clone(), tap?));
        }
        held.retain(|(known, _)| hosts.contains(&known));
        Ok(())
    }

    /// The tap of `host`, if it is held; it is not any more.
    #[must_use]
    pub fn take(&self, host: &NetHost) -> Option<Tap> {
        let mut held = lock(&self.0);
        let place = held.iter().position(|(known, _)| known == host)?;
        Some(held.swap_remove(place).1)
    }
}

/// The tap of `host`, if it is one.
fn open_tap(host: &NetHost) -> Option<Result<Tap, OpenTapError>> {
    match host {
        NetHost::Tap(name) => Some(Tap::open(name)),
        NetHost::Fd(number) => Some(Tap::inherit(*number)),
        NetHost::User(_) => None,
    }
}
