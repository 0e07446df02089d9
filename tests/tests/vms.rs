//! MicroVMs in the background by the command line: started, listed, paused, saved, restored, stopped.

use std::fs;
use std::os::unix::fs::symlink;

use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::process::{Finished, Process, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn listed(scratch: &Scratch) -> Vec<Value> {
    let finished = scratch.run(&["ps", "--json"]).with_code(0);
    let json: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    json.as_array().expect("a list").clone()
}

/// Waits until the first in the list is said to be in `state`: on a busy host it may not answer in time at first.
#[track_caller]
fn wait_for_state(scratch: &Scratch, state: &str) {
    wait_for(state, || {
        (listed(scratch)[0]["state"] == state).then_some(())
    });
}

fn refused(scratch: &Scratch, args: &[&str], code: u8, words: &[&str]) {
    scratch.run(args).assert_refused(code, words);
}

fn logs(scratch: &Scratch, vm: &str) -> String {
    scratch.run(&["logs", vm]).with_code(0).stdout
}

/// The last tick in the log of `vm` after the tick `number`.
fn tick_after(scratch: &Scratch, vm: &str, number: u64) -> u64 {
    wait_for("another tick", || {
        let text = logs(scratch, vm);
        let ticks = text.lines().filter_map(|line| line.strip_prefix("tick "));
        let last = ticks.filter_map(|tick| tick.parse().ok()).next_back()?;
        (last > number).then_some(last)
    })
}

fn run(scratch: &Scratch, args: &[&str]) -> Finished {
    scratch.run(args).with_code(0)
}

/// Saves the running `tick` in all ways: `s`, then paused `d`, the difference to it, and `f`, all of it.
fn check_snapshots(scratch: &Scratch) {
    let _ = run(scratch, &["snapshot", "create", "tick", "s.state", "s.mem"]);
    wait_for_state(scratch, "Running");
    // A guest that has done nothing since has no difference, and `s.mem` alone would do.
    let last = tick_after(scratch, "tick", 0);
    tick_after(scratch, "tick", last);
    let _ = run(scratch, &["pause", "tick"]);
    let _ = run(
        scratch,
        &["snapshot", "create", "tick", "d.state", "d.mem", "--diff"],
    );
    let _ = run(scratch, &["snapshot", "create", "tick", "f.state", "f.mem"]);
    let _ = run(
        scratch,
        &["snapshot", "merge", "s.mem", "d.mem", "-o", "m.mem"],
    );
    assert!(
        scratch.read("m.mem") == scratch.read("f.mem"),
        "merged and full differ"
    );
    let shown = run(scratch, &["snapshot", "inspect", "d.state", "--json"]).stdout;
    assert!(shown.contains("memory-file"), "{shown}");
}

#[test]
fn a_vm_in_the_background_is_listed_paused_saved_restored_and_stopped() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let started = run(&scratch, &["run", "--detach", &image]);
    assert_eq!(started.stdout, "tick\n");
    let list = listed(&scratch);
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0]["id"], "tick");
    wait_for_state(&scratch, "Running");
    wait_for("a table", || {
        let table = run(&scratch, &["ps"]).stdout;
        (table.contains("tick") && table.contains("Running")).then_some(())
    });
    tick_after(&scratch, "tick", 0);

    let _ = run(&scratch, &["pause", "ti"]);
    wait_for_state(&scratch, "Paused");
    let _ = run(&scratch, &["resume", "tick"]);
    check_snapshots(&scratch);
    let saved_at = tick_after(&scratch, "tick", 0);

    let args = [
        "snapshot", "load", "d.state", "s.mem", "--diff", "d.mem", "--name", "clone",
    ];
    assert_eq!(run(&scratch, &args).stdout, "clone\n");
    assert!(tick_after(&scratch, "clone", 0) >= saved_at);
    let got = run(&scratch, &["api", "--vm", "clone", "GET", "/"]).stdout;
    assert!(got.contains("\"id\":\"clone\""), "{got}");
    let finished = scratch
        .run(&["api", "--vm", "clone", "put", "/nope", "{}"])
        .with_code(1);
    assert!(finished.stdout.contains("fault_message"), "{finished:?}");
    refused(
        &scratch,
        &["run", "-d", "--name", "clone", &image],
        153,
        &["clone already"],
    );
    let bad = ["snapshot", "load", "d.state", "s.mem", "--name", "bad"];
    let words = [
        "does not belong to this snapshot",
        "written with this state",
    ];
    refused(&scratch, &bad, 1, &words);
    // One that is not there keeps none of the others.
    let stop = ["stop", "gone", "tick", "clone"];
    refused(&scratch, &stop, 153, &["no microVM gone"]);
    wait_for("their end", || listed(&scratch).is_empty().then_some(()));
    assert!(logs(&scratch, "clone").contains("tick"), "a log stays");
    let left: Vec<_> = fs::read_dir(scratch.path("run"))
        .expect("a folder")
        .flatten()
        .collect();
    assert!(
        left.iter()
            .all(|entry| entry.path().extension().is_some_and(|end| end == "log")),
        "{left:?}"
    );
}

