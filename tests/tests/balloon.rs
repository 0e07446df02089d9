//! The memory balloon: what a guest gives back is the host's, also in saves; what it takes again is whole.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use lightv_api::exit;
use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::machine::elf;
use lightv_tests::process::{Process, run, wait_for};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A guest on `machine` with this balloon; it runs `app`.
fn start(scratch: &Scratch, app: &str, machine: &Value, balloon: &Value) -> (Api, Process) {
    let (api, process) = Api::start(scratch, "vm", &[]);
    api.put("/machine-config", machine);
    api.put("/balloon", balloon);
    let boot =
        json!({"kernel_image_path": scratch.guest_kernel(), "boot_args": format!("app={app}")});
    api.put("/boot-source", &boot);
    api.act("InstanceStart");
    (api, process)
}

fn machine(mib: u64, tracks: bool) -> Value {
    json!({"vcpu_count": 1, "mem_size_mib": mib, "track_dirty_pages": tracks})
}

fn plain() -> Value {
    json!({"amount_mib": 0, "deflate_on_oom": false})
}

/// Memory of the monitor that is its own, the guest's included.
fn anonymous_bytes(process: &Process) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid()));
    let text = text.expect("the memory of a process");
    let line = text.lines().find(|line| line.starts_with("Anonymous:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.expect("a number of KiB") << 10
}

/// Wants a size and waits until the guest has it; gives the line that it prints last.
#[track_caller]
fn resize(api: &Api, process: &Process, mib: u64) {
    let before = process.stdout().lines().count();
    api.patch("/balloon", &json!({"amount_mib": mib}));
    let line = process.wait_stdout(|text| {
        let mut new = text.lines().skip(before);
        Some(
            new.find(|line| line.starts_with(&format!("inside {mib} ")))?
                .to_owned(),
        )
    });
    assert_eq!(line, format!("inside {mib} wrong 0"));
}

fn save(api: &Api, name: &str, kind: &str) {
    let (state, memory) = (format!("{name}.state"), format!("{name}.mem"));
    api.put(
        "/snapshot/create",
        &json!({"snapshot_path": state, "mem_file_path": memory, "snapshot_type": kind}),
    );
}

fn load(scratch: &Scratch, name: &str, tracks: bool) -> (Api, Process) {
    let (api, process) = Api::start(scratch, "clone", &[]);
    let backend = json!({"backend_type": "File", "backend_path": format!("{name}.mem")});
    api.put(
        "/snapshot/load",
        &json!({"snapshot_path": format!("{name}.state"), "mem_backend": backend,
            "track_dirty_pages": tracks, "resume_vm": true}),
    );
    (api, process)
}

/// Bytes that `name` takes on the disk.
fn allocated(scratch: &Scratch, name: &str) -> u64 {
    fs::metadata(scratch.path(name)).expect("a file").blocks() * 512
}

fn assert_merged(scratch: &Scratch, files: &[&str], full: &str) {
    let args = [&["snapshot", "merge"], files, &["-o", "merged.mem"]].concat();
    let _ = scratch.run(&args).with_code(0);
    let mut command = Command::new("cmp");
    command
        .args(["merged.mem", full])
        .current_dir(scratch.folder());
    let _ = run(&mut command).with_code(0);
    fs::remove_file(scratch.path("merged.mem")).expect("a file");
}

#[track_caller]
fn refused(api: &Api, (method, path): (&str, &str), body: &Value, words: &str) {
    let answer = api.call(method, path, body);
    assert!(
        answer.fault().contains(words),
        "{method} {path}: {answer:?}"
    );
}

#[test]
fn memory_in_the_balloon_is_the_hosts_and_comes_back_whole() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, "balloon -- 64", &machine(128, false), &plain());
    process.wait_stdout(|text| text.contains("written 64 0\n").then_some(()));
    let all = anonymous_bytes(&process);
    assert!(all > 64 * MIB, "{all}");
    resize(&api, &process, 48);
    let few = anonymous_bytes(&process);
    assert!(few + 47 * MIB < all, "{few} of {all}");
    assert_eq!(api.get("/balloon")["amount_mib"], 48);
    assert_eq!(api.get("/vm/config")["balloon"]["amount_mib"], 48);
    // The guest writes what it takes back.
    resize(&api, &process, 16);
    assert!(anonymous_bytes(&process) > few + 31 * MIB);
    resize(&api, &process, 0);
    assert!(anonymous_bytes(&process) + MIB > all);
    for _ in 0..2 {
        resize(&api, &process, 64);
        resize(&api, &process, 0);
    }
    let _ = process.end();
}

