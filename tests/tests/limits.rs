//! Rate limiters: what they hold up, that it goes on by itself, and that they are changed while the machine runs.

use std::thread;
use std::time::{Duration, Instant};

use lightv_api::exit::OK;
use lightv_tests::api::Api;
use lightv_tests::disk;
use lightv_tests::host::has_kvm;
use lightv_tests::http::disk_job;
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::prometheus;
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Without limits.
fn free() -> Value {
    json!({"size": 0, "refill_time": 0})
}

/// One token, and another one in a thousand seconds.
fn stuck() -> Value {
    json!({"size": 1, "refill_time": 1_000_000})
}

/// The disk `disk` of 2 MiB, as drive `d` that may transfer `limiter`.
fn limited_disk(scratch: &Scratch, limiter: &Value) -> Value {
    disk::create(&scratch.path("disk"), 2 * MIB);
    let mut drive = machine::disk("d", "disk", "Unsafe");
    drive["rate_limiter"] = limiter.clone();
    json!([drive])
}

/// A machine of `app` with an API, and with `more` in its configuration.
fn start(scratch: &Scratch, app: &str, more: &Value) -> (Api, Process) {
    let config = machine::config(&scratch.guest_kernel(), app);
    let config = scratch.config("vm.json", &machine::with(&config, more));
    Api::start(scratch, "vm", &["--config", &config])
}

/// Whether a rate limiter of `device` was waited for.
fn is_throttled(api: &Api, device: &str) -> bool {
    let answer = api.call("GET", "/metrics", &Value::Null);
    let scrape = prometheus::parse(answer.body.as_str().expect("text"));
    let kind = if device == "d" { "block" } else { "net" };
    let labels = [("device", device), ("kind", kind)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    scrape.value("lightv_device_throttled_total", &labels) > 0.0
}

#[test]
fn a_limited_disk_takes_its_time_and_loses_nothing() {
    if !has_kvm() {
        return;
    }
    for bucket in [
        // 1 MiB a second in bytes, and the same in requests of 4 KiB.
        json!({"bandwidth": {"size": 65_536, "refill_time": 62, "one_time_burst": 4096}}),
        json!({"ops": {"size": 16, "refill_time": 62}}),
    ] {
        let scratch = Scratch::new();
        let drives = limited_disk(&scratch, &bucket);
        let began = Instant::now();
        let (_, process) = start(&scratch, "blk -- 42 256", &json!({"drives": drives}));
        let finished = process.finish().with_code(OK);
        let took = began.elapsed();
        assert!(finished.stdout.contains("blk ok"), "{finished:?}");
        // Twice 1 MiB, less what was there at the beginning. A busy host takes longer, none may take less.
        assert!(took >= Duration::from_millis(1850), "{bucket}: {took:?}");
    }
}

#[test]
fn limits_of_a_disk_are_changed_while_it_waits_and_kept_by_snapshots() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let drives = limited_disk(&scratch, &json!({"ops": free(), "bandwidth": stuck()}));
    let (api, process) = start(&scratch, "blk -- 42 64", &json!({"drives": drives}));
    wait_for("a request that waits", || {
        is_throttled(&api, "d").then_some(())
    });
    api.set_state("Paused");
    let save = json!({"snapshot_path": "a.state", "mem_file_path": "a.mem"});
    api.put("/snapshot/create", &save);
    let patch = json!({"drive_id": "d", "rate_limiter": {"ops": stuck()}});
    api.patch("/drives/d", &patch);
    api.set_state("Resumed");
    let limiter = &api.get("/vm/config")["drives"][0]["rate_limiter"];
    assert_eq!(limiter["ops"]["size"], 1);
    assert_eq!(limiter["bandwidth"]["size"], 1);
    let patch = json!({"drive_id": "d", "rate_limiter": {"ops": free(), "bandwidth": free()}});
    api.patch("/drives/d", &patch);
    assert!(process.finish().with_code(OK).stdout.contains("blk ok"));

    // The clone has the limit of the moment of the save.
    let (api, process) = Api::start(&scratch, "clone", &[]);
    api.put(
        "/snapshot/load",
        &machine::with(&save, &json!({"resume_vm": true})),
    );
    wait_for("a request of the clone that waits", || {
        is_throttled(&api, "d").then_some(())
    });
    api.patch("/drives/d", &patch);
    assert!(process.finish().with_code(OK).stdout.contains("blk ok"));
}

#[test]
fn a_machine_with_a_disk_that_waits_ends_when_it_is_told_to() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let drives = limited_disk(&scratch, &json!({"bandwidth": stuck()}));
    let (api, process) = start(&scratch, "blk -- 42 64", &json!({"drives": drives}));
    wait_for("a request that waits", || {
        is_throttled(&api, "d").then_some(())
    });
    assert_eq!(process.end().code, 143);
}

#[test]
fn frames_wait_in_either_direction_until_the_limit_is_lifted() {
    if !has_kvm() {
        return;
    }
    for direction in ["rx_rate_limiter", "tx_rate_limiter"] {
        let scratch = Scratch::new();
        let netns = Netns::with_tap();
        disk::create(&scratch.path("disk"), 2 * MIB);
        let mut nets = machine::net();
        nets[0][direction] = json!({"ops": {"size": 3, "refill_time": 1_000_000}});
        let config = machine::config(
            &scratch.guest_kernel(),
            "server ip=10.0.0.2::10.0.0.1:255.255.255.0::eth0:off -- 9",
        );
        let more = json!({
            "network-interfaces": nets,
            "drives": [machine::disk("d", "disk", "Unsafe")],
        });
        let config = scratch.config("vm.json", &machine::with(&config, &more));
        let args = ["--api-sock", "vm.sock", "--config", &config];
        let process = netns.start(&mut scratch.vmm(&args));
        let api = Api::at(scratch.path("vm.sock"));
        let address = machine::guest_at(2, 80);
        thread::scope(|scope| {
            let asked = scope.spawn(|| disk_job(&netns, address));
            wait_for("a frame that waits", || {
                api.try_call("GET", "/", "").ok()?;
                is_throttled(&api, "eth0").then_some(())
            });
            assert!(!asked.is_finished(), "{direction}");
            let patch = json!({"iface_id": "eth0", direction: {"ops": free()}});
            api.patch("/network-interfaces/eth0", &patch);
            assert_eq!(asked.join().expect("an answer").errors, 0);
        });
        assert_eq!(process.end().code, 143);
    }
}

#[test]
fn limits_of_devices_that_are_not_there_are_refused() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, "idle", &json!({}));
    let limiter = json!({"ops": free()});
    let patch = json!({"drive_id": "d", "rate_limiter": limiter});
    let answer = api.call("PATCH", "/drives/d", &patch);
    assert!(answer.fault().contains("Device not found"), "{answer:?}");
    let patch = json!({"iface_id": "n", "rx_rate_limiter": limiter});
    let answer = api.call("PATCH", "/network-interfaces/n", &patch);
    assert!(answer.fault().contains("Device not found"), "{answer:?}");
    let _ = process.end();
}
