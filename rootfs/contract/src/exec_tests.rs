use super::*;

fn to_guest() -> Vec<ToGuest> {
    vec![
        ToGuest::Start(b"{}".to_vec()),
        ToGuest::Stdin(vec![7; DATA_BYTES_MAX]),
        ToGuest::Stdin(Vec::new()),
        ToGuest::StdinEnd,
        ToGuest::Signal(64),
        ToGuest::Resize(TerminalSize {
            columns: 132,
            rows: 43,
        }),
    ]
}

fn to_host() -> Vec<ToHost> {
    vec![
        ToHost::Started,
        ToHost::Refused {
            status: 127,
            text: "not there".to_owned(),
        },
        ToHost::Stdout(vec![1, 2]),
        ToHost::Stderr(vec![0; DATA_BYTES_MAX]),
        ToHost::StdinTaken(u32::MAX),
        ToHost::Ended(255),
    ]
}

/// Sends `messages` in pieces of `piece` bytes.
fn check<M: Message + PartialEq + fmt::Debug>(messages: &[M], piece: usize) {
    let mut bytes = Vec::new();
    for message in messages {
        message.encode(&mut bytes);
    }
    let (mut incoming, mut found) = (Incoming::<M>::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        incoming.add(piece);
        while let Some(message) = incoming.take().unwrap() {
            found.push(message);
        }
    }
    assert_eq!(found, messages);
    assert!(incoming.bytes.is_empty());
}

#[test]
fn messages_arrive_however_they_are_cut() {
    for piece in [1, 4, 5, 6, 4096, usize::MAX] {
        check(&to_guest(), piece);
        check(&to_host(), piece);
    }
}

fn refused<M: Message + fmt::Debug>(bytes: &[u8]) -> BadMessage {
    let mut incoming = Incoming::<M>::default();
    incoming.add(bytes);
    incoming.take().unwrap_err()
}

#[test]
fn what_is_no_message_is_refused_by_its_head() {
    for kind in [0, 6, 7, 255] {
        assert_eq!(
            refused::<ToGuest>(&[kind, 0, 0, 0, 0]),
            BadMessage::Kind(kind)
        );
    }
    for kind in [0, 7, 255] {
        assert_eq!(
            refused::<ToHost>(&[kind, 0, 0, 0, 0]),
            BadMessage::Kind(kind)
        );
    }
    // No byte of it has come yet, and none is waited for.
    let found = u32::MAX;
    assert_eq!(
        refused::<ToHost>(&[3, 255, 255, 255, 255]),
        BadMessage::Length {
            kind: 3,
            found,
            allowed: DATA_BYTES_MAX
        }
    );
    assert_eq!(
        refused::<ToGuest>(&[4, 2, 0, 0, 0, 1, 1]),
        BadMessage::Length {
            kind: 4,
            found: 2,
            allowed: 1
        }
    );
}

#[test]
fn a_payload_has_the_form_of_its_kind() {
    for bytes in [
        &[4, 0, 0, 0, 0][..],
        &[4, 1, 0, 0, 0, 0],
        &[4, 1, 0, 0, 0, 65],
        &[5, 3, 0, 0, 0, 1, 2, 3],
    ] {
        assert_eq!(refused::<ToGuest>(bytes), BadMessage::Payload(bytes[0]));
    }
    for bytes in [&[2, 0, 0, 0, 0][..], &[5, 0, 0, 0, 0], &[6, 0, 0, 0, 0]] {
        assert_eq!(refused::<ToHost>(bytes), BadMessage::Payload(bytes[0]));
    }
}

#[test]
fn a_text_is_cut_where_it_may_not_be_longer() {
    let mut bytes = Vec::new();
    let text = "x".repeat(TEXT_BYTES_MAX + 1);
    ToHost::Refused { status: 126, text }.encode(&mut bytes);
    let mut incoming = Incoming::<ToHost>::default();
    incoming.add(&bytes);
    let Ok(Some(ToHost::Refused { text, .. })) = incoming.take() else {
        panic!("a refusal")
    };
    assert_eq!(text.len(), TEXT_BYTES_MAX);
}

#[test]
fn a_start_of_the_first_version_stays_readable() {
    let spec: StartSpec = serde_json::from_str(r#"{"version":1,"words":["ls"]}"#).unwrap();
    assert_eq!(spec.words, ["ls"]);
    assert!(!spec.has_stdin && spec.terminal.is_none());
    // What is added later is a matter of the version, not of the form.
    assert!(
        serde_json::from_str::<StartSpec>(r#"{"version":2,"words":[],"more":0}"#)
            .is_ok_and(|spec| spec.version == 2)
    );
}
