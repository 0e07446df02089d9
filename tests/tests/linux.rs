//! A Linux guest: it finds its CPUs, memory and devices by the tables that it is given, ends as docs/exit-codes.md says,
//! and goes on after a save and a restore. A boot takes seconds where the guest's kernel is emulated, so each shows as
//! much as it can.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lightv_api::exit;
use lightv_api::host::HostReport;
use lightv_tests::host::has_kvm;
use lightv_tests::linux::{self, Guest};
use lightv_tests::netns::Netns;
use lightv_tests::process::{Finished, Process, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::json;

/// Exit code of a process that SIGTERM has ended.
const TERMINATED: i32 = 143;

/// The lines of the init that begin with `what`, without that.
fn said<'a>(finished: &'a Finished, what: &str) -> Vec<&'a str> {
    let prefix = format!("init: {what}");
    let lines = finished.stdout.lines();
    lines
        .filter_map(|line| line.trim_end().strip_prefix(&prefix))
        .collect()
}

// Devices, their queues, and the ends that are the guest's own.

/// A guest with two devices, and what its kernel is told besides `args`.
fn with_devices(args: &str) -> Guest {
    let guest = Guest::new(args).sized(2, 128);
    guest.scratch.write("disk", vec![0; 1 << 20]);
    guest.with(&json!({
        "drives": [{"drive_id": "data", "path_on_host": "disk", "num_queues": 2}],
        "entropy": {},
    }))
}

/// Each device has one driver, no more, and the pool of random numbers was ready.
fn check_devices(finished: &Finished, args: usize, drivers: &[&str]) {
    assert_eq!(said(finished, "cpus="), [format!("2 args={args}")]);
    let mut devices = said(finished, "device ");
    devices.sort_unstable();
    assert_eq!(devices, drivers, "{finished:?}");
    assert_eq!(said(finished, "queues "), ["2 blocks 2"], "{finished:?}");
    assert_eq!(said(finished, "random ").len(), 1, "{finished:?}");
    let log = said(finished, "log: ").join("\n");
    assert!(log.contains("crng init done"), "{log}");
    for complaint in ["can't request region", "error -16", "EBUSY"] {
        assert!(!log.contains(complaint), "{complaint}: {log}");
    }
}

/// Answers datagrams to port 7, with "end" once it is enough.
fn answer(netns: &Netns) -> Arc<AtomicBool> {
    let socket = netns
        .within(|| UdpSocket::bind("0.0.0.0:7"))
        .expect("port 7");
    let is_enough = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_enough);
    thread::spawn(move || {
        let mut bytes = [0; 8];
        while let Ok((length, guest)) = socket.recv_from(&mut bytes) {
            let is_enough = flag.load(Ordering::Relaxed);
            let answer = if is_enough { b"end" } else { &bytes[..length] };
            let _ = socket.send_to(answer, guest);
        }
    });
    is_enough
}

/// Frames that the guest has sent by its first pair, received by it, sent by the second, received by that, as its last round
/// says.
fn last_round(text: &str) -> Option<[u64; 4]> {
    // A line that is not whole yet is none.
    let whole = &text[..=text.rfind('\n')?];
    let line = whole
        .lines()
        .rfind(|line| line.starts_with("init: round "))?;
    let numbers = line.split_whitespace().skip(3);
    let numbers: Vec<u64> = numbers.map(|number| number.parse().expect(line)).collect();
    Some(numbers.try_into().expect("four numbers"))
}

/// The network card too: each vCPU sends and receives by a pair of its own, before a save and after a restore onto another tap.
#[test]
fn linux_finds_cpus_and_devices_by_acpi_uses_their_queues_also_after_a_restore_and_powers_off() {
    if !has_kvm() {
        return;
    }
    let [before, after] = [(); 2].map(|()| {
        let netns = Netns::new();
        netns.add_queued_tap("tap0");
        // The guest has the address of the old one.
        netns.ip("link set tap0 address 06:00:00:00:00:01");
        netns
    });
    let [_, is_enough] = [&before, &after].map(answer);
    let net = json!([{"iface_id": "eth0", "host_dev_name": "tap0", "num_queues": 2}]);
    let guest = with_devices("quiet -- devices poweroff");
    let guest = guest.with(&json!({"network-interfaces": net}));
    let vm = before.within(|| guest.start(&["--save", "x.lv", "--save-at", "signal"]));
    vm.wait_stdout(|text| text.contains("init: round 3 ").then_some(()));
    vm.signal(Signal::USR1);
    let saved = vm.finish().with_code(exit::OK);
    check_devices(&saved, 2, &["virtio_blk", "virtio_net", "virtio_rng"]);
    assert!(!saved.stdout.contains("virtio_mmio.device="));
    let mut queues = said(&saved, "queue ");
    queues.sort_unstable();
    assert_eq!(queues, ["rx-0", "rx-1", "tx-0", "tx-1"], "{saved:?}");
    let first = last_round(&saved.stdout).expect("a round");
    assert!(first.iter().all(|frames| *frames >= 2), "{saved:?}");

    let vm = after.within(|| guest.vmm(&["--restore", "x.lv"]));
    vm.wait_stdout(|text| {
        let now = last_round(text)?;
        let mut frames = now.iter().zip(first);
        frames.all(|(now, then)| *now >= then + 3).then_some(())
    });
    is_enough.store(true, Ordering::Relaxed);
    let restored = vm.finish().with_code(exit::OK);
    linux::assert_is_well(&saved.stdout);
    linux::assert_is_well(&restored.stdout);
}

