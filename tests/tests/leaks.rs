//! Hundreds of rounds of what is done to a machine again and again: descriptors, threads, mappings and memory stay what they
//! were, and processes that have ended leave nothing.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;

use lightv_api::exit::OK;
use lightv_tests::api::Api;
use lightv_tests::host::{has_kvm, processes_in};
use lightv_tests::process::{DEADLINE, Process, after_script, run, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::usage::Curve;
use lightv_tests::{disk, machine};
use rustix::process::Signal;
use serde_json::{Value, json};

const ROUNDS: usize = 300;
const STEP: usize = 50;

/// A machine of 32 MiB with two disks to choose from, under the REST API.
fn start(scratch: &Scratch, app: &str, more: &Value) -> (Api, Process) {
    for disk in ["one", "other"] {
        disk::create(&scratch.path(disk), 1 << 20);
    }
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), app),
        &json!({"machine-config": {"mem_size_mib": 32}, "drives": [machine::disk("d", "one", "Unsafe")]}),
    );
    let config = scratch.config("vm.json", &machine::with(&config, more));
    let (api, process) = Api::start(scratch, "vm", &["--config", &config]);
    wait_for("a running machine", || {
        (api.get("/")["state"] == "Running").then_some(())
    });
    (api, process)
}

#[test]
fn pauses_disks_and_snapshots_leave_nothing_in_a_machine() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, "tick -- 0 5", &json!({}));
    process.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    let check = |what: &str, round: &dyn Fn(usize)| {
        let mut curve = Curve::of(what, process.pid());
        curve.follow(ROUNDS, STEP, round);
        curve.assert_flat();
    };
    check("pause and resume", &|_| {
        api.set_state("Paused");
        api.set_state("Resumed");
    });
    check("another disk", &|number| {
        let path = ["one", "other"][number % 2];
        api.patch("/drives/d", &json!({"drive_id": "d", "path_on_host": path}));
    });
    api.set_state("Paused");
    let body = json!({"snapshot_path": "s", "mem_file_path": "m"});
    check("snapshots", &|_| api.put("/snapshot/create", &body));
    let refused = json!({"snapshot_path": "no/s", "mem_file_path": "m"});
    check("snapshots that are refused", &|_| {
        assert_eq!(api.call("PUT", "/snapshot/create", &refused).status, 400);
    });
    api.set_state("Resumed");
    let ticks = process.stdout().lines().count();
    process.wait_stdout(|text| (text.lines().count() > ticks + 5).then_some(()));
    let _ = process.end();
}

#[test]
fn connections_of_clients_leave_nothing_in_a_machine() {
    if !has_kvm() {
        return;
    }
    const CALLS: usize = 2000;
    const STREAMS: usize = 1000;
    let scratch = Scratch::new();
    let vsock = json!({"vsock": {"guest_cid": 52, "uds_path": "v.sock"}});
    let (api, process) = start(&scratch, "vsock -- 7", &vsock);
    process.wait_stdout(|text| text.contains("vsock cid=52").then_some(()));
    let mut curve = Curve::of("connections to the API", process.pid());
    curve.follow(CALLS, CALLS / 6, |number| {
        // Of a good request, a bad one, and of one who goes away without a word.
        match number % 3 {
            0 => drop(api.get("/")),
            1 => assert_eq!(api.call("GET", "/nope", &Value::Null).status, 400),
            _ => drop(api.connect().expect("a connection")),
        }
    });
    let _ = api.get("/");
    curve.assert_flat();
    let socket = scratch.path("v.sock");
    let mut curve = Curve::of("connections to the guest", process.pid());
    curve.follow(STREAMS, STREAMS / 5, |number| {
        // One that is there, one where nobody listens.
        let port = if number % 4 == 0 { 8 } else { 7 };
        let mut stream = UnixStream::connect(&socket).expect("the socket");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a time limit");
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .expect("a line");
        let mut answer = String::new();
        let mut reader = BufReader::new(&stream);
        // A refusal is the stream's end.
        let _ = reader.read_line(&mut answer);
        assert_eq!(answer.starts_with("OK "), port == 7, "{answer:?}");
        if port == 7 {
            (&stream).write_all(b"echo\n").expect("a line");
            answer.clear();
            reader.read_line(&mut answer).expect("an echo");
            assert_eq!(answer, "echo\n");
        }
    });
    curve.assert_flat();
    let _ = process.end();
}

#[test]
fn three_hundred_starts_and_restores_leave_nothing_on_the_host() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &["--memory", "32"]);
    let config = machine::config(&scratch.guest_kernel(), "hello");
    let config = scratch.config("vm.json", &config);
    let before = scratch.listing();
    for (what, job) in [
        ("starts", ["--config", &config]),
        ("restores", ["--restore", &image]),
    ] {
        println!("{what}\nround  files here  processes here  children that nobody waits for");
        for round in 1..=ROUNDS {
            // One that ends by itself, and one that is ended while it serves.
            if round.is_multiple_of(3) {
                let args = [&job[..], &["--api-sock", "vm.sock"]].concat();
                let process = Process::start(&mut scratch.vmm(&args));
                process.wait_stdout(|text| text.contains("Hello").then_some(()));
                let _ = process.end();
            } else {
                let _ = run(&mut scratch.vmm(&job)).with_code(OK);
            }
            if round.is_multiple_of(STEP) {
                scratch.assert_nothing_left(&before);
                let files = fs::read_dir(scratch.folder()).expect("a folder").count();
                let processes = processes_in(scratch.folder()).len();
                let zombies = zombies();
                println!("{round:>5} {files:>11} {processes:>15} {zombies:>31}");
                assert_eq!((processes, zombies), (0, 0));
            }
        }
    }
}

