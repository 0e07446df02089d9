//! The register front of virtio-mmio, version 2 (virtio 1.2 §4.2.2).
//!
//! Touched by vCPU exits only. It owns nothing of the device: queues go to it through a [`DeviceLink`] when the driver
//! is ready, and come back before a reset returns. The split of the saved form: registers and queues are here
//! ([`TransportStateV1`]), queues with the positions that [`VirtioDevice::deactivate`] returned; what is particular
//! to a device is in its [`DeviceState`](crate::state::DeviceState).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use virtio_queue::Queue;

use crate::counters::Counters;
use crate::interrupt::Interrupt;
use crate::memory::GuestMem;
use crate::register_page::RegisterPage;
pub use crate::register_page::reg;
use crate::virtio::device::{DeviceKind, VirtioDevice};
use crate::virtio::device_status::{DeviceStatus, STEPS, bits};
use crate::virtio::feature;
use crate::virtio::live_config::LiveConfig;
use crate::virtio::queue_state::QueueStateV1;
use crate::virtio::transport_state::Expected;
pub use crate::virtio::transport_state::{RestoreTransportError, TransportStateV1};

/// Bytes of a device's window of registers and configuration.
pub const WINDOW_BYTES: u64 = 0x1000;

/// "virt".
pub const MAGIC_VALUE: u32 = 0x7472_6976;
/// The version without legacy.
pub const VERSION: u32 = 2;
/// "LGTV": drivers take any value; a guest can tell by it that it runs on LightV.
pub const VENDOR_ID: u32 = u32::from_le_bytes(*b"LGTV");

/// What the front has to know of its device.
#[derive(Debug, Clone)]
pub struct DeviceProfile {
    /// What it is.
    pub kind: DeviceKind,
    /// Feature bits offered.
    pub features: u64,
    /// The largest size of each queue.
    pub queue_sizes: Vec<u16>,
    /// Device-specific configuration.
    pub config: Vec<u8>,
    /// In place of `config`, if it changes while the driver works.
    pub live_config: Option<Arc<LiveConfig>>,
    /// Counters, shared with the device.
    pub counters: Arc<Counters>,
}

impl DeviceProfile {
    /// The profile of `device`.
    #[must_use]
    pub fn of(device: &dyn VirtioDevice) -> Self {
        Self {
            kind: device.kind(),
            features: device.features(),
            queue_sizes: device.queue_sizes().to_vec(),
            config: device.config().to_vec(),
            live_config: device.live_config().cloned(),
            counters: Arc::clone(device.counters()),
        }
    }
}

/// The device did not start; whoever owns it knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The device did not start")]
pub struct ActivateRefused;

/// The way from the front to its device, which another thread owns.
pub trait DeviceLink: Send {
    /// Starts the device on `queues` and returns when it has started.
    ///
    /// # Errors
    /// The device stays idle.
    fn activate(&self, queues: Vec<Queue>, acked_features: u64) -> Result<(), ActivateRefused>;

    /// Stops the device and returns when it no longer touches guest memory: a driver does not poll for the end of a
    /// reset. Called for an active device only.
    fn reset(&self);

    /// The driver has notified queue `queue` by an exit. Need not wait.
    fn notify(&self, queue: u32);
}

/// What a front is made of.
pub struct FrontParts {
    /// The device's profile.
    pub profile: DeviceProfile,
    /// Guest RAM, to check rings against.
    pub mem: Arc<GuestMem>,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// The way to the device.
    pub link: Box<dyn DeviceLink>,
    /// What the guest reads in place of asking the front, if anything.
    pub page: Option<Arc<RegisterPage>>,
}

/// Registers that can be read, all but Status.
const READABLE: [u64; 13] = [
    reg::MAGIC,
    reg::VERSION,
    reg::DEVICE_ID,
    reg::VENDOR_ID,
    reg::DEVICE_FEATURES,
    reg::QUEUE_SIZE_MAX,
    reg::QUEUE_READY,
    reg::INTERRUPT_STATUS,
    reg::SHM_LENGTH_LOW,
    reg::SHM_LENGTH_HIGH,
    reg::SHM_BASE_LOW,
    reg::SHM_BASE_HIGH,
    reg::CONFIG_GENERATION,
];

/// What an active device needs to go on after a restore: for its [`Activation`](crate::virtio::device::Activation).
#[derive(Debug)]
pub struct ResumePoint {
    /// The queues, checked.
    pub queues: Vec<Queue>,
    /// Feature bits that the driver accepted.
    pub acked_features: u64,
}

/// The register front of one device.
pub struct MmioFront {
    parts: FrontParts,
    status: DeviceStatus,
    /// The device has been started and has not been reset since.
    is_active: bool,
    device_features_select: u32,
    driver_features_select: u32,
    acked_features: u64,
    queue_select: u32,
    /// As the driver set them up; the positions stay 0.
    queues: Vec<QueueStateV1>,
    /// Of a configuration that is not live: that counts for itself.
    config_generation: u32,
}

