//! The keyboard controller (IBM PS/2 technical reference, "Keyboard and auxiliary device controller") and a keyboard on
//! which three keys can be pressed: Ctrl, Alt and Del. A guest resets the machine by it, and is asked to end by it.
//!
//! Every command is answered at once, also those to the mouse, which is not there: a driver that waits for an answer does
//! so for half a second each. Scan codes are those of set 2, untranslated. Nothing is saved in an image: a restored
//! controller is as after power-on, with its interrupt on, as every driver has it while it runs; a key that was under way
//! is lost.

use std::collections::VecDeque;
use std::fmt;

use vmm_sys_util::eventfd::EventFd;

/// The data port.
pub const DATA_PORT: u16 = 0x60;
/// The command port when written, the status port when read.
pub const COMMAND_PORT: u16 = 0x64;

/// System control port B, between the two.
pub const SYSTEM_CONTROL_PORT: u16 = 0x61;

/// Timer 2 has run out, so that nobody waits for it; no reason for an NMI.
const SYSTEM_CONTROL_IDLE: u8 = 0x20;

/// Commands to the controller.
mod command {
    pub(super) const READ_CONTROL: u8 = 0x20;
    pub(super) const WRITE_CONTROL: u8 = 0x60;
    pub(super) const TEST_MOUSE: u8 = 0xa9;
    pub(super) const TEST_CONTROLLER: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    /// What is written next comes back as if from the keyboard, or from the mouse.
    pub(super) const LOOP_KEYBOARD: u8 = 0xd2;
    pub(super) const LOOP_MOUSE: u8 = 0xd3;
    pub(super) const WRITE_MOUSE: u8 = 0xd4;
    /// Pulse the reset line of the CPU.
    pub(super) const RESET: u8 = 0xfe;
}

/// Commands to the keyboard. Every other one is acknowledged, and so is every argument.
mod keyboard {
    pub(super) const ECHO: u8 = 0xee;
    pub(super) const READ_ID: u8 = 0xf2;
    pub(super) const RESET: u8 = 0xff;

    pub(super) const ACKNOWLEDGE: u8 = 0xfa;
    pub(super) const SELF_TEST_PASSED: u8 = 0xaa;
    /// A keyboard with 101 keys.
    pub(super) const ID: [u8; 2] = [0xab, 0x83];
}

/// Answers of the controller.
const CONTROLLER_IS_GOOD: u8 = 0x55;
const KEYBOARD_IS_GOOD: u8 = 0x00;
/// The mouse's clock line is stuck: there is none.
const NO_MOUSE: u8 = 0x01;
/// Reset line high, A20 open.
const OUTPUT_PORT: u8 = 0x03;

/// Bits of the status port.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_TESTED: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;

/// Bits of the control register.
const CONTROL_KEYBOARD_INTERRUPT: u8 = 1 << 0;
const CONTROL_TESTED: u8 = 1 << 2;
const CONTROL_KEYBOARD_OFF: u8 = 1 << 4;

/// Bytes that wait to be read. The longest that comes at once are the keys; a real controller holds 16.
const OUTPUT_BYTES_MAX: usize = 16;

/// Ctrl, Alt and Del are pressed, then released in the other order (scan code set 2).
const CTRL_ALT_DEL: [u8; 11] = [
    0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14,
];

/// What a write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I8042Event {
    /// Nothing.
    None,
    /// The guest wants a reset.
    Reset,
}

/// The guest's driver has turned the keyboard or its interrupt off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The guest has turned the keyboard off")]
pub struct KeyboardIsOff;

/// The keyboard controller.
pub struct I8042 {
    interrupt: EventFd,
    control: u8,
    /// The command whose argument comes next by the data port.
    pending: Option<u8>,
    output: VecDeque<u8>,
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042")
            .field("control", &self.control)
            .field("pending", &self.pending)
            .field("waiting", &self.output.len())
            .finish_non_exhaustive()
    }
}

