//! `echo [PORT]`: TCP and UDP echo (RFC 862), several connections at once.

use alloc::vec::Vec;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use super::{Refusal, network};
use crate::machine::{Epoch, Machine};
use crate::network::Network;

const PORT: u64 = 7;
const CONNECTIONS: usize = 16;
const BUFFER_BYTES: usize = 64 * 1024;

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    let mut network = network(machine)?;
    let tcp: Vec<_> = (0..CONNECTIONS)
        .map(|_| network.add_tcp(BUFFER_BYTES, BUFFER_BYTES))
        .collect();
    let udp = network.add_udp();
    let mut epoch = Epoch::now();
    machine.ready();
    epoch.changed();
    let port = port(machine, PORT)?;
    network.start(machine.ipv4()?);
    // The socket is new and the port is not 0, which is all that can be wrong.
    let _ = network.udp(udp).bind(port);
    loop {
        if epoch.changed() {
            network.start(machine.ipv4()?);
        }
        network.poll();
        let mut moved = echo_udp(&mut network, udp);
        for &handle in &tcp {
            moved |= echo_tcp(&mut network, handle, port);
        }
        if !moved {
            network.sleep();
        }
    }
}

/// The first argument as a port.
pub fn port(machine: &Machine, default: u64) -> Result<u16, Refusal> {
    u16::try_from(machine.number(0, default)?)
        .ok()
        .filter(|&port| port != 0)
        .ok_or(Refusal::Usage("[PORT], 1-65535"))
}

/// True if something was moved.
pub fn echo_tcp(network: &mut Network, handle: SocketHandle, port: u16) -> bool {
    let socket = network.tcp(handle);
    if !socket.is_open() {
        return socket.listen(port).is_ok();
    }
    let mut piece = [0; 2048];
    let mut moved = false;
    while socket.can_send() && socket.can_recv() {
        // Both were asked for, and there is room for all that is taken.
        let room = (socket.send_capacity() - socket.send_queue()).min(piece.len());
        let len = socket.recv_slice(&mut piece[..room]).unwrap_or(0);
        let _ = socket.send_slice(&piece[..len]);
        moved = true;
    }
    // The peer has closed its side, and all it sent has been echoed.
    if socket.state() == State::CloseWait && !socket.can_recv() {
        socket.close();
        moved = true;
    }
    moved
}

fn echo_udp(network: &mut Network, handle: SocketHandle) -> bool {
    let socket = network.udp(handle);
    if !socket.can_recv() || !socket.can_send() {
        return false;
    }
    let mut packet = [0; 2048];
    if let Ok((len, from)) = socket.recv_slice(&mut packet) {
        // An answer that does not fit now is lost, as any datagram may be.
        let _ = socket.send_slice(&packet[..len], from.endpoint);
    }
    true
}
