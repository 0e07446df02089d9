//! A driver by hand: a device behind its real register front, with queues built in guest memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use lightv_devices::interrupt::Interrupt;
use lightv_devices::memory::GuestMem;
use lightv_devices::register_page::RegisterPage;
use lightv_devices::state::{DeviceState, TransportStateV1};
use lightv_devices::virtio::device::{Activation, DeviceKind, Progress, VirtioDevice};
use lightv_devices::virtio::device_status::bits;
use lightv_devices::virtio::mmio::{
    ActivateRefused, DeviceLink, DeviceProfile, FrontParts, MmioFront, reg,
};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Length of low RAM; above it is the hole.
pub(crate) const LOW_RAM: u64 = 16 << 20;
/// Start of high RAM.
pub(crate) const HIGH_RAM: u64 = 4 << 30;
/// Length of high RAM.
pub(crate) const HIGH_RAM_BYTES: u64 = 1 << 20;
/// Where buffers begin.
const ARENA: u64 = 0x10_0000;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// The status after initialisation.
pub(crate) const RUNNING: u8 =
    bits::ACKNOWLEDGE | bits::DRIVER | bits::FEATURES_OK | bits::DRIVER_OK;

/// What a register page shows: the last value at each offset.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registers(Arc<Mutex<BTreeMap<u64, u32>>>);

impl Registers {
    /// The value at `offset`, a multiple of 4.
    pub(crate) fn at(&self, offset: u64) -> u32 {
        self.0.lock().unwrap().get(&offset).copied().unwrap_or(0)
    }
}

/// A page, and what it shows.
pub(crate) fn shown_registers() -> (Arc<RegisterPage>, Registers) {
    let shown = Registers::default();
    let store = shown.clone();
    let page = RegisterPage::new(move |offset, value| {
        store.0.lock().unwrap().insert(offset, value);
    });
    (Arc::new(page), shown)
}

pub(crate) type SharedDevice = Arc<Mutex<Box<dyn VirtioDevice>>>;

/// A descriptor.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Desc {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) is_writable: bool,
}

pub(crate) const fn readable(address: u64, bytes: u32) -> Buffer {
    Buffer {
        address,
        bytes,
        is_writable: false,
    }
}

pub(crate) const fn writable(address: u64, bytes: u32) -> Buffer {
    Buffer {
        address,
        bytes,
        is_writable: true,
    }
}

/// The driver's view of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rings {
    pub(crate) size: u16,
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    pub(crate) available_index: u16,
    pub(crate) used_index: u16,
    next_descriptor: u16,
}

impl Rings {
    pub(crate) fn at(index: usize, size: u16) -> Self {
        let base = 0x1_0000 + 0x1_0000 * index as u64;
        Self {
            size,
            table: base,
            available: base + 0x4000,
            used: base + 0x8000,
            available_index: 0,
            used_index: 0,
            next_descriptor: 0,
        }
    }
}

/// What the monitor does after an activation, and when the device's time has come: each queue once, to its end.
pub(crate) fn process_all(device: &SharedDevice) {
    device.lock().unwrap().rung();
    let queues = device.lock().unwrap().queue_sizes().len();
    (0..queues).for_each(|queue| process(device, queue));
}

struct DirectLink {
    device: SharedDevice,
    mem: Arc<GuestMem>,
    interrupt: Interrupt,
}

impl DeviceLink for DirectLink {
    fn activate(&self, queues: Vec<Queue>, acked_features: u64) -> Result<(), ActivateRefused> {
        let activation = Activation {
            mem: Arc::clone(&self.mem),
            queues,
            interrupt: self.interrupt.clone(),
            acked_features,
        };
        let activated = self.device.lock().unwrap().activate(activation);
        activated.map_err(|_| ActivateRefused)?;
        process_all(&self.device);
        Ok(())
    }

    fn reset(&self) {
        self.device.lock().unwrap().deactivate();
    }

    fn notify(&self, queue: u32) {
        process(&self.device, queue as usize);
    }
}