#[test]
fn logs_are_followed_to_the_end() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "20", "50"]);
    let _ = run(&scratch, &["run", "-d", "--name", "short", &image]);
    let follow = Process::start(&mut scratch.lightv(&["logs", "-f", "short"]));
    let finished = follow.finish().with_code(0);
    assert!(finished.stdout.ends_with("tick 20\n"), "{finished:?}");
}

#[test]
fn a_vm_in_the_foreground_is_listed_once_it_is_idle_and_one_that_was_killed_is_forgotten() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("idle", &[]);
    let process = Process::start(&mut scratch.lightv(&["run", &image]));
    let vm = wait_for("a list", || listed(&scratch).pop());
    assert_eq!(vm["pid"], process.pid());
    assert!(vm["api_socket"].is_null());
    let pid = process.pid().to_string();
    refused(
        &scratch,
        &["pause", &pid],
        153,
        &["serves no REST API", "--detach"],
    );
    process.signal(Signal::KILL);
    let _ = process.finish();
    let file = format!("run/{pid}.json");
    assert!(scratch.path(&file).exists(), "SIGKILL leaves it");
    assert!(listed(&scratch).is_empty());
    assert!(!scratch.path(&file).exists(), "who lists takes it away");
}

#[test]
fn what_vms_take_is_shown_once_and_until_they_end() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // More than is written in a test's time.
    let disk = fs::File::create(scratch.path("d")).expect("a disk");
    disk.set_len(64 << 30).expect("a sparse disk");
    let image = scratch.build("blk", &["--disk", "d=d", "--", "1", "10000000"]);
    let _ = run(&scratch, &["run", "-d", "--name", "busy", &image]);
    let idle = scratch.build("idle", &[]);
    let process = Process::start(&mut scratch.lightv(&["run", &idle]));
    wait_for("both", || (listed(&scratch).len() == 2).then_some(()));
    let stats = |args: &[&str]| -> Vec<Value> {
        let args = [&["stats", "--json", "--interval", "0.3"], args].concat();
        serde_json::from_str(&run(&scratch, &args).stdout).expect("an array")
    };
    let busy = || stats(&["busy"]).pop().expect("one");
    let writes = |stats: &Value| stats["moved"]["disk_written_bytes"].as_u64();
    // On a busy host it may not have its turn between two looks.
    let found = wait_for("writes", || {
        let has_worked =
            |it: &Value| writes(it) > Some(0) && it["cpu_percent"].as_f64() > Some(0.0);
        Some(busy()).filter(has_worked)
    });
    let number = |key: &str| found[key].as_f64().expect(key);
    for key in ["own_kib", "guest_kib", "guest_private_kib"] {
        assert!(number(key) > 0.0, "{key}: {found}");
    }
    assert!(
        number("guest_private_kib") <= number("guest_kib"),
        "{found}"
    );
    let all = stats(&[]);
    assert_eq!(all.len(), 2, "{all:?}");
    let own = all.iter().find(|stats| stats["pid"] == process.pid());
    let own = own.expect("the one in the foreground");
    assert!(own["moved"].is_null(), "nobody can be asked: {own}");
    let table = run(&scratch, &["stats", "--interval", "0.1"]).stdout;
    assert!(table.contains("CPU %") && table.contains("busy"), "{table}");

    let watch = ["stats", "busy", "--watch", "--json", "--interval", "0.1"];
    let watch = Process::start(&mut scratch.lightv(&watch));
    watch.wait_stdout(|text| (text.lines().count() > 2).then_some(()));
    let _ = run(&scratch, &["stop", "--time", "1", "busy"]);
    let lines = watch.finish().with_code(0).stdout;
    for line in lines.lines() {
        let stats: Vec<Value> = serde_json::from_str(line).expect("a line is an array");
        assert!(stats.len() < 2, "{line}");
    }
    let _ = process.end();
    refused(&scratch, &["stats", "busy"], 153, &["There is no microVM"]);
    refused(&scratch, &["stats", "--interval", "0"], 153, &["0.1"]);
}

