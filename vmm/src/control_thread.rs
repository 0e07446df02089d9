//! The thread of the control loop, and what it does before there is a machine to control.
//!
//! It starts first of all, and makes KVM's VM while the main thread reads and proves the image: both take some 200 µs,
//! and neither needs the other. The main thread then builds the machine, hands it over, and becomes vCPU 0
//! (docs/adr/0006-main-thread-is-vcpu-0.md). Meanwhile it serves signals, so that they end the process at any moment.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::buttons::PressError;
use crate::confinement;
use crate::control::{self, ControlError, Ending, Inherited, SavePlan};
use crate::foreground::Leash;
use crate::lock::lock;
use crate::machine::{Machine, Running};
use crate::poller::{Poller, Token};
use crate::report;
use crate::sandbox::{self, ConfineError, Rules, ThreadKind};
use crate::seat::{PoolLink, Seat, Work};
use crate::sys::process;
use crate::sys::signal::{self, SignalFd};
use crate::vm::{NewVm, VmError, open_kvm};

/// An empty VM.
#[derive(Debug)]
pub struct EmptyVm {
    /// KVM.
    pub kvm: Kvm,
    /// The VM.
    pub vm: NewVm,
    /// When it was made, for [`Stamps::marks_at`](crate::stamps::Stamps::marks_at).
    pub marks: VmMarks,
}

