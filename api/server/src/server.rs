//! The server: one thread, which serves all clients.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::thread;

use tokio::net::UnixStream;
use tokio::runtime;
use tokio::task::{LocalSet, spawn_local};

use crate::answer::too_many_connections;
use crate::connection;
use crate::limits;
use crate::service::Service;
use crate::settings::Settings;

/// Name of the server's thread.
const THREAD_NAME: &str = "api";

/// Serves `listener` on a thread of its own, until the process ends. The thread calls `confine` before anything else, and serves
/// nobody before that comes back.
///
/// # Errors
/// The thread cannot be started.
pub fn spawn(
    listener: UnixListener,
    service: impl Service,
    settings: Settings,
    confine: impl FnOnce() -> io::Result<()> + Send + 'static,
    on_failure: impl FnOnce(io::Error) + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new()
        .name(THREAD_NAME.to_owned())
        .stack_size(limits::STACK_BYTES)
        .spawn(
            move || match confine().and_then(|()| run(listener, service, settings)) {
                Ok(never) => match never {},
                Err(error) => on_failure(error),
            },
        )
        .map(drop)
}

/// Serves `listener` on this thread.
///
/// # Errors
/// The host refuses what a server needs: an epoll, an eventfd. Nothing that a client does ends it.
pub fn run(
    listener: UnixListener,
    service: impl Service,
    settings: Settings,
) -> io::Result<Infallible> {
    listener.set_nonblocking(true)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        accept_all(&listener, Rc::new(service), settings).await
    })
}

async fn accept_all(
    listener: &tokio::net::UnixListener,
    service: Rc<dyn Service>,
    settings: Settings,
) -> io::Result<Infallible> {
    let live = Rc::new(Cell::new(0_usize));
    loop {
        // The client may have gone, or descriptors may be short: neither is a reason to serve nobody.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            continue;
        };
        if live.get() >= settings.connections_max {
            refuse(stream);
            continue;
        }
        let place = Place::take(&live);
        let service = Rc::clone(&service);
        spawn_local(async move {
            connection::serve(stream, service, settings).await;
            drop(place);
        });
    }
}

/// A connection's place among those that there may be; free when it is dropped.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(live: &Rc<Cell<usize>>) -> Self {
        live.set(live.get() + 1);
        Self(Rc::clone(live))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Tells a client that there is no place. The socket is new and its buffer empty: the answer fits or the client is gone.
fn refuse(stream: UnixStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(&too_many_connections());
    }
}
