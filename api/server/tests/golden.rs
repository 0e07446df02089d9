//! Raw answers, as they were when somebody last looked at them: the transport's rules, and one request of every route
//! in every state. `␍` stands for CR. After a change that is meant, `cargo xtask rest` writes them anew; read the
//! difference.

mod common;

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use common::Running;
use lightv_api_server::controller::Setup;
use lightv_api_server::settings::Settings;

fn check_golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if env::var_os("LIGHTV_UPDATE_REST").is_some() {
        fs::write(&path, found).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    for (number, (golden, found)) in (1..).zip(golden.lines().zip(found.lines())) {
        assert_eq!(found, golden, "{name}:{number}");
    }
    assert_eq!(found.lines().count(), golden.lines().count(), "{name}");
}

fn visible(text: &str) -> String {
    let version = format!(r#""lightv_version":"{}""#, env!("CARGO_PKG_VERSION"));
    text.replace('\r', "␍")
        .replace(&version, r#""lightv_version":"VERSION""#)
}

fn server() -> Running {
    Running::new(Setup::new("golden"), Settings::default())
}

#[test]
fn transport() {
    let mut found = String::new();
    for raw in [
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /version HTTP/1.1\r\n\r\n",
        "GET /version HTTP/1.0\r\n\r\n",
        "GET /version/ HTTP/1.1\r\n\r\n",
        "GET /version?a=b HTTP/1.1\r\n\r\n",
        "GET http://localhost/version HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /version HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n",
        "POST /actions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        "get / HTTP/1.1\r\n\r\n",
        "PUT /mmds HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
        "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        "PUT /mmds HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "PATCH /mmds HTTP/1.1\r\n\r\n",
        "DELETE /drives/a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        "PUT /mmds HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
        "PUT /mmds HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "PUT /mmds HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 7\r\n\r\n",
        "PUT /machine-config HTTP/1.1\r\nContent-Length: 57\r\n\r\n{\"vcpu_count\":1,\"mem_size_mib\":64,\"cpu_template\":\"None\"}\n",
        "no http\r\n\r\n",
    ] {
        let mut client = server().connect();
        client.send(raw);
        writeln!(
            found,
            "=== {}\n{}\n",
            raw.escape_debug(),
            visible(&client.answer())
        )
        .unwrap();
    }
    check_golden("transport.txt", &found);
}

/// One request of every route, some of them in more than one way.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET", "/", ""),
    ("GET", "/version", ""),
    ("GET", "/machine-config", ""),
    ("GET", "/vm/config", ""),
    ("GET", "/balloon", ""),
    ("GET", "/balloon/statistics", ""),
    ("GET", "/balloon/hinting/status", ""),
    ("GET", "/mmds", ""),
    ("GET", "/hotplug/memory", ""),
    ("GET", "/metrics", ""),
    ("GET", "/events", ""),
    ("GET", "/nope", ""),
    ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
    ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#),
    ("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
    ("PUT", "/actions", r#"{"action_type":"Halt"}"#),
    (
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path":"Cargo.toml"}"#,
    ),
    (
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path":"no/such/kernel"}"#,
    ),
    (
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":2,"mem_size_mib":64}"#,
    ),
    (
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":33,"mem_size_mib":64}"#,
    ),
    ("PUT", "/machine-config", r#"{"vcpu_count":2}"#),
    ("PATCH", "/machine-config", r#"{"vcpu_count":2}"#),
    ("PATCH", "/machine-config", "{}"),
    ("PUT", "/cpu-config", "{}"),
    (
        "PUT",
        "/drives/a",
        r#"{"drive_id":"a","is_root_device":false,"path_on_host":"Cargo.toml"}"#,
    ),
    (
        "PUT",
        "/drives/a",
        r#"{"drive_id":"b","is_root_device":false,"path_on_host":"Cargo.toml"}"#,
    ),
    (
        "PUT",
        "/drives/a",
        r#"{"drive_id":"a","is_root_device":false}"#,
    ),
    ("PUT", "/drives/%2e%2e", "{}"),
    (
        "PATCH",
        "/drives/root",
        r#"{"drive_id":"root","path_on_host":"Cargo.toml"}"#,
    ),
    (
        "PATCH",
        "/drives/a",
        r#"{"drive_id":"a","path_on_host":"Cargo.toml"}"#,
    ),
    ("DELETE", "/drives/root", ""),
    (
        "PUT",
        "/pmem/p",
        r#"{"id":"p","path_on_host":"Cargo.toml"}"#,
    ),
    ("PATCH", "/pmem/p", r#"{"id":"p"}"#),
    ("DELETE", "/pmem/p", ""),
    (
        "PUT",
        "/network-interfaces/n",
        r#"{"iface_id":"n","host_dev_name":"tap0"}"#,
    ),
    ("PATCH", "/network-interfaces/n", r#"{"iface_id":"n"}"#),
    (
        "PATCH",
        "/network-interfaces/n",
        r#"{"iface_id":"n","host_dev_name":"tap1"}"#,
    ),
    ("DELETE", "/network-interfaces/n", ""),
    ("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"u"}"#),
    (
        "PUT",
        "/vsock/v",
        r#"{"guest_cid":2,"uds_path":"u","vsock_id":"v"}"#,
    ),
    (
        "PUT",
        "/balloon",
        r#"{"amount_mib":1,"deflate_on_oom":false}"#,
    ),
    ("PATCH", "/balloon", r#"{"amount_mib":1}"#),
    (
        "PATCH",
        "/balloon/statistics",
        r#"{"stats_polling_interval_s":1}"#,
    ),
    ("PATCH", "/balloon/hinting/start", ""),
    ("PATCH", "/balloon/hinting/stop", ""),
    ("PUT", "/entropy", "{}"),
    ("PUT", "/serial", r#"{"serial_out_path":"s"}"#),
    ("PUT", "/logger", r#"{"log_path":"l"}"#),
    ("PUT", "/metrics", r#"{"metrics_path":"m"}"#),
    ("PUT", "/mmds/config", r#"{"network_interfaces":["n"]}"#),
    ("PUT", "/mmds", r#"{"a":1}"#),
    ("PATCH", "/mmds", r#"{"a":null}"#),
    ("PUT", "/hotplug/memory", r#"{"total_size_mib":128}"#),
    ("PATCH", "/hotplug/memory", r#"{"requested_size_mib":64}"#),
    ("PATCH", "/vm", r#"{"state":"Paused"}"#),
    ("PATCH", "/vm", r#"{"state":"Resumed"}"#),
    (
        "PUT",
        "/snapshot/create",
        r#"{"snapshot_path":"s","mem_file_path":"m"}"#,
    ),
    (
        "PUT",
        "/snapshot/load",
        r#"{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"}}"#,
    ),
    (
        "PUT",
        "/snapshot/load",
        r#"{"snapshot_path":"s","mem_file_path":"m"}"#,
    ),
    ("PUT", "/snapshot/load", r#"{"snapshot_path":"s"}"#),
];

/// Each request to a machine of its own, in the state that `prepare` brings it to.
fn answers(prepare: &[(&str, &str, &str)]) -> String {
    let mut found = String::new();
    for (method, path, body) in REQUESTS {
        let server = server();
        for (method, path, body) in prepare {
            let answer = server.ask(method, path, body);
            assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
        }
        let answer = server.ask(method, path, body);
        writeln!(found, "=== {method} {path} {body}\n{}\n", visible(&answer)).unwrap();
    }
    found
}

#[test]
fn not_started() {
    check_golden("not_started.txt", &answers(&[]));
}

const START: [(&str, &str, &str); 4] = [
    (
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path":"Cargo.toml"}"#,
    ),
    (
        "PUT",
        "/drives/root",
        r#"{"drive_id":"root","is_root_device":true,"path_on_host":"Cargo.toml"}"#,
    ),
    (
        "PUT",
        "/network-interfaces/n",
        r#"{"iface_id":"n","host_dev_name":"tap0"}"#,
    ),
    ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
];

#[test]
fn configured() {
    let [boot, drive, net, _] = START;
    check_golden("configured.txt", &answers(&[boot, drive, net]));
}

#[test]
fn running() {
    check_golden("running.txt", &answers(&START));
}

#[test]
fn paused() {
    let pause = ("PATCH", "/vm", r#"{"state":"Paused"}"#);
    check_golden("paused.txt", &answers(&[&START[..], &[pause]].concat()));
}
