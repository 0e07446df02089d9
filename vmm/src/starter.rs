//! Programs that the REST API's controller needs are started by another thread: a program is held to the system calls of the
//! thread that started it, and the controller's list would be no use to it, nor a list with `execve` to the controller.
//!
//! That thread ends before the guest's first instruction. Where the machine is named by flags there is none: the main thread
//! starts programs while it builds the machine, before it is confined.

use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use crate::lock::lock;
use crate::sandbox::{self, ThreadKind};

type Task = Box<dyn FnOnce() + Send>;

enum State {
    /// Whoever wants a program starts it.
    Unneeded,
    Working(Sender<Task>, JoinHandle<()>),
    Over,
}

static STATE: Mutex<State> = Mutex::new(State::Unneeded);

/// Stack of the thread.
const STACK_BYTES: usize = 64 << 10;

/// There is no such thread any more: a machine runs.
#[derive(Debug, thiserror::Error)]
#[error("No program can be started for a machine that runs")]
pub struct OverError;

/// Starts the thread, which is confined when this comes back. The calling thread must not be confined yet.
///
/// # Errors
/// The kernel's, when there are no threads left, or it could not be confined.
pub fn start() -> io::Result<()> {
    let (tasks, to_do) = channel::<Task>();
    let (sender, confined) = channel();
    let thread = thread::Builder::new()
        .name(ThreadKind::Starter.name().to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let result = sandbox::confine(ThreadKind::Starter, None);
            let is_confined = result.is_ok();
            let _ = sender.send(result);
            if is_confined {
                to_do.into_iter().for_each(|task| task());
            }
        })?;
    let result = confined.recv().map_err(io::Error::other)?;
    result.map_err(io::Error::other)?;
    *lock(&STATE) = State::Working(tasks, thread);
    Ok(())
}

/// Has `task`, which starts a program, done where that can be done, and waits for it.
///
/// # Errors
/// [`OverError`].
pub fn run<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> Result<T, OverError> {
    let state = lock(&STATE);
    let tasks = match &*state {
        State::Unneeded => {
            drop(state);
            return Ok(task());
        }
        State::Working(tasks, _) => tasks.clone(),
        State::Over => return Err(OverError),
    };
    drop(state);
    let (sender, done) = channel();
    let send_back = move || drop(sender.send(task()));
    tasks.send(Box::new(send_back)).map_err(|_| OverError)?;
    done.recv().map_err(|_| OverError)
}

/// Ends the thread, if there is one, and waits for that.
pub fn end() {
    let mut state = lock(&STATE);
    if let State::Working(..) = *state
        && let State::Working(tasks, thread) = std::mem::replace(&mut *state, State::Over)
    {
        drop(tasks);
        // It does not panic: that would have ended the process.
        let _ = thread.join();
    }
}
