//! What the monitor says on standard error: one message, with all its causes.

use std::error::Error;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// The terminal does not go back to the start of the line by itself.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Whether lines are for a raw terminal from here on.
pub fn end_lines_for_raw_terminal(is_raw: bool) {
    IS_RAW.store(is_raw, Ordering::Relaxed);
}

/// Says something. Standard error that cannot be written to is no reason to stop.
pub fn say(text: &str) {
    let end = if IS_RAW.load(Ordering::Relaxed) {
        "\r\n"
    } else {
        "\n"
    };
    tracing::warn!("{text}");
    let _ = StandardStream::Stderr.write_all(format!("lightv-vmm: {text}{end}").as_bytes());
}
