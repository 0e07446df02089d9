//! The terminal on standard input: raw while a guest has it, and as it was before afterwards.

use std::io;

use lightv_devices::virtio::console::TerminalSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::report;

/// Whether standard input and output are a terminal.
#[must_use]
pub fn is_there() -> bool {
    isatty(io::stdin()) && isatty(io::stdout())
}

/// Size of the terminal on standard output; 0 by 0 where there is none, or it does not know.
#[must_use]
pub fn size() -> TerminalSize {
    tcgetwinsize(io::stdout()).map_or(TerminalSize::default(), |size| TerminalSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// The terminal as it was found.
#[derive(Debug, Clone)]
pub struct Terminal(Termios);

impl Terminal {
    /// The terminal as it is.
    ///
    /// # Errors
    /// The kernel's, where standard input is no terminal.
    pub fn of_stdin() -> io::Result<Self> {
        Ok(Self(tcgetattr(io::stdin())?))
    }

    /// Passes on each key as it is typed, Ctrl-C too, and shows nothing by itself: the guest's terminal does all that.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make_raw(&self) -> io::Result<()> {
        let mut raw = self.0.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        report::end_lines_for_raw_terminal(true);
        Ok(())
    }

    /// Makes it again as it was found. What the guest has printed is on its way out already. A terminal that is gone needs
    /// nothing.
    pub fn restore(&self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
        report::end_lines_for_raw_terminal(false);
    }
}
