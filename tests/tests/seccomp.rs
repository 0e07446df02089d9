//! What a monitor may do: the system calls and files that its threads are held to.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use lightv_api::exit::{BAD_ARGUMENTS, BAD_CONFIG, FORBIDDEN_CALL, OK};
use lightv_tests::api::Api;
use lightv_tests::host::{binary, has_kvm};
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Finished, Process, after_script, run, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Name and `Seccomp:` of each thread of a process (proc_pid_status(5)): 0 is none, 2 a filter. KVM's own threads, which run
/// nothing of ours, are left out.
fn modes(pid: u32) -> Vec<(String, u32)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let texts = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a field").trim().to_owned()
    };
    let mut found: Vec<_> = texts
        .map(|text| {
            let mode = field(&text, "Seccomp:").parse().expect("a number");
            (field(&text, "Name:"), mode)
        })
        .filter(|(name, _)| !name.starts_with("kvm-"))
        .collect();
    found.sort();
    found
}

/// Looks whether all threads have this mode, and are `names`. One that has ended may be listed for some moments.
#[track_caller]
fn assert_modes(process: &Process, names: &[&str], mode: u32) {
    wait_for("the threads", || {
        let found = modes(process.pid());
        let is_right = found.iter().all(|(_, found)| *found == mode);
        assert!(is_right, "{found:?}");
        let found = found.iter().map(|(name, _)| name.as_str());
        found.eq(names.iter().copied()).then_some(())
    });
}

/// The list of `kind` as a file in `scratch`, without the rules for `call` that `is_taken` is true of.
fn list_without(scratch: &Scratch, kind: &str, is_taken: impl Fn(&Value) -> bool) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/seccomp");
    let text = fs::read_to_string(path.join(format!("{kind}.json"))).expect("the list");
    let mut list: Value = serde_json::from_str(&text).expect("JSON");
    let rules = list[kind]["filter"].as_array_mut().expect("rules");
    let before = rules.len();
    rules.retain(|rule| !is_taken(rule));
    assert!(rules.len() < before, "{kind} has no such rule");
    scratch.write("filter.json", list.to_string());
    "filter.json".to_owned()
}

fn tick(scratch: &Scratch, vcpus: u64) -> String {
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "tick -- 0 20"),
        &json!({"machine-config": {"vcpu_count": vcpus, "mem_size_mib": 64}}),
    );
    scratch.config("tick.json", &config)
}

fn wait_for_tick(process: &Process) {
    let seen = process.stdout().lines().count();
    process.wait_stdout(|text| (text.lines().count() > seen).then_some(()));
}

fn boot(scratch: &Scratch, api: &Api, app: &str) {
    let kernel = scratch.guest_kernel();
    let boot = json!({"kernel_image_path": kernel, "boot_args": format!("app={app}")});
    api.put("/boot-source", &boot);
}

#[test]
fn every_thread_has_a_filter_before_the_guests_first_byte_and_the_apis_first_answer() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = tick(&scratch, 2);
    let process = Process::start(&mut scratch.vmm(&["--config", &config]));
    process.wait_stdout(|text| text.contains("tick").then_some(()));
    assert_modes(&process, &["control", "lightv-vmm", "vcpu-1"], 2);
    assert_eq!(process.end().code, 143);

    let image = scratch.build("idle", &["--vcpus", "2"]);
    let process = Process::start(&mut scratch.lightv(&["run", &image]));
    wait_for("a restored machine", || {
        (modes(process.pid()).len() == 3).then_some(())
    });
    wait_for("its filters", || {
        let found = modes(process.pid());
        found.iter().all(|(_, mode)| *mode == 2).then_some(())
    });
    assert_eq!(process.end().code, 143);

    let (api, process) = Api::start(&scratch, "vm", &[]);
    let names = ["api", "control", "lightv-vmm", "starter"];
    assert_modes(&process, &names, 2);
    boot(&scratch, &api, "tick -- 0 20");
    api.put(
        "/machine-config",
        &json!({"vcpu_count": 3, "mem_size_mib": 64}),
    );
    api.act("InstanceStart");
    // The thread that could start programs is gone.
    let names = ["api", "control", "lightv-vmm", "vcpu-0", "vcpu-1", "vcpu-2"];
    assert_modes(&process, &names, 2);
    let _ = process.end();

    let (_api, process) = Api::start(&scratch, "vm", &["--config", &config]);
    let names = ["api", "api-machine", "control", "lightv-vmm", "vcpu-1"];
    assert_modes(&process, &names, 2);
    let _ = process.end();
}

