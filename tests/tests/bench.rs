//! `lightv bench`: what its reports have, and what it leaves behind. What it finds decides no test.

use std::fs;

use lightv_api::exit;
use lightv_tests::host::has_kvm;
use lightv_tests::scratch::Scratch;
use serde_json::Value;

/// A report of `lightv bench`, after a look at its shape.
fn bench(scratch: &Scratch, args: &[&str]) -> Value {
    let args = [&["bench"], args, &["--json"]].concat();
    let finished = scratch.run(&args).with_code(0);
    let report: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(report["bench"], args[1]);
    for key in ["kernel", "cpu", "cores", "kvm"] {
        assert!(!report["host"][key].is_null(), "{key}: {report}");
    }
    let names = case_names(&report);
    for case in report["cases"].as_array().expect("cases") {
        let number = |key: &str| {
            case[key]
                .as_f64()
                .unwrap_or_else(|| panic!("{key}: {case}"))
        };
        assert!(number("n") >= 1.0, "{case}");
        // A guest that is well served may need no exit for a request, and fail or leave nothing.
        let may_be_none = case["unit"].as_str().is_some_and(|unit| {
            let idle = ["answers", "processes", "% of a core", "wakeups/s"];
            unit.starts_with("exits/") || idle.contains(&unit)
        });
        // What the host's other processes do meanwhile counts, too.
        let is_free_memory = case["name"].as_str().is_some_and(|name| {
            let free = ["density.memory_per_vm", "churn.left.memory"];
            free.contains(&name) || name.starts_with("density.kernel.")
        });
        assert!(
            (may_be_none || is_free_memory || 0.0 < number("min"))
                && number("min") <= number("p50")
                && number("p50") <= number("p99"),
            "{case}"
        );
        let reference = case["reference"].as_str().unwrap_or_default();
        // On a busy host one side may be a thousand times as fast.
        assert!(
            number("ratio") >= 0.0 && names.contains(&reference),
            "{case}"
        );
    }
    report
}

/// Whether exits of `case` are there where KVM counts them, `at_least` so many of them, and no more come to the monitor than
/// there are.
fn assert_exits(report: &Value, case: &str, at_least: f64) {
    let p50 = |suffix: &str| {
        let name = format!("{case}{suffix}");
        let cases = report["cases"].as_array().expect("cases");
        let case = cases.iter().find(|case| case["name"] == name.as_str());
        case.and_then(|case| case["p50"].as_f64()).expect(&name)
    };
    let (all, user) = (p50(".exits"), p50(".exits.user"));
    assert!(all >= at_least && user <= all, "{case}: {all}, {user}");
}

fn case_names(report: &Value) -> Vec<&str> {
    let cases = report["cases"].as_array().expect("cases");
    let names = cases.iter().filter_map(|case| case["name"].as_str());
    names.collect()
}

#[test]
fn all_benches_give_the_same_shape() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let report = bench(&scratch, &["start", "--count", "5"]);
    let cases = ["run", "no_seccomp", "cold", "jail", "floor"];
    assert_eq!(case_names(&report), cases);
    assert_eq!(report["cases"][0]["n"], 5);
    let report = bench(&scratch, &["api", "--count", "5"]);
    let names = case_names(&report);
    assert_eq!(names[..4], ["api.get", "echo", "api.get.new", "echo.new"]);
    assert_eq!(names[4..], ["api.cpu", "api.pss.idle", "api.pss.used"]);
    let report = bench(&scratch, &["cpu", "--count", "2", "--time", "2"]);
    let names = case_names(&report);
    assert_eq!(names[..2], ["cpu.sha256", "native.cpu.sha256"]);
    assert_eq!(names.len(), 6);
    assert_eq!(report["cases"][0]["n"], 2);
    let report = bench(&scratch, &["mem", "--count", "1", "--time", "2"]);
    assert_eq!(case_names(&report).len(), 12);
    let report = bench(&scratch, &["disk", "--count", "1", "--size", "16"]);
    let names = case_names(&report);
    assert_eq!(names[0], "disk.seq.read.cached.qd1");
    assert!(names.contains(&"disk.rand.write.cached.qd32.p99"));
    // Each waits for its answer alone: it takes an exit, which KVM serves itself, unless the device has not gone to sleep since.
    assert_exits(&report, "disk.rand.read.cached.qd1", 0.5);
    let left = scratch.folder().join("tmp");
    assert_eq!(std::fs::read_dir(left).map_or(0, |left| left.count()), 0);
}