/// Serves queue `index` until nothing waits, as the control loop would, and lets a disk end what it has begun.
pub(crate) fn process(device: &SharedDevice, index: usize) {
    serve(device, index);
    let mut device = device.lock().unwrap();
    if device.kind() == DeviceKind::Block {
        device.finish(&|| true);
    }
}

fn serve(device: &SharedDevice, index: usize) {
    for _ in 0..1000 {
        match device.lock().unwrap().process_queue(index) {
            Ok(Progress::Done) => return,
            Ok(Progress::More) => {}
            // The loop tells the operator, and goes on.
            Err(fault) => return eprintln!("{fault}: {}", fault.cause),
        }
    }
    panic!("the device does not come to an end");
}

pub(crate) struct Machine {
    pub(crate) mem: Arc<GuestMem>,
    pub(crate) front: MmioFront,
    pub(crate) device: SharedDevice,
    pub(crate) irqfd: EventFd,
    pub(crate) interrupt: Interrupt,
    /// What a guest reads in place of asking the front.
    pub(crate) shown: Registers,
    pub(crate) rings: Vec<Rings>,
    arena: u64,
}

pub(crate) fn guest_mem() -> Arc<GuestMem> {
    let ranges = [
        (GuestAddress(0), usize::try_from(LOW_RAM).unwrap()),
        (
            GuestAddress(HIGH_RAM),
            usize::try_from(HIGH_RAM_BYTES).unwrap(),
        ),
    ];
    Arc::new(GuestMem::from_ranges(&ranges).unwrap())
}