#[test]
fn what_does_not_run_is_refused_and_garbage_does_no_harm() {
    let scratch = Scratch::new();
    for (name, text) in [
        ("1.json", "{"),
        ("2.json", "{}"),
        ("x.json", "x"),
        ("a b", ""),
    ] {
        scratch.write(&format!("run/{name}"), text);
    }
    fs::create_dir(scratch.path("run/3.json")).expect("a folder");
    std::os::unix::fs::symlink("/etc/passwd", scratch.path("run/4.json")).expect("a link");
    assert!(listed(&scratch).is_empty());
    assert!(scratch.path("run/x.json").exists(), "somebody else's stays");
    for args in [
        &["pause", "nobody"][..],
        &["stop", "nobody"],
        &["logs", "nobody"],
        &["logs", "../x"],
        &["snapshot", "create", "nobody", "a", "b"],
        &["api", "--vm", "nobody", "GET", "/"],
    ] {
        refused(&scratch, args, 153, &["There is no microVM"]);
    }
    refused(
        &scratch,
        &["api", "--socket", "none", "GET", "/"],
        1,
        &["none", "no such socket"],
    );
    scratch.write("base", vec![0; 8192]);
    scratch.write("other", vec![0; 4096]);
    refused(
        &scratch,
        &["snapshot", "merge", "base", "other", "-o", "out"],
        152,
        &["other", "4096"],
    );
    refused(
        &scratch,
        &["snapshot", "merge", "none", "base", "-o", "out"],
        152,
        &["none"],
    );
    assert!(!scratch.path("out").exists());
}

#[test]
fn a_guest_that_listens_is_asked_to_end_and_one_that_hangs_is_killed() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let code = lightv_tests::machine::code_that_waits_for_ctrl_alt_del();
    scratch.write("kernel", lightv_tests::machine::elf(&code));
    let config = serde_json::json!({"boot-source": {"kernel_image_path": "kernel"}});
    let config = scratch.config("vm.json", &config);
    let start = |name: &str| {
        let socket = format!("{name}.sock");
        let args = ["--api-sock", &socket, "--id", name, "--config", &config];
        let process = Process::start(&mut scratch.vmm(&args));
        process.wait_stdout(|text| text.contains("listening").then_some(()));
        wait_for("its file", || listed(&scratch).pop());
        process
    };
    let process = start("listens");
    let _ = run(&scratch, &["stop", "listens"]);
    let finished = process.finish();
    assert_eq!(finished.code, 0, "it ended by itself: {finished:?}");

    let process = start("hangs");
    let pid = Pid::from_raw(i32::try_from(process.pid()).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::STOP).expect("it is there");
    let stop = Process::start(&mut scratch.lightv(&["stop", "--kill", "hangs"]));
    let _ = stop.finish().with_code(0);
    let finished = process.finish();
    assert!(finished.was_killed, "{finished:?}");
}

