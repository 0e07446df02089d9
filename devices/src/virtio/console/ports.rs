//! The ports: their numbers are their places in [`lightv_contract::ports::NAMES`], their queues follow from the numbers
//! (virtio 1.2 §5.3.2).

use lightv_contract::ports::NAMES;

use crate::limits::{
    CONSOLE_CONTROL_RX_SIZE, CONSOLE_CONTROL_TX_SIZE, CONSOLE_INPUT_SIZE, CONSOLE_LINES_SIZE,
    CONSOLE_OUTPUT_SIZE, CONSOLE_TERMINAL_RX_SIZE, CONSOLE_UNUSED_SIZE,
};

/// Number of ports.
pub const PORTS: usize = NAMES.len();
/// Number of queues: two of each port, and two for messages.
pub const QUEUES: usize = 2 * PORTS + 2;

/// Number of the port [`lightv_contract::ports::TERMINAL`].
pub const TERMINAL: usize = 0;
/// Number of the port [`lightv_contract::ports::STDIO`].
pub const STDIO: usize = 1;
/// Number of the port [`lightv_contract::ports::STDERR`].
pub const STDERR: usize = 2;
/// Number of the port [`lightv_contract::ports::AGENT`].
pub const AGENT: usize = 3;
/// Number of the port [`lightv_contract::ports::STDIN`].
pub const STDIN: usize = 4;

/// The largest size of each queue. A Linux driver fills each receive queue with pages when it finds the port, so those
/// are short.
pub(super) const QUEUE_SIZES: [u16; QUEUES] = [
    CONSOLE_TERMINAL_RX_SIZE,
    CONSOLE_OUTPUT_SIZE,
    CONSOLE_CONTROL_RX_SIZE,
    CONSOLE_CONTROL_TX_SIZE,
    CONSOLE_UNUSED_SIZE,
    CONSOLE_OUTPUT_SIZE,
    CONSOLE_UNUSED_SIZE,
    CONSOLE_OUTPUT_SIZE,
    CONSOLE_LINES_SIZE,
    CONSOLE_UNUSED_SIZE,
    CONSOLE_INPUT_SIZE,
    CONSOLE_UNUSED_SIZE,
];

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueRole {
    /// Bytes for the guest from this port.
    ToGuest(usize),
    /// Bytes from the guest by this port.
    FromGuest(usize),
    /// Messages for the guest.
    ControlToGuest,
    /// Messages from the guest.
    ControlFromGuest,
}

impl QueueRole {
    /// Of queue `index`; there is none from [`QUEUES`] on.
    #[must_use]
    pub fn of(index: usize) -> Option<Self> {
        let (pair, is_from_guest) = (index / 2, index % 2 == 1);
        let port = match pair {
            1 if is_from_guest => return Some(Self::ControlFromGuest),
            1 => return Some(Self::ControlToGuest),
            0 => 0,
            _ => pair.checked_sub(1)?,
        };
        (port < PORTS).then_some(if is_from_guest {
            Self::FromGuest(port)
        } else {
            Self::ToGuest(port)
        })
    }

    /// Its index.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::ControlToGuest => 2,
            Self::ControlFromGuest => 3,
            Self::ToGuest(0) => 0,
            Self::FromGuest(0) => 1,
            Self::ToGuest(port) => 2 * port + 2,
            Self::FromGuest(port) => 2 * port + 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_contract() {
        use lightv_contract::ports;
        for (number, name) in [
            (TERMINAL, ports::TERMINAL),
            (STDIO, ports::STDIO),
            (STDERR, ports::STDERR),
            (AGENT, ports::AGENT),
            (STDIN, ports::STDIN),
        ] {
            assert_eq!(NAMES[number], name);
        }
    }

    #[test]
    fn queues_follow_the_specification() {
        use QueueRole::{ControlFromGuest, ControlToGuest, FromGuest, ToGuest};
        let roles: Vec<_> = (0..QUEUES).filter_map(QueueRole::of).collect();
        assert_eq!(
            roles[..6],
            [
                ToGuest(0),
                FromGuest(0),
                ControlToGuest,
                ControlFromGuest,
                ToGuest(1),
                FromGuest(1)
            ]
        );
        assert_eq!(roles.len(), QUEUES);
        for (index, role) in roles.iter().enumerate() {
            assert_eq!(role.index(), index);
        }
        assert_eq!(QueueRole::of(QUEUES), None);
        assert_eq!(QueueRole::of(usize::MAX), None);
    }
}
