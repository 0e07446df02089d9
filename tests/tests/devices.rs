//! Disks, networks and random bytes, as a guest has them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use lightv_api::exit::OK;
use lightv_tests::disk::{self, blocks_of, noise};
use lightv_tests::host::has_kvm;
use lightv_tests::http::{disk_job, get};
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Finished, Process, after_script, run, tool, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};
use rustix::process::Signal;
use serde_json::json;

const MIB: u64 = 1 << 20;

/// An image `blk.lv` with a disk of `bytes`, and options for it.
fn blk_image(scratch: &Scratch, bytes: u64, options: &str) -> String {
    disk::create(&scratch.path("disk"), bytes);
    scratch.build("blk", &["--disk", &format!("data_1=disk{options}")])
}

fn blk(scratch: &Scratch, image: &str, args: &str) -> Finished {
    let args: Vec<&str> = args.split(' ').collect();
    scratch.run(&[&["run", image, "--"], &args[..]].concat())
}

#[test]
fn what_a_guest_writes_is_on_the_disk_and_read_back_by_the_next() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for options in [
        "",
        ",cache=writeback",
        ",cache=unsafe",
        ",engine=async",
        ",engine=async,cache=writeback",
        ",direct",
        ",direct,engine=async,discard",
    ] {
        let image = blk_image(&scratch, 2 * MIB, options);
        let written = blk(&scratch, &image, "42 512").with_code(OK);
        assert!(
            written
                .stdout
                .contains("blk ok capacity_sectors=4096 id=data_1 blocks=512 checksum="),
            "{written:?}"
        );
        assert_eq!(
            blocks_of(&scratch.read("disk"), 42),
            (0..512).collect::<Vec<_>>()
        );
        for cold in [&["run"][..], &["run", "--cold"]] {
            let verified = scratch
                .run(&[cold, &[&image, "--", "verify", "42", "512"]].concat())
                .with_code(OK);
            assert_eq!(verified.stdout, written.stdout);
        }
        let other = blk(&scratch, &image, "verify 43 512").with_code(1);
        assert!(other.stdout.contains("blk error"), "{other:?}");
        assert_eq!((written.stderr.as_str(), other.stderr.as_str()), ("", ""));
    }
}

#[test]
fn the_edge_of_a_disk_of_any_size_holds() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for bytes in [
        512,
        513,
        1000,
        1023,
        1024,
        4096,
        4097,
        MIB,
        MIB + 511,
        300_000_001,
        5_000_000_000,
    ] {
        let image = blk_image(&scratch, bytes, "");
        let finished = blk(&scratch, &image, "edge").with_code(OK);
        let expected = format!("blk ok capacity_sectors={} id=data_1", bytes / 512);
        assert!(
            finished.stdout.starts_with(&expected),
            "{bytes}: {finished:?}"
        );
        assert_eq!(
            fs::metadata(scratch.path("disk")).expect("the disk").len(),
            bytes
        );
    }
}

#[test]
fn a_last_sector_that_the_guest_does_not_see_is_told_once() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for (bytes, warnings) in [(512, 0), (513, 1), (1000, 1), (MIB + 511, 1)] {
        let image = blk_image(&scratch, bytes, "");
        for options in [&["run"][..], &["run", "--cold"]] {
            let finished = scratch
                .run(&[options, &[&image, "--", "edge"]].concat())
                .with_code(OK);
            let told = finished
                .stderr
                .lines()
                .filter(|line| line.contains("disk"))
                .count();
            assert_eq!(told, warnings, "{bytes}: {finished:?}");
        }
    }
}

#[test]
fn a_read_only_disk_is_never_changed() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let content = noise(200_000 / 512 * 512, 3);
    scratch.write("disk", &content);
    let image = scratch.build("blk", &["--disk", "data_1=disk,ro"]);
    let finished = blk(&scratch, &image, "read-only").with_code(OK);
    assert!(finished.stdout.contains("blk ok"), "{finished:?}");
    let refused = blk(&scratch, &image, "5 10").with_code(1);
    assert!(refused.stdout.contains("blk error"), "{refused:?}");
    assert!(scratch.read("disk") == content);
    // What is not read-only says so.
    disk::create(&scratch.path("other"), MIB);
    let image = scratch.build("blk", &["--disk", "data_1=other"]);
    assert!(
        blk(&scratch, &image, "read-only")
            .with_code(1)
            .stdout
            .contains("blk error")
    );
}

