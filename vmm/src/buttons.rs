//! What a user can press to ask a guest to end: a power button, and Ctrl-Alt-Del. What the guest does about it, if
//! anything, is its own affair.

use lightv_devices::i8042::KeyboardIsOff;

use crate::arch::host::{acpi, layout};
use crate::machine::Machine;
use crate::snapshot::irqchip_state::{self, VmStateError};
use crate::vm::VmError;

/// Something to press.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Button {
    /// ACPI's power button. Linux with ACPI passes it on to whoever reads the input device; usually the guest powers
    /// off.
    Power,
    /// Ctrl, Alt and Del on the keyboard. Linux with a driver for it signals init, which usually restarts the guest:
    /// the machine ends by a reset.
    CtrlAltDel,
}

/// Why nothing was pressed.
#[derive(Debug, thiserror::Error)]
pub enum PressError {
    /// The button's interrupt is masked: nobody would hear of it.
    #[error("Nothing was pressed: the guest has no driver for {}", name(*button))]
    NoDriver {
        /// Which button.
        button: Button,
    },
    /// The guest has no driver for any of them.
    #[error("Nothing was pressed: the guest has no driver for a power button or a keyboard")]
    NoDrivers,
    /// The guest's driver does not want keys now.
    #[error("Ctrl-Alt-Del was not pressed")]
    Keyboard(#[source] KeyboardIsOff),
    /// KVM would not say which interrupts are open.
    #[error("Nothing was pressed: the interrupt controllers cannot be read")]
    Lines(#[source] VmStateError),
    /// KVM did not take the interrupt.
    #[error("The power button was not pressed")]
    Interrupt(#[source] VmError),
}

const fn name(button: Button) -> &'static str {
    match button {
        Button::Power => "a power button",
        Button::CtrlAltDel => "a keyboard",
    }
}

const fn line(button: Button) -> u32 {
    match button {
        Button::Power => layout::EVENT_GSI,
        Button::CtrlAltDel => layout::KEYBOARD_GSI,
    }
}

/// Presses `button`.
///
/// # Errors
/// [`PressError`].
pub fn press(machine: &Machine, button: Button) -> Result<(), PressError> {
    match press_first(machine, &[button])? {
        Some(_) => Ok(()),
        None => Err(PressError::NoDriver { button }),
    }
}

/// Presses what the guest has a driver for: the power button, else Ctrl-Alt-Del. Gives what was pressed.
///
/// # Errors
/// [`PressError`].
pub fn ask_to_end(machine: &Machine) -> Result<Button, PressError> {
    let pressed = press_first(machine, &[Button::Power, Button::CtrlAltDel])?;
    pressed.ok_or(PressError::NoDrivers)
}

/// Presses the first of `buttons` whose interrupt the guest lets in.
fn press_first(machine: &Machine, buttons: &[Button]) -> Result<Option<Button>, PressError> {
    let state = irqchip_state::capture(machine.vm.fd()).map_err(PressError::Lines)?;
    let is_heard = |button: &&Button| irqchip_state::is_line_open(&state, line(**button));
    let Some(button) = buttons.iter().find(is_heard).copied() else {
        return Ok(None);
    };
    match button {
        Button::Power => {
            machine.bus.add_event(acpi::event::POWER_BUTTON);
            let pressed = machine.vm.interrupt_once(line(button));
            pressed.map_err(PressError::Interrupt)?;
        }
        Button::CtrlAltDel => {
            let pressed = machine.bus.i8042().press_ctrl_alt_del();
            pressed.map_err(PressError::Keyboard)?;
        }
    }
    Ok(Some(button))
}
