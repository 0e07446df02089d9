//! The metadata service end to end: what a guest gets from it, over its real network card, and what the tap sees of that.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, run, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};
use serde_json::{Value, json};

/// 169.254.169.254, as it stands in a packet.
const SERVICE: [u8; 4] = [169, 254, 169, 254];

/// A machine whose guest takes these steps (guest-kernel/minimal/src/apps/metadata.rs).
fn config(scratch: &Scratch, steps: &str, mmds: &Value) -> Value {
    let args = format!("app=metadata ip=10.0.0.2:::255.255.255.0::eth0:off -- {steps}");
    let boot = json!({"kernel_image_path": scratch.guest_kernel(), "boot_args": args});
    json!({"boot-source": boot, "network-interfaces": machine::net(), "mmds-config": mmds})
}

/// The same by requests.
fn configure(api: &Api, config: &Value) {
    api.put("/boot-source", &config["boot-source"]);
    api.put("/network-interfaces/eth0", &config["network-interfaces"][0]);
    api.put("/mmds/config", &config["mmds-config"]);
}

fn mmds(version: &str) -> Value {
    json!({"network_interfaces": ["eth0"], "version": version})
}

fn data() -> Value {
    json!({"latest": {"meta-data": {"id": "vm-7", "tags": {"a": "b"}}, "count": 3}})
}

/// All that comes by the interfaces of a name space, from now on.
fn capture(netns: &Netns) -> OwnedFd {
    let socket = netns.within(|| {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            flags,
            Some(eth::ALL),
        )
    });
    socket.expect("a socket of packets")
}

fn captured(socket: &OwnedFd) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut frame = vec![0; 70_000];
    while let Ok((bytes, _)) = recv(socket, &mut frame, RecvFlags::empty()) {
        frames.push(frame[..bytes].to_vec());
    }
    frames
}

/// Looks whether the tap has seen the guest, and nothing of the service.
fn assert_only_others(frames: &[Vec<u8>]) {
    let from_guest = |frame: &&Vec<u8>| frame.windows(4).any(|four| four == [10, 0, 0, 2]);
    assert!(frames.iter().filter(from_guest).count() > 0, "{frames:x?}");
    for frame in frames {
        let has_service = frame.windows(4).any(|four| four == SERVICE);
        assert!(!has_service, "{frame:x?}");
    }
}

/// The group `mmds` of all lines of a metrics file, added up.
fn metrics(path: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(path).expect("metrics");
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        for (name, value) in line["mmds"].as_object().expect("the group mmds") {
            *sums.entry(name.clone()).or_default() += value.as_u64().expect("a number");
        }
    }
    sums
}

#[test]
fn a_guest_reads_by_a_token_and_nothing_of_it_is_seen_on_the_tap() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    let frames = capture(&netns);
    let (api, process) = netns.within(|| Api::start(&scratch, "vm", &[]));
    let steps = "get=/latest put=/latest/api/token put=/latest token=21601 no-token token=21600 \
                 get=/latest get=//latest/meta-data/ get=/latest/meta-data/id get=/nowhere get=/latest/count \
                 json get=/latest/meta-data get=/latest/count wrong-token get=/latest/count no-token \
                 get=/latest/count";
    configure(&api, &config(&scratch, steps, &mmds("V2")));
    assert_eq!(api.get("/mmds"), json!({}));
    api.put("/mmds", &data());
    api.put("/metrics", &json!({"metrics_path": "metrics"}));
    api.act("InstanceStart");
    let finished = process.finish().with_code(0);
    let mut lines = finished.stdout.lines();
    for expected in [
        "401 /latest No MMDS token provided.",
        "400 /latest/api/token Token time to live value not found.",
        "404 /latest Resource not found: /latest.",
        "token 400 of ",
        "token 200 of 64 letters",
        "200 /latest count meta-data/",
        "200 //latest/meta-data/ id tags/",
        "200 /latest/meta-data/id vm-7",
        "404 /nowhere Resource not found: /nowhere.",
        "501 /latest/count Cannot retrieve value. The value has an unsupported type.",
        r#"200 /latest/meta-data {"id":"vm-7","tags":{"a":"b"}}"#,
        "200 /latest/count 3",
        "401 /latest/count MMDS token not valid.",
        "401 /latest/count No MMDS token provided.",
    ] {
        let line = lines.next().unwrap_or_default();
        assert!(
            line.starts_with(expected),
            "{expected}: {}",
            finished.stdout
        );
    }
    assert_eq!(lines.next(), None);
    assert_only_others(&captured(&frames));
    let counts = metrics(&scratch.path("metrics"));
    assert_eq!((counts["rx_no_token"], counts["rx_invalid_token"]), (2, 1));
    assert_eq!(counts["connections_created"], 14, "{counts:?}");
    assert_eq!(
        counts["rx_accepted_err"] + counts["tx_errors"],
        0,
        "{counts:?}"
    );
    assert!(counts["rx_accepted"] > counts["rx_count"], "{counts:?}");
    assert!(
        counts["tx_frames"] > 28 && counts["tx_bytes"] > 28 * 54,
        "{counts:?}"
    );
}

