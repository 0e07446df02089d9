use serde_json::{Value, json};

use super::super::http::{Parsed, parse};
use super::super::service::{DEFAULT_ADDRESS, Mmds};
use super::*;

const V1: MmdsOptions = MmdsOptions {
    version: Version::V1,
    address: DEFAULT_ADDRESS,
    imds_compat: false,
};
const V2: MmdsOptions = MmdsOptions {
    version: Version::V2,
    ..V1
};
const JSON: &str = "Accept: application/json\r\n";

fn mmds() -> Mmds {
    let mmds = Mmds::default();
    let Value::Object(data) = json!({"a": {"b": "c"}, "n": 1}) else {
        panic!("a test's data is an object");
    };
    mmds.put(data);
    mmds
}

fn ask(mmds: &Mmds, options: MmdsOptions, line: &str, headers: &str) -> Answer {
    let text = format!("{line} HTTP/1.1\r\n{headers}\r\n");
    match parse(text.as_bytes()) {
        Parsed::Whole(request) => answer(mmds.service(), &options, &request),
        other => panic!("{text}: {other:?}"),
    }
}

fn check(answer: &Answer, code: Code, body: &str) {
    assert_eq!((answer.code, answer.body.as_str()), (code, body));
}

#[test]
fn version_1_answers_without_a_token_in_the_format_that_is_asked_for() {
    let mmds = mmds();
    let ask = |line, headers| ask(&mmds, V1, line, headers);
    check(&ask("GET /a", ""), Code::Ok, "b");
    check(&ask("GET /", ""), Code::Ok, "a/\nn");
    check(&ask("GET //a///b/", ""), Code::Ok, "c");
    check(&ask("GET /a", JSON), Code::Ok, r#"{"b":"c"}"#);
    check(&ask("GET /n", JSON), Code::Ok, "1");
    let words = "Cannot retrieve value. The value has an unsupported type.";
    check(&ask("GET /n", ""), Code::NotImplemented, words);
    check(
        &ask("GET /x/y", JSON),
        Code::NotFound,
        "Resource not found: /x/y.",
    );
    check(
        &ask("GET http://host", ""),
        Code::BadRequest,
        "Invalid URI.",
    );
    check(&ask("GET /a", "X-metadata-token: wrong\r\n"), Code::Ok, "b");
    let counts = mmds.counts();
    assert_eq!((counts.rx_no_token, counts.rx_invalid_token), (7, 1));
}

#[test]
fn other_methods_are_told_what_is_allowed() {
    let mmds = mmds();
    for method in ["POST", "PATCH", "DELETE", "OPTIONS", "HEAD"] {
        let answer = ask(&mmds, V2, &format!("{method} /a"), "");
        check(&answer, Code::MethodNotAllowed, "Not allowed HTTP method.");
        let bytes = String::from_utf8(answer.bytes(Framing::LAST)).unwrap();
        assert!(bytes.contains("\r\nAllow: GET, PUT\r\n"), "{bytes}");
        assert_eq!(bytes.ends_with("\r\n\r\n"), method == "HEAD", "{bytes}");
    }
}

#[test]
fn version_2_wants_a_valid_token() {
    let mmds = mmds();
    let ask = |line: &str, headers: &str| ask(&mmds, V2, line, headers);
    let none = ask("GET /a", "");
    assert_eq!(none.code, Code::Unauthorized);
    assert!(none.body.starts_with("No MMDS token provided."), "{none:?}");
    let wrong = ask("GET /a", "X-metadata-token: wrong\r\n");
    check(&wrong, Code::Unauthorized, "MMDS token not valid.");
    for prefix in ["X-metadata", "X-aws-ec2-metadata"] {
        let made = ask(
            "PUT /latest//api/token",
            &format!("{prefix}-token-ttl-seconds: 60\r\n"),
        );
        assert_eq!(made.code, Code::Ok, "{made:?}");
        let bytes = String::from_utf8(made.bytes(Framing::LAST)).unwrap();
        assert!(
            bytes.contains(&format!("\r\n{prefix}-token-ttl-seconds: 60\r\n")),
            "{bytes}"
        );
        let header = format!("{prefix}-token: {}\r\n", made.body);
        check(&ask("GET /a", &header), Code::Ok, "b");
        check(&ask("GET /a", &(header + JSON)), Code::Ok, r#"{"b":"c"}"#);
    }
    let counts = mmds.counts();
    assert_eq!((counts.rx_no_token, counts.rx_invalid_token), (1, 1));
}

#[test]
fn tokens_are_refused_with_what_is_wrong() {
    let mmds = mmds();
    let put = |headers: &str| ask(&mmds, V2, "PUT /latest/api/token", headers);
    let life = |text: &str| put(&format!("X-metadata-token-ttl-seconds: {text}\r\n"));
    for (answer, words) in [
        (put(""), "Token time to live value not found."),
        (
            life("0"),
            "Invalid time to live value provided for token: 0.",
        ),
        (life("21601"), "Please provide a value between 1 and 21600."),
        (
            life("-1"),
            "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:-1",
        ),
        (life("4294967296"), "Value:4294967296"),
        (life(""), "Invalid value."),
        (
            put("X-metadata-token-ttl-seconds: 60\r\nx-forwarded-for: 10.0.0.1\r\n"),
            "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For",
        ),
    ] {
        assert_eq!(answer.code, Code::BadRequest, "{answer:?}");
        assert!(answer.body.contains(words), "{answer:?}");
    }
    for text in ["1", "21600"] {
        assert_eq!(life(text).code, Code::Ok, "{text}");
    }
    let elsewhere = ask(&mmds, V2, "PUT /a", "X-metadata-token-ttl-seconds: 60\r\n");
    check(&elsewhere, Code::NotFound, "Resource not found: /a.");
}

#[test]
fn compatible_with_ec2_it_answers_in_text_whatever_is_asked_for() {
    let options = MmdsOptions {
        imds_compat: true,
        ..V1
    };
    let answer = ask(&mmds(), options, "GET /a", JSON);
    check(&answer, Code::Ok, "b");
    let bytes = String::from_utf8(answer.bytes(Framing::LAST)).unwrap();
    assert!(bytes.contains("Content-Type: text/plain"), "{bytes}");
}

#[test]
fn an_answer_is_framed_as_the_client_speaks() {
    let answer = ask(&mmds(), V1, "GET /a", JSON);
    let framing = Framing {
        is_1_1: false,
        keeps_alive: true,
    };
    let expected = "HTTP/1.0 200 OK\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
                    Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{\"b\":\"c\"}";
    assert_eq!(String::from_utf8(answer.bytes(framing)).unwrap(), expected);
}
