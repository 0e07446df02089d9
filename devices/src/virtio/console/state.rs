//! Saved form of the console.

use serde::{Deserialize, Serialize};

use crate::fault::RestoreDeviceError;
pub use crate::virtio::console::message::PortStateV1;
use crate::virtio::console::message::{PortTable, owed};
use crate::virtio::console::ports::{PORTS, TERMINAL};

/// Saved console, version 1. Never edit: add `ConsoleStateV2` and a `From` of this.
///
/// The host's side is not part of it: a restore has another. Output is all written before a save; input that the guest has
/// not got is still the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleStateV1 {
    /// The driver has said that it is ready for ports.
    pub is_driver_ready: bool,
    /// The ports in the order of their numbers.
    pub ports: Vec<PortStateV1>,
}

impl From<&PortTable> for ConsoleStateV1 {
    fn from(table: &PortTable) -> Self {
        Self {
            is_driver_ready: table.is_driver_ready,
            ports: table.ports.to_vec(),
        }
    }
}

impl ConsoleStateV1 {
    /// The table, if a guest can have brought it about.
    pub(super) fn check(&self, id: &str) -> Result<PortTable, RestoreDeviceError> {
        let impossible = || RestoreDeviceError::Ports {
            device: id.to_owned(),
        };
        let ports =
            <[PortStateV1; PORTS]>::try_from(self.ports.as_slice()).map_err(|_| impossible())?;
        let is_possible = |(number, port): (usize, &PortStateV1)| {
            let may_owe = match (self.is_driver_ready, port.is_ready) {
                (false, _) => 0,
                (true, false) => owed::ADD,
                (true, true) if number == TERMINAL => owed::ADD | owed::PARTICULARS,
                (true, true) => owed::ADD | owed::NAME,
            };
            let is_known = port.is_ready && self.is_driver_ready;
            let is_used = port.is_ready || port.is_guest_open || port.told_open.is_some();
            port.owed & !may_owe == 0 && (is_known || !is_used)
        };
        if !ports.iter().enumerate().all(is_possible) {
            return Err(impossible());
        }
        Ok(PortTable {
            is_driver_ready: self.is_driver_ready,
            ports,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(is_driver_ready: bool, number: usize, port: PortStateV1) -> ConsoleStateV1 {
        let mut ports = vec![PortStateV1::default(); PORTS];
        ports[number] = port;
        ConsoleStateV1 {
            is_driver_ready,
            ports,
        }
    }

    #[test]
    fn states_that_no_guest_brings_about_are_refused() {
        let ready = PortStateV1 {
            is_ready: true,
            ..PortStateV1::default()
        };
        let owing = |owed| PortStateV1 { owed, ..ready };
        let open = PortStateV1 {
            is_guest_open: true,
            ..PortStateV1::default()
        };
        let told = PortStateV1 {
            told_open: Some(false),
            ..PortStateV1::default()
        };
        for (case, is_good) in [
            (state(true, 0, ready), true),
            (state(true, 0, owing(15)), true),
            (state(true, 1, owing(5)), true),
            (state(true, 1, owing(2)), false),
            (state(true, 0, owing(16)), false),
            (state(false, 0, ready), false),
            (state(true, 2, open), false),
            (state(true, 2, told), false),
        ] {
            assert_eq!(case.check("console").is_ok(), is_good, "{case:?}");
        }
        for count in [0, PORTS - 1, PORTS + 1] {
            let state = ConsoleStateV1 {
                is_driver_ready: false,
                ports: vec![PortStateV1::default(); count],
            };
            assert!(state.check("console").is_err(), "{count}");
        }
    }
}