#[test]
fn the_network_is_measured_in_a_name_space_that_is_gone_afterwards() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let links = || fs::read_dir("/sys/class/net").map(Iterator::count).ok();
    let before = links();
    let report = bench(&scratch, &["net", "--count", "1", "--time", "20"]);
    assert_eq!(links(), before);
    let names = case_names(&report);
    let mut ways = vec![
        "net.tcp.g2h",
        "net.tcp.h2g",
        "net.tcp.g2h.64k",
        "net.tcp.h2g.64k",
        "net.rr",
        "net.udp.g2h",
        "net.udp.h2g",
    ];
    if lightv_tests::host::has_uso() {
        ways.extend(["net.udp.uso.g2h", "net.udp.uso.h2g"]);
    }
    for &way in &ways {
        assert_two_sides(&report, way);
    }
    assert_eq!(names.len(), 5 * ways.len());
    assert_exits(&report, "net.rr", 1.0);
}

#[test]
fn vsock_is_measured_next_to_a_unix_socket_and_leaves_no_file() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let args = ["vsock", "--count", "1", "--time", "20"];
    let files = ["--out", "v.json", "--plot", "v.svg"];
    let report = bench(&scratch, &[&args[..], &files].concat());
    let written: Value = serde_json::from_slice(&scratch.read("v.json")).expect("JSON");
    assert_eq!(written, report);
    let picture = String::from_utf8(scratch.read("v.svg")).expect("text");
    for text in [
        "<svg ",
        "lightv bench vsock",
        "\nvsock.stream.g2h\n",
        "exits/MB",
    ] {
        assert!(picture.contains(text), "{text}: {picture}");
    }
    let ways = [
        "vsock.stream.g2h",
        "vsock.stream.h2g",
        "vsock.rr",
        "vsock.connect",
    ];
    for way in ways {
        assert_two_sides(&report, way);
    }
    assert_eq!(case_names(&report).len(), 5 * ways.len());
    assert_exits(&report, "vsock.rr", 1.0);
    assert_exits(&report, "vsock.connect", 1.0);
    let left = scratch.folder().join("tmp");
    assert_eq!(fs::read_dir(left).map_or(0, |left| left.count()), 0);
}

#[test]
fn a_bench_without_a_place_for_its_picture_measures_nothing() {
    let scratch = Scratch::new();
    let before = scratch.listing();
    for bench in ["start", "api", "disk", "net", "cpu", "mem", "vsock"] {
        for option in ["--plot", "--out"] {
            let refused = scratch.run(&["bench", bench, option, "no/where.svg"]);
            refused.assert_refused(exit::BAD_ARGUMENTS, &["no/where.svg", "no folder"]);
        }
    }
    scratch.assert_nothing_left(&before);
}

/// Whether both sides of a case are there, and what the guest's cost.
fn assert_two_sides(report: &Value, way: &str) {
    let names = case_names(report);
    let native = format!("native.{way}");
    let costs = [".cpu", ".exits", ".exits.user"].map(|suffix| format!("{way}{suffix}"));
    for name in [way, &native]
        .into_iter()
        .chain(costs.iter().map(String::as_str))
    {
        assert!(names.contains(&name), "{name}: {report}");
    }
}

