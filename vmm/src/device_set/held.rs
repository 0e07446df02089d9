//! A device in its set: most are alike, the console is spoken to.

use std::ops::{Deref, DerefMut};

use lightv_devices::virtio::console::Console;
use lightv_devices::virtio::device::VirtioDevice;

#[derive(Debug)]
pub(super) enum Held {
    Console(Box<Console>),
    Other(Box<dyn VirtioDevice>),
}

impl Held {
    pub(super) fn console(console: Console) -> Self {
        Self::Console(Box::new(console))
    }

    pub(super) fn other(device: impl VirtioDevice + 'static) -> Self {
        Self::Other(Box::new(device))
    }
}

impl Deref for Held {
    type Target = dyn VirtioDevice;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Console(console) => &**console,
            Self::Other(device) => &**device,
        }
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Console(console) => &mut **console,
            Self::Other(device) => &mut **device,
        }
    }
}
