//! A network name space of this process's own, and interfaces in it (netdevice(7), tun.rst of the kernel).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

/// Where the kernel gives out taps.
pub(crate) const TUN_PATH: &str = "/dev/net/tun";

/// Moves the calling thread, and with it what it starts from now on, into a new network name space. Whoever may not do that
/// gets a user name space with it, which a process with more than one thread cannot.
pub(crate) fn leave_network() -> io::Result<()> {
    // SAFETY: the call takes no memory of ours, and no other thread depends on what is no longer shared.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
        return Ok(());
    }
    let refused = io::Error::last_os_error();
    if refused.raw_os_error() != Some(libc::EPERM) {
        return Err(refused);
    }
    // SAFETY: neither call can fail or takes memory.
    let user = unsafe { libc::geteuid() };
    // SAFETY: as above.
    let group = unsafe { libc::getegid() };
    // SAFETY: as the first one.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // We stay who we are, for files (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Sets up interfaces.
pub(crate) struct Links(OwnedFd);

impl Links {
    /// Of the calling thread's name space.
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: the call takes no memory.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sets the MTU.
    pub(crate) fn set_mtu(&self, name: &str, mtu: u16) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.ask(libc::SIOCSIFMTU, &mut request)
    }

    /// Gives it an address.
    pub(crate) fn set_address(&self, name: &str, address: Ipv4Addr) -> io::Result<()> {
        self.set_sockaddr(libc::SIOCSIFADDR, name, address)
    }

    /// Says how large the network of its address is.
    pub(crate) fn set_netmask(&self, name: &str, netmask: Ipv4Addr) -> io::Result<()> {
        self.set_sockaddr(libc::SIOCSIFNETMASK, name, netmask)
    }

    /// Switches it on.
    pub(crate) fn set_up(&self, name: &str) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or_default();
        self.ask(libc::SIOCSIFFLAGS, &mut request)
    }

    fn set_sockaddr(&self, what: libc::Ioctl, name: &str, address: Ipv4Addr) -> io::Result<()> {
        let mut request = request(name)?;
        let [a, b, c, d] = address.octets().map(u8::cast_signed);
        // `struct sockaddr_in`: a port of 0, then the address.
        request.ifr_ifru.ifru_addr = libc::sockaddr {
            sa_family: u16::try_from(libc::AF_INET).unwrap_or_default(),
            sa_data: [0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        self.ask(what, &mut request)
    }

    fn ask(&self, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: all that is asked here reads or writes an `ifreq`, which is ours.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), what, &raw mut *request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Has the kernel cut what is sent by `socket` into datagrams of so many bytes (udp(7), UDP_SEGMENT).
pub(crate) fn set_datagram_bytes(socket: &UdpSocket, bytes: u16) -> io::Result<()> {
    let bytes = libc::c_int::from(bytes);
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).unwrap_or_default();
    let (level, option) = (libc::SOL_UDP, libc::UDP_SEGMENT);
    let value = (&raw const bytes).cast::<libc::c_void>();
    // SAFETY: the kernel reads `length` bytes of an integer that lives over the call.
    if unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a tap that stays until its name space goes. True if it can leave UDP whole: since Linux 6.2.
pub(crate) fn make_tap(name: &str) -> io::Result<bool> {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(TUN_PATH))?;
    let mut request = request(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    // SAFETY: it reads and writes an `ifreq`, which is ours.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it takes a number.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let offload = libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    // SAFETY: it takes a number.
    let asked = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offload) };
    Ok(asked == 0)
}

/// For the interface `name`; all else is 0.
fn request(name: &str) -> io::Result<libc::ifreq> {
    let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut ifr_name = [0; libc::IFNAMSIZ];
    if name.len() >= ifr_name.len() {
        return Err(too_long());
    }
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: all zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = ifr_name;
    Ok(request)
}
