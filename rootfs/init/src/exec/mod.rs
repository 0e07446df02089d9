//! Programs that the host starts in the running guest (docs/exec.md). The agent listens on a port of vsock; each stream is one
//! program. All of it is served by the agent's one loop: nothing here blocks, and all that is kept has a limit.
//!
//! The socket listens from before the machine is saved, so a start has nothing to do for it. A restore ends streams, and with
//! them their programs get SIGHUP; the socket goes on.

mod launch;
mod session;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use lightv_contract::exec::{PORT, PROGRAMS_MAX};
use rustix::event::PollFlags;
use rustix::process::Pid;

use self::session::{Part, Session};
use crate::message::{plain, say};
use crate::ports::entries;
use crate::sys::control_page::ControlPage;
use crate::sys::socket::{accept_vsock, listen_vsock};

/// Folder of the driver; devices that it serves are links in it.
const DRIVER: &str = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
/// Clients that wait to be let in.
const BACKLOG: i32 = 16;
/// Streams at a time, with those that are only told that there are too many.
const STREAMS_MAX: usize = 2 * PROGRAMS_MAX;
/// Context id of the host (vsock(7)). Programs of the guest itself are not served: whoever they are, they would be root.
const HOST: u32 = libc::VMADDR_CID_HOST;

/// Something to wait for.
#[derive(Debug)]
pub struct Interest<'a> {
    /// The file.
    pub fd: BorrowedFd<'a>,
    /// For what.
    pub events: PollFlags,
    /// Whose it is.
    pub token: Token,
}

/// Which of the server's files one is.
#[derive(Debug, Clone, Copy)]
pub enum Token {
    /// Clients.
    Listener,
    /// Part of a session, by its place.
    Session(usize, Part),
}

/// The socket, and what runs.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    page: ControlPage,
    sessions: Vec<Session>,
}

impl Server {
    /// Listens, if the machine has vsock. `page` has the orders of the run at any time.
    #[must_use]
    pub fn listen(page: ControlPage) -> Option<Self> {
        if !entries(DRIVER)
            .iter()
            .any(|name| name.starts_with("virtio"))
        {
            return None;
        }
        match listen_vsock(PORT, BACKLOG) {
            Ok(listener) => Some(Self {
                listener,
                page,
                sessions: Vec::new(),
            }),
            Err(error) => {
                say(format_args!(
                    "lightv exec will not work: port {PORT} of vsock: {}",
                    plain(&error)
                ));
                None
            }
        }
    }

    /// What there is to wait for.
    #[must_use]
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let mut all = Vec::new();
        if self.sessions.len() < STREAMS_MAX {
            all.push(Interest {
                fd: self.listener.as_fd(),
                events: PollFlags::IN,
                token: Token::Listener,
            });
        }
        for (place, session) in self.sessions.iter().enumerate() {
            session.add_interests(|fd, events, part| {
                let token = Token::Session(place, part);
                all.push(Interest { fd, events, token });
            });
        }
        all
    }

    /// When [`serve`](Self::serve) is to be called at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.sessions.iter().filter_map(Session::deadline).min()
    }

    /// Serves what is ready of [`interests`](Self::interests), and what is late.
    pub fn serve(&mut self, ready: &[Token]) {
        for token in ready {
            match *token {
                Token::Listener => self.accept(),
                Token::Session(place, part) => {
                    if let Some(session) = self.sessions.get_mut(place) {
                        session.serve(part, &self.page);
                    }
                }
            }
        }
        let now = Instant::now();
        self.sessions
            .iter_mut()
            .for_each(|session| session.settle(now));
        self.sessions.retain(|session| !session.is_over());
    }

    /// Lets in those that wait. One too many is told so.
    fn accept(&mut self) {
        loop {
            match accept_vsock(&self.listener) {
                Ok((stream, HOST)) => {
                    let mut session = Session::new(stream);
                    if self.sessions.len() >= PROGRAMS_MAX {
                        session.turn_away();
                    }
                    self.sessions.push(session);
                }
                // Closed by being dropped.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // None left, or none to be had now.
                Err(_) => return,
            }
            if self.sessions.len() >= STREAMS_MAX {
                return;
            }
        }
    }

    /// The process `pid` has ended, whoever's it was.
    pub fn ended(&mut self, pid: Pid, status: i32) {
        for session in &mut self.sessions {
            session.ended(pid, status);
        }
    }
}
