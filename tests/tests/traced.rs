//! A machine in a jail, with all devices at work, under strace: no thread makes a system call that is not in its list.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use lightv_tests::api::Api;
use lightv_tests::disk;
use lightv_tests::host::{has_kvm, pids_of};
use lightv_tests::http::disk_job;
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{DEADLINE, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::strace::{calls, traced};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long it works, in seconds: 3, or what this variable says.
const SECONDS: &str = "LIGHTV_TRACE_SECONDS";
/// The kinds of its threads.
const KINDS: [&str; 4] = ["control", "vcpu", "api", "api-machine"];
/// A port of the guest at which nobody listens.
const NO_PORT: &str = "CONNECT 9\n";

/// The names of the calls in the list of `kind`.
fn list(kind: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/seccomp");
    let text = fs::read_to_string(path.join(format!("{kind}.json"))).expect("the list");
    let list: Value = serde_json::from_str(&text).expect("JSON");
    let rules = list[kind]["filter"].as_array().expect("rules");
    let name = |rule: &Value| rule["syscall"].as_str().expect("a name").to_owned();
    rules.iter().map(name).collect()
}

/// What a thread has done since it was held to its list: each call, and how often.
#[derive(Debug, Default)]
struct Thread {
    name: String,
    is_held: bool,
    calls: BTreeMap<String, u64>,
}

impl Thread {
    fn kind(&self) -> &str {
        // The main thread is vCPU 0 of a machine that flags name.
        match self.name.as_str() {
            "" | "lightv-vmm" => "vcpu",
            name if name.starts_with("vcpu-") => "vcpu",
            name => name,
        }
    }
}

/// The threads in a log of `strace -f`, by their numbers.
fn threads(log: &str) -> BTreeMap<&str, Thread> {
    let mut threads: BTreeMap<&str, Thread> = BTreeMap::new();
    for (number, call, args) in calls(log) {
        let thread = threads.entry(number).or_default();
        if let Some(name) = args.strip_prefix("PR_SET_NAME, \"") {
            thread.name = name.split('"').next().unwrap_or_default().to_owned();
        }
        if thread.is_held {
            *thread.calls.entry(call.to_owned()).or_default() += 1;
        }
        thread.is_held |= call == "seccomp" && args.starts_with("SECCOMP_SET_MODE_FILTER");
    }
    threads
}

/// What a client does in a round: all of it is answered well.
fn round(scratch: &Scratch, api: &Api) {
    api.patch(
        "/drives/d",
        &json!({"drive_id": "d", "path_on_host": "disk"}),
    );
    api.patch("/balloon", &json!({"amount_mib": 8}));
    for path in ["/", "/vm/config", "/balloon/statistics", "/metrics"] {
        assert_eq!(api.call("GET", path, &Value::Null).status, 200, "{path}");
    }
    api.act("FlushMetrics");
    let socket = scratch.path("work/v.sock");
    let mut stream = UnixStream::connect(socket).expect("the socket of vsock");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a time limit");
    stream.write_all(NO_PORT.as_bytes()).expect("a line");
    // Nobody listens: the stream ends.
    let mut answer = String::new();
    let _ = BufReader::new(&stream).read_line(&mut answer);
    assert_eq!(answer, "");
    api.set_state("Paused");
    let files = json!({"snapshot_path": "work/state", "mem_file_path": "work/memory"});
    api.put("/snapshot/create", &files);
    api.set_state("Resumed");
    api.patch("/balloon", &json!({"amount_mib": 0}));
}

fn config(scratch: &Scratch) -> String {
    let app = "server ip=10.0.0.2::10.0.0.1:255.255.255.0::eth0:off";
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), app),
        &json!({
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
            "drives": [{"drive_id": "d", "path_on_host": "disk", "is_root_device": false, "cache_type": "Writeback"}],
            "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0"}],
            "vsock": {"guest_cid": 5, "uds_path": "work/v.sock"},
            "balloon": {"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1},
            "entropy": {},
        }),
    );
    scratch.config("vm.json", &config)
}

#[test]
fn a_jailed_machine_makes_no_call_outside_its_lists() {
    if !has_kvm() {
        return;
    }
    let seconds = env::var(SECONDS).map_or(3, |text| text.parse().expect("a number of seconds"));
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    fs::create_dir(scratch.path("work")).expect("a folder");
    disk::create(&scratch.path("disk"), 4 << 20);
    let (config, path) = (config(&scratch), netns.path());
    let jail = ["--jail", "--jail-netns", &path, "--jail-rw", "work"];
    let files = ["--api-sock", "vm.sock", "--metrics-path", "work/metrics"];
    let command = scratch.vmm(&[&["--config", &config], &jail[..], &files[..]].concat());
    let log = scratch.path("trace");
    let mut process = netns.start(&mut traced(&command, "all", &log, &[]));
    let api = Api::at(scratch.path("vm.sock"));
    wait_for("the API", || {
        assert!(process.is_alive(), "{}", process.stderr());
        api.try_call("GET", "/", "").ok()
    });
    let address = machine::guest_at(2, 80);
    let (began, mut rounds) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        let before = disk_job(&netns, address).written;
        round(&scratch, &api);
        wait_for("more blocks", || {
            let job = disk_job(&netns, address);
            assert_eq!(job.errors, 0, "{job:?}");
            (job.written > before).then_some(())
        });
        rounds += 1;
    }
    // strace itself takes no notice of a signal.
    for pid in pids_of("lightv-vmm", scratch.folder()) {
        let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
        // The machine may be gone with its keeper.
        let _ = kill_process(pid, Signal::TERM);
    }
    let finished = process.finish();
    let log = fs::read_to_string(&log).expect("strace's log");
    assert!(!log.contains("--- SIGSYS"), "{finished:?}");
    let threads = threads(&log);
    let held: Vec<_> = threads.values().filter(|thread| thread.is_held).collect();
    let calls: u64 = held.iter().flat_map(|thread| thread.calls.values()).sum();
    println!("{rounds} rounds, {calls} calls of {} threads", held.len());
    for thread in &held {
        let kind = thread.kind();
        println!("{}: {:?}", thread.name, thread.calls);
        let allowed = list(kind);
        let outside = thread.calls.keys().find(|call| !allowed.contains(*call));
        assert_eq!(outside, None, "{}: {finished:?}", thread.name);
    }
    let kinds: BTreeSet<&str> = held.iter().map(|thread| thread.kind()).collect();
    assert_eq!(kinds, KINDS.into(), "{finished:?}");
    assert!(rounds > 0 && held.len() == 5, "{threads:?}");
}
