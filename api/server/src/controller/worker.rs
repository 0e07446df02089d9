//! The controller on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use lightv_api::request::Request;

use super::{Controller, View};
use crate::exporter::Exporter;
use crate::feed::Feed;
use crate::limits;
use crate::machine::Machine;
use crate::service::{Done, ReplySender, Service};

/// Name of the controller's thread.
const THREAD_NAME: &str = "api-machine";

/// A request on its way to the controller.
type Job = (Request, ReplySender);

/// The server's end: answers by itself what needs no machine, and hands on the rest.
#[derive(Debug)]
pub struct ControllerService {
    view: View,
    feed: Feed,
    jobs: Sender<Job>,
    exporter: Option<Arc<Exporter>>,
}

impl Service for ControllerService {
    fn call(&self, request: Request, reply: ReplySender) {
        let at_once = match (&request, &self.exporter) {
            (Request::GetPrometheus, Some(exporter)) => Some(Ok(exporter.reply())),
            _ => self.view.answer(&request),
        };
        match at_once {
            Some(answer) => reply.send(answer),
            // When the worker has ended, the sender is dropped and the client told so. No more jobs wait than there are
            // connections: each has one request at a time.
            None => drop(self.jobs.send((request, reply))),
        }
    }

    fn feed(&self) -> &Feed {
        &self.feed
    }

    fn note(&self, done: Done) {
        if let Some(exporter) = &self.exporter {
            exporter.note(done.route, done.is_granted, done.took);
        }
    }
}

/// The machine's end.
#[derive(Debug)]
pub struct Worker<M> {
    controller: Controller<M>,
    jobs: Receiver<Job>,
}

impl<M: Machine> Worker<M> {
    /// Serves one request after the other on a thread of its own, until there is no server any more. Comes back when that
    /// thread has called `confine`.
    ///
    /// # Errors
    /// The thread cannot be started, or `confine` fails.
    pub fn spawn<E: Send + 'static>(
        self,
        confine: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> io::Result<Result<(), E>> {
        let (sender, confined) = channel();
        thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .stack_size(limits::MACHINE_STACK_BYTES)
            .spawn(move || {
                let result = confine();
                let is_confined = result.is_ok();
                let _ = sender.send(result);
                if is_confined {
                    self.run();
                }
            })?;
        confined.recv().map_err(io::Error::other)
    }

    /// The same on this thread.
    pub fn run(mut self) {
        while let Ok((request, reply)) = self.jobs.recv() {
            reply.send(self.controller.handle(request));
        }
    }
}

/// Both ends of a controller; with an `exporter`, `GET /metrics` is answered by it.
pub fn split<M: Machine>(
    controller: Controller<M>,
    exporter: Option<Arc<Exporter>>,
) -> (ControllerService, Worker<M>) {
    let (sender, jobs) = channel();
    let service = ControllerService {
        view: controller.view(),
        feed: controller.feed.clone(),
        jobs: sender,
        exporter,
    };
    (service, Worker { controller, jobs })
}
