//! Faults that users of such monitors have met over the API (docs/public-cases.md).

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::time::Duration;

use lightv_tests::api::{Api, read_answer};
use lightv_tests::host::has_kvm;
use lightv_tests::http::disk_job;
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, after_script, tool, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::strace::{attached, calls};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Starts `lightv-vmm --api-sock NAME.sock` in `netns`.
fn start_in(netns: &Netns, scratch: &Scratch, name: &str) -> (Api, Process) {
    let socket = format!("{name}.sock");
    let mut command = scratch.vmm(&["--api-sock", &socket, "--id", name]);
    let process = netns.start(&mut command);
    let api = Api::at(scratch.path(&socket));
    wait_for("the API", || api.try_call("GET", "/", "").ok());
    (api, process)
}

fn boot(scratch: &Scratch, api: &Api, args: &str) {
    let boot = json!({"kernel_image_path": scratch.guest_kernel(), "boot_args": args});
    api.put("/boot-source", &boot);
    api.act("InstanceStart");
}

fn save(api: &Api, name: &str) -> lightv_tests::api::Answer {
    let body =
        json!({"snapshot_path": format!("{name}.state"), "mem_file_path": format!("{name}.mem")});
    api.call("PUT", "/snapshot/create", &body)
}

fn load_body(name: &str) -> Value {
    json!({"snapshot_path": format!("{name}.state"), "mem_file_path": format!("{name}.mem"), "resume_vm": true})
}

/// 9: lengths that are none, bodies that do not come, and who asks meanwhile.
#[test]
fn a_client_that_is_stuck_delays_only_itself() {
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &[]);
    let mut stuck: Vec<_> = (0..20)
        .map(|_| api.connect().expect("a connection"))
        .collect();
    for (number, stream) in stuck.iter_mut().enumerate() {
        let head = "PUT /boot-source HTTP/1.1\r\nContent-Length: 20\r\n\r\n{\"kernel_";
        let part = head.get(..number * 4).unwrap_or(head);
        stream
            .write_all(part.as_bytes())
            .expect("a part of a request");
    }
    assert_eq!(api.get("/")["id"], "vm");
    for length in [
        "-1",
        "+5",
        "5, 6",
        "99999999999999999999",
        "x",
        "51201",
        "104857600",
    ] {
        let mut stream = api.connect().expect("a connection");
        let head = format!("PUT /boot-source HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("a request");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 4"), "{length}: {answer:?}");
    }
    for bytes in [51_199, 51_200] {
        let mut stream = api.connect().expect("a connection");
        let head = format!("PUT /boot-source HTTP/1.1\r\nContent-Length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("a request");
        stream.write_all(&vec![b' '; bytes]).expect("a body");
        let answer = read_answer(&mut BufReader::new(stream)).expect("an answer");
        assert!(
            answer.fault().contains("deserializing"),
            "{bytes}: {answer:?}"
        );
    }
    let mut stream = api.connect().expect("a connection");
    let _ = stream
        .write_all(format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    let mut stream = api.connect().expect("a connection");
    let _ =
        stream.write_all(format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(10_000)).as_bytes());
    assert_eq!(api.get("/")["id"], "vm");
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("a process");
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a size");
    let kib: u64 = resident
        .split_whitespace()
        .next()
        .and_then(|kib| kib.parse().ok())
        .expect("a number");
    assert!(kib < 32 << 10, "{kib} KiB");
    let _ = process.end();
}