#[test]
fn a_read_only_disk_needs_no_right_to_write() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("mount")).expect("a folder");
    let image = scratch.build("blk", &[]);
    let mut config = machine::config(&scratch.guest_kernel(), "blk");
    config["run"] = json!({"args": ["read-only"]});
    let drive = |read_only: bool| json!([{"drive_id": "d", "path_on_host": "mount/disk", "is_read_only": read_only}]);
    let mounts = "mount -t tmpfs tmpfs mount; truncate -s 1M mount/disk; mount -o remount,ro mount";
    let wrapper = ["unshare", "--mount", "--propagation", "private"];
    for (read_only, code) in [(true, 0), (false, 152)] {
        let config = scratch.config(
            "vm.json",
            &machine::with(&config, &json!({"drives": drive(read_only)})),
        );
        let finished = run(&mut after_script(
            &wrapper,
            mounts,
            &scratch.vmm(&["--config", &config]),
        ));
        assert_eq!(finished.code, code, "{finished:?}");
        assert!(
            read_only || finished.stderr.contains("mount/disk"),
            "{finished:?}"
        );
    }
    drop(image);
}

#[test]
fn many_disks_keep_their_order_and_their_ids() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let ids = ["a", "b_2", "0123456789abcdef0123456789"];
    let disks: Vec<String> = ids.iter().map(|id| format!("{id}=disk-{id}")).collect();
    for (id, mib) in ids.iter().zip(1..) {
        disk::create(&scratch.path(&format!("disk-{id}")), mib * MIB);
    }
    let options: Vec<&str> = disks.iter().flat_map(|disk| ["--disk", disk]).collect();
    let image = scratch.build("blk", &options);
    for (index, id) in ids.iter().enumerate() {
        let finished = blk(&scratch, &image, &format!("{} 10 {index}", index + 7)).with_code(OK);
        // The serial number of a virtio disk has 20 bytes.
        let shown: String = id.chars().take(20).collect();
        let expected = format!("capacity_sectors={} id={shown} ", (index + 1) * 2048);
        assert!(finished.stdout.contains(&expected), "{finished:?}");
    }
    for (id, seed) in ids.iter().zip(7..) {
        let numbers = blocks_of(&scratch.read(&format!("disk-{id}")), seed);
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    }
}

/// A block device on the host: what was not flushed to it is not in the file behind it.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool(&format!("losetup --detach {}", self.0));
    }
}

#[test]
fn a_writeback_disk_is_flushed_to_the_device() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let behind = scratch.path("behind");
    disk::create(&behind, 2 * MIB);
    let device = tool(&format!("losetup --find --show {}", behind.display()));
    let device = Loop(device.trim().to_owned());
    // While it is open here too, the machine's end flushes nothing.
    let _open = fs::File::open(&device.0).expect("the device");
    let image = scratch.build(
        "blk",
        &["--disk", &format!("d={},cache=writeback", device.0)],
    );
    let finished = blk(&scratch, &image, "21 256").with_code(OK);
    assert!(
        finished.stdout.contains("capacity_sectors=4096"),
        "{finished:?}"
    );
    assert_eq!(
        blocks_of(&scratch.read("behind"), 21),
        (0..256).collect::<Vec<_>>()
    );
}

