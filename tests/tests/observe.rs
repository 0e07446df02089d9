//! What a monitor says of itself: metrics in both forms, logs, and the serial port's file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::process::{Process, run, wait_for};
use lightv_tests::prometheus::{Labels, Scrape, parse};
use lightv_tests::scratch::Scratch;
use rustix::fs::{CWD, FileType, OFlags, mknodat};
use serde_json::{Value, json};

fn scrape(api: &Api) -> Scrape {
    let answer = api.call("GET", "/metrics", &Value::Null);
    assert_eq!(answer.status, 200);
    parse(answer.body.as_str().expect("text"))
}

/// A guest that writes its disk for longer than a test takes.
fn start_io(scratch: &Scratch, args: &[&str]) -> (Api, Process) {
    start_io_with(scratch, true, args)
}

/// The same, with registers that are read as memory or by exits.
fn start_io_with(scratch: &Scratch, register_pages: bool, args: &[&str]) -> (Api, Process) {
    let disk = fs::File::create(scratch.path("disk")).expect("a disk");
    disk.set_len(64 << 30).expect("a sparse disk");
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "blk -- 7 10000000"),
        &json!({
            "drives": [machine::disk("d", "disk", "Writeback")],
            "entropy": {},
            "machine-config": {"register_pages": register_pages},
        }),
    );
    let config = scratch.config("vm.json", &config);
    Api::start(scratch, "vm", &[&["--config", &config], args].concat())
}

#[test]
fn a_request_costs_no_exit_where_registers_are_memory_and_some_where_they_are_not() {
    if !has_kvm() {
        return;
    }
    for register_pages in [true, false] {
        let scratch = Scratch::new();
        let (api, process) = start_io_with(&scratch, register_pages, &[]);
        let total = |name: &str, label: (&str, &str)| {
            let label = (label.0.to_owned(), label.1.to_owned());
            let mut labels = Labels::from([label]);
            if name == "lightv_device_operations_total" {
                labels.insert("device".to_owned(), "d".to_owned());
            }
            scrape(&api).value(name, &labels)
        };
        let writes = || total("lightv_device_operations_total", ("operation", "write"));
        let exits = || {
            let reads = total("lightv_vcpu_exits_total", ("reason", "mmio_read"));
            reads + total("lightv_vcpu_exits_total", ("reason", "mmio_write"))
        };
        wait_for("the driver at work", || (writes() > 100.0).then_some(()));
        let (first_writes, first_exits) = (writes(), exits());
        wait_for("100 writes more", || {
            (writes() > first_writes + 100.0).then_some(())
        });
        let more = exits() - first_exits;
        assert_eq!(more > 0.0, !register_pages, "{more} exits");
        let config = api.get("/machine-config");
        assert_eq!(config.get("register_pages").is_none(), register_pages);
        let _ = process.end();
    }
}

#[test]
fn counters_move_while_a_guest_works_and_the_text_is_prometheus_own() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start_io_with(&scratch, false, &[]);
    let labels = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        pairs.collect::<BTreeMap<_, _>>()
    };
    let disk = |operation| labels(&[("device", "d"), ("operation", operation)]);
    let first = wait_for("writes", || {
        let found = scrape(&api);
        let writes = found.value("lightv_device_operations_total", &disk("write"));
        (writes > 0.0).then_some(found)
    });
    wait_for("more of all", || {
        let now = scrape(&api);
        let grew =
            |name: &str, labels: &Labels| now.value(name, labels) > first.value(name, labels);
        let bytes = labels(&[
            ("device", "d"),
            ("kind", "block"),
            ("direction", "from_guest"),
        ]);
        let exits = labels(&[("reason", "mmio_read")]);
        let kvm = labels(&[("event", "exits")]);
        (grew("lightv_device_operations_total", &disk("write"))
            && grew(
                "lightv_device_operation_duration_seconds_count",
                &disk("write"),
            )
            && grew("lightv_device_transferred_bytes_total", &bytes)
            && grew("lightv_vcpu_exits_total", &exits)
            && grew("lightv_kvm_vcpu_events_total", &kvm))
        .then_some(())
    });
    let now = scrape(&api);
    let of = |name, pairs: &[(&str, &str)]| now.value(name, &labels(pairs));
    assert!(of("lightv_memory_bytes", &[("kind", "resident")]) > 100_000.0);
    assert!(of("lightv_cpu_seconds_total", &[("thread", "control")]) >= 0.0);
    assert!(of("lightv_starts_total", &[("way", "boot")]) == 1.0);
    assert!(of("lightv_guest_memory_bytes", &[]) == f64::from(128 << 20));
    // Those that come to the monitor are some of all.
    let exits = |reason| of("lightv_vcpu_exits_total", &[("reason", reason)]);
    let all = of("lightv_kvm_vcpu_events_total", &[("event", "exits")]);
    assert!(all >= exits("mmio_read") + exits("mmio_write"));
    let route = [("method", "GET"), ("route", "/metrics")];
    assert!(of("lightv_api_request_duration_seconds_count", &route) >= 2.0);
    let _ = process.end();
}