/// What a report foretells of itself is so, and of one that took twice the time is not.
fn assert_foretold(scratch: &Scratch, density: &Value) {
    let host = ["--cores", "2", "--memory", "24576", "--pids", "32768"];
    let from = [
        "simulate", "--from", "d.json", "--check", "d.json", "--plot", "s.svg",
    ];
    let report = bench(scratch, &[&from[..], &host].concat());
    let names = case_names(&report);
    for name in [
        "simulate.memory",
        "simulate.process_ids",
        "simulate.check.20.memory_of_all",
    ] {
        assert!(names.contains(&name), "{name}: {report}");
    }
    let picture = String::from_utf8(scratch.read("s.svg")).expect("text");
    assert!(picture.contains("process ids"), "{picture}");
    let mut slow = density.clone();
    let start_all = &mut slow["cases"][1]["p50"];
    *start_all = (2.0 * start_all.as_f64().expect("a number")).into();
    scratch.write("slow.json", slow.to_string());
    let check = [
        "bench",
        "simulate",
        "--from",
        "d.json",
        "--check",
        "slow.json",
    ];
    let refused = scratch.run(&check).with_code(exit::FAILURE);
    for word in ["time to start all", "2.00", "--tolerance"] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    scratch.write(
        "start.json",
        density.to_string().replace("density.", "other."),
    );
    let refused = scratch.run(&["bench", "simulate", "--from", "start.json"]);
    refused.assert_refused(exit::BAD_CONFIG, &["start.json", "density.pss_per_vm"]);
}

#[test]
fn idle_machines_and_presets_are_measured() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let report = bench(&scratch, &["idle", "--count", "1", "--seconds", "1"]);
    let expected = ["idle.cpu.1", "idle.wakeups.1", "idle.pss.1"];
    assert_eq!(case_names(&report), expected);
    let args = ["preset", "--count", "1", "--memory", "16"];
    let report = bench(&scratch, &args);
    let expected = [
        "startup",
        "performance",
        "concurrency",
        "concurrency.memory",
    ];
    let expected = expected.map(|name| ["preset", "none"].map(|side| format!("{side}.{name}")));
    assert_eq!(case_names(&report), expected.concat());
    let left = scratch.folder().join("tmp");
    assert_eq!(fs::read_dir(left).map_or(0, Iterator::count), 0);
}

#[test]
fn many_machines_answer_and_are_gone_afterwards() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let args = ["density", "--count", "20", "--idle", "1", "--out", "d.json"];
    let report = bench(&scratch, &args);
    let expected = [
        "density.start",
        "density.start_all",
        "floor.spawn_all",
        "density.kernel.slab",
        "density.kernel.page_tables",
        "density.kernel.kvm_page_tables",
        "density.kernel.stacks",
        "density.kernel.per_cpu",
        "density.threads_per_vm",
        "density.files_per_vm",
        "density.memory_per_vm",
        "density.pss_per_vm",
        "density.idle_cpu",
        "density.failures",
    ];
    assert_eq!(case_names(&report), expected);
    for (of_all, name) in [(0, "density.start"), (11, "density.pss_per_vm")] {
        let case = &report["cases"][of_all];
        assert_eq!((&case["name"], &case["n"]), (&name.into(), &20.into()));
    }
    assert_eq!(report["cases"][13]["p50"], 0.0, "{report}");
    assert_foretold(&scratch, &report);
    let report = bench(&scratch, &["churn", "--seconds", "1", "--callers", "3"]);
    let expected = [
        "churn.start",
        "churn.rate",
        "churn.left.memory",
        "churn.left.processes",
    ];
    assert_eq!(case_names(&report), expected);
    let listed = scratch.run(&["ps", "--json"]).with_code(0);
    assert_eq!(listed.stdout.trim(), "[]", "{listed:?}");
    let left = scratch.folder().join("tmp");
    assert_eq!(fs::read_dir(left).map_or(0, Iterator::count), 0);
}
