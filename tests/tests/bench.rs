//! `lightv bench`: what its reports have, and what it leaves behind. What it finds decides no test.

use std::fs;
use std::process::Command;

use lightv_api::exit;
use lightv_tests::host::{has_kvm, pids_in, pids_of, processes_in};
use lightv_tests::process::{Finished, Process, after_script, run, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

/// A report of `lightv bench`, after a look at its shape.
fn bench(scratch: &Scratch, args: &[&str]) -> Value {
    let finished = run(&mut command(scratch, args)).with_code(0);
    read(&finished, args[0])
}

/// `lightv bench ARGS`, which will say JSON.
fn command(scratch: &Scratch, args: &[&str]) -> Command {
    let (name, rest) = args.split_first().expect("a benchmark");
    scratch.lightv(&[&["bench", name, "--json"], rest].concat())
}

/// The report that a benchmark has given out, after a look at its shape.
fn read(finished: &Finished, name: &str) -> Value {
    let report: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(report["bench"], name);
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
            let idle = ["answers", "% of a core", "wakeups/s"];
            unit.starts_with("exits/") || unit.ends_with("/start") || idle.contains(&unit)
        });
        // What the host's other processes do meanwhile counts, too.
        let is_free_memory = case["name"].as_str().is_some_and(|name| {
            name == "density.memory_per_vm" || name.starts_with("density.kernel.")
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

/// Whether exits of `case` are there where KVM counts them, and no more come to the monitor than there are. Gives how many: not
/// one for each request, where a busy host lets the monitor have no sleep.
fn assert_exits(report: &Value, case: &str) -> f64 {
    let p50 = |suffix: &str| {
        let name = format!("{case}{suffix}");
        let cases = report["cases"].as_array().expect("cases");
        let case = cases.iter().find(|case| case["name"] == name.as_str());
        case.and_then(|case| case["p50"].as_f64()).expect(&name)
    };
    let (all, user) = (p50(".exits"), p50(".exits.user"));
    assert!(user <= all, "{case}: {all}, {user}");
    all
}

/// Exits back to the monitor of all cases together.
fn exits_to_user(report: &Value) -> f64 {
    let cases = report["cases"].as_array().expect("cases").iter();
    let is_user = |case: &&Value| {
        let name = case["name"].as_str();
        name.is_some_and(|name| name.ends_with(".exits.user"))
    };
    cases
        .filter(is_user)
        .filter_map(|case| case["p50"].as_f64())
        .sum()
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
    let args = ["disk", "--count", "1", "--size", "16", "--"];
    let refused = run(&mut command(
        &scratch,
        &[&args[..], &["--huge-pages"]].concat(),
    ));
    assert!(refused.with_code(1).stderr.contains("--huge-pages"));
    let report = bench(&scratch, &[&args[..], &["--optimize-performance"]].concat());
    let options = &report["settings"]["run_options"];
    assert_eq!(options, "--optimize-performance");
    let names = case_names(&report);
    assert_eq!(names[0], "disk.seq.read.cached.qd1");
    assert!(names.contains(&"disk.rand.write.cached.qd32.p99"));
    assert!(names.contains(&"disk.doorbell"));
    let _ = assert_exits(&report, "disk.rand.read.cached.qd1");
    let args = [
        "disk",
        "--count",
        "1",
        "--size",
        "16",
        "--no-register-pages",
    ];
    let by_exits = bench(&scratch, &args);
    assert_eq!(by_exits["settings"]["register_pages"], "false");
    assert!(exits_to_user(&by_exits) > 2.0 * exits_to_user(&report));
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
    let args = ["net", "--count", "1", "--time", "20", "--congestion"];
    let refused =
        run(&mut command(&scratch, &[&args[..], &["none"]].concat())).with_code(exit::HOST_FAILURE);
    let (_, allowed) = refused.stderr.split_once("allowed here: ").expect("names");
    assert!(allowed.contains("reno"), "{refused:?}");
    let report = bench(&scratch, &[&args[..], &["reno"]].concat());
    assert_eq!(report["settings"]["tcp_congestion_control"], "reno");
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
    // Start and end of the machine are among them.
    assert!(assert_exits(&report, "net.rr") > 0.0, "{report}");
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
    for case in ["vsock.rr", "vsock.connect"] {
        assert!(assert_exits(&report, case) > 0.0, "{case}: {report}");
    }
    let left = scratch.folder().join("tmp");
    assert_eq!(fs::read_dir(left).map_or(0, |left| left.count()), 0);
}

/// Starts `lightv bench pool` with two at a time, and waits until its agent has started machines.
fn start_pool_bench(scratch: &Scratch) -> Process {
    let args = ["bench", "pool", "--callers", "2", "--rounds", "100000"];
    let bench = Process::start(&mut scratch.lightv(&args));
    wait_for("an agent with a template and machines", || {
        let agent = pids_of("lightv-agent", scratch.folder()).pop()?;
        let monitors = pids_of("lightv-vmm", scratch.folder());
        let is_agents = |pid: &&u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            status.is_ok_and(|status| status.contains(&format!("PPid:\t{agent}\n")))
        };
        (monitors.iter().filter(is_agents).count() > 2).then_some(())
    });
    bench
}

#[test]
fn a_pool_is_measured_next_to_an_agents_and_nothing_stays() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // The image is kept in the cache.
    let _ = scratch.run(&["run", "hello-world"]).with_code(0);
    let before = scratch.listing();
    let sizes = ["--callers", "2", "--rounds", "2", "--bursts", "1"];
    let report = bench(&scratch, &[&["pool"][..], &sizes].concat());
    let expected = [
        "pool.2",
        "pool.agent.2",
        "pool.refill",
        "pool.agent.1",
        "pool.1",
        "pool.agent.2.rate",
        "pool.2.rate",
    ];
    assert_eq!(case_names(&report), expected);
    for (place, n) in [(0, 2), (1, 2), (3, 2), (4, 2), (5, 1)] {
        assert_eq!(report["cases"][place]["n"], n, "{report}");
    }
    scratch.assert_nothing_left(&before);
    // Told to end, it tidies up; killed, it leaves files alone.
    let finished = start_pool_bench(&scratch).end().with_code(143);
    assert!(finished.stderr.contains("Stopped"), "{finished:?}");
    assert!(pids_of("lightv-agent", scratch.folder()).is_empty());
    scratch.assert_nothing_left(&before);
    let killed = start_pool_bench(&scratch);
    killed.signal(Signal::KILL);
    let _ = killed.finish();
    wait_for("the end of all", || {
        processes_in(scratch.folder()).is_empty().then_some(())
    });
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

/// The report of a churn, meanwhile processes come that stay.
fn churn_beside_a_leak(scratch: &Scratch) -> Value {
    let churn = command(scratch, &["churn", "--seconds", "1", "--callers", "3"]);
    let leak = "(while :; do for n in 1 2 3 4 5; do sleep 600 & done; sleep 0.1; done) </dev/null >/dev/null 2>&1 &";
    let finished = run(&mut after_script(&["env"], leak, &churn)).with_code(0);
    wait_for("the end of the leak", || {
        let left = pids_in(scratch.folder());
        for pid in &left {
            // One that has ended does not get it.
            let _ = kill_process(*pid, Signal::KILL);
        }
        left.is_empty().then_some(())
    });
    read(&finished, "churn")
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
        "concurrency.memory",
        "concurrency.prefetch",
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
    let report = churn_beside_a_leak(&scratch);
    let expected = [
        "churn.start",
        "churn.rate",
        "churn.left.memory",
        "churn.left.processes",
        "churn.left.files",
    ];
    assert_eq!(case_names(&report), expected);
    // What is left is seen.
    assert!(report["cases"][3]["min"].as_f64() > Some(0.0), "{report}");
    let listed = scratch.run(&["ps", "--json"]).with_code(0);
    assert_eq!(listed.stdout.trim(), "[]", "{listed:?}");
    let left = scratch.folder().join("tmp");
    assert_eq!(fs::read_dir(left).map_or(0, Iterator::count), 0);
}
