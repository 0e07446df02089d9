//! The network card, with one pair of queues or several.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use lightv_devices::state::DeviceState;
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::mmio::reg;
use lightv_devices::virtio::net::{
    MacAddress, Net, NetOptions, RECEIVE_QUEUE, TRANSMIT_QUEUE, Tap,
};

use super::Subject;
use crate::support::{Machine, readable, writable};

/// A card on sockets in place of a tap.
pub(crate) struct NetSubject {
    pairs: u16,
    /// The host's end of each.
    pub(crate) hosts: Vec<UnixDatagram>,
}

impl NetSubject {
    pub(crate) const fn with(pairs: u16) -> Self {
        let hosts = Vec::new();
        Self { pairs, hosts }
    }

    fn tap(&mut self) -> Tap {
        self.hosts.clear();
        let mut queues = (0..self.pairs).map(|_| {
            let (host, tap) = UnixDatagram::pair().unwrap();
            for end in [&host, &tap] {
                end.set_nonblocking(true).unwrap();
            }
            self.hosts.push(host);
            OwnedFd::from(tap)
        });
        let tap = Tap::from_frame_socket(queues.next().unwrap());
        let further: Vec<OwnedFd> = queues.collect();
        if further.is_empty() {
            return tap;
        }
        tap.with_further(further).unwrap()
    }
}

impl Subject for NetSubject {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        let (tap, mac) = (self.tap(), MacAddress::from_id("eth0"));
        Box::new(Net::new(NetOptions {
            id: "eth0".into(),
            backend: tap.into(),
            mac,
            mtu: Some(1500),
        }))
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        let DeviceState::Net(state) = state else {
            panic!("{state:?}")
        };
        Box::new(Net::from_state("eth0".into(), &state, self.tap()).unwrap())
    }

    fn use_all(&mut self, machine: &mut Machine) {
        if self.pairs > 1 {
            let [few, many] = self.pairs.to_le_bytes();
            // VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, and the answer.
            let command = machine.put(&[4, 0, few, many, 0xee]);
            let buffers = [readable(command, 4), writable(command + 4, 1)];
            let control = machine.rings.len() - 1;
            assert_eq!(machine.request(control, &buffers), 1);
            assert_eq!(machine.get(command + 4, 1), [0]);
            machine.write32(reg::INTERRUPT_ACK, 1);
        }
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        self.use_all(machine);
        for (pair, host) in self.hosts.iter().enumerate() {
            // What a hostile guest has sent before.
            while host.recv(&mut [0; 1]).is_ok() {}
            let [receive, transmit] = [RECEIVE_QUEUE, TRANSMIT_QUEUE].map(|of| of + 2 * pair);
            let frame = [&[0; 12][..], &[0x33; 60]].concat();
            let address = machine.put(&frame);
            assert_eq!(machine.request(transmit, &[readable(address, 72)]), 0);
            let mut received = [0; 100];
            assert_eq!(host.recv(&mut received).unwrap(), 72);
            assert_eq!(received[..72], frame);

            let address = machine.put(&[0; 128]);
            let head = machine.add(receive, &[writable(address, 128)]);
            machine.kick(receive);
            host.send(&frame).unwrap();
            machine.serve_backend(1);
            assert_eq!(machine.take_used(receive), Some((u32::from(head), 72)));
            assert_eq!(machine.get(address + 12, 60), vec![0x33; 60]);
        }
    }
}