#[test]
fn a_token_ends() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    let (api, process) = netns.within(|| Api::start(&scratch, "vm", &[]));
    let steps = "token=1 wait=3000 get=/latest/count token=600 get=/latest/meta-data/id";
    configure(&api, &config(&scratch, steps, &mmds("V2")));
    api.put("/mmds", &data());
    api.act("InstanceStart");
    let expected = "token 200 of 64 letters\n401 /latest/count MMDS token not valid.\n\
                    token 200 of 64 letters\n200 /latest/meta-data/id vm-7\n";
    assert_eq!(process.finish().with_code(0).stdout, expected);
}

#[test]
fn a_configuration_file_and_a_file_of_metadata_are_enough() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    scratch.write("metadata.json", data().to_string());
    let steps =
        "get=/latest/meta-data json get=/latest/meta-data token=60 get=/latest/meta-data/id";
    let mut asked = config(&scratch, steps, &mmds("V1"));
    asked["boot-source"]["boot_args"] = json!(format!(
        "mmds=169.254.7.7 {}",
        asked["boot-source"]["boot_args"].as_str().expect("text")
    ));
    asked["mmds-config"]["ipv4_address"] = json!("169.254.7.7");
    for (is_compatible, second) in [
        (
            false,
            r#"200 /latest/meta-data {"id":"vm-7","tags":{"a":"b"}}"#,
        ),
        (true, "200 /latest/meta-data id tags/"),
    ] {
        asked["mmds-config"]["imds_compat"] = json!(is_compatible);
        let config = scratch.config("vm.json", &asked);
        let args = [
            "--config-file",
            &config,
            "--no-api",
            "--metadata",
            "metadata.json",
        ];
        let finished = netns.within(|| run(&mut scratch.vmm(&args))).with_code(0);
        let last = match is_compatible {
            true => "vm-7",
            false => "\"vm-7\"",
        };
        let expected = format!(
            "200 /latest/meta-data id tags/\n{second}\ntoken 200 of 64 letters\n200 /latest/meta-data/id {last}\n"
        );
        assert_eq!(finished.stdout, expected);
        // The same from an image: it is filled anew at each run.
        let _ = netns
            .within(|| run(&mut scratch.vmm(&["--config", &config, "--save", "vm.lv"])))
            .with_code(0);
        let args = ["run", "--metadata", "metadata.json", "vm.lv"];
        let finished = netns.within(|| run(&mut scratch.lightv(&args)));
        assert_eq!(finished.with_code(0).stdout, expected);
    }
}

#[test]
fn metadata_that_nobody_could_read_and_configurations_of_no_use_are_refused() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    scratch.write("good", "{}");
    scratch.write("list", "[1]");
    scratch.write("long", format!("{{\"a\":\"{}\"}}", "x".repeat(100)));
    let mut asked = config(&scratch, "no-token", &mmds("V1"));
    let good = scratch.config("good.json", &asked);
    asked["mmds-config"]["network_interfaces"] = json!(["eth1"]);
    let unknown = scratch.config("unknown.json", &asked);
    asked["mmds-config"] = Value::Null;
    let without = scratch.config("without.json", &asked);
    for (config, metadata, words) in [
        (&good, "list", ["list", "a JSON object"]),
        (&good, "long", ["long", "allowed: 60"]),
        (&good, "nowhere", ["nowhere", "metadata"]),
        (
            &unknown,
            "good",
            ["mmds-config.network_interfaces[0] is `eth1`", "eth0"],
        ),
        (&without, "good", ["good", "mmds-config"]),
    ] {
        let args = [
            "--config",
            config,
            "--metadata",
            metadata,
            "--mmds-size-limit",
            "60",
        ];
        let finished = netns.within(|| run(&mut scratch.vmm(&args)));
        finished.assert_refused(152, &words);
    }
    let (api, _process) = netns.within(|| Api::start(&scratch, "vm", &[]));
    api.put("/network-interfaces/eth0", &machine::net()[0]);
    for (body, words) in [
        (json!({"network_interfaces": []}), "is empty"),
        (json!({"network_interfaces": ["eth1"]}), "eth1"),
        (
            json!({"network_interfaces": ["eth0"], "ipv4_address": "10.0.0.1"}),
            "not link local",
        ),
    ] {
        let refused = api.call("PUT", "/mmds/config", &body);
        let text = refused.fault();
        assert!(
            text.starts_with("MMMDS config error: ") && text.contains(words),
            "{text}"
        );
    }
    api.put("/mmds/config", &mmds("V2"));
    assert_eq!(api.get("/vm/config")["mmds-config"], {
        let mut expected = mmds("V2");
        expected["imds_compat"] = json!(false);
        expected
    });
}

