//! A host that has not what a machine needs, or refuses it: one message that names what and why, a documented exit
//! code, nothing left behind.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use lightv_api::exit::{BAD_CONFIG, HOST_FAILURE, OK, SAVE_FAILED};
use lightv_tests::host::{binary, has_kvm};
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Finished, Process, after_script, run, tool, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::trial::Trial;
use lightv_tests::unprivileged::{MOUNT_NAME_SPACE, UNPRIVILEGED, private_dev};
use serde_json::{Value, json};

#[test]
fn tap_names_and_addresses_that_cannot_be_are_refused() {
    let vm = Trial::new();
    let net =
        |tap: &str, mac: &str| json!({"iface_id": "eth0", "host_dev_name": tap, "guest_mac": mac});
    for mac in [
        "+1:02:03:04:05:06",
        "02:00:00:00:01",
        "02:00:00:00:00:01:02",
        "02-00-00-00-00-01",
        "2:0:0:0:0:1",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
        "",
    ] {
        let change = json!({"network-interfaces": [net("tap0", mac)]});
        vm.check(
            &change,
            BAD_CONFIG,
            &["network-interfaces[0].guest_mac", mac],
        );
    }
    let same_mac = json!([{"iface_id": "a", "host_dev_name": "t", "guest_mac": "02:00:00:00:00:01"},
        {"iface_id": "b", "host_dev_name": "u", "guest_mac": "02:00:00:00:00:01"}]);
    vm.check_field(
        &json!({"network-interfaces": same_mac}),
        "network-interfaces[1].guest_mac",
    );
    let same_tap =
        json!([{"iface_id": "a", "host_dev_name": "t"}, {"iface_id": "b", "host_dev_name": "t"}]);
    vm.check_field(
        &json!({"network-interfaces": same_tap}),
        "network-interfaces[1].host_dev_name",
    );
    for mtu in [0, 67, 65_536, 1_u64 << 40] {
        let with_mtu = json!([{"iface_id": "a", "host_dev_name": "t", "mtu": mtu}]);
        vm.check_field(
            &json!({"network-interfaces": with_mtu}),
            "network-interfaces[0].mtu",
        );
    }
    if !has_kvm() {
        return;
    }
    let netns = Netns::new();
    for tap in ["", "0123456789abcdef", "../x", "tap%d", "a b"] {
        let change = json!({"network-interfaces": [{"iface_id": "eth0", "host_dev_name": tap}]});
        let finished = netns.within(|| vm.run(&change));
        println!("{}", finished.stderr.trim_end());
        finished.assert_refused(BAD_CONFIG, &["eth0", tap]);
        assert_eq!(netns.links(), ["lo"]);
    }
}

#[test]
fn taps_that_are_busy_or_of_another_kind_are_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let vm = Trial::new();
    let netns = Netns::with_tap();
    netns.ip("tuntap add dev tun0 mode tun");
    netns.ip("tuntap add dev multi0 mode tap multi_queue");
    netns.ip("link add dummy0 type bridge");
    let links = netns.links();
    let config = machine::with(
        &machine::config(&vm.scratch.guest_kernel(), "idle"),
        &json!({"network-interfaces": machine::net()}),
    );
    let config = vm.scratch.config("first.json", &config);
    let first = netns.start(&mut vm.scratch.vmm(&["--config", &config]));
    // The first has it once its guest runs; until then the second may be first.
    first_has_its_tap(&first);
    for (tap, word) in [
        ("tap0", "in use"),
        ("tun0", "not a tap"),
        ("multi0", "multi_queue"),
        ("dummy0", "not a tap"),
    ] {
        let change = json!({"network-interfaces": [{"iface_id": "lan", "host_dev_name": tap}]});
        let finished = netns.within(|| run_beside(&vm, &change));
        println!("{}", finished.stderr.trim_end());
        finished.assert_refused(BAD_CONFIG, &["lan", tap, word]);
    }
    assert_eq!(netns.links(), links);
    assert_eq!(first.end().code, 143);
}

/// As [`Trial::run`], while another machine runs in the same folder.
fn run_beside(vm: &Trial, change: &Value) -> Finished {
    vm.scratch
        .write("second.json", machine::with(&vm.base, change).to_string());
    run(&mut vm.scratch.vmm(&["--config", "second.json"]))
}