#[test]
fn one_that_does_not_answer_holds_nobody_up() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("idle", &[]);
    let _ = run(&scratch, &["run", "-d", "--name", "stuck", &image]);
    let pid = listed(&scratch)[0]["pid"].as_i64().expect("a pid");
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::STOP).expect("it is there");
    wait_for_state(&scratch, "Not answering");
    let _ = run(&scratch, &["stop", "--time", "1", "stuck"]);
    assert!(listed(&scratch).is_empty());
}

#[test]
fn one_that_stop_kills_leaves_no_socket_and_nothing_of_others_is_touched() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let folder = scratch.path("run");
    let base = machine::config(&scratch.guest_kernel(), "idle");
    let start = |name: &str| {
        let vsock = json!({"guest_cid": 3, "uds_path": format!("run/{name}.vsock")});
        let config = machine::with(&base, &json!({"vsock": vsock}));
        let config = scratch.config(&format!("{name}.json"), &config);
        let socket = format!("run/{name}.sock");
        let args = ["--api-sock", &socket, "--id", name, "--config", &config];
        let process = Process::start(&mut scratch.vmm(&args));
        let api = folder.join(format!("{name}.sock"));
        let is_listed = || {
            let vms = listed(&scratch);
            let is_it = |vm: &Value| vm["api_socket"].as_str() == api.to_str();
            vms.iter().any(is_it).then_some(())
        };
        wait_for("its record", is_listed);
        process
    };
    let of = |name: &str| ["sock", "vsock"].map(|end| folder.join(format!("{name}.{end}")));
    let (other, first) = (start("other"), start("first"));
    assert!(of("first").iter().all(|path| path.exists()));
    let _ = run(&scratch, &["stop", "--kill", "first"]);
    assert!(first.finish().was_killed);
    assert!(!of("first").iter().any(|path| path.exists()));
    assert!(of("other").iter().all(|path| path.exists()));

    // In the place of its own: a link to another's, and a file.
    let second = start("second");
    let [api, vsock] = of("second");
    fs::remove_file(&api).expect("a socket");
    symlink(&of("other")[0], &api).expect("a link");
    fs::remove_file(&vsock).expect("a socket");
    fs::write(&vsock, "text").expect("a file");
    let _ = run(&scratch, &["stop", "--kill", "second"]);
    assert!(second.finish().was_killed);
    assert!(fs::symlink_metadata(&api).is_ok(), "the link");
    assert_eq!(fs::read(&vsock).expect("the file"), b"text");
    assert!(of("other").iter().all(|path| path.exists()));
    let _ = run(&scratch, &["stop", "other"]);
    assert_eq!(other.finish().code, 143);
    assert!(!of("other").iter().any(|path| path.exists()));
}

#[test]
fn no_vm_is_called_as_a_socket_of_the_host_agent() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("idle", &[]);
    fs::rename(scratch.path(&image), scratch.path("agent.lv")).expect("another name");
    for name in ["agent", "agent-run"] {
        let args = ["run", "-d", "--name", name, "agent.lv"];
        refused(&scratch, &args, 153, &[name, "host agent"]);
    }
    let started = run(&scratch, &["run", "-d", "agent.lv"]);
    assert_eq!(started.stdout, "agent-2\n");
    let _ = run(&scratch, &["stop", "agent-2"]);
}

#[test]
fn a_name_is_given_once_however_many_want_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("idle", &[]);
    let runs: Vec<Process> = (0..6)
        .map(|_| Process::start(&mut scratch.lightv(&["run", "-d", "--name", "one", &image])))
        .collect();
    let ended: Vec<Finished> = runs.into_iter().map(Process::finish).collect();
    let started = ended.iter().filter(|finished| finished.code == 0).count();
    assert_eq!(started, 1, "{ended:#?}");
    assert_eq!(listed(&scratch).len(), 1);
    let _ = run(&scratch, &["stop", "one"]);
}

#[test]
fn a_directory_that_others_can_write_is_not_believed() {
    let scratch = Scratch::new();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(scratch.path("run"), mode).expect("a mode");
    for args in [&["ps"][..], &["stop", "x"], &["logs", "x"]] {
        refused(&scratch, args, 158, &["mode 0700"]);
    }
}
