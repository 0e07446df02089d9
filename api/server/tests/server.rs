//! The server over a real socket: what raw bytes are answered, and that no client is in another's way.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use common::{Running, request};
use lightv_api_server::controller::Setup;
use lightv_api_server::limits;
use lightv_api_server::settings::Settings;

fn server() -> Running {
    with(Settings::default())
}

fn with(settings: Settings) -> Running {
    Running::new(Setup::new("trial"), settings)
}

/// A server whose clients have little time: enough for one that says all at once on a busy host.
fn hasty() -> Running {
    with(Settings {
        request_time_max: Duration::from_secs(1),
        ..Settings::default()
    })
}

#[track_caller]
fn check_status(answer: &str, status: u16) {
    let start = format!("HTTP/1.1 {status} ");
    assert!(answer.starts_with(&start), "{answer}");
}

/// A body of `bytes` bytes that the metadata store takes.
fn body_of(bytes: usize) -> String {
    format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8))
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let server = server();
    let mut client = server.connect();
    let put = request(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":2,"mem_size_mib":64}"#,
    );
    let get = request("GET", "/machine-config", "");
    client.send([put, get.clone(), request("GET", "/nope", ""), get].concat());
    check_status(&client.answer(), 204);
    assert!(client.answer().contains(r#""vcpu_count":2"#));
    check_status(&client.answer(), 400);
    check_status(&client.answer(), 200);
}

#[test]
fn a_silent_or_slow_client_delays_only_itself() {
    let server = hasty();
    let _silent = server.connect();
    let mut half_head = server.connect();
    half_head.send("GET / HT");
    let mut half_body = server.connect();
    half_body.send("PUT /mmds HTTP/1.1\r\nContent-Length: 20\r\n\r\n{\"a\":123,");
    for _ in 0..10 {
        check_status(&server.ask("GET", "/", ""), 200);
    }
    assert!(half_head.is_closed());
    let answer = half_body.answer();
    check_status(&answer, 400);
    assert!(answer.contains("not complete after 1000 ms"), "{answer}");
    assert!(half_body.is_closed());
    check_status(&server.ask("GET", "/", ""), 200);
}

#[test]
fn a_head_that_drips_is_given_no_more_time_than_one_that_stops() {
    let server = hasty();
    let mut client = server.connect();
    let mut sent = 0;
    while client.stream.write_all(b"G").is_ok() {
        sent += 1;
        assert!(sent < 1000, "it can go on for ever");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_connection_that_is_silent_for_long_is_closed() {
    let server = with(Settings {
        idle_time_max: Duration::from_secs(1),
        ..Settings::default()
    });
    let mut client = server.connect();
    client.send(request("GET", "/", ""));
    check_status(&client.answer(), 200);
    assert!(client.is_closed());
    assert!(server.connect().is_closed());
}

#[test]
fn two_hundred_clients_are_served_at_a_time() {
    let server = server();
    let mut clients: Vec<_> = (0..200).map(|_| server.connect()).collect();
    for _ in 0..3 {
        for client in &mut clients {
            client.send(request("GET", "/version", ""));
        }
        for client in &mut clients {
            check_status(&client.answer(), 200);
        }
    }
}

#[test]
fn a_client_too_many_is_told_so_and_comes_in_when_another_has_gone() {
    let server = with(Settings {
        connections_max: 2,
        ..Settings::default()
    });
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        client.send(request("GET", "/", ""));
        check_status(&client.answer(), 200);
    }
    let mut third = server.connect();
    let answer = third.answer();
    check_status(&answer, 503);
    assert!(
        answer.ends_with(r#"{"error":"Too many open connections"}"#),
        "{answer}"
    );
    assert!(third.is_closed());
    drop(clients);
    // The server sees the end of the two when it sees it.
    loop {
        let mut client = server.connect();
        if client
            .stream
            .write_all(request("GET", "/", "").as_bytes())
            .is_ok()
            && client.answer().starts_with("HTTP/1.1 200 ")
        {
            break;
        }
    }
}

#[test]
fn bodies_up_to_the_limit_are_taken_and_larger_ones_refused() {
    let server = server();
    let max = limits::BODY_BYTES_MAX;
    check_status(&server.ask("PUT", "/mmds", &body_of(max - 1)), 204);
    check_status(&server.ask("PUT", "/mmds", &body_of(max)), 204);
    let too_large = |size: &str| {
        format!(
            r#"{{"error":"Request payload with size {size} is larger than the limit of {max} allowed by server.\nAll previous unanswered requests will be dropped."}}"#
        )
    };
    let mut client = server.connect();
    client.send(request("PUT", "/mmds", &body_of(max + 1)));
    let answer = client.answer();
    check_status(&answer, 400);
    assert!(answer.ends_with(&too_large("51201")), "{answer}");
    assert!(client.is_closed());
    // Refused by its length, before a byte of it has come.
    let mut client = server.connect();
    client.send("PUT /mmds HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n");
    assert!(client.answer().ends_with(&too_large("104857600")));
    assert!(client.is_closed());
    let small = with(Settings {
        body_bytes_max: 30,
        ..Settings::default()
    });
    check_status(&small.ask("PUT", "/mmds", &body_of(30)), 204);
    check_status(&small.ask("PUT", "/mmds", &body_of(31)), 400);
}

#[test]
fn chunked_bodies_are_taken_up_to_the_same_limit() {
    let server = server();
    let mut client = server.connect();
    let head = "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}4\r\n{{\"a\"\r\n"));
    client.send("3\r\n:1}\r\n0\r\n\r\n");
    check_status(&client.answer(), 204);
    client.send(request("GET", "/mmds", ""));
    assert!(client.answer().ends_with("\r\n\r\n{\"a\":1}"));
    client.send(head);
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    for _ in 0..4 {
        client.send(&chunk);
    }
    let answer = client.answer();
    check_status(&answer, 400);
    assert!(
        answer.contains("is larger than the limit of 51200"),
        "{answer}"
    );
}

#[test]
fn lengths_that_are_none_end_the_connection() {
    let server = server();
    for lines in [
        "Content-Length: -1",
        "Content-Length: +5",
        "Content-Length: 5, 6",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 99999999999999999999",
        "Content-Length: x",
        "Transfer-Encoding: gzip",
    ] {
        let mut client = server.connect();
        client.send(format!("PUT /mmds HTTP/1.1\r\n{lines}\r\n\r\n{{\"a\":1}}"));
        check_status(&client.answer(), 400);
        assert!(client.is_closed(), "{lines}");
    }
    check_status(&server.ask("GET", "/", ""), 200);
}

#[test]
fn heads_without_end_are_refused() {
    let server = server();
    let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(10_000));
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for head in [long, many, path] {
        let mut client = server.connect();
        // The server may have had enough before the last byte.
        let _ = client.stream.write_all(head.as_bytes());
        let mut answer = [0; 64];
        let read = client.stream.read(&mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    }
    check_status(&server.ask("GET", "/", ""), 200);
}

#[test]
fn bytes_that_are_no_http_are_refused() {
    let server = server();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(bytes);
        check_status(&client.answer(), 400);
        assert!(client.is_closed());
    }
    // HTTP/2's preface gets no answer that HTTP/1 has.
    let mut client = server.connect();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!(client.is_closed());
}

