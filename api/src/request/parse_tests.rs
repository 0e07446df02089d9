use super::*;
use crate::contract::actions::Action;
use crate::contract::vm::VmState;

fn parse_text(method: &str, path: &str, body: &str) -> Result<Parsed, String> {
    let method = Method::of(method).expect("a test's method exists");
    let call = Call {
        method,
        path,
        body: body.as_bytes(),
    };
    Request::parse(call).map_err(|fault| fault.message)
}

fn request(method: &str, path: &str, body: &str) -> Request {
    parse_text(method, path, body)
        .unwrap_or_else(|message| panic!("{method} {path} {body}: {message}"))
        .request
}

fn check_refused(method: &str, path: &str, body: &str, message: &str) {
    let found = parse_text(method, path, body).expect_err(path);
    assert_eq!(found, message, "{method} {path} {body}");
}

/// The form of serde's messages.
fn check_json(method: &str, path: &str, body: &str, cause: &str) {
    let form = "An error occurred when deserializing the json body of a request: ";
    check_refused(method, path, body, &format!("{form}{cause}."));
}

/// One request of every route that is as it should be. Each has its own variant.
const LEGAL: &[(&str, &str, &str)] = &[
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
    ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
    ("PUT", "/boot-source", r#"{"kernel_image_path":"k"}"#),
    (
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":2,"mem_size_mib":64}"#,
    ),
    ("PATCH", "/machine-config", r#"{"vcpu_count":2}"#),
    (
        "PUT",
        "/cpu-config",
        r#"{"kvm_capabilities":["!121"],"cpuid_modifiers":[{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0b1x"}]}],"msr_modifiers":[{"addr":"0x10a","bitmap":"0b0"}]}"#,
    ),
    (
        "PUT",
        "/drives/root",
        r#"{"drive_id":"root","is_root_device":true,"path_on_host":"p"}"#,
    ),
    (
        "PATCH",
        "/drives/root",
        r#"{"drive_id":"root","path_on_host":"q"}"#,
    ),
    ("DELETE", "/drives/root", ""),
    ("PUT", "/pmem/p0", r#"{"id":"p0","path_on_host":"p"}"#),
    ("PATCH", "/pmem/p0", r#"{"id":"p0","rate_limiter":{}}"#),
    ("DELETE", "/pmem/p0", ""),
    (
        "PUT",
        "/network-interfaces/eth0",
        r#"{"iface_id":"eth0","host_dev_name":"tap0"}"#,
    ),
    (
        "PATCH",
        "/network-interfaces/eth0",
        r#"{"iface_id":"eth0","rx_rate_limiter":{"ops":{"size":1,"refill_time":2,"later":3}}}"#,
    ),
    ("DELETE", "/network-interfaces/eth0", ""),
    ("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"u"}"#),
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
    (
        "PATCH",
        "/balloon/hinting/start",
        r#"{"acknowledge_on_stop":false,"other":1}"#,
    ),
    ("PATCH", "/balloon/hinting/stop", ""),
    ("PUT", "/entropy", "{}"),
    ("PUT", "/serial", r#"{"serial_out_path":"s"}"#),
    (
        "PUT",
        "/logger",
        r#"{"log_path":"l","level":"wArNiNg","show_level":true}"#,
    ),
    ("PUT", "/metrics", r#"{"metrics_path":"m","later":1}"#),
    (
        "PUT",
        "/mmds/config",
        r#"{"network_interfaces":["eth0"],"version":"V2","ipv4_address":"169.254.1.1"}"#,
    ),
    ("PUT", "/mmds", r#"{"a":{"b":[1,null]}}"#),
    ("PATCH", "/mmds", r#"{"a":null}"#),
    ("PUT", "/hotplug/memory", r#"{"total_size_mib":1024}"#),
    ("PATCH", "/hotplug/memory", r#"{"requested_size_mib":512}"#),
    ("PATCH", "/vm", r#"{"state":"Paused"}"#),
    (
        "PUT",
        "/snapshot/create",
        r#"{"snapshot_path":"s","mem_file_path":"m"}"#,
    ),
    (
        "PUT",
        "/fork",
        r#"{"snapshot_path":"s","mem_socket_path":"m","clones":2}"#,
    ),
    (
        "PUT",
        "/snapshot/load",
        r#"{"snapshot_path":"s","mem_backend":{"backend_type":"Uffd","backend_path":"b"},"huge_pages":"Transparent"}"#,
    ),
];

#[test]
fn one_legal_request_of_every_route_is_understood() {
    let mut seen = std::collections::HashSet::new();
    for (method, path, body) in LEGAL {
        let request = request(method, path, body);
        assert!(seen.insert(std::mem::discriminant(&request)), "{path}");
    }
    assert_eq!(seen.len(), 44);
}

#[test]
fn an_unknown_field_is_refused_but_where_firecracker_passes_it_over() {
    let tolerant = ["/metrics", "/balloon/hinting/start", "/mmds"];
    for (method, path, body) in LEGAL {
        let Some(open) = body.strip_suffix('}') else {
            continue;
        };
        let comma = if body.len() > 2 { "," } else { "" };
        let body = format!(r#"{open}{comma}"no_such_field":1}}"#);
        let found = parse_text(method, path, &body);
        if tolerant.contains(path) {
            assert!(found.is_ok(), "{method} {path}");
        } else {
            let message = found.expect_err(path);
            assert!(
                message.contains("unknown field `no_such_field`"),
                "{message}"
            );
        }
    }
}

#[test]
fn further_segments_and_a_trailing_slash_are_ignored() {
    let vsock = r#"{"guest_cid":3,"uds_path":"u"}"#;
    assert!(matches!(
        request("PUT", "/vsock/root", vsock),
        Request::PutVsock(_)
    ));
    let action = r#"{"action_type":"FlushMetrics"}"#;
    let flush = Request::Act(Action::FlushMetrics);
    assert_eq!(request("PUT", "/actions/x/y", action), flush);
    for path in [
        "/machine-config/",
        "/machine-config/a/b",
        "//machine-config",
        "machine-config",
    ] {
        assert_eq!(request("GET", path, ""), Request::GetMachine, "{path}");
    }
    assert_eq!(request("GET", "", ""), Request::GetInfo);
    let resumed = Request::PatchVm(VmState::Resumed);
    assert_eq!(request("PATCH", "/vm/x", r#"{"state":"Resumed"}"#), resumed);
}

#[test]
fn unknown_paths_methods_and_queries_are_refused_by_name() {
    let unknown = |what: &str| format!("Invalid request method and/or path: {what}.");
    for (method, path, body, what) in [
        ("GET", "/nope", "", "GET nope"),
        ("GET", "/vm", "", "GET vm"),
        ("GET", "/version?x=1", "", "GET version?x=1"),
        ("GET", "/?", "", "GET ?"),
        ("GET", "/drives/root", "", "GET drives"),
        ("GET", "/hotplug/cpu", "", "GET hotplug"),
        ("PUT", "/nope", "{}", "PUT nope"),
        ("PUT", "/vm", "{}", "PUT vm"),
        ("PUT", "/hotplug", "{}", "PUT hotplug"),
        ("PUT", "/snapshot/delete", "{}", "PUT /snapshot/delete"),
        ("PATCH", "/vsock", "{}", "PATCH vsock"),
        ("PATCH", "/hotplug/", "{}", "PATCH hotplug"),
        ("DELETE", "/vsock", "", "DELETE vsock"),
        ("DELETE", "/", "", "DELETE "),
    ] {
        check_refused(method, path, body, &unknown(what));
    }
    for (method, path, body, segment) in [
        ("GET", "/balloon/x", "", "x"),
        ("GET", "/balloon/hinting", "", "hinting"),
        ("PATCH", "/balloon/x", "{}", "x"),
        ("PATCH", "/balloon/hinting", "", "hinting"),
        ("PUT", "/mmds/x", "{}", "x"),
    ] {
        let message = format!("Unrecognized {method} request path `{segment}`.");
        check_refused(method, path, body, &message);
    }
    check_refused("PUT", "/snapshot", "{}", "Missing snapshot operation type.");
}

#[test]
fn a_body_must_be_there_or_not() {
    for (method, path, _) in LEGAL {
        match *method {
            "GET" => check_refused("GET", path, "{}", "GET request cannot have a body."),
            "PUT" => check_refused("PUT", path, "", "Empty PUT request."),
            "PATCH" if path.starts_with("/balloon/hinting") => {
                assert!(parse_text("PATCH", path, "").is_ok());
            }
            "PATCH" => check_refused("PATCH", path, "", "Empty PATCH request."),
            _ => check_refused(method, path, "{}", "DELETE request cannot have a body."),
        }
    }
    check_refused("PUT", "/nope", "", "Empty PUT request.");
    check_refused("PATCH", "/nope", "", "Empty PATCH request.");
    check_refused("PATCH", "/machine-config", "{}", "Empty PATCH request.");
}

#[test]
fn ids_are_plain_short_and_the_same_in_path_and_body() {
    let plain = "API Resource IDs can only contain alphanumeric characters and underscores.";
    for resource in ["drives", "pmem", "network-interfaces"] {
        for id in [
            "..", "%2e%2e", "a%2fb", "a-b", "e\u{301}", "\u{e9}", "a b", "a?b",
        ] {
            check_refused("PUT", &format!("/{resource}/{id}"), "{}", plain);
            check_refused("DELETE", &format!("/{resource}/{id}"), "", plain);
        }
        for path in [
            format!("/{resource}"),
            format!("/{resource}/"),
            format!("/{resource}//a"),
        ] {
            check_refused("PUT", &path, "{}", "The ID cannot be empty.");
        }
        let long = "API Resource IDs have at most 64 characters.";
        check_refused(
            "PATCH",
            &format!("/{resource}/{}", "a".repeat(65)),
            "{}",
            long,
        );
    }
    let different = "The id from the path does not match the id from the body!";
    let drive = r#"{"drive_id":"b","is_root_device":false,"path_on_host":"p"}"#;
    check_refused("PUT", "/drives/a", drive, different);
    check_refused("PATCH", "/drives/a", r#"{"drive_id":"b"}"#, different);
    check_refused(
        "PUT",
        "/pmem/a",
        r#"{"id":"b","path_on_host":"p"}"#,
        different,
    );
    let different = "The id from the path [a] does not match the id from the body [b]!";
    let net = r#"{"iface_id":"b","host_dev_name":"t"}"#;
    check_refused("PUT", "/network-interfaces/a", net, different);
    check_refused(
        "PATCH",
        "/network-interfaces/a",
        r#"{"iface_id":"b"}"#,
        different,
    );
    // `a/b` is the id `a` with a further segment.
    check_refused(
        "PUT",
        "/drives/a/b",
        drive,
        "The id from the path does not match the id from the body!",
    );
}

#[test]
fn json_faults_say_what_and_where() {
    check_json(
        "PUT",
        "/boot-source",
        "{",
        "EOF while parsing an object at line 1 column 1",
    );
    check_json(
        "PUT",
        "/boot-source",
        "{}",
        "missing field `kernel_image_path` at line 1 column 2",
    );
    check_json(
        "PUT",
        "/actions",
        "[]",
        "invalid type: sequence, expected a map at line 1 column 0",
    );
    check_json(
        "PATCH",
        "/vm",
        "\n [\"Paused\"]",
        "invalid type: sequence, expected a map at line 2 column 1",
    );
    check_json(
        "PATCH",
        "/vm",
        r#"{"state":"Stopped"}"#,
        "unknown variant `Stopped`, expected `Paused` or `Resumed` at line 1 column 18",
    );
    check_json(
        "PUT",
        "/mmds",
        "1",
        "invalid type: integer `1`, expected a map at line 1 column 1",
    );
    check_json(
        "PUT",
        "/entropy",
        "{} x",
        "trailing characters at line 1 column 4",
    );
    check_json(
        "PUT",
        "/machine-config",
        "{\"vcpu_count\":1,\n \"mem_size_mib\":64,\"vcpu_count\":1}",
        "duplicate field `vcpu_count` at line 2 column 31",
    );
}

#[test]
fn what_a_file_may_leave_out_a_request_must_say() {
    check_json(
        "PUT",
        "/machine-config",
        "{\"vcpu_count\":1\n}\n",
        "missing field `mem_size_mib` at line 2 column 1",
    );
    check_json(
        "PUT",
        "/machine-config",
        r#"{"mem_size_mib":1}"#,
        "missing field `vcpu_count` at line 1 column 18",
    );
    let drive = r#"{"drive_id":"a","path_on_host":"p"}"#;
    check_json(
        "PUT",
        "/drives/a",
        drive,
        "missing field `is_root_device` at line 1 column 35",
    );
}

#[test]
fn numbers_that_no_machine_has_are_refused_where_the_type_ends() {
    for value in [
        "-1",
        "1.5",
        "\"2\"",
        "null",
        "1e400",
        "18446744073709551616",
    ] {
        let body = format!(r#"{{"vcpu_count":{value},"mem_size_mib":64}}"#);
        let message = parse_text("PUT", "/machine-config", &body).expect_err(value);
        assert!(message.contains(" at line 1 column "), "{message}");
    }
    for count in ["0", "33", "256", "9999"] {
        let body = format!(r#"{{"vcpu_count":{count},"mem_size_mib":64}}"#);
        assert!(
            parse_text("PUT", "/machine-config", &body).is_ok(),
            "the machine refuses it alike"
        );
    }
}

#[test]
fn deprecated_fields_are_told() {
    let is_deprecated =
        |method, path, body| parse_text(method, path, body).expect(path).is_deprecated;
    for (method, path, body) in [
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":64,"cpu_template":"T2"}"#,
        ),
        ("PATCH", "/machine-config", r#"{"cpu_template":"None"}"#),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid":3,"uds_path":"u","vsock_id":"v"}"#,
        ),
        ("PUT", "/mmds/config", r#"{"network_interfaces":["a"]}"#),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path":"s","mem_file_path":"m"}"#,
        ),
    ] {
        assert!(is_deprecated(method, path, body), "{path}");
    }
    for (method, path, body) in LEGAL {
        assert!(!is_deprecated(method, path, body), "{path}");
    }
}

#[test]
fn a_load_takes_memory_from_one_place() {
    let path = "/snapshot/load";
    let missing = "missing field: either `mem_backend` or `mem_file_path` is required";
    check_json("PUT", path, r#"{"snapshot_path":"s"}"#, missing);
    let twice = "too many fields: either `mem_backend` or `mem_file_path` exclusively is required";
    let both = r#"{"snapshot_path":"s","mem_file_path":"m","mem_backend":{"backend_type":"File","backend_path":"b"}}"#;
    check_json("PUT", path, both, twice);
    let large =
        "huge_pages `2M`: this version of LightV does not offer it in a load; use `Transparent`";
    for backend in ["File", "Uffd"] {
        let body = format!(
            r#"{{"snapshot_path":"s","mem_backend":{{"backend_type":"{backend}","backend_path":"b"}},"huge_pages":"2M"}}"#
        );
        check_json("PUT", path, &body, large);
    }
    let old = r#"{"snapshot_path":"s","mem_file_path":"m","enable_diff_snapshots":true,"network_overrides":[{"iface_id":"e","host_dev_name":"t","x":1}]}"#;
    let Request::LoadSnapshot(params) = request("PUT", path, old) else {
        panic!("it is a load");
    };
    assert!(params.track_dirty_pages && !params.resume);
    assert_eq!(params.memory.backend_path.to_str(), Some("m"));
    assert_eq!(params.network_overrides.len(), 1);
}
