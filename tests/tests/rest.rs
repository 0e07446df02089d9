//! The REST API end to end: a guest that is configured, booted, paused, saved and restored by requests alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use lightv_tests::api::Api;
use lightv_tests::host::{binary, has_kvm};
use lightv_tests::process::{Process, run, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Configures `app` of the minimal guest on `api`.
fn configure(scratch: &Scratch, api: &Api, app: &str) {
    api.put(
        "/machine-config",
        &json!({"vcpu_count": 2, "mem_size_mib": 64}),
    );
    let kernel = scratch.guest_kernel();
    let boot = json!({"kernel_image_path": kernel, "boot_args": format!("app={app}")});
    api.put("/boot-source", &boot);
}

/// The last number that a ticking guest has printed; 0 before the first.
fn last_tick(process: &Process) -> u64 {
    let stdout = process.stdout();
    let ticks = stdout.lines().filter_map(|line| line.strip_prefix("tick "));
    ticks
        .filter_map(|number| number.parse().ok())
        .next_back()
        .unwrap_or(0)
}

/// Waits for a tick after `number`.
fn wait_for_tick_after(process: &Process, number: u64) -> u64 {
    wait_for("another tick", || {
        Some(last_tick(process)).filter(|tick| *tick > number)
    })
}

fn save(api: &Api, name: &str) {
    let body =
        json!({"snapshot_path": format!("{name}.state"), "mem_file_path": format!("{name}.mem")});
    api.put("/snapshot/create", &body);
}

fn load_body(name: &str, resume: bool) -> Value {
    let backend = json!({"backend_type": "File", "backend_path": format!("{name}.mem")});
    json!({"snapshot_path": format!("{name}.state"), "mem_backend": backend, "resume_vm": resume})
}

#[test]
fn a_guest_is_booted_paused_saved_and_goes_on_here_and_in_a_clone() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "first", &[]);
    assert_eq!(api.get("/")["state"], "Not started");
    configure(&scratch, &api, "tick -- 0 20");
    api.act("InstanceStart");
    assert_eq!(api.get("/")["state"], "Running");
    wait_for_tick_after(&process, 2);

    api.set_state("Paused");
    api.set_state("Paused");
    assert_eq!(api.get("/")["state"], "Paused");
    let paused_at = last_tick(&process);
    save(&api, "a");
    for file in ["a.state", "a.mem"] {
        let mode = fs::metadata(scratch.path(file))
            .expect(file)
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        last_tick(&process),
        paused_at,
        "a paused guest prints nothing"
    );
    api.set_state("Resumed");
    wait_for_tick_after(&process, paused_at);

    let (clone_api, clone) = Api::start(&scratch, "clone", &[]);
    clone_api.put("/snapshot/load", &load_body("a", false));
    assert_eq!(clone_api.get("/")["state"], "Paused");
    assert_eq!(clone_api.get("/vm/config"), api.get("/vm/config"));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(clone.stdout(), "", "a paused guest prints nothing");
    clone_api.set_state("Resumed");
    let first = wait_for_tick_after(&clone, 0);
    assert!(
        first > paused_at,
        "it goes on where it was saved: {first}, {paused_at}"
    );

    let code = process.end().code;
    assert_eq!(code, 143);
    let _ = clone.end();
    assert!(!scratch.path("first.sock").exists() && !scratch.path("clone.sock").exists());
}

