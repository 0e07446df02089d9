//! Machines that begin from another one that goes on (docs/adr/0022-live-snapshots.md).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use lightv_tests::api::Api;
use lightv_tests::dirty::{next_round, restored_at, wait_for_round};
use lightv_tests::host::{has_kvm, processes_in};
use lightv_tests::jails::AS_USER;
use lightv_tests::machine;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::unprivileged::open_to_all;
use lightv_tests::usage::Curve;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn start(scratch: &Scratch, mib: u64, app: &str) -> (Api, Process) {
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), app),
        &json!({"machine-config": {"mem_size_mib": mib}}),
    );
    let config = scratch.config("vm.json", &config);
    Api::start(scratch, "vm", &["--config", &config])
}

fn fork(clones: u32) -> Value {
    json!({"snapshot_path": "f.state", "mem_socket_path": "f.sock", "clones": clones})
}

fn load() -> Value {
    let memory = json!({"backend_type": "Uffd", "backend_path": "f.sock"});
    json!({"snapshot_path": "f.state", "mem_backend": memory, "resume_vm": true})
}

/// Processes that the monitor has made and that it has not reaped.
fn children(process: &Process) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("a process");
    let children = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = |text: String| -> Vec<Pid> {
        let words = text.split_whitespace();
        let numbers = words.map(|word| word.parse().expect("a number"));
        numbers.filter_map(Pid::from_raw).collect()
    };
    children.flat_map(pids).collect()
}

/// The memory of its one fork.
#[track_caller]
fn only_child(process: &Process) -> Pid {
    let pids = children(process);
    let [pid] = pids.as_slice() else {
        panic!("{pids:?}")
    };
    *pid
}

fn wait_for_no_child(process: &Process) {
    wait_for("the end of frozen memory", || {
        children(process).is_empty().then_some(())
    });
}

/// What it says when its memory does not come any more, and how it ends.
#[track_caller]
fn assert_lost(process: Process) {
    let ended = process.finish().with_code(163);
    assert!(ended.stderr.contains("lightv-fork"), "{ended:?}");
}

#[test]
fn four_clones_begin_where_the_machine_stood_which_goes_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 64, "dirty -- 8 20");
    let before = wait_for_round(&process, 2);
    let clones: Vec<(Api, Process)> = (0..4)
        .map(|number| Api::start(&scratch, &format!("clone{number}"), &[]))
        .collect();
    api.put("/fork", &fork(4));
    let after = next_round(&process);
    thread::scope(|scope| {
        for (api, _) in &clones {
            scope.spawn(move || api.put("/snapshot/load", &load()));
        }
    });
    let mut seeds = BTreeSet::new();
    for (_, clone) in clones {
        let (restored, seed) = clone.wait_stdout(|text| restored_at(text, &process.stdout()));
        assert!(
            (before..=after).contains(&restored),
            "{before} {restored} {after}"
        );
        assert!(seeds.insert(seed), "two have the same random numbers");
        // A whole round later each page has been looked at.
        let _ = wait_for_round(&clone, restored + 2);
        let _ = clone.end();
    }
    wait_for_no_child(&process);
    assert!(!scratch.path("f.sock").exists());
    let _ = wait_for_round(&process, after + 2);
    assert_eq!(process.stderr(), "");
    let _ = process.end();
}

#[test]
fn lightv_fork_gives_as_many_copies_as_are_asked_for_or_none() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = machine::config(&scratch.guest_kernel(), "tick -- 0 5");
    let config = scratch.config("vm.json", &config);
    let (_, process) = Api::start(&scratch, "web", &["--config", &config]);
    process.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    let forked = scratch.run(&["fork", "web", "-n", "3"]).with_code(0);
    let names: BTreeSet<&str> = forked.stdout.lines().collect();
    assert_eq!(names, BTreeSet::from(["web-2", "web-3", "web-4"]));
    for name in &names {
        wait_for("ticks of a copy", || {
            let log = scratch.run(&["logs", name]).with_code(0).stdout;
            (log.matches("tick ").count() > 2).then_some(())
        });
        let _ = scratch.run(&["stop", name]).with_code(0);
    }
    wait_for_no_child(&process);
    for (args, words) in [
        (&["fork", "nobody"][..], "no microVM nobody"),
        (&["fork", "web", "-n", "0"], "0"),
        (&["fork", "web", "--name", "a_b"], "letters"),
        (&["fork", "web", "--net", "eth9=tap0"], "eth9"),
    ] {
        let refused = scratch.run(args);
        assert!(
            refused.code != 0 && refused.stderr.contains(words),
            "{refused:?}"
        );
    }
    wait_for("the end of copies that were refused", || {
        (processes_in(scratch.folder()).len() == 1).then_some(())
    });
    let _ = process.end();
}