/// One half of a 64-bit address.
#[derive(Clone, Copy)]
enum Half {
    Low,
    High,
}

impl MmioFront {
    /// The front of a device that no driver has touched.
    #[must_use]
    pub fn new(parts: FrontParts) -> Self {
        let queues = unused_queues(&parts.profile);
        let front = Self {
            parts,
            status: DeviceStatus::default(),
            is_active: false,
            device_features_select: 0,
            driver_features_select: 0,
            acked_features: 0,
            queue_select: 0,
            queues,
            config_generation: 0,
        };
        front.show_always();
        front
    }

    /// Has all of the registers shown from now on.
    fn show_always(&self) {
        let Some(page) = &self.parts.page else { return };
        self.parts.interrupt.show_on(page);
        if let Some(live) = &self.parts.profile.live_config {
            live.show_on(page);
        }
        self.show();
    }

    /// Shows the registers as they are.
    fn show(&self) {
        let Some(page) = &self.parts.page else { return };
        page.show(|shown| {
            for offset in READABLE {
                shown.set(offset, self.read_register(offset).unwrap_or(0));
            }
            shown.set(reg::STATUS, u32::from(self.status()));
            shown.set_config(&self.config());
        });
    }

    fn config(&self) -> Cow<'_, [u8]> {
        match &self.parts.profile.live_config {
            Some(live) => live.bytes().into(),
            None => self.parts.profile.config.as_slice().into(),
        }
    }

    /// Whether the driver has started the device.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.is_active
    }

    /// What the driver has accepted so far.
    #[must_use]
    pub const fn acked_features(&self) -> u64 {
        self.acked_features
    }

    /// Status as the driver reads it.
    #[must_use]
    pub fn status(&self) -> u8 {
        let needs_reset = if self.parts.interrupt.needs_reset() {
            bits::DEVICE_NEEDS_RESET
        } else {
            0
        };
        self.status.bits() | needs_reset
    }

    /// Serves a read of `data.len()` bytes at `offset` into the window. Any offset and width is safe.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(start) = offset.checked_sub(reg::CONFIG) {
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            let config = self.config();
            data.iter_mut()
                .zip(config.get(start..).unwrap_or_default())
                .for_each(|(target, byte)| *target = *byte);
            return;
        }
        match (<&mut [u8; 4]>::try_from(data), self.read_register(offset)) {
            (Ok(target), Some(value)) => *target = value.to_le_bytes(),
            _ => self.ignore(),
        }
    }

    /// Serves a write of `data` at `offset` into the window. Any offset and width is safe.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.take_write(offset, data);
        self.show();
    }

    fn take_write(&mut self, offset: u64, data: &[u8]) {
        if let Some(start) = offset.checked_sub(reg::CONFIG) {
            let live = self.parts.profile.live_config.as_ref();
            if !live.is_some_and(|live| live.write(start, data)) {
                self.ignore();
            }
            return;
        }
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return self.ignore();
        };
        if !self.write_register(offset, u32::from_le_bytes(bytes)) {
            self.ignore();
        }
    }

    fn ignore(&self) {
        Counters::add_one(&self.parts.profile.counters.ignored_accesses);
    }

    /// `None` for offsets that cannot be read.
    fn read_register(&self, offset: u64) -> Option<u32> {
        let queue = self.selected_queue();
        Some(match offset {
            reg::MAGIC => MAGIC_VALUE,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.parts.profile.kind.id(),
            reg::VENDOR_ID => VENDOR_ID,
            reg::DEVICE_FEATURES => half(self.parts.profile.features, self.device_features_select),
            reg::QUEUE_SIZE_MAX => self.selected_size_max().map_or(0, u32::from),
            reg::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.is_ready)),
            reg::INTERRUPT_STATUS => self.parts.interrupt.status(),
            reg::STATUS => u32::from(self.status()),
            // No shared memory (virtio 1.2 §4.2.2.1): all ones.
            reg::SHM_LENGTH_LOW | reg::SHM_LENGTH_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => {
                u32::MAX
            }
            reg::CONFIG_GENERATION => self.config_generation(),
            _ => return None,
        })
    }

    fn config_generation(&self) -> u32 {
        let live = self.parts.profile.live_config.as_ref();
        live.map_or(self.config_generation, |live| live.generation())
    }

    /// False for a write without effect.
    fn write_register(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            reg::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            reg::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            reg::DRIVER_FEATURES => return self.write_driver_features(value),
            reg::QUEUE_SELECT => self.queue_select = value,
            reg::QUEUE_NOTIFY => return self.notify(value),
            reg::INTERRUPT_ACK => self.parts.interrupt.acknowledge(value),
            reg::STATUS => return self.write_status(value),
            reg::SHM_SELECT => {}
            reg::QUEUE_READY => return self.write_queue_ready(value),
            _ => return self.write_queue_register(offset, value),
        }
        true
    }

    fn selected_index(&self) -> Option<usize> {
        usize::try_from(self.queue_select)
            .ok()
            .filter(|&index| index < self.queues.len())
    }

    fn selected_queue(&self) -> Option<&QueueStateV1> {
        self.queues.get(self.selected_index()?)
    }

    fn selected_size_max(&self) -> Option<u16> {
        self.parts
            .profile
            .queue_sizes
            .get(self.selected_index()?)
            .copied()
    }

    fn write_driver_features(&mut self, value: u32) -> bool {
        let (mask, accepted) = match self.driver_features_select {
            0 => (u64::from(u32::MAX), u64::from(value)),
            1 => (u64::from(u32::MAX) << 32, u64::from(value) << 32),
            _ => return false,
        };
        if !self.status.allows_features() {
            return false;
        }
        self.acked_features = (self.acked_features & !mask) | accepted;
        true
    }

    /// QueueReady: 0 is accepted as long as queues may be set up. Addresses are checked at DRIVER_OK.
    fn write_queue_ready(&mut self, value: u32) -> bool {
        let index = self
            .selected_index()
            .filter(|_| self.status.allows_queues());
        let Some(queue) = index.and_then(|index| self.queues.get_mut(index)) else {
            return false;
        };
        queue.is_ready = value == 1;
        value <= 1
    }

    /// A driver must not change a queue that is ready (virtio 1.2 §4.2.2.2).
    fn write_queue_register(&mut self, offset: u64, value: u32) -> bool {
        let size_max = self.selected_size_max().unwrap_or(0);
        let index = self
            .selected_index()
            .filter(|_| self.status.allows_queues());
        let queue = index.and_then(|index| self.queues.get_mut(index));
        let Some(queue) = queue.filter(|queue| !queue.is_ready) else {
            return false;
        };
        match offset {
            reg::QUEUE_SIZE => {
                let size = u16::try_from(value).unwrap_or(0);
                if !size.is_power_of_two() || size > size_max {
                    return false;
                }
                queue.size = size;
            }
            reg::QUEUE_DESC_LOW => set_half(&mut queue.descriptor_table, Half::Low, value),
            reg::QUEUE_DESC_HIGH => set_half(&mut queue.descriptor_table, Half::High, value),
            reg::QUEUE_DRIVER_LOW => set_half(&mut queue.available_ring, Half::Low, value),
            reg::QUEUE_DRIVER_HIGH => set_half(&mut queue.available_ring, Half::High, value),
            reg::QUEUE_DEVICE_LOW => set_half(&mut queue.used_ring, Half::Low, value),
            reg::QUEUE_DEVICE_HIGH => set_half(&mut queue.used_ring, Half::High, value),
            _ => return false,
        }
        true
    }

    /// A notification before DRIVER_OK, or of a queue that is not used, is the driver's mistake.
    fn notify(&self, queue: u32) -> bool {
        let index = usize::try_from(queue).ok();
        let state = index.and_then(|index| self.queues.get(index));
        let is_in_use = self.is_active && state.is_some_and(|state| state.is_ready);
        if is_in_use {
            self.parts.link.notify(queue);
        }
        is_in_use
    }

    /// Writing 0 resets; anything else sets bits, in the order of [`STEPS`]. A driver cannot clear a bit, nor set one
    /// before its turn, nor set DEVICE_NEEDS_RESET, which it may write back as it has read it.
    fn write_status(&mut self, value: u32) -> bool {
        if value == 0 {
            self.reset();
            return true;
        }
        let [written, 0, 0, 0] = value.to_le_bytes() else {
            return false;
        };
        let wanted = written & !bits::DEVICE_NEEDS_RESET;
        if self.status.bits() & !wanted != 0 {
            return false;
        }
        let mut is_legal = true;
        for step in STEPS.into_iter().chain([bits::FAILED]) {
            if wanted & step != 0 && !self.status.has(step) {
                is_legal &= self.status.allows(step) && self.take_step(step);
            }
        }
        is_legal
    }

    /// False when FEATURES_OK is refused: it then reads back as 0 (virtio 1.2 §2.2.2).
    fn take_step(&mut self, step: u8) -> bool {
        if step == bits::FEATURES_OK && !self.are_features_good() {
            return false;
        }
        self.status.set(step);
        if step == bits::DRIVER_OK {
            self.activate();
        }
        true
    }

    const fn are_features_good(&self) -> bool {
        self.acked_features & !self.parts.profile.features == 0
            && self.acked_features & feature::VERSION_1 != 0
    }

    fn activate(&mut self) {
        let counters = Arc::clone(&self.parts.profile.counters);
        Counters::add_one(&counters.activations);
        let size_max = self.parts.profile.queue_sizes.iter();
        let queues: Result<Vec<Queue>, _> = self
            .queues
            .iter()
            .zip(size_max)
            .map(|(state, &size_max)| state.to_queue(size_max, &self.parts.mem))
            .collect();
        let Ok(queues) = queues else {
            counters.guest_fault();
            return self.parts.interrupt.raise_needs_reset();
        };
        match self.parts.link.activate(queues, self.acked_features) {
            Ok(()) => self.is_active = true,
            Err(ActivateRefused) => self.parts.interrupt.raise_needs_reset(),
        }
    }

    /// Everything becomes as it was before the driver came (virtio 1.2 §4.2.2.1).
    fn reset(&mut self) {
        if self.is_active {
            self.parts.link.reset();
        }
        Counters::add_one(&self.parts.profile.counters.resets);
        self.parts.interrupt.set(0, false);
        self.status = DeviceStatus::default();
        self.is_active = false;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.acked_features = 0;
        self.queue_select = 0;
        self.queues = unused_queues(&self.parts.profile);
    }

    /// Shows the driver a new configuration, and says so if it is at work.
    pub fn set_config(&mut self, config: &[u8]) {
        if self.parts.profile.config == config {
            return;
        }
        self.parts.profile.config = config.to_vec();
        self.announce_change();
    }

    /// Says that the configuration has changed, or what it stands for, to a driver that is at work.
    pub fn announce_change(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        self.show();
        if self.status.has(bits::DRIVER_OK) {
            self.parts.interrupt.signal_config();
        }
    }

    /// What a snapshot keeps: registers, and the queues as they are in `stopped`, which
    /// [`VirtioDevice::deactivate`] returned. For a device that was not active `stopped` is empty.
    #[must_use]
    pub fn save(&self, stopped: &[Queue]) -> TransportStateV1 {
        let mut queues = self.queues.clone();
        for (state, queue) in queues
            .iter_mut()
            .zip(stopped)
            .filter(|(state, _)| state.is_ready)
        {
            *state = QueueStateV1::from(queue);
        }
        TransportStateV1 {
            device_id: self.parts.profile.kind.id(),
            status: self.status(),
            is_active: self.is_active,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            acked_features: self.acked_features,
            queue_select: self.queue_select,
            interrupt_status: self.parts.interrupt.status(),
            config_generation: self.config_generation(),
            queues,
        }
    }

    /// The front as it was saved. When the device was active, also what it needs to go on: the caller activates it
    /// directly, not through the link, and then raises the interrupt again if it is pending.
    ///
    /// # Errors
    /// [`RestoreTransportError`]: nothing of a saved state is trusted.
    pub fn restore(
        parts: FrontParts,
        state: &TransportStateV1,
    ) -> Result<(Self, Option<ResumePoint>), RestoreTransportError> {
        let checked = state.check(&Expected {
            device_id: parts.profile.kind.id(),
            features: parts.profile.features,
            queue_sizes: &parts.profile.queue_sizes,
            mem: &parts.mem,
        })?;
        parts
            .interrupt
            .set(state.interrupt_status, checked.needs_reset);
        let without_positions = |state: &QueueStateV1| QueueStateV1 {
            next_available: 0,
            next_used: 0,
            ..*state
        };
        let front = Self {
            parts,
            status: checked.status,
            is_active: state.is_active,
            device_features_select: state.device_features_select,
            driver_features_select: state.driver_features_select,
            acked_features: state.acked_features,
            queue_select: state.queue_select,
            queues: state.queues.iter().map(without_positions).collect(),
            config_generation: state.config_generation,
        };
        if let Some(live) = &front.parts.profile.live_config {
            live.continue_from(state.config_generation);
        }
        front.show_always();
        let acked_features = state.acked_features;
        Ok((
            front,
            checked.queues.map(|queues| ResumePoint {
                queues,
                acked_features,
            }),
        ))
    }
}

fn unused_queues(profile: &DeviceProfile) -> Vec<QueueStateV1> {
    profile
        .queue_sizes
        .iter()
        .map(|&size_max| QueueStateV1::unused(size_max))
        .collect()
}

/// Bits 0–31 or 32–63 of `features`; there are no others.
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_half(address: &mut u64, half: Half, value: u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    let [i, j, k, l] = value.to_le_bytes();
    *address = u64::from_le_bytes(match half {
        Half::Low => [i, j, k, l, e, f, g, h],
        Half::High => [a, b, c, d, i, j, k, l],
    });
}

impl fmt::Debug for FrontParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontParts")
            .field("profile", &self.profile)
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MmioFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioFront")
            .field("kind", &self.parts.profile.kind)
            .field("status", &self.status())
            .field("is_active", &self.is_active)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