/// 14 and 57: an interface again with the same and with another tap, a tap in use, and other taps at a load.
#[test]
fn taps_are_taken_let_go_and_replaced() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    netns.ip("tuntap add tap1 mode tap");
    let (api, process) = start_in(&netns, &scratch, "first");
    let net = |id: &str, tap: &str| json!({"iface_id": id, "host_dev_name": tap});
    api.put("/network-interfaces/eth0", &net("eth0", "tap0"));
    api.put("/network-interfaces/eth0", &net("eth0", "tap0"));
    api.put("/network-interfaces/eth0", &net("eth0", "tap1"));
    let (second, other) = start_in(&netns, &scratch, "second");
    second.put("/network-interfaces/eth0", &net("eth0", "tap0"));
    let busy = api.call("PUT", "/network-interfaces/eth0", &net("eth0", "tap0"));
    assert!(
        busy.fault().contains("tap0") && busy.fault().contains("busy"),
        "{busy:?}"
    );
    let twice = api.call("PUT", "/network-interfaces/eth1", &net("eth1", "tap1"));
    assert!(twice.fault().contains("already in use"), "{twice:?}");
    let _ = other.end();
    api.put("/network-interfaces/eth0", &net("eth0", "tap0"));
    boot(
        &scratch,
        &api,
        "app=http ip=10.0.0.2::10.0.0.1:255.255.255.0::eth0:off",
    );
    let address = machine::guest_at(2, 80);
    assert_eq!(
        lightv_tests::http::get(&netns, address, "/"),
        "Hello, world!\n"
    );
    api.set_state("Paused");
    assert_eq!(save(&api, "s").status, 204);
    let _ = process.end();

    netns.ip("link del tap1");
    let fresh = Netns::new();
    fresh.add_tap("other");
    let (api, process) = start_in(&fresh, &scratch, "clone");
    let mut unknown = load_body("s");
    unknown["network_overrides"] = json!([{"iface_id": "eth7", "host_dev_name": "other"}]);
    let refused = api.call("PUT", "/snapshot/load", &unknown);
    assert!(
        refused.fault().contains("eth7") && refused.fault().contains("network_overrides"),
        "{refused:?}"
    );
    let mut body = load_body("s");
    body["network_overrides"] = json!([{"iface_id": "eth0", "host_dev_name": "other"}]);
    api.put("/snapshot/load", &body);
    assert_eq!(
        api.get("/vm/config")["network-interfaces"][0]["host_dev_name"],
        "other"
    );
    assert_eq!(
        lightv_tests::http::get(&fresh, address, "/"),
        "Hello, world!\n"
    );
    let _ = process.end();
}

/// 51: nothing is written after the answer to a pause, and what was under way is not lost.
#[test]
fn a_disk_stands_still_while_its_machine_is_paused() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    lightv_tests::disk::create(&scratch.path("disk"), 8 << 20);
    let (api, process) = start_in(&netns, &scratch, "vm");
    api.put(
        "/network-interfaces/eth0",
        &json!({"iface_id": "eth0", "host_dev_name": "tap0"}),
    );
    let drive = json!({"drive_id": "data", "path_on_host": "disk", "is_root_device": false, "cache_type": "Writeback"});
    api.put("/drives/data", &drive);
    boot(
        &scratch,
        &api,
        "app=server ip=10.0.0.2::10.0.0.1:255.255.255.0::eth0:off -- 7",
    );
    let address = machine::guest_at(2, 80);
    let mut written = 0;
    for round in 0..8 {
        let job = wait_for("more blocks", || {
            let job = disk_job(&netns, address);
            (job.written > written).then_some(job)
        });
        assert_eq!(job.errors, 0, "{job:?}");
        written = job.written;
        api.set_state("Paused");
        let copy = format!("copy{round}");
        fs::copy(scratch.path("disk"), scratch.path(&copy)).expect("a copy");
        std::thread::sleep(Duration::from_millis(30));
        assert!(
            scratch.read("disk") == scratch.read(&copy),
            "the disk changed in a pause"
        );
        assert_eq!(save(&api, "s").status, 204);
        if round < 7 {
            api.set_state("Resumed");
        }
    }
    let _ = process.end();
    let fresh = Netns::with_tap();
    let (api, process) = start_in(&fresh, &scratch, "clone");
    let mut body = load_body("s");
    body["drive_overrides"] = json!([{"drive_id": "data", "path_on_host": "copy7"}]);
    api.put("/snapshot/load", &body);
    let job = wait_for("blocks after the restore", || {
        let job = disk_job(&fresh, address);
        (job.written > written + 50).then_some(job)
    });
    assert_eq!(job.errors, 0, "{job:?}");
    let _ = process.end();
}

/// 52: a pause in the first moments, and a hundred of them.
#[test]
fn a_guest_ticks_on_after_a_hundred_pauses() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &[]);
    boot(&scratch, &api, "app=tick -- 0 5");
    let ticks = |process: &Process| process.stdout().lines().count();
    api.set_state("Paused");
    for _ in 0..100 {
        let before = ticks(&process);
        api.set_state("Resumed");
        wait_for("a tick", || (ticks(&process) > before).then_some(()));
        api.set_state("Paused");
    }
    let _ = process.end();
}

