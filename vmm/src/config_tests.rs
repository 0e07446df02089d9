use super::*;

const HOST: u64 = 8 << 30;

fn prove(json: &str) -> Result<MachineConfig, Vec<String>> {
    let spec: VmSpec = serde_json::from_str(json).expect("the JSON of a test is well-formed");
    MachineConfig::prove(spec, HOST)
        .map_err(|faults| faults.0.into_iter().map(|f| f.field).collect())
}

fn check_fault(json: &str, field: &str) {
    let faults = prove(json).expect_err(json);
    assert_eq!(faults, [field], "{json}");
}

#[test]
fn defaults_are_firecrackers() {
    let config = prove(r#"{"boot-source":{"kernel_image_path":"k"}}"#).unwrap();
    assert_eq!((config.vcpus(), config.ram_bytes()), (1, 128 << 20));
    assert_eq!(config.boot().unwrap().args, DEFAULT_BOOT_ARGS);
}

#[test]
fn vcpu_counts_outside_the_range_are_refused() {
    for count in ["0", "33", "255", "256", "9999"] {
        check_fault(
            &format!(r#"{{"machine-config":{{"vcpu_count":{count}}}}}"#),
            "machine-config.vcpu_count",
        );
    }
    for count in 1..=32 {
        assert!(prove(&format!(r#"{{"machine-config":{{"vcpu_count":{count}}}}}"#)).is_ok());
    }
}

#[test]
fn memory_outside_the_range_is_refused() {
    for mib in [0, 1, 15, 8193, 1 << 20, 1 << 32, 1_u64 << 53] {
        check_fault(
            &format!(r#"{{"machine-config":{{"mem_size_mib":{mib}}}}}"#),
            "machine-config.mem_size_mib",
        );
    }
}

#[test]
fn numbers_of_queues_outside_the_range_are_refused() {
    let drive = |count: u32| {
        format!(r#"{{"drives":[{{"drive_id":"d","path_on_host":"p","num_queues":{count}}}]}}"#)
    };
    for count in [0, 17, 65535] {
        check_fault(&drive(count), "drives[0].num_queues");
    }
    for count in [1, 16] {
        assert_eq!(
            u32::from(prove(&drive(count)).unwrap().drives()[0].queues),
            count
        );
    }
}

#[test]
fn only_a_tap_by_name_has_several_queue_pairs() {
    let net = |host: &str, count: u32| {
        format!(r#"{{"network-interfaces":[{{"iface_id":"e",{host},"num_queues":{count}}}]}}"#)
    };
    let [tap, fd, user] = [r#""host_dev_name":"t""#, r#""host_fd":3"#, r#""user":{}"#];
    for (host, count) in [(tap, 0), (tap, 9), (fd, 2), (user, 2), (user, 0)] {
        check_fault(&net(host, count), "network-interfaces[0].num_queues");
    }
    for (host, count) in [(tap, 1), (tap, 8), (fd, 1), (user, 1)] {
        let pairs = prove(&net(host, count)).unwrap().nets()[0].pairs;
        assert_eq!(u32::from(pairs), count, "{host}");
    }
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    for (key, value) in [
        ("pmem", r#"[{"id":"p","path_on_host":"f"}]"#),
        ("memory-hotplug", r#"{"total_size_mib":128}"#),
    ] {
        check_fault(&format!(r#"{{"{key}":{value}}}"#), key);
        assert!(prove(&format!(r#"{{"{key}":null}}"#)).is_ok(), "null {key}");
    }
}

#[test]
fn a_balloon_is_at_most_as_large_as_memory() {
    let balloon = |mib: u64| {
        format!(
            r#"{{"machine-config":{{"mem_size_mib":64}},"balloon":{{"amount_mib":{mib},"deflate_on_oom":true}}}}"#
        )
    };
    check_fault(&balloon(65), "balloon.amount_mib");
    for mib in [0, 64] {
        let config = prove(&balloon(mib)).unwrap();
        assert_eq!(
            config
                .balloon()
                .map(|balloon| u64::from(balloon.amount_mib)),
            Some(mib)
        );
    }
}

#[test]
fn ids_must_be_plain_and_unique() {
    let drive = |id: &str| format!(r#"{{"drive_id":"{id}","path_on_host":"p"}}"#);
    for id in ["", "a/b", "..", "%2e", "a b", "é", &"a".repeat(65)] {
        check_fault(
            &format!(r#"{{"drives":[{}]}}"#, drive(id)),
            "drives[0].drive_id",
        );
    }
    check_fault(
        &format!(r#"{{"drives":[{},{}]}}"#, drive("a"), drive("a")),
        "drives[1].drive_id",
    );
}

#[test]
fn two_root_drives_are_refused_and_one_comes_first() {
    let root =
        |id: &str| format!(r#"{{"drive_id":"{id}","path_on_host":"p","is_root_device":true}}"#);
    check_fault(
        &format!(r#"{{"drives":[{},{}]}}"#, root("a"), root("b")),
        "drives[1].is_root_device",
    );
    let json = format!(
        r#"{{"drives":[{{"drive_id":"a","path_on_host":"p"}},{}]}}"#,
        root("b")
    );
    assert_eq!(prove(&json).unwrap().drives()[0].id, "b");
}

#[test]
fn interfaces_do_not_share_a_tap_or_an_address() {
    let net = |id: &str, tap: &str, mac: &str| {
        format!(r#"{{"iface_id":"{id}","host_dev_name":"{tap}","guest_mac":"{mac}"}}"#)
    };
    let pair = |a: String, b: String| format!(r#"{{"network-interfaces":[{a},{b}]}}"#);
    let (one, two) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
    check_fault(
        &pair(net("a", "t", one), net("b", "t", two)),
        "network-interfaces[1].host_dev_name",
    );
    check_fault(
        &pair(net("a", "t", one), net("b", "u", one)),
        "network-interfaces[1].guest_mac",
    );
    for bad in [
        "+1:02:03:04:05:06",
        "1:2:3:4:5:6",
        "02-00-00-00-00-01",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
    ] {
        check_fault(
            &format!(r#"{{"network-interfaces":[{}]}}"#, net("a", "t", bad)),
            "network-interfaces[0].guest_mac",
        );
    }
}

#[test]
fn vsock_needs_a_guest_s_address_and_a_path_that_a_socket_can_have() {
    let vsock =
        |cid: u64, path: &str| format!(r#"{{"vsock":{{"guest_cid":{cid},"uds_path":"{path}"}}}}"#);
    for cid in [0, 1, 2, 0xffff_ffff] {
        check_fault(&vsock(cid, "u"), "vsock.guest_cid");
    }
    for path in ["", &"a".repeat(108)] {
        check_fault(&vsock(3, path), "vsock.uds_path");
    }
    for cid in [3, 0xffff_fffe] {
        let longest = "a".repeat(107);
        let config = prove(&vsock(cid, &longest)).unwrap();
        let vsock = config.vsock().unwrap();
        assert_eq!(u64::from(vsock.guest_cid), cid);
        assert_eq!(vsock.path, Path::new(&longest));
    }
}

#[test]
fn the_metadata_service_is_on_known_interfaces_at_a_link_local_address() {
    let json = |mmds: &str| {
        format!(
            r#"{{"network-interfaces":[{{"iface_id":"a","host_dev_name":"t"}},
                {{"iface_id":"b","host_dev_name":"u"}}],"mmds-config":{mmds}}}"#
        )
    };
    let config = prove(&json(r#"{"network_interfaces":["b"]}"#)).unwrap();
    let mmds = config.mmds().unwrap();
    assert_eq!(mmds.options_of("a"), None);
    let options = mmds.options_of("b").unwrap();
    assert_eq!(options.address.to_string(), "169.254.169.254");
    check_fault(
        &json(r#"{"network_interfaces":[]}"#),
        "mmds-config.network_interfaces",
    );
    check_fault(
        &json(r#"{"network_interfaces":["a","x"]}"#),
        "mmds-config.network_interfaces[1]",
    );
    for address in ["10.0.0.1", "169.254.0.1", "169.254.255.1", "169.255.1.1"] {
        check_fault(
            &json(&format!(
                r#"{{"network_interfaces":["a"],"ipv4_address":"{address}"}}"#
            )),
            "mmds-config.ipv4_address",
        );
    }
    let last = r#"{"network_interfaces":["a"],"ipv4_address":"169.254.254.255","version":"V2","imds_compat":true}"#;
    assert!(prove(&json(last)).is_ok());
}

#[test]
fn all_faults_are_reported_at_once() {
    let json = r#"{"machine-config":{"vcpu_count":0,"mem_size_mib":0},"vsock":{"guest_cid":2,"uds_path":"u"}}"#;
    assert_eq!(
        prove(json).unwrap_err(),
        [
            "machine-config.vcpu_count",
            "machine-config.mem_size_mib",
            "vsock.guest_cid"
        ]
    );
}

#[test]
fn unknown_fields_are_refused() {
    for json in [
        r#"{"vcpus":1}"#,
        r#"{"machine-config":{"vcpus":1}}"#,
        r#"{"drives":[{"drive_id":"a","path_on_host":"p","x":1}]}"#,
    ] {
        let error = serde_json::from_str::<VmSpec>(json)
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
}

#[test]
fn a_machine_for_exec_has_a_socket_of_its_own_unless_one_is_named() {
    let own = prove(r#"{"exec":{}}"#).unwrap();
    let vsock = own.vsock().unwrap();
    let name = format!("{}.vsock", std::process::id());
    assert!(
        vsock.is_in_runtime_dir && vsock.path.ends_with(name),
        "{vsock:?}"
    );
    let named = prove(r#"{"exec":{},"vsock":{"guest_cid":7,"uds_path":"v"}}"#).unwrap();
    let vsock = named.vsock().unwrap();
    assert!(!vsock.is_in_runtime_dir && vsock.guest_cid == 7);
}
