//! The registers of a virtio-mmio device as memory that the guest reads: no read leaves the guest
//! (docs/adr/0017-register-pages.md).
//!
//! The page shows what [`MmioFront`](crate::virtio::mmio::MmioFront) would answer. Whoever changes a register shows it: the
//! front on a vCPU's thread, the interrupt and a live configuration on the loop's. Each reads the value anew while it holds the
//! page, so the last to show it shows the newest.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::virtio::device_status::bits;

/// Registers (virtio 1.2 §4.2.2). All are 32-bit and aligned; what else is written is counted and does nothing.
/// Where reads leave the guest, other reads give 0 and are counted; of a page they give what lies there.
pub mod reg {
    /// MagicValue, read.
    pub const MAGIC: u64 = 0x000;
    /// Version, read.
    pub const VERSION: u64 = 0x004;
    /// DeviceID, read.
    pub const DEVICE_ID: u64 = 0x008;
    /// VendorID, read.
    pub const VENDOR_ID: u64 = 0x00c;
    /// DeviceFeatures, read.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// DeviceFeaturesSel, write.
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    /// DriverFeatures, write.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// DriverFeaturesSel, write.
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    /// QueueSel, write.
    pub const QUEUE_SELECT: u64 = 0x030;
    /// QueueNumMax, read.
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    /// QueueNum, write.
    pub const QUEUE_SIZE: u64 = 0x038;
    /// QueueReady, read and write.
    pub const QUEUE_READY: u64 = 0x044;
    /// QueueNotify, write.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// InterruptStatus, read.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// InterruptACK, write.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Status, read and write.
    pub const STATUS: u64 = 0x070;
    /// QueueDescLow, write.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// QueueDescHigh, write.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// QueueDriverLow, write.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// QueueDriverHigh, write.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// QueueDeviceLow, write.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// QueueDeviceHigh, write.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// SHMSel, write.
    pub const SHM_SELECT: u64 = 0x0ac;
    /// SHMLenLow, read.
    pub const SHM_LENGTH_LOW: u64 = 0x0b0;
    /// SHMLenHigh, read.
    pub const SHM_LENGTH_HIGH: u64 = 0x0b4;
    /// SHMBaseLow, read.
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    /// SHMBaseHigh, read.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// ConfigGeneration, read.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// First byte of the device's configuration, which may be read in any width.
    pub const CONFIG: u64 = 0x100;
}

/// Memory that shows the registers of one device to the guest.
pub struct RegisterPage {
    shown: Mutex<Shown>,
}

/// What may be shown while nobody else shows anything.
pub(crate) struct Shown {
    /// Stores a value at an offset into the window: little-endian, in one access.
    store: Box<dyn FnMut(u64, u32) + Send>,
    /// Status as it was shown last.
    status: u32,
}

impl RegisterPage {
    /// A page that is written by `store`, which gets multiples of 4 below the length of a window, and values.
    #[must_use]
    pub fn new(store: impl FnMut(u64, u32) + Send + 'static) -> Self {
        Self {
            shown: Mutex::new(Shown {
                store: Box::new(store),
                status: 0,
            }),
        }
    }

    /// Shows something; `show` reads what it shows when it is called, and waits for nothing.
    pub(crate) fn show(&self, show: impl FnOnce(&mut Shown)) {
        show(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shown {
    /// Shows `value` at `offset`.
    pub(crate) fn set(&mut self, offset: u64, value: u32) {
        if offset == reg::STATUS {
            self.status = value;
        }
        (self.store)(offset, value);
    }

    /// Shows DEVICE_NEEDS_RESET beside what is shown of Status.
    pub(crate) fn add_needs_reset(&mut self) {
        self.set(
            reg::STATUS,
            self.status | u32::from(bits::DEVICE_NEEDS_RESET),
        );
    }

    /// Shows `bytes` as the device's configuration.
    pub(crate) fn set_config(&mut self, bytes: &[u8]) {
        for (offset, part) in (reg::CONFIG..).step_by(4).zip(bytes.chunks(4)) {
            let mut word = [0; 4];
            word.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            self.set(offset, u32::from_le_bytes(word));
        }
    }
}

impl fmt::Debug for RegisterPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterPage").finish_non_exhaustive()
    }
}
