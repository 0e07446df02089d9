//! What is legal when: before the start, running, paused.

mod common;

use common::trial::{AFTER, BEFORE, FILE, Trial, drive, net, paused, snapshot};
use lightv_api::request::Reply;
use serde_json::{Value, json};

#[test]
fn what_needs_a_started_machine_is_refused_before_the_start() {
    let mut trial = Trial::with_all();
    assert_eq!(trial.state(), "Not started");
    trial.no("PATCH", "/vm", paused("Paused"), BEFORE);
    trial.no("PUT", "/snapshot/create", snapshot(), BEFORE);
    for action in ["FlushMetrics", "SendCtrlAltDel"] {
        trial.no("PUT", "/actions", json!({ "action_type": action }), BEFORE);
    }
    for (method, path, body) in [
        (
            "PATCH",
            "/drives/a",
            json!({"drive_id": "a", "path_on_host": FILE}),
        ),
        ("PATCH", "/network-interfaces/a", json!({"iface_id": "a"})),
        ("PATCH", "/pmem/a", json!({"id": "a"})),
        ("DELETE", "/drives/a", Value::Null),
        ("PATCH", "/balloon", json!({"amount_mib": 1})),
        (
            "PATCH",
            "/balloon/statistics",
            json!({"stats_polling_interval_s": 1}),
        ),
        ("GET", "/balloon/statistics", Value::Null),
        ("PATCH", "/balloon/hinting/stop", Value::Null),
        ("GET", "/balloon/hinting/status", Value::Null),
        ("PATCH", "/hotplug/memory", json!({"requested_size_mib": 2})),
        ("GET", "/hotplug/memory", Value::Null),
    ] {
        trial.no(method, path, body, BEFORE);
    }
    let start = json!({"action_type": "InstanceStart"});
    trial.no(
        "PUT",
        "/actions",
        start.clone(),
        "Start microvm error: Cannot start microvm without kernel configuration.",
    );
    assert_eq!(trial.state(), "Not started");
}

#[test]
fn what_needs_a_machine_that_is_not_started_is_refused_after_the_start() {
    let mut trial = Trial::with_all();
    let start = json!({"action_type": "InstanceStart"});
    trial.start();
    assert_eq!(trial.state(), "Running");
    trial.no("PUT", "/actions", start, AFTER);
    for (path, body) in [
        ("/boot-source", json!({"kernel_image_path": FILE})),
        (
            "/machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 64}),
        ),
        ("/cpu-config", json!({})),
        ("/vsock", json!({"guest_cid": 3, "uds_path": "u"})),
        ("/balloon", json!({"amount_mib": 1, "deflate_on_oom": true})),
        ("/entropy", json!({})),
        ("/serial", json!({})),
        ("/logger", json!({})),
        ("/metrics", json!({"metrics_path": "m"})),
        ("/mmds/config", json!({"network_interfaces": ["a"]})),
        ("/hotplug/memory", json!({"total_size_mib": 128})),
    ] {
        trial.no("PUT", path, body, AFTER);
    }
    trial.no("PATCH", "/machine-config", json!({"vcpu_count": 1}), AFTER);
    let load = json!({"snapshot_path": "s", "mem_file_path": "m"});
    trial.no("PUT", "/snapshot/load", load, AFTER);
    let pci = "PCI is not enabled";
    trial.no("PUT", "/drives/a", drive("a"), pci);
    trial.no(
        "PUT",
        "/network-interfaces/a",
        json!({"iface_id": "a", "host_dev_name": "t"}),
        pci,
    );
    trial.no(
        "PUT",
        "/pmem/a",
        json!({"id": "a", "path_on_host": FILE}),
        pci,
    );
    trial.no("DELETE", "/drives/a", Value::Null, pci);
    let running = "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running";
    trial.no("PUT", "/snapshot/create", snapshot(), running);
}

#[test]
fn a_machine_that_runs_can_be_forked_and_saved_live() {
    let fork =
        |clones: u32| json!({"snapshot_path": "s", "mem_socket_path": "m", "clones": clones});
    let mut live = snapshot();
    live["live"] = json!(true);
    let mut trial = Trial::new();
    for (path, body) in [("/fork", fork(1)), ("/snapshot/create", live.clone())] {
        trial.no("PUT", path, body, BEFORE);
    }
    trial.start();
    trial.record.take();
    trial.ok("PUT", "/snapshot/create", live);
    trial.ok("PUT", "/fork", fork(7));
    assert_eq!(trial.state(), "Running");
    for clones in [0, 1001] {
        let refusal = format!("Fork error: clones is {clones}; allowed: 1–1000.");
        trial.no("PUT", "/fork", fork(clones), &refusal);
    }
    assert_eq!(trial.record.take(), ["save", "fork 7"]);
}

