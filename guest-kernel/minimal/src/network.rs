//! TCP/IP over the network device: smoltcp, with the address of this run.

use alloc::vec;
use core::net::Ipv4Addr;

use guest_text::ip::Ipv4Setup;
use lightv_workloads::random::mix;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, HardwareAddress, IpCidr, Ipv4Cidr,
};

use crate::control;
use crate::nic::Nic;
use crate::patience::Patience;
use crate::shim;
use crate::time;

const ACK_DELAY: Duration = Duration::from_millis(2);
const NS_PER_US: u64 = 1000;
/// Ethernet header and ARP packet for IPv4 (RFC 826).
const ARP_FRAME_BYTES: usize = 14 + 28;
const UDP_PACKETS: usize = 32;
const UDP_BYTES: usize = 32 * 1024;

/// The interface and its sockets.
pub struct Network {
    nic: &'static mut Nic,
    interface: Interface,
    /// The sockets.
    pub sockets: SocketSet<'static>,
    patience: Patience,
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(time::now_ns() / NS_PER_US).unwrap_or(i64::MAX))
}

/// A fresh interface: no neighbours known, ports and sequence numbers from the seed of this run.
fn interface(nic: &mut Nic) -> Interface {
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(nic.mac())));
    config.random_seed = match control::get() {
        Some(control) => control
            .seed()
            .as_chunks()
            .0
            .first()
            .map_or(0, |word| u64::from_le_bytes(*word)),
        None => mix(time::ticks()),
    };
    Interface::new(config, nic, now())
}

impl Network {
    /// An interface without an address yet.
    pub fn new(nic: &'static mut Nic) -> Self {
        time::init();
        let interface = interface(nic);
        Self {
            nic,
            interface,
            sockets: SocketSet::new(vec![]),
            patience: Patience::new(),
        }
    }

    /// Takes the address of this run and announces it. After a restore, sockets go on as they were.
    pub fn start(&mut self, setup: Ipv4Setup) {
        self.interface = interface(self.nic);
        self.interface.update_ip_addrs(|addresses| {
            let address = IpCidr::Ipv4(Ipv4Cidr::new(setup.address, setup.prefix));
            // A fresh interface has room for one.
            let _ = addresses.push(address);
        });
        if let Some(gateway) = setup.gateway {
            // As above: the table is empty.
            let _ = self.interface.routes_mut().add_default_ipv4_route(gateway);
        }
        self.announce(setup.address);
    }

    /// Data of a datagram that can be sent.
    pub fn datagram_bytes_max(&self) -> usize {
        self.nic.datagram_bytes_max()
    }

    /// Takes one more address.
    pub fn add_address(&mut self, address: Ipv4Addr, prefix: u8) {
        self.interface.update_ip_addrs(|addresses| {
            // An interface has room for two.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, prefix)));
        });
    }

    /// Begins a connection of a closed socket to `to`.
    pub fn connect(&mut self, handle: SocketHandle, to: (Ipv4Addr, u16), port: u16) {
        let socket: &mut tcp::Socket<'_> = self.sockets.get_mut(handle);
        // The socket is closed and no port is 0, which is all that can be wrong.
        let _ = socket.connect(self.interface.context(), to, port);
    }

    /// Gratuitous ARP (RFC 5227 §3): neighbours learn where the address is now.
    fn announce(&mut self, address: Ipv4Addr) {
        let hardware = EthernetAddress(self.nic.mac());
        let ethernet = EthernetRepr {
            src_addr: hardware,
            dst_addr: EthernetAddress::BROADCAST,
            ethertype: EthernetProtocol::Arp,
        };
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: hardware,
            source_protocol_addr: address,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address,
        };
        if let Some(token) = self.nic.transmit(now()) {
            token.consume(ARP_FRAME_BYTES, |bytes| {
                let mut frame = EthernetFrame::new_unchecked(bytes);
                ethernet.emit(&mut frame);
                arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
            });
        }
    }

    /// A TCP socket with buffers of these sizes in bytes.
    pub fn add_tcp(&mut self, receive_bytes: usize, send_bytes: usize) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; receive_bytes]),
            tcp::SocketBuffer::new(vec![0; send_bytes]),
        );
        socket.set_nagle_enabled(false);
        // An answer carries the acknowledgement, which would be a frame of its own.
        socket.set_ack_delay(Some(ACK_DELAY));
        self.sockets.add(socket)
    }

    /// A UDP socket.
    pub fn add_udp(&mut self) -> SocketHandle {
        self.add_udp_of(UDP_PACKETS, UDP_BYTES)
    }

    /// A UDP socket with room for so many datagrams, and bytes of them, in each direction.
    pub fn add_udp_of(&mut self, packets: usize, bytes: usize) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; packets], vec![0; bytes]);
        self.sockets.add(udp::Socket::new(buffer(), buffer()))
    }

    /// A TCP socket added before.
    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// A UDP socket added before.
    pub fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Moves frames. True if a socket may have changed.
    pub fn poll(&mut self) -> bool {
        let result = self.interface.poll(now(), self.nic, &mut self.sockets);
        self.nic.notify();
        result == PollResult::SocketStateChanged
    }

    /// Sleeps until a frame has come or a socket's time has. May return early.
    pub fn sleep(&mut self) {
        self.sleep_at_most(u64::MAX);
    }

    /// The same, for `most_ns` at most.
    pub fn sleep_at_most(&mut self, most_ns: u64) {
        let delay = self.socket_delay();
        if delay == Some(Duration::ZERO) || self.patience.look(|| self.nic.has_frame()) {
            return;
        }
        // Ask before looking once more: an interrupt from now on ends the sleep.
        self.nic.ask_for_interrupts();
        if !self.nic.has_frame() {
            self.sleep_until_interrupt(most_ns);
        }
        self.nic.refuse_interrupts();
    }

    /// Until a socket's time comes. That of one that can only wait for the device is none.
    fn socket_delay(&mut self) -> Option<Duration> {
        let delay = self.interface.poll_delay(now(), &self.sockets);
        delay.filter(|&delay| delay != Duration::ZERO || !self.nic.is_full())
    }

    /// Sleeps until an interrupt, or until a socket's time has come, for `most_ns` at most.
    fn sleep_until_interrupt(&mut self, most_ns: u64) {
        let delay = self.socket_delay();
        let delay_ns = delay.map_or(u64::MAX, |delay| delay.total_micros() * NS_PER_US);
        match delay_ns.min(most_ns) {
            u64::MAX => shim::wait(),
            delay_ns => time::wait_until(time::now_ns().saturating_add(delay_ns)),
        }
        self.patience.note_sleep();
    }
}
