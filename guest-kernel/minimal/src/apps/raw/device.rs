//! A virtio-mmio device driven by hand: no rule is kept unless the caller keeps it.

use alloc::alloc::{Layout, alloc_zeroed};
use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;

use guest_text::cmdline::MmioDevice;

use crate::mmio::Window;
use crate::time;

/// Registers (virtio 1.2 §4.2.2).
pub mod reg {
    pub const MAGIC: usize = 0x000;
    pub const VERSION: usize = 0x004;
    pub const DEVICE_ID: usize = 0x008;
    pub const DEVICE_FEATURES: usize = 0x010;
    pub const DEVICE_FEATURES_SELECT: usize = 0x014;
    pub const DRIVER_FEATURES: usize = 0x020;
    pub const DRIVER_FEATURES_SELECT: usize = 0x024;
    pub const QUEUE_SELECT: usize = 0x030;
    pub const QUEUE_SIZE_MAX: usize = 0x034;
    pub const QUEUE_SIZE: usize = 0x038;
    pub const QUEUE_READY: usize = 0x044;
    pub const QUEUE_NOTIFY: usize = 0x050;
    pub const INTERRUPT_ACK: usize = 0x064;
    pub const STATUS: usize = 0x070;
    /// Low half; the high half follows. The same for the two rings.
    pub const QUEUE_TABLE: usize = 0x080;
    pub const QUEUE_AVAILABLE: usize = 0x090;
    pub const QUEUE_USED: usize = 0x0a0;
    pub const SHM_SELECT: usize = 0x0ac;
    pub const SHM_LENGTH: usize = 0x0b0;
    pub const CONFIG: usize = 0x100;
}

/// Bits of Status (virtio 1.2 §2.1).
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
    /// Of a device at work.
    pub const WORKING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}

/// Feature bits of all devices (virtio 1.2 §6).
pub mod feature {
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Another buffer follows.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

pub const PAGE_BYTES: usize = 4096;
const MAGIC_VALUE: u32 = 0x7472_6976;
const QUEUES_MAX: u32 = 16;
/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 16;
/// Where the rings of a queue lie in its memory: a page each.
const AVAILABLE_AT: usize = PAGE_BYTES;
const USED_AT: usize = 2 * PAGE_BYTES;
const RING_PAGES: usize = 3;
/// Only what hangs is waited for so long.
const PATIENCE_NS: u64 = 10_000_000_000;

/// What went otherwise than it should.
#[derive(Debug)]
pub struct Why {
    what: &'static str,
    found: u64,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#x}", self.what, self.found)
    }
}

pub type Outcome = Result<(), Why>;

/// That `what` does not hold, with what was found.
pub fn why(what: &'static str, found: impl Into<u64>) -> Why {
    let found = found.into();
    Why { what, found }
}

/// An error with `what` unless `holds`.
pub fn check(holds: bool, what: &'static str, found: impl Into<u64>) -> Outcome {
    if holds { Ok(()) } else { Err(why(what, found)) }
}

/// Zeroed pages for good, which devices read and write: no Rust object.
pub fn pages(count: usize) -> Window {
    let bytes = count * PAGE_BYTES;
    let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a few pages");
    // SAFETY: the size is not 0.
    let start = unsafe { alloc_zeroed(layout) };
    assert!(!start.is_null(), "no RAM for {count} pages");
    // SAFETY: the heap has given them for good, and they are used by this window alone.
    unsafe { Window::new(start as usize, bytes) }
}

/// A descriptor (virtio 1.2 §2.7.5).
#[derive(Clone, Copy, Default)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub const fn new(address: u64, len: u32, flags: u16, next: u16) -> Self {
        Self {
            address,
            len,
            flags,
            next,
        }
    }

    /// Its second word.
    pub fn word(self) -> u64 {
        u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48
    }
}

/// A queue in memory.
pub struct Ring {
    memory: Window,
    /// Entries, as the device allows at most.
    pub size: u16,
    /// The available index.
    pub offered: u16,
    /// Used entries that were looked at.
    pub taken: u16,
}

impl Ring {
    fn new(size: u16) -> Self {
        Self {
            memory: pages(RING_PAGES),
            size,
            offered: 0,
            taken: 0,
        }
    }

    pub fn table_at(&self) -> u64 {
        self.memory.address(0)
    }

    pub fn available_at(&self) -> u64 {
        self.memory.address(AVAILABLE_AT)
    }

    pub fn used_at(&self) -> u64 {
        self.memory.address(USED_AT)
    }

