//! The devices of a machine: made, connected to KVM, started, stopped, saved.
//!
//! Every device has a place: its register page, interrupt line and section in an image follow from it. Disks come
//! first, the root disk first of all, then network interfaces, then the entropy source.
//!
//! Ownership: the loop owns the devices and their queues; a vCPU touches a device's register front, behind its own
//! lock, and calls the loop from there, waiting for the answer. So the loop must not take that lock while vCPUs run:
//! it does in [`DeviceSet::pause`] alone, when all are parked.

mod error;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use lightv_devices::i8042::I8042;
use lightv_devices::interrupt::Interrupt;
use lightv_devices::memory::GuestMem;
use lightv_devices::serial::{Serial, SerialStateV1};
use lightv_devices::state::{DeviceState, TransportStateV1};
use lightv_devices::virtio::block::{Block, Disk};
use lightv_devices::virtio::device::{Activation, Progress, VirtioDevice};
use lightv_devices::virtio::entropy::{Entropy, EntropyStateV1};
use lightv_devices::virtio::mmio::{
    ActivateRefused, DeviceLink, DeviceProfile, FrontParts, MmioFront, ResumePoint, reg,
};
use lightv_devices::virtio::net::{Net, NetOptions, Tap};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::error::DeviceSetError;

use crate::arch::host::board::MmioPlace;
use crate::arch::host::layout;
use crate::config::{DriveConfig, MachineConfig, NetConfig};
use crate::event::{DeviceCall, Event, EventSender};
use crate::image::disk::{ImageDisk, StoredDisk};
use crate::lock::lock;
use crate::output::GuestOutput;
use crate::poller::{PollError, Poller, Token};
use crate::report;
use crate::snapshot::saved::{SavedDevice, SavedDevices, SavedMachine};
use crate::vm::Vm;

/// Host failures of one device that are reported; the rest are only counted.
const REPORTS_PER_DEVICE: u32 = 10;
/// Id of the entropy source.
const ENTROPY_ID: &str = "entropy";

/// All devices, in the order of their places.
#[derive(Debug)]
pub struct DeviceSet {
    places: Vec<Place>,
    stored: Vec<StoredDisk>,
}

#[derive(Debug)]
struct Place {
    id: String,
    device: Box<dyn VirtioDevice>,
    front: Arc<Mutex<MmioFront>>,
    interrupt: Interrupt,
    mem: Arc<GuestMem>,
    doorbells: Arc<Vec<EventFd>>,
    gsi: u32,
    address: u64,
    /// What the device is started with by [`DeviceSet::resume`].
    resume: Option<ResumePoint>,
    /// Features of the running device, for another resume.
    acked_features: u64,
    watched: Option<RawFd>,
    reports: u32,
}

/// A device that is not connected yet.
struct Unconnected {
    id: String,
    device: Box<dyn VirtioDevice>,
}