/// 56: no room, a link; the machine can be saved elsewhere.
#[test]
fn a_snapshot_without_room_leaves_nothing_and_can_be_made_elsewhere() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("small")).expect("a folder");
    let netns = Netns::new();
    let mut command = scratch.vmm(&["--api-sock", "vm.sock"]);
    // The mount is of the monitor's own name space: it goes with it.
    let mut command = after_script(
        &["unshare", "--mount"],
        "mount -t tmpfs -o size=2m none small",
        {
            command.current_dir(scratch.folder());
            &command
        },
    );
    let process = netns.start(&mut command);
    let api = Api::at(scratch.path("vm.sock"));
    wait_for("the API", || api.try_call("GET", "/", "").ok());
    boot(&scratch, &api, "app=mem -- 1000s");
    wait_for("memory that is written", || {
        let statm = fs::read_to_string(format!("/proc/{}/statm", process.pid())).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        (pages > 10_000).then_some(())
    });
    api.set_state("Paused");
    let full = json!({"snapshot_path": "small/s", "mem_file_path": "small/m"});
    let refused = api.call("PUT", "/snapshot/create", &full);
    assert!(refused.fault().contains("No space left"), "{refused:?}");
    assert_eq!(api.get("/")["state"], "Paused");
    scratch.write("target", "somebody's");
    for link in ["link", "dangling"] {
        let target = if link == "link" { "target" } else { "nowhere" };
        std::os::unix::fs::symlink(target, scratch.path(link)).expect("a link");
        for body in [
            json!({"snapshot_path": link, "mem_file_path": "m"}),
            json!({"snapshot_path": "s", "mem_file_path": link}),
        ] {
            let refused = api.call("PUT", "/snapshot/create", &body);
            assert!(
                refused.fault().contains("not a regular file"),
                "{refused:?}"
            );
        }
    }
    assert_eq!(scratch.read("target"), b"somebody's");
    assert_eq!(save(&api, "good").status, 204);
    api.set_state("Resumed");
    let _ = process.end();
    let left = tool(&format!(
        "find {} -name .lightv-*",
        scratch.folder().display()
    ));
    assert_eq!(left, "", "{left}");
}

/// 62: signals in every moment of a process that serves.
#[test]
fn a_signal_at_any_moment_ends_a_server_and_takes_its_socket_away() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch.config("vm.json", &machine::config(&scratch.guest_kernel(), "idle"));
    for args in [&[][..], &["--config", &config]] {
        for (signal, code) in [
            (Signal::TERM, 143),
            (Signal::INT, 130),
            (Signal::HUP, 129),
            (Signal::QUIT, 131),
        ] {
            for ms in [0, 2, 5, 20, 100] {
                let args = [&["--api-sock", "vm.sock"], args].concat();
                let process = Process::start(&mut scratch.vmm(&args));
                std::thread::sleep(Duration::from_millis(ms));
                process.signal(signal);
                let finished = process.finish();
                assert_eq!(
                    finished.code, code,
                    "{signal:?} after {ms} ms: {finished:?}"
                );
                assert!(
                    finished.was_killed || !scratch.path("vm.sock").exists(),
                    "{signal:?} after {ms} ms left the socket"
                );
                let _ = fs::remove_file(scratch.path("vm.sock"));
            }
        }
    }
}

/// 53: by default the time that a snapshot lay on disk does not pass for kvm-clock; the wall clock is the control device's. When it
/// does pass, the guest is told that it was stopped, as after a pause.
#[test]
fn a_load_takes_clock_realtime_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &[]);
    boot(&scratch, &api, "app=tick -- 0 5");
    process.wait_stdout(|text| text.contains("tick 1\n").then_some(()));
    api.set_state("Paused");
    assert_eq!(save(&api, "s").status, 204);
    let _ = process.end();
    for realtime in [false, true] {
        let (api, process) = Api::start(&scratch, "clone", &[]);
        let mut body = load_body("s");
        body["clock_realtime"] = json!(realtime);
        let log = scratch.path("strace.log");
        let strace = attached(process.pid(), "ioctl", &log, &[]);
        api.put("/snapshot/load", &body);
        strace.signal(Signal::INT);
        let _ = strace.finish();
        let log = fs::read_to_string(log).expect("a log");
        let told = calls(&log).filter(|(_, _, rest)| rest.contains("KVM_KVMCLOCK_CTRL"));
        assert_eq!(told.count(), usize::from(realtime), "{log}");
        process.wait_stdout(|text| (text.lines().count() > 3).then_some(()));
        let _ = process.end();
    }
}
