//! Snapshots of machines that run on while they are written by a copy of their monitor (docs/adr/0022-live-snapshots.md).

use std::fs;
use std::path::Path;
use std::thread;

use lightv_tests::api::{Answer, Api};
use lightv_tests::dirty::{next_round, restored_at, wait_for_round};
use lightv_tests::host::{has_kvm, processes_in};
use lightv_tests::http::disk_job;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::strace::{Fate, Moment, attached};
use lightv_tests::usage::Curve;
use lightv_tests::{disk, machine};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A machine of `mib` that runs `app`, under the REST API.
fn start(scratch: &Scratch, mib: u64, app: &str, more: &Value) -> (Api, Process) {
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), app),
        &json!({"machine-config": {"mem_size_mib": mib}}),
    );
    let config = scratch.config("vm.json", &machine::with(&config, more));
    Api::start(scratch, "vm", &["--config", &config])
}

fn try_save(api: &Api, name: &str) -> Answer {
    let (state, memory) = (format!("{name}.state"), format!("{name}.mem"));
    let body = json!({"snapshot_path": state, "mem_file_path": memory, "live": true});
    api.call("PUT", "/snapshot/create", &body)
}

#[track_caller]
fn save(api: &Api, name: &str) {
    let answer = try_save(api, name);
    assert_eq!(answer.status, 204, "{name}: {answer:?}");
    assert_eq!(api.get("/")["state"], "Running");
}

fn load(api: &Api, name: &str) {
    let (state, memory) = (format!("{name}.state"), format!("{name}.mem"));
    let memory = json!({"backend_type": "File", "backend_path": memory});
    api.put(
        "/snapshot/load",
        &json!({"snapshot_path": state, "mem_backend": memory, "resume_vm": true}),
    );
}

/// Of `tick`: how many.
fn ticks(text: &str) -> usize {
    text.matches("tick ").count()
}

/// Processes that the monitor has made and that it has not reaped.
fn children(process: &Process) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("a process");
    let children = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children.map(|text| text.split_whitespace().count()).sum()
}

#[test]
fn a_machine_that_writes_goes_on_and_its_snapshots_are_of_one_moment() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 64, "dirty -- 24 20", &json!({}));
    let before = wait_for_round(&process, 2);
    save(&api, "first");
    save(&api, "second");
    let after = next_round(&process);
    assert!(!process.stdout().contains("restored"));
    for name in ["first", "second"] {
        let (clone_api, clone) = Api::start(&scratch, name, &[]);
        load(&clone_api, name);
        let (restored, _) = clone.wait_stdout(|text| restored_at(text, &process.stdout()));
        assert!(
            (before..=after).contains(&restored),
            "{before} {restored} {after}"
        );
        // A whole round later each page has been looked at.
        let _ = wait_for_round(&clone, restored + 2);
        let _ = clone.end();
    }
    let _ = wait_for_round(&process, after + 2);
    assert_eq!(children(&process), 0);
    let metrics = api.try_call("GET", "/metrics", "").expect("an answer");
    assert_eq!(metrics.status, 200);
    let _ = process.end();
}

/// Waits until strace has told in `log` that a process stands still. Gives its number.
fn wait_for_standstill(log: &Path) -> Pid {
    wait_for("a copy that stands still", || {
        let log = fs::read_to_string(log).ok()?;
        let mut lines = log.lines();
        let line = lines.find(|line| line.contains("stopped by SIGSTOP"))?;
        line.split(' ').next()?.parse().ok().and_then(Pid::from_raw)
    })
}

#[test]
fn the_guest_runs_before_the_files_are_there() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 32, "tick -- 0 5", &json!({}));
    process.wait_stdout(|text| (ticks(text) > 1).then_some(()));
    let log = scratch.path("strace.log");
    // The copy stands still at its first write.
    let still = "--inject=pwrite64:signal=STOP:when=1";
    let strace = attached(process.pid(), "pwrite64", &log, &[still]);
    thread::scope(|scope| {
        let answer = scope.spawn(|| try_save(&api, "x"));
        let copy = wait_for_standstill(&log);
        let now = ticks(&process.stdout());
        process.wait_stdout(|text| (ticks(text) > now + 10).then_some(()));
        let is_there = |name: &str| scratch.path(name).exists();
        assert!(!is_there("x.state") && !is_there("x.mem") && !answer.is_finished());
        // What needs no machine is answered meanwhile.
        assert_eq!(api.get("/")["state"], "Running");
        kill_process(copy, Signal::CONT).expect("the copy");
        let answer = answer.join().expect("an answer");
        assert_eq!(answer.status, 204, "{answer:?}");
        assert!(is_there("x.state") && is_there("x.mem"));
    });
    strace.signal(Signal::INT);
    let _ = strace.finish();
    let _ = process.end();
}