impl Machine {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_mem(device, guest_mem(), None)
    }

    /// A machine on memory that is in use already; with `saved`, its front is restored and the device goes on.
    pub(crate) fn with_mem(
        device: Box<dyn VirtioDevice>,
        mem: Arc<GuestMem>,
        saved: Option<&TransportStateV1>,
    ) -> Self {
        let profile = DeviceProfile::of(device.as_ref());
        let rings = (0..)
            .zip(&profile.queue_sizes)
            .map(|(index, &size)| Rings::at(index, size));
        let rings = rings.collect();
        let irqfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let counters = Arc::clone(&profile.counters);
        let interrupt = Interrupt::new(irqfd.try_clone().unwrap(), counters);
        let device: SharedDevice = Arc::new(Mutex::new(device));
        let link = DirectLink {
            device: Arc::clone(&device),
            mem: Arc::clone(&mem),
            interrupt: interrupt.clone(),
        };
        let (page, shown) = shown_registers();
        let parts = FrontParts {
            profile,
            mem: Arc::clone(&mem),
            interrupt: interrupt.clone(),
            link: Box::new(link),
            page: Some(page),
        };
        let front = match saved {
            None => MmioFront::new(parts),
            Some(state) => {
                let (front, resume) = MmioFront::restore(parts, state).unwrap();
                if let Some(resume) = resume {
                    let activation = Activation {
                        mem: Arc::clone(&mem),
                        queues: resume.queues,
                        interrupt: interrupt.clone(),
                        acked_features: resume.acked_features,
                    };
                    device.lock().unwrap().activate(activation).unwrap();
                    process_all(&device);
                }
                interrupt.raise_again_if_pending();
                front
            }
        };
        Self {
            mem,
            front,
            device,
            irqfd,
            interrupt,
            shown,
            rings,
            arena: ARENA,
        }
    }

    pub(crate) fn read32(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.front.read(offset, &mut data);
        let value = u32::from_le_bytes(data);
        assert_eq!(self.shown.at(offset), value, "the page at {offset:#x}");
        value
    }

    pub(crate) fn write32(&mut self, offset: u64, value: u32) {
        self.front.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn status(&mut self) -> u8 {
        u8::try_from(self.read32(reg::STATUS)).unwrap()
    }

    pub(crate) fn set_status(&mut self, status: u8) {
        self.write32(reg::STATUS, u32::from(status));
    }

    pub(crate) fn offered(&mut self) -> u64 {
        self.write32(reg::DEVICE_FEATURES_SELECT, 0);
        let low = u64::from(self.read32(reg::DEVICE_FEATURES));
        self.write32(reg::DEVICE_FEATURES_SELECT, 1);
        low | (u64::from(self.read32(reg::DEVICE_FEATURES)) << 32)
    }

    /// Reset to FEATURES_OK with `features` accepted.
    pub(crate) fn negotiate(&mut self, features: u64) {
        self.set_status(0);
        for rings in &mut self.rings {
            (
                rings.available_index,
                rings.used_index,
                rings.next_descriptor,
            ) = (0, 0, 0);
        }
        self.set_status(bits::ACKNOWLEDGE);
        self.set_status(bits::ACKNOWLEDGE | bits::DRIVER);
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.write32(reg::DRIVER_FEATURES_SELECT, select);
            self.write32(
                reg::DRIVER_FEATURES,
                u32::try_from(half & 0xffff_ffff).unwrap(),
            );
        }
        self.set_status(bits::ACKNOWLEDGE | bits::DRIVER | bits::FEATURES_OK);
    }

    /// Tells the front where queue `index` lies, and clears its rings.
    pub(crate) fn set_up_queue(&mut self, index: usize) {
        let rings = self.rings[index];
        for (address, bytes) in [(rings.available, 6 + 2 * 256), (rings.used, 6 + 8 * 256)] {
            self.mem
                .write_slice(&vec![0; bytes], GuestAddress(address))
                .unwrap();
        }
        self.write32(reg::QUEUE_SELECT, u32::try_from(index).unwrap());
        self.write32(reg::QUEUE_SIZE, u32::from(rings.size));
        let halves = |address: u64| {
            let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap();
            [half(address), half(address >> 32)]
        };
        for (register, address) in [
            (reg::QUEUE_DESC_LOW, rings.table),
            (reg::QUEUE_DRIVER_LOW, rings.available),
            (reg::QUEUE_DEVICE_LOW, rings.used),
        ] {
            let [low, high] = halves(address);
            self.write32(register, low);
            self.write32(register + 4, high);
        }
        self.write32(reg::QUEUE_READY, 1);
    }

    /// From reset to DRIVER_OK with `features` accepted and all queues in use.
    pub(crate) fn init_with(&mut self, features: u64) {
        self.negotiate(features);
        (0..self.rings.len()).for_each(|index| self.set_up_queue(index));
        self.set_status(RUNNING);
    }

    /// From reset to DRIVER_OK with all that is offered.
    pub(crate) fn init(&mut self) {
        let features = self.offered();
        self.init_with(features);
        assert_eq!(self.status(), RUNNING);
    }

    /// Fresh guest memory.
    pub(crate) fn alloc(&mut self, bytes: usize) -> u64 {
        let address = self.arena;
        self.arena += (bytes as u64).next_multiple_of(16);
        if self.arena > LOW_RAM - (1 << 20) {
            self.arena = ARENA;
        }
        address
    }

    /// Fresh guest memory with `data` in it.
    pub(crate) fn put(&mut self, data: &[u8]) -> u64 {
        let address = self.alloc(data.len());
        self.mem.write_slice(data, GuestAddress(address)).unwrap();
        address
    }

    pub(crate) fn get(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.mem
            .read_slice(&mut data, GuestAddress(address))
            .unwrap();
        data
    }

    /// Writes one descriptor of a table.
    pub(crate) fn write_desc(&self, table: u64, index: u16, desc: Desc) {
        let address = GuestAddress(table + 16 * u64::from(index));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&desc.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&desc.bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&desc.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&desc.next.to_le_bytes());
        self.mem.write_slice(&bytes, address).unwrap();
    }

    /// Puts `head` into the available ring.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let rings = &mut self.rings[queue];
        let slot = u64::from(rings.available_index % rings.size);
        let address = GuestAddress(rings.available + 4 + 2 * slot);
        self.mem.write_slice(&head.to_le_bytes(), address).unwrap();
        rings.available_index = rings.available_index.wrapping_add(1);
        let index = rings.available_index;
        self.set_available_index(queue, index);
    }

    pub(crate) fn set_available_index(&mut self, queue: usize, index: u16) {
        let address = GuestAddress(self.rings[queue].available + 2);
        self.mem.write_slice(&index.to_le_bytes(), address).unwrap();
    }

    /// Adds a chain of `buffers`, without a notification. Returns its head.
    pub(crate) fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let rings = self.rings[queue];
        let count = u16::try_from(buffers.len()).unwrap();
        let place = |number: u16| rings.next_descriptor.wrapping_add(number) % rings.size;
        for (number, buffer) in (0..).zip(buffers) {
            let next = if number + 1 < count { NEXT } else { 0 };
            let write = if buffer.is_writable { WRITE } else { 0 };
            let desc = Desc {
                address: buffer.address,
                bytes: buffer.bytes,
                flags: next | write,
                next: place(number + 1),
            };
            self.write_desc(rings.table, place(number), desc);
        }
        self.rings[queue].next_descriptor = place(count);
        self.offer(queue, place(0));
        place(0)
    }

    /// Adds a chain of `buffers` in an indirect table.
    pub(crate) fn add_indirect(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let table = self.alloc(16 * buffers.len());
        for (number, buffer) in (0_u16..).zip(buffers) {
            let is_last = usize::from(number) + 1 == buffers.len();
            let write = if buffer.is_writable { WRITE } else { 0 };
            let flags = write | if is_last { 0 } else { NEXT };
            let Buffer { address, bytes, .. } = *buffer;
            self.write_desc(
                table,
                number,
                Desc {
                    address,
                    bytes,
                    flags,
                    next: number + 1,
                },
            );
        }
        let bytes = u32::try_from(16 * buffers.len()).unwrap();
        let head = self.rings[queue].next_descriptor % self.rings[queue].size;
        self.rings[queue].next_descriptor = head + 1;
        let desc = Desc {
            address: table,
            bytes,
            flags: INDIRECT,
            next: 0,
        };
        self.write_desc(self.rings[queue].table, head, desc);
        self.offer(queue, head);
        head
    }

    /// Notifies by an exit.
    pub(crate) fn kick(&mut self, queue: usize) {
        self.write32(reg::QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// Takes the next used chain: head and length.
    pub(crate) fn take_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let rings = &mut self.rings[queue];
        let mut index = [0; 2];
        self.mem
            .read_slice(&mut index, GuestAddress(rings.used + 2))
            .unwrap();
        if u16::from_le_bytes(index) == rings.used_index {
            return None;
        }
        let slot = u64::from(rings.used_index % rings.size);
        rings.used_index = rings.used_index.wrapping_add(1);
        let mut element = [0; 8];
        self.mem
            .read_slice(&mut element, GuestAddress(rings.used + 4 + 8 * slot))
            .unwrap();
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    /// Adds `buffers`, notifies, and returns the used length of the chain, which must be the next.
    pub(crate) fn request(&mut self, queue: usize, buffers: &[Buffer]) -> u32 {
        let head = self.add(queue, buffers);
        self.kick(queue);
        let (used, bytes) = self.take_used(queue).expect("the chain comes back");
        assert_eq!(used, u32::from(head));
        bytes
    }

    /// Serves the backend while it is watched and `rounds` last.
    pub(crate) fn serve_backend(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let mut device = self.device.lock().unwrap();
            if device.wants_backend() {
                device.process_backend().unwrap();
            }
        }
    }

    pub(crate) fn wants_backend(&self) -> bool {
        self.device.lock().unwrap().wants_backend()
    }

    pub(crate) fn counters(&self) -> lightv_devices::counters::CountersSnapshot {
        self.device.lock().unwrap().counters().snapshot()
    }

    /// Interrupts since the last call.
    pub(crate) fn take_interrupts(&self) -> u64 {
        self.irqfd.read().unwrap_or(0)
    }

    /// Stops the device and takes its state, as a save does.
    pub(crate) fn save(&mut self) -> (TransportStateV1, DeviceState) {
        let mut device = self.device.lock().unwrap();
        let queues = device.deactivate();
        (self.front.save(&queues), device.save())
    }
}
