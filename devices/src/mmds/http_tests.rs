use proptest::prelude::*;

use super::*;

fn whole(text: &str) -> Request<'_> {
    match parse(text.as_bytes()) {
        Parsed::Whole(request) => request,
        other => panic!("{text:?}: {other:?}"),
    }
}

fn get(headers: &str) -> String {
    format!("GET /a HTTP/1.1\r\n{headers}\r\n")
}

#[test]
fn a_request_is_read_up_to_the_next() {
    let two =
        "PUT /latest/api/token HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\n";
    let first = whole(two);
    assert_eq!(
        (first.method, first.path),
        (Method::Put, "/latest/api/token")
    );
    let second = whole(&two[first.bytes..]);
    assert_eq!((second.method, second.path), (Method::Get, "/"));
    assert!(first.framing.is_1_1 && first.framing.keeps_alive);
    assert_eq!(
        second.framing,
        Framing {
            is_1_1: false,
            keeps_alive: false
        }
    );
}

#[test]
fn targets_have_a_path() {
    for (target, expected) in [
        ("/a/b?c=/d", "/a/b"),
        ("/a#b", "/a"),
        ("http://169.254.169.254/a//b?c", "/a//b"),
        ("http://169.254.169.254", ""),
        ("http://", ""),
        ("*", ""),
        ("a/b", ""),
    ] {
        assert_eq!(path(target), expected, "{target}");
    }
}

#[test]
fn tokens_come_by_either_name() {
    for (headers, expected) in [
        ("", None),
        ("X-Metadata-Token: abc \r\n", Some("abc")),
        ("x-aws-ec2-metadata-token:abc\r\n", Some("abc")),
        (
            "X-aws-ec2-metadata-token: b\r\nX-metadata-token: a\r\n",
            Some("a"),
        ),
    ] {
        assert_eq!(whole(&get(headers)).token, expected, "{headers}");
    }
    let life = get("x-AWS-ec2-metadata-token-TTL-seconds: 60\r\nx-forwarded-for: \r\n");
    let expected = ("X-aws-ec2-metadata-token-ttl-seconds", "60");
    assert_eq!(whole(&life).token_life, Some(expected));
    assert!(whole(&life).is_forwarded);
    let mut odd = get("X-metadata-token: \u{ff}\r\n").into_bytes();
    odd.retain(|byte| *byte != 0xc3);
    let Parsed::Whole(odd) = parse(&odd) else {
        panic!("bytes beyond ASCII are allowed (RFC 9110 §5.5)");
    };
    assert_eq!(odd.token, Some(""));
}

#[test]
fn the_first_known_kind_of_content_counts() {
    for (accept, expected) in [
        ("", false),
        ("Accept: */*\r\n", false),
        ("Accept: Application/JSON\r\n", true),
        ("Accept: image/png, application/json;q=0.5, */*\r\n", true),
        ("Accept: text/plain\r\nAccept: application/json\r\n", false),
        ("Accept: nonsense\r\n", false),
    ] {
        assert_eq!(whole(&get(accept)).wants_json, expected, "{accept}");
    }
}

#[test]
fn connections_end_when_the_client_says_so() {
    for (headers, expected) in [
        ("", true),
        ("Connection: Close\r\n", false),
        ("Connection: keep-alive, close\r\n", false),
        ("Connection: keep-alive\r\n", true),
    ] {
        let found = whole(&get(headers)).framing.keeps_alive;
        assert_eq!(found, expected, "{headers}");
    }
    assert!(
        whole("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .framing
            .keeps_alive
    );
}

#[test]
fn what_is_no_request_is_told_from_what_is_none_yet() {
    let bomb = "a: b\r\n".repeat(MMDS_HEADERS_MAX + 1);
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MMDS_REQUEST_BYTES_MAX));
    for (text, expected) in [
        ("", Parsed::Partial),
        ("GET / HTTP/1.1\r\nHost: x\r\n", Parsed::Partial),
        (
            "PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\na",
            Parsed::Partial,
        ),
        ("GET\r\n\r\n", Parsed::Bad(BadRequest::Malformed)),
        ("\0", Parsed::Bad(BadRequest::Malformed)),
        ("GET / HTTP/2.0\r\n\r\n", Parsed::Bad(BadRequest::Malformed)),
        (&get(&bomb), Parsed::Bad(BadRequest::HeadTooLarge)),
        (&long, Parsed::Bad(BadRequest::HeadTooLarge)),
        (
            &get("Content-Length: 8192\r\n"),
            Parsed::Bad(BadRequest::BodyTooLarge),
        ),
        (
            &get("Content-Length: 99999999999999999999999\r\n"),
            Parsed::Bad(BadRequest::BodyTooLarge),
        ),
        (
            &get("Content-Length: -1\r\n"),
            Parsed::Bad(BadRequest::Malformed),
        ),
        (
            &get("Content-Length: +1\r\n"),
            Parsed::Bad(BadRequest::Malformed),
        ),
        (
            &get("Content-Length:\r\n"),
            Parsed::Bad(BadRequest::Malformed),
        ),
        (
            &get("Content-Length: 1\r\nContent-Length: 2\r\n"),
            Parsed::Bad(BadRequest::Malformed),
        ),
        (
            &get("Transfer-Encoding: chunked\r\n"),
            Parsed::Bad(BadRequest::Malformed),
        ),
    ] {
        let shown = &text[..text.len().min(60)];
        assert_eq!(parse(text.as_bytes()), expected, "{shown:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..MMDS_REQUEST_BYTES_MAX)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn a_full_buffer_is_never_partial(text in "(GET /[a-z]{0,9} HTTP/1\\.1\r\n)?([a-z]: [a-z]{0,99}\r\n){0,60}") {
        let mut bytes = text.into_bytes();
        bytes.resize(MMDS_REQUEST_BYTES_MAX, b'a');
        prop_assert_ne!(parse(&bytes), Parsed::Partial);
    }
}