#[test]
fn twenty_forks_leave_nothing_in_the_machine() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 32, "tick -- 0 5");
    process.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    let mut curve = Curve::of("forks", process.pid());
    curve.follow(20, 5, |_| {
        api.put("/fork", &fork(1));
        let (clone_api, clone) = Api::start(&scratch, "clone", &[]);
        clone_api.put("/snapshot/load", &load());
        clone.wait_stdout(|text| text.contains("tick").then_some(()));
        let _ = clone.end();
        wait_for_no_child(&process);
    });
    curve.assert_flat();
    assert!(!scratch.path("f.sock").exists());
    let _ = process.end();
    wait_for("the end of all", || {
        processes_in(scratch.folder()).is_empty().then_some(())
    });
}

#[test]
fn frozen_memory_outlives_its_machine_and_what_kills_it_is_told() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 64, "dirty -- 8 20");
    let _ = wait_for_round(&process, 2);
    api.put("/fork", &fork(2));
    // Nonsense is nobody's business; one says that he does not come.
    let connect = || UnixStream::connect(scratch.path("f.sock")).expect("a socket");
    let mut stranger = connect();
    stranger.write_all(b"[{}]").expect("a word");
    drop(stranger);
    drop(connect());
    let (clone_api, clone) = Api::start(&scratch, "clone", &[]);
    let _ = next_round(&process);
    let told = process.end().stdout;
    clone_api.put("/snapshot/load", &load());
    let (restored, _) = clone.wait_stdout(|text| restored_at(text, &told));
    let _ = wait_for_round(&clone, restored + 2);
    wait_for("the end of frozen memory", || {
        (processes_in(scratch.folder()).len() == 1).then_some(())
    });
    let _ = clone.end();

    let (api, process) = start(&scratch, 32, "tick -- 0 5");
    api.put("/fork", &fork(1));
    kill_process(only_child(&process), Signal::KILL).expect("a signal");
    process.wait_stderr(|text| text.contains("ended by signal 9").then_some(()));
    wait_for_no_child(&process);
    assert!(!scratch.path("f.sock").exists());
    process.wait_stdout(|text| text.contains("tick 3\n").then_some(()));
    for (body, words) in [
        (
            json!({"snapshot_path": "f.state", "mem_socket_path": "vm.json"}),
            "no socket",
        ),
        (
            json!({"snapshot_path": "vm.json", "mem_socket_path": "g.sock"}),
            "not a LightV image",
        ),
        (
            json!({"snapshot_path": "f.state", "mem_socket_path": "g.sock", "clones": 0}),
            "1–1000",
        ),
    ] {
        let answer = api.call("PUT", "/fork", &body);
        assert!(answer.fault().contains(words), "{body}: {answer:?}");
        assert!(!scratch.path("g.sock").exists(), "{body}");
    }
    let _ = process.end();
}

/// A machine in a jail that has been forked, for one clone, and has been told to end since.
fn forked_and_ending(scratch: &Scratch) -> Process {
    let kernel = scratch.guest_kernel();
    let args = [&AS_USER[..], &["--jail-ro", &kernel, "--jail-rw", "out"]].concat();
    let (api, process) = Api::start(scratch, "vm", &args);
    api.put(
        "/machine-config",
        &json!({"mem_size_mib": 64, "vcpu_count": 2}),
    );
    let boot = machine::config(&kernel, "dirty -- 8 20")["boot-source"].clone();
    api.put("/boot-source", &boot);
    api.act("InstanceStart");
    let _ = wait_for_round(&process, 2);
    let files = json!({"snapshot_path": "out/f.state", "mem_socket_path": "out/f.sock"});
    api.put("/fork", &files);
    // It has told what it had begun to tell.
    let _ = next_round(&process);
    process.signal(Signal::TERM);
    // Longer than a signal that follows counts as the same one.
    thread::sleep(Duration::from_secs(1));
    process
}

#[test]
fn a_machine_in_a_jail_stands_still_until_its_clone_needs_it_no_more() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("out")).expect("a folder");
    open_to_all(&scratch.path("out"), 0o777);
    let process = forked_and_ending(&scratch);
    let told = process.stdout();
    let memory = json!({"backend_type": "Uffd", "backend_path": "out/f.sock"});
    let way = json!({"snapshot_path": "out/f.state", "mem_backend": memory, "resume_vm": true});
    let (clone_api, clone) = Api::start(&scratch, "clone", &[]);
    clone_api.put("/snapshot/load", &way);
    let ended = process.finish().with_code(143);
    assert_eq!((&ended.stdout, ended.stderr.as_str()), (&told, ""));
    let (restored, _) = clone.wait_stdout(|text| restored_at(text, &told));
    let _ = wait_for_round(&clone, restored + 2);
    let _ = clone.end();

    // Who insists does not wait for clones that do not come.
    let process = forked_and_ending(&scratch);
    assert!(scratch.path("out/f.sock").exists());
    process.signal(Signal::TERM);
    let ended = process.finish().with_code(143);
    assert_eq!(ended.stderr, "");
    assert!(!scratch.path("out/f.sock").exists());
    assert!(processes_in(scratch.folder()).is_empty());
}