#[test]
fn each_metric_is_documented_and_each_documented_one_is_there() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("disk", vec![0; 4096]);
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "tick -- 0 20"),
        &json!({"drives": [machine::disk("d", "disk", "Writeback")]}),
    );
    let config = scratch.config("vm.json", &config);
    let (api, process) = Api::start(&scratch, "vm", &["--config", &config]);
    let _ = api.call("GET", "/nope", &Value::Null);
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let page = fs::read_to_string(page).expect("docs/metrics.md");
    let documented: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `lightv_")?.split('`').next())
        .map(|name| format!("lightv_{name}"))
        .collect();
    wait_for("all metrics", || {
        let found: BTreeSet<String> = scrape(&api).families().collect();
        let unknown: Vec<_> = found.difference(&documented).collect();
        assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
        (found == documented).then_some(())
    });
    let _ = process.end();
}

#[test]
fn lines_of_metrics_hold_what_came_since_the_one_before() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start_io(&scratch, &["--metrics-path", "metrics"]);
    wait_for("a write", || {
        api.act("FlushMetrics");
        let text = String::from_utf8(scratch.read("metrics")).expect("text");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let lines: Vec<Value> = lines.collect();
        let writes = |line: &Value| line["block_d"]["write_count"].as_u64().expect("a number");
        let total: u64 = lines.iter().map(writes).sum();
        let last = lines.last()?;
        assert_eq!(
            last["put_api_requests"]["actions_count"]
                .as_u64()
                .map(|count| count <= 1),
            Some(true)
        );
        (total > 10 && lines.len() > 2 && writes(last) < total).then_some(())
    });
    let before = scratch.read("metrics").len();
    let _ = process.end();
    let text = scratch.read("metrics");
    assert!(
        text.len() > before && text.ends_with(b"}\n"),
        "the end is a line too"
    );
}

#[test]
fn metrics_and_logs_are_configured_by_requests() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &[]);
    let refused = api.call("PUT", "/metrics", &json!({"metrics_path": "no/where"}));
    assert!(refused.fault().contains("no/where"), "{refused:?}");
    let properties = json!({"zone": "a", "block": "hides nothing"});
    let metrics = json!({"metrics_path": "m", "emit_id": true, "properties": properties});
    api.put("/metrics", &metrics);
    let again = api.call("PUT", "/metrics", &metrics);
    assert!(again.fault().contains("Reinitialization"), "{again:?}");
    let refused = api.call("PUT", "/logger", &json!({"log_path": "."}));
    assert!(refused.fault().contains("Logger error"), "{refused:?}");
    api.put(
        "/logger",
        &json!({"log_path": "log", "level": "warning", "format": "json", "show_log_origin": true}),
    );
    api.put("/serial", &json!({"serial_out_path": "serial"}));
    api.put(
        "/boot-source",
        &json!({"kernel_image_path": scratch.guest_kernel(), "boot_args": "app=tick -- 0 20"}),
    );
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("tick 2").then_some(()));
    let _ = api.call("GET", "/nope\u{1b}", &Value::Null);
    api.act("FlushMetrics");
    let line: Value = serde_json::from_slice(&scratch.read("m")).expect("a line");
    assert_eq!(line["id"], "vm");
    assert_eq!(line["zone"], "a");
    assert!(line["block"].is_object());
    assert!(
        line["latencies_us"]["pause_vm"] == 0 && line["vcpu"]["exit_mmio_write"].as_u64() > Some(0),
        "{line}"
    );
    let kvm = |name: &str| line["kvm"][name].as_u64();
    assert!(
        kvm("user_exits") > Some(0) && kvm("exits") >= kvm("user_exits"),
        "{line}"
    );
    let _ = process.end();
}

