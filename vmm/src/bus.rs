//! Where an access of a vCPU goes: ports and device memory, by address.
//!
//! Runs on vCPU threads. Nothing here waits for the control loop, except a driver's reset and DRIVER_OK, for which
//! the virtio specification wants the vCPU to wait.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use lightv_api::event::Happening;
use lightv_devices::control::{Doorbell, OutputStream, copy_print_buffer};
use lightv_devices::histogram::Histogram;
use lightv_devices::i8042::{I8042, I8042Event};
use lightv_devices::memory::GuestMem;
use lightv_devices::pvpanic;
use lightv_devices::serial::Serial;
use lightv_devices::virtio::mmio::MmioFront;

use crate::arch::host::{acpi, layout};
use crate::boot_timer;
use crate::event::StopReason;
use crate::exits::{ExitKind, ExitPlaces};
use crate::feed;
use crate::lock::lock;
use crate::output::GuestOutput;
use crate::stamps::Stamps;
use crate::sys::file::StandardStream;

/// What an access means for the vCPU that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: go on.
    None,
    /// The guest is ready and a save is wanted here: park.
    Park,
    /// The wall clock of the control page is to be refreshed.
    RefreshClock,
    /// The machine ends.
    Stop(StopReason),
}

/// How often the vCPUs left the guest, how long that was served, and accesses that went nowhere.
#[derive(Debug, Default)]
pub struct BusCounters {
    exits: [AtomicU64; ExitKind::ALL.len()],
    /// Of the first four kinds.
    exit_times: [Histogram; 4],
    /// Accesses to device memory where there is no device.
    pub unknown_mmio: AtomicU64,
    /// Accesses to ports where there is no device.
    pub unknown_ports: AtomicU64,
    /// Doorbells that are none.
    pub unknown_doorbells: AtomicU64,
    /// `PRINT` buffers outside RAM.
    pub bad_prints: AtomicU64,
}

/// Devices behind ports.
#[derive(Debug)]
pub struct PortDevices {
    /// COM1.
    pub serial: Serial,
    /// The keyboard controller.
    pub i8042: I8042,
}

/// All that a vCPU can reach.
#[derive(Debug)]
pub struct Bus {
    fronts: Vec<Arc<Mutex<MmioFront>>>,
    serial: Mutex<Serial>,
    i8042: Mutex<I8042>,
    mem: Arc<GuestMem>,
    output: GuestOutput,
    print_buffer: Mutex<Vec<u8>>,
    /// What the event device has to tell: bits of `acpi::event`.
    events: AtomicU8,
    park_at_ready: AtomicBool,
    /// `READY` was rung and told of.
    was_ready: AtomicBool,
    stamps: Arc<Stamps>,
    counters: BusCounters,
    /// Of a run that is profiled.
    exit_places: Option<ExitPlaces>,
}

impl BusCounters {
    /// Counts an exit that began to be served at `began`.
    pub fn note_exit(&self, kind: ExitKind, began: Instant) {
        let place = kind as usize;
        if let Some(count) = self.exits.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(times) = self.exit_times.get(place) {
            times.record_since(began);
        }
    }

    /// How many exits of this kind there were.
    #[must_use]
    pub fn exits(&self, kind: ExitKind) -> u64 {
        let count = self.exits.get(kind as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How long exits of this kind were served, where that is measured.
    #[must_use]
    pub fn exit_times(&self, kind: ExitKind) -> Option<&Histogram> {
        self.exit_times.get(kind as usize)
    }
}

impl Bus {
    /// A bus with these register fronts, in the order of their pages.
    #[must_use]
    pub fn new(
        fronts: Vec<Arc<Mutex<MmioFront>>>,
        ports: PortDevices,
        output: GuestOutput,
        mem: Arc<GuestMem>,
        stamps: Arc<Stamps>,
    ) -> Self {
        Self {
            fronts,
            serial: Mutex::new(ports.serial),
            i8042: Mutex::new(ports.i8042),
            mem,
            output,
            print_buffer: Mutex::new(Vec::new()),
            events: AtomicU8::new(0),
            park_at_ready: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
            exit_places: stamps.is_profile().then(ExitPlaces::default),
            stamps,
            counters: BusCounters::default(),
        }
    }

    /// Whether a vCPU that rings `READY` parks for a save.
    pub fn set_park_at_ready(&self, park: bool) {
        self.park_at_ready.store(park, Ordering::SeqCst);
    }

    /// The serial port, for save and restore.
    pub fn serial(&self) -> MutexGuard<'_, Serial> {
        lock(&self.serial)
    }

    /// The keyboard controller, to press keys.
    pub fn i8042(&self) -> MutexGuard<'_, I8042> {
        lock(&self.i8042)
    }