impl DeviceSet {
    /// Opens and connects the devices of `config`.
    ///
    /// # Errors
    /// [`DeviceSetError`].
    pub fn create(
        config: &MachineConfig,
        disks: &[ImageDisk],
        vm: &Vm,
        mem: &Arc<GuestMem>,
        events: &EventSender,
    ) -> Result<Self, DeviceSetError> {
        let mut devices = Vec::new();
        let mut stored = Vec::new();
        for drive in config.drives() {
            let disk = open_disk(drive, disks)?;
            stored.extend(stored_disk(drive, &disk));
            let block = Block::new(drive.id.clone(), drive.cache, disk);
            devices.push(Unconnected {
                id: drive.id.clone(),
                device: Box::new(block),
            });
        }
        for net in config.nets() {
            let options = NetOptions {
                id: net.id.clone(),
                tap: open_tap(net)?,
                mac: net.mac,
                mtu: net.mtu,
            };
            devices.push(Unconnected {
                id: net.id.clone(),
                device: Box::new(Net::new(options)),
            });
        }
        if config.entropy() {
            let device = Box::new(Entropy::new(ENTROPY_ID.to_owned()));
            devices.push(Unconnected {
                id: ENTROPY_ID.to_owned(),
                device,
            });
        }
        let wiring = Wiring { vm, mem, events };
        let places = devices
            .into_iter()
            .enumerate()
            .map(|(place, device)| wiring.connect(place, device, None));
        Ok(Self {
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
        vm: &Vm,
        mem: &Arc<GuestMem>,
        events: &EventSender,
    ) -> Result<Self, DeviceSetError> {
        let expected = config.drives().len() + config.nets().len() + usize::from(config.entropy());
        if saved.devices.len() != expected {
            return Err(DeviceSetError::Count {
                expected,
                found: saved.devices.len(),
            });
        }
        let wiring = Wiring { vm, mem, events };
        let mut places = Vec::with_capacity(expected);
        let mut stored = Vec::new();
        for (place, device) in saved.devices.iter().enumerate() {
            let opened = config
                .drives()
                .get(place)
                .map(|drive| open_disk(drive, &saved.disks));
            let disk = opened.transpose()?;
            if let (Some(drive), Some(disk)) = (config.drives().get(place), &disk) {
                stored.extend(stored_disk(drive, disk));
            }
            let unconnected = restore_device(config, place, disk, &device.state)?;
            places.push(wiring.connect(place, unconnected, Some(&device.transport))?);
        }
        Ok(Self { places, stored })
    }

    /// The disks that a save puts into the image.
    #[must_use]
    pub fn stored_disks(&self) -> &[StoredDisk] {
        &self.stored
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

    /// The host has something for a device.
    pub fn process_backend(&mut self, device: usize) {
        let Some(place) = self.places.get_mut(device) else {
            return;
        };
        if let Err(fault) = place.device.process_backend() {
            place.report(&fault);
        }
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
        }
    }

    /// Stops all devices, all their I/O finished, and says what a snapshot keeps of them. The vCPUs are parked.
    pub fn pause(&mut self) -> SavedDevices {
        let mut saved = SavedDevices {
            devices: Vec::with_capacity(self.places.len()),
            disk_bytes: Vec::new(),
        };
        for place in &mut self.places {
            let front = lock(&place.front);
            let queues = place.device.deactivate();
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

    /// Serves once what the driver has asked for: before the machine ends, so that its last request is not lost.
    pub fn serve_last(&mut self) {
        for device in 0..self.places.len() {
            let queues = self
                .places
                .get(device)
                .map_or(0, |place| place.doorbells.len());
            (0..queues).for_each(|queue| self.process_queue(device, queue));
        }
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

impl Place {
    fn activate(&mut self, resume: ResumePoint) -> bool {
        self.acked_features = resume.acked_features;
        let activation = Activation {
            mem: Arc::clone(&self.mem),
            queues: resume.queues,
            interrupt: self.interrupt.clone(),
            acked_features: resume.acked_features,
        };
        match self.device.activate(activation) {
            Ok(()) => {
                // For what waits already: a doorbell that rang before, or before a save, is forgotten.
                (0..self.doorbells.len()).for_each(|queue| self.ring(queue));
                true
            }
            Err(error) => {
                self.report(&error);
                false
            }
        }
    }

    fn ring(&self, queue: usize) {
        if let Some(doorbell) = self.doorbells.get(queue) {
            // Fails only when the count is full: then it rings already.
            let _ = doorbell.write(1);
        }
    }

    /// Says it, a few times a device: a guest must not be able to fill a log.
    fn report(&mut self, error: &dyn std::error::Error) {
        self.reports = self.reports.saturating_add(1);
        if self.reports <= REPORTS_PER_DEVICE {
            report::warn(error);
        }
        if self.reports == REPORTS_PER_DEVICE {
            report::say(&format!(
                "device {}: further failures are only counted",
                self.id
            ));
        }
    }
}

/// The disk of `drive`: one of those in the image, else the file that it names.
fn open_disk(drive: &DriveConfig, in_image: &[ImageDisk]) -> Result<Disk, DeviceSetError> {
    let found = in_image
        .iter()
        .find(|disk| Some(disk.index) == drive.in_image);
    if let Some(found) = found {
        return Disk::in_image(found.part.clone()).ok_or_else(|| DeviceSetError::DiskInImage {
            id: drive.id.clone(),
            bytes: found.part.len_bytes,
        });
    }
    let disk = Disk::open(&drive.path, drive.read_only);
    let disk = disk.map_err(|cause| DeviceSetError::Disk {
        id: drive.id.clone(),
        cause,
    })?;
    if disk.has_partial_sector() {
        let (path, bytes) = (drive.path.display(), disk.len_bytes());
        report::say(&format!(
            "drive {}: disk {path} has {bytes} bytes; the guest does not see the last part of a sector of 512",
            drive.id
        ));
    }
    Ok(disk)
}

/// What a save puts into the image of `drive`.
fn stored_disk(drive: &DriveConfig, disk: &Disk) -> Option<StoredDisk> {
    Some(StoredDisk {
        index: drive.in_image?,
        file: Arc::clone(disk.file()),
        base: disk.base(),
        len_bytes: disk.len_bytes(),
    })
}

fn open_tap(net: &NetConfig) -> Result<Tap, DeviceSetError> {
    Tap::open(&net.tap).map_err(|cause| DeviceSetError::Tap {
        id: net.id.clone(),
        cause,
    })
}

/// The device at `place` of the configuration, in the state `state`.
fn restore_device(
    config: &MachineConfig,
    place: usize,
    disk: Option<Disk>,
    state: &DeviceState,
) -> Result<Unconnected, DeviceSetError> {
    let (drives, nets) = (config.drives(), config.nets());
    let net_place = place.checked_sub(drives.len());
    let failed = |id: &str| {
        let id = id.to_owned();
        move |cause| DeviceSetError::Restore { id, cause }
    };
    let (id, device): (&str, Box<dyn VirtioDevice>) = if let (Some(drive), Some(disk)) =
        (drives.get(place), disk)
    {
        let DeviceState::Block(state) = state else {
            return Err(DeviceSetError::Kind {
                place,
                id: drive.id.clone(),
            });
        };
        let block = Block::from_state(drive.id.clone(), state, disk);
        let block = block.map_err(|cause| DeviceSetError::RestoreDisk {
            id: drive.id.clone(),
            path: drive.path.clone(),
            cause,
        })?;
        (&drive.id, Box::new(block))
    } else if let Some(net) = net_place.and_then(|place| nets.get(place)) {
        let DeviceState::Net(state) = state else {
            return Err(DeviceSetError::Kind {
                place,
                id: net.id.clone(),
            });
        };
        (
            &net.id,
            Box::new(
                Net::from_state(net.id.clone(), state, open_tap(net)?).map_err(failed(&net.id))?,
            ),
        )
    } else {
        let DeviceState::Entropy(EntropyStateV1 {}) = state else {
            return Err(DeviceSetError::Kind {
                place,
                id: ENTROPY_ID.to_owned(),
            });
        };
        (
            ENTROPY_ID,
            Box::new(Entropy::from_state(
                ENTROPY_ID.to_owned(),
                EntropyStateV1 {},
            )),
        )
    };
    Ok(Unconnected {
        id: id.to_owned(),
        device,
    })
}

/// What devices are connected to.
struct Wiring<'a> {
    vm: &'a Vm,
    mem: &'a Arc<GuestMem>,
    events: &'a EventSender,
}

impl Wiring<'_> {
    fn connect(
        &self,
        place: usize,
        unconnected: Unconnected,
        saved: Option<&TransportStateV1>,
    ) -> Result<Place, DeviceSetError> {
        let Unconnected { id, device } = unconnected;
        let number = u32::try_from(place).unwrap_or(u32::MAX);
        let address = layout::mmio_address(u64::from(number));
        let gsi = layout::DEVICE_GSIS.start().saturating_add(number);
        let profile = DeviceProfile::of(device.as_ref());
        let irqfd = self.interrupt(gsi)?;
        let interrupt = Interrupt::new(irqfd, Arc::clone(&profile.counters));
        let doorbells = Arc::new(self.doorbells(address, profile.queue_sizes.len())?);
        let link = Box::new(LoopLink {
            events: self.events.clone(),
            device: place,
            doorbells: Arc::clone(&doorbells),
        });
        let parts = FrontParts {
            profile,
            mem: Arc::clone(self.mem),
            interrupt: interrupt.clone(),
            link,
        };
        let (front, resume) = match saved {
            None => (MmioFront::new(parts), None),
            Some(state) => {
                MmioFront::restore(parts, state).map_err(|cause| DeviceSetError::Transport {
                    id: id.clone(),
                    cause,
                })?
            }
        };
        let front = Arc::new(Mutex::new(front));
        let mem = Arc::clone(self.mem);
        Ok(Place {
            id,
            device,
            front,
            interrupt,
            mem,
            doorbells,
            gsi,
            address,
            resume,
            acked_features: 0,
            watched: None,
            reports: 0,
        })
    }

    fn interrupt(&self, gsi: u32) -> Result<EventFd, DeviceSetError> {
        interrupt(self.vm, gsi)
    }

    fn doorbells(&self, address: u64, queues: usize) -> Result<Vec<EventFd>, DeviceSetError> {
        (0..u32::try_from(queues).unwrap_or(0))
            .map(|queue| {
                let doorbell = EventFd::new(EFD_NONBLOCK).map_err(DeviceSetError::EventFd)?;
                let connected =
                    self.vm
                        .signal_on_write(&doorbell, address + reg::QUEUE_NOTIFY, queue);
                connected
                    .map(|()| doorbell)
                    .map_err(DeviceSetError::Connect)
            })
            .collect()
    }
}

fn interrupt(vm: &Vm, gsi: u32) -> Result<EventFd, DeviceSetError> {
    let irqfd = EventFd::new(EFD_NONBLOCK).map_err(DeviceSetError::EventFd)?;
    vm.interrupt_on_signal(&irqfd, gsi)
        .map_err(DeviceSetError::Connect)?;
    Ok(irqfd)
}

/// A serial port on `output`, in the state `saved` if there is one.
///
/// # Errors
/// [`DeviceSetError`].
pub fn make_serial(
    vm: &Vm,
    saved: Option<&SerialStateV1>,
    output: &GuestOutput,
) -> Result<Serial, DeviceSetError> {
    let irqfd = interrupt(vm, layout::SERIAL_GSI)?;
    let output = Box::new(output.clone());
    match saved {
        None => Ok(Serial::new(irqfd, output)),
        Some(state) => {
            Serial::restore(state.clone(), irqfd, output).map_err(DeviceSetError::Serial)
        }
    }
}

/// A keyboard controller as after power-on: nothing of it is saved.
///
/// # Errors
/// [`DeviceSetError`].
pub fn make_keyboard(vm: &Vm) -> Result<I8042, DeviceSetError> {
    Ok(I8042::new(interrupt(vm, layout::KEYBOARD_GSI)?))
}

/// The way from a register front on a vCPU thread to its device in the loop.
#[derive(Debug)]
struct LoopLink {
    events: EventSender,
    device: usize,
    doorbells: Arc<Vec<EventFd>>,
}

impl DeviceLink for LoopLink {
    fn activate(&self, queues: Vec<Queue>, acked_features: u64) -> Result<(), ActivateRefused> {
        let (reply, answer) = channel();
        self.events.send(Event::Device(
            self.device,
            DeviceCall::Activate {
                queues,
                acked_features,
                reply,
            },
        ));
        // No answer: the loop has ended, and the process is about to.
        if answer.recv().unwrap_or(false) {
            Ok(())
        } else {
            Err(ActivateRefused)
        }
    }

    fn reset(&self) {
        let (reply, answer) = channel();
        self.events
            .send(Event::Device(self.device, DeviceCall::Reset { reply }));
        let _ = answer.recv();
    }

    /// As an ioeventfd would have done: however often the driver notifies, there is one count to serve.
    fn notify(&self, queue: u32) {
        let queue = usize::try_from(queue).ok();
        if let Some(doorbell) = queue.and_then(|queue| self.doorbells.get(queue)) {
            // Fails only when the count is full: then it rings already.
            let _ = doorbell.write(1);
        }
    }
}
