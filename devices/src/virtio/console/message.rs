//! Messages about ports (virtio 1.2 §5.3.6.2), and what each side has been told.

use lightv_contract::ports::NAMES;
use serde::{Deserialize, Serialize};

use crate::fault::GuestFault;
use crate::virtio::console::config::TerminalSize;
use crate::virtio::console::ports::{PORTS, TERMINAL};

/// Bytes of `struct virtio_console_control`.
pub(super) const MESSAGE_BYTES: usize = 8;

/// Events of messages.
pub mod event {
    /// From the guest: the driver is ready for ports.
    pub const DEVICE_READY: u16 = 0;
    /// To the guest: there is a port.
    pub const PORT_ADD: u16 = 1;
    /// From the guest: the driver has made the port.
    pub const PORT_READY: u16 = 3;
    /// To the guest: the port is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// To the guest: the console has another size.
    pub const RESIZE: u16 = 5;
    /// Both ways: the side that says so has opened (1) or closed (0) the port.
    pub const PORT_OPEN: u16 = 6;
    /// To the guest: the port's name.
    pub const PORT_NAME: u16 = 7;
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) port: u32,
    pub(super) event: u16,
    pub(super) value: u16,
}

impl Message {
    /// Its bytes, without what follows it.
    pub(super) fn encode(self) -> [u8; MESSAGE_BYTES] {
        let [a, b, c, d] = self.port.to_le_bytes();
        let [e, f] = self.event.to_le_bytes();
        let [g, h] = self.value.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// The message in these bytes.
    pub(super) const fn decode(bytes: [u8; MESSAGE_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }
}

/// What the guest has still to be told of a port: a set, so it cannot grow.
pub(super) mod owed {
    /// PORT_ADD.
    pub(crate) const ADD: u8 = 1;
    /// CONSOLE_PORT.
    pub(crate) const CONSOLE: u8 = 2;
    /// PORT_NAME.
    pub(crate) const NAME: u8 = 4;
    /// RESIZE.
    pub(crate) const SIZE: u8 = 8;
    /// What a port that the driver has made is told.
    pub(crate) const PARTICULARS: u8 = CONSOLE | NAME | SIZE;
}

/// A port as the two sides know it. Saved as it is: a change of the form is a new version of the section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortStateV1 {
    /// The driver has made the port.
    pub is_ready: bool,
    /// The guest has opened it.
    pub is_guest_open: bool,
    /// Whether the guest was last told that the host has opened it; nothing before it was told either.
    pub told_open: Option<bool>,
    /// Messages that the guest has still to get: 1 PORT_ADD, 2 CONSOLE_PORT, 4 PORT_NAME, 8 RESIZE.
    pub owed: u8,
}

/// What the host's side is like now.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostSide {
    pub(super) is_open: [bool; PORTS],
    pub(super) size: TerminalSize,
}

/// All ports. No input of the guest makes it larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PortTable {
    pub(super) is_driver_ready: bool,
    pub(super) ports: [PortStateV1; PORTS],
}

/// A message to the guest with what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    message: Message,
    bytes: Vec<u8>,
}

