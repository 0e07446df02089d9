//! Output: the control device's doorbells, one exit a buffer; or the serial port.

use core::fmt;

use crate::control::{self, Stream};
use crate::local::Local;
use crate::port;

/// Registers of the first serial port, a 16550.
mod serial {
    pub const DATA: u16 = 0x3f8;
    pub const LINE_STATUS: u16 = 0x3fd;
    /// Transmitter holding register empty.
    pub const LINE_STATUS_EMPTY: u8 = 1 << 5;
    /// A port that stays busy for this many reads is taken for missing.
    pub const TRIES_MAX: u32 = 1000;
}

/// Bytes that one doorbell carries. With the shim's tables it fills one page.
const BUFFER_BYTES: usize = 1536;

struct Buffer {
    len: usize,
    bytes: [u8; BUFFER_BYTES],
}

#[unsafe(link_section = ".hot.console")]
static BUFFER: Local<Buffer> = Local::new(Buffer {
    len: 0,
    bytes: [0; BUFFER_BYTES],
});
#[unsafe(link_section = ".hot.console")]
static FORCE_SERIAL: Local<bool> = Local::new(false);

/// From now on print to the serial port even if there is a control device.
pub fn force_serial() {
    FORCE_SERIAL.set(true);
}

/// Empties the buffer, right after `READY`.
///
/// In a restored guest this is the first touch of the buffer's page and, being a call, of the stack's. That both are
/// writes saves the host a second fault for each: 8 µs.
#[inline(never)]
#[unsafe(link_section = ".text.hot.console")]
pub fn begin() {
    BUFFER.with(|buffer| buffer.len = 0);
}

/// Text being written; it leaves the guest when the buffer is full and when this is dropped. One at a time.
#[derive(Debug)]
pub struct Output(Stream);

impl Output {
    /// Begins a text for `stream`.
    #[unsafe(link_section = ".text.hot.console")]
    pub fn new(stream: Stream) -> Self {
        Self(stream)
    }

    /// Adds `bytes`.
    #[unsafe(link_section = ".text.hot.console")]
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = BUFFER.with(|buffer| {
                let taken = rest.len().min(BUFFER_BYTES - buffer.len);
                buffer.bytes[buffer.len..buffer.len + taken].copy_from_slice(&rest[..taken]);
                buffer.len += taken;
                taken
            });
            rest = &rest[taken..];
            if !rest.is_empty() {
                self.flush();
            }
        }
        self
    }

    #[unsafe(link_section = ".text.hot.console")]
    fn flush(&self) {
        BUFFER.with(|buffer| {
            write(self.0, &buffer.bytes[..buffer.len]);
            buffer.len = 0;
        });
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

impl Drop for Output {
    #[unsafe(link_section = ".text.hot.console")]
    fn drop(&mut self) {
        self.flush();
    }
}

/// Prints bytes as they are.
#[unsafe(link_section = ".text.hot.console")]
fn write(stream: Stream, bytes: &[u8]) {
    match control::get() {
        _ if bytes.is_empty() => {}
        Some(control) if !FORCE_SERIAL.get() => control.print(stream, bytes),
        _ => bytes.iter().for_each(|&byte| write_serial(byte)),
    }
}

#[inline(never)]
fn write_serial(byte: u8) {
    for _ in 0..serial::TRIES_MAX {
        if port::read_u8(serial::LINE_STATUS) & serial::LINE_STATUS_EMPTY != 0 {
            break;
        }
    }
    port::write_u8(serial::DATA, byte);
}

/// Prints a formatted line to standard output.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // Output takes every byte: it has no error to report.
        let _ = writeln!($crate::console::Output::new($crate::control::Stream::Out), $($arg)*);
    }};
}

/// Prints a formatted line to standard error.
#[macro_export]
macro_rules! eprintln {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::console::Output::new($crate::control::Stream::Err), $($arg)*);
    }};
}
