//! A device in its set: most are alike, console, disks, network cards and the balloon are spoken to.

use std::ops::{Deref, DerefMut};

use lightv_devices::virtio::balloon::Balloon;
use lightv_devices::virtio::block::Block;
use lightv_devices::virtio::console::Console;
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::net::Net;

#[derive(Debug)]
pub(super) enum Held {
    Balloon(Box<Balloon>),
    Block(Box<Block>),
    Console(Box<Console>),
    Net(Box<Net>),
    Other(Box<dyn VirtioDevice>),
}

impl Held {
    pub(super) fn balloon(balloon: Balloon) -> Self {
        Self::Balloon(Box::new(balloon))
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
            Self::Other(device) => &mut **device,
        }
    }
}
