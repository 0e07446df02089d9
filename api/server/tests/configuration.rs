//! What can be configured, and what of it is refused.

mod common;

use common::trial::{FILE, Trial, drive, net};
use lightv_api_server::controller::Setup;
use serde_json::{Value, json};

#[test]
fn a_fifo_as_kernel_or_disk_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let mut trial = Trial::new();
    trial.no(
        "PUT",
        "/boot-source",
        json!({"kernel_image_path": fifo}),
        "not a regular file",
    );
    let disk = json!({"drive_id": "a", "is_root_device": false, "path_on_host": fifo, "is_read_only": true});
    trial.no(
        "PUT",
        "/drives/a",
        disk,
        "not a regular file or block device",
    );
}

#[test]
fn a_second_put_resets_what_it_leaves_out() {
    let mut trial = Trial::with_all();
    assert_eq!(
        trial.get("/machine-config").to_string(),
        json!({"vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None"}).to_string()
    );
    let all = json!({"vcpu_count": 2, "mem_size_mib": 256, "smt": true, "track_dirty_pages": true, "huge_pages": "2M", "cpu_template": "T2"});
    trial.ok("PUT", "/machine-config", all.clone());
    assert_eq!(trial.get("/machine-config"), all);
    trial.ok(
        "PUT",
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 64}),
    );
    // All but the template.
    let reset = json!({"vcpu_count": 1, "mem_size_mib": 64, "smt": false, "track_dirty_pages": false, "huge_pages": "None", "cpu_template": "T2"});
    assert_eq!(trial.get("/machine-config"), reset);
    trial.ok("PATCH", "/machine-config", json!({"mem_size_mib": 65}));
    assert_eq!(trial.get("/machine-config")["vcpu_count"], 1);
    trial.no("PATCH", "/machine-config", json!({"huge_pages": "2M", "vcpu_count": 4}), "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.");
}

#[test]
fn of_a_template_and_a_cpu_config_the_later_one_holds() {
    let mut trial = Trial::new();
    let cpu = json!({"kvm_capabilities": ["!56"], "cpuid_modifiers": [], "msr_modifiers": []});
    let machine =
        |template: &str| json!({"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": template});
    trial.ok("PUT", "/machine-config", machine("T2"));
    trial.ok("PUT", "/cpu-config", cpu.clone());
    let config = trial.get("/vm/config");
    assert_eq!(config["cpu-config"], cpu);
    assert_eq!(config["machine-config"].get("cpu_template"), None);
    // What says nothing of the CPU changes nothing of it.
    trial.ok("PATCH", "/machine-config", json!({"vcpu_count": 2}));
    assert_eq!(trial.get("/vm/config")["cpu-config"], cpu);
    for template in ["T2A", "None"] {
        trial.ok("PUT", "/cpu-config", cpu.clone());
        let patch = json!({"cpu_template": template});
        trial.ok("PATCH", "/machine-config", patch);
        let config = trial.get("/vm/config");
        assert_eq!(config["cpu-config"], json!(null), "{template}");
        assert_eq!(config["machine-config"]["cpu_template"], template);
    }
    trial.ok("PUT", "/cpu-config", cpu);
    trial.ok("PUT", "/machine-config", machine("None"));
    assert_eq!(trial.get("/vm/config")["cpu-config"], json!(null));
}

#[test]
fn vcpu_counts_outside_the_range_are_refused_alike() {
    let mut trial = Trial::with_all();
    let text = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.";
    for count in [0, 33, 64, 254, 255, 256, 9999] {
        trial.no(
            "PUT",
            "/machine-config",
            json!({"vcpu_count": count, "mem_size_mib": 64}),
            text,
        );
        trial.no(
            "PATCH",
            "/machine-config",
            json!({ "vcpu_count": count }),
            text,
        );
    }
    for count in 1..=32 {
        trial.ok(
            "PUT",
            "/machine-config",
            json!({"vcpu_count": count, "mem_size_mib": 64}),
        );
        let smt = json!({"vcpu_count": count, "mem_size_mib": 64, "smt": true});
        match count {
            1 => trial.ok("PUT", "/machine-config", smt),
            count if count % 2 == 0 => trial.ok("PUT", "/machine-config", smt),
            _ => trial.no("PUT", "/machine-config", smt, text),
        }
    }
    trial.no(
        "PUT",
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 0}),
        "The memory size (MiB) is either 0",
    );
}