#[test]
fn statistics_are_those_of_the_last_report_also_after_a_load() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let balloon = json!({"amount_mib": 8, "deflate_on_oom": true, "stats_polling_interval_s": 1});
    let (api, process) = start(&scratch, "balloon -- 32", &machine(128, false), &balloon);
    process.wait_stdout(|text| text.contains("inside 8 wrong 0\n").then_some(()));
    let stats = |api: &Api| api.get("/balloon/statistics");
    let count = |stats: &Value| stats["minor_faults"].as_u64();
    let first = wait_for("a second report", || {
        let stats = stats(&api);
        (count(&stats)? > 1).then_some(stats)
    });
    assert_eq!(
        (&first["target_mib"], &first["target_pages"]),
        (&json!(8), &json!(2048))
    );
    assert_eq!(
        (&first["actual_mib"], &first["actual_pages"]),
        (&json!(8), &json!(2048))
    );
    assert_eq!(first["total_memory"], 128 * MIB);
    assert_eq!(first["free_memory"], 120 * MIB);
    assert!(
        first.get("swap_in").is_none() && first.get("oom_kill").is_none(),
        "{first}"
    );
    // Another interval asks at once.
    let before = count(&stats(&api)).expect("a count");
    api.patch(
        "/balloon/statistics",
        &json!({"stats_polling_interval_s": 600}),
    );
    wait_for("the report that a new interval asks for", || {
        (count(&stats(&api))? > before).then_some(())
    });
    refused(
        &api,
        ("PATCH", "/balloon/statistics"),
        &json!({"stats_polling_interval_s": 0}),
        "Statistics cannot be enabled/disabled after activation.",
    );
    assert_eq!(api.get("/balloon")["stats_polling_interval_s"], 600);
    api.patch(
        "/balloon/statistics",
        &json!({"stats_polling_interval_s": 1}),
    );
    api.set_state("Paused");
    let last = stats(&api);
    save(&api, "s", "Full");
    let _ = process.end();
    let (api, process) = load(&scratch, "s", false);
    assert!(count(&stats(&api)) >= count(&last));
    wait_for("a report after the load", || {
        (count(&stats(&api))? > count(&last)? + 1).then_some(())
    });
    assert_eq!(api.get("/balloon")["stats_polling_interval_s"], 1);
    let _ = process.end();
}

#[test]
fn metrics_count_what_the_balloon_does() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &[]);
    api.put("/metrics", &json!({"metrics_path": "metrics"}));
    api.put(
        "/balloon",
        &json!({"amount_mib": 4, "deflate_on_oom": false,
        "stats_polling_interval_s": 1, "free_page_reporting": true}),
    );
    api.put(
        "/boot-source",
        &json!({"kernel_image_path": scratch.guest_kernel(),
        "boot_args": "app=balloon -- 8 4"}),
    );
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("inside 4 wrong 0\n").then_some(()));
    resize(&api, &process, 0);
    wait_for("a report of statistics", || {
        api.get("/balloon/statistics").get("free_memory").map(drop)
    });
    api.act("FlushMetrics");
    let text = fs::read_to_string(scratch.path("metrics")).expect("a file");
    let line: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let group = &line["balloon"];
    assert_eq!(
        (&group["inflate_count"], &group["deflate_count"]),
        (&json!(4), &json!(4))
    );
    assert_eq!(group["free_page_report_count"], 2);
    assert_eq!(group["free_page_report_freed"], 4 * MIB);
    assert!(group["stats_updates_count"].as_u64() > Some(0), "{group}");
    // The guest tells one that no monitor knows.
    assert!(group["stats_update_fails"].as_u64() > Some(0), "{group}");
    assert_eq!(
        (&group["event_fails"], &group["free_page_hint_count"]),
        (&json!(0), &json!(0))
    );
    let _ = process.end();
}

