//! A network card with a network in user space under the tests of all devices.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use lightv_devices::state::DeviceState;
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::net::{
    FrameStream, MacAddress, Net, NetOptions, RECEIVE_QUEUE, StreamPeer, TRANSMIT_QUEUE,
};

use super::Subject;
use crate::support::{Machine, readable, writable};

#[derive(Debug)]
struct Switch;

impl StreamPeer for Switch {
    fn name(&self) -> &'static str {
        "the switch"
    }

    fn why_gone(&mut self) -> String {
        "the switch".to_owned()
    }
}

#[derive(Default)]
pub(crate) struct StreamSubject {
    pub(crate) host: Option<UnixStream>,
}

impl StreamSubject {
    fn stream(&mut self) -> FrameStream {
        let (host, ours) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        self.host = Some(host);
        FrameStream::new(OwnedFd::from(ours), Box::new(Switch)).unwrap()
    }
}

impl Subject for StreamSubject {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(Net::new(NetOptions {
            id: "eth0".into(),
            backend: self.stream().into(),
            mac: MacAddress::from_id("eth0"),
            mtu: None,
        }))
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        let DeviceState::Net(state) = state else {
            panic!("{state:?}")
        };
        Box::new(Net::from_state("eth0".into(), &state, self.stream()).unwrap())
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        let mut host = self.host.as_ref().unwrap();
        let mut received = vec![0; 1 << 20];
        // What a hostile guest has sent before.
        while host.read(&mut received).is_ok() {
            machine.serve_backend(1);
        }
        let address = machine.put(&[&[0; 12][..], &[0x33; 60]].concat());
        assert_eq!(machine.request(TRANSMIT_QUEUE, &[readable(address, 72)]), 0);
        let bytes = host.read(&mut received).unwrap();
        assert_eq!(
            received[..bytes],
            [&[0, 0, 0, 60][..], &[0x33; 60]].concat()
        );

        let address = machine.put(&[0; 128]);
        let head = machine.add(RECEIVE_QUEUE, &[writable(address, 128)]);
        machine.kick(RECEIVE_QUEUE);
        host.write_all(&received[..bytes]).unwrap();
        machine.serve_backend(1);
        assert_eq!(
            machine.take_used(RECEIVE_QUEUE),
            Some((u32::from(head), 72))
        );
        assert_eq!(machine.get(address + 12, 60), vec![0x33; 60]);
    }
}
