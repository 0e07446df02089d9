use std::sync::Mutex;

use super::*;

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Full;

impl Write for Full {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn line() -> (EventFd, EventFd) {
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    (line.try_clone().unwrap(), line)
}

#[test]
fn output_reaches_the_writer_byte_by_byte() {
    let screen = Screen::default();
    let mut serial = Serial::new(line().0, Box::new(screen.clone()));
    for byte in b"hello" {
        assert_eq!(serial.read(5) & 0x20, 0x20, "THR empty");
        serial.write(0, *byte);
    }
    assert_eq!(*screen.0.lock().unwrap(), b"hello");
    assert_eq!(serial.counters().snapshot().bytes_written, 5);
}

#[test]
fn a_writer_that_fails_loses_bytes_and_never_stalls_the_guest() {
    let mut serial = Serial::new(line().0, Box::new(Full));
    serial.write(1, 2);
    for _ in 0..100 {
        serial.write(0, b'x');
        assert_eq!(serial.read(5) & 0x20, 0x20);
    }
    assert_eq!(serial.counters().snapshot().bytes_lost, 100);
}

#[test]
fn input_is_bounded_and_interrupts_when_enabled() {
    let (line, watch) = line();
    let mut serial = Serial::new(line, Box::new(io::sink()));
    serial.write(1, 1);
    assert_eq!(serial.enqueue(&[b'a'; 100]), 64);
    assert_eq!(serial.enqueue(b"b"), 0);
    assert!(watch.read().is_ok());
    for _ in 0..64 {
        assert_eq!(serial.read(5) & 1, 1);
        assert_eq!(serial.read(0), b'a');
    }
    assert_eq!(serial.read(5) & 1, 0);
    assert_eq!(serial.read(0), 0);
}

#[test]
fn every_port_value_and_loopback_is_harmless() {
    let mut serial = Serial::new(line().0, Box::new(io::sink()));
    for offset in [0, 1, 2, 3, 4, 5, 6, 7, 8, 255, 256, 0x3f8, u16::MAX] {
        for value in 0..=u8::MAX {
            serial.write(4, 0x10);
            serial.write(offset, value);
            let _ = serial.read(offset);
        }
    }
    assert!(serial.save().input.len() <= 64);
}

#[test]
fn save_restore_save_is_equal() {
    let mut serial = Serial::new(line().0, Box::new(io::sink()));
    serial.write(3, 0x83);
    serial.write(0, 1);
    serial.write(3, 0x03);
    serial.write(1, 1);
    serial.write(7, 0x5a);
    serial.enqueue(b"unread");
    let saved = serial.save();
    let (line, watch) = line();
    let mut restored = Serial::restore(saved.clone(), line, Box::new(io::sink())).unwrap();
    assert_eq!(restored.save(), saved);
    assert!(
        watch.read().is_ok(),
        "the pending interrupt is raised again"
    );
    assert_eq!(restored.read(0), b'u');
}

#[test]
fn too_much_saved_input_is_refused() {
    let serial = Serial::new(line().0, Box::new(io::sink()));
    let state = SerialStateV1 {
        input: vec![0; 65],
        ..serial.save()
    };
    let found = Serial::restore(state, line().0, Box::new(io::sink()));
    assert_eq!(
        found.err(),
        Some(RestoreSerialError::TooMuchInput { bytes: 65 })
    );
}
