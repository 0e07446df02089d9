//! The thread of the control loop, and what it does before there is a machine to control.
//!
//! It starts first of all, and makes KVM's VM while the main thread reads and proves the image: both take some 200 µs,
//! and neither needs the other. The main thread then builds the machine, hands it over, and becomes vCPU 0
//! (docs/adr/0006-main-thread-is-vcpu-0.md).

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use kvm_ioctls::Kvm;

use crate::control::{self, ControlError, Ending, SavePlan};
use crate::machine::Running;
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
}

/// The main thread's end.
#[derive(Debug)]
pub struct ControlThread {
    vm: Receiver<Result<EmptyVm, VmError>>,
    assignment: Sender<Assignment>,
}

/// Stack of the thread: the deepest path is a save, some tens of KiB.
const STACK_BYTES: usize = 512 << 10;

impl ControlThread {
    /// Starts the thread, which makes an empty VM by `kvm_path`, waits for an assignment, runs it, and calls `finish`
    /// with how it ended.
    ///
    /// # Errors
    /// The kernel's, when there are no threads left.
    pub fn start(
        kvm_path: PathBuf,
        finish: impl FnOnce(Result<Ending, ControlError>) + Send + 'static,
    ) -> io::Result<Self> {
        let (vm_sender, vm) = channel();
        let (assignment, assignments) = channel::<Assignment>();
        let body = move || {
            let empty = open_kvm(&kvm_path)
                .and_then(|kvm| NewVm::create(&kvm).map(|vm| EmptyVm { kvm, vm }));
            // A main thread that is gone takes the process with it.
            let _ = vm_sender.send(empty);
            if let Ok(Assignment { running, plan }) = assignments.recv() {
                finish(control::run(running, plan));
            }
        };
        thread::Builder::new()
            .name("control".into())
            .stack_size(STACK_BYTES)
            .spawn(body)?;
        Ok(Self { vm, assignment })
    }

    /// The empty VM; waits until it is made.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn take_vm(&self) -> Result<EmptyVm, VmError> {
        self.vm.recv().unwrap_or(Err(VmError::Call {
            what: "create a VM twice",
            cause: kvm_ioctls::Error::new(libc::EBUSY),
        }))
    }

    /// Hands a machine over to the loop.
    pub fn assign(&self, assignment: Assignment) {
        // The thread waits for it and cannot be gone.
        let _ = self.assignment.send(assignment);
    }
}
