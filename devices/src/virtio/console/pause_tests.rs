//! A console that stands still while the host takes nothing.

use std::io::Read;

use super::*;

/// Pauses, at once, and goes on.
fn pause(driver: &mut Driver) {
    let mut console = driver.console.lock().unwrap();
    console.finish(&|| true);
    let queues = console.deactivate();
    let activation = Activation {
        mem: Arc::clone(&driver.machine.mem),
        queues,
        interrupt: driver.machine.interrupt.clone(),
        acked_features: driver.machine.front.acked_features(),
    };
    console.activate(activation).unwrap();
    for index in 0..QUEUES {
        let _ = console.process_queue(index).unwrap();
    }
}

#[test]
fn what_the_host_has_not_taken_comes_after_a_pause_and_once() {
    let mut driver = Driver::open(UNKNOWN);
    // None is a part of another one, so that each byte is missed.
    let block = |number: u8| vec![number; 30_000];
    let mut expected = Vec::new();
    let mut number = 0;
    let mut print = |driver: &mut Driver| {
        number += 1;
        expected.extend(block(number));
        driver.print(STDIO, &block(number))
    };
    while print(&mut driver) {}
    pause(&mut driver);
    pause(&mut driver);
    assert!(!print(&mut driver));
    pause(&mut driver);
    let mut got = vec![0; expected.len()];
    for part in got.chunks_mut(4096) {
        driver.host.stdout.read_exact(part).unwrap();
        driver.machine.serve_backend(1);
    }
    assert!(got == expected, "other bytes");
    let queue = QueueRole::FromGuest(STDIO).index();
    assert!(driver.machine.take_used(queue).is_some());
    assert!(driver.machine.take_used(queue).is_some());
    assert!(driver.print(STDIO, b"more"));
    assert_eq!(read(&driver.host.stdout, 4), b"more");
    assert_eq!(driver.host.losses.load(Ordering::Relaxed), 0);
}

#[test]
fn a_driver_that_comes_anew_has_its_first_buffer_written_whole() {
    let mut driver = Driver::open(UNKNOWN);
    while driver.print(STDIO, &[1; 30_000]) {}
    let mut console = driver.console.lock().unwrap();
    let _ = console.deactivate();
    assert!(console.written.iter().any(|bytes| *bytes > 0));
    console.forget_driver();
    assert_eq!(console.written, [0; PORTS]);
}