#[test]
fn there_are_no_filters_where_none_are_wanted() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = tick(&scratch, 1);
    let process = Process::start(&mut scratch.vmm(&["--config", &config, "--no-seccomp"]));
    wait_for_tick(&process);
    assert_modes(&process, &["control", "lightv-vmm"], 0);
    let _ = process.end();
    let image = scratch.build("hello-world", &[]);
    let finished = scratch.run(&["run", "--no-seccomp", &image]).with_code(OK);
    assert!(finished.stdout.contains("Hello"), "{finished:?}");
    let (_api, process) = Api::start(&scratch, "vm", &["--no-seccomp"]);
    assert_modes(&process, &["api", "control", "lightv-vmm", "starter"], 0);
    let _ = process.end();
}

/// The line on standard error.
fn line_of(thread: &str, call: &str) -> String {
    format!("lightv-vmm: thread '{thread}' made the system call {call}")
}

#[test]
fn a_forbidden_call_ends_the_process_with_a_line_that_names_thread_and_call() {
    if !has_kvm() {
        return;
    }
    let named = |name: &'static str| move |rule: &Value| rule["syscall"] == name;
    let run_kvm = |rule: &Value| rule["args"][0]["comment"] == "KVM_RUN";
    let irqchip = |rule: &Value| rule["args"][0]["comment"] == "KVM_CREATE_IRQCHIP";
    type IsTaken<'a> = &'a dyn Fn(&Value) -> bool;
    let cases: [(&str, IsTaken<'_>, &str, &str); 4] = [
        (
            "vcpu",
            &run_kvm,
            "vcpu-0",
            "ioctl (16; second argument 0xae80)",
        ),
        (
            "control",
            &named("epoll_wait"),
            "control",
            "epoll_wait (232;",
        ),
        ("api", &named("accept4"), "api", "accept4 (288;"),
        (
            "api-machine",
            &irqchip,
            "api-machine",
            "ioctl (16; second argument 0xae60)",
        ),
    ];
    for (kind, is_taken, thread, call) in cases {
        let scratch = Scratch::new();
        let filter = list_without(&scratch, kind, is_taken);
        let args = ["--api-sock", "vm.sock", "--seccomp-filter", &filter];
        let outputs = ["--metrics-path", "metrics", "--log-path", "log"];
        let process = Process::start(&mut scratch.vmm(&[&args[..], &outputs].concat()));
        let api = Api::at(scratch.path("vm.sock"));
        // The loop waits before there is a machine, the server for its first client; the others start a machine.
        if matches!(kind, "api" | "vcpu" | "api-machine") {
            // The file is there before somebody listens.
            wait_for("the socket", || {
                UnixStream::connect(scratch.path("vm.sock")).ok()
            });
        }
        if matches!(kind, "vcpu" | "api-machine") {
            wait_for("the API", || api.try_call("GET", "/", "").ok());
            boot(&scratch, &api, "tick -- 0 20");
            // Its answer may come before the end or not.
            let _ = api.try_call("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
        } else {
            let _ = api.try_call("GET", "/", "");
        }
        let finished = process.finish().with_code(FORBIDDEN_CALL);
        let line = line_of(thread, call);
        assert!(finished.stderr.contains(&line), "{kind}: {finished:#?}");
        assert!(finished.stderr.contains("status 148"), "{finished:#?}");
        // The loop tidies up after the others, and cannot after itself.
        if kind != "control" {
            assert!(!scratch.path("vm.sock").exists(), "{kind}");
            let left = fs::read_dir(scratch.path("run")).expect("a folder").count();
            assert_eq!(left, 0, "{kind}: the runtime directory");
            let metrics = String::from_utf8(scratch.read("metrics")).expect("text");
            assert!(
                metrics.contains(r#""seccomp":{"num_faults":1}"#),
                "{metrics}"
            );
            let log = String::from_utf8(scratch.read("log")).expect("text");
            assert!(log.contains(call), "{kind}: {log}");
        }
    }
}

#[test]
fn a_run_whose_vcpu_may_not_run_ends_alike() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = tick(&scratch, 1);
    let filter = list_without(&scratch, "vcpu", |rule| rule["syscall"] == "ioctl");
    let args = ["--config", &config, "--seccomp-filter", &filter];
    let finished = run(&mut scratch.vmm(&args));
    finished.assert_refused(
        FORBIDDEN_CALL,
        &["thread 'vcpu-0'", "ioctl (16; second argument 0xae80)"],
    );
}

#[test]
fn signals_of_others_are_no_forbidden_calls() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = tick(&scratch, 1);
    let process = Process::start(&mut scratch.vmm(&["--config", &config]));
    wait_for_tick(&process);
    let pid = Pid::from_raw(process.pid().cast_signed()).expect("a pid");
    kill_process(pid, Signal::SYS).expect("our child");
    // By which a thread tells the loop: SIGRTMIN + 2.
    lightv_tests::process::tool(&format!("kill -36 {}", process.pid()));
    wait_for_tick(&process);
    wait_for_tick(&process);
    let finished = process.end();
    assert_eq!((finished.code, finished.stderr.as_str()), (143, ""));
}

#[test]
fn files_that_hold_no_filters_are_refused_by_name() {
    let scratch = Scratch::new();
    let rule = |text: &str| {
        format!(
            r#"{{"vcpu": {{"mismatch_action": "trap", "match_action": "allow", "filter": [{text}]}}}}"#
        )
    };
    fs::create_dir(scratch.path("folder")).expect("a folder");
    let bad = [
        ("empty", String::new()),
        ("text", "no JSON".to_owned()),
        // Firecracker's compiled form begins with the number of threads.
        ("binary", "\u{3}\0\0\0\0\0\0\0\u{4}vcpu".to_owned()),
        ("none", "{}".to_owned()),
        ("thread", rule("").replace("vcpu", "vmm")),
        ("action", rule("").replace("trap", "allow")),
        ("call", rule(r#"{"syscall": "opennat"}"#)),
        ("field", rule(r#"{"syscall": "read", "arg": []}"#)),
        ("index", rule(r#"{"syscall": "read", "args": [{"index": 6, "type": "dword", "op": "eq", "val": 0}]}"#)),
        ("long", rule(&vec![r#"{"syscall": "read", "args": [{"index": 0, "type": "dword", "op": "eq", "val": 0}]}"#; 2000].join(","))),
        ("large", " ".repeat(2 << 20)),
    ];
    for (name, text) in &bad {
        scratch.write(name, text);
    }
    let config = scratch.config("vm.json", &json!({}));
    let before = scratch.listing();
    let names = bad
        .iter()
        .map(|(name, _)| *name)
        .chain(["folder", "nowhere"]);
    for name in names {
        let args = ["--config", &config, "--seccomp-filter", name];
        let finished = run(&mut scratch.vmm(&args));
        finished.assert_refused(BAD_CONFIG, &[name]);
    }
    let unknown = run(&mut scratch.vmm(&["--config", &config, "--seccomp-filter", "thread"]));
    unknown.assert_refused(BAD_CONFIG, &["`vmm`", "vcpu, control, api"]);
    let both = [
        "--config",
        &config,
        "--no-seccomp",
        "--seccomp-filter",
        "call",
    ];
    let _ = run(&mut scratch.vmm(&both)).with_code(BAD_ARGUMENTS);
    scratch.assert_nothing_left(&before);
}

/// A name space whose default route leads nowhere: passt wants one.
fn with_route() -> Netns {
    let netns = Netns::with_tap();
    netns.ip("link set lo up");
    netns.ip("route add default via 10.0.0.254");
    netns
}

#[test]
fn networks_in_user_space_come_by_the_api_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = with_route();
    let process = netns.start(&mut scratch.vmm(&["--api-sock", "vm.sock"]));
    let api = Api::at(scratch.path("vm.sock"));
    wait_for("the API", || api.try_call("GET", "/", "").ok());
    boot(&scratch, &api, "tick -- 0 20");
    api.put(
        "/network-interfaces/eth0",
        &json!({"iface_id": "eth0", "user": {}}),
    );
    api.act("InstanceStart");
    wait_for_tick(&process);
    let passt = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("its threads");
        let lists = tasks.flatten().map(|task| task.path().join("children"));
        let all: String = lists
            .map(|list| fs::read_to_string(list).unwrap_or_default())
            .collect();
        all.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let found = passt();
    assert_eq!(found.len(), 1, "one child");
    let comm = fs::read_to_string(format!("/proc/{}/comm", found[0])).expect("a process");
    assert!(comm.starts_with("passt"), "{comm}");
    let finished = process.end();
    assert_eq!((finished.code, finished.stderr.as_str()), (143, ""));
    wait_for("the end of passt", || {
        (!Path::new(&format!("/proc/{}", found[0])).exists()).then_some(())
    });
}

/// 68: what is done rarely, in one process, with filters as they are.
#[test]
fn no_rare_way_through_the_monitor_is_forbidden() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    for (name, mib) in [("a", 4), ("b", 8), ("base", 4)] {
        lightv_tests::disk::create(&scratch.path(name), mib << 20);
    }
    for (number, level) in ["Off", "Trace", "Debug", "Info", "Warning", "Error"]
        .iter()
        .enumerate()
    {
        let log = format!("log{number}");
        let mut command = scratch.vmm(&["--api-sock", "vm.sock", "--metrics-path", "metrics"]);
        command.args(["--log-path", &log, "--level", level]);
        command.args(["--show-level", "--show-log-origin", "--boot-timer"]);
        match number {
            0 => command.env_remove("TZ"),
            1 => command.env("TZ", "Europe/Berlin"),
            _ => command.env("TZ", ":/nowhere"),
        };
        let process = netns.start(&mut command);
        let api = Api::at(scratch.path("vm.sock"));
        wait_for("the API", || api.try_call("GET", "/", "").ok());
        // More than lies below the hole, and as many vCPUs as there can be, in one of them.
        let (vcpus, mib) = if number == 1 { (32, 4097) } else { (2, 128) };
        configure_all(&scratch, &api, (vcpus, mib));
        api.act("InstanceStart");
        process.wait_stdout(|text| text.contains("tick").then_some(()));
        change_all(&api);
        save_all(&scratch, &api, number == 1);
        ask_badly(&api);
        wait_for_tick(&process);
        let finished = process.end();
        assert_eq!(finished.code, 143, "{level}: {finished:#?}");
        assert!(
            !finished.stderr.contains("made the system call"),
            "{finished:#?}"
        );
    }
}

fn configure_all(scratch: &Scratch, api: &Api, (vcpus, mib): (u64, u64)) {
    let machine = json!({"vcpu_count": vcpus, "mem_size_mib": mib, "track_dirty_pages": true});
    api.put("/machine-config", &machine);
    boot(scratch, api, "tick -- 0 20");
    for (id, path, engine) in [("a", "a", "Sync"), ("b", "b", "Async")] {
        let limiter = json!({"bandwidth": {"size": 1_000_000, "refill_time": 100}});
        let drive = json!({"drive_id": id, "path_on_host": path, "is_root_device": false,
            "io_engine": engine, "cache_type": "Writeback", "rate_limiter": limiter});
        api.put(&format!("/drives/{id}"), &drive);
    }
    let overlay =
        json!({"drive_id": "o", "path_on_host": "base", "is_root_device": false, "overlay": {}});
    api.put("/drives/o", &overlay);
    api.put(
        "/network-interfaces/eth0",
        &json!({"iface_id": "eth0", "host_dev_name": "tap0"}),
    );
    let mmds = json!({"network_interfaces": ["eth0"], "version": "V2"});
    api.put("/mmds/config", &mmds);
    api.put("/mmds", &json!({"a": {"b": 1}}));
    api.put("/vsock", &json!({"guest_cid": 3, "uds_path": "v.sock"}));
    let balloon = json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1});
    api.put("/balloon", &balloon);
    api.put("/entropy", &json!({}));
    api.put("/serial", &json!({"serial_out_path": "serial"}));
}

fn change_all(api: &Api) {
    api.patch("/drives/a", &json!({"drive_id": "a", "path_on_host": "a"}));
    for size in [1, 1_000_000] {
        let limiter = json!({"bandwidth": {"size": size, "refill_time": 100}});
        api.patch(
            "/drives/b",
            &json!({"drive_id": "b", "rate_limiter": limiter}),
        );
        let net =
            json!({"iface_id": "eth0", "rx_rate_limiter": limiter, "tx_rate_limiter": limiter});
        api.patch("/network-interfaces/eth0", &net);
    }
    api.patch("/balloon", &json!({"amount_mib": 16}));
    api.patch(
        "/balloon/statistics",
        &json!({"stats_polling_interval_s": 2}),
    );
    api.patch("/mmds", &json!({"a": {"b": 2}}));
    api.act("FlushMetrics");
    for path in [
        "/",
        "/version",
        "/vm/config",
        "/machine-config",
        "/balloon",
        "/mmds",
        "/metrics",
    ] {
        let answer = api.call("GET", path, &Value::Null);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
}

fn save_all(scratch: &Scratch, api: &Api, is_large: bool) {
    api.set_state("Paused");
    let kinds: &[&str] = if is_large {
        &["Full", "Diff"]
    } else {
        &["Full", "Diff", "Full"]
    };
    for (number, kind) in kinds.iter().enumerate() {
        let body = json!({"snapshot_path": format!("s{number}"), "mem_file_path": format!("m{number}"),
            "snapshot_type": kind});
        api.put("/snapshot/create", &body);
    }
    for (state, memory) in [("s", "/dev/full"), ("nowhere/s", "m"), ("s", ".")] {
        let body = json!({"snapshot_path": state, "mem_file_path": memory});
        assert_eq!(api.call("PUT", "/snapshot/create", &body).status, 400);
    }
    assert!(scratch.path("s0").exists() && scratch.path("m1").exists());
    api.set_state("Resumed");
}

fn ask_badly(api: &Api) {
    for (method, path, body) in [
        ("GET", "/nowhere", ""),
        ("PUT", "/actions", "{"),
        ("PUT", "/drives/x", r#"{"drive_id": "x"}"#),
        (
            "PATCH",
            "/drives/a",
            r#"{"drive_id": "a", "path_on_host": "/nowhere"}"#,
        ),
        (
            "PATCH",
            "/drives/a",
            r#"{"drive_id": "a", "path_on_host": "/dev/zero"}"#,
        ),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "a", "mem_file_path": "b"}"#,
        ),
        ("PUT", "/logger", r#"{"log_path": "/nowhere/log"}"#),
        ("PUT", "/metrics", r#"{"metrics_path": "/nowhere/m"}"#),
        ("PATCH", "/balloon", r#"{"amount_mib": 1000000}"#),
        ("DELETE", "/", ""),
    ] {
        let answer = api.try_call(method, path, body).expect("an answer");
        assert!(answer.status >= 400, "{method} {path} {body}: {answer:?}");
    }
}

#[test]
fn paths_that_were_not_given_cannot_be_opened() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for folder in ["mine", "other"] {
        fs::create_dir(scratch.path(folder)).expect("a folder");
        lightv_tests::disk::create(&scratch.path(&format!("{folder}/disk")), 1 << 20);
    }
    let kernel = scratch.guest_kernel();
    let rules = [
        "--landlock-rules".to_owned(),
        "path=mine,access=rw".to_owned(),
        "--landlock-rules".to_owned(),
        format!("path={kernel},access=r"),
    ];
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let (api, process) = Api::start(&scratch, "vm", &rules);
    boot(&scratch, &api, "tick -- 0 20");
    let drive =
        |path: &str| json!({"drive_id": "d", "path_on_host": path, "is_root_device": false});
    api.put("/drives/d", &drive("mine/disk"));
    api.act("InstanceStart");
    wait_for_tick(&process);
    let other = json!({"drive_id": "d", "path_on_host": "other/disk"});
    let refused = api.call("PATCH", "/drives/d", &other);
    assert!(refused.fault().contains("Permission denied"), "{refused:?}");
    api.set_state("Paused");
    let save = |folder: &str| {
        let body =
            json!({"snapshot_path": format!("{folder}/s"), "mem_file_path": format!("{folder}/m")});
        api.call("PUT", "/snapshot/create", &body)
    };
    assert!(save("other").fault().contains("Permission denied"));
    assert_eq!(save("mine").status, 204);
    api.set_state("Resumed");
    wait_for_tick(&process);
    let finished = process.end();
    assert_eq!(finished.code, 143, "{finished:?}");
    assert!(!scratch.path("vm.sock").exists());
    assert!(scratch.path("mine/s").exists() && !scratch.path("other/s").exists());
    for bad in ["mine", "path=,access=r", "path=mine", "path=mine,access=x"] {
        let args = ["--api-sock", "x.sock", "--landlock-rules", bad];
        let _ = run(&mut scratch.vmm(&args)).with_code(BAD_ARGUMENTS);
    }
    let args = [
        "--api-sock",
        "x.sock",
        "--landlock-rules",
        "path=nowhere,access=r",
    ];
    run(&mut scratch.vmm(&args)).assert_refused(BAD_CONFIG, &["nowhere"]);
}

const NOBODY: [&str; 6] = [
    "setpriv",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
];

/// Devices that everybody may use, in a mount name space of its own.
const OPEN_DEVICES: &str = "mount -t tmpfs -o mode=755 tmpfs /dev
mknod -m 666 /dev/kvm c 10 232; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9";

/// What `/proc` says of a process that is not dumpable is root's, whoever runs it.
#[test]
fn a_users_monitor_saves_and_tells_him_less_than_root() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = machine::config("kernel", "tick -- 0 20");
    scratch.write("vm.json", config.to_string());
    fs::copy(scratch.guest_kernel(), scratch.path("kernel")).expect("a copy");
    for program in ["lightv", "lightv-vmm"] {
        fs::copy(binary(program), scratch.path(program)).expect("a copy");
    }
    fs::create_dir(scratch.path("out")).expect("a folder");
    let open = |name: &str, mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(scratch.path(name), mode).expect("our file");
    };
    open("", 0o755);
    open("out", 0o777);
    for file in ["kernel", "vm.json"] {
        open(file, 0o644);
    }
    let vmm = scratch.text("lightv-vmm");
    let save = [
        "--save",
        "out/x.lv",
        "--save-at",
        "signal",
        "--after-save",
        "continue",
    ];
    let args = [&NOBODY[1..], &[&vmm, "--config", "vm.json"], &save].concat();
    let as_nobody = scratch.command(NOBODY[0], &args);
    let private = ["unshare", "--mount", "--propagation", "private"];
    let process = Process::start(&mut after_script(&private, OPEN_DEVICES, &as_nobody));
    wait_for_tick(&process);
    process.signal(Signal::USR1);
    wait_for("the image", || {
        scratch.path("out/x.lv").exists().then_some(())
    });
    wait_for_tick(&process);

    let pid = process.pid().to_string();
    let lightv = scratch.text("lightv");
    let inspect = [lightv.as_str(), "inspect", "--pid", &pid, "--json"];
    let json = |finished: Finished| -> Value {
        serde_json::from_str(&finished.with_code(OK).stdout).expect("JSON")
    };
    let by_root = json(run(&mut scratch.command(inspect[0], &inspect[1..])));
    assert!(by_root["own_pss_kib"].as_u64() > Some(0), "{by_root}");
    assert!(by_root["open_files"].is_array(), "{by_root}");
    let args = [&NOBODY[1..], &inspect].concat();
    let by_nobody = json(run(&mut scratch.command(NOBODY[0], &args)));
    assert!(by_nobody["resident_kib"].as_u64() > Some(0), "{by_nobody}");
    assert_eq!(by_nobody["threads"], by_root["threads"]);
    assert!(by_nobody.get("own_pss_kib").is_none(), "{by_nobody}");
    assert!(by_nobody.get("open_files").is_none(), "{by_nobody}");
    assert_eq!(process.end().code, 143);
}
