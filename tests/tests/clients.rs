//! Public clients of Firecracker, as they are published, against LightV's socket (tests/clients).

use std::env;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use lightv_tests::api::Api;
use lightv_tests::host::{binary, has_kvm};
use lightv_tests::process::{Finished, Process};
use lightv_tests::scratch::Scratch;
use serde_json::Value;

/// What a build of clients takes here at most, and a client.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a machine is asked for at most.
const LIFE_MAX: Duration = Duration::from_secs(1200);

fn folder(variable: &str) -> PathBuf {
    let folder = env::var_os(variable);
    folder
        .unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask clients`"))
        .into()
}

/// LightV under the name that clients look for.
fn firecracker(scratch: &Scratch) -> String {
    fs::copy(binary("lightv-vmm"), scratch.path("firecracker")).expect("a copy");
    scratch.text("firecracker")
}

fn finish(command: &mut Command) -> Finished {
    Process::start(command)
        .with_deadline(PATIENCE)
        .finish()
        .with_code(0)
}

/// Runs a Rust client with LightV and a guest; it must say all of `words`.
fn rust(name: &str, words: &[&str]) {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let args = [firecracker(&scratch), scratch.guest_kernel()];
    let mut command = scratch.command(folder("LIGHTV_CLIENTS").join(name), &[&args[0], &args[1]]);
    let finished = finish(&mut command);
    for word in words {
        assert!(finished.stdout.contains(word), "{word}: {finished:#?}");
    }
}

#[test]
fn fc_sdk_decodes_every_answer_and_restores_what_it_saved() {
    rust(
        "fc_sdk",
        &[
            "version 1.17.0\n",
            "drives 1\n",
            "memory 64\n",
            "refused true\n",
            "restored Running\n",
            "done\n",
        ],
    );
}

#[test]
fn firecracker_rs_sdk_is_answered_over_http_1_0() {
    rust(
        "rs_sdk",
        &[
            "version 1.17.0\n",
            "memory 64\n",
            "state Running\n",
            "restored Running\n",
            "done\n",
        ],
    );
}

#[test]
fn fctools_leads_a_machine_through_its_life() {
    rust(
        "fctools_vm",
        &[
            "booted Running\n",
            "version 1.17.0\n",
            "memory 64\n",
            "paused Paused\n",
            "restored, stands still: false\n",
            "resumed, stands still: false\n",
            "from a file, stands still: false\n",
            "done\n",
        ],
    );
}

#[test]
fn fctools_leads_jailed_machines_through_their_lives() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    std::os::unix::fs::symlink(binary("lightv-vmm"), scratch.path("jailer")).expect("a link");
    let (program, kernel) = (firecracker(&scratch), scratch.guest_kernel());
    let client = folder("LIGHTV_CLIENTS").join("fctools_jail");
    let args = [&program, &scratch.text("jailer"), &kernel];
    let mut command = scratch.command(client, &args.map(String::as_str));
    let finished = finish(&mut command);
    for word in [
        "attached: user 1234, Running\n",
        "saved\n",
        "restored apart: user 1234, stands still: false\n",
        "daemon: user 1234, Running\n",
        "jails left: 0\n",
        "done\n",
    ] {
        assert!(finished.stdout.contains(word), "{word}: {finished:#?}");
    }
}

#[test]
fn fctools_decodes_the_lines_of_metrics() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = lightv_tests::machine::config(&scratch.guest_kernel(), "tick -- 0 20");
    let config = scratch.config("vm.json", &config);
    let (api, process) = Api::start(
        &scratch,
        "vm",
        &["--config", &config, "--metrics-path", "metrics"],
    );
    process.wait_stdout(|text| text.contains("tick 2").then_some(()));
    api.act("FlushMetrics");
    let _ = process.end();
    let program = folder("LIGHTV_CLIENTS").join("fctools_metrics");
    let finished = finish(&mut scratch.command(program, &["metrics"]));
    assert!(finished.stdout.ends_with("done\n"), "{finished:?}");
    assert_eq!(
        finished.stdout.lines().count(),
        3,
        "two lines: {finished:?}"
    );
}

#[test]
fn the_rest_layer_of_hysn_firecracker_python_works() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python/hysn.py");
    let args = [script, &firecracker(&scratch), &scratch.guest_kernel()];
    let finished =
        finish(&mut scratch.command(folder("LIGHTV_CLIENTS_PYTHON").join("python"), &args));
    for word in [
        "version 1.17.0\n",
        "mmds x\n",
        "not supported before starting",
        "restored Running\n",
        "done\n",
    ] {
        assert!(finished.stdout.contains(word), "{word}: {finished:#?}");
    }
}

/// Takes connections over TCP to the socket: schemathesis speaks to no other.
fn forward(api: &Api) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let socket = api.socket().to_owned();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&socket) else {
                return;
            };
            let (mut from_client, mut to_client) = (client.try_clone().expect("a socket"), client);
            let (mut from_server, mut to_server) = (server.try_clone().expect("a socket"), server);
            thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(std::net::Shutdown::Write);
            });
            thread::spawn(move || {
                let _ = std::io::copy(&mut from_server, &mut to_client);
                let _ = to_client.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}

fn count(pid: u32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{what}"))
        .expect("a process")
        .count()
}

/// What process `pid` has open, and its threads, by name.
fn held(pid: u32) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let files = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .map(|target| target.display().to_string());
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let threads = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
    files.chain(threads).collect()
}

/// Seconds of schemathesis on a machine that is, or is not, started: `LIGHTV_SCHEMATHESIS_SECONDS` each, or 20.
fn check_schema(args: &[&str]) {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", args);
    // It lives as long as the requests come.
    let mut process = process.with_deadline(LIFE_MAX);
    // The first requests make what stays: pages, the answerer's buffers.
    let _ = api.get("/vm/config");
    let before = [count(process.pid(), "fd"), count(process.pid(), "task")];
    let seconds = env::var("LIGHTV_SCHEMATHESIS_SECONDS").unwrap_or_else(|_| "20".to_owned());
    let url = format!("http://127.0.0.1:{}", forward(&api));
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let mut command = scratch.command(
        folder("LIGHTV_CLIENTS_PYTHON").join("python"),
        &[
            "-m",
            "schemathesis.cli",
            "run",
            document,
            "--url",
            &url,
            "--max-time",
            &seconds,
            "--checks",
            checks,
            // It has no end: tests/tests/events.rs.
            "--exclude-path",
            "/events",
        ],
    );
    let patience = Duration::from_secs(seconds.parse::<u64>().expect("a number") + 120);
    let finished = Process::start(&mut command)
        .with_deadline(patience)
        .finish();
    assert_eq!(finished.code, 0, "{}", finished.stdout);
    println!(
        "{}",
        finished
            .stdout
            .lines()
            .rev()
            .take(8)
            .collect::<Vec<_>>()
            .join("\n")
    );
    assert!(process.is_alive(), "{:?}", process.stderr());
    assert!(api.get("/")["id"] == "vm");
    // What was configured and may be open: a log, a metrics file, the serial port's file, the socket of vsock, taps.
    let config = api.get("/vm/config");
    let taps = config["network-interfaces"].as_array().map_or(0, Vec::len);
    let open = before[0] + 4 + taps;
    let mut shown = Vec::new();
    let after = lightv_tests::process::wait_for("connections that are closed", || {
        let now = [count(process.pid(), "fd"), count(process.pid(), "task")];
        let names = held(process.pid());
        if names != shown {
            println!("{now:?}, where {open} descriptors may be: {names:#?}");
            shown = names;
        }
        (now[0] <= open && now[1] == before[1]).then_some(now)
    });
    println!("descriptors and threads: {before:?} before, {after:?} after");
    let _ = process.end();
}

#[test]
fn schemathesis_finds_no_answer_outside_the_schema_before_the_start() {
    check_schema(&[]);
}

#[test]
fn schemathesis_finds_no_answer_outside_the_schema_after_the_start() {
    let scratch = Scratch::new();
    let config = lightv_tests::machine::config(&scratch.guest_kernel(), "idle");
    let config: Value = config;
    let path = scratch.write("vm.json", config.to_string());
    check_schema(&["--config", path.to_str().expect("text")]);
}