    /// Adds `event`, of [`acpi::event`], to what the event device tells when it is asked next; its interrupt is raised
    /// after that.
    pub fn add_event(&self, event: u8) {
        self.events.fetch_or(event, Ordering::SeqCst);
    }

    /// The guest's output.
    #[must_use]
    pub const fn output(&self) -> &GuestOutput {
        &self.output
    }

    /// Guest RAM.
    #[must_use]
    pub fn mem(&self) -> &GuestMem {
        &self.mem
    }

    /// What is counted of the vCPUs' exits and accesses.
    #[must_use]
    pub const fn counters(&self) -> &BusCounters {
        &self.counters
    }

    /// Where vCPUs leave the guest, if that is counted.
    #[must_use]
    pub const fn exit_places(&self) -> Option<&ExitPlaces> {
        self.exit_places.as_ref()
    }

    /// A read of device memory. Where there is nothing, all bits are ones, as on a PC.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.front(address) {
            Some((front, offset)) => lock(front).read(offset, data),
            None => {
                self.counters.unknown_mmio.fetch_add(1, Ordering::Relaxed);
                data.fill(0xff);
            }
        }
    }

    /// A write to device memory.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Effect {
        let control = layout::CONTROL_START..layout::CONTROL_START + layout::CONTROL_BYTES;
        if boot_timer::take(address, data) {
            return Effect::None;
        }
        if control.contains(&address) {
            return self.doorbell(address - layout::CONTROL_START, data);
        }
        match self.front(address) {
            Some((front, offset)) => lock(front).write(offset, data),
            None => {
                self.counters.unknown_mmio.fetch_add(1, Ordering::Relaxed);
            }
        }
        Effect::None
    }

    fn front(&self, address: u64) -> Option<(&Mutex<MmioFront>, u64)> {
        let from_start = address.checked_sub(layout::MMIO_START)?;
        let index = usize::try_from(from_start / layout::MMIO_BYTES).ok()?;
        let front = self.fronts.get(index)?;
        Some((front, from_start % layout::MMIO_BYTES))
    }

    /// A read of ports, one byte a port access. Where there is nothing, all bits are ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        for byte in data {
            *byte = match port {
                layout::SERIAL_PORT..SERIAL_END => {
                    lock(&self.serial).read(port - layout::SERIAL_PORT)
                }
                layout::I8042_PORT..I8042_END => lock(&self.i8042).read(port),
                layout::SLEEP_CONTROL_PORT | layout::SLEEP_STATUS_PORT => 0,
                layout::EVENT_STATUS_PORT => self.events.swap(0, Ordering::SeqCst),
                layout::PVPANIC_PORT => pvpanic::events(),
                _ => {
                    self.counters.unknown_ports.fetch_add(1, Ordering::Relaxed);
                    0xff
                }
            };
        }
    }

    /// A write to ports.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Effect {
        for byte in data {
            match port {
                layout::SERIAL_PORT..SERIAL_END => {
                    self.stamps.first_output();
                    lock(&self.serial).write(port - layout::SERIAL_PORT, *byte);
                }
                layout::I8042_PORT..I8042_END => {
                    if lock(&self.i8042).write(port, *byte) == I8042Event::Reset {
                        return Effect::Stop(StopReason::Reset);
                    }
                }
                layout::SLEEP_CONTROL_PORT if acpi::is_power_off(*byte) => {
                    return Effect::Stop(StopReason::PowerOff);
                }
                layout::PVPANIC_PORT if pvpanic::is_panic(*byte) => {
                    return Effect::Stop(StopReason::GuestPanic);
                }
                // A sleep state or an event that was not offered, or a cleared status: nothing to do.
                layout::SLEEP_CONTROL_PORT
                | layout::SLEEP_STATUS_PORT
                | layout::EVENT_STATUS_PORT
                | layout::PVPANIC_PORT => {}
                _ => {
                    self.counters.unknown_ports.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Effect::None
    }

    fn doorbell(&self, offset: u64, data: &[u8]) -> Effect {
        match Doorbell::decode(offset, data) {
            Some(Doorbell::Ready) => self.ready(),
            Some(Doorbell::Print { stream, addr, len }) => {
                self.print(stream, addr, len);
                Effect::None
            }
            Some(Doorbell::Exit(status)) => Effect::Stop(StopReason::GuestExit(status)),
            Some(Doorbell::Mark(number)) => {
                self.stamps.guest_mark(number);
                Effect::None
            }
            Some(Doorbell::Clock) => Effect::RefreshClock,
            Some(Doorbell::Panic) => Effect::Stop(StopReason::GuestPanic),
            None => {
                self.counters
                    .unknown_doorbells
                    .fetch_add(1, Ordering::Relaxed);
                Effect::None
            }
        }
    }

    /// It is told of once: a guest can ring as often as it likes.
    fn ready(&self) -> Effect {
        if !self.was_ready.swap(true, Ordering::Relaxed) {
            feed::publish(|| Happening::Ready);
        }
        if self.park_at_ready.load(Ordering::SeqCst) {
            Effect::Park
        } else {
            Effect::None
        }
    }

    fn print(&self, stream: OutputStream, address: u64, length: u32) {
        let mut buffer = lock(&self.print_buffer);
        let Ok(text) = copy_print_buffer(&self.mem, address, length, &mut buffer) else {
            self.counters.bad_prints.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let stream = match stream {
            OutputStream::Stdout => StandardStream::Stdout,
            OutputStream::Stderr => StandardStream::Stderr,
        };
        // A failure must not end the guest; the output has noted it.
        let _ = self.output.to(stream).write_all(text);
        self.stamps.first_output();
    }
}

const SERIAL_END: u16 = layout::SERIAL_PORT + layout::SERIAL_PORTS;
const I8042_END: u16 = layout::I8042_PORT + layout::I8042_PORTS;

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    fn bus() -> Bus {
        let ports = PortDevices {
            serial: Serial::new(EventFd::new(0).unwrap(), Box::new(std::io::sink())),
            i8042: I8042::new(EventFd::new(0).unwrap()),
        };
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let stamps = Arc::new(Stamps::new("boot", 0, None, None));
        Bus::new(
            Vec::new(),
            ports,
            GuestOutput::stdout(),
            Arc::new(mem),
            stamps,
        )
    }

    #[test]
    fn power_off_reset_and_panic_end_the_machine() {
        let bus = bus();
        for (port, value, reason) in [
            (0x600, 0x34, StopReason::PowerOff),
            (0x600, 0xf7, StopReason::PowerOff),
            (0x64, 0xfe, StopReason::Reset),
            (0x505, 1, StopReason::GuestPanic),
        ] {
            assert_eq!(bus.port_write(port, &[value]), Effect::Stop(reason));
        }
    }

    #[test]
    fn events_are_told_once() {
        let bus = bus();
        let told = || {
            let mut found = [0xff];
            bus.port_read(0x602, &mut found);
            found[0]
        };
        assert_eq!(told(), 0);
        bus.add_event(acpi::event::POWER_BUTTON);
        bus.add_event(acpi::event::GENERATION);
        assert_eq!([told(), told()], [3, 0]);
    }

    #[test]
    fn what_was_not_offered_does_nothing() {
        let bus = bus();
        for (port, value) in [
            (0x600, 0),
            (0x600, 0x14),
            (0x600, 0x20),
            (0x601, 0x80),
            (0x602, 3),
            (0x505, 2),
        ] {
            assert_eq!(bus.port_write(port, &[value]), Effect::None, "{value:#x}");
        }
        for (port, value) in [(0x600, 0), (0x601, 0), (0x505, 1)] {
            let mut found = [0xff];
            bus.port_read(port, &mut found);
            assert_eq!(found, [value], "{port:#x}");
        }
        assert_eq!(bus.counters().unknown_ports.load(Ordering::Relaxed), 0);
    }
}
