//! What is done before the process ends in good order: files that stand for it are taken away. The process ends by
//! `_exit`, so nothing is dropped by itself.

use std::sync::Mutex;

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