#[test]
fn clones_share_the_pages_that_they_do_not_write() {
    if !has_kvm() {
        return;
    }
    const CLONES: usize = 8;
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--memory", "32", "--", "0", "5"]);
    let clones: Vec<Process> = (0..CLONES)
        .map(|_| Process::start(&mut scratch.lightv(&["run", &image])))
        .collect();
    for clone in &clones {
        clone.wait_stdout(|text| text.contains("tick 20\n").then_some(()));
    }
    let (mut shared_kib, mut private_kib) = (0, 0);
    for clone in &clones {
        let (shared, private) = image_pages_kib(clone.pid(), &image);
        println!("{shared} KiB of the image are shared, {private} KiB its own");
        assert!(shared > 0, "pages of the image");
        shared_kib += shared;
        private_kib += private;
    }
    // What a clone writes is a few pages of a guest that only counts.
    assert!(
        private_kib <= CLONES as u64 * 1024,
        "{private_kib} KiB of {shared_kib}"
    );
    for clone in clones {
        let _ = clone.end();
    }
}

/// How much of the mappings of `image` the process has in common with others, and how much for itself.
fn image_pages_kib(pid: u32, image: &str) -> (u64, u64) {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a process");
    let (mut shared, mut private, mut is_image) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        if !name.ends_with(':') {
            is_image = line.ends_with(image);
        } else if is_image {
            let mut kib = || {
                words
                    .next()
                    .and_then(|kib| kib.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            match name {
                "Shared_Clean:" | "Shared_Dirty:" => shared += kib(),
                "Private_Dirty:" => private += kib(),
                _ => {}
            }
        }
    }
    (shared, private)
}

/// Children of this process that have ended and are still there.
fn zombies() -> usize {
    let own = format!("PPid:\t{}\n", std::process::id());
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let statuses = entries.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    statuses
        .filter(|status| status.contains(&own) && status.contains("State:\tZ"))
        .count()
}

/// A core file would hold what the guest held.
#[test]
fn a_machine_that_is_aborted_leaves_no_core_file() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--memory", "32", "--", "0", "5"]);
    let before = scratch.listing();
    let lightv = scratch.lightv(&["run", &image]);
    let unlimited = after_script(&["prlimit", "--core=unlimited"], ":", &lightv);
    for mut command in [lightv, unlimited] {
        let process = Process::start(&mut command);
        process.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid()));
        let limits = limits.expect("a process");
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let words: Vec<_> = core.expect("a limit").split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"], "{limits}");
        process.signal(Signal::ABORT);
        let finished = process.finish();
        assert_eq!(
            (finished.code, finished.was_killed),
            (134, true),
            "{finished:?}"
        );
        scratch.assert_nothing_left(&before);
    }
}

/// `kill -9` of those that hold a machine: who started it, and the machine itself with a child of its own.
#[test]
fn a_starter_that_is_killed_takes_nothing_with_it_and_a_machine_that_is_killed_leaves_little() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = machine::config(&scratch.guest_kernel(), "tick -- 0 5");
    let config = scratch.config("vm.json", &config);
    let before = scratch.listing();
    // A shell that waits for its child.
    let vmm = scratch.vmm(&["--config", &config, "--api-sock", "vm.sock"]);
    let script = "\"$@\" & echo $! >pid; wait";
    let mut command = scratch.command("sh", &["-c", script, "sh"]);
    command.arg(vmm.get_program()).args(vmm.get_args());
    let parent = Process::start(&mut command);
    parent.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    let pid = wait_for("its number", || {
        fs::read_to_string(scratch.path("pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    });
    let api = Api::at(scratch.path("vm.sock"));
    parent.signal(Signal::KILL);
    // It goes on: nobody reads its output any more, and it is told to end by whoever finds it.
    wait_for("the end of its starter", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        (!status.contains(&format!("PPid:\t{}\n", parent.pid()))).then_some(())
    });
    assert_eq!(api.get("/")["state"], "Running");
    let mode = fs::metadata(scratch.path("vm.sock"))
        .expect("a socket")
        .permissions();
    assert_ne!(mode.mode() & 0o700, 0);
    let target = rustix::process::Pid::from_raw(pid).expect("a number");
    rustix::process::kill_process(target, Signal::KILL).expect("a signal");
    let _ = parent.finish();
    wait_for("its end", || {
        processes_in(scratch.folder()).is_empty().then_some(())
    });
    // What stands for it is left, and is no obstacle: the next one takes its place, and with its end all goes.
    assert!(api.try_call("GET", "/", "").is_err() && scratch.path("vm.sock").exists());
    let (api, process) = Api::start(&scratch, "vm", &["--config", &config]);
    let _ = api.get("/");
    let _ = process.end();
    let _ = scratch.run(&["ps"]).with_code(OK);
    fs::remove_file(scratch.path("pid")).expect("our file");
    scratch.assert_nothing_left(&before);
}