#[test]
fn a_client_of_http_1_0_keeps_its_connection() {
    let server = server();
    let mut client = server.connect();
    for _ in 0..3 {
        client.send("GET /version HTTP/1.0\r\n\r\n");
        assert!(client.answer().contains("firecracker_version"));
        client.send("PUT /mmds HTTP/1.0\r\nContent-Length: 7\r\n\r\n{\"a\":1}");
        assert!(client.answer().contains(" 204 "));
    }
    client.send("GET /mmds HTTP/1.0\r\n\r\nGET /nope HTTP/1.0\r\n\r\n");
    assert!(client.answer().ends_with("{\"a\":1}"));
    assert!(client.answer().contains(" 400 "));
    client.send("GET / HTTP/1.0\r\nConnection: close\r\n\r\n");
    assert!(client.answer().contains(" 200 "));
    assert!(client.is_closed());
}

#[test]
fn a_client_that_waits_for_leave_to_send_its_body_gets_it() {
    let server = server();
    let mut client = server.connect();
    client.send("PUT /mmds HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 7\r\n\r\n");
    assert!(client.answer().starts_with("HTTP/1.1 100 "));
    client.send("{\"a\":1}");
    check_status(&client.answer(), 204);
}

#[test]
fn a_client_that_closes_its_half_is_answered() {
    let server = server();
    let mut client = server.connect();
    client.send(request("GET", "/", ""));
    client.stream.shutdown(Shutdown::Write).unwrap();
    check_status(&client.answer(), 200);
    assert!(client.is_closed());
}

#[test]
fn what_needs_no_machine_is_answered_while_a_snapshot_is_written() {
    let server = server();
    let body = r#"{"kernel_image_path":"Cargo.toml"}"#;
    check_status(&server.ask("PUT", "/boot-source", body), 204);
    check_status(
        &server.ask("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
        204,
    );
    check_status(&server.ask("PATCH", "/vm", r#"{"state":"Paused"}"#), 204);
    let mut saver = server.connect();
    let slow = r#"{"snapshot_path":"slow","mem_file_path":"m"}"#;
    saver.send(request("PUT", "/snapshot/create", slow));
    let mut resumer = server.connect();
    resumer.send(request("PATCH", "/vm", r#"{"state":"Resumed"}"#));
    for path in ["/", "/version", "/machine-config", "/vm/config"] {
        check_status(&server.ask("GET", path, ""), 200);
    }
    assert!(server.ask("GET", "/", "").contains(r#""state":"Paused""#));
    check_status(&server.ask("PUT", "/vsock", "{}"), 400);
    server.let_go.send(()).unwrap();
    check_status(&saver.answer(), 204);
    check_status(&resumer.answer(), 204);
    assert!(server.ask("GET", "/", "").contains(r#""state":"Running""#));
    assert_eq!(server.record.take().last().unwrap(), "resume");
}

#[test]
fn a_client_that_goes_before_its_answer_is_no_fault() {
    let server = server();
    for _ in 0..100 {
        let mut client = server.connect();
        client.send(request("PUT", "/mmds", r#"{"a":1}"#));
    }
    check_status(&server.ask("GET", "/", ""), 200);
}

#[test]
fn json_without_end_is_refused_and_deep_json_taken() {
    let server = server();
    check_status(&server.ask("PUT", "/mmds", &"[".repeat(10_000)), 400);
    check_status(&server.ask("PUT", "/mmds", &"{\"a\":".repeat(10_000)), 400);
    let deep = format!("{}1{}", "{\"a\":".repeat(120), "}".repeat(120));
    check_status(&server.ask("PUT", "/mmds", &deep), 204);
    check_status(&server.ask("PATCH", "/mmds", &deep), 204);
    assert!(server.ask("GET", "/mmds", "").ends_with(&deep));
}