#[test]
fn a_copy_that_fails_or_is_killed_is_told_of_and_the_machine_goes_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 32, "tick -- 0 5", &json!({}));
    process.wait_stdout(|text| (ticks(text) > 1).then_some(()));
    let log = scratch.path("strace.log");
    scratch.write("strace.log", "");
    let before = scratch.listing();
    let fates = [
        ("pwrite64", 2, Fate::Kill, "ended by signal 9"),
        (
            "pwrite64",
            1,
            Fate::Error("ENOSPC"),
            "Cannot write x.mem: No space left on device",
        ),
        (
            "ftruncate",
            1,
            Fate::Error("EIO"),
            "x.mem: Input/output error",
        ),
        (
            "fsync",
            2,
            Fate::Error("EIO"),
            "x.state: Input/output error",
        ),
        ("linkat", 2, Fate::Kill, "ended by signal 9"),
        (
            "close_range",
            1,
            Fate::Error("ENOSYS"),
            "Function not implemented",
        ),
        (
            "clone",
            1,
            Fate::Error("EAGAIN"),
            "Cannot make a copy of the monitor",
        ),
    ];
    for (call, number, fate, words) in fates {
        let call = call.to_owned();
        let moment = Moment { call, number };
        let calls = "pwrite64,ftruncate,fsync,linkat,close_range,clone";
        let strace = attached(process.pid(), calls, &log, &[&moment.option(fate)]);
        let answer = try_save(&api, "x");
        strace.signal(Signal::INT);
        let _ = strace.finish();
        assert!(answer.fault().contains(words), "{moment:?}: {answer:?}");
        assert_eq!(children(&process), 0, "{moment:?}");
        assert!(!scratch.path("x.state").exists(), "{moment:?}");
        let _ = fs::remove_file(scratch.path("x.mem"));
        scratch.assert_same_files(&before);
        let now = ticks(&process.stdout());
        process.wait_stdout(|text| (ticks(text) > now + 2).then_some(()));
    }
    save(&api, "x");
    let _ = process.end();
}

#[test]
fn a_copy_ends_with_its_machine_and_leaves_nothing_half() {
    if !has_kvm() {
        return;
    }
    for signal in [Signal::KILL, Signal::TERM] {
        let scratch = Scratch::new();
        let (api, process) = start(&scratch, 32, "tick -- 0 5", &json!({}));
        process.wait_stdout(|text| (ticks(text) > 1).then_some(()));
        let log = scratch.path("strace.log");
        let still = "--inject=pwrite64:signal=STOP:when=2";
        let strace = attached(process.pid(), "pwrite64", &log, &[still]);
        thread::scope(|scope| {
            let answer = scope.spawn(|| {
                let body = json!({"snapshot_path": "s", "mem_file_path": "m", "live": true});
                api.try_call("PUT", "/snapshot/create", &body.to_string())
            });
            let _ = wait_for_standstill(&log);
            process.signal(signal);
            let _ = process.finish();
            let answer = answer.join().expect("a client");
            assert!(!answer.is_ok_and(|answer| answer.status == 204));
        });
        let _ = strace.finish();
        wait_for("an end of all processes", || {
            processes_in(scratch.folder()).is_empty().then_some(())
        });
        assert_eq!(
            left_in(scratch.folder()),
            Vec::<String>::new(),
            "{signal:?}"
        );
    }
}

/// Files of a snapshot in `folder`, half or whole.
fn left_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name == "s" || name == "m" || name.ends_with(".tmp"))
        .collect()
}

#[test]
fn forty_live_snapshots_leave_nothing_in_the_machine() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 32, "tick -- 0 5", &json!({}));
    process.wait_stdout(|text| (ticks(text) > 1).then_some(()));
    let mut curve = Curve::of("live snapshots", process.pid());
    curve.follow(40, 10, |_| save(&api, "x"));
    curve.assert_flat();
    assert_eq!(children(&process), 0);
    let _ = process.end();
}