fn first_has_its_tap(first: &Process) {
    wait_for("the first machine's tap", || {
        let files = fs::read_dir(format!("/proc/{}/fd", first.pid())).ok()?;
        let mut targets = files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok());
        targets
            .any(|target| target.starts_with("/dev/net/tun"))
            .then_some(())
    });
    // Open is not attached yet: the attaching call follows at once.
    wait_for("the first machine's vCPU", || {
        let files = fs::read_dir(format!("/proc/{}/fd", first.pid())).ok()?;
        let mut targets = files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok());
        targets
            .any(|target| target.to_string_lossy().contains("kvm-vcpu"))
            .then_some(())
    });
}

#[test]
fn a_missing_tap_is_made_and_goes_with_the_machine() {
    if !has_kvm() {
        return;
    }
    let vm = Trial::new();
    let netns = Netns::new();
    let change =
        json!({"network-interfaces": [{"iface_id": "eth0", "host_dev_name": "0123456789abcde"}]});
    let _ = netns.within(|| vm.run(&change)).with_code(0);
    wait_for("the tap's end", || (netns.links() == ["lo"]).then_some(()));
}

/// A machine whose files everyone may read, and `lightv-vmm --config` for it as the user nobody.
fn as_nobody(change: &Value) -> (Trial, Command) {
    let mut vm = Trial::new();
    let open = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our file");
    };
    open(vm.scratch.folder(), 0o755);
    fs::copy(vm.scratch.guest_kernel(), vm.scratch.path("kernel")).expect("a copy");
    fs::copy(binary("lightv-vmm"), vm.scratch.path("vmm")).expect("a copy");
    vm.base = machine::config("kernel", "hello");
    vm.scratch
        .write("vm.json", machine::with(&vm.base, change).to_string());
    for file in ["kernel", "vmm", "vm.json"] {
        open(&vm.scratch.path(file), 0o755);
    }
    let vmm = vm.scratch.text("vmm");
    let args = [&UNPRIVILEGED[1..], &[&vmm, "--config", "vm.json"]].concat();
    let command = vm.scratch.command(UNPRIVILEGED[0], &args);
    (vm, command)
}

#[test]
fn an_absent_or_forbidden_kvm_is_named_with_what_to_do() {
    let (vm, as_nobody) = as_nobody(&json!({}));
    let as_root = vm.scratch.vmm(&["--config", "vm.json"]);
    let before = vm.scratch.listing();
    for (mode, command, word) in [
        (None, &as_root, "No such file"),
        (Some("600"), &as_nobody, "Permission denied"),
    ] {
        let finished = run(&mut after_script(
            &MOUNT_NAME_SPACE,
            &private_dev(mode),
            command,
        ));
        println!("{}", finished.stderr.trim_end());
        finished.assert_refused(HOST_FAILURE, &["/dev/kvm", word]);
    }
    let lightv = vm.scratch.lightv(&["build", "hello", "-o", "x.lv"]);
    let finished = run(&mut after_script(
        &MOUNT_NAME_SPACE,
        &private_dev(None),
        &lightv,
    ));
    assert_eq!(finished.code, i32::from(HOST_FAILURE), "{finished:?}");
    assert!(finished.stderr.contains("/dev/kvm"), "{finished:?}");
    let doctor = vm.scratch.lightv(&["doctor"]);
    let finished = run(&mut after_script(
        &MOUNT_NAME_SPACE,
        &private_dev(None),
        &doctor,
    ));
    assert!(
        finished.code == 1 && finished.stdout.contains("/dev/kvm"),
        "{finished:?}"
    );
    vm.scratch.assert_nothing_left(&before);
}

#[test]
fn a_user_needs_no_privilege_but_kvm() {
    if !has_kvm() {
        return;
    }
    let (_vm, as_nobody) = as_nobody(&json!({}));
    let finished = run(&mut after_script(
        &MOUNT_NAME_SPACE,
        &private_dev(Some("666")),
        &as_nobody,
    ));
    assert_eq!(finished.with_code(0).stdout, "Hello, world!\n");
}

