//! Messages and output of a console against the rules (virtio 1.2 §5.3).

use super::device::{Descriptor, NEXT, Outcome, WRITE, check};
use super::target::{CONSOLE_MESSAGES_OUT, Target};

type Attack = fn(&mut Target) -> Outcome;

pub const ATTACKS: &[(&str, Attack)] = &[
    ("message-about-no-port", |t| message(t, 5, 3)),
    ("message-about-port-77", |t| message(t, 77, 6)),
    ("message-about-the-last-port", |t| message(t, u32::MAX, 6)),
    ("message-of-an-unknown-event", |t| message(t, 0, 99)),
    ("message-of-all-ones", |t| message(t, u32::MAX, u16::MAX)),
    ("message-that-is-the-device's", |t| message(t, 0, 1)),
    ("port-opened-before-it-is-ready", |t| message(t, 1, 6)),
    ("message-short", |t| message_of(t, 7)),
    ("message-of-nothing", |t| message_of(t, 0)),
    ("message-of-4-gib", |t| message_of(t, u32::MAX)),
    ("ready-a-thousand-times", ready_often),
    ("ports-opened-and-closed", open_and_close),
    ("output-of-4-gib", |t| {
        output(t, |t| Descriptor::new(t.ram_end - 64, u32::MAX, 0, 0))
    }),
    ("output-of-registers", |t| {
        output(t, |t| Descriptor::new(t.raw.base as u64, 64, 0, 0))
    }),
    ("output-that-wraps", |t| {
        output(t, |_| Descriptor::new(u64::MAX - 31, 64, 0, 0))
    }),
    ("output-with-a-writable-end", writable_end),
];

const OUTPUTS: [u16; 3] = [1, 5, 7];
/// Of the terminal, standard output, standard error, the agent, standard input.
const PORTS: u32 = 5;

/// It comes back; nothing has to be answered.
fn message(target: &mut Target, port: u32, event: u16) -> Outcome {
    target.raw.start()?;
    let message = target.put_message(port, event);
    target.describe(CONSOLE_MESSAGES_OUT, &[message]);
    let (_, used) = target.exchange(CONSOLE_MESSAGES_OUT)?;
    check(used == 0, "bytes", used)
}

fn message_of(target: &mut Target, len: u32) -> Outcome {
    target.raw.start()?;
    let message = target.put_message(0, 3);
    target.describe(CONSOLE_MESSAGES_OUT, &[Descriptor { len, ..message }]);
    target.exchange(CONSOLE_MESSAGES_OUT).map(|_| ())
}

/// What it has to say each time is not taken.
fn ready_often(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let message = target.put_message(u32::MAX, 0);
    target.describe(CONSOLE_MESSAGES_OUT, &[message]);
    (0..1000).try_for_each(|_| target.exchange(CONSOLE_MESSAGES_OUT).map(|_| ()))
}

fn open_and_close(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.prove()?;
    for round in 0..20 {
        for port in 0..PORTS {
            let message = target.put_message(port, if round == 0 { 3 } else { 6 });
            target.data.write(6, u16::from(round % 2 == 0));
            target.describe(CONSOLE_MESSAGES_OUT, &[message]);
            target.exchange(CONSOLE_MESSAGES_OUT)?;
        }
    }
    Ok(())
}

/// Output that is nowhere: it comes back, and nothing is written.
fn output(target: &mut Target, buffer: fn(&Target) -> Descriptor) -> Outcome {
    target.raw.start()?;
    let buffer = buffer(target);
    for queue in OUTPUTS {
        target.describe(queue, &[buffer]);
        let (_, used) = target.exchange(queue)?;
        check(used == 0, "bytes", used)?;
    }
    Ok(())
}

fn writable_end(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.data.write(0, b'\n');
    let first = Descriptor::new(target.data.address(0), 1, NEXT, 1);
    let end = Descriptor::new(target.data.address(4096), 64, WRITE, 0);
    for queue in OUTPUTS {
        target.describe(queue, &[first, end]);
        let (_, used) = target.exchange(queue)?;
        check(used == 0, "bytes", used)?;
    }
    Ok(())
}
