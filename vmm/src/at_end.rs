//! What is done before the process ends in good order: files that stand for it are taken away. The process ends by
//! `_exit`, so nothing is dropped by itself.

use std::sync::Mutex;
use std::thread;

use crate::lock::lock;

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Tasks {
    list: Vec<Task>,
    /// The process is ending.
    is_over: bool,
}

static TASKS: Mutex<Tasks> = Mutex::new(Tasks {
    list: Vec::new(),
    is_over: false,
});

/// Has `task` done at the end; at once when the end has come already.
pub fn register(task: impl FnOnce() + Send + 'static) {
    let mut tasks = lock(&TASKS);
    if tasks.is_over {
        drop(tasks);
        task();
    } else {
        tasks.list.push(Box::new(task));
    }
}

/// Makes something that has to be taken away at the end: `make` gives it, and how. The end waits for that, so that nothing
/// is made and not yet registered when it comes. It must be quick, and not come back here.
///
/// # Errors
/// Those of `make`, which has then made nothing.
pub fn make<T, E, U>(make: impl FnOnce() -> Result<(T, U), E>) -> Result<T, E>
where
    U: FnOnce() + Send + 'static,
{
    let mut tasks = lock(&TASKS);
    if tasks.is_over {
        drop(tasks);
        // Another thread is about to end the process.
        loop {
            thread::park();
        }
    }
    let (made, undo) = make()?;
    tasks.list.push(Box::new(undo));
    Ok(made)
}

/// Has nothing done that was registered: in a process that is a copy of the one whose it is.
pub fn forget() {
    // Not dropped either: what they hold would go with them.
    std::mem::forget(std::mem::take(&mut lock(&TASKS).list));
}

/// Does all that was registered, the last first.
pub fn run() {
    let tasks = {
        let mut tasks = lock(&TASKS);
        tasks.is_over = true;
        std::mem::take(&mut tasks.list)
    };
    for task in tasks.into_iter().rev() {
        task();
    }
}