#[test]
fn a_log_says_what_was_asked_and_what_failed() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let args = [
        "--log-path",
        "log",
        "--level",
        "info",
        "--show-level",
        "--show-log-origin",
    ];
    let (api, process) = Api::start(&scratch, "vm", &args);
    let refused = api.call("GET", "/nope", &Value::Null);
    assert_eq!(refused.status, 400);
    wait_for("both lines", || {
        let text = String::from_utf8(scratch.read("log")).expect("text");
        let is_there = |level: &str, word: &str| {
            let line = text.lines().find(|line| line.contains(word));
            line.is_some_and(|line| {
                line.contains(&format!("[vm:api:{level}:")) && line.contains(".rs:")
            })
        };
        (is_there("INFO", "GET /: granted")
            && is_there("WARN", "GET /nope: refused: Invalid request"))
        .then_some(())
    });
    let mode = fs::metadata(scratch.path("log")).expect("a log");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
    let _ = process.end();
    for bad in [
        &["--level", "loud"][..],
        &["--log-format", "xml"],
        &["--log-path"],
    ] {
        let _ = run(&mut scratch.vmm(&[&["--api-sock", "s"], bad].concat())).with_code(153);
    }
    let refused = run(&mut scratch.vmm(&["--api-sock", "s", "--log-path", "no/where"]));
    refused.assert_refused(152, &["no/where"]);
    assert!(!scratch.path("s").exists());
}

#[test]
fn a_log_that_nobody_reads_delays_nobody() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let fifo = scratch.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).expect("a FIFO");
    let (api, process) = Api::start(
        &scratch,
        "vm",
        &["--log-path", "fifo", "--log-format", "json"],
    );
    // A pipe holds 64 KiB.
    for _ in 0..600 {
        let _ = api.get("/");
    }
    let dropped = wait_for("dropped lines", || {
        let dropped = scrape(&api).value("lightv_log_lines_dropped_total", &BTreeMap::new());
        (dropped > 0.0).then_some(dropped)
    });
    assert!(dropped < 600.0);
    let mut text = String::new();
    let mut reader = fs::File::options()
        .read(true)
        .custom_flags(i32::try_from(OFlags::NONBLOCK.bits()).expect("flags"))
        .open(&fifo)
        .expect("the FIFO");
    let _ = reader.read_to_string(&mut text);
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("whole lines alone"))
        .collect();
    assert!(
        lines.len() > 100 && lines[0]["id"] == "vm",
        "{}",
        lines.len()
    );
    let _ = process.end();
}

#[test]
fn a_serial_port_goes_into_a_file_at_its_rate() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // Ports: `a`, 1000 times, by the serial port; then the guest resets itself.
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    code.extend([0xb9, 0xe8, 0x03, 0x00, 0x00]); // mov ecx, 1000
    code.extend([0xb0, b'a', 0xee, 0xff, 0xc9, 0x75, 0xfb]); // mov al, 'a'; out dx, al; dec ecx; jnz to out
    code.extend([0xb0, 0xfe, 0xe6, 0x64, 0xf4]); // mov al, 0xfe; out 0x64, al; hlt
    scratch.write("kernel", machine::elf(&code));
    let bucket = json!({"size": 100, "refill_time": 3_600_000, "one_time_burst": 20});
    for (spec, expected) in [
        (json!({"serial_out_path": "out"}), 1000),
        (
            json!({"serial_out_path": "out", "rate_limiter": bucket}),
            120,
        ),
    ] {
        let _ = fs::remove_file(scratch.path("out"));
        let (api, process) = Api::start(&scratch, "vm", &[]);
        api.put("/serial", &spec);
        api.put("/boot-source", &json!({"kernel_image_path": "kernel"}));
        api.act("InstanceStart");
        let finished = process.finish();
        assert_eq!(
            (finished.code, finished.stdout.as_str()),
            (0, ""),
            "{finished:?}"
        );
        assert_eq!(scratch.read("out"), vec![b'a'; expected]);
    }
    std::thread::sleep(Duration::from_millis(1));
}

#[test]
fn a_guest_that_says_that_it_has_booted_is_timed_if_that_was_asked_for() {
    if !has_kvm() {
        return;
    }
    for is_asked in [true, false] {
        let scratch = Scratch::new();
        let mut code = Vec::new();
        for address in [0xc000_0000_u32, 0xd000_0000] {
            code.push(0xb9); // mov ecx, address
            code.extend(address.to_le_bytes());
            code.extend([0xc6, 0x01, 123]); // mov byte ptr [rcx], 123
        }
        code.extend(machine::code_that_exits(0));
        scratch.write("kernel", machine::elf(&code));
        let config = scratch.config("vm.json", &machine::config("kernel", ""));
        let timer: &[&str] = if is_asked { &["--boot-timer"] } else { &[] };
        let flags = ["--config", &config, "--log-path", "log", "--level", "Info"];
        let finished = run(&mut scratch.vmm(&[&flags, timer].concat()));
        assert_eq!(finished.code, 0, "{finished:?}");
        let log = String::from_utf8(scratch.read("log")).expect("text");
        let lines = log
            .lines()
            .filter(|line| line.contains("Guest-boot-time = "));
        assert_eq!(lines.count(), if is_asked { 2 } else { 0 }, "{log}");
    }
}
