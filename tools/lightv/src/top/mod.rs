//! `lightv top`: all microVMs of the host on a screen.
//!
//! [`sampler`] looks at them on a thread of its own; [`app`] holds what is shown, and says what a key means; [`view`] draws
//! it; [`screen`] is the terminal. Only this file puts them together.

mod app;
mod columns;
mod history;
mod keys;
mod sampler;
mod screen;
mod theme;
mod view;

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use lightv_api::exit;
use lightv_api::runtime::VmRecord;
use ratatui::crossterm::event::KeyEvent;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use signal_hook::low_level::emulate_default_handler;

use self::app::{Action, App};
use self::keys::Keys;
use self::sampler::{Sample, Sampler};
use self::screen::Screen;
use self::theme::Theme;
use crate::cmd::stop;
use crate::failure::{Coded, Failure};
use crate::watch::listen;

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
enum TopError {
    #[error(
        "lightv top needs a terminal for its input and output; `lightv stats --watch` writes to files and pipes too"
    )]
    NoTerminal,
    #[error("Cannot set up the terminal")]
    Terminal(#[source] io::Error),
    #[error("Cannot wait for keys and signals")]
    Wait(#[source] io::Error),
}

impl Coded for TopError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoTerminal => exit::BAD_ARGUMENTS,
            Self::Terminal(_) | Self::Wait(_) => exit::HOST_FAILURE,
        }
    }
}

/// What has happened.
#[derive(Debug)]
enum News {
    Sample(Sample),
    /// A microVM was stopped, or not: a word of it.
    Stopped(String),
}

/// Signals that are for the screen.
const SIGNALS: [Signal; 6] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::TSTP,
    Signal::CONT,
    Signal::WINCH,
];

/// Shows all microVMs, looked at every `interval`, until it is told to end.
pub(crate) fn run(interval: Duration) -> Result<ExitCode, Failure> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal.into());
    }
    let mut waiting = Waiting::new().map_err(TopError::Wait)?;
    let sampler = Sampler::start(interval, waiting.post()?);
    let mut screen = Screen::enter().map_err(TopError::Terminal)?;
    let mut app = App::new(Theme::of_environment());
    loop {
        screen
            .draw(|frame| view::draw(frame, &mut app))
            .map_err(TopError::Terminal)?;
        sampler.set_focus(app.focus());
        for event in waiting.next().map_err(TopError::Wait)? {
            let action = match event {
                Event::Signal(Signal::TSTP) => Action::Suspend,
                Event::Signal(Signal::CONT) => {
                    screen.resume().map_err(TopError::Terminal)?;
                    Action::None
                }
                Event::Signal(Signal::WINCH) => Action::None,
                Event::Signal(signal) => {
                    let number = signal.as_raw();
                    return Ok(ExitCode::from(
                        u8::try_from(128 + number).unwrap_or(exit::FAILURE),
                    ));
                }
                Event::Hangup => return Ok(ExitCode::SUCCESS),
                Event::News(News::Sample(sample)) => {
                    app.take(sample?);
                    Action::None
                }
                Event::News(News::Stopped(text)) => {
                    app.say(text);
                    Action::None
                }
                Event::Key(key) => app.press(key),
            };
            match action {
                Action::None => {}
                Action::Quit => return Ok(ExitCode::SUCCESS),
                Action::Suspend => {
                    screen.suspend();
                    // Comes back when somebody has us go on.
                    let stopped = emulate_default_handler(Signal::TSTP.as_raw());
                    stopped.map_err(TopError::Terminal)?;
                    screen.resume().map_err(TopError::Terminal)?;
                }
                Action::Stop { vm, patience } => stop_aside(vm, patience, waiting.post()?),
            }
        }
    }
}

/// Stops `vm` on a thread of its own: it may take long.
fn stop_aside(vm: VmRecord, patience: Option<Duration>, post: Post) {
    let body = move || {
        let stopped = stop::stop(&vm, patience);
        post.send(News::Stopped(match stopped {
            Ok(()) => format!("{} (process {}) has ended", vm.id, vm.pid),
            Err(failure) => failure.text(),
        }));
    };
    // Without a thread nothing is stopped, which is seen.
    let _ = thread::Builder::new().name("stop".into()).spawn(body);
}

/// Where threads put what they have found out.
#[derive(Debug)]
struct Post {
    news: Sender<News>,
    bell: UnixStream,
}

impl Post {
    /// Whether there is still somebody who reads it.
    fn send(&self, news: News) -> bool {
        // A bell that has rung so often that its stream is full rings anyway.
        self.news.send(news).is_ok() && {
            let _ = (&self.bell).write(&[0]);
            true
        }
    }
}

/// What is waited for, all at once.
#[derive(Debug)]
struct Waiting {
    signals: Vec<(Signal, UnixStream)>,
    news: Receiver<News>,
    sender: Sender<News>,
    bell: UnixStream,
    rope: UnixStream,
    keys: Keys,
}

/// See [`News`] and [`SIGNALS`].
#[derive(Debug)]
enum Event {
    Signal(Signal),
    News(News),
    Key(KeyEvent),
    /// The terminal is gone.
    Hangup,
}

impl Waiting {
    fn new() -> io::Result<Self> {
        let (sender, news) = channel();
        let (bell, rope) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        rope.set_nonblocking(true)?;
        let signals = SIGNALS.into_iter().map(listen);
        Ok(Self {
            signals: signals.collect::<io::Result<_>>()?,
            news,
            sender,
            bell,
            rope,
            keys: Keys::default(),
        })
    }

    fn post(&self) -> Result<Post, TopError> {
        let bell = self.rope.try_clone().map_err(TopError::Wait)?;
        let news = self.sender.clone();
        Ok(Post { news, bell })
    }

    /// Waits until there is something, and gives all of it.
    fn next(&mut self) -> io::Result<Vec<Event>> {
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&self.bell, PollFlags::IN),
        ];
        fds.extend(
            self.signals
                .iter()
                .map(|(_, stream)| PollFd::new(stream, PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(cause) => return Err(cause.into()),
        }
        let typed = fds[0].revents();
        let mut events = Vec::new();
        for (signal, stream) in &mut self.signals {
            if matches!(stream.read(&mut [0; 64]), Ok(len) if len > 0) {
                events.push(Event::Signal(*signal));
            }
        }
        while matches!(self.bell.read(&mut [0; 64]), Ok(len) if len > 0) {}
        events.extend(self.news.try_iter().map(Event::News));
        if typed.contains(PollFlags::IN) {
            let mut bytes = [0; 256];
            match rustix::io::read(&stdin, &mut bytes) {
                Ok(0) => events.push(Event::Hangup),
                Ok(length) => {
                    let keys = self.keys.read(&bytes[..length]);
                    events.extend(keys.into_iter().map(Event::Key));
                }
                Err(Errno::INTR) => {}
                // A terminal that is gone says so.
                Err(Errno::IO) => events.push(Event::Hangup),
                Err(cause) => return Err(cause.into()),
            }
        } else if !typed.is_empty() {
            events.push(Event::Hangup);
        }
        Ok(events)
    }
}
