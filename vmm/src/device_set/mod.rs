//! The devices of a machine: made, connected to KVM, started, stopped, saved.
//!
//! Every device has a place: its register page, interrupt line and section in an image follow from it. Disks come
//! first, the root disk first of all, then network interfaces, the entropy source, the console, the balloon, vsock.
//!
//! Ownership: the loop owns the devices and their queues; a vCPU touches a device's register front, behind its own
//! lock, and calls the loop from there, waiting for the answer. So the loop must not take that lock while vCPUs run:
//! it does in [`DeviceSet::pause`] alone, when all are parked.

mod balloon;
mod error;
mod held;
mod make;
mod place;
mod taps;
mod wiring;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use lightv_devices::counters::Counters;
use lightv_devices::mmds::Mmds;
use lightv_devices::state::DeviceState;
use lightv_devices::virtio::block::Disk;
use lightv_devices::virtio::console::Console;
use lightv_devices::virtio::device::{DeviceKind, Progress, Sight, VirtioDevice as _};
use lightv_devices::virtio::mmio::{MmioFront, ResumePoint};
use virtio_queue::Queue;

pub use self::balloon::BalloonOrderError;
pub use self::error::DeviceSetError;
pub use self::make::HostSide;
pub use self::taps::HeldTaps;
pub use self::wiring::make_ports;

use self::held::Held;
use self::place::{Place, in_turn};
use self::wiring::Wiring;
use crate::arch::host::board::MmioPlace;
use crate::config::MachineConfig;
use crate::config::limiter::{LimitsPatch, options};
use crate::control_page::ControlPage;
use crate::event::EventSender;
use crate::image::disk::{ImageDisk, ImageOverlay, StoredDisk};
use crate::lock::lock;
use crate::memory::GuestRam;
use crate::output::GuestOutput;
use crate::poller::{PollError, Poller, TOKENS_MAX, Token};
use crate::snapshot::saved::{SavedDevice, SavedDevices, SavedMachine};
use crate::vm::Vm;
use crate::vsock_socket::HeldVsock;

/// Counters of a device.
#[derive(Debug, Clone)]
pub struct DeviceMeter {
    /// Its id.
    pub id: String,
    /// What it is.
    pub kind: DeviceKind,
    /// What it counts.
    pub counters: Arc<Counters>,
}

/// All devices, in the order of their places.
#[derive(Debug)]
pub struct DeviceSet {
    places: Vec<Place>,
    stored: Vec<StoredDisk>,
    /// The device that is looked at first the next time.
    first_looked: usize,
}

/// What is opened before there is a machine, for its devices. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct HeldBackends {
    /// Taps.
    pub taps: HeldTaps,
    /// The socket of vsock.
    pub vsock: HeldVsock,
}

/// What devices are made of and connected to.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// KVM's VM.
    pub vm: &'a Vm,
    /// Guest RAM.
    pub ram: &'a GuestRam,
    /// The way to the loop.
    pub events: &'a EventSender,
    /// Disks in the image that the machine is made of.
    pub disks: &'a [ImageDisk],
    /// Deltas of the image that the machine is restored from; none for a boot.
    pub overlays: Option<&'a [ImageOverlay]>,
    /// What of this process the guest is connected to.
    pub host: HostSide,
    /// What devices are given that is open already.
    pub held: Option<&'a HeldBackends>,
    /// The metadata service, for interfaces that reach it.
    pub mmds: &'a Mmds,
    /// Where the guest's output goes.
    pub output: &'a GuestOutput,
    /// Where the guest reads registers.
    pub control_page: &'a ControlPage,
}

impl<'a> Around<'a> {
    const fn wiring(&self) -> Wiring<'a> {
        Wiring {
            vm: self.vm,
            mem: self.ram.mem(),
            events: self.events,
            control_page: self.control_page,
        }
    }
}

impl DeviceSet {
    /// How many devices of `config` have registers that are read as memory: all, or none if it says so.
    #[must_use]
    pub fn register_pages(config: &MachineConfig) -> usize {
        if config.has_register_pages() {
            make::count(config)
        } else {
            0
        }
    }