impl Outgoing {
    fn new(message: Message, more: &[u8]) -> Self {
        let mut bytes = message.encode().to_vec();
        bytes.extend_from_slice(more);
        Self { message, bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl PortTable {
    /// Takes a message of the guest.
    ///
    /// # Errors
    /// [`GuestFault::BadMessage`] for one that no driver sends; nothing has changed then.
    pub(super) fn receive(&mut self, message: Message) -> Result<(), GuestFault> {
        let Message { port, event, value } = message;
        if event == event::DEVICE_READY {
            // A driver that has failed (0) says so and is reset next. One that begins knows no port yet.
            *self = Self::default();
            self.is_driver_ready = value == 1;
            if self.is_driver_ready {
                self.ports.iter_mut().for_each(|port| port.owed = owed::ADD);
            }
            return Ok(());
        }
        let index = usize::try_from(port).unwrap_or(usize::MAX);
        let is_driver_ready = self.is_driver_ready;
        let state = self.ports.get_mut(index).filter(|_| is_driver_ready);
        match (event, state) {
            (event::PORT_READY, Some(state)) => {
                let owed = if index == TERMINAL {
                    owed::PARTICULARS
                } else {
                    owed::NAME
                };
                *state = PortStateV1 {
                    is_ready: value == 1,
                    owed: if value == 1 { owed } else { 0 },
                    ..PortStateV1::default()
                };
                Ok(())
            }
            (event::PORT_OPEN, Some(state)) if state.is_ready => {
                state.is_guest_open = value != 0;
                Ok(())
            }
            _ => Err(GuestFault::BadMessage { port, event }),
        }
    }

    /// The console has another size.
    pub(super) fn size_changed(&mut self) {
        if let Some(terminal) = self.ports.get_mut(TERMINAL).filter(|port| port.is_ready) {
            terminal.owed |= owed::SIZE;
        }
    }

    /// The next message that the guest has to get, if any: ports first, then what they are. It is to be told by
    /// [`sent`](Self::sent) when the guest has got it.
    pub(super) fn next(&self, host: &HostSide) -> Option<Outgoing> {
        let added = |number: usize, port: &PortStateV1| {
            (port.owed & owed::ADD != 0).then(|| message(number, event::PORT_ADD, 1, &[]))
        };
        let ports = || self.ports.iter().enumerate();
        ports()
            .find_map(|(number, port)| added(number, port))
            .or_else(|| ports().find_map(|(number, port)| particulars(number, port, host)))
    }

    /// The guest has got `outgoing`.
    pub(super) fn sent(&mut self, outgoing: &Outgoing) {
        let Message { port, event, value } = outgoing.message;
        let index = usize::try_from(port).unwrap_or(usize::MAX);
        let Some(state) = self.ports.get_mut(index) else {
            return;
        };
        match event {
            event::PORT_ADD => state.owed &= !owed::ADD,
            event::CONSOLE_PORT => state.owed &= !owed::CONSOLE,
            event::PORT_NAME => state.owed &= !owed::NAME,
            event::RESIZE => state.owed &= !owed::SIZE,
            _ => state.told_open = Some(value != 0),
        }
    }

    /// Whether the guest has opened `port`.
    pub(super) fn is_guest_open(&self, port: usize) -> bool {
        self.ports
            .get(port)
            .is_some_and(|state| state.is_guest_open)
    }
}

/// What a port that the driver has made has still to be told. That it is a console comes before its size, for which the
/// driver needs the console.
fn particulars(number: usize, port: &PortStateV1, host: &HostSide) -> Option<Outgoing> {
    if !port.is_ready {
        return None;
    }
    if port.owed & owed::CONSOLE != 0 {
        return Some(message(number, event::CONSOLE_PORT, 1, &[]));
    }
    if port.owed & owed::NAME != 0 {
        let name = NAMES.get(number).copied().unwrap_or_default();
        return Some(message(number, event::PORT_NAME, 1, name.as_bytes()));
    }
    let is_open = host.is_open.get(number).copied().unwrap_or(false);
    if port.told_open != Some(is_open) {
        return Some(message(number, event::PORT_OPEN, u16::from(is_open), &[]));
    }
    if port.owed & owed::SIZE != 0 && host.size.is_known() {
        let [a, b] = host.size.columns.to_le_bytes();
        let [c, d] = host.size.rows.to_le_bytes();
        return Some(message(number, event::RESIZE, 0, &[a, b, c, d]));
    }
    None
}

fn message(number: usize, event: u16, value: u16, more: &[u8]) -> Outgoing {
    let port = u32::try_from(number).unwrap_or(u32::MAX);
    Outgoing::new(Message { port, event, value }, more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::console::ports::{AGENT, STDIN};

    const NO_TERMINAL: HostSide = HostSide {
        is_open: [false, true, true, true, true],
        size: TerminalSize {
            columns: 0,
            rows: 0,
        },
    };
    const WITH_TERMINAL: HostSide = HostSide {
        is_open: [true, true, true, true, false],
        size: TerminalSize {
            columns: 132,
            rows: 43,
        },
    };

    fn told(table: &mut PortTable, host: &HostSide) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let mut told = Vec::new();
        while let Some(outgoing) = table.next(host) {
            table.sent(&outgoing);
            let Message { port, event, value } = outgoing.message;
            let more = outgoing.bytes()[MESSAGE_BYTES..].to_vec();
            told.push((port, event, value, more));
            assert!(told.len() < 100, "it comes to an end");
        }
        told
    }

    fn receive(table: &mut PortTable, port: u32, event: u16, value: u16) -> Result<(), GuestFault> {
        table.receive(Message { port, event, value })
    }

    /// A table after DEVICE_READY and PORT_READY of all ports.
    fn ready(host: &HostSide) -> PortTable {
        let mut table = PortTable::default();
        receive(&mut table, u32::MAX, event::DEVICE_READY, 1).unwrap();
        let _ = told(&mut table, host);
        for port in 0..5 {
            receive(&mut table, port, event::PORT_READY, 1).unwrap();
        }
        table
    }

    #[test]
    fn a_driver_that_is_ready_is_told_of_each_port_once() {
        let mut table = PortTable::default();
        assert!(told(&mut table, &NO_TERMINAL).is_empty());
        receive(&mut table, u32::MAX, event::DEVICE_READY, 1).unwrap();
        let added: Vec<_> = (0..5)
            .map(|port| (port, event::PORT_ADD, 1, vec![]))
            .collect();
        assert_eq!(told(&mut table, &NO_TERMINAL), added);
        assert!(told(&mut table, &NO_TERMINAL).is_empty());
    }

    #[test]
    fn a_port_that_is_made_is_told_its_name_and_who_has_it_open() {
        let mut table = ready(&NO_TERMINAL);
        let told = told(&mut table, &NO_TERMINAL);
        for (number, name) in (0..).zip(NAMES) {
            let named = (number, event::PORT_NAME, 1, name.as_bytes().to_vec());
            assert!(told.contains(&named), "{name}");
            let open = u16::from(number != 0);
            assert!(told.contains(&(number, event::PORT_OPEN, open, vec![])));
        }
        assert!(told.iter().all(|message| message.1 != event::RESIZE));
    }

    #[test]
    fn the_terminal_is_a_console_before_it_has_a_size() {
        let mut table = ready(&WITH_TERMINAL);
        let events: Vec<u16> = told(&mut table, &WITH_TERMINAL)
            .into_iter()
            .filter(|message| message.0 == 0)
            .map(|message| message.1)
            .collect();
        let expected = [
            event::CONSOLE_PORT,
            event::PORT_NAME,
            event::PORT_OPEN,
            event::RESIZE,
        ];
        assert_eq!(events, expected);
        table.size_changed();
        table.size_changed();
        let size = (0, event::RESIZE, 0, vec![132, 0, 43, 0]);
        assert_eq!(told(&mut table, &WITH_TERMINAL), [size]);
    }

    #[test]
    fn what_the_host_does_twice_is_told_as_it_is_last() {
        let mut table = ready(&NO_TERMINAL);
        let _ = told(&mut table, &NO_TERMINAL);
        let mut host = NO_TERMINAL;
        host.is_open[STDIN] = false;
        assert_eq!(told(&mut table, &host), [(4, event::PORT_OPEN, 0, vec![])]);
        assert!(told(&mut table, &host).is_empty());
        assert_eq!(
            told(&mut table, &NO_TERMINAL),
            [(4, event::PORT_OPEN, 1, vec![])]
        );
    }

    #[test]
    fn messages_of_no_sense_are_refused_and_change_nothing() {
        let mut table = PortTable::default();
        for (port, event) in [(0, event::PORT_READY), (0, event::PORT_OPEN)] {
            let early = receive(&mut table, port, event, 1);
            assert_eq!(early, Err(GuestFault::BadMessage { port, event }));
        }
        let mut table = ready(&NO_TERMINAL);
        let before = table;
        for (port, event) in [
            (5, event::PORT_READY),
            (u32::MAX, event::PORT_OPEN),
            (0, event::PORT_ADD),
            (0, event::RESIZE),
            (0, 8),
            (0, u16::MAX),
        ] {
            let found = receive(&mut table, port, event, 1);
            assert_eq!(found, Err(GuestFault::BadMessage { port, event }));
            assert_eq!(table, before);
        }
    }

    #[test]
    fn a_port_is_open_from_open_to_close_and_not_after_a_new_start() {
        let mut table = ready(&NO_TERMINAL);
        let agent = u32::try_from(AGENT).unwrap();
        assert!(!table.is_guest_open(AGENT));
        receive(&mut table, agent, event::PORT_OPEN, 1).unwrap();
        assert!(table.is_guest_open(AGENT));
        receive(&mut table, agent, event::PORT_OPEN, 0).unwrap();
        assert!(!table.is_guest_open(AGENT));
        receive(&mut table, agent, event::PORT_OPEN, 1).unwrap();
        receive(&mut table, u32::MAX, event::DEVICE_READY, 1).unwrap();
        assert!(!table.is_guest_open(AGENT));
        receive(&mut table, u32::MAX, event::DEVICE_READY, 0).unwrap();
        assert!(told(&mut table, &NO_TERMINAL).is_empty());
    }
}
