//! Sockets that the standard library does not have: route netlink, packets, and streams of vsock.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn open(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket to the kernel's network configuration.
///
/// # Errors
/// Those of `socket`.
pub fn open_route() -> io::Result<OwnedFd> {
    open(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
}

/// A socket that sends whole Ethernet frames, and receives nothing (protocol 0).
///
/// # Errors
/// Those of `socket`.
pub fn open_packet() -> io::Result<OwnedFd> {
    open(libc::AF_PACKET, libc::SOCK_RAW, 0)
}

/// Sends `message` to whom the socket speaks to by default: of route netlink, the kernel.
///
/// # Errors
/// Those of `send`.
pub fn send(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `message`, which is only read.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes a datagram that has arrived already. Returns its length: what is longer than `into` is cut.
///
/// # Errors
/// Those of `recv`; EAGAIN when none has arrived.
pub fn receive(socket: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
    // SAFETY: the pointer and the length are those of `into`, which is ours alone.
    let length = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), flags) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Sends the Ethernet frame `frame` by the interface `index`.
///
/// # Errors
/// Those of `sendto`: ENETDOWN when the interface is not up.
pub fn send_frame(socket: &OwnedFd, index: i32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: plain numbers, for which 0 is a value.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    to.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: both pointers have the lengths that are given, and are only read.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Length of a vsock address.
fn vm_length() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or_default()
}

/// A socket that listens on `port` of vsock, for up to `backlog` clients that wait; it does not block.
///
/// # Errors
/// Those of `socket`, `bind` and `listen`.
pub fn listen_vsock(port: u32, backlog: i32) -> io::Result<OwnedFd> {
    let socket = open(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    // SAFETY: plain numbers, for which 0 is a value.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = u16::try_from(libc::AF_VSOCK).unwrap_or_default();
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    // SAFETY: the pointer has the length that is given, and is only read.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), vm_length()) };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no memory is involved.
    let listens = unsafe { libc::listen(socket.as_raw_fd(), backlog) };
    if listens < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// The next client of a socket of [`listen_vsock`], on a socket that does not block, and its context id.
///
/// # Errors
/// Those of `accept4`; EAGAIN when none waits.
pub fn accept_vsock(listener: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
    // SAFETY: plain numbers, for which 0 is a value.
    let mut peer: libc::sockaddr_vm = unsafe { zeroed() };
    let mut length = vm_length();
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: both pointers are ours alone, and `length` is what `peer` has room for.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            (&raw mut peer).cast(),
            &raw mut length,
            flags,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    let stream = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((stream, peer.svm_cid))
}