/// What a thread has done, and when (CLOCK_MONOTONIC, in nanoseconds).
pub type Marks<const N: usize> = [(&'static str, u64); N];

/// Who made a VM, and when.
#[derive(Debug)]
pub struct VmMarks {
    /// The thread.
    pub thread: Thread,
    /// The steps.
    pub marks: Marks<3>,
}

/// What the loop is given to run.
#[derive(Debug)]
pub struct Assignment {
    /// The machine.
    pub running: Running,
    /// The files that may be opened from now on; `None`: all.
    pub rules: Option<Rules>,
    /// Whether it is saved.
    pub plan: Option<SavePlan>,
    /// Of a run with a terminal: the terminal, and who waits for us.
    pub leash: Option<Leash>,
    /// Of a machine of a pool, which waits for its work.
    pub seat: Option<Seat>,
}

/// What the thread is told.
enum Task {
    /// To make no other system calls than those of its list, and to say whether that was done.
    Confine(Sender<Result<Marks<2>, ConfineError>>),
    Run(Box<Assignment>),
}

/// The main thread's end.
#[derive(Debug)]
pub struct ControlThread {
    kvm_path: PathBuf,
    /// Whoever sets it makes the VM.
    is_taken: Arc<AtomicBool>,
    vm: Receiver<Result<EmptyVm, VmError>>,
    orders: ControlOrders,
    /// Whether it was asked to hold itself to its list.
    is_confined: AtomicBool,
    /// Its answer, until it was looked at.
    confined: Mutex<Option<Receiver<Result<Marks<2>, ConfineError>>>>,
}

/// How long the main thread waits for the VM without sleeping: as long as KVM needs for it.
const AWAKE_MAX: Duration = Duration::from_micros(400);

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
        let (tasks, receiver) = channel();
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
            orders: ControlOrders { tasks, wake },
            is_confined: AtomicBool::new(false),
            confined: Mutex::new(None),
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
        self.wait_for_vm()
            .unwrap_or_else(|| make_vm(&self.kvm_path))
    }

    /// What the thread has made. It is about to be done: whoever sleeps until then is woken up later than that.
    fn wait_for_vm(&self) -> Option<Result<EmptyVm, VmError>> {
        let began = Instant::now();
        while began.elapsed() < AWAKE_MAX {
            match self.vm.try_recv() {
                Ok(made) => return Some(made),
                Err(TryRecvError::Disconnected) => return None,
                // Another thread that waits for this CPU goes first, the one that makes the VM among them.
                Err(TryRecvError::Empty) => thread::yield_now(),
            }
        }
        self.vm.recv().ok()
    }

    /// Has the thread hold itself to its list of system calls, once it is known which: it does so while others prepare the
    /// machine. Once is enough.
    pub fn confine(&self) {
        if self.is_confined.swap(true, Ordering::SeqCst) {
            return;
        }
        let (reply, confined) = channel();
        *lock(&self.confined) = Some(confined);
        self.orders.tell(Task::Confine(reply));
    }

    /// Waits until that was done, and gives when it was, once. To be called before there is anything of a guest.
    ///
    /// # Errors
    /// [`ConfineError`].
    pub fn wait_confined(&self) -> Result<Option<Marks<2>>, ConfineError> {
        self.confine();
        let asked = lock(&self.confined).take();
        // A thread that is gone takes the process with it.
        let answer = asked.and_then(|confined| confined.recv().ok());
        answer.transpose()
    }

    /// Hands a machine over to the loop.
    pub fn assign(&self, assignment: Assignment) {
        self.orders.assign(assignment);
    }

    /// The way to the thread alone, for whoever gives away the rest.
    #[must_use]
    pub fn orders(&self) -> ControlOrders {
        self.orders.clone()
    }
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub struct ControlOrders {
    tasks: Sender<Task>,
    wake: Arc<EventFd>,
}

impl ControlOrders {
    /// Hands a machine over to the loop.
    pub fn assign(&self, assignment: Assignment) {
        self.tell(Task::Run(Box::new(assignment)));
    }

    fn tell(&self, task: Task) {
        // The thread waits for it and cannot be gone; a counter of a few tasks cannot be full.
        let _ = self.tasks.send(task);
        let _ = self.wake.write(1);
    }
}

fn make_vm(kvm_path: &Path) -> Result<EmptyVm, VmError> {
    let began = ("idle", process::monotonic_ns());
    let kvm = open_kvm(kvm_path)?;
    let opened = ("kvm opened", process::monotonic_ns());
    let vm = NewVm::create(&kvm)?;
    let created = ("vm created", process::monotonic_ns());
    let marks = VmMarks {
        thread: thread::current(),
        marks: [began, opened, created],
    };
    Ok(EmptyVm { kvm, vm, marks })
}

/// What a machine of a pool has waited for.
enum Waited {
    Work(PoolLink),
    End(Ending),
}

/// The thread while there is no machine.
struct Waiting {
    receiver: Receiver<Task>,
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
                    if let Some(ending) = self.serve_signal(&mut save_is_wanted) {
                        return Ok(ending);
                    }
                } else if let Some(assignment) = self.next_assignment() {
                    return self.take_over(*assignment, poller, save_is_wanted);
                }
            }
        }
    }

    /// Serves the next signal, if there is one.
    fn serve_signal(&self, save_is_wanted: &mut bool) -> Option<Ending> {
        match self.signals.next()? {
            libc::SIGUSR1 => {
                *save_is_wanted = true;
                None
            }
            libc::SIGPWR => {
                // There is no guest yet that could have a driver for it.
                report::warn(&PressError::NoDrivers);
                None
            }
            // The size is asked for when there is a machine.
            libc::SIGWINCH => None,
            gone if gone == signal::parent_gone() => Some(Ending::by_signal(libc::SIGHUP)),
            number if number == signal::cannot_go_on() => Ending::by_own_thread(),
            signal => Some(Ending::by_signal(signal)),
        }
    }

    /// Runs a machine, once there is work for it.
    fn take_over(
        self,
        assignment: Assignment,
        poller: Poller,
        mut save_is_wanted: bool,
    ) -> Result<Ending, ControlError> {
        let Assignment {
            mut running,
            rules,
            plan,
            leash,
            seat,
        } = assignment;
        let pool = match seat {
            Some(seat) => {
                let machine = &mut running.machine;
                match self.wait_for_work(seat, &poller, machine, &mut save_is_wanted)? {
                    Waited::Work(pool) => Some(pool),
                    Waited::End(ending) => return Ok(ending),
                }
            }
            None => None,
        };
        if let Some(cpu) = running.machine.config.tuning().control_cpu {
            let held = sandbox::hold_to_cpu(ThreadKind::Control, cpu);
            held.map_err(ControlError::Confine)?;
        }
        running.machine.stamps.mark("idle");
        if let Some(rules) = rules {
            // Before anything of the guest is looked at.
            let rules = confinement::with_runtime_folder(rules);
            let restricted = sandbox::restrict(ThreadKind::Control, &rules);
            restricted.map_err(ControlError::Confine)?;
            running.machine.stamps.mark("files restricted");
        }
        let inherited = Inherited {
            signals: self.signals,
            save_is_wanted,
            leash,
            pool,
        };
        drop(poller);
        control::run(running, plan, inherited)
    }

    /// Waits until the machine has work; or its end, if that comes first.
    fn wait_for_work(
        &self,
        mut seat: Seat,
        poller: &Poller,
        machine: &mut Machine,
        save_is_wanted: &mut bool,
    ) -> Result<Waited, ControlError> {
        let pool = seat.as_fd().as_raw_fd();
        poller
            .watch(pool, Token::Pool)
            .map_err(ControlError::Poll)?;
        seat.tell_ready();
        loop {
            for token in poller.wait(None).map_err(ControlError::Poll)? {
                match token {
                    Token::Signals => {
                        if let Some(ending) = self.serve_signal(save_is_wanted) {
                            return Ok(Waited::End(ending));
                        }
                    }
                    Token::Pool => match seat.take_work(machine) {
                        Work::Begun(pool) => return Ok(Waited::Work(pool)),
                        Work::None => {}
                        Work::PoolGone => {
                            return Ok(Waited::End(Ending::by_signal(libc::SIGHUP)));
                        }
                        Work::Failed(error) => return Err(ControlError::Begin(error)),
                    },
                    // Nobody tells it anything meanwhile.
                    _ => drop(self.wake.read()),
                }
            }
        }
    }

    /// Does what it was told, up to the machine that it is given to run.
    fn next_assignment(&self) -> Option<Box<Assignment>> {
        let _ = self.wake.read();
        loop {
            match self.receiver.try_recv().ok()? {
                // Who has asked waits for it, or is gone with the process.
                Task::Confine(reply) => {
                    let idle = ("idle", process::monotonic_ns());
                    let confined = sandbox::confine(ThreadKind::Control, None);
                    let marks = |()| [idle, ("confined", process::monotonic_ns())];
                    let _ = reply.send(confined.map(marks));
                }
                Task::Run(assignment) => return Some(assignment),
            }
        }
    }
}