#[test]
fn a_host_that_has_no_room_gives_the_guest_an_error() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("small")).expect("a folder");
    let mut config = machine::config(&scratch.guest_kernel(), "blk");
    config["run"] = json!({"args": ["5", "2048"]});
    let with_disk = |path: &str| {
        let drives = json!({"drives": [machine::disk("d", path, "Writeback")]});
        scratch.config("vm.json", &machine::with(&config, &drives))
    };
    let check = |finished: Finished| {
        let finished = finished.with_code(1);
        assert!(finished.stdout.contains("blk error write"), "{finished:?}");
        let said = finished.stderr.lines().count();
        assert!(said < 20, "{finished:?}");
    };
    let full = "mount -t tmpfs -o size=2M tmpfs small; truncate -s 16M small/disk";
    let vmm = scratch.vmm(&["--config", &with_disk("small/disk")]);
    check(run(&mut after_script(
        &["unshare", "--mount", "--propagation", "private"],
        full,
        &vmm,
    )));
    // A limit of the process: no signal may end it.
    disk::create(&scratch.path("disk"), 16 * MIB);
    let vmm = scratch.vmm(&["--config", &with_disk("disk")]);
    check(run(&mut after_script(
        &["prlimit", "--fsize=2097152"],
        ":",
        &vmm,
    )));
}

#[test]
fn a_disk_that_shrinks_under_a_guest_gives_errors_and_the_machine_lives() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    disk::create(&scratch.path("disk"), 16 * MIB);
    let image = netns.within(|| {
        scratch.build(
            "server",
            &["--net", "tap0,ip=10.0.0.2/24", "--disk", "d=disk"],
        )
    });
    let mut process = netns.start(&mut scratch.lightv(&["run", &image, "--", "9"]));
    let address = machine::guest_at(2, 80);
    let job = || disk_job(&netns, address);
    wait_for("the whole disk", || (job().written > 4096).then_some(()));
    assert_eq!(job().errors, 0);
    let file = fs::File::options()
        .write(true)
        .open(scratch.path("disk"))
        .expect("the disk");
    wait_for("an error in the guest", || {
        file.set_len(MIB).expect("a shorter disk");
        (job().errors > 0).then_some(())
    });
    file.set_len(16 * MIB).expect("the whole disk");
    // Once it has written all blocks anew, all is well again.
    let written = job().written;
    wait_for("another round of the disk", || {
        (job().written > written + 4096).then_some(())
    });
    let healed = job();
    wait_for("more blocks", || {
        (job().verified > healed.verified + 500).then_some(())
    });
    assert_eq!(job().errors, healed.errors);
    assert!(process.is_alive());
    assert_eq!(get(&netns, address, "/"), "Hello, world!\n");
    let finished = process.end();
    assert_eq!(finished.code, 143);
    let own = finished
        .stderr
        .lines()
        .filter(|line| line.starts_with("lightv-vmm"))
        .count();
    assert!(own < 20, "{}", finished.stderr);
}

#[test]
fn a_disk_that_is_removed_stays_for_its_guest() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    disk::create(&scratch.path("disk"), 2 * MIB);
    let image = netns.within(|| {
        scratch.build(
            "server",
            &["--net", "tap0,ip=10.0.0.2/24", "--disk", "d=disk"],
        )
    });
    let process = netns.start(&mut scratch.lightv(&["run", &image]));
    let job = || disk_job(&netns, machine::guest_at(2, 80));
    wait_for("some blocks", || (job().written > 100).then_some(()));
    fs::remove_file(scratch.path("disk")).expect("the disk");
    let written = job().written;
    wait_for("more blocks", || {
        (job().written > written + 1000).then_some(())
    });
    assert_eq!(job().errors, 0);
    assert_eq!(process.end().code, 143);
}

#[test]
fn random_bytes_differ_between_machines_and_clones() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("entropy", &["--entropy"]);
    let mut seen = std::collections::BTreeSet::new();
    for options in [
        &["run"][..],
        &["run"],
        &["run", "--cold"],
        &["run", "--cold"],
    ] {
        let finished = scratch.run(&[options, &[&image]].concat()).with_code(OK);
        let text = finished.stdout.trim();
        assert!(
            text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{finished:?}"
        );
        assert!(
            text.bytes().any(|byte| byte != text.as_bytes()[0]),
            "{finished:?}"
        );
        assert!(seen.insert(text.to_owned()), "twice: {text}");
    }
    let without = scratch.build("entropy", &[]);
    assert_eq!(scratch.run(&["run", &without]).code, 2);
}

/// Sends `data` over TCP and gives what comes back.
fn tcp_echo(netns: &Netns, address: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut stream = netns.connect(address);
    let mut writer = stream.try_clone().expect("the connection");
    let mut back = vec![0; data.len()];
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(data).expect("a connection that takes all"));
        stream
            .read_exact(&mut back)
            .expect("a connection that gives all back");
    });
    back
}