#[test]
fn a_user_has_a_network_without_privileges() {
    if !has_kvm() {
        return;
    }
    let netns = Netns::with_tap();
    netns.ip("link set lo up");
    netns.ip("route add default via 10.0.0.254");
    let (_vm, as_nobody) = as_nobody(&json!({
        "boot-source": machine::config("kernel", "echo")["boot-source"],
        "network-interfaces": [{"iface_id": "lan", "user": {"publish": ["8080:7"]}}],
        "run": {"env": {"LIGHTV_IP": "10.0.2.15/24,10.0.2.2"}},
    }));
    let mut command = after_script(&MOUNT_NAME_SPACE, &private_dev(Some("666")), &as_nobody);
    let process = netns.start(&mut command);
    let address = SocketAddr::from(([127, 0, 0, 1], 8080));
    wait_for("the guest's answer", || {
        let mut stream = netns.try_connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"echo").ok()?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).ok()?;
        (answer == *b"echo").then_some(())
    });
    assert_eq!(process.end().code, 143);
}

#[test]
fn a_user_is_told_about_taps_that_are_missing_or_not_theirs() {
    if !has_kvm() {
        return;
    }
    let netns = Netns::with_tap();
    netns.ip("tuntap add dev owned0 mode tap user 65534");
    netns.ip("tuntap add dev other0 mode tap user 65533");
    for (tap, words) in [
        ("absent0", &["does not exist", "CAP_NET_ADMIN"][..]),
        ("other0", &["No permission"]),
        ("owned0", &[]),
    ] {
        let (_vm, as_nobody) =
            as_nobody(&json!({"network-interfaces": [{"iface_id": "lan", "host_dev_name": tap}]}));
        let mut command = after_script(&MOUNT_NAME_SPACE, &private_dev(Some("666")), &as_nobody);
        let finished = netns.start(&mut command).finish();
        println!("{}", finished.stderr.trim_end());
        if words.is_empty() {
            assert_eq!(finished.with_code(0).stdout, "Hello, world!\n");
        } else {
            finished.assert_refused(BAD_CONFIG, &[&["lan", tap], words].concat());
        }
    }
    assert_eq!(netns.links().len(), 4, "lo and three taps");
}

#[test]
fn a_save_that_cannot_be_leaves_nothing() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = machine::config(&scratch.guest_kernel(), "hello");
    let config = scratch.config("vm.json", &config);
    fs::create_dir(scratch.path("folder")).expect("a folder");
    tool(&format!("mkfifo {}", scratch.text("fifo")));
    let before = scratch.listing();
    for (target, word) in [
        ("folder", "directory"),
        ("folder/", "file name"),
        ("fifo", "not a regular file"),
        ("missing/x.lv", "No such file"),
        ("/proc/x.lv", "/proc/x.lv"),
        ("vm.json/x.lv", "Not a directory"),
    ] {
        let finished = run(&mut scratch.vmm(&["--config", &config, "--save", target]));
        println!("{}", finished.stderr.trim_end());
        finished.assert_refused(SAVE_FAILED, &[target, word]);
        scratch.assert_nothing_left(&before);
    }
    for target in ["missing/x.lv", "/proc/x.lv"] {
        let finished = scratch.run(&["build", "hello", "-o", target]);
        assert!(
            [HOST_FAILURE, SAVE_FAILED]
                .map(i32::from)
                .contains(&finished.code),
            "{finished:?}"
        );
        assert!(
            finished
                .stderr
                .contains(target.rsplit_once('/').expect("a folder").0),
            "{finished:?}"
        );
        scratch.assert_nothing_left(&before);
    }
}

/// Writes a file that looks like an image, so that a save would replace it.
const OLD_IMAGE: &str = "printf 'LightV\\032\\nold\\n'";
/// What stands in it.
const OLD_TEXT: &str = "LightV\x1a\nold\n";