#[test]
fn a_start_that_was_refused_can_be_corrected() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &[]);
    let refused = api.call("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    assert!(refused.fault().contains("without kernel configuration"));
    scratch.write("text", "no kernel at all");
    scratch.write("empty", "");
    for bad in ["text", "empty"] {
        api.put("/boot-source", &json!({"kernel_image_path": bad}));
        let refused = api.call("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
        assert!(
            refused.fault().starts_with("Start microvm error: "),
            "{refused:?}"
        );
        assert!(refused.fault().contains(bad), "{refused:?}");
    }
    for bad in [".", "nowhere"] {
        let refused = api.call("PUT", "/boot-source", &json!({"kernel_image_path": bad}));
        assert!(refused.fault().contains(bad), "{refused:?}");
    }
    configure(&scratch, &api, "exit -- 7");
    api.act("InstanceStart");
    let finished = process.finish();
    assert_eq!(finished.code, 7, "{finished:?}");
    assert!(!scratch.path("vm.sock").exists());
}

#[test]
fn a_machine_of_a_file_is_served_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let kernel = scratch.guest_kernel();
    let config = lightv_tests::machine::config(&kernel, "tick -- 0 20");
    let config = scratch.config("vm.json", &config);
    scratch.write("meta.json", r#"{"a": 1}"#);
    let args = ["--config-file", &config, "--metadata", "meta.json"];
    let (api, process) = Api::start(&scratch, "vm", &args);
    assert_eq!(api.get("/")["state"], "Running");
    assert_eq!(api.get("/")["id"], "vm");
    assert_eq!(api.get("/mmds"), json!({"a": 1}));
    wait_for_tick_after(&process, 1);
    let refused = api.call("PUT", "/boot-source", &json!({"kernel_image_path": kernel}));
    assert!(
        refused.fault().contains("not supported after starting"),
        "{refused:?}"
    );
    assert_eq!(process.end().code, 143);
    assert!(!scratch.path("vm.sock").exists());
}

/// A saved ticking guest: files `a.state` and `a.mem` in `scratch`.
fn saved(scratch: &Scratch) {
    let (api, process) = Api::start(scratch, "source", &[]);
    configure(scratch, &api, "tick -- 0 20");
    api.act("InstanceStart");
    wait_for_tick_after(&process, 1);
    api.set_state("Paused");
    save(&api, "a");
    let _ = process.end();
}

/// Each way in which a snapshot can be bad, and a word of the refusal.
fn bad_snapshots(scratch: &Scratch) -> Vec<(String, &'static str)> {
    let (state, memory) = (scratch.read("a.state"), scratch.read("a.mem"));
    let mut bad = Vec::new();
    let mut add = |name: &str, state: &[u8], memory: &[u8], word| {
        scratch.write(&format!("{name}.state"), state);
        scratch.write(&format!("{name}.mem"), memory);
        bad.push((name.to_owned(), word));
    };
    for length in [0, 1, 8, 100, state.len() / 2, state.len() - 1] {
        add(&format!("short{length}"), &state[..length], &memory, "");
    }
    for place in 0..30 {
        let mut flipped = state.clone();
        let at = place * flipped.len() / 30;
        flipped[at] ^= 0x10;
        add(&format!("flip{place}"), &flipped, &memory, "");
    }
    add("swapped", &memory, &state, "");
    add("less", &state, &memory[..memory.len() - 1], "bytes");
    add("half", &state, &memory[..memory.len() / 2], "bytes");
    add("more", &state, &[&memory[..], &[0; 4096]].concat(), "bytes");
    add("none", &state, &[], "bytes");
    add("other", &state, &vec![1; memory.len()], "does not belong");
    bad
}

#[test]
fn what_cannot_be_loaded_is_refused_and_the_process_can_be_asked_again() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    saved(&scratch);
    let (api, process) = Api::start(&scratch, "vm", &[]);
    for (name, word) in bad_snapshots(&scratch) {
        let refused = api.call("PUT", "/snapshot/load", &load_body(&name, true));
        let fault = refused.fault();
        assert!(
            fault.starts_with("Load snapshot error: ") && fault.contains(word),
            "{name}: {fault}"
        );
    }
    let mut missing = load_body("a", true);
    missing["snapshot_path"] = json!("nowhere");
    assert!(
        api.call("PUT", "/snapshot/load", &missing)
            .fault()
            .contains("nowhere")
    );
    let fifo = scratch.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .expect("a FIFO");
    for field in ["snapshot_path", "mem_file_path"] {
        for bad in ["fifo", "."] {
            let mut body =
                json!({"snapshot_path": "a.state", "mem_file_path": "a.mem", "resume_vm": true});
            body[field] = json!(bad);
            let refused = api.call("PUT", "/snapshot/load", &body);
            assert!(
                refused.fault().contains("not a regular file"),
                "{refused:?}"
            );
        }
    }
    let overrides = json!([{"drive_id": "x", "path_on_host": "a.mem"}]);
    let mut unknown = load_body("a", true);
    unknown["drive_overrides"] = overrides;
    assert!(
        api.call("PUT", "/snapshot/load", &unknown)
            .fault()
            .contains("drive_overrides")
    );
    assert_eq!(process.stdout(), "", "no guest ran");
    assert_eq!(api.get("/")["state"], "Not started");
    assert!(resident_kib(process.pid()) < 64 << 10);

    api.put("/snapshot/load", &load_body("a", true));
    wait_for_tick_after(&process, 1);
    let again = api.call("PUT", "/snapshot/load", &load_body("a", true));
    assert!(
        again.fault().contains("not supported after starting"),
        "{again:?}"
    );
    assert_eq!(process.end().code, 143);
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("a size").parse().expect("a number")
}