#[test]
fn what_makes_no_sense_is_refused_in_firecrackers_words() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // It sleeps for ever, and has no driver.
    scratch.write("asleep.elf", elf(&[0xf4, 0xeb, 0xfd]));
    let (api, process) = Api::start(&scratch, "vm", &[]);
    let amount = |mib: i64| json!({"amount_mib": mib});
    let size = |mib: u64| json!({"amount_mib": mib, "deflate_on_oom": false});
    let none = "Balloon config error: No balloon device found.";
    refused(&api, ("GET", "/balloon"), &Value::Null, none);
    refused(
        &api,
        ("PUT", "/balloon"),
        &size(129),
        "Amount of pages requested is too large",
    );
    refused(&api, ("PUT", "/balloon"), &size(1 << 32), "expected u32");
    api.put("/balloon", &size(128));
    let before = "not supported before starting the microVM";
    refused(&api, ("PATCH", "/balloon"), &amount(1), before);
    refused(&api, ("GET", "/balloon/statistics"), &Value::Null, before);
    api.put("/boot-source", &json!({"kernel_image_path": "asleep.elf"}));
    api.act("InstanceStart");
    for state in ["Resumed", "Paused"] {
        api.set_state(state);
        let inactive = "Balloon config error: Device not activated yet.";
        refused(&api, ("PATCH", "/balloon"), &amount(1), inactive);
        refused(
            &api,
            ("PATCH", "/balloon"),
            &amount(129),
            "Amount of pages requested is too large",
        );
        refused(&api, ("PATCH", "/balloon"), &amount(-1), "expected u32");
        let off = "Received stats query when stats are disabled.";
        refused(&api, ("GET", "/balloon/statistics"), &Value::Null, off);
        let switch = json!({"stats_polling_interval_s": 1});
        let both = "Statistics cannot be enabled/disabled after activation.";
        refused(&api, ("PATCH", "/balloon/statistics"), &switch, both);
        let hinting = "Attempting to use hinting when not enabled";
        for (method, path) in [
            ("PATCH", "/balloon/hinting/start"),
            ("PATCH", "/balloon/hinting/stop"),
            ("GET", "/balloon/hinting/status"),
        ] {
            refused(&api, (method, path), &Value::Null, hinting);
        }
    }
    assert_eq!(api.get("/balloon")["amount_mib"], 128);
    let _ = process.end();
}

#[test]
fn a_configuration_file_has_a_balloon_that_is_followed_from_the_start() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let boot =
        json!({"kernel_image_path": scratch.guest_kernel(), "boot_args": "app=balloon -- 32"});
    let config = |mib: u64| {
        json!({"boot-source": boot, "drives": [],
            "balloon": {"amount_mib": mib, "deflate_on_oom": true}})
    };
    let bad = scratch.config("bad.json", &config(129));
    let allowed = "balloon.amount_mib is 129; allowed: 0–128";
    run(&mut scratch.vmm(&["--config", &bad])).assert_refused(exit::BAD_CONFIG, &[allowed]);
    let good = scratch.config("good.json", &config(20));
    let (api, process) = Api::start(&scratch, "vm", &["--config", &good]);
    process.wait_stdout(|text| text.contains("inside 20 wrong 0\n").then_some(()));
    assert_eq!(
        api.get("/vm/config")["balloon"],
        json!({"amount_mib": 20, "deflate_on_oom": true,
        "stats_polling_interval_s": 0, "free_page_hinting": false, "free_page_reporting": false})
    );
    let _ = process.end();
}

