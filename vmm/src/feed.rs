//! What happens to the machine, on its way to whoever listens: the REST API's `GET /events`. Without a listener, an event is
//! one comparison.

use std::sync::{Mutex, OnceLock};

use lightv_api::event::Happening;

use crate::lock::lock;

type Listener = Box<dyn Fn(Happening) + Send + Sync>;

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// How the process is about to end.
static ENDING: Mutex<Option<Happening>> = Mutex::new(None);

/// Has `listener` told of all that happens from now on, by the thread in which it happens: it must not wait for anybody. A
/// process has one.
pub fn listen(listener: impl Fn(Happening) + Send + Sync + 'static) {
    let _ = LISTENER.set(Box::new(listener));
}

/// Something has happened. It is put into words only if somebody listens.
pub fn publish(what: impl FnOnce() -> Happening) {
    if let Some(listener) = LISTENER.get() {
        listener(what());
    }
}

/// The process ends with `status` once it has tidied up. The first reason counts.
pub fn note_end(status: u8, reason: impl FnOnce() -> String) {
    if LISTENER.get().is_some() {
        let reason = reason();
        lock(&ENDING).get_or_insert(Happening::Ended { status, reason });
    }
}

/// The last event: to be published when all is tidied up.
pub fn ending() -> Option<Happening> {
    lock(&ENDING).take()
}
