//! Connects devices: register page, interrupt, doorbells, and the way from the page to the loop.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use lightv_api::event::Happening;
use lightv_devices::i8042::I8042;
use lightv_devices::interrupt::Interrupt;
use lightv_devices::interrupt::bits::USED_RING;
use lightv_devices::memory::GuestMem;
use lightv_devices::serial::{Serial, SerialStateV1};
use lightv_devices::state::TransportStateV1;
use lightv_devices::virtio::mmio::{
    ActivateRefused, DeviceLink, DeviceProfile, FrontParts, MmioFront, reg,
};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::DeviceSetError;
use super::make::Unconnected;
use super::place::Place;
use crate::arch::host::layout;
use crate::bus::PortDevices;
use crate::control_page::ControlPage;
use crate::event::{DeviceCall, Event, EventSender};
use crate::feed;
use crate::limits;
use crate::vm::Vm;

/// What devices are connected to.
pub(super) struct Wiring<'a> {
    pub(super) vm: &'a Vm,
    pub(super) mem: &'a Arc<GuestMem>,
    pub(super) events: &'a EventSender,
    pub(super) control_page: &'a ControlPage,
}

impl Wiring<'_> {
    pub(super) fn connect(
        &self,
        place: usize,
        unconnected: Unconnected,
        saved: Option<&TransportStateV1>,
    ) -> Result<Place, DeviceSetError> {
        let Unconnected { id, device } = unconnected;
        let number = u32::try_from(place).unwrap_or(u32::MAX);
        let address = layout::mmio_address(u64::from(number));
        let gsi = layout::DEVICE_GSIS.start().saturating_add(number);
        let profile = DeviceProfile::of(&*device);
        let irqfd = self.interrupt(gsi)?;
        let counters = Arc::clone(&profile.counters);
        let interrupt = Interrupt::telling(irqfd, counters, tell_needs_reset(&id));
        let doorbells = Arc::new(self.doorbells(address, profile.queue_sizes.len())?);
        let link = Box::new(LoopLink {
            events: self.events.clone(),
            device: place,
            doorbells: Arc::clone(&doorbells),
        });
        let page = self.control_page.registers(place).map(Arc::new);
        if page.is_some() {
            self.swallow_acknowledgements(address)?;
        }
        let parts = FrontParts {
            profile,
            mem: Arc::clone(self.mem),
            interrupt: interrupt.clone(),
            link,
            page,
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
            first_rung: 0,
            reports: 0,
        })
    }

    /// Has KVM take what a driver acknowledges most, used buffers and nothing else, without leaving the kernel: nobody reads the
    /// eventfd, and InterruptStatus goes on saying that there may be used buffers (docs/adr/0017-register-pages.md).
    fn swallow_acknowledgements(&self, address: u64) -> Result<(), DeviceSetError> {
        // KVM keeps it when it is closed here.
        let nobody = EventFd::new(EFD_NONBLOCK).map_err(DeviceSetError::EventFd)?;
        let register = address + reg::INTERRUPT_ACK;
        let connected = self.vm.signal_on_write(&nobody, register, USED_RING);
        connected.map_err(DeviceSetError::Connect)
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

/// Tells that device `id` needs a reset, a few times: a guest can have as many as it likes.
fn tell_needs_reset(id: &str) -> impl Fn() + Send + Sync + 'static {
    let device = id.to_owned();
    let told = AtomicU32::new(0);
    let next = |told| (told < limits::NEEDS_RESETS_TOLD).then_some(told + 1);
    move || {
        let is_told = told.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        if is_told.is_ok() {
            tracing::warn!("device {device} needs a reset: its driver broke the rules");
            let device = device.clone();
            feed::publish(|| Happening::DeviceNeedsReset { device });
        }
    }
}

fn interrupt(vm: &Vm, gsi: u32) -> Result<EventFd, DeviceSetError> {
    let irqfd = EventFd::new(EFD_NONBLOCK).map_err(DeviceSetError::EventFd)?;
    vm.interrupt_on_signal(&irqfd, gsi)
        .map_err(DeviceSetError::Connect)?;
    Ok(irqfd)
}

/// The devices on ports: a serial port on `output`, in the state `saved` if there is one, and a keyboard controller as
/// after power-on.
///
/// # Errors
/// [`DeviceSetError`].
pub fn make_ports(
    vm: &Vm,
    saved: Option<&SerialStateV1>,
    output: Box<dyn Write + Send>,
) -> Result<PortDevices, DeviceSetError> {
    Ok(PortDevices {
        serial: make_serial(vm, saved, output)?,
        i8042: I8042::new(interrupt(vm, layout::KEYBOARD_GSI)?),
    })
}

fn make_serial(
    vm: &Vm,
    saved: Option<&SerialStateV1>,
    output: Box<dyn Write + Send>,
) -> Result<Serial, DeviceSetError> {
    let irqfd = interrupt(vm, layout::SERIAL_GSI)?;
    match saved {
        None => Ok(Serial::new(irqfd, output)),
        Some(state) => {
            Serial::restore(state.clone(), irqfd, output).map_err(DeviceSetError::Serial)
        }
    }
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