#[test]
fn a_save_leaves_out_what_is_in_the_balloon_and_a_clone_gives_and_takes_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, "balloon -- 32", &machine(64, false), &plain());
    process.wait_stdout(|text| text.contains("written 32 0\n").then_some(()));
    api.set_state("Paused");
    save(&api, "whole", "Full");
    api.set_state("Resumed");
    resize(&api, &process, 24);
    api.set_state("Paused");
    save(&api, "small", "Full");
    // Wanted while it stands still, seen when it goes on: also by a clone.
    api.patch("/balloon", &json!({"amount_mib": 20}));
    save(&api, "wanted", "Full");
    let _ = process.end();
    let (whole, small) = (
        allocated(&scratch, "whole.mem"),
        allocated(&scratch, "small.mem"),
    );
    assert!(small + 23 * MIB < whole, "{small} of {whole}");

    let (api, process) = load(&scratch, "wanted", false);
    process.wait_stdout(|text| text.contains("inside 20 wrong 0\n").then_some(()));
    assert_eq!(api.get("/balloon")["amount_mib"], 20);
    let _ = process.end();

    let (api, process) = load(&scratch, "small", false);
    resize(&api, &process, 0);
    let own = anonymous_bytes(&process);
    assert!(own > 24 * MIB, "{own}");
    let _ = process.end();

    // All RAM is a view of a file: what is given back of it is memory of its own, and none.
    let (api, process) = load(&scratch, "whole", false);
    resize(&api, &process, 16);
    resize(&api, &process, 0);
    let own = anonymous_bytes(&process);
    assert!(own > 16 * MIB, "{own}");
    resize(&api, &process, 28);
    assert!(anonymous_bytes(&process) + 11 * MIB < own);
    api.set_state("Paused");
    save(&api, "again", "Full");
    let again = allocated(&scratch, "again.mem");
    assert!(again + 27 * MIB < whole, "{again} of {whole}");
    let _ = process.end();
    let (api, process) = load(&scratch, "again", false);
    resize(&api, &process, 0);
    let _ = process.end();
}

#[test]
fn differences_of_a_machine_with_a_balloon_add_up() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for tracks in [true, false] {
        let (api, process) = start(&scratch, "balloon -- 16", &machine(40, tracks), &plain());
        process.wait_stdout(|text| text.contains("written 16 0\n").then_some(()));
        api.set_state("Paused");
        save(&api, "base", "Full");
        check_differences(&scratch, &api, &process);
        let _ = process.end();
        // And of a clone, whose RAM is a view of the base.
        let (api, process) = load(&scratch, "base", tracks);
        api.set_state("Paused");
        check_differences(&scratch, &api, &process);
        let _ = process.end();
    }
}

/// Differences to `base`, of a paused machine whose balloon grows and shrinks.
fn check_differences(scratch: &Scratch, api: &Api, process: &Process) {
    let mut files = vec!["base.mem".to_owned()];
    for (number, mib) in [12, 4, 8].into_iter().enumerate() {
        api.set_state("Resumed");
        resize(api, process, mib);
        api.set_state("Paused");
        let name = format!("diff{number}");
        save(api, &name, "Diff");
        save(api, "full", "Full");
        files.push(format!("{name}.mem"));
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        assert_merged(scratch, &files, "full.mem");
    }
}

