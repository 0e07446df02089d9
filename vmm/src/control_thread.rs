//! The thread of the control loop, and what it does before there is a machine to control.
//!
//! It starts first of all, and makes KVM's VM while the main thread reads and proves the image: both take some 200 µs,
//! and neither needs the other. The main thread then builds the machine, hands it over, and becomes vCPU 0
//! (docs/adr/0006-main-thread-is-vcpu-0.md). Meanwhile it serves signals, so that they end the process at any moment.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::buttons::PressError;
use crate::control::{self, ControlError, Ending, Inherited, SavePlan};
use crate::foreground::Leash;
use crate::machine::Running;
use crate::poller::{Poller, Token};
use crate::report;
use crate::sys::signal::{self, SignalFd};
use crate::vm::{NewVm, VmError, open_kvm};

/// An empty VM.
#[derive(Debug)]
pub struct EmptyVm {
    /// KVM.
    pub kvm: Kvm,
    /// The VM.
    pub vm: NewVm,
}

/// What the loop is given to run.
#[derive(Debug)]
pub struct Assignment {
    /// The machine.
    pub running: Running,
    /// Whether it is saved.
    pub plan: Option<SavePlan>,
    /// Of a run with a terminal: the terminal, and who waits for us.
    pub leash: Option<Leash>,
}

/// The main thread's end.
#[derive(Debug)]
pub struct ControlThread {
    kvm_path: PathBuf,
    /// Whoever sets it makes the VM.
    is_taken: Arc<AtomicBool>,
    vm: Receiver<Result<EmptyVm, VmError>>,
    assignments: Sender<Assignment>,
    wake: Arc<EventFd>,
}

/// Stack of the thread: the deepest path is a save, some tens of KiB.
const STACK_BYTES: usize = 512 << 10;

impl ControlThread {
    /// Starts the thread, which makes an empty VM by `kvm_path`, waits for an assignment, runs it, and calls `finish`
    /// with how it ended.
    ///
    /// # Errors
    /// The kernel's, when there are no threads or descriptors left.
    pub fn start(
        kvm_path: PathBuf,
        finish: impl FnOnce(Result<Ending, ControlError>) + Send + 'static,
    ) -> io::Result<Self> {
        let (vm_sender, vm) = channel();
        let (assignments, receiver) = channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let signals = SignalFd::open()?;
        let waiting = Waiting {
            receiver,
            wake: Arc::clone(&wake),
            signals,
        };
        let is_taken = Arc::new(AtomicBool::new(false));
        let (taken, path) = (Arc::clone(&is_taken), kvm_path.clone());
        let body = move || {
            if !taken.swap(true, Ordering::SeqCst) {
                // A main thread that is gone takes the process with it.
                let _ = vm_sender.send(make_vm(&path));
            }
            // Who asks for a second one is told that none comes from here.
            drop(vm_sender);
            finish(waiting.run());
        };
        thread::Builder::new()
            .name("control".into())
            .stack_size(STACK_BYTES)
            .spawn(body)?;
        Ok(Self {
            kvm_path,
            is_taken,
            vm,
            assignments,
            wake,
        })
    }

    /// An empty VM: made by the thread, or here, when all CPUs are busy and the thread has not had its turn yet.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn take_vm(&self) -> Result<EmptyVm, VmError> {
        if !self.is_taken.swap(true, Ordering::SeqCst) {
            return make_vm(&self.kvm_path);
        }
        // There is one of its; after a machine that could not be built, the next is made here.
        self.vm.recv().unwrap_or_else(|_| make_vm(&self.kvm_path))
    }

    /// Hands a machine over to the loop.
    pub fn assign(&self, assignment: Assignment) {
        // The thread waits for it and cannot be gone; the first write to a counter cannot fail.
        let _ = self.assignments.send(assignment);
        let _ = self.wake.write(1);
    }
}

fn make_vm(kvm_path: &Path) -> Result<EmptyVm, VmError> {
    let kvm = open_kvm(kvm_path)?;
    let vm = NewVm::create(&kvm)?;
    Ok(EmptyVm { kvm, vm })
}

/// The thread while there is no machine.
struct Waiting {
    receiver: Receiver<Assignment>,
    wake: Arc<EventFd>,
    signals: SignalFd,
}

impl Waiting {
    /// Waits for an assignment and runs it. A signal ends the wait, and the process with it.
    fn run(self) -> Result<Ending, ControlError> {
        let poller = Poller::new(&self.wake, &self.signals).map_err(ControlError::Poll)?;
        let mut save_is_wanted = false;
        loop {
            for token in poller.wait(None).map_err(ControlError::Poll)? {
                if token == Token::Signals {
                    match self.signals.next() {
                        Some(libc::SIGUSR1) => save_is_wanted = true,
                        // There is no guest yet that could have a driver for it.
                        Some(libc::SIGPWR) => report::warn(&PressError::NoDrivers),
                        // The size is asked for when there is a machine.
                        Some(libc::SIGWINCH) | None => {}
                        Some(gone) if gone == signal::parent_gone() => {
                            return Ok(Ending::by_signal(libc::SIGHUP));
                        }
                        Some(signal) => return Ok(Ending::by_signal(signal)),
                    }
                } else if let Ok(assignment) = self.receiver.try_recv() {
                    let Assignment {
                        running,
                        plan,
                        leash,
                    } = assignment;
                    let inherited = Inherited {
                        signals: self.signals,
                        save_is_wanted,
                        leash,
                    };
                    drop(poller);
                    return control::run(running, plan, inherited);
                }
            }
        }
    }
}
