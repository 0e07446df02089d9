//! The queues of a card at work, as virtio numbers them (virtio 1.2 §5.1.2): receive and transmit queue of each pair, then
//! the control queue.

use virtio_queue::Queue;

use crate::virtio::net::config::feature;
use crate::virtio::net::control::ControlQueue;
use crate::virtio::net::receive::Receiver;
use crate::virtio::net::transmit::Transmitter;
use crate::virtio::ring::Ring;

/// Whether a driver that has accepted `acked_features` may use several pairs.
pub(super) const fn are_several(acked_features: u64) -> bool {
    const BOTH: u64 = feature::MQ | feature::CTRL_VQ;
    acked_features & BOTH == BOTH
}

/// What a device has while it works.
#[derive(Debug)]
pub(super) struct Active {
    /// Of a driver that does not know of several, only the first.
    pub(super) pairs: Vec<Pair>,
    pub(super) control: Option<ControlQueue>,
    /// Queues that are nothing to this driver.
    unused: Vec<Ring>,
}

/// A queue in each direction.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
}

/// What a queue is for, and of which pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
    Unused,
}

impl Active {
    /// What `rings`, of all queues of the device, are to a driver that has accepted `acked_features`.
    pub(super) fn new(rings: Vec<Ring>, acked_features: u64) -> Self {
        let most = if are_several(acked_features) {
            rings.len() / 2
        } else {
            1
        };
        let mut rings = rings.into_iter();
        let mut pairs = Vec::with_capacity(most);
        while pairs.len() < most
            && let (Some(receive), Some(transmit)) = (rings.next(), rings.next())
        {
            pairs.push(Pair {
                receiver: Receiver::new(receive, acked_features),
                transmitter: Transmitter::new(transmit, acked_features),
            });
        }
        let has_control = acked_features & feature::CTRL_VQ != 0;
        let control = has_control.then(|| rings.next()).flatten();
        Self {
            pairs,
            control: control.map(ControlQueue::new),
            unused: rings.collect(),
        }
    }

    /// What queue `index` is for.
    pub(super) fn role(&self, index: usize) -> Role {
        let pair = index / 2;
        if pair < self.pairs.len() {
            return if index.is_multiple_of(2) {
                Role::Receive(pair)
            } else {
                Role::Transmit(pair)
            };
        }
        let is_next = index == self.pairs.len().saturating_mul(2);
        if is_next && self.control.is_some() {
            Role::Control
        } else {
            Role::Unused
        }
    }

    /// How many pairs the driver may ask for: none, if it does not know of several.
    pub(super) const fn pairs_max(&self) -> usize {
        if self.pairs.len() > 1 {
            self.pairs.len()
        } else {
            0
        }
    }

    /// Gives the queues back, in their order.
    pub(super) fn into_queues(self) -> Vec<Queue> {
        let Self {
            pairs,
            control,
            unused,
        } = self;
        let pairs = pairs
            .into_iter()
            .flat_map(|pair| [pair.receiver.into_queue(), pair.transmitter.into_queue()]);
        let control = control.map(ControlQueue::into_queue);
        let unused = unused.into_iter().map(Ring::into_queue);
        pairs.chain(control).chain(unused).collect()
    }
}