#[test]
fn pause_and_resume_twice_are_pause_and_resume_once() {
    let mut trial = Trial::new();
    trial.start();
    trial.record.take();
    for (state, is) in [
        ("Resumed", "Running"),
        ("Paused", "Paused"),
        ("Paused", "Paused"),
    ] {
        trial.ok("PATCH", "/vm", paused(state));
        assert_eq!(trial.state(), is);
    }
    trial.ok("PUT", "/snapshot/create", snapshot());
    assert_eq!(trial.state(), "Paused");
    trial.ok("PATCH", "/vm", paused("Resumed"));
    trial.ok("PATCH", "/vm", paused("Resumed"));
    assert_eq!(trial.record.take(), ["pause", "save", "resume"]);
    trial.record.refuse_next("the vCPUs did not stop");
    trial.no(
        "PATCH",
        "/vm",
        paused("Paused"),
        "Internal VMM error: the vCPUs did not stop",
    );
    assert_eq!(trial.state(), "Running");
}

#[test]
fn a_start_that_failed_can_be_followed_by_a_better_one() {
    let mut trial = Trial::new();
    for (path, word) in [
        (
            "no/such/kernel",
            "The kernel file cannot be opened: No such file",
        ),
        ("src", "not a regular file: src"),
        ("/dev/null", "not a regular file: /dev/null"),
    ] {
        let boot = json!({ "kernel_image_path": path });
        trial.no("PUT", "/boot-source", boot, "Boot source error: ");
        trial.no(
            "PUT",
            "/boot-source",
            json!({ "kernel_image_path": path }),
            word,
        );
    }
    let boot = json!({"kernel_image_path": FILE, "initrd_path": "no/such/initrd"});
    trial.no(
        "PUT",
        "/boot-source",
        boot,
        "The initrd file cannot be opened due to invalid path or invalid permissions.",
    );
    trial.ok("PUT", "/boot-source", json!({"kernel_image_path": FILE}));
    let start = json!({"action_type": "InstanceStart"});
    trial.record.refuse_next("Cargo.toml is no kernel");
    trial.no(
        "PUT",
        "/actions",
        start.clone(),
        "Start microvm error: Cargo.toml is no kernel",
    );
    assert_eq!(trial.state(), "Not started");
    trial.ok(
        "PUT",
        "/boot-source",
        json!({"kernel_image_path": "src/../Cargo.toml"}),
    );
    trial.ok("PUT", "/actions", start);
}

#[test]
fn patches_after_the_start_reach_the_device_and_the_configuration() {
    let mut trial = Trial::with_all();
    trial.ok("PUT", "/drives/a", drive("a"));
    trial.ok(
        "PUT",
        "/network-interfaces/n",
        net("n", "tap0", "02:00:00:00:00:01"),
    );
    trial.start();
    trial.record.take();
    let other = "src/../Cargo.toml";
    trial.ok(
        "PATCH",
        "/drives/a",
        json!({"drive_id": "a", "path_on_host": other}),
    );
    let bandwidth = json!({"bandwidth": {"size": 1, "refill_time": 2}});
    trial.ok(
        "PATCH",
        "/drives/a",
        json!({"drive_id": "a", "rate_limiter": bandwidth}),
    );
    let ops = json!({"ops": {"size": 3, "refill_time": 4}});
    trial.ok(
        "PATCH",
        "/drives/a",
        json!({"drive_id": "a", "rate_limiter": ops}),
    );
    trial.ok(
        "PATCH",
        "/network-interfaces/n",
        json!({"iface_id": "n", "tx_rate_limiter": ops}),
    );
    assert_eq!(
        trial.record.take(),
        [
            "patch drive a",
            "patch drive a",
            "patch drive a",
            "patch net n"
        ]
    );
    let config = trial.get("/vm/config");
    assert_eq!(config["drives"][0]["path_on_host"], other);
    let both =
        json!({"bandwidth": {"size": 1, "refill_time": 2}, "ops": {"size": 3, "refill_time": 4}});
    assert_eq!(config["drives"][0]["rate_limiter"], both);
    assert_eq!(config["network-interfaces"][0]["tx_rate_limiter"], ops);
}

#[test]
fn patches_that_are_refused_after_the_start_leave_the_device_as_it_was() {
    let mut trial = Trial::with_all();
    trial.ok("PUT", "/drives/a", drive("a"));
    trial.start();
    let other = "src/../Cargo.toml";
    trial.no(
        "PATCH",
        "/drives/b",
        json!({"drive_id": "b", "path_on_host": other}),
        "Device not found Please verify",
    );
    trial.no(
        "PATCH",
        "/drives/a",
        json!({"drive_id": "a"}),
        "Neither path_on_host nor rate_limiter",
    );
    trial.no(
        "PATCH",
        "/drives/a",
        json!({"drive_id": "a", "path_on_host": "no/such"}),
        "No such file",
    );
    trial.no(
        "PATCH",
        "/network-interfaces/x",
        json!({"iface_id": "x"}),
        "Device not found",
    );
    trial
        .record
        .refuse_next("the disk has 3 bytes, not a multiple of 512");
    trial.no(
        "PATCH",
        "/drives/a",
        json!({"drive_id": "a", "path_on_host": FILE}),
        "not a multiple of 512",
    );
    assert_eq!(trial.get("/vm/config")["drives"][0]["path_on_host"], FILE);
}

