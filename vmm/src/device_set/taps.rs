//! Taps that are opened before there is a machine: clients of the REST API learn at once of one that cannot be had, and
//! find it on the host when they set its address.

use std::sync::{Arc, Mutex};

use lightv_devices::virtio::net::{OpenTapError, Tap};

use crate::config::{NetConfig, NetHost};
use crate::lock::lock;

/// Open taps, by what was asked for. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct HeldTaps(Arc<Mutex<Vec<(Asked, Tap)>>>);

/// What was asked for: which tap, with how many pairs of queues.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    host: NetHost,
    pairs: u16,
}

impl From<&NetConfig> for Asked {
    fn from(net: &NetConfig) -> Self {
        Self {
            host: net.host.clone(),
            pairs: net.pairs,
        }
    }
}

impl HeldTaps {
    /// Opens the tap of `net`, unless it is held already or is none, and lets go of those that are not of `nets`.
    ///
    /// # Errors
    /// [`OpenTapError`]; what was held of other taps is held.
    pub fn hold(&self, net: &NetConfig, nets: &[NetConfig]) -> Result<(), OpenTapError> {
        let mut held = lock(&self.0);
        let asked = Asked::from(net);
        // Made anew for another number of queues; a tap of one queue lets no other in.
        held.retain(|(known, _)| known.host != asked.host || *known == asked);
        if !held.iter().any(|(known, _)| *known == asked)
            && let Some(tap) = open_tap(&asked)
        {
            held.push((asked, tap?));
        }
        held.retain(|(known, _)| nets.iter().any(|net| *known == Asked::from(net)));
        Ok(())
    }

    /// The tap of `net`, if it is held; it is not any more.
    #[must_use]
    pub fn take(&self, net: &NetConfig) -> Option<Tap> {
        let (mut held, asked) = (lock(&self.0), Asked::from(net));
        let place = held.iter().position(|(known, _)| *known == asked)?;
        Some(held.swap_remove(place).1)
    }
}

/// The tap that was asked for, if it is one.
fn open_tap(asked: &Asked) -> Option<Result<Tap, OpenTapError>> {
    match &asked.host {
        NetHost::Tap(name) => Some(Tap::open(name, asked.pairs)),
        NetHost::Fd(number) => Some(Tap::inherit(*number)),
        NetHost::User(_) => None,
    }
}
