//! The ACPI power button.

use std::fs::{self, File};
use std::io::Read;

use rustix::fs::{Mode, OFlags};

/// Its name among the input devices (drivers/acpi/button.c).
const NAME: &str = "Power Button";
const CLASS: &str = "/sys/class/input";
/// `struct input_event`: two 64-bit times, type, code, value.
const EVENT_BYTES: usize = 24;
/// Type `EV_KEY`, code `KEY_POWER`, value 1: pressed.
const PRESSED: [u8; 8] = [1, 0, 116, 0, 1, 0, 0, 0];

/// The button's device, if the machine has one.
#[must_use]
pub fn open() -> Option<File> {
    let entries = fs::read_dir(CLASS).ok()?.flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let name = names.find(|name| {
        let text = fs::read_to_string(format!("{CLASS}/{name}/device/name"));
        name.starts_with("event") && text.is_ok_and(|text| text.trim_end() == NAME)
    })?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(format!("/dev/input/{name}"), flags, Mode::empty());
    fd.ok().map(File::from)
}

/// Whether it was pressed, by the events that wait to be read.
#[must_use]
pub fn is_pressed(mut device: &File) -> bool {
    let mut events = [0; EVENT_BYTES * 16];
    let mut is_pressed = false;
    while let Ok(length @ 1..) = device.read(&mut events) {
        let read = events.get(..length).unwrap_or_default();
        is_pressed |= has_press(read);
    }
    is_pressed
}

fn has_press(events: &[u8]) -> bool {
    events
        .chunks_exact(EVENT_BYTES)
        .any(|event| event.ends_with(&PRESSED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        let event = |last: [u8; 8]| [&[0; 16][..], &last].concat();
        let release = event([1, 0, 116, 0, 0, 0, 0, 0]);
        assert!(!has_press(&release));
        assert!(has_press(&[release, event(PRESSED)].concat()));
        assert!(!has_press(&event(PRESSED)[..23]) && !has_press(&[]));
    }
}
