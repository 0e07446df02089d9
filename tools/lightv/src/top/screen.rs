//! The terminal: taken and given back, whatever ends the process.

use std::io::{self, Stdout, Write as _};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};

/// Whether the terminal is ours; it is given back once.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, until this is dropped.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal of standard input and output. A panic gives it back before it is told.
    pub(super) fn enter() -> io::Result<Self> {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            told(panic);
        }));
        take()?;
        match new_terminal() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(cause) => {
                give_back();
                Err(cause)
            }
        }
    }

    /// Draws a frame, in the size that the terminal has now.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// Gives the terminal back until [`resume`](Self::resume).
    pub(super) fn suspend(&self) {
        give_back();
    }

    /// Takes the terminal again, whoever had it meanwhile.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        take()?;
        execute!(io::stdout(), Clear(ClearType::All))?;
        // One that knows nothing of what was on the screen.
        self.terminal = new_terminal()?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn new_terminal() -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    Terminal::new(CrosstermBackend::new(io::stdout()))
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    IS_TAKEN.store(true, Ordering::SeqCst);
    execute!(io::stdout(), EnterAlternateScreen).inspect_err(|_| give_back())
}

fn give_back() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        // A terminal that is gone needs nothing back.
        let mut stdout = io::stdout();
        let _ = execute!(stdout, LeaveAlternateScreen, Show);
        let _ = stdout.flush();
        let _ = disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    const NAME: &str = "top::screen::tests::a_panic_gives_the_terminal_back_before_it_is_told";
    const INSIDE: &str = "LIGHTV_TEST_PANIC_INSIDE";

    /// Runs itself once more at a terminal, where it panics.
    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        if env::var_os(INSIDE).is_some() {
            let mut screen = Screen::enter().expect("a terminal");
            let _ = screen.draw(|_| panic!("the view is wrong"));
        }
        let own = env::current_exe().expect("our program");
        // What the terminal is like is asked while it is raw, too: to be sure that it was.
        let line = format!(
            "'{}' --exact {NAME} --nocapture; stty -a",
            own.to_str().expect("a path in text")
        );
        let output = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env(INSIDE, "1")
            .env("TERM", "xterm")
            .output()
            .expect("script, of Debian's package bsdutils");
        let text = String::from_utf8_lossy(&output.stdout);
        let at = |part: &str| {
            let found = text.find(part);
            found.unwrap_or_else(|| panic!("{part:?} is not in {text:?}"))
        };
        assert!(at("\u{1b}[?1049h") < at("\u{1b}[?1049l"));
        assert!(at("\u{1b}[?1049l") < at("the view is wrong"));
        assert!(
            text.contains(" icanon ") && text.contains(" echo "),
            "{text:?}"
        );
    }
}