#[test]
fn a_disk_that_is_full_or_read_only_leaves_the_old_image() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = machine::config(&scratch.guest_kernel(), "hello");
    let config = scratch.config("vm.json", &config);
    for folder in ["full", "read-only"] {
        fs::create_dir(scratch.path(folder)).expect("a folder");
    }
    let before = scratch.listing();
    let check = |mounts: &str, target: &str, word: &str| {
        // What is in the folder afterwards is shown by the shell: the mount is gone with it.
        let vmm = scratch.vmm(&["--config", &config, "--save", target]);
        let script = format!(
            "{mounts}\ntrap 'true' EXIT\n\"$@\" || code=$?\nls -A full read-only >&2\ncat {target} 2>/dev/null || true\nexit $code"
        );
        let finished = run(&mut after_script(&MOUNT_NAME_SPACE, &script, &vmm));
        println!("{}", finished.stderr.trim_end());
        assert_eq!(finished.code, i32::from(SAVE_FAILED), "{finished:?}");
        assert!(
            finished.stderr.contains(target) && finished.stderr.contains(word),
            "{finished:?}"
        );
        finished
    };
    let full = "mount -t tmpfs -o size=64k tmpfs full";
    let finished = check(full, "full/x.lv", "No space left");
    assert!(
        finished.stderr.ends_with("full:\n\nread-only:\n"),
        "{finished:?}"
    );
    let finished = check(
        &format!("{full}; {OLD_IMAGE} >full/x.lv"),
        "full/x.lv",
        "No space left",
    );
    assert!(
        finished.stdout == OLD_TEXT && finished.stderr.ends_with("full:\nx.lv\n\nread-only:\n"),
        "{finished:?}"
    );
    let read_only = format!(
        "mount -t tmpfs tmpfs read-only; {OLD_IMAGE} >read-only/x.lv; mount -o remount,ro read-only"
    );
    let finished = check(&read_only, "read-only/x.lv", "Read-only file system");
    assert_eq!(finished.stdout, OLD_TEXT);
    scratch.assert_nothing_left(&before);
}

#[test]
fn a_file_size_limit_is_an_error_of_the_save_not_a_death() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = machine::config(&scratch.guest_kernel(), "hello");
    let config = scratch.config("vm.json", &config);
    let before = scratch.listing();
    let vmm = scratch.vmm(&["--config", &config, "--save", "x.lv"]);
    let finished = run(&mut after_script(&["prlimit", "--fsize=65536"], ":", &vmm));
    finished.assert_refused(SAVE_FAILED, &["x.lv", "File too large"]);
    scratch.assert_nothing_left(&before);
}

#[test]
fn images_that_are_none_are_refused_by_every_command() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("folder.lv")).expect("a folder");
    tool(&format!("mkfifo {}", scratch.text("fifo.lv")));
    scratch.write("empty.lv", "");
    let before = scratch.listing();
    for (image, word) in [
        ("missing.lv", "No such file"),
        ("folder.lv", "not a regular file"),
        ("fifo.lv", "not a regular file"),
        ("empty.lv", "not a LightV image"),
    ] {
        for job in ["--restore", "--boot", "--describe"] {
            let finished = run(&mut scratch.vmm(&[job, image]));
            finished.assert_refused(BAD_CONFIG, &[image, word]);
        }
    }
    scratch.assert_nothing_left(&before);
}

#[test]
fn a_save_never_replaces_what_is_not_an_image() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let kernel = scratch.guest_kernel();
    // A disk whose guest has made it look like an image.
    scratch.write("disk", [b"LightV\x1a\n".as_slice(), &[0; 4088]].concat());
    scratch.write("notes", "mine");
    let config = machine::config(&kernel, "hello");
    let drives = json!({"drives": [machine::disk("d", "disk", "Unsafe")]});
    let config = scratch.config("vm.json", &machine::with(&config, &drives));
    let before = scratch.listing();
    for (target, words) in [
        ("disk", ["disk", "a disk of the machine"]),
        ("./disk", ["disk", "a disk of the machine"]),
        ("notes", ["notes", "not a LightV image"]),
        ("vm.json", ["vm.json", "not a LightV image"]),
        (&kernel, [&kernel, "not a LightV image"]),
    ] {
        let finished = run(&mut scratch.vmm(&["--config", &config, "--save", target]));
        finished.assert_refused(SAVE_FAILED, &words);
    }
    scratch.assert_nothing_left(&before);
    for _ in 0..2 {
        let args = ["--config", &config, "--save", "x.lv"];
        let _ = run(&mut scratch.vmm(&args)).with_code(OK);
    }
}