#[test]
fn a_clone_is_forked_once_it_has_all_of_its_memory() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 64, "dirty -- 8 20");
    let _ = wait_for_round(&process, 2);
    api.put("/fork", &fork(1));
    let (clone_api, clone) = Api::start(&scratch, "clone", &[]);
    clone_api.put("/snapshot/load", &load());
    wait_for_no_child(&process);
    let _ = process.end();
    // It is told by another thread than the one that is asked.
    wait_for("a fork", || {
        let answer = clone_api.call("PUT", "/fork", &fork(1));
        (answer.status == 204).then_some(())
    });
    let now = next_round(&clone);
    let (second_api, second) = Api::start(&scratch, "second", &[]);
    second_api.put("/snapshot/load", &load());
    wait_for_no_child(&clone);
    let _ = wait_for_round(&second, now + 2);
    let _ = clone.end();
    let _ = second.end();
}

#[test]
fn a_clone_ends_with_the_process_that_has_its_memory_and_its_parent_goes_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 64, "dirty -- 8 20");
    let before = wait_for_round(&process, 2);
    // It stands still, so nothing comes: the machine cannot even be built.
    api.put("/fork", &fork(1));
    let memory = only_child(&process);
    kill_process(memory, Signal::STOP).expect("a signal");
    let (clone_api, clone) = Api::start(&scratch, "clone", &[]);
    thread::scope(|scope| {
        // No answer: it ends first.
        scope.spawn(|| clone_api.try_call("PUT", "/snapshot/load", &load().to_string()));
        wait_for("a clone that waits for a page", || {
            waits_for_page(&clone, None).then_some(())
        });
        kill_process(memory, Signal::KILL).expect("a signal");
        assert_lost(clone);
    });
    process.wait_stderr(|text| text.contains("ended by signal 9").then_some(()));
    wait_for_no_child(&process);
    let _ = wait_for_round(&process, before + 2);
    let _ = process.end();
    assert!(!scratch.path("clone.sock").exists());
}

/// Whether the thread `name`, or any, waits for a page of guest memory.
fn waits_for_page(process: &Process, name: Option<&str>) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("a process");
    tasks.flatten().any(|task| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let is_it = name.is_none_or(|name| read("comm").trim() == name);
        is_it && read("wchan").contains("userfault")
    })
}

#[test]
fn a_loop_that_waits_for_a_page_itself_does_not_hide_the_end_of_its_memory() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 64, "tick -- 0 5");
    process.wait_stdout(|text| text.contains("tick 1\n").then_some(()));
    api.set_state("Paused");
    let target = json!({"snapshot_path": "f.state", "mem_file_path": "s.mem"});
    api.put("/snapshot/create", &target);
    let _ = process.end();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/uffd_handler.py");
    let args = [script, "f.sock", "s.mem", "greets"];
    let handler = Process::start(&mut scratch.command("python3", &args));
    handler.wait_stdout(|text| text.contains("listening").then_some(()));
    let (clone_api, clone) = Api::start(&scratch, "clone", &[]);
    clone_api.put("/snapshot/load", &load());
    clone.wait_stdout(|text| text.contains("tick").then_some(()));
    let fork = json!({"snapshot_path": "g.state", "mem_socket_path": "g.sock"});
    let refused = clone_api.call("PUT", "/fork", &fork);
    assert!(refused.fault().contains("once it has all"), "{refused:?}");
    clone_api.set_state("Paused");
    handler.signal(Signal::STOP);
    thread::scope(|scope| {
        // It reads all pages.
        let target = json!({"snapshot_path": "g.state", "mem_file_path": "g.mem"});
        let body = target.to_string();
        let clone_api = &clone_api;
        scope.spawn(move || clone_api.try_call("PUT", "/snapshot/create", &body));
        wait_for("a loop that waits for a page", || {
            waits_for_page(&clone, Some("control")).then_some(())
        });
        handler.signal(Signal::KILL);
        assert_lost(clone);
    });
    assert!(!scratch.path("clone.sock").exists());
}