    fn clear(&mut self) {
        (self.offered, self.taken) = (0, 0);
        for at in (0..RING_PAGES * PAGE_BYTES).step_by(8) {
            self.memory.write(at, 0_u64);
        }
    }

    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        put_descriptor(self.memory, usize::from(index), descriptor);
    }

    /// Offers the chain that begins at `head`, whatever that is.
    pub fn offer(&mut self, head: u16) {
        let slot = usize::from(self.offered % self.size);
        self.memory.write(AVAILABLE_AT + 4 + 2 * slot, head);
        self.offered = self.offered.wrapping_add(1);
        self.set_available(self.offered);
    }

    /// Writes the available index.
    pub fn set_available(&self, index: u16) {
        self.memory.write(AVAILABLE_AT + 2, index);
    }

    /// Writes `used_event`, the index at which the driver wants an interrupt.
    pub fn set_used_event(&self, index: u16) {
        let at = AVAILABLE_AT + 4 + 2 * usize::from(self.size);
        self.memory.write(at, index);
    }

    pub fn used_index(&self) -> u16 {
        self.memory.read(USED_AT + 2)
    }

    /// The next used entry: chain and bytes.
    pub fn take(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.taken {
            return None;
        }
        let at = USED_AT + 4 + 8 * usize::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        Some((self.memory.read(at), self.memory.read(at + 4)))
    }
}

/// Writes descriptor `index` of the table in `memory`.
pub fn put_descriptor(memory: Window, index: usize, descriptor: Descriptor) {
    let at = index * DESCRIPTOR_BYTES;
    memory.write(at, descriptor.address);
    memory.write(at + 8, descriptor.word());
}

/// Where a queue is said to be.
#[derive(Clone, Copy)]
pub struct Places {
    pub table: u64,
    pub available: u64,
    pub used: u64,
}

/// The device.
pub struct Raw {
    pub base: usize,
    registers: Window,
    /// Its kind (virtio 1.2 §5).
    pub id: u32,
    pub rings: Vec<Ring>,
    /// Features that are accepted besides VERSION_1.
    pub wanted: u64,
    /// Those that are wanted where nothing else is said.
    pub usual: u64,
}

impl Raw {
    /// Takes the device at `place` from whatever drove it, if there is one.
    pub fn take(place: MmioDevice) -> Option<Self> {
        // SAFETY: the command line says that a device's registers are there; no driver touches them any more.
        let registers = unsafe { Window::new(place.base, place.len) };
        if registers.read::<u32>(reg::MAGIC) != MAGIC_VALUE {
            return None;
        }
        let mut raw = Self {
            base: place.base,
            registers,
            id: registers.read(reg::DEVICE_ID),
            rings: Vec::new(),
            wanted: 0,
            usual: 0,
        };
        raw.write(reg::STATUS, 0);
        for queue in 0..QUEUES_MAX {
            raw.write(reg::QUEUE_SELECT, queue);
            match u16::try_from(raw.read(reg::QUEUE_SIZE_MAX)) {
                Ok(size @ 1..) => raw.rings.push(Ring::new(size)),
                _ => break,
            }
        }
        let ring_features = feature::INDIRECT | feature::EVENT_IDX | feature::VERSION_1;
        raw.usual = raw.offered_features() & !ring_features;
        raw.wanted = raw.usual;
        Some(raw)
    }

    pub fn read(&self, offset: usize) -> u32 {
        self.registers.read(offset)
    }

    pub fn write(&self, offset: usize, value: u32) {
        self.registers.write(offset, value);
    }

    /// Number of queues, which are few.
    pub fn queues(&self) -> u16 {
        u16::try_from(self.rings.len()).unwrap_or(u16::MAX)
    }

    pub fn ring(&mut self, queue: u16) -> &mut Ring {
        &mut self.rings[usize::from(queue)]
    }