#[test]
fn eight_generations_keep_what_each_has_added() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    saved(&scratch);
    let mut config = None;
    let mut tick = 0;
    for generation in 0..8 {
        let (api, process) = Api::start(&scratch, "vm", &[]);
        api.put("/snapshot/load", &load_body("a", true));
        let next = wait_for_tick_after(&process, tick);
        assert!(next > tick, "generation {generation}: {next} after {tick}");
        api.set_state("Paused");
        tick = last_tick(&process);
        // Onto the very files that it was loaded from.
        save(&api, "a");
        let found = api.get("/vm/config");
        assert_eq!(*config.get_or_insert(found.clone()), found);
        let _ = process.end();
    }
    let finished = scratch.run(&["inspect", "a.state", "--json"]).with_code(0);
    let found: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(found["restores"], 8, "{found}");
}

#[test]
fn a_save_that_cannot_be_made_changes_nothing() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("disk", vec![7; 1 << 20]);
    scratch.write("text", "somebody's");
    let (api, process) = Api::start(&scratch, "vm", &[]);
    let drive = json!({"drive_id": "d", "path_on_host": "disk", "is_root_device": false});
    api.put("/drives/d", &drive);
    configure(&scratch, &api, "tick -- 0 20");
    let create = |state: &str, memory: &str| {
        let body = json!({"snapshot_path": state, "mem_file_path": memory});
        api.call("PUT", "/snapshot/create", &body)
    };
    assert!(create("s", "m").fault().contains("before starting"));
    api.act("InstanceStart");
    assert!(
        create("s", "m")
            .fault()
            .contains("unavailable while running")
    );
    api.set_state("Paused");
    for (state, memory, word) in [
        ("s", "s", "same file"),
        ("s", "disk", "disk of the machine"),
        ("disk", "m", "disk of the machine"),
        ("text", "m", "not a LightV image"),
        ("nowhere/s", "m", "nowhere"),
        ("s", "nowhere/m", "nowhere"),
        (".", "m", "no file name"),
        ("s", "tmp", "not a regular file"),
    ] {
        let refused = create(state, memory);
        assert!(
            refused.fault().contains(word),
            "{state} {memory}: {refused:?}"
        );
    }
    assert_eq!(scratch.read("text"), b"somebody's");
    assert_eq!(scratch.read("disk"), vec![7; 1 << 20]);
    let tick = last_tick(&process);
    api.set_state("Resumed");
    wait_for_tick_after(&process, tick);
    let _ = process.end();
}

#[test]
fn a_drive_gets_another_disk_and_a_snapshot_knows_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for (name, mib) in [("old", 1_usize), ("new", 2), ("third", 2)] {
        scratch.write(name, vec![0; mib << 20]);
    }
    let (api, process) = Api::start(&scratch, "vm", &[]);
    let drive = json!({"drive_id": "d", "path_on_host": "old", "is_root_device": false});
    api.put("/drives/d", &drive);
    configure(&scratch, &api, "tick -- 0 20");
    api.act("InstanceStart");
    wait_for_tick_after(&process, 1);
    let patch = |path: &str| json!({"drive_id": "d", "path_on_host": path});
    let refused = api.call("PATCH", "/drives/d", &patch("nowhere"));
    assert!(refused.fault().contains("nowhere"), "{refused:?}");
    let other = json!({"drive_id": "x", "path_on_host": "new"});
    assert!(
        api.call("PATCH", "/drives/x", &other)
            .fault()
            .contains("Device not found")
    );
    api.patch("/drives/d", &patch("new"));
    assert_eq!(api.get("/vm/config")["drives"][0]["path_on_host"], "new");
    let tick = last_tick(&process);
    wait_for_tick_after(&process, tick);
    api.set_state("Paused");
    api.patch("/drives/d", &patch("third"));
    save(&api, "a");
    let _ = process.end();
    for gone in ["old", "new"] {
        fs::remove_file(scratch.path(gone)).expect("a disk");
    }

    let (api, process) = Api::start(&scratch, "clone", &[]);
    let mut smaller = load_body("a", true);
    scratch.write("small", vec![0; 1 << 20]);
    smaller["drive_overrides"] = json!([{"drive_id": "d", "path_on_host": "small"}]);
    let refused = api.call("PUT", "/snapshot/load", &smaller);
    assert!(
        refused.fault().contains("small") || refused.fault().contains('d'),
        "{refused:?}"
    );
    fs::rename(scratch.path("third"), scratch.path("moved")).expect("a disk");
    let refused = api.call("PUT", "/snapshot/load", &load_body("a", true));
    assert!(refused.fault().contains("third"), "{refused:?}");
    let mut moved = load_body("a", true);
    moved["drive_overrides"] = json!([{"drive_id": "d", "path_on_host": "moved"}]);
    api.put("/snapshot/load", &moved);
    assert_eq!(api.get("/vm/config")["drives"][0]["path_on_host"], "moved");
    wait_for_tick_after(&process, tick);
    let _ = process.end();
}

