//! A virtual CPU and its thread.
//!
//! ```text
//!            start                 READY with a save, or pause wanted
//!   Created --------> Running -------------------------------------------> Parked
//!                        ^  |                                                |  |  Capture: sends its state
//!                        |  +--> Stopped (exit, reset, triple fault, …)      |<-+
//!                        +---------------------------------------------------+
//!                                            Run
//! ```
//!
//! A vCPU parks only after KVM_RUN has returned EINTR with `immediate_exit` set: then the access that caused its last
//! exit is complete, and its state can be saved.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::arch::VcpuId;
use crate::bus::{Bus, Effect};
use crate::control_page::ControlPage;
use crate::event::{Event, EventSender, StopReason};
use crate::exits::ExitKind;
use crate::image::manifest::MemoryRunV1;
use crate::lock::lock;
use crate::sandbox::{self, ConfineError, ThreadKind};
use crate::snapshot::vcpu_state;
use crate::stop_text;
use crate::sys::kvm::{ImmediateExit, pre_fault};
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::signal::KickTarget;

/// What the loop tells a parked vCPU.
#[derive(Debug)]
enum Command {
    Run,
    Capture(Arc<Vec<u32>>),
}

/// What the loop holds of a vCPU.
#[derive(Debug)]
pub struct VcpuHandle {
    immediate_exit: ImmediateExit,
    shared: Arc<Shared>,
    commands: Sender<Command>,
}

#[derive(Debug, Default)]
struct Shared {
    park_wanted: AtomicBool,
    thread: OnceLock<KickTarget>,
}

impl VcpuHandle {
    /// Takes the vCPU out of the guest; it answers [`Event::Parked`]. May be called again while it has not answered.
    pub fn ask_to_park(&self) {
        self.shared.park_wanted.store(true, Ordering::SeqCst);
        self.immediate_exit.set(true);
        if let Some(thread) = self.shared.thread.get() {
            thread.kick();
        }
    }

    /// Lets a parked vCPU go on.
    pub fn run(&self) {
        // Here, where it cannot be asked to park at the same time, and not by itself when it wakes: it would take back what it was
        // asked since.
        self.shared.park_wanted.store(false, Ordering::SeqCst);
        self.immediate_exit.set(false);
        // A thread that is gone has said why by an event.
        let _ = self.commands.send(Command::Run);
    }

    /// Asks a parked vCPU for its state; it answers [`Event::Captured`].
    pub fn capture(&self, msr_indices: &Arc<Vec<u32>>) {
        let _ = self
            .commands
            .send(Command::Capture(Arc::clone(msr_indices)));
    }
}

/// What all vCPU threads of a machine share.
#[derive(Debug, Clone)]
pub struct VcpuContext {
    /// Where accesses go.
    pub bus: Arc<Bus>,
    /// Where events go.
    pub events: EventSender,
    /// The control device's page, for the clock.
    pub control_page: Arc<ControlPage>,
    /// Where vCPUs wait for the first.
    pub gate: Arc<Gate>,
    /// The CPUs of the host to which vCPUs are held.
    pub cpus: Arc<BTreeMap<VcpuId, u32>>,
}

