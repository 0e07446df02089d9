//! A process that a test runs: its output as it comes, its end, and no more of it than the test.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, kill_process};

/// For whatever is waited for; only what hangs takes so long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at something that cannot be waited for.
pub const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A running process; it is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Arc<Output>,
    stderr: Arc<Output>,
    started: Instant,
    deadline: Duration,
    line: String,
}

/// A process that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit status; 128 and the signal's number if a signal killed it.
    pub code: i32,
    /// Whether a signal killed it.
    pub was_killed: bool,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
    /// How it was started.
    pub line: String,
}

/// Bytes that a pipe holds (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;

/// What has come through a pipe so far.
#[derive(Debug, Default)]
struct Output {
    /// Read without waiting, with the state's lock.
    pipe: Option<File>,
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutputState {
    bytes: Vec<u8>,
    closed: bool,
}

impl Process {
    /// Starts `command`. Streams that `command` does not place are: none for input, read here for output.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        Self::start_with(command, &[], Stdio::piped())
    }

    /// As [`start`](Self::start), with `input` on standard input, and standard output going to `stdout`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_with(command: &mut Command, input: &[u8], stdout: Stdio) -> Self {
        let line = format!("{command:?}");
        let stdin = if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        };
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .unwrap_or_else(|cause| panic!("cannot start {line}: {cause}"));
        let (from_stdout, from_stderr) = (child.stdout.take(), child.stderr.take());
        if let Some(mut stdin) = child.stdin.take() {
            let input = input.to_vec();
            // Who does not read its input has its reasons.
            thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let (stdout, stderr) = (Output::collect(from_stdout), Output::collect(from_stderr));
        Self {
            child,
            stdout,
            stderr,
            started,
            deadline: DEADLINE,
            line,
        }
    }

    /// Itself, with more patience: `deadline` for whatever is waited for, and twice as long for its end.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far: all of it, also what nobody has come to read yet.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// The same of standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until its standard output is such that `find` finds something.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait_stdout<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let found = self.stdout.wait(self.deadline, find);
        found.unwrap_or_else(|| {
            panic!(
                "this does not come from {}: {:?}, {:?}",
                self.line,
                self.stdout(),
                self.stderr()
            )
        })
    }

    /// As [`wait_stdout`](Self::wait_stdout), for standard error.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait_stderr<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let found = self.stderr.wait(self.deadline, find);
        found.unwrap_or_else(|| {
            panic!(
                "this does not come from {}: {:?}, {:?}",
                self.line,
                self.stdout(),
                self.stderr()
            )
        })
    }

    /// Sends it `signal`; a process that has ended does not get it.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When the kernel does not know it.
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(
                self.started.elapsed() < self.deadline * 2,
                "{} does not end: {:?}, {:?}",
                self.line,
                self.stdout(),
                self.stderr()
            );
            thread::sleep(POLL_INTERVAL / 2);
        };
        let took = self.started.elapsed();
        for output in [&self.stdout, &self.stderr] {
            let closed = output.wait_closed();
            assert!(
                closed,
                "{} has ended, and someone else keeps its output open",
                self.line
            );
        }
        Finished {
            code: status
                .code()
                .or_else(|| Some(128 + status.signal()?))
                .unwrap_or(-1),
            was_killed: status.signal().is_some(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            took,
            line: self.line.clone(),
        }
    }

    /// Ends it as a user would.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(self) -> Finished {
        self.signal(Signal::TERM);
        self.finish()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Itself, after a look at its status.
    ///
    /// # Panics
    /// When the status is another.
    #[must_use]
    #[track_caller]
    pub fn with_code(self, code: u8) -> Self {
        assert_eq!(self.code, i32::from(code), "{self:#?}");
        assert!(!self.was_killed, "{self:#?}");
        self
    }

    /// Looks whether it has ended with `code` and one message with all of `words`, without any guest output.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub fn assert_refused(&self, code: u8, words: &[&str]) {
        assert_eq!(self.code, i32::from(code), "{self:#?}");
        assert!(!self.was_killed && self.stdout.is_empty(), "{self:#?}");
        let messages = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("lightv"));
        assert_eq!(messages.count(), 1, "one message: {self:#?}");
        assert!(!self.stderr.contains("panicked at"), "{self:#?}");
        for word in words {
            assert!(
                self.stderr.contains(word),
                "{word:?} is not in the message: {self:#?}"
            );
        }
    }

    /// The value in the line `NAME=VALUE` of its standard output.
    ///
    /// # Panics
    /// When there is no such line.
    #[must_use]
    #[track_caller]
    pub fn value(&self, name: &str) -> &str {
        let values = |line| str::strip_prefix(line, name)?.strip_prefix('=');
        let value = self.stdout.lines().find_map(values);
        value.unwrap_or_else(|| panic!("there is no {name}: {self:#?}"))
    }
}