#[test]
fn free_pages_that_are_reported_are_the_hosts() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let balloon = |reports: bool| json!({"amount_mib": 0, "deflate_on_oom": false, "free_page_reporting": reports});
    let app = "balloon -- 8 48";
    let (_, process) = start(&scratch, app, &machine(128, false), &balloon(false));
    process.wait_stdout(|text| text.contains("written 8 48\n").then_some(()));
    let all = anonymous_bytes(&process);
    let _ = process.end();
    let (api, process) = start(&scratch, app, &machine(128, false), &balloon(true));
    process.wait_stdout(|text| text.contains("reported 48\n").then_some(()));
    let few = anonymous_bytes(&process);
    assert!(few + 47 * MIB < all, "{few} of {all}");
    resize(&api, &process, 8);
    resize(&api, &process, 0);
    let _ = process.end();
}

#[test]
fn free_pages_are_told_in_runs_of_hinting() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let balloon = json!({"amount_mib": 0, "deflate_on_oom": false, "free_page_hinting": true});
    let (api, process) = start(&scratch, "balloon -- 8 48", &machine(128, false), &balloon);
    process.wait_stdout(|text| text.contains("written 8 48\n").then_some(()));
    let status = |api: &Api| api.get("/balloon/hinting/status");
    let until = |api: &Api, expected: Value| {
        wait_for("a state of hinting", || {
            (status(api) == expected).then_some(())
        });
    };
    assert_eq!(status(&api), json!({"host_cmd": 0, "guest_cmd": null}));
    let all = anonymous_bytes(&process);
    // Without a body it ends by itself.
    api.patch("/balloon/hinting/start", &Value::Null);
    until(&api, json!({"host_cmd": 1, "guest_cmd": 0}));
    let few = anonymous_bytes(&process);
    assert!(few + 47 * MIB < all, "{few} of {all}");
    api.patch(
        "/balloon/hinting/start",
        &json!({"acknowledge_on_stop": false}),
    );
    // The run before ended with 0 too: only the guest knows that this one is over.
    process.wait_stdout(|text| (text.matches("hinted 48\n").count() == 2).then_some(()));
    assert_eq!(status(&api), json!({"host_cmd": 3, "guest_cmd": 0}));
    // It is kept over a save.
    api.set_state("Paused");
    save(&api, "s", "Full");
    let _ = process.end();
    let (api, process) = load(&scratch, "s", false);
    assert_eq!(status(&api), json!({"host_cmd": 3, "guest_cmd": 0}));
    api.patch("/balloon/hinting/stop", &Value::Null);
    assert_eq!(status(&api), json!({"host_cmd": 1, "guest_cmd": 0}));
    api.patch("/balloon/hinting/start", &Value::Null);
    until(&api, json!({"host_cmd": 1, "guest_cmd": 0}));
    resize(&api, &process, 8);
    let _ = process.end();
}

#[test]
fn what_another_process_serves_is_given_back_without_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, "balloon -- 32", &machine(128, false), &plain());
    process.wait_stdout(|text| text.contains("written 32 0\n").then_some(()));
    api.set_state("Paused");
    save(&api, "s", "Full");
    let _ = process.end();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/uffd_handler.py");
    let handler = Process::start(&mut scratch.command("python3", &[script, "uffd.sock", "s.mem"]));
    handler.wait_stdout(|text| text.contains("listening").then_some(()));
    let (api, process) = Api::start(&scratch, "clone", &[]);
    api.put(
        "/snapshot/load",
        &json!({"snapshot_path": "s.state", "resume_vm": true,
        "mem_backend": {"backend_type": "Uffd", "backend_path": "uffd.sock"}}),
    );
    resize(&api, &process, 28);
    let few = anonymous_bytes(&process);
    resize(&api, &process, 0);
    assert!(anonymous_bytes(&process) > few + 27 * MIB);
    resize(&api, &process, 28);
    assert!(anonymous_bytes(&process) < few + MIB);
    api.set_state("Paused");
    // Nothing of what was given back is asked for.
    save(&api, "full", "Full");
    assert!(allocated(&scratch, "full.mem") + 27 * MIB < allocated(&scratch, "s.mem"));
    let _ = process.end();
    let (api, process) = load(&scratch, "full", false);
    resize(&api, &process, 0);
    let _ = process.end();
}
