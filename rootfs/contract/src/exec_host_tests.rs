use super::*;
use crate::exec::Message as _;

/// What is heard of `bytes` that come in pieces of `piece` bytes, up to the first fault.
fn hear(bytes: &[u8], piece: usize) -> (Vec<Heard>, Result<(), HearError>) {
    let (mut hearing, mut heard) = (Hearing::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        hearing.add(piece);
        loop {
            match hearing.hear() {
                Ok(Some(next)) => heard.push(next),
                Ok(None) => break,
                Err(error) => return (heard, Err(error)),
            }
        }
    }
    let end = hearing.end().map_or(Ok(()), Err);
    (heard, end)
}

fn said(messages: &[ToHost]) -> Vec<u8> {
    let mut bytes = b"OK 1073741824\n".to_vec();
    for message in messages {
        message.encode(&mut bytes);
    }
    bytes
}

#[test]
fn a_program_is_heard_from_its_start_to_its_end_however_it_is_cut() {
    let bytes = said(&[
        ToHost::Started,
        ToHost::Stdout(b"out".to_vec()),
        ToHost::StdinTaken(3),
        ToHost::Stderr(b"err".to_vec()),
        ToHost::Ended(7),
    ]);
    let expected = [
        Heard::LetIn,
        Heard::Started,
        Heard::Stdout(b"out".to_vec()),
        Heard::StdinTaken(3),
        Heard::Stderr(b"err".to_vec()),
        Heard::Ended(7),
    ];
    for piece in [1, 3, 14, 15, usize::MAX] {
        let (heard, end) = hear(&bytes, piece);
        assert_eq!((heard.as_slice(), end), (&expected[..], Ok(())), "{piece}");
    }
}

#[test]
fn who_is_no_agent_is_told_from_one_that_refuses() {
    for answer in [&b""[..], b"no\n", b"OK 1", &[b'O'; 99], b"\n"] {
        let (heard, end) = hear(answer, 99);
        assert_eq!(
            (heard, end),
            (vec![], Err(HearError::NoAgent)),
            "{answer:?}"
        );
    }
    let text = "a\x1b[2m\nb".to_owned();
    let refused = said(&[ToHost::Refused { status: 127, text }]);
    let text = "a [2m b".to_owned();
    let (heard, end) = hear(&refused, 1);
    assert_eq!(heard[1], Heard::Refused { status: 127, text });
    assert_eq!(end, Ok(()));
}

#[test]
fn what_comes_at_another_time_than_its_own_is_not_heard() {
    let refused = || ToHost::Refused {
        status: 126,
        text: String::new(),
    };
    for (messages, count) in [
        (vec![ToHost::Stdout(vec![1])], 1),
        (vec![ToHost::StdinTaken(0)], 1),
        (vec![ToHost::Ended(0)], 1),
        (vec![ToHost::Started, ToHost::Started], 2),
        (vec![ToHost::Started, refused()], 2),
        (vec![refused(), ToHost::Started], 2),
        (vec![ToHost::Started, ToHost::Stdout(vec![])], 2),
        (vec![ToHost::Started, ToHost::StdinTaken(0)], 2),
        (
            vec![ToHost::Started, ToHost::Ended(0), ToHost::Stdout(vec![1])],
            3,
        ),
    ] {
        let (heard, end) = hear(&said(&messages), usize::MAX);
        assert_eq!(heard.len(), count, "{messages:?}");
        assert!(matches!(end, Err(HearError::Order(_))), "{messages:?}");
    }
    let mut bytes = said(&[]);
    bytes.extend([3, 255, 255, 255, 127]);
    let (heard, end) = hear(&bytes, usize::MAX);
    assert_eq!(heard, [Heard::LetIn]);
    assert!(matches!(end, Err(HearError::Message(_))), "{end:?}");
}

#[test]
fn room_for_input_has_a_limit_that_no_guest_moves() {
    let mut room = StdinRoom::default();
    assert_eq!(room.bytes(), DATA_BYTES_MAX);
    assert!(room.add(1).is_err());
    room.fill(STDIN_WINDOW_BYTES - 5);
    assert_eq!(room.bytes(), 5);
    room.fill(5);
    assert_eq!(room.bytes(), 0);
    room.add(7).unwrap();
    assert_eq!(room.bytes(), 7);
    for bytes in [u32::MAX, 1 << 16] {
        assert!(room.add(bytes).is_err(), "{bytes}");
    }
    assert_eq!(room.bytes(), 7);
}