#[test]
fn what_would_not_be_of_one_moment_is_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    disk::create(&scratch.path("base"), 1 << 20);
    let drive = |more: &Value| machine::with(&machine::disk("data", "base", "Unsafe"), more);
    let cases = [
        (drive(&json!({})), Some("Drive data would be written")),
        (
            drive(&json!({"overlay": {"path": "own.delta"}})),
            Some("Drive data would be written"),
        ),
        (drive(&json!({"is_read_only": true})), None),
        (drive(&json!({"overlay": {}})), None),
    ];
    for (drive, words) in cases {
        let (api, process) = start(&scratch, 32, "tick -- 0 5", &json!({"drives": [drive]}));
        process.wait_stdout(|text| (ticks(text) > 1).then_some(()));
        let before = scratch.listing();
        let answer = try_save(&api, "x");
        match words {
            Some(words) => {
                assert!(answer.fault().contains(words), "{answer:?}");
                assert!(answer.fault().contains("pause the machine"), "{answer:?}");
                scratch.assert_same_files(&before);
            }
            None => {
                assert_eq!(answer.status, 204, "{drive}: {answer:?}");
                check_refusals(&api);
            }
        }
        let now = ticks(&process.stdout());
        process.wait_stdout(|text| (ticks(text) > now + 2).then_some(()));
        // One that stands still is saved as ever.
        api.set_state("Paused");
        let answer = try_save(&api, "y");
        assert_eq!(answer.status, 204, "{answer:?}");
        assert_eq!(api.get("/")["state"], "Paused");
        let _ = process.end();
    }
}

/// What is refused of any machine that runs.
fn check_refusals(api: &Api) {
    for (body, words) in [
        (
            json!({"snapshot_path": "s", "mem_file_path": "s", "live": true}),
            "same file",
        ),
        (
            json!({"snapshot_path": "s", "mem_file_path": "m", "live": true, "snapshot_type": "Diff"}),
            "type Full",
        ),
        (
            json!({"snapshot_path": "s", "mem_file_path": "m"}),
            "while running",
        ),
    ] {
        let answer = api.call("PUT", "/snapshot/create", &body);
        assert!(answer.fault().contains(words), "{body}: {answer:?}");
    }
}

#[test]
fn an_overlay_in_memory_is_saved_as_it_was_at_that_moment() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    disk::create(&scratch.path("base"), 2 << 20);
    let mut config = machine::config(&scratch.guest_kernel(), "server");
    let drive = machine::disk("data", "base", "Unsafe");
    config["drives"] = json!([machine::with(&drive, &json!({"overlay": {}}))]);
    config["network-interfaces"] = machine::net();
    config["run"] = json!({"args": ["11"], "env": {"LIGHTV_IP": "10.0.0.10/24"}});
    let config = scratch.config("vm.json", &config);
    let address = machine::guest_at(10, 80);
    let start = |netns: &Netns, name: &str, args: &[&str]| {
        let socket = format!("{name}.sock");
        let args = [&["--api-sock", &socket, "--id", name], args].concat();
        let process = netns.start(&mut scratch.vmm(&args));
        let api = Api::at(scratch.path(&socket));
        wait_for("the API", || api.try_call("GET", "/", "").ok());
        (api, process)
    };
    let netns = Netns::with_tap();
    let (api, process) = start(&netns, "vm", &["--config", &config]);
    let past = |netns: &Netns, written: u64| {
        wait_for("the guest's disk job", || {
            let job = disk_job(netns, address);
            assert_eq!(job.errors, 0);
            (job.written > written).then_some(job)
        })
    };
    // Twice round the disk.
    let _ = past(&netns, 1100);
    save(&api, "x");
    let after = past(&netns, 0);
    let _ = past(&netns, after.written + 600);
    let clone_netns = Netns::with_tap();
    let (clone_api, clone) = start(&clone_netns, "clone", &[]);
    load(&clone_api, "x");
    let _ = past(&clone_netns, after.written + 600);
    for process in [process, clone] {
        let finished = process.end();
        assert_eq!(finished.stderr, "");
    }
}
