//! What is wrong in a configuration is refused: one message that names the field or path and the reason, a documented
//! exit code, nothing left behind.

use std::fs;

use lightv_api::exit::BAD_CONFIG;
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Process, run, tool};
use lightv_tests::scratch::Scratch;
use lightv_tests::trial::Trial;
use lightv_tests::{disk, machine};
use serde_json::{Value, json};

#[test]
fn kernels_of_the_wrong_kind_are_refused_by_path_and_reason() {
    if !has_kvm() {
        return;
    }
    let vm = Trial::new();
    let elf = fs::read(vm.scratch.guest_kernel()).expect("the guest");
    let mut elf_32 = elf.clone();
    elf_32[4] = 1;
    let mut other_machine = elf.clone();
    other_machine[18] = 183;
    let with_start = |start: &[u8]| [start, &elf[start.len()..]].concat();
    let mut old_bzimage = machine::bzimage(&machine::code_that_exits(0));
    old_bzimage[0x236] = 0;
    let files: [(&str, Vec<u8>, &str); 11] = [
        ("gzip", with_start(b"\x1f\x8b\x08\0"), "gzip"),
        ("xz", with_start(b"\xfd7zXZ\0"), "xz"),
        ("zstd", with_start(b"\x28\xb5\x2f\xfd"), "zstd"),
        ("script", b"#!/bin/sh\n".to_vec(), "script"),
        ("empty", vec![], "0 bytes"),
        ("cut", elf[..100].to_vec(), "cut off"),
        ("cut-in-half", elf[..elf.len() / 2].to_vec(), "cut off"),
        ("elf-32", elf_32, "32-bit"),
        ("arm", other_machine, "another architecture"),
        ("bzimage-32", old_bzimage, "64-bit entry"),
        ("noise", disk::noise(100_000, 1), "no format"),
    ];
    for (name, bytes, word) in files {
        vm.scratch.write(name, bytes);
        vm.check(
            &json!({"boot-source": {"kernel_image_path": name}}),
            BAD_CONFIG,
            &[name, word],
        );
    }
    fs::create_dir(vm.scratch.path("folder")).expect("a folder");
    tool(&format!("mkfifo {}", vm.scratch.text("fifo")));
    for (path, word) in [
        ("folder", "not a regular file"),
        ("fifo", "not a regular file"),
        ("missing", "No such file"),
        ("/dev/null", "not a regular file"),
    ] {
        vm.check(
            &json!({"boot-source": {"kernel_image_path": path}}),
            BAD_CONFIG,
            &["kernel", path, word],
        );
    }
    vm.check(
        &json!({"boot-source": {"kernel_image_path": ""}}),
        BAD_CONFIG,
        &["kernel_image_path", "empty"],
    );
}

#[test]
fn a_kernel_without_the_entry_that_was_asked_for_is_refused() {
    if !has_kvm() {
        return;
    }
    let vm = Trial::new();
    vm.scratch
        .write("elf", machine::elf(&machine::code_that_exits(0)));
    vm.scratch
        .write("bzimage", machine::bzimage(&machine::code_that_exits(0)));
    for kernel in ["elf", "bzimage"] {
        let source = json!({"kernel_image_path": kernel, "boot_protocol": "pvh"});
        vm.check(
            &json!({"boot-source": source}),
            BAD_CONFIG,
            &[kernel, "PVH"],
        );
    }
    let source = json!({"kernel_image_path": "elf", "boot_protocol": "uefi"});
    vm.check(
        &json!({"boot-source": source}),
        BAD_CONFIG,
        &["boot-source.boot_protocol", "uefi", "pvh"],
    );
}

#[test]
fn initrds_that_cannot_be_used_are_refused() {
    if !has_kvm() {
        return;
    }
    let vm = Trial::new();
    let kernel = vm.scratch.guest_kernel();
    let boot = |initrd: &str| json!({"boot-source": {"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": "app=hello"}});
    vm.scratch.write("empty", "");
    fs::create_dir(vm.scratch.path("folder")).expect("a folder");
    tool(&format!("mkfifo {}", vm.scratch.text("fifo")));
    for (path, word) in [
        ("empty", "0 bytes"),
        ("folder", "not a regular file"),
        ("fifo", "not a regular file"),
        ("missing", "No such file"),
    ] {
        vm.check(&boot(path), BAD_CONFIG, &["initrd", path, word]);
    }
    // As large as RAM, larger, and so large that it fits RAM but not beside the kernel.
    for mib in [15, 16, 17, 200] {
        disk::create(&vm.scratch.path("initrd"), mib << 20);
        let small = machine::with(
            &boot("initrd"),
            &json!({"machine-config": {"mem_size_mib": 16}}),
        );
        vm.check(&small, BAD_CONFIG, &["initrd", "16 MiB"]);
    }
}