impl Output {
    fn collect(pipe: Option<impl Into<OwnedFd>>) -> Arc<Self> {
        let pipe = pipe.map(|pipe| File::from(pipe.into()));
        if let Some(pipe) = &pipe {
            ioctl_fionbio(pipe, true).expect("our end of a pipe");
        }
        let output = Arc::new(Self {
            pipe,
            ..Self::default()
        });
        let reader = Arc::clone(&output);
        thread::spawn(move || reader.read_to_end());
        output
    }

    /// Reads what comes, as it comes.
    fn read_to_end(&self) {
        let Some(pipe) = &self.pipe else {
            self.state.lock().expect("no reader panics").closed = true;
            self.changed.notify_all();
            return;
        };
        loop {
            // A signal is no end.
            let _ = poll(&mut [PollFd::new(pipe, PollFlags::IN)], None);
            let is_closed = self.read_all().closed;
            self.changed.notify_all();
            if is_closed {
                return;
            }
        }
    }

    /// Reads all that has been written before.
    fn read_all(&self) -> MutexGuard<'_, OutputState> {
        let mut state = self.state.lock().expect("no reader panics");
        let mut piece = [0; 4096];
        let mut read = 0;
        // One that writes and writes is not waited for.
        while let Some(mut pipe) = self.pipe.as_ref().filter(|_| read < PIPE_BYTES) {
            match pipe.read(&mut piece) {
                Ok(length @ 1..) => state.bytes.extend_from_slice(&piece[..length]),
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    state.closed = true;
                    break;
                }
            }
            read += piece.len();
        }
        state
    }

    fn text(&self) -> String {
        let state = self.read_all();
        // Who waits for it looks at it too.
        self.changed.notify_all();
        String::from_utf8_lossy(&state.bytes).into_owned()
    }

    fn wait<T>(&self, patience: Duration, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock().expect("no reader panics");
        loop {
            if let Some(found) = find(&String::from_utf8_lossy(&state.bytes)) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .expect("no reader panics")
                .0;
        }
    }

    fn wait_closed(&self) -> bool {
        let state = self.state.lock().expect("no reader panics");
        let open = |state: &mut OutputState| !state.closed;
        let waited = self.changed.wait_timeout_while(state, DEADLINE, open);
        waited.expect("no reader panics").0.closed
    }
}

/// Runs `command` to its end.
///
/// # Panics
/// When it cannot be started or does not end.
#[must_use]
pub fn run(command: &mut Command) -> Finished {
    Process::start(command).finish()
}

/// Runs a tool of the host that must succeed; gives its standard output.
///
/// # Panics
/// When it does not.
pub fn tool(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let finished = run(Command::new(program).args(words));
    assert_eq!(finished.code, 0, "{finished:#?}");
    finished.stdout
}

/// `command`, started by `wrapper` after the shell has run `script`.
///
/// # Panics
/// When `wrapper` is empty.
#[must_use]
pub fn after_script(wrapper: &[&str], script: &str, command: &Command) -> Command {
    let (program, options) = wrapper.split_first().expect("a program");
    let mut wrapped = Command::new(program);
    let script = format!("{script}\nexec \"$@\"");
    wrapped.args(options).args(["sh", "-ec", &script, "sh"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// Waits until `find` finds something.
///
/// # Panics
/// When that does not come.
#[track_caller]
pub fn wait_for<T>(what: &str, find: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, find)
}

/// The same, for as long as `patience`.
///
/// # Panics
/// When it does not come in time.
#[track_caller]
pub fn wait_within<T>(patience: Duration, what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(started.elapsed() < patience, "this does not come: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}