/// Where vCPUs wait before they enter the guest, until all threads of the machine are confined: the first opens it, which is
/// the last to be confined.
#[derive(Debug, Default)]
pub struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *lock(&self.is_open) = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let mut is_open = lock(&self.is_open);
        while !*is_open {
            is_open = self
                .opened
                .wait(is_open)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Where vCPU 0 of a machine waits that is ready before there is work for it.
#[derive(Debug, Default)]
pub struct StartGate {
    gate: Gate,
    wants_clock: AtomicBool,
}

impl StartGate {
    /// vCPU 0 says what time it is before it runs. To be called before [`Self::open`].
    pub fn ask_for_clock(&self) {
        self.wants_clock.store(true, Ordering::Relaxed);
    }

    /// Lets it run.
    pub fn open(&self) {
        self.gate.open();
    }
}

/// A vCPU's thread that was started: whether it is confined.
#[derive(Debug)]
pub struct Spawned(Receiver<Result<(), ConfineError>>);

impl Spawned {
    /// Waits until it is.
    ///
    /// # Errors
    /// [`ConfineError`]; the thread has ended then.
    pub fn wait_confined(self) -> Result<(), ConfineError> {
        // A thread that says nothing takes the process with it.
        self.0.recv().unwrap_or(Ok(()))
    }
}

/// A vCPU that is ready to run, and what the loop holds of it.
#[must_use]
pub fn prepare(id: VcpuId, fd: VcpuFd, context: VcpuContext) -> (Vcpu, VcpuHandle) {
    // A vCPU is there as long as the process, so that its handle may point into it.
    let (immediate_exit, fd) = ImmediateExit::of(Box::leak(Box::new(fd)));
    let shared = Arc::new(Shared::default());
    let (sender, commands) = channel();
    let handle = VcpuHandle {
        immediate_exit,
        shared: Arc::clone(&shared),
        commands: sender,
    };
    (
        Vcpu {
            id,
            fd,
            context,
            shared,
            immediate_exit,
            commands,
        },
        handle,
    )
}

/// Has KVM do in advance what it does when vCPU 0 runs for the first time, by the thread that will run it: a third of the
/// way from an assignment to the guest's first byte. All of it are hints, and none is guest code. `written` are the pages
/// that the guest is known to write.
pub fn warm_up(fd: &mut VcpuFd, written: &[MemoryRunV1]) {
    for run in written {
        let _ = pre_fault(fd, run.address, run.bytes);
    }
    // Where guest page tables are shadowed, none is mapped, but the memory is got that shadows are made of.
    let _ = pre_fault(fd, 0, PAGE_BYTES as u64);
    // Gives EINTR before the guest is entered.
    fd.set_kvm_immediate_exit(1);
    let _ = fd.run();
    fd.set_kvm_immediate_exit(0);
    // The guest sees it when it runs, as after a pause.
    let _ = fd.kvmclock_ctrl();
}

/// Stack of a vCPU thread: the deepest path is a save of its own state, some tens of KiB.
const STACK_BYTES: usize = 256 << 10;

/// A vCPU, run by the thread that holds it.
pub struct Vcpu {
    id: VcpuId,
    fd: &'static mut VcpuFd,
    context: VcpuContext,
    shared: Arc<Shared>,
    immediate_exit: ImmediateExit,
    commands: Receiver<Command>,
}

impl std::fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vcpu")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Vcpu {
    /// Starts a thread that is confined and runs it.
    ///
    /// # Errors
    /// The kernel's, when there are no threads left.
    pub fn spawn(self) -> std::io::Result<Spawned> {
        let thread = thread::Builder::new()
            .name(format!("vcpu-{}", self.id))
            .stack_size(STACK_BYTES);
        let (sender, confined) = channel();
        thread.spawn(move || {
            let result = self.confine();
            let is_confined = result.is_ok();
            let _ = sender.send(result);
            if is_confined {
                self.run()
            }
        })?;
        Ok(Spawned(confined))
    }

    /// Holds the calling thread to its CPU, if it has one, and to what a vCPU may do. All other threads of the machine have to be confined before the one
    /// that runs vCPU 0.
    ///
    /// # Errors
    /// [`ConfineError`].
    pub fn confine(&self) -> Result<(), ConfineError> {
        if let Some(cpu) = self.context.cpus.get(&self.id) {
            sandbox::hold_to_cpu(ThreadKind::Vcpu, *cpu)?;
        }
        sandbox::confine(ThreadKind::Vcpu, Some(self.id))
    }

    /// Waits at `start`, and then runs: vCPU 0 of a machine that was ready before there was work for it. The guest sees that
    /// time has passed, as after a pause.
    pub fn run_from(self, start: &StartGate) -> ! {
        start.gate.wait();
        if start.wants_clock.load(Ordering::Relaxed) {
            // Before the others, which wait for this one: all find the clock as it is now.
            self.context.control_page.refresh_clock(self.fd);
        }
        self.run()
    }

    /// Runs until the process ends, on a thread that is confined.
    pub fn run(mut self) -> ! {
        if self.id == 0 {
            self.context.gate.open();
        } else {
            self.context.gate.wait();
        }
        let _ = self.shared.thread.set(KickTarget::current_thread());
        let reason = loop {
            if let Some(reason) = self.enter() {
                break reason;
            }
        };
        self.context.events.send(Event::Stopped(self.id, reason));
        loop {
            thread::park();
        }
    }

    /// Enters the guest once and serves its exit.
    fn enter(&mut self) -> Option<StopReason> {
        let effect = match self.fd.run() {
            Ok(exit) => match serve_counted(exit, &self.context.bus) {
                Served::Done(effect) => effect,
                Served::Failed(kind) => {
                    return Some(stop_text::describe(kind, self.fd, self.context.bus.mem()));
                }
            },
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                if self.shared.park_wanted.load(Ordering::SeqCst) {
                    self.park();
                }
                return None;
            }
            Err(error) => {
                let text = format!(
                    "KVM_RUN failed: {}",
                    std::io::Error::from_raw_os_error(error.errno())
                );
                return Some(StopReason::KvmError { text });
            }
        };
        match effect {
            Effect::None => None,
            Effect::Stop(reason) => Some(reason),
            Effect::RefreshClock => {
                self.context.control_page.refresh_clock(self.fd);
                None
            }
            Effect::Park => {
                self.shared.park_wanted.store(true, Ordering::SeqCst);
                self.immediate_exit.set(true);
                self.context.events.send(Event::Ready);
                None
            }
        }
    }

    /// Waits for commands until it is to run again.
    fn park(&mut self) {
        self.context.events.send(Event::Parked(self.id));
        loop {
            match self.commands.recv() {
                Ok(Command::Run) => break,
                Ok(Command::Capture(msr_indices)) => {
                    let state = vcpu_state::capture(self.id, self.fd, &msr_indices).map(Box::new);
                    self.context.events.send(Event::Captured(self.id, state));
                }
                // The loop is gone: the process ends.
                Err(_) => loop {
                    thread::park();
                },
            }
        }
        // A guest that uses kvm-clock is told that it was stopped, so that its watchdog does not bark. Others have
        // no such clock, and KVM says so.
        let _ = self.fd.kvmclock_ctrl();
    }
}