#[test]
fn linux_without_acpi_finds_them_by_the_mp_table_and_the_command_line_and_reboots() {
    if has_kvm() {
        let finished = with_devices("quiet acpi=off reboot=k -- devices reboot").run(exit::OK);
        check_devices(&finished, 2, &["virtio_blk", "virtio_rng"]);
        assert!(finished.stdout.contains("virtio_mmio.device="));
    }
}

#[test]
fn a_halted_linux_stays_until_a_signal_ends_it() {
    if !has_kvm() {
        return;
    }
    // Without ACPI Linux has nothing to power off with, and halts.
    for args in [
        "quiet -- nothing halt",
        "quiet acpi=off -- nothing poweroff",
    ] {
        let guest = Guest::new(args);
        let mut process = guest.start(&[]);
        process.wait_stdout(|text| text.contains("System halted").then_some(()));
        assert!(process.is_alive());
        let finished = process.end();
        assert_eq!(finished.code, TERMINATED, "{args}: {finished:?}");
    }
}

#[test]
fn a_panic_ends_with_its_code_after_the_kernel_has_said_why() {
    if !has_kvm() {
        return;
    }
    let finished = Guest::new("quiet -- panic").run(exit::GUEST_PANIC);
    let why = "Kernel panic - not syncing: Attempted to kill init!";
    assert!(finished.stdout.contains(why), "{finished:?}");
    assert!(finished.stderr.contains("it panicked"), "{finished:?}");
    // Without ACPI there is no pvpanic: `panic=-1` restarts.
    let finished = Guest::new("quiet acpi=off reboot=k -- panic").run(exit::OK);
    assert!(finished.stdout.contains(why), "{finished:?}");
}

#[test]
fn the_power_button_is_pressed_by_a_signal() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new("quiet -- button");
    let process = guest.start(&[]);
    process.wait_stdout(|text| text.contains("init: listening").then_some(()));
    process.signal(Signal::POWER);
    let finished = process.finish().with_code(exit::OK);
    assert_eq!(
        said(&finished, "the power button was pressed"),
        [""],
        "{finished:?}"
    );
}

/// Whether the guest's kernel is emulated here.
fn is_software_kvm() -> bool {
    let report = Scratch::new().run(&["doctor", "--json"]).stdout;
    let report: HostReport = serde_json::from_str(&report).expect("a report");
    report.kvm == "software"
}

#[test]
fn what_software_kvm_cannot_run_is_said_with_what_to_do() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new("quiet -- nothing");
    let finished = guest.start(&["--no-software-kvm-options"]).finish();
    if is_software_kvm() {
        let finished = finished.with_code(exit::KVM_ERROR);
        for word in ["suberror 1", "software KVM", "--no-software-kvm-options"] {
            assert!(finished.stderr.contains(word), "{word}: {finished:?}");
        }
    } else {
        let _ = finished.with_code(exit::OK);
    }
}

// Memory.

/// The two numbers, in hexadecimal digits, of `START-END`.
fn stretch(text: &str) -> (u64, u64) {
    let number = |digits: &str| u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok();
    let parts = text
        .split_once('-')
        .and_then(|(start, end)| Some((number(start)?, number(end)?)));
    parts.unwrap_or_else(|| panic!("no stretch of memory: {text}"))
}