/// Sends `data` over UDP, a datagram at a time, each with its number; gives what comes back.
fn udp_echo(socket: &UdpSocket, data: &[u8]) -> Vec<u8> {
    const NUMBER_BYTES: usize = 4;
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("a time-out");
    let mut back = Vec::with_capacity(data.len());
    for (number, piece) in (0_u32..).zip(data.chunks(1400)) {
        let packet = [&number.to_le_bytes()[..], piece].concat();
        let answer = wait_for("the echo of a datagram", || {
            // It may be lost; the answer to an earlier copy may come late.
            socket.send(&packet).ok()?;
            let mut answer = vec![0; 2048];
            loop {
                let length = socket.recv(&mut answer).ok()?;
                if answer[..NUMBER_BYTES] == packet[..NUMBER_BYTES] {
                    return Some(answer[..length].to_vec());
                }
            }
        });
        back.extend_from_slice(&answer[NUMBER_BYTES..]);
    }
    back
}

/// A mebibyte each way over TCP and UDP, and some connections at once.
fn check_echo(netns: &Netns, seed: u64) {
    let address = machine::guest_at(2, 7);
    let data = noise(1 << 20, seed);
    assert!(tcp_echo(netns, address, &data) == data, "TCP");
    assert!(udp_echo(&netns.udp(address), &data) == data, "UDP");
    thread::scope(|scope| {
        for number in 0..8 {
            let data = noise(100_000 + number, seed + number as u64);
            scope.spawn(move || {
                assert!(
                    tcp_echo(netns, address, &data) == data,
                    "connection {number}"
                )
            });
        }
    });
}

fn echo_config(scratch: &Scratch, interface: &serde_json::Value) -> String {
    let mut config = machine::config(&scratch.guest_kernel(), "echo");
    config["network-interfaces"] = json!([interface]);
    config["run"] = json!({"env": {"LIGHTV_IP": "10.0.0.2/24"}});
    scratch.config("vm.json", &config)
}

#[test]
fn traffic_is_whole_before_and_after_a_restore_onto_a_fresh_tap() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    let config = echo_config(&scratch, &machine::net()[0]);
    let args = [
        "--config",
        &config,
        "--save",
        "saved.lv",
        "--save-at",
        "signal",
    ];
    let process = netns.start(&mut scratch.vmm(&args));
    check_echo(&netns, 1);
    process.signal(Signal::USR1);
    let _ = process.finish().with_code(OK);
    netns.ip("link del tap0");
    netns.add_tap("fresh0");
    for seed in [2, 3] {
        let process = netns.start(&mut scratch.lightv(&["run", "saved.lv", "--net", "fresh0"]));
        check_echo(&netns, seed);
        let finished = process.end();
        assert_eq!((finished.code, finished.stderr.as_str()), (143, ""));
    }
}

#[test]
fn mac_and_mtu_are_those_of_the_configuration() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    let mac = "02:fc:00:00:12:34";
    let interface =
        json!({"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": mac, "mtu": 1400});
    let config = echo_config(&scratch, &interface);
    let process = netns.start(&mut scratch.vmm(&["--config", &config]));
    let data = noise(10_000, 4);
    assert_eq!(tcp_echo(&netns, machine::guest_at(2, 7), &data), data);
    let neighbours = tool_in(&netns, "neigh");
    assert!(
        neighbours.contains("10.0.0.2") && neighbours.contains(mac),
        "{neighbours}"
    );
    assert_eq!(process.end().code, 143);
}

/// What `ip LINE` prints in a name space.
fn tool_in(netns: &Netns, line: &str) -> String {
    netns.within(|| tool(&format!("ip {line}")))
}

