//! A device that lies is refused; one that does not is read.

use lightv_contract::agent::Ready;

use super::*;

struct Device(Vec<u8>);

impl Readable for Device {
    fn copy(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(into.len())?;
        into.copy_from_slice(self.0.get(offset..end)?);
        Some(())
    }
}

/// A device with these `(field, values)` and `(offset, bytes)`.
fn device(fields: &[(usize, &[u32])], bytes: &[(usize, &[u8])]) -> Device {
    let mut device = vec![0; BYTES];
    for (field, values) in fields {
        for (value, at) in values.iter().zip((*field..).step_by(4)) {
            device[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    for (at, bytes) in bytes {
        device[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    Device(device)
}

#[test]
fn orders_are_read() {
    let agent = br#"{"entrypoint":["/bin/app"],"ready":{"listen":80}}"#;
    let length = u32::try_from(agent.len()).unwrap();
    let device = device(
        &[
            (read::ARGS, &[0x100, 5, 3]),
            (read::ENV, &[0x110, 4, 1]),
            (read::FLAGS, &[1]),
            (read::AGENT, &[0x200, length]),
        ],
        &[(0x100, b"a\0\0b\0"), (0x110, b"A=b\0"), (0x200, agent)],
    );
    let orders = Orders::read(&device).unwrap();
    assert_eq!(orders.args().collect::<Vec<_>>(), [&b"a"[..], b"", b"b"]);
    assert_eq!(orders.env().collect::<Vec<_>>(), [b"A=b"]);
    assert!(orders.has_terminal);
    let spec = orders.spec().unwrap();
    assert_eq!(spec.entrypoint, ["/bin/app"]);
    assert_eq!(spec.ready, Ready::Listen(80));
}

#[test]
fn an_empty_device_orders_the_default() {
    let orders = Orders::read(&device(&[], &[])).unwrap();
    assert_eq!(orders, Orders::default());
    assert_eq!(orders.args().count(), 0);
    assert_eq!(orders.spec().unwrap(), AgentSpec::default());
}

#[test]
fn what_does_not_lie_in_the_device_is_refused() {
    for values in [
        [0xffff, 2, 0],
        [u32::MAX, u32::MAX, 0],
        [0, 0x1_0001, 0],
        [0x1_0000, 1, 0],
    ] {
        for field in [read::ARGS, read::ENV] {
            let found = Orders::read(&device(&[(field, &values)], &[]));
            assert!(
                matches!(found, Err(ControlError::Outside { .. })),
                "{values:?}"
            );
        }
        let found = Orders::read(&device(&[(read::AGENT, &values[..2])], &[]));
        assert!(
            matches!(found, Err(ControlError::Outside { .. })),
            "{values:?}"
        );
    }
}

#[test]
fn strings_without_end_or_of_another_number_are_refused() {
    for (count, text) in [(1, &b"ab"[..]), (2, b"a\0"), (0, b"a\0"), (1, b"a\0b")] {
        let length = u32::try_from(text.len()).unwrap();
        let fields: &[u32] = &[0x100, length, count];
        let found = Orders::read(&device(&[(read::ARGS, fields)], &[(0x100, text)]));
        assert!(matches!(found, Err(ControlError::Count { .. })), "{text:?}");
    }
}

#[test]
fn orders_that_are_no_json_or_have_unknown_fields_are_refused() {
    for text in [&b"{"[..], b"{\"entrypoint\":1}", b"{\"unknown\":1}"] {
        let length = u32::try_from(text.len()).unwrap();
        let device = device(&[(read::AGENT, &[0x100, length])], &[(0x100, text)]);
        let orders = Orders::read(&device).unwrap();
        assert!(
            matches!(orders.spec(), Err(ControlError::Orders(_))),
            "{text:?}"
        );
    }
}

#[test]
fn the_wall_clock_goes_on_by_the_time_stamp_counter() {
    let clock = |tsc_khz| WallClock {
        unix_ns: 1000,
        tsc: 500,
        tsc_khz,
    };
    for (khz, tsc, expected) in [
        (2_000_000, 2500, 2000),
        (2_000_000, 400, 1000),
        (0, 2500, 1000),
        (1, u64::MAX, 1000),
    ] {
        assert_eq!(clock(khz).at(tsc), expected, "{khz} {tsc}");
    }
}