/// RAM of `mib` MiB is all there, where it belongs, and every boot table sums up to 0.
fn check_memory(finished: &Finished, mib: u64) {
    const HOLE: (u64, u64) = (3 << 30, 4 << 30);
    let ram = mib << 20;
    let map: Vec<(u64, u64)> = finished
        .stdout
        .lines()
        .filter_map(|line| Some(line.split_once("BIOS-e820: [mem ")?.1.split_once(']')?.0))
        .map(stretch)
        .collect();
    let sum: u64 = map.iter().map(|(start, end)| end + 1 - start).sum();
    assert_eq!(sum, ram, "{finished:?}");

    let ends: Vec<u64> = said(finished, "")
        .into_iter()
        .filter_map(|line| line.strip_suffix(" : System RAM"))
        .map(|line| stretch(line).1 + 1)
        .collect();
    let mut expected = vec![0x9_fc00, ram.min(HOLE.0)];
    expected.extend((ram > HOLE.0).then(|| HOLE.1 + ram - HOLE.0));
    assert_eq!(ends, expected, "{finished:?}");

    let total = said(finished, "MemTotal:");
    let kib = total
        .first()
        .and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib.expect("MemTotal").parse().expect("a number");
    // Less the kernel itself, 1/64 for its page structures, and bounce buffers of 64 MiB over 4 GiB.
    let taken_mib = if ram > HOLE.0 { 24 + 64 } else { 24 };
    let least = (ram - ram / 40) / 1024 - (taken_mib << 10);
    assert!(
        (least..ram / 1024).contains(&kib),
        "{kib} KiB: {finished:?}"
    );

    let tables: Vec<String> = ["RSD PTR ", "XSDT", "FACP", "DSDT", "APIC", "_MP_", "PCMP"]
        .iter()
        .map(|name| format!("{name} sum 0"))
        .collect();
    assert_eq!(said(finished, "table "), tables);
}

/// The least: it also ends by a triple fault, as `reboot=t` wants. Software KVM does not know the instruction for it.
#[test]
fn linux_has_all_of_64_mib_and_ends_by_a_triple_fault_when_told() {
    if has_kvm() {
        let guest = Guest::new("quiet reboot=t -- memory reboot").sized(1, 64);
        let code = match is_software_kvm() {
            true => exit::KVM_ERROR,
            false => exit::TRIPLE_FAULT,
        };
        let finished = guest.run(code);
        check_memory(&finished, 64);
    }
}

/// Just over the hole, and far over it.
#[test]
fn linux_has_all_of_3073_mib_and_reboots() {
    if has_kvm() {
        let guest = Guest::new("quiet -- memory reboot").sized(1, 3073);
        check_memory(&guest.run(exit::OK), 3073);
    }
}

#[test]
fn linux_has_all_of_5000_mib() {
    if has_kvm() {
        let guest = Guest::new("quiet -- memory").sized(1, 5000);
        check_memory(&guest.run(exit::OK), 5000);
    }
}

// Kernels and initial RAM disks.

/// 1 MiB that does not repeat.
fn file() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(1 << 20);
    while bytes.len() < 1 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

/// FNV-1a, as the init has it.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// A file in the initial RAM disk comes whole to what `change` makes of a guest. Once each: it is unpacked for seconds where
/// KVM emulates the guest's kernel, and where it lies is tried with small guests (`machine.rs`).
fn check_initrd(args: &str, change: impl FnOnce(Guest) -> Guest) {
    if !has_kvm() {
        return;
    }
    let file = file();
    let guest = change(Guest::with_file(args, &file));
    let expected = format!("{} bytes, hash {:016x}", file.len(), hash(&file));
    let finished = guest.run(exit::OK);
    assert!(
        said(&finished, "").contains(&expected.as_str()),
        "{expected}: {finished:?}"
    );
}

#[test]
fn an_initrd_comes_whole_by_the_linux_entry() {
    check_initrd("quiet -- hash", |guest| {
        guest.booted_with("boot_protocol", &json!("linux"))
    });
}

#[test]
fn an_initrd_comes_whole_by_the_pvh_entry() {
    check_initrd("quiet -- hash", |guest| {
        guest.booted_with("boot_protocol", &json!("pvh"))
    });
}

/// As for kernels that have no ACPI.
#[test]
fn an_initrd_comes_whole_without_acpi() {
    check_initrd("quiet acpi=off reboot=k -- hash reboot", |guest| guest);
}

/// It unpacks itself first.
#[test]
fn an_initrd_comes_whole_to_a_bzimage() {
    check_initrd("quiet -- hash", |guest| {
        guest.booted_with("kernel_image_path", &json!(linux::bzimage()))
    });
}

// Saves and restores.