/// Sends `text` to the guest's echo, and gives what comes back.
fn echo(netns: &Netns, text: &str) -> String {
    let mut stream = netns.connect(SocketAddr::from(([10, 0, 0, 2], 7)));
    stream.write_all(text.as_bytes()).expect("sent");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).expect("received");
    String::from_utf8(back).expect("text")
}

/// Waits for a line that `is_it`, after `bytes` of output.
fn wait_for_line(process: &Process, bytes: usize, line: &str) {
    wait_for(line, || {
        let stdout = process.stdout();
        let found = stdout.get(bytes..)?.lines().any(|found| found == line);
        found.then_some(())
    });
}

#[test]
fn a_running_guest_sees_changes_and_a_clone_its_own_data_by_tokens_of_its_own() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    let limit = ["--mmds-size-limit", "60"];
    let (api, process) = netns.within(|| Api::start(&scratch, "vm", &limit));
    let steps = "token=21600 loop get=/a token=21600 get=/a wait=20 again";
    configure(&api, &config(&scratch, steps, &mmds("V2")));
    api.put("/mmds", &json!({"a": "one"}));
    api.act("InstanceStart");
    wait_for_line(&process, 0, "200 /a one");
    assert_eq!(echo(&netns, "before"), "before");
    let at = process.stdout().len();
    api.patch("/mmds", &json!({"a": "two"}));
    wait_for_line(&process, at, "200 /a two");
    for method in ["PUT", "PATCH"] {
        let large = api.call(method, "/mmds", &json!({"a": "x".repeat(60)}));
        assert_eq!(large.status, 413, "{large:?}");
    }
    let at = process.stdout().len();
    wait_for_line(&process, at, "200 /a two");

    api.set_state("Paused");
    let body = json!({"snapshot_path": "s.state", "mem_file_path": "s.mem"});
    api.put("/snapshot/create", &body);
    let at = process.stdout().len();
    api.set_state("Resumed");
    wait_for_line(&process, at, "200 /a two");
    assert_eq!(echo(&netns, "after"), "after");
    let load = json!({"snapshot_path": "s.state", "resume_vm": true,
        "mem_backend": {"backend_type": "File", "backend_path": "s.mem"}});
    for (name, own, expected) in [
        ("filled", Some(json!({"a": "three"})), "200 /a three"),
        ("empty", None, "404 /a Resource not found: /a."),
    ] {
        let other = Netns::with_tap();
        let frames = capture(&other);
        let (clone_api, clone) = other.within(|| Api::start(&scratch, name, &limit));
        if let Some(own) = &own {
            clone_api.put("/mmds", own);
        }
        clone_api.put("/snapshot/load", &load);
        assert_eq!(clone_api.get("/vm/config")["mmds-config"]["version"], "V2");
        wait_for_line(&clone, 0, expected);
        let stdout = clone.stdout();
        // By the token that was saved nothing is read.
        let until_token = stdout.split("token 200").next().unwrap_or_default();
        assert!(!until_token.contains(expected), "{stdout}");
        assert_eq!(clone_api.get("/mmds"), own.clone().unwrap_or(json!({})));
        clone_api.put("/mmds", &json!({"a": "four"}));
        let at = clone.stdout().len();
        wait_for_line(&clone, at, "200 /a four");
        assert_eq!(echo(&other, name), name);
        assert_only_others(&captured(&frames));
        let _ = clone.end();
    }
    assert!(!process.end().stdout.contains("three"));
}

#[test]
fn an_interface_that_is_not_named_does_not_reach_it() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    netns.ip("tuntap add dev tap1 mode tap");
    netns.ip("addr add 169.254.169.254/16 dev tap0");
    let frames = capture(&netns);
    let mut asked = config(&scratch, "get=/", &json!({"network_interfaces": ["eth1"]}));
    let second = json!({"iface_id": "eth1", "host_dev_name": "tap1"});
    asked["network-interfaces"]
        .as_array_mut()
        .expect("a list")
        .push(second);
    let config = scratch.config("vm.json", &asked);
    let finished = netns.within(|| run(&mut scratch.vmm(&["--config", &config])));
    // The host itself, which nobody listens on, refuses the connection.
    assert_eq!(finished.with_code(0).stdout, "none / \n");
    let frames = captured(&frames);
    let to_service = |frame: &&Vec<u8>| frame.windows(4).any(|four| four == SERVICE);
    assert!(frames.iter().filter(to_service).count() > 1, "{frames:x?}");
}
