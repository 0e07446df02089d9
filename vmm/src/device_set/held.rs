//! A device in its set: most are alike, some are spoken to.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use lightv_devices::fault::HostFault;
use lightv_devices::virtio::balloon::Balloon;
use lightv_devices::virtio::block::Block;
use lightv_devices::virtio::console::Console;
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::net::Net;
use lightv_devices::virtio::vsock::Vsock;

use crate::listen::SocketFile;

#[derive(Debug)]
pub(super) enum Held {
    Balloon(Box<Balloon>),
    Block(Box<Block>),
    Console(Box<Console>),
    Net(Box<Net>),
    Vsock(Box<VsockHeld>),
    Other(Box<dyn VirtioDevice>),
}

/// The socket device, with the file of its socket: it goes when the device does.
#[derive(Debug)]
pub(super) struct VsockHeld {
    pub(super) device: Vsock,
    #[expect(dead_code, reason = "held for its end")]
    file: Arc<SocketFile>,
}

impl Held {
    pub(super) fn balloon(balloon: Balloon) -> Self {
        Self::Balloon(Box::new(balloon))
    }

    pub(super) fn vsock(device: Vsock, file: Arc<SocketFile>) -> Self {
        Self::Vsock(Box::new(VsockHeld { device, file }))
    }

    /// The driver has reset the device, which is idle.
    pub(super) fn forget_driver(&mut self) {
        match self {
            Self::Vsock(vsock) => vsock.device.forget_driver(),
            Self::Balloon(balloon) => balloon.forget_driver(),
            Self::Net(net) => net.forget_driver(),
            Self::Console(console) => console.forget_driver(),
            Self::Block(_) | Self::Other(_) => {}
        }
    }

    /// Makes what is to outlive the machine safe.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn settle(&mut self) -> Result<(), HostFault> {
        match self {
            Self::Block(block) => block.settle(),
            _ => Ok(()),
        }
    }

    /// The machine ends: gives away what others still want of the device, until `gives_up`.
    pub(super) fn flush_last(&mut self, gives_up: &dyn Fn() -> bool) {
        self.finish(gives_up);
        if let Self::Vsock(vsock) = self {
            vsock.device.flush_last(gives_up);
        }
    }

    pub(super) fn console(console: Console) -> Self {
        Self::Console(Box::new(console))
    }

    pub(super) fn block(block: Block) -> Self {
        Self::Block(Box::new(block))
    }

    pub(super) fn net(net: Net) -> Self {
        Self::Net(Box::new(net))
    }

    pub(super) fn other(device: impl VirtioDevice + 'static) -> Self {
        Self::Other(Box::new(device))
    }
}

impl Deref for Held {
    type Target = dyn VirtioDevice;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Balloon(balloon) => &**balloon,
            Self::Block(block) => &**block,
            Self::Console(console) => &**console,
            Self::Net(net) => &**net,
            Self::Vsock(vsock) => &vsock.device,
            Self::Other(device) => &**device,
        }
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Balloon(balloon) => &mut **balloon,
            Self::Block(block) => &mut **block,
            Self::Console(console) => &mut **console,
            Self::Net(net) => &mut **net,
            Self::Vsock(vsock) => &mut vsock.device,
            Self::Other(device) => &mut **device,
        }
    }
}