#[test]
fn ctrl_alt_del_ends_a_guest_with_a_keyboard_driver_and_is_refused_without() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "deaf", &[]);
    configure(&scratch, &api, "tick -- 0 20");
    let press = |api: &Api| api.call("PUT", "/actions", &json!({"action_type": "SendCtrlAltDel"}));
    assert!(press(&api).fault().contains("before starting"));
    api.act("InstanceStart");
    wait_for_tick_after(&process, 1);
    assert!(press(&api).fault().contains("keyboard"));
    let _ = process.end();

    let code = lightv_tests::machine::code_that_waits_for_ctrl_alt_del();
    scratch.write("listens", lightv_tests::machine::elf(&code));
    let (api, process) = Api::start(&scratch, "listens", &[]);
    api.put("/boot-source", &json!({"kernel_image_path": "listens"}));
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("listening").then_some(()));
    api.set_state("Paused");
    assert_eq!(press(&api).status, 204);
    api.set_state("Resumed");
    assert_eq!(process.finish().code, 0);
}

#[test]
fn a_program_called_firecracker_takes_its_flags() {
    let scratch = Scratch::new();
    let program = scratch.path("firecracker-v1.17.0");
    fs::copy(binary("lightv-vmm"), &program).expect("a copy");
    let version = run(&mut scratch.command(&program, &["--version"])).with_code(0);
    assert!(
        version.stdout.starts_with("Firecracker v1.17.0\n"),
        "{version:?}"
    );
    let snapshot = run(&mut scratch.command(&program, &["--snapshot-version"])).with_code(0);
    assert_eq!(snapshot.stdout, "v1.0.0\n");
    for bad in [
        &["--no-api"][..],
        &["--http-api-max-payload-size", "0"],
        &["--no-seccomp", "--seccomp-filter", "x"],
        &["--api-sock"],
        &["--nope"],
    ] {
        let _ = run(&mut scratch.command(&program, bad)).with_code(153);
    }
    if !has_kvm() {
        return;
    }
    let args = [
        "--api-sock",
        "fc.sock",
        "--id",
        "x-1",
        "--enable-pci",
        "--start-time-us",
        "1",
    ];
    let process = Process::start(&mut scratch.command(&program, &args));
    let api = Api::at(scratch.path("fc.sock"));
    let info = wait_for("the API", || api.try_call("GET", "/", "").ok()).body;
    assert_eq!(info["app_name"], "Firecracker");
    assert_eq!(info["id"], "x-1");
    let comm = fs::read_to_string(format!("/proc/{}/comm", process.pid())).expect("a process");
    assert!(comm.starts_with("firecracker"), "{comm}");
    assert_eq!(process.end().code, 143);
    assert!(!api.socket().exists());
}

#[test]
fn a_socket_in_use_is_respected_and_a_stale_one_replaced() {
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &[]);
    let second = run(&mut scratch.vmm(&["--api-sock", "vm.sock"]));
    second.assert_refused(1, &["vm.sock", "a process listens on it"]);
    assert_eq!(api.get("/")["id"], "vm");
    process.signal(Signal::KILL);
    let _ = process.finish();
    assert!(api.socket().exists(), "SIGKILL leaves it");
    let (_, process) = Api::start(&scratch, "vm", &[]);
    let _ = process.end();

    scratch.write("file", "content");
    std::os::unix::fs::symlink("file", scratch.path("link")).expect("a link");
    for path in ["file", "link", "nowhere/x.sock"] {
        let refused = run(&mut scratch.vmm(&["--api-sock", path]));
        refused.assert_refused(1, &[path]);
    }
    assert_eq!(scratch.read("file"), b"content");
    for length in [107_usize, 108, 200] {
        let folder = scratch.folder().to_str().expect("text").len();
        let path = scratch.text(&"s".repeat(length - folder - 1));
        assert_eq!(path.len(), length);
        if length > 107 {
            run(&mut scratch.vmm(&["--api-sock", &path])).assert_refused(1, &["1–107"]);
        } else {
            let process = Process::start(&mut scratch.vmm(&["--api-sock", &path]));
            wait_for("the API", || Api::at(&path).try_call("GET", "/", "").ok());
            let _ = process.end();
        }
    }
    scratch.write("bad.json", "{");
    let refused = run(&mut scratch.vmm(&["--api-sock", "vm.sock", "--config", "bad.json"]));
    refused.assert_refused(152, &["bad.json", "line 1"]);
    assert!(
        !scratch.path("vm.sock").exists(),
        "a failed start leaves nothing"
    );
}
