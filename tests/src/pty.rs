//! A terminal that a test sits at: a process has its other end, as its controlling terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::process::{DEADLINE, wait_for};

/// Between two looks at a screen, which take more than others.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A process at a terminal; it is killed when this is dropped.
#[derive(Debug)]
pub struct AtTerminal {
    keyboard: File,
    /// Our own hold on the process's end: a terminal without one has no settings.
    line: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
    child: Child,
    as_found: Termios,
    /// The sizes that it had (columns, rows), each from a place in what was written on.
    sizes: Mutex<Vec<(usize, (u16, u16))>>,
}

impl AtTerminal {
    /// Starts `command` at a terminal of `columns` by `rows`, in a session of its own.
    ///
    /// # Panics
    /// When that does not succeed.
    #[must_use]
    pub fn start(command: &Command, columns: u16, rows: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).expect("a terminal of ours");
        unlockpt(&master).expect("an open terminal");
        let line = ioctl_tiocgptpeer(&master, flags).expect("its other end");
        let as_found = tcgetattr(&line).expect("its settings");
        let mut wrapped = Command::new("setsid");
        wrapped
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        let end = || line.try_clone().expect("a descriptor");
        wrapped.stdin(end()).stdout(end()).stderr(end());
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut output) = (
            Arc::clone(&screen),
            File::from(master.try_clone().expect("a descriptor")),
        );
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                let mut seen = seen.lock().expect("no reader panics");
                seen.extend_from_slice(&piece[..length]);
            }
        });
        let terminal = Self {
            keyboard: File::from(master),
            line,
            screen,
            child: wrapped.spawn().expect("setsid"),
            as_found,
            sizes: Mutex::default(),
        };
        terminal.resize(columns, rows);
        terminal
    }

    /// Gives the terminal another size.
    ///
    /// # Panics
    /// When it has none.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let place = self.screen.lock().expect("no reader panics").len();
        let mut sizes = self.sizes.lock().expect("no reader panics");
        sizes.push((place, (columns, rows)));
        tcsetwinsize(&self.keyboard, size).expect("a terminal with a size");
    }

    /// The screen as a terminal shows it that knows the control sequences of xterm.
    ///
    /// # Panics
    /// Never: its reader does not.
    #[must_use]
    pub fn shown(&self) -> vt100::Screen {
        let written = self.screen.lock().expect("no reader panics").clone();
        let sizes = self.sizes.lock().expect("no reader panics").clone();
        let size = |length| NonZeroU16::new(length).unwrap_or(NonZeroU16::MIN);
        let mut terminal = vt100::Parser::new(NonZeroU16::MIN, NonZeroU16::MIN, 0);
        let ends = sizes.iter().skip(1).map(|(place, _)| *place);
        for ((start, (columns, rows)), end) in sizes.iter().zip(ends.chain([written.len()])) {
            terminal.set_size(size(*rows), size(*columns));
            terminal.process(&written[*start..end]);
        }
        terminal.screen().clone()
    }

    /// Waits until `is_right` of what is [shown](Self::shown); gives that.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_shown(&self, what: &str, is_right: impl Fn(&str) -> bool) -> vt100::Screen {
        let started = Instant::now();
        loop {
            let screen = self.shown();
            let text = screen.contents();
            if is_right(&text) {
                return screen;
            }
            assert!(
                started.elapsed() < DEADLINE,
                "{what} does not come:\n{text}"
            );
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Types `keys`.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_keys(&self, keys: &str) {
        (&self.keyboard)
            .write_all(keys.as_bytes())
            .expect("an open terminal");
    }

    /// What stands on the screen.
    ///
    /// # Panics
    /// Never: its reader does not.
    #[must_use]
    pub fn screen(&self) -> String {
        let seen = self.screen.lock().expect("no reader panics");
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Waits until `text` stands on the screen.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_screen(&self, text: &str) {
        let found = |screen: String| screen.contains(text).then_some(());
        wait_for(&format!("{text:?} on {self:?}"), || found(self.screen()));
    }

    /// Whether each key is passed on as it is typed.
    ///
    /// # Panics
    /// When the terminal is gone.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.line).expect("settings");
        modes.local_modes.is_empty() || modes.local_modes != self.as_found.local_modes
    }

    /// Waits until the settings are those from before the start.
    ///
    /// # Panics
    /// When they stay others.
    pub fn wait_restored(&self) {
        wait_for("the terminal as it was", || {
            let now = tcgetattr(&self.line).expect("settings");
            let found = &self.as_found;
            let is_same = now.local_modes == found.local_modes
                && now.input_modes == found.input_modes
                && now.output_modes == found.output_modes
                && now.control_modes == found.control_modes;
            is_same.then_some(())
        });
    }

    /// Sends `signal` to the process that was started.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the process that was started.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn finish(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the end of a process at a terminal", || {
            child.try_wait().expect("our child")
        })
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
