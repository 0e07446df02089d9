//! The socket device under test, with a service of the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use lightv_devices::state::DeviceState;
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::vsock::{self, Vsock};
use tempfile::TempDir;

use super::Subject;
use crate::support::{Machine, readable, writable};

/// Packets for programs that had connected before.
const OTHERS_MAX: usize = 4096;

pub(crate) struct VsockSubject {
    pub(crate) folder: TempDir,
    pub(crate) service: UnixListener,
    /// The guest's next port.
    port: u32,
}

impl VsockSubject {
    pub(crate) const CID: u32 = 9;

    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let service = UnixListener::bind(folder.path().join("v_80")).unwrap();
        let port = 1000;
        Self {
            folder,
            service,
            port,
        }
    }

    pub(crate) fn vsock(&self) -> Vsock {
        let path = self.folder.path().join("v");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        Vsock::new("vsock".into(), Self::CID, &path, listener).unwrap()
    }

    /// Sends a packet of a type of operation.
    fn send(&self, machine: &mut Machine, op: u16, payload: &[u8]) {
        let mut packet = vec![0; 44];
        packet[..8].copy_from_slice(&u64::from(Self::CID).to_le_bytes());
        packet[8..16].copy_from_slice(&vsock::HOST_CID.to_le_bytes());
        packet[16..20].copy_from_slice(&self.port.to_le_bytes());
        packet[20..24].copy_from_slice(&80_u32.to_le_bytes());
        packet[24..28].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        packet[28..30].copy_from_slice(&vsock::socket_type::STREAM.to_le_bytes());
        packet[30..32].copy_from_slice(&op.to_le_bytes());
        packet[36..40].copy_from_slice(&65_536_u32.to_le_bytes());
        packet.extend_from_slice(payload);
        let address = machine.put(&packet);
        let bytes = u32::try_from(packet.len()).unwrap();
        let queue = vsock::TRANSMIT_QUEUE;
        assert_eq!(machine.request(queue, &[readable(address, bytes)]), 0);
    }
}

impl VsockSubject {
    /// The next packet for the newest port: where it is, and its length. What came before it for other ports is passed over:
    /// programs of the host may have connected before.
    fn take_own(&self, machine: &mut Machine) -> (u64, u32) {
        for _ in 0..OTHERS_MAX {
            let address = machine.alloc(64);
            machine.add(vsock::RECEIVE_QUEUE, &[writable(address, 64)]);
            machine.kick(vsock::RECEIVE_QUEUE);
            let (_, length) = machine.take_used(vsock::RECEIVE_QUEUE).unwrap();
            if machine.get(address + 20, 4) == self.port.to_le_bytes() {
                return (address, length);
            }
        }
        panic!("{OTHERS_MAX} packets for others");
    }
}

impl Subject for VsockSubject {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(self.vsock())
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        let DeviceState::Vsock(state) = state else {
            panic!("{state:?}")
        };
        Box::new(self.vsock().with_state(&state).unwrap())
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        // What a hostile guest has asked for before.
        self.service.set_nonblocking(true).unwrap();
        while self.service.accept().is_ok() {}
        self.service.set_nonblocking(false).unwrap();
        self.port += 1;
        self.send(machine, vsock::op::REQUEST, &[]);
        let (mut stream, _) = self.service.accept().unwrap();
        self.send(machine, vsock::op::RW, b"from the guest");
        let mut text = [0; 14];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"from the guest");

        stream.write_all(b"from the host").unwrap();
        machine.serve_backend(2);
        let (_, response) = self.take_own(machine);
        let (address, packet) = self.take_own(machine);
        assert_eq!((response, packet), (44, 57));
        assert_eq!(machine.get(address + 44, 13), b"from the host");
        self.send(machine, vsock::op::RST, &[]);
        assert_eq!(stream.read(&mut text).unwrap(), 0);
    }

    fn served_queue(&self, _: &Machine) -> usize {
        vsock::TRANSMIT_QUEUE
    }
}