#[test]
fn memory_of_no_use_or_more_than_the_host_has_is_refused() {
    let vm = Trial::new();
    for mib in [0, 1, 15, 1 << 20, 1 << 32, 1_u64 << 53, u64::MAX] {
        let change = json!({"machine-config": {"mem_size_mib": mib}});
        vm.check(
            &change,
            BAD_CONFIG,
            &["machine-config.mem_size_mib", &mib.to_string(), "16–"],
        );
    }
    for value in [
        json!(-1),
        json!(1.5),
        json!("128"),
        json!(null),
        json!([128]),
        json!(1e30),
    ] {
        vm.check(
            &json!({"machine-config": {"mem_size_mib": value}}),
            BAD_CONFIG,
            &["vm.json", "line 1 column"],
        );
    }
}

#[test]
fn vcpu_counts_outside_the_range_are_refused_alike() {
    let vm = Trial::new();
    for count in [0, 33, 64, 128, 254, 255, 256, 9999, u64::MAX] {
        let change = json!({"machine-config": {"vcpu_count": count}});
        vm.check(
            &change,
            BAD_CONFIG,
            &["machine-config.vcpu_count", &count.to_string(), "1–32"],
        );
    }
    for value in [json!(-1), json!(1.5), json!("2"), json!(null)] {
        vm.check(
            &json!({"machine-config": {"vcpu_count": value}}),
            BAD_CONFIG,
            &["vm.json", "line 1 column"],
        );
    }
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    let vm = Trial::new();
    let machine = |key: &str, value: Value| json!({"machine-config": {key: value}});
    vm.check_field(&machine("smt", json!(true)), "machine-config.smt");
    vm.check_field(
        &machine("cpu_template", json!("V1N1")),
        "machine-config.cpu_template",
    );
    for (key, value) in [
        ("mmds-config", json!({"network_interfaces": ["n"]})),
        ("memory-hotplug", json!({"total_size_mib": 128})),
    ] {
        vm.check_field(&json!({key: value}), key);
    }
    let drive = json!({"drive_id": "d", "path_on_host": "p", "socket": "s"});
    vm.check_field(&json!({"drives": [drive]}), "drives[0].socket");
}

#[test]
fn keys_that_nobody_knows_are_refused_unless_they_say_nothing() {
    let vm = Trial::new();
    let nothing = json!({"vsock_device": null, "logger_system": null, "balloon": null});
    let finished = vm.run(&nothing);
    assert_eq!(finished.stdout, "Hello, world!\n", "{finished:?}");
    for unknown in [json!({"vsock_device": {}}), json!({"a": null, "b": 0})] {
        vm.run(&unknown)
            .assert_refused(BAD_CONFIG, &["unknown field"]);
    }
    // What is known must not be nothing.
    vm.run(&json!({"machine-config": null, "x": null}))
        .assert_refused(BAD_CONFIG, &["vm.json"]);
}

#[test]
fn options_of_disks_that_do_not_go_together_are_refused() {
    let vm = Trial::new();
    let in_image = json!({"is_read_only": true, "in_image": true});
    for (base, key, value) in [
        (json!({"is_read_only": true}), "discard", json!(true)),
        (in_image.clone(), "direct", json!(true)),
        (in_image, "io_engine", json!("Async")),
    ] {
        let drive = json!({"drive_id": "d", "path_on_host": "p", key: value});
        let drive = machine::with(&drive, &base);
        vm.check_field(&json!({"drives": [drive]}), &format!("drives[0].{key}"));
    }
}

#[test]
fn several_faults_are_told_at_once() {
    let vm = Trial::new();
    let finished =
        vm.run(&json!({"machine-config": {"vcpu_count": 0, "mem_size_mib": 0}, "vsock": {"guest_cid": 2, "uds_path": "v"}}));
    finished.assert_refused(
        BAD_CONFIG,
        &[
            "machine-config.vcpu_count",
            "machine-config.mem_size_mib",
            "vsock.guest_cid",
        ],
    );
}

