//! The serial port: a 16550A (vm-superio's) with the guest's output as a writer.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialEvents;
use vm_superio::{SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Ports of the serial port.
pub const PORTS: u16 = 8;

/// Saved serial port, version 1. Never edit: add `SerialStateV2` and a `From` of this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialStateV1 {
    /// Divisor latch, low and high byte.
    pub baud_divisor: [u8; 2],
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// Input that the guest has not read: at most 64 bytes.
    pub input: Vec<u8>,
}

/// Why a saved serial port was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreSerialError {
    /// More unread input than the port holds.
    #[error("Saved serial port has {bytes} bytes of unread input, more than it holds")]
    TooMuchInput {
        /// How much.
        bytes: usize,
    },
}

/// What the serial port counts: totals.
#[derive(Debug, Default)]
pub struct SerialCounters {
    written: AtomicU64,
    lost: AtomicU64,
    read: AtomicU64,
}

/// [`SerialCounters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SerialCountersSnapshot {
    /// Bytes of the guest's output that were written.
    pub bytes_written: u64,
    /// Bytes of the guest's output that the writer did not take.
    pub bytes_lost: u64,
    /// Bytes that the guest has read.
    pub bytes_read: u64,
}

impl SerialCounters {
    /// All of them now.
    #[must_use]
    pub fn snapshot(&self) -> SerialCountersSnapshot {
        SerialCountersSnapshot {
            bytes_written: self.written.load(Ordering::Relaxed),
            bytes_lost: self.lost.load(Ordering::Relaxed),
            bytes_read: self.read.load(Ordering::Relaxed),
        }
    }
}

struct Counting(Arc<SerialCounters>);

impl SerialEvents for Counting {
    fn buffer_read(&self) {
        self.0.read.fetch_add(1, Ordering::Relaxed);
    }

    fn out_byte(&self) {
        self.0.written.fetch_add(1, Ordering::Relaxed);
    }

    fn tx_lost_byte(&self) {
        self.0.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn in_buffer_empty(&self) {}
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        // Fails only when the count is full: then the interrupt is pending already.
        let _ = self.0.write(1);
        Ok(())
    }
}

type Uart = vm_superio::Serial<Line, Counting, Box<dyn Write + Send>>;

/// The serial port.
pub struct Serial {
    uart: Uart,
    counters: Arc<SerialCounters>,
}

impl Serial {
    /// A port as after power-on: `interrupt` is written when the guest is to be interrupted, `output` gets what the
    /// guest sends. A writer that blocks blocks the vCPU; one that fails loses bytes, which are counted.
    #[must_use]
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>) -> Self {
        let counters = Arc::new(SerialCounters::default());
        let events = Counting(Arc::clone(&counters));
        Self {
            uart: Uart::with_events(Line(interrupt), events, output),
            counters,
        }
    }

    /// The port as it was saved. Raises its interrupt if it was pending.
    ///
    /// # Errors
    /// [`RestoreSerialError`].
    pub fn restore(
        state: SerialStateV1,
        interrupt: EventFd,
        output: Box<dyn Write + Send>,
    ) -> Result<Self, RestoreSerialError> {
        let counters = Arc::new(SerialCounters::default());
        let events = Counting(Arc::clone(&counters));
        let bytes = state.input.len();
        let state = SerialState::from(state);
        // The only failure: triggering never fails.
        let uart = Uart::from_state(&state, Line(interrupt), events, output)
            .map_err(|_| RestoreSerialError::TooMuchInput { bytes })?;
        Ok(Self { uart, counters })
    }

    /// What a snapshot keeps.
    #[must_use]
    pub fn save(&self) -> SerialStateV1 {
        self.uart.state().into()
    }

    /// A read of one byte from port `offset` of [`PORTS`]; others read 0.
    pub fn read(&mut self, offset: u16) -> u8 {
        u8::try_from(offset).map_or(0, |offset| self.uart.read(offset))
    }

    /// A write of one byte to port `offset` of [`PORTS`]; others do nothing.
    pub fn write(&mut self, offset: u16, value: u8) {
        if let Ok(offset) = u8::try_from(offset) {
            // A byte that the writer did not take is counted; nothing else fails.
            let _ = self.uart.write(offset, value);
        }
    }

    /// Gives the guest input, as much of it as the port holds (64 bytes); returns how much that was.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let taken = input.len().min(self.uart.fifo_capacity());
        let input = input.get(..taken).unwrap_or_default();
        // It fails only when it is full. In loopback mode input goes nowhere.
        self.uart.enqueue_raw_bytes(input).unwrap_or_default()
    }

    /// What it counts.
    #[must_use]
    pub const fn counters(&self) -> &Arc<SerialCounters> {
        &self.counters
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl From<SerialState> for SerialStateV1 {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }
}

impl From<SerialStateV1> for SerialState {
    fn from(state: SerialStateV1) -> Self {
        let [baud_divisor_low, baud_divisor_high] = state.baud_divisor;
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input,
        }
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