#[test]
fn a_load_comes_before_anything_for_a_boot_and_can_be_tried_again() {
    let load = || json!({"snapshot_path": "s", "mem_backend": {"backend_type": "File", "backend_path": "m"}});
    let refused = "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.";
    let mut trial = Trial::with_all();
    trial.ok("PUT", "/logger", json!({"log_path": "l", "level": "Debug"}));
    trial.ok("PUT", "/metrics", json!({"metrics_path": "m"}));
    trial.ok("PUT", "/serial", json!({}));
    trial.ok("PUT", "/cpu-config", json!({}));
    trial.ok("PUT", "/mmds", json!({"a": 1}));
    trial.record.refuse_next("the checksum of s is wrong");
    trial.no(
        "PUT",
        "/snapshot/load",
        load(),
        "Load snapshot error: the checksum of s is wrong",
    );
    assert_eq!(trial.state(), "Not started");
    trial.ok("PUT", "/snapshot/load", load());
    assert_eq!(trial.state(), "Paused");
    assert_eq!(trial.get("/machine-config")["mem_size_mib"], 77);
    trial.no("PUT", "/snapshot/load", load(), AFTER);

    let mut resumed = load();
    resumed["resume_vm"] = json!(true);
    let mut trial = Trial::new();
    trial.ok("PUT", "/snapshot/load", resumed);
    assert_eq!(trial.state(), "Running");

    for (path, body) in [
        ("/boot-source", json!({"kernel_image_path": FILE})),
        (
            "/machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 128}),
        ),
        ("/drives/a", drive("a")),
        (
            "/network-interfaces/n",
            net("n", "tap0", "02:00:00:00:00:01"),
        ),
        ("/entropy", json!({})),
        ("/vsock", json!({"guest_cid": 3, "uds_path": "u"})),
        ("/balloon", json!({"amount_mib": 1, "deflate_on_oom": true})),
        ("/pmem/p", json!({"id": "p", "path_on_host": FILE})),
        ("/hotplug/memory", json!({"total_size_mib": 128})),
    ] {
        let mut trial = Trial::with_all();
        trial.ok("PUT", path, body);
        trial.no("PUT", "/snapshot/load", load(), refused);
    }
    // What was refused was not configured.
    let mut trial = Trial::new();
    trial.no(
        "PUT",
        "/hotplug/memory",
        json!({"total_size_mib": 128}),
        "memory-hotplug is set",
    );
    trial.ok("PUT", "/snapshot/load", load());
}

#[test]
fn outputs_are_set_at_once_and_metrics_once() {
    let mut trial = Trial::with_all();
    trial.ok(
        "PUT",
        "/logger",
        json!({"log_path": "l", "level": "warning"}),
    );
    trial.ok("PUT", "/logger", json!({"show_level": true}));
    trial.record.refuse_next("Cannot open m: Permission denied");
    trial.no(
        "PUT",
        "/metrics",
        json!({"metrics_path": "m"}),
        "Metrics error: Cannot open m: Permission denied",
    );
    trial.ok("PUT", "/metrics", json!({"metrics_path": "m"}));
    trial.no(
        "PUT",
        "/metrics",
        json!({"metrics_path": "m"}),
        "Reinitialization of metrics not allowed.",
    );
    assert_eq!(
        trial.record.take(),
        [
            "logger Some(Warn)",
            "logger Some(Warn)",
            "metrics m",
            "metrics m"
        ]
    );
    let config = trial.get("/vm/config");
    assert_eq!(
        config["logger"],
        json!({"log_path": "l", "level": "Warn", "show_level": true})
    );
    trial.start();
    trial.ok("PUT", "/actions", json!({"action_type": "FlushMetrics"}));
    trial.ok("PUT", "/actions", json!({"action_type": "SendCtrlAltDel"}));
    let config = trial.get("/vm/config");
    assert_eq!(
        (&config["logger"], &config["metrics"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn the_whole_configuration_has_every_key() {
    let mut trial = Trial::new();
    let empty = r#"{"balloon":null,"drives":[],"boot-source":null,"cpu-config":null,"logger":null,"machine-config":{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false,"huge_pages":"None"},"metrics":null,"mmds-config":null,"network-interfaces":[],"vsock":null,"entropy":null,"pmem":[],"memory-hotplug":null}"#;
    assert_eq!(
        trial.ask("GET", "/vm/config", &Value::Null),
        Ok(Reply::Json(empty.to_owned()))
    );
}