#[test]
fn a_tap_that_goes_down_and_up_again_carries_traffic_again() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    let config = echo_config(&scratch, &machine::net()[0]);
    let process = netns.start(&mut scratch.vmm(&["--config", &config]));
    let (address, data) = (machine::guest_at(2, 7), noise(50_000, 5));
    assert!(tcp_echo(&netns, address, &data) == data);
    for _ in 0..3 {
        netns.ip("link set tap0 down");
        assert!(netns.try_connect(address).is_err());
        netns.ip("link set tap0 up");
        assert!(tcp_echo(&netns, address, &data) == data);
    }
    let finished = process.end();
    assert_eq!(finished.code, 143);
    assert!(finished.stderr.lines().count() < 20, "{finished:?}");
}

#[test]
fn a_tap_that_is_deleted_leaves_a_machine_that_lives_and_does_not_spin() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    let config = echo_config(&scratch, &machine::net()[0]);
    let mut process = netns.start(&mut scratch.vmm(&["--config", &config]));
    let data = noise(50_000, 6);
    assert!(tcp_echo(&netns, machine::guest_at(2, 7), &data) == data);
    netns.ip("link del tap0");
    // Until it has seen that, and in one that spins, there is no such second.
    wait_for("a second in which it does little", || {
        let before = cpu_ticks(process.pid());
        thread::sleep(Duration::from_secs(1));
        let used = cpu_ticks(process.pid()) - before;
        println!("{used} of 100 ticks");
        (used < 20).then_some(())
    });
    assert!(process.is_alive(), "{}", process.stderr());
    let finished = process.end();
    assert_eq!(finished.code, 143);
    assert!(finished.stderr.lines().count() < 20, "{finished:?}");
}

/// Hundredths of a second that the process has used.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<u64> = fields
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    fields[11] + fields[12]
}

/// One echo request (RFC 792) with its checksum.
fn echo_request(sequence: u8) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0, 0x4c, 0x56, 0, sequence];
    packet.extend(b"are you there");
    packet.push(0);
    let words = packet
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = u16::try_from((folded & 0xffff) + (folded >> 16)).expect("16 bits");
    packet[2..4].copy_from_slice(&(!checksum).to_be_bytes());
    packet
}

#[test]
fn a_guest_answers_a_ping() {
    if !has_kvm() {
        return;
    }
    const IP_HEADER_BYTES: usize = 20;
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    let config = echo_config(&scratch, &machine::net()[0]);
    let process = netns.start(&mut scratch.vmm(&["--config", &config]));
    let pinger = netns.within(|| socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)));
    let pinger = pinger.expect("a raw socket: the tests run as root");
    let guest = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 0);
    for sequence in 0..10 {
        let request = echo_request(sequence);
        wait_for("an answer to a ping", || {
            sendto(&pinger, &request, SendFlags::empty(), &guest).ok()?;
            thread::sleep(Duration::from_millis(20));
            let mut answer = [0; 256];
            while let Ok((length, _)) = recv(&pinger, &mut answer[..], RecvFlags::DONTWAIT) {
                let icmp = answer.get(IP_HEADER_BYTES..length)?;
                if icmp[0] == 0 && icmp[4..] == request[4..] {
                    return Some(());
                }
            }
            None
        });
    }
    assert_eq!(process.end().code, 143);
}

#[test]
fn large_answers_reach_a_host_without_offloads() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    netns.ip("link set tap0 mtu 600");
    let image = netns.within(|| scratch.build("http", &["--net", "tap0,ip=10.0.0.2/24"]));
    let mut command = scratch.lightv(&["run", &image]);
    let process = netns.within(|| Process::start_with(&mut command, &[], Stdio::piped()));
    let mut client = lightv_tests::http::Client::new(netns.connect(machine::guest_at(2, 80)));
    for bytes in [0, 1, 1459, 1460, 1461, 65_535, 65_536, 3_000_000] {
        let body = client.get(&format!("/bytes/{bytes}")).expect("an answer");
        assert_eq!(body.len(), bytes);
        let is_right = body
            .iter()
            .enumerate()
            .all(|(index, byte)| index.wrapping_mul(31).wrapping_add(7).to_le_bytes()[0] == *byte);
        assert!(is_right, "{bytes}");
    }
    assert!(client.get("/nothing").is_err());
    assert_eq!(
        get(&netns, machine::guest_at(2, 80), "/exit?status=6"),
        "exit\n"
    );
    let _ = process.finish().with_code(6);
}