#[test]
fn what_the_host_refuses_is_not_kept() {
    let mut trial = Trial::new();
    trial
        .record
        .refuse_next("mem_size_mib is 1048576; allowed: 16–8192 (the host's memory)");
    let large = json!({"vcpu_count": 1, "mem_size_mib": 1 << 20});
    trial.no(
        "PUT",
        "/machine-config",
        large,
        "Machine config error: mem_size_mib is 1048576; allowed: 16–8192",
    );
    trial
        .record
        .refuse_next("tap0 is in use by another process");
    trial.no(
        "PUT",
        "/network-interfaces/a",
        net("a", "tap0", "02:00:00:00:00:01"),
        "Network config error: tap0 is in use",
    );
}

#[test]
fn a_balloon_fits_the_memory() {
    let mut trial = Trial::with_all();
    trial.no(
        "GET",
        "/balloon",
        Value::Null,
        "Balloon config error: No balloon device found.",
    );
    trial.ok(
        "PUT",
        "/balloon",
        json!({"amount_mib": 100, "deflate_on_oom": false}),
    );
    trial.no(
        "PATCH",
        "/machine-config",
        json!({"mem_size_mib": 64}),
        "Incompatible balloon size",
    );
    trial.no(
        "PUT",
        "/balloon",
        json!({"amount_mib": 129, "deflate_on_oom": false}),
        "Amount of pages requested is too large",
    );
    let balloon = json!({"amount_mib": 100, "deflate_on_oom": false, "stats_polling_interval_s": 0, "free_page_hinting": false, "free_page_reporting": false});
    assert_eq!(trial.get("/balloon"), balloon);
    trial.start();
    trial.no(
        "PATCH",
        "/balloon",
        json!({"amount_mib": 129}),
        "Amount of pages",
    );
    trial.ok("PATCH", "/balloon", json!({"amount_mib": 128}));
    assert_eq!(trial.get("/balloon")["amount_mib"], 128);
    trial.no(
        "PATCH",
        "/balloon/statistics",
        json!({"stats_polling_interval_s": 1}),
        "Balloon config error: Statistics cannot be enabled/disabled after activation.",
    );
}