    /// Opens and connects the devices of `config`.
    ///
    /// # Errors
    /// [`DeviceSetError`].
    pub fn create(config: &MachineConfig, around: &Around<'_>) -> Result<Self, DeviceSetError> {
        let wiring = around.wiring();
        let disks = make::open_disks(config, around)?;
        let stored = make::stored_disks(config, &disks);
        let places = make::create(config, disks, around)?
            .into_iter()
            .enumerate()
            .map(|(place, device)| wiring.connect(place, device, None));
        Ok(Self {
            first_looked: 0,
            places: places.collect::<Result<_, _>>()?,
            stored,
        })
    }

    /// Opens, restores and connects the devices of a snapshot, with the paths and taps of `config`.
    ///
    /// # Errors
    /// [`DeviceSetError`].
    pub fn restore(
        config: &MachineConfig,
        saved: &SavedMachine,
        around: &Around<'_>,
    ) -> Result<Self, DeviceSetError> {
        let expected = make::count(config);
        if saved.devices.len() != expected {
            return Err(DeviceSetError::Count {
                expected,
                found: saved.devices.len(),
            });
        }
        let wiring = around.wiring();
        let disks = make::open_disks(config, around)?;
        let stored = make::stored_disks(config, &disks);
        let mut disks = disks.into_iter();
        let mut places = Vec::with_capacity(expected);
        for (place, saved) in saved.devices.iter().enumerate() {
            let device = make::restore(config, place, &saved.state, disks.next(), around)?;
            places.push(wiring.connect(place, device, Some(&saved.transport))?);
        }
        Ok(Self {
            places,
            stored,
            first_looked: 0,
        })
    }

    /// What the devices count.
    #[must_use]
    pub fn meters(&self) -> Vec<DeviceMeter> {
        let meter = |place: &Place| DeviceMeter {
            id: place.id.clone(),
            kind: place.device.kind(),
            counters: Arc::clone(place.device.counters()),
        };
        self.places.iter().map(meter).collect()
    }

    /// The disks that a save puts into the image.
    #[must_use]
    pub fn stored_disks(&self) -> &[StoredDisk] {
        &self.stored
    }

    /// The console, if there is one.
    pub fn console(&mut self) -> Option<&mut Console> {
        self.places
            .iter_mut()
            .find_map(|place| match &mut place.device {
                Held::Console(console) => Some(&mut **console),
                _ => None,
            })
    }

    /// Connects the console, if there is one, to the standard streams, which have become others. Its driver does not work yet.
    ///
    /// # Errors
    /// [`DeviceSetError`].
    pub fn reopen_console(&mut self, output: &GuestOutput) -> Result<(), DeviceSetError> {
        if let Some(console) = self.console() {
            console.replace_streams(make::open_streams(HostSide::default(), output)?);
        }
        Ok(())
    }

    /// Whether the guest has given bytes to the console.
    #[must_use]
    pub fn has_console_output(&self) -> bool {
        self.places.iter().any(|place| match &place.device {
            Held::Console(console) => console.counters().snapshot().bytes_from_guest > 0,
            _ => false,
        })
    }

    /// The register fronts, in order.
    #[must_use]
    pub fn fronts(&self) -> Vec<Arc<Mutex<MmioFront>>> {
        self.places
            .iter()
            .map(|place| Arc::clone(&place.front))
            .collect()
    }

    /// Kernel arguments by which Linux finds the devices (Documentation/admin-guide/kernel-parameters.txt).
    #[must_use]
    pub fn cmdline(&self) -> Vec<String> {
        let argument =
            |place: &Place| format!("virtio_mmio.device=4K@{:#x}:{}", place.address, place.gsi);
        self.places.iter().map(argument).collect()
    }

    /// Where the devices are, for the tables by which a kernel finds them.
    #[must_use]
    pub fn mmio_places(&self) -> Vec<MmioPlace> {
        let mmio_place = |place: &Place| MmioPlace {
            // The hole for devices lies below 4 GiB.
            address: u32::try_from(place.address).unwrap_or(u32::MAX),
            gsi: place.gsi,
        };
        self.places.iter().map(mmio_place).collect()
    }