/// How an exit was served.
enum Served {
    Done(Effect),
    Failed(stop_text::FailedExit),
}

fn serve_counted(exit: VcpuExit<'_>, bus: &Bus) -> Served {
    let began = Instant::now();
    let kind = kind_of(&exit);
    let profiled = bus
        .exit_places()
        .map(|places| (places, places.begin((kind, address_of(&exit)))));
    let served = serve(exit, bus);
    if let Some((places, place)) = profiled {
        places.end(place, began);
    }
    let kind = match &served {
        Served::Done(_) => kind,
        Served::Failed(_) => ExitKind::Failed,
    };
    bus.counters().note_exit(kind, began);
    served
}

const fn kind_of(exit: &VcpuExit<'_>) -> ExitKind {
    match exit {
        VcpuExit::MmioRead(..) => ExitKind::MmioRead,
        VcpuExit::MmioWrite(..) => ExitKind::MmioWrite,
        VcpuExit::IoIn(..) => ExitKind::IoIn,
        VcpuExit::IoOut(..) => ExitKind::IoOut,
        VcpuExit::SystemEvent(..) => ExitKind::SystemEvent,
        _ => ExitKind::Interrupted,
    }
}

/// Guest-physical address or port.
const fn address_of(exit: &VcpuExit<'_>) -> Option<u64> {
    match exit {
        VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _) => Some(*address),
        VcpuExit::IoIn(port, _) | VcpuExit::IoOut(port, _) => Some(*port as u64),
        _ => None,
    }
}

fn serve(exit: VcpuExit<'_>, bus: &Bus) -> Served {
    use stop_text::FailedExit;
    let effect = match exit {
        VcpuExit::MmioWrite(address, data) => bus.mmio_write(address, data),
        VcpuExit::MmioRead(address, data) => {
            bus.mmio_read(address, data);
            Effect::None
        }
        VcpuExit::IoOut(port, data) => bus.port_write(port, data),
        VcpuExit::IoIn(port, data) => {
            bus.port_read(port, data);
            Effect::None
        }
        VcpuExit::Shutdown => return Served::Failed(FailedExit::Shutdown),
        VcpuExit::SystemEvent(event, _) => Effect::Stop(stop_text::system_event(event)),
        VcpuExit::InternalError => return Served::Failed(FailedExit::InternalError),
        VcpuExit::FailEntry(reason, cpu) => {
            return Served::Failed(FailedExit::Entry { reason, cpu });
        }
        // KVM asks for nothing by these.
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) => Effect::None,
        // With KVM's own local APIC a halt does not leave the kernel; if it does, the guest goes on.
        VcpuExit::Hlt => Effect::None,
        other => return Served::Failed(FailedExit::Unexpected(format!("{other:?}"))),
    };
    Served::Done(effect)
}

#[cfg(test)]
mod tests {
    use std::io::sink;
    use std::path::Path;

    use lightv_devices::i8042::I8042;
    use lightv_devices::serial::Serial;
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::bus::PortDevices;
    use crate::event::event_channel;
    use crate::output::GuestOutput;
    use crate::stamps::Stamps;
    use crate::vm::{KVM_PATH, open_kvm};

    fn context() -> VcpuContext {
        let ports = PortDevices {
            serial: Serial::new(EventFd::new(0).unwrap(), Box::new(sink())),
            i8042: I8042::new(EventFd::new(0).unwrap()),
        };
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let stamps = Arc::new(Stamps::new("boot", 0, None, None));
        let output = GuestOutput::stdout();
        let (events, _loop) = event_channel().unwrap();
        VcpuContext {
            bus: Arc::new(Bus::new(Vec::new(), ports, output, Arc::new(mem), stamps)),
            events,
            control_page: Arc::new(ControlPage::map(0).unwrap()),
            gate: Arc::default(),
            cpus: Arc::default(),
        }
    }

    #[test]
    fn what_a_vcpu_is_asked_before_it_has_woken_is_not_forgotten() {
        let Ok(kvm) = open_kvm(Path::new(KVM_PATH)) else {
            return;
        };
        let fd = kvm.create_vm().unwrap().create_vcpu(0).unwrap();
        let (mut vcpu, handle) = prepare(0, fd, context());
        handle.ask_to_park();
        handle.run();
        handle.ask_to_park();
        // It comes back when it finds that it may go on.
        vcpu.park();
        assert!(vcpu.shared.park_wanted.load(Ordering::SeqCst));
        let entered = vcpu.fd.run().map(|exit| format!("{exit:?}"));
        assert_eq!(entered.map_err(|error| error.errno()), Err(libc::EINTR));
        handle.run();
        assert!(!vcpu.shared.park_wanted.load(Ordering::SeqCst));
    }
}