#[test]
fn drives_are_replaced_by_id_and_the_root_comes_first() {
    let mut trial = Trial::new();
    let root = |id: &str| json!({"drive_id": id, "is_root_device": true, "path_on_host": FILE, "is_read_only": true});
    trial.ok("PUT", "/drives/a", drive("a"));
    trial.ok("PUT", "/drives/b", drive("b"));
    trial.ok("PUT", "/drives/root", root("root"));
    trial.no(
        "PUT",
        "/drives/other",
        root("other"),
        "Drive config error: A root block device already exists!",
    );
    trial.ok("PUT", "/drives/root", root("root"));
    let mut other = drive("a");
    other["path_on_host"] = json!("src/../Cargo.toml");
    trial.ok("PUT", "/drives/a", other);
    let drives = trial.get("/vm/config")["drives"].take();
    let ids: Vec<&str> = drives
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["drive_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["root", "a", "b"]);
    assert_eq!(drives[1]["path_on_host"], "src/../Cargo.toml");
    // The root can become another.
    trial.ok("PUT", "/drives/root", drive("root"));
    trial.ok("PUT", "/drives/b", root("b"));
    assert_eq!(trial.get("/vm/config")["drives"][0]["drive_id"], "b");
}

#[test]
fn a_drive_has_one_backing() {
    let mut trial = Trial::with_all();
    let text = "Invalid block config.";
    trial.no(
        "PUT",
        "/drives/a",
        json!({"drive_id": "a", "is_root_device": false}),
        text,
    );
    let mut both = drive("a");
    both["socket"] = json!("s");
    trial.no("PUT", "/drives/a", both, text);
    trial.ok(
        "PUT",
        "/drives/a",
        json!({"drive_id": "a", "is_root_device": false, "socket": "s"}),
    );
    let missing = json!({"drive_id": "b", "is_root_device": false, "path_on_host": "no/such"});
    trial.no(
        "PUT",
        "/drives/b",
        missing,
        "No such file or directory (os error 2): no/such",
    );
}

#[test]
fn interfaces_do_not_share_a_tap_or_an_address() {
    let mut trial = Trial::new();
    let path = "/network-interfaces/a";
    trial.ok("PUT", path, net("a", "tap0", "02:00:00:00:00:0a"));
    let second = "/network-interfaces/b";
    trial.no(
        "PUT",
        second,
        net("b", "tap1", "02:00:00:00:00:0A"),
        "Network config error: The MAC address is already in use: 02:00:00:00:00:0A",
    );
    trial.no(
        "PUT",
        second,
        net("b", "tap0", "02:00:00:00:00:0b"),
        "The tap is already in use: tap0",
    );
    // Its own is no other's.
    trial.ok("PUT", path, net("a", "tap0", "02:00:00:00:00:0a"));
    trial.ok("PUT", path, net("a", "tap9", "02:00:00:00:00:0c"));
    trial.ok("PUT", second, net("b", "tap0", "02:00:00:00:00:0a"));
}

#[test]
fn what_this_version_lacks_is_refused_by_name() {
    let mut trial = Trial::new();
    let nothing = "this version of LightV does not offer it";
    for (path, body, area) in [
        (
            "/pmem/p",
            json!({"id": "p", "path_on_host": FILE}),
            "Pmem config error: pmem is set",
        ),
        (
            "/hotplug/memory",
            json!({"total_size_mib": 128}),
            "Memory hotplug config error: memory-hotplug is set",
        ),
    ] {
        trial.no("PUT", path, body.clone(), area);
        trial.no("PUT", path, body, nothing);
    }
}

#[test]
fn a_field_that_this_version_lacks_is_refused_by_name() {
    let mut trial = Trial::new();
    let nothing = "this version of LightV does not offer it";
    trial.no(
        "PATCH",
        "/machine-config",
        json!({"smt": true, "vcpu_count": 2}),
        "machine-config.smt is true",
    );
    let refusal = format!("GET /metrics: {nothing}");
    trial.no("GET", "/metrics", Value::Null, &refusal);
    trial.start();
    trial.no("GET", "/balloon", Value::Null, "Device not found");
    trial.no(
        "PATCH",
        "/balloon",
        json!({"amount_mib": 1}),
        "Device not found",
    );
    trial.no("GET", "/hotplug/memory", Value::Null, "Device not found");
}

#[test]
fn the_metadata_store_is_merged_and_has_a_limit() {
    let mut setup = Setup::new("trial");
    setup.metadata_bytes_max = 40;
    let mut trial = Trial::with(setup);
    assert_eq!(trial.get("/mmds"), json!({}));
    trial.no(
        "PATCH",
        "/mmds",
        json!({"a": 1}),
        "MMDS error: The MMDS data store is not initialized.",
    );
    trial.ok("PUT", "/mmds", json!({"a": {"b": "c", "d": 1}}));
    trial.ok("PATCH", "/mmds", json!({"a": {"b": null, "e": [2]}}));
    assert_eq!(trial.get("/mmds"), json!({"a": {"d": 1, "e": [2]}}));
    let (status, message) = trial
        .ask("PATCH", "/mmds", &json!({"long": "x".repeat(40)}))
        .unwrap_err();
    assert_eq!(status, 413);
    assert!(
        message.contains("The MMDS patch request doesn't fit."),
        "{message}"
    );
    assert_eq!(trial.get("/mmds"), json!({"a": {"d": 1, "e": [2]}}));
    assert_eq!(trial.record.take(), ["metadata of 1", "metadata of 1"]);
    trial.start();
    trial.ok("PATCH", "/mmds", json!({"a": 1}));

    let mut without = Trial::new();
    without.start();
    let none = "The MMDS data store is not initialized.";
    for method in ["PUT", "PATCH"] {
        without.no(method, "/mmds", json!({"a": 1}), none);
    }
    without.no("GET", "/mmds", Value::Null, none);
}

#[test]
fn the_metadata_service_knows_its_interfaces() {
    let mut trial = Trial::new();
    trial.ok(
        "PUT",
        "/network-interfaces/n",
        net("n", "tap0", "02:00:00:00:00:01"),
    );
    let config = |ids: Value, address: &str| json!({"network_interfaces": ids, "version": "V2", "ipv4_address": address});
    let good = "169.254.169.254";
    trial.no("PUT", "/mmds/config", config(json!([]), good), "is empty");
    trial.no(
        "PUT",
        "/mmds/config",
        config(json!(["n", "x"]), good),
        "does not correspond to any existing network interface: x",
    );
    for address in ["10.0.0.1", "169.254.0.1", "169.254.255.1"] {
        trial.no(
            "PUT",
            "/mmds/config",
            config(json!(["n"]), address),
            "is not link local",
        );
    }
    trial.ok("PUT", "/mmds/config", config(json!(["n"]), good));
    trial.start();
    assert_eq!(trial.get("/mmds"), json!({}));
    trial.ok("PUT", "/mmds", json!({"a": 1}));
}
