//! What the monitor says on standard error: one message, with all its causes.

use std::error::Error;
use std::io::Write;

use crate::sys::file::StandardStream;

/// An error with its causes, `: ` between them. A cause whose text its parent contains already is not repeated.
#[must_use]
pub fn text_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = cause.source();
    }
    text
}

/// Says why something went wrong.
pub fn warn(error: &dyn Error) {
    say(&text_of(error));
}

/// Says something. Standard error that cannot be written to is no reason to stop.
pub fn say(text: &str) {
    let _ = StandardStream::Stderr.write_all(format!("lightv-vmm: {text}\n").as_bytes());
}