    pub fn offered_features(&self) -> u64 {
        let half = |select| {
            self.write(reg::DEVICE_FEATURES_SELECT, select);
            u64::from(self.read(reg::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Resets it, and forgets what the rings hold.
    pub fn reset(&mut self) -> Outcome {
        self.write(reg::STATUS, 0);
        let found = self.read(reg::STATUS);
        self.rings.iter_mut().for_each(Ring::clear);
        self.wanted = self.usual;
        check(found == 0, "status after a reset", found)
    }

    pub fn accept(&self, features: u64) {
        let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
        for (select, half) in [(0, [a, b, c, d]), (1, [e, f, g, h])] {
            self.write(reg::DRIVER_FEATURES_SELECT, select);
            self.write(reg::DRIVER_FEATURES, u32::from_le_bytes(half));
        }
    }

    /// From a reset to FEATURES_OK.
    pub fn begin(&self) -> Outcome {
        self.write(reg::STATUS, status::ACKNOWLEDGE);
        self.write(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        self.accept(self.wanted | feature::VERSION_1);
        let wanted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(reg::STATUS, wanted);
        let found = self.read(reg::STATUS);
        check(found == wanted, "status after FEATURES_OK", found)
    }

    /// Where queue `queue` really is.
    pub fn places(&self, queue: u16) -> Places {
        let ring = &self.rings[usize::from(queue)];
        Places {
            table: ring.table_at(),
            available: ring.available_at(),
            used: ring.used_at(),
        }
    }

    /// Says where queue `queue` is, of `size` entries, and that it is ready.
    pub fn set_up(&self, queue: impl Into<u32>, size: u32, places: Places) {
        self.write(reg::QUEUE_SELECT, queue.into());
        self.write(reg::QUEUE_SIZE, size);
        for (at, address) in [
            (reg::QUEUE_TABLE, places.table),
            (reg::QUEUE_AVAILABLE, places.available),
            (reg::QUEUE_USED, places.used),
        ] {
            let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
            self.write(at, u32::from_le_bytes([a, b, c, d]));
            self.write(at + 4, u32::from_le_bytes([e, f, g, h]));
        }
        self.write(reg::QUEUE_READY, 1);
    }

    /// Sets all queues up but those that `is_left_out`.
    pub fn set_up_all(&self, is_left_out: impl Fn(u16) -> bool) {
        for queue in (0..self.queues()).filter(|queue| !is_left_out(*queue)) {
            let size = self.rings[usize::from(queue)].size;
            self.set_up(queue, size.into(), self.places(queue));
        }
    }

    /// DRIVER_OK.
    pub fn go(&self) {
        self.write(reg::STATUS, status::WORKING);
    }

    /// From a reset to work, as a driver does it.
    pub fn start(&self) -> Outcome {
        self.begin()?;
        self.set_up_all(|_| false);
        self.go();
        let found = self.read(reg::STATUS);
        check(found == status::WORKING, "status of a start", found)
    }

    pub fn kick(&self, queue: u16) {
        self.write(reg::QUEUE_NOTIFY, queue.into());
    }

    pub fn needs_reset(&self) -> bool {
        self.read(reg::STATUS) & status::NEEDS_RESET != 0
    }

    /// Waits until `is_there`; false when that does not come.
    pub fn wait(&self, mut is_there: impl FnMut(&Self) -> bool) -> bool {
        let end = time::now_ns() + PATIENCE_NS;
        while !is_there(self) {
            if time::now_ns() >= end {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    }

    /// Waits for the next used entry of `queue`.
    pub fn wait_used(&mut self, queue: u16) -> Result<(u32, u32), Why> {
        let place = usize::from(queue);
        self.wait(|raw| raw.rings[place].used_index() != raw.rings[place].taken);
        let taken = self.rings[place].take();
        taken.ok_or_else(|| why("no buffer comes back, status", self.read(reg::STATUS)))
    }

    /// Waits until the device has given up on its driver.
    pub fn wait_needs_reset(&self) -> Outcome {
        let is_there = self.wait(Self::needs_reset);
        check(is_there, "not DEVICE_NEEDS_RESET", self.read(reg::STATUS))
    }

    /// Reads `width` bytes (1, 2, 4 or 8) at `offset`, aligned or not.
    pub fn peek(&self, offset: usize, width: usize) -> u64 {
        peek(self.base + offset, width)
    }

    /// Writes `width` bytes (1, 2, 4 or 8) at `offset`, aligned or not.
    pub fn poke(&self, offset: usize, width: usize, value: u64) {
        poke(self.base + offset, width, value);
    }
}

/// Reads `width` bytes (1, 2, 4 or 8) of a device at `address`, aligned or not.
pub fn peek(address: usize, width: usize) -> u64 {
    let value: u64;
    match width {
        // SAFETY: one load of a register of a device, or of nothing: no Rust object.
        1 => unsafe {
            asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) address, options(nostack));
        },
        // SAFETY: the same.
        2 => unsafe {
            asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) address, options(nostack));
        },
        // SAFETY: the same.
        4 => unsafe {
            asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) address, options(nostack));
        },
        // SAFETY: the same.
        _ => unsafe {
            asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) address, options(nostack));
        },
    }
    value
}

/// Writes `width` bytes (1, 2, 4 or 8) of a device at `address`, aligned or not.
pub fn poke(address: usize, width: usize, value: u64) {
    let [byte, ..] = value.to_le_bytes();
    match width {
        // SAFETY: one store to a register of a device, or to nothing: no Rust object.
        1 => unsafe {
            asm!("mov byte ptr [{0}], {1}", in(reg) address, in(reg_byte) byte, options(nostack));
        },
        // SAFETY: the same.
        2 => unsafe {
            asm!("mov word ptr [{0}], {1:x}", in(reg) address, in(reg) value, options(nostack));
        },
        // SAFETY: the same.
        4 => unsafe {
            asm!("mov dword ptr [{0}], {1:e}", in(reg) address, in(reg) value, options(nostack));
        },
        // SAFETY: the same.
        _ => unsafe {
            asm!("mov qword ptr [{0}], {1}", in(reg) address, in(reg) value, options(nostack));
        },
    }
}
