//! What the agent has to say: lines on standard error that name it.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};

/// Prints a line. One write, so that it is not mixed up with the program's.
pub fn say(text: impl Display) {
    let line = format!("lightv-init: {text}\n");
    // Nothing is left to tell it to when standard error is gone.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// An error with all its causes: `first: second: third`.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// The text of an error of the system, without the number that Rust adds.
#[must_use]
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((plain, _)) => plain.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_lose_their_number() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(plain(&error), "No such file or directory");
        assert_eq!(plain(&io::Error::other("else")), "else");
    }
}