#[test]
fn a_linux_that_was_saved_counts_on_in_clones_with_random_numbers_of_their_own() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new("quiet -- tick");
    let vm = guest.start(&["--save", "x.lv", "--save-at", "signal"]);
    vm.wait_stdout(|text| text.contains("tick 3\r\n").then_some(()));
    vm.signal(Signal::USR1);
    let saved = vm.finish().with_code(exit::OK);
    let last = (1..=20)
        .rev()
        .find(|n| saved.stdout.contains(&format!("tick {n}\r\n")));
    let next = last.expect("it has counted") + 1;
    assert!(next < 20, "it was saved while it counted: {saved:?}");
    let clones = [(); 2].map(|()| {
        let finished = guest.vmm(&["--restore", "x.lv"]).finish();
        let finished = finished.with_code(exit::OK);
        let first = finished
            .stdout
            .find("tick ")
            .map(|at| &finished.stdout[at..]);
        assert!(
            first.is_some_and(|text| text.starts_with(&format!("tick {next}"))),
            "tick {next}: {finished:?}"
        );
        assert!(finished.stdout.contains("tick 20"), "{finished:?}");
        finished
    });
    let random = clones.each_ref().map(|clone| said(clone, "random "));
    assert_eq!(random.each_ref().map(Vec::len), [1, 1]);
    assert_ne!(random[0], random[1]);
}

/// Saves of a running machine, each of which pauses it.
const PAUSES: usize = 50;
/// Saves that end a machine, each with a restore.
const RESTORES: usize = 20;

/// How far the loop on each of `vcpus` CPUs has come, 0 for one that has not said anything.
fn rounds(text: &str, vcpus: u32) -> Vec<u64> {
    let round = |cpu| {
        let prefix = format!("init: cpu {cpu} round ");
        let mut lines = text.lines().rev();
        lines.find_map(|line| line.trim_end().strip_prefix(&prefix)?.parse().ok())
    };
    (0..vcpus).map(|cpu| round(cpu).unwrap_or(0)).collect()
}

/// Waits until the loop on every CPU has gone on for two rounds after `before`; gives how far they are.
fn wait_for_progress(process: &Process, before: &[u64]) -> Vec<u64> {
    let vcpus = u32::try_from(before.len()).expect("a few");
    process.wait_stdout(|text| {
        let now = rounds(text, vcpus);
        let mut both = now.iter().zip(before);
        both.all(|(now, before)| *now >= before + 2).then_some(now)
    })
}

/// What is different when a file has been replaced.
fn version(path: &Path) -> Option<(u64, i64, i64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Loops that are pinned to the CPUs go on over pauses, and over restores, and the kernel does not complain.
fn check_smp(vcpus: u32) {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new("-- loops").sized(vcpus, 128);
    let save = ["--save", "0.lv", "--save-at", "signal"];
    let process = guest.start(&[&save[..], &["--after-save", "continue"]].concat());
    let mut now = wait_for_progress(&process, &vec![0; vcpus.try_into().expect("a few")]);
    let image = guest.scratch.path("0.lv");
    for pause in 1..=PAUSES {
        let before = version(&image);
        process.signal(Signal::USR1);
        wait_for("an image", || (version(&image) != before).then_some(()));
        if pause % 10 == 0 {
            now = wait_for_progress(&process, &rounds(&process.stdout(), vcpus));
        }
    }
    let finished = process.end();
    assert_eq!(finished.code, TERMINATED, "{finished:?}");
    assert!(finished.stdout.contains(&format!("init: cpus={vcpus} ")));
    linux::assert_is_well(&finished.stdout);
    assert!(now.iter().all(|round| *round > 0));

    for restore in 0..RESTORES {
        let [from, to] = [restore, restore + 1].map(|number| format!("{number}.lv"));
        let process = guest.vmm(&["--restore", &from, "--save", &to, "--save-at", "signal"]);
        let start = process.wait_stdout(|text| {
            let now = rounds(text, vcpus);
            now.iter().all(|round| *round > 0).then_some(now)
        });
        wait_for_progress(&process, &start);
        process.signal(Signal::USR1);
        let finished = process.finish().with_code(exit::OK);
        linux::assert_is_well(&finished.stdout);
        fs::remove_file(guest.scratch.path(&from)).expect("the image before");
    }
}

#[test]
fn one_vcpu_goes_on_over_pauses_and_restores() {
    check_smp(1);
}

#[test]
fn two_vcpus_go_on_over_pauses_and_restores() {
    check_smp(2);
}

#[test]
fn four_vcpus_go_on_over_pauses_and_restores() {
    check_smp(4);
}