impl I8042 {
    /// A controller as after power-on and its self-test. `interrupt` is written when the keyboard has something.
    #[must_use]
    pub const fn new(interrupt: EventFd) -> Self {
        Self {
            interrupt,
            control: CONTROL_TESTED | CONTROL_KEYBOARD_INTERRUPT,
            pending: None,
            output: VecDeque::new(),
        }
    }

    /// A read of one byte from `port`. Ports that are not the controller's read as ones.
    #[must_use]
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            COMMAND_PORT => self.status(),
            SYSTEM_CONTROL_PORT => SYSTEM_CONTROL_IDLE,
            DATA_PORT => {
                let byte = self.output.pop_front().unwrap_or(0);
                self.interrupt_if_wanted();
                byte
            }
            _ => 0xff,
        }
    }

    /// A write of one byte to `port`.
    #[must_use]
    pub fn write(&mut self, port: u16, value: u8) -> I8042Event {
        match (port, value) {
            (COMMAND_PORT, command::RESET) => return I8042Event::Reset,
            (COMMAND_PORT, _) => self.command(value),
            (DATA_PORT, _) => self.data(value),
            _ => {}
        }
        I8042Event::None
    }

    /// Presses Ctrl-Alt-Del: a guest with a driver takes it as the wish of its user to restart.
    ///
    /// # Errors
    /// [`KeyboardIsOff`].
    pub fn press_ctrl_alt_del(&mut self) -> Result<(), KeyboardIsOff> {
        if self.control & CONTROL_KEYBOARD_OFF != 0
            || self.control & CONTROL_KEYBOARD_INTERRUPT == 0
        {
            return Err(KeyboardIsOff);
        }
        self.answer(&CTRL_ALT_DEL);
        self.interrupt_if_wanted();
        Ok(())
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_TESTED | STATUS_UNLOCKED;
        if !self.output.is_empty() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.pending.is_some() {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn command(&mut self, value: u8) {
        self.pending = None;
        match value {
            command::READ_CONTROL => self.answer(&[self.control]),
            command::TEST_CONTROLLER => self.answer(&[CONTROLLER_IS_GOOD]),
            command::TEST_KEYBOARD => self.answer(&[KEYBOARD_IS_GOOD]),
            command::TEST_MOUSE => self.answer(&[NO_MOUSE]),
            command::READ_OUTPUT_PORT => self.answer(&[OUTPUT_PORT]),
            command::WRITE_CONTROL
            | command::WRITE_OUTPUT_PORT
            | command::LOOP_KEYBOARD
            | command::LOOP_MOUSE
            | command::WRITE_MOUSE => self.pending = Some(value),
            _ => {}
        }
    }

    fn data(&mut self, value: u8) {
        match self.pending.take() {
            Some(command::WRITE_CONTROL) => self.control = value,
            // The status does not say that it comes from a mouse, from which a driver sees that there is none.
            Some(command::LOOP_KEYBOARD | command::LOOP_MOUSE) => self.answer(&[value]),
            Some(_) => {}
            None => {
                let [id_0, id_1] = keyboard::ID;
                match value {
                    keyboard::ECHO => self.answer(&[keyboard::ECHO]),
                    keyboard::READ_ID => self.answer(&[keyboard::ACKNOWLEDGE, id_0, id_1]),
                    keyboard::RESET => {
                        self.answer(&[keyboard::ACKNOWLEDGE, keyboard::SELF_TEST_PASSED]);
                    }
                    _ => self.answer(&[keyboard::ACKNOWLEDGE]),
                }
                self.interrupt_if_wanted();
            }
        }
    }

    /// Puts `bytes` where the guest reads them. A new answer takes the place of one that was not read.
    fn answer(&mut self, bytes: &[u8]) {
        self.output.clear();
        self.output.extend(bytes.iter().take(OUTPUT_BYTES_MAX));
    }

    /// The guest takes one byte an interrupt.
    fn interrupt_if_wanted(&self) {
        if !self.output.is_empty() && self.control & CONTROL_KEYBOARD_INTERRUPT != 0 {
            // Fails only when the count is full: then the interrupt is pending already.
            let _ = self.interrupt.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn i8042() -> (I8042, EventFd) {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        (I8042::new(interrupt.try_clone().unwrap()), interrupt)
    }

    /// Writes that do not reset.
    fn write(i8042: &mut I8042, writes: &[(u16, u8)]) {
        for (port, value) in writes {
            assert_eq!(i8042.write(*port, *value), I8042Event::None);
        }
    }

    /// All that waits, one byte for each time that the status says so.
    fn read_all(i8042: &mut I8042) -> Vec<u8> {
        let mut bytes = Vec::new();
        while i8042.read(0x64) & 1 != 0 {
            bytes.push(i8042.read(0x60));
        }
        bytes
    }

    #[test]
    fn only_the_reset_command_resets() {
        let (mut i8042, _) = i8042();
        for port in 0x60..0x70 {
            for value in 0..=u8::MAX {
                let is_reset = port == 0x64 && value == 0xfe;
                let event = if is_reset {
                    I8042Event::Reset
                } else {
                    I8042Event::None
                };
                assert_eq!(i8042.write(port, value), event, "{port:#x} {value:#x}");
            }
        }
    }

    #[test]
    fn a_driver_is_answered_at_once_and_never_waits_to_write() {
        let (mut i8042, _) = i8042();
        for (writes, answer) in [
            (&[(0x64, 0x20)][..], &[0x05][..]),
            (&[(0x64, 0xaa)], &[0x55]),
            (&[(0x64, 0xab)], &[0]),
            (&[(0x64, 0xd3), (0x60, 0x5a)], &[0x5a]),
            (&[(0x64, 0xa9)], &[1]),
            (&[(0x64, 0xd4), (0x60, 0xff)], &[]),
            (&[(0x64, 0x60), (0x60, 0x34), (0x64, 0x20)], &[0x34]),
            (&[(0x60, 0xf2)], &[0xfa, 0xab, 0x83]),
            (&[(0x60, 0xff)], &[0xfa, 0xaa]),
            (&[(0x60, 0xee)], &[0xee]),
            (&[(0x60, 0xed)], &[0xfa]),
            (&[(0x60, 7)], &[0xfa]),
        ] {
            write(&mut i8042, writes);
            let status = i8042.read(0x64);
            assert_eq!(status & 0b0010_0010, 0, "input buffer empty, no mouse");
            assert_eq!(read_all(&mut i8042), answer, "{writes:x?}");
            assert_eq!(i8042.read(0x60), 0);
        }
    }

    #[test]
    fn every_byte_of_ctrl_alt_del_comes_with_an_interrupt() {
        let (mut i8042, interrupt) = i8042();
        i8042.press_ctrl_alt_del().unwrap();
        let mut keys = Vec::new();
        while interrupt.read().is_ok() {
            keys.push(i8042.read(0x60));
        }
        assert_eq!(keys[..4], [0x14, 0x11, 0xe0, 0x71]);
        assert_eq!(keys, CTRL_ALT_DEL);
    }

    #[test]
    fn a_keyboard_that_is_off_takes_no_key_and_interrupts_nobody() {
        for control in [0x04, 0x14, 0x15] {
            let (mut i8042, interrupt) = i8042();
            write(&mut i8042, &[(0x64, 0x60), (0x60, control)]);
            assert_eq!(i8042.press_ctrl_alt_del(), Err(KeyboardIsOff));
            assert_eq!(read_all(&mut i8042), [0_u8; 0]);
            assert!(interrupt.read().is_err());
        }
    }

    #[test]
    fn no_guest_makes_it_hold_more_than_its_buffer() {
        let (mut i8042, _) = i8042();
        for value in 0..=u8::MAX {
            for port in [0x60, 0x64, 0x60] {
                let _ = i8042.write(port, value);
                let _ = i8042.press_ctrl_alt_del();
                assert!(i8042.output.len() <= OUTPUT_BYTES_MAX);
            }
        }
    }
}