    /// Watches all doorbells.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn watch_doorbells(&self, poller: &mut Poller) -> Result<(), PollError> {
        for (device, place) in self.places.iter().enumerate() {
            for (queue, doorbell) in place.doorbells.iter().enumerate() {
                poller.watch(doorbell.as_raw_fd(), Token::Queue { device, queue })?;
            }
        }
        Ok(())
    }

    /// A doorbell has rung.
    pub fn process_queue(&mut self, device: usize, queue: usize) {
        let Some(place) = self.places.get_mut(device) else {
            return;
        };
        if let Some(doorbell) = place.doorbells.get(queue) {
            let _ = doorbell.read();
        }
        match place.device.process_queue(queue) {
            Ok(Progress::Done) => {}
            // Others have their turn first: the doorbell is rung again.
            Ok(Progress::More) => place.ring(queue),
            Err(fault) => place.report(&fault),
        }
    }

    /// When the next device is to be served without being called: a rate limiter holds it up until then.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let places = self.places.iter();
        places.filter_map(|place| place.device.wake_at()).min()
    }

    /// Calls those whose wait is over.
    pub fn wake_due(&mut self) {
        // Without limits nobody waits, and the clock is not read.
        let Some(first) = self.wake_at() else { return };
        let now = Instant::now();
        if first > now {
            return;
        }
        for place in &mut self.places {
            if place.device.wake_at().is_some_and(|time| time <= now) {
                place.ring_all();
            }
        }
    }

    /// The host has something for a device.
    pub fn process_backend(&mut self, device: usize) {
        let Some(place) = self.places.get_mut(device) else {
            return;
        };
        if let Err(fault) = place.device.process_backend() {
            place.report(&fault);
        }
    }

    /// Whether device `device` is one of those that are looked at.
    #[must_use]
    pub fn is_looked_at(&self, device: usize) -> bool {
        let place = self.places.get(device);
        place.is_some_and(|place| matches!(place.device, Held::Block(_)))
    }

    /// Whether the host works for a device that can be looked at.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.places.iter().any(|place| place.device.is_under_way())
    }

    /// Has drivers not notify devices that can be looked at instead; gives how many queues those at work have.
    pub fn begin_looking(&mut self) -> u32 {
        let mut queues = 0_usize;
        for place in &mut self.places {
            if place.device.begin_looking() {
                queues = queues.saturating_add(place.doorbells.len());
            }
        }
        u32::try_from(queues).unwrap_or(u32::MAX)
    }

    /// What can be served now, as far as memory tells: at most as much as the kernel tells of at a time, of another device first each
    /// time.
    pub fn look(&mut self) -> Vec<Token> {
        self.look_for(TOKENS_MAX)
    }

    fn look_for(&mut self, most: usize) -> Vec<Token> {
        let mut tokens = Vec::new();
        for device in in_turn(&mut self.first_looked, self.places.len()) {
            let Some(place) = self.places.get_mut(device) else {
                continue;
            };
            place.device.look(&mut |sight| {
                if tokens.len() < most {
                    tokens.push(match sight {
                        Sight::Queue(queue) => Token::Queue { device, queue },
                        Sight::Backend => Token::Backend { device },
                    });
                }
            });
        }
        tokens
    }

    /// Asks drivers to notify again. What has come meanwhile is to be served before anything is waited for.
    pub fn end_looking(&mut self) -> Vec<Token> {
        for place in &mut self.places {
            place.device.end_looking();
        }
        // All of it: nobody tells of it again.
        self.look_for(usize::MAX)
    }

    /// Starts a device at its driver's DRIVER_OK; false when it does not start.
    pub fn activate(&mut self, device: usize, queues: Vec<Queue>, acked_features: u64) -> bool {
        self.places.get_mut(device).is_some_and(|place| {
            place.activate(ResumePoint {
                queues,
                acked_features,
            })
        })
    }

    /// Stops a device at its driver's reset.
    pub fn reset(&mut self, device: usize) {
        if let Some(place) = self.places.get_mut(device) {
            place.device.deactivate();
            place.device.forget_driver();
        }
    }

    /// The disk of drive `id`.
    #[must_use]
    pub fn disk(&self, id: &str) -> Option<&Disk> {
        let place = self.places.iter().find(|place| place.id == id)?;
        match &place.device {
            Held::Block(block) => Some(block.disk()),
            _ => None,
        }
    }

    /// Gives drive `id` another disk, and shows the guest its size; false when there is no such drive. The vCPUs are parked.
    pub fn replace_disk(&mut self, id: &str, disk: Disk) -> bool {
        for place in self.places.iter_mut().filter(|place| place.id == id) {
            let Held::Block(block) = &mut place.device else {
                continue;
            };
            block.replace_disk(disk);
            lock(&place.front).set_config(block.config());
            return true;
        }
        false
    }

    /// Empties the overlay of drive `id`, and tells its driver that something has changed; false when there is none. The vCPUs
    /// are parked.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reset_overlay(&mut self, id: &str) -> io::Result<bool> {
        for place in self.places.iter_mut().filter(|place| place.id == id) {
            let Held::Block(block) = &mut place.device else {
                continue;
            };
            let is_reset = block.reset_overlay()?;
            if is_reset {
                lock(&place.front).announce_change();
            }
            return Ok(is_reset);
        }
        Ok(false)
    }

    /// Changes the limits of a drive or a network interface; false when there is none of this name.
    pub fn change_limits(&mut self, patch: &LimitsPatch) -> bool {
        let (LimitsPatch::Drive { id, .. } | LimitsPatch::Net { id, .. }) = patch;
        for place in self.places.iter_mut().filter(|place| place.id == *id) {
            match (&mut place.device, patch) {
                (Held::Block(block), LimitsPatch::Drive { limiter, .. }) => {
                    block.change_limits(options(*limiter));
                }
                (
                    Held::Net(net),
                    LimitsPatch::Net {
                        receive, transmit, ..
                    },
                ) => net.change_limits(options(*receive), options(*transmit)),
                _ => continue,
            }
            return true;
        }
        false
    }

    /// A save does not put the disk of the drive with this number in the configuration into the image any more.
    pub fn forget_stored(&mut self, index: u32) {
        self.stored.retain(|stored| stored.index != index);
    }

    /// Stops all devices, all their I/O finished, and says what a snapshot keeps of them: of those that have not started
    /// yet, what they will be started with. The vCPUs are parked. Waits for those who read the guest's output, until
    /// `gives_up`.
    pub fn pause(&mut self, gives_up: &dyn Fn() -> bool) -> SavedDevices {
        let mut saved = SavedDevices {
            devices: Vec::with_capacity(self.places.len()),
            disk_bytes: Vec::new(),
        };
        for place in &mut self.places {
            place.device.finish(gives_up);
            place.settle();
            let front = lock(&place.front);
            let queues = match place.resume.take() {
                Some(waiting) => {
                    place.acked_features = waiting.acked_features;
                    waiting.queues
                }
                None => place.device.deactivate(),
            };
            let transport = front.save(&queues);
            let is_active = front.is_active();
            drop(front);
            let state = place.device.save();
            if let DeviceState::Block(block) = &state {
                saved.disk_bytes.push(block.len_bytes);
            }
            let acked_features = place.acked_features;
            place.resume = is_active.then_some(ResumePoint {
                queues,
                acked_features,
            });
            saved.devices.push(SavedDevice { state, transport });
        }
        saved
    }

    /// Starts the devices that were active when the machine was saved or paused, and raises again the interrupts that
    /// the guest has not acknowledged.
    pub fn resume(&mut self) {
        for place in &mut self.places {
            if let Some(resume) = place.resume.take() {
                // A device that has given up on its driver stays so until the driver resets it.
                if !place.interrupt.needs_reset() && !place.activate(resume) {
                    place.interrupt.raise_needs_reset();
                }
            }
            place.interrupt.raise_again_if_pending();
        }
    }

    /// Serves once what the driver has asked for: before the machine ends, so that its last request is not lost. Waits for
    /// those who read the guest's output, until `gives_up`.
    pub fn serve_last(&mut self, gives_up: &dyn Fn() -> bool) {
        for device in 0..self.places.len() {
            let queues = self
                .places
                .get(device)
                .map_or(0, |place| place.doorbells.len());
            (0..queues).for_each(|queue| self.process_queue(device, queue));
        }
        for place in &mut self.places {
            place.device.flush_last(gives_up);
        }
    }

    /// Makes what is to outlive the machine safe, whatever the guest has asked for.
    pub fn settle(&mut self) {
        self.places.iter_mut().for_each(Place::settle);
    }

    /// Watches the backends that want it, and leaves the others.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn update_watch(&mut self, poller: &mut Poller) -> Result<(), PollError> {
        for (device, place) in self.places.iter_mut().enumerate() {
            let fd = place.device.backend_fd().map(|fd| fd.as_raw_fd());
            let wanted = fd.filter(|_| place.device.wants_backend());
            if wanted == place.watched {
                continue;
            }
            if let Some(old) = place.watched.take() {
                poller.unwatch(old)?;
            }
            if let Some(fd) = wanted {
                poller.watch(fd, Token::Backend { device })?;
                place.watched = Some(fd);
            }
        }
        Ok(())
    }
}