#[test]
fn broken_configuration_files_are_refused_with_file_and_place() {
    let vm = Trial::new();
    let whole = vm.base.to_string();
    let check = |text: &[u8], words: &[&str]| {
        let finished = vm.run_text(text);
        println!("{}", finished.stderr.trim_end());
        finished.assert_refused(BAD_CONFIG, &[&["vm.json"], words].concat());
    };
    check(b"", &["0 bytes"]);
    for (text, words) in [
        ("{", "line 1 column 1"),
        ("[]", "line 1 column"),
        ("null", "line 1 column"),
        ("\u{feff}{}", "line 1 column 1"),
        (r#"{"vcpus":1}"#, "unknown field `vcpus`"),
        (r#"{"machine-config":{"vcpus":1}}"#, "unknown field `vcpus`"),
        (
            r#"{"machine-config":{},"machine-config":{}}"#,
            "duplicate field `machine-config`",
        ),
        (
            r#"{"drives":[{"path_on_host":"p"}]}"#,
            "missing field `drive_id`",
        ),
        (
            r#"{"network-interfaces":[{"iface_id":"e"}]}"#,
            "missing field `host_dev_name`",
        ),
        (r#"{"boot-source":{}}"#, "missing field `kernel_image_path`"),
        (
            r#"{"machine-config":{"mem_size_mib":1e400}}"#,
            "line 1 column",
        ),
        (
            r#"{"drives":[{"drive_id":"d","path_on_host":"p","cache_type":"None"}]}"#,
            "unknown variant `None`, expected `Unsafe` or `Writeback`",
        ),
        (r#"{"vsock":{"a":1}}"#, "unknown field `a`"),
    ] {
        check(text.as_bytes(), &[words]);
    }
    check(
        format!("{whole} x").as_bytes(),
        &["trailing characters", "line 1 column"],
    );
    check(b"\xff\xfe{}", &["line 1 column"]);
    check("[".repeat(10_000).as_bytes(), &["line 1 column"]);
    vm.run_text("{}")
        .assert_refused(BAD_CONFIG, &["boot-source"]);
    vm.run_text(" ".repeat(200 << 20))
        .assert_refused(BAD_CONFIG, &["vm.json", "bytes"]);
}

#[test]
fn configuration_files_that_cannot_be_read_are_refused() {
    let vm = Trial::new();
    fs::create_dir(vm.scratch.path("folder")).expect("a folder");
    tool(&format!("mkfifo {}", vm.scratch.text("fifo")));
    for (path, word) in [
        ("folder", "regular file"),
        ("fifo", "regular file"),
        ("missing", "No such file"),
    ] {
        let finished = run(&mut vm.scratch.vmm(&["--config", path]));
        finished.assert_refused(BAD_CONFIG, &[path, word]);
    }
    let mut from_stdin = vm.scratch.vmm(&["--config", "-"]);
    let finished =
        Process::start_with(&mut from_stdin, b"{]", std::process::Stdio::piped()).finish();
    finished.assert_refused(BAD_CONFIG, &["line 1 column 2"]);
}

#[test]
fn command_lines_that_are_no_text_for_a_kernel_are_refused() {
    let vm = Trial::new();
    let kernel = vm.scratch.guest_kernel();
    for args in ["a\nb", "ü", "a\0b"] {
        let source = json!({"kernel_image_path": kernel, "boot_args": args});
        vm.check_field(&json!({"boot-source": source}), "boot-source.boot_args");
    }
    if has_kvm() {
        let source = json!({"kernel_image_path": kernel, "boot_args": "x".repeat(3000)});
        vm.check(
            &json!({"boot-source": source}),
            BAD_CONFIG,
            &["boot-source.boot_args", "2047"],
        );
    }
}

#[test]
fn arguments_and_names_that_no_guest_can_have_are_refused() {
    if !has_kvm() {
        return;
    }
    let vm = Trial::new();
    let long = "x".repeat(61_440);
    for (run, words) in [
        (json!({"args": ["right", "a\0b"]}), ["Argument 1", "NUL"]),
        (json!({"env": {"A": "a\0b"}}), ["\"A\"", "NUL"]),
        (json!({"env": {"A=B": "1"}}), ["\"A=B\"", "'='"]),
        (json!({"env": {"": "1"}}), ["\"\"", "empty"]),
        (json!({"args": [long]}), ["61440", "61441"]),
        (json!({"args": [1]}), ["expected a string", "line 1 column"]),
        (
            json!({"arguments": []}),
            ["unknown field `arguments`", "line 1 column"],
        ),
    ] {
        vm.check(&json!({"run": run}), BAD_CONFIG, &words);
    }
}

#[test]
fn arguments_after_two_dashes_reach_the_guest_as_they_are() {
    if !has_kvm() {
        return;
    }
    let vm = Trial::new();
    let kernel = vm.scratch.guest_kernel();
    let drive = json!([{"drive_id": "r", "path_on_host": "disk", "is_root_device": true}]);
    disk::create(&vm.scratch.path("disk"), 1 << 20);
    for (args, expected) in [
        (
            "app=args console=ttyS0 reboot=k panic=1 -- a b=c",
            &["a", "b=c"][..],
        ),
        (
            "app=args init=/init -- --flag1 --flag2",
            &["--flag1", "--flag2"],
        ),
        ("app=args foo=x--y", &[]),
        ("app=args --flag", &[]),
        ("app=args -- a -- b", &["a", "--", "b"]),
        ("app=args --", &[]),
    ] {
        let source = json!({"kernel_image_path": kernel, "boot_args": args});
        let finished = vm
            .run(&json!({"boot-source": source, "drives": drive}))
            .with_code(0);
        let found = finished
            .stdout
            .lines()
            .filter(|line| line.starts_with("arg["));
        let found: Vec<&str> = found
            .filter_map(|line| line.split_once('='))
            .map(|(_, value)| value)
            .collect();
        assert_eq!(found, expected, "{args}");
    }
}

#[test]
fn ids_must_be_plain_unique_and_known() {
    let vm = Trial::new();
    let drive = |id: &str| json!({"drive_id": id, "path_on_host": "p"});
    let net = |id: &str| json!({"iface_id": id, "host_dev_name": format!("t{}", id.len())});
    for id in [
        "",
        "a/b",
        "..",
        "%2e%2e",
        "a%2fb",
        &"a".repeat(65),
        "e\u{301}",
        "a b",
        "a\n",
    ] {
        vm.check_field(&json!({"drives": [drive(id)]}), "drives[0].drive_id");
        vm.check_field(
            &json!({"network-interfaces": [net(id)]}),
            "network-interfaces[0].iface_id",
        );
    }
    vm.check_field(
        &json!({"drives": [drive("a"), drive("a")]}),
        "drives[1].drive_id",
    );
    vm.check_field(
        &json!({"network-interfaces": [net("a"), net("a")]}),
        "network-interfaces[1].iface_id",
    );
    let root = |id: &str| json!({"drive_id": id, "path_on_host": "p", "is_root_device": true});
    vm.check_field(
        &json!({"drives": [root("a"), root("b")]}),
        "drives[1].is_root_device",
    );
    let many: Vec<Value> = (0..20).map(|number| drive(&format!("d{number}"))).collect();
    vm.check(&json!({"drives": many}), BAD_CONFIG, &["drives", "19"]);
}

#[test]
fn disks_that_cannot_be_used_are_refused_by_id_and_path() {
    if !has_kvm() {
        return;
    }
    let vm = Trial::new();
    fs::create_dir(vm.scratch.path("folder")).expect("a folder");
    tool(&format!("mkfifo {}", vm.scratch.text("fifo")));
    for (name, bytes) in [("0-bytes", 0), ("1-byte", 1), ("511-bytes", 511)] {
        disk::create(&vm.scratch.path(name), bytes);
    }
    for read_only in [false, true] {
        for (path, word) in [
            ("missing", "No such file"),
            ("folder", "directory"),
            ("fifo", "FIFO"),
            ("/dev/null", "character device"),
            ("0-bytes", "0 bytes"),
            ("1-byte", "1 bytes"),
            ("511-bytes", "511 bytes"),
        ] {
            let drive =
                json!({"drive_id": "data_1", "path_on_host": path, "is_read_only": read_only});
            vm.check(
                &json!({"drives": [drive]}),
                BAD_CONFIG,
                &["data_1", path, word],
            );
        }
    }
    vm.check_field(
        &json!({"drives": [{"drive_id": "d", "path_on_host": ""}]}),
        "drives[0].path_on_host",
    );
}

#[test]
fn a_restore_refuses_disks_that_are_not_those_that_were_saved() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    disk::create(&scratch.path("disk"), 1 << 20);
    let image = scratch.build("blk", &["--disk", "data=disk"]);
    fs::create_dir(scratch.path("folder")).expect("a folder");
    tool(&format!("mkfifo {}", scratch.text("fifo")));
    disk::create(&scratch.path("empty"), 0);
    disk::create(&scratch.path("smaller"), (1 << 20) - 512);
    disk::create(&scratch.path("larger"), 2 << 20);
    let before = scratch.listing();
    for (path, words) in [
        ("missing", ["missing", "No such file"]),
        ("folder", ["folder", "directory"]),
        ("fifo", ["fifo", "FIFO"]),
        ("empty", ["empty", "0 bytes"]),
        ("smaller", ["1048576", "1048064"]),
        ("larger", ["1048576", "2097152"]),
    ] {
        let refused = scratch.run(&["run", &image, "--disk", &format!("data={path}"), "--", "1"]);
        println!("{}", refused.stderr.trim_end());
        refused.assert_refused(BAD_CONFIG, &[&["data"], &words[..]].concat());
    }
    scratch
        .run(&["run", &image, "--disk", "other=disk"])
        .assert_refused(BAD_CONFIG, &["--disk", "other", "data"]);
    scratch
        .run(&["run", &image, "--net", "eth0=tap0"])
        .assert_refused(BAD_CONFIG, &["--net", "eth0"]);
    scratch.assert_nothing_left(&before);
    fs::remove_file(scratch.path("disk")).expect("the disk");
    scratch
        .run(&["run", &image, "--", "1"])
        .assert_refused(BAD_CONFIG, &["data", "disk", "No such file"]);
}
