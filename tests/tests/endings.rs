//! Every way in which a microVM ends has its exit code, and ends all of it.

use std::io::{PipeReader, pipe};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use lightv_api::exit;
use lightv_api::host::HostReport;
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Finished, Process, after_script, run, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::{disk, machine};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Runs an image both ways.
fn run_both(scratch: &Scratch, image: &str, args: &[&str]) -> [Finished; 2] {
    let run = |options: &[&str]| scratch.run(&[options, &[image, "--"], args].concat());
    [run(&["run"]), run(&["run", "--cold"])]
}

#[test]
fn a_panic_a_triple_fault_and_a_reset_have_codes_of_their_own() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let check = |app: &str, args: &[&str], code: u8, words: &[&str]| {
        let image = scratch.build(app, &[]);
        for finished in run_both(&scratch, &image, args) {
            let finished = finished.with_code(code);
            assert_eq!(finished.stdout, "", "{finished:?}");
            for word in words {
                assert!(
                    finished.stderr.contains(word),
                    "{app}: {word}: {finished:?}"
                );
            }
        }
    };
    check(
        "panic",
        &["on purpose"],
        exit::GUEST_PANIC,
        &["guest panic: on purpose", "panicked"],
    );
    check(
        "triple-fault",
        &[],
        exit::TRIPLE_FAULT,
        &["triple fault", "rip=0x", "cr3=0x", "instruction bytes: "],
    );
    check("reset", &[], exit::OK, &[]);
    check("exit", &["3"], 3, &[]);
    // Of a status, bits 0-7 count.
    check("exit", &["255"], 255, &[]);
}

#[test]
fn what_kvm_cannot_run_is_shown_with_registers_and_instruction_bytes() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let report = scratch.run(&["doctor", "--json"]).stdout;
    let report: HostReport = serde_json::from_str(&report).expect("a report");
    let image = scratch.build("bad-instruction", &[]);
    for finished in run_both(&scratch, &image, &[]) {
        if report.kvm == "software" {
            let finished = finished.with_code(exit::KVM_ERROR);
            for word in [
                "suberror 1",
                "rip=0x",
                "r15=0x",
                "cs=0x8",
                "instruction bytes: 0f 58 c0",
            ] {
                assert!(finished.stderr.contains(word), "{word}: {finished:?}");
            }
        } else {
            assert!(finished.with_code(0).stdout.contains("it was executed"));
        }
    }
}

#[test]
fn a_signal_at_any_moment_ends_it_with_128_and_its_number() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &[]);
    let before = scratch.listing();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        for delay_ms in [
            Some(0),
            Some(1),
            Some(2),
            Some(5),
            Some(20),
            Some(100),
            None,
        ] {
            for options in [&["run"][..], &["run", "--cold"], &["run", "--timings=json"]] {
                let process = Process::start(&mut scratch.lightv(&[options, &[&image]].concat()));
                match delay_ms {
                    Some(delay_ms) => sleep(Duration::from_millis(delay_ms)),
                    None => process.wait_stdout(|text| text.contains("tick 2\n").then_some(())),
                }
                process.signal(signal);
                let finished = process.finish();
                assert_eq!(
                    finished.code, code,
                    "{signal:?} after {delay_ms:?} ms, {options:?}: {finished:?}"
                );
            }
        }
    }
    scratch.assert_nothing_left(&before);
}

#[test]
fn a_second_signal_changes_nothing() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("idle", &[]);
    for _ in 0..10 {
        let process = Process::start(&mut scratch.lightv(&["run", &image]));
        process.signal(Signal::TERM);
        process.signal(Signal::TERM);
        process.signal(Signal::INT);
        let finished = process.finish();
        assert!([143, 130].contains(&finished.code), "{finished:?}");
    }
}

#[test]
fn a_signal_ends_a_build_and_leaves_nothing() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("kernel", machine::elf(&[0xf4, 0xeb, 0xfd]));
    let before = scratch.listing();
    for delay_ms in [20, 50, 200] {
        let mut build = scratch.lightv(&["build", "--kernel", "kernel", "-o", "x.lv"]);
        let process = Process::start(&mut build);
        sleep(Duration::from_millis(delay_ms));
        let finished = process.end();
        assert_eq!(finished.code, 143, "after {delay_ms} ms: {finished:?}");
        scratch.assert_nothing_left(&before);
    }
}

#[test]
fn a_signal_during_a_save_leaves_the_old_image_or_the_whole_new_one() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let mut config = machine::config(&scratch.guest_kernel(), "mem");
    config["run"] = json!({"args": ["60s"]});
    let config = scratch.config("vm.json", &config);
    let old = scratch.build("hello", &[]);
    let old_bytes = scratch.read(&old);
    let before = scratch.listing();
    for delay_ms in [0, 1, 3, 10, 30, 60, 100] {
        scratch.write(&old, &old_bytes);
        let args = ["--config", &config, "--save", &old, "--save-at", "signal"];
        let process = Process::start(&mut scratch.vmm(&args));
        wait_for_memory(&process);
        process.signal(Signal::USR1);
        sleep(Duration::from_millis(delay_ms));
        let finished = process.end();
        assert!(
            [0, 143, i32::from(exit::SAVE_FAILED)].contains(&finished.code),
            "{finished:?}"
        );
        scratch.assert_nothing_left(&before);
        let is_old = scratch.read(&old) == old_bytes;
        assert!(
            is_old || finished.code != i32::from(exit::SAVE_FAILED),
            "{delay_ms} ms: {finished:?}"
        );
        assert!(!is_old || finished.code != 0, "{delay_ms} ms: {finished:?}");
        let _ = scratch.run(&["inspect", &old]).with_code(0);
    }
}

#[test]
fn a_guest_that_ends_before_it_is_saved_leaves_no_image() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("exit", &[]);
    let before = scratch.listing();
    let run_with = |after_save: &str| {
        let save = [
            "--save",
            "x.lv",
            "--save-at",
            "signal",
            "--after-save",
            after_save,
        ];
        run(&mut scratch.vmm(&[&["--restore", &image], &save[..], &["--", "3"]].concat()))
    };
    run_with("end").assert_refused(exit::SAVE_FAILED, &["before it was saved", "status 3"]);
    let _ = run_with("continue").with_code(3);
    scratch.assert_nothing_left(&before);
}

#[test]
fn a_wish_to_save_without_a_place_is_no_end() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "5"]);
    let before = scratch.listing();
    let process = Process::start(&mut scratch.lightv(&["run", &image]));
    for tick in ["tick 2\n", "tick 9\n", "tick 15\n"] {
        process.wait_stdout(|text| text.contains(tick).then_some(()));
        process.signal(Signal::USR1);
    }
    process.wait_stdout(|text| text.contains("tick 20\n").then_some(()));
    assert_eq!(process.end().code, 143);
    scratch.assert_nothing_left(&before);
}

#[test]
fn ctrl_alt_del_is_pressed_by_a_signal_where_there_is_a_keyboard_driver() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let code = machine::code_that_waits_for_ctrl_alt_del();
    scratch.write("elf", machine::elf(&code));
    let config = json!({"boot-source": {"kernel_image_path": "elf"}});
    let config = scratch.config("vm.json", &config);
    let image = ["--save", "x.lv", "--save-at", "signal"];
    let process = Process::start(&mut scratch.vmm(&[&["--config", &config], &image[..]].concat()));
    process.wait_stdout(|text| text.contains("listening").then_some(()));
    process.signal(Signal::USR1);
    let _ = process.finish().with_code(exit::OK);
    // In a clone too, whose keyboard is a new one.
    let process = Process::start(&mut scratch.vmm(&["--restore", "x.lv"]));
    wait_for_blocked_signals(process.pid());
    let finished = press_until_it_ends(process);
    assert_eq!(finished.code, i32::from(exit::OK), "{finished:?}");
}

/// Sends SIGPWR until the guest has heard it: at first it may not be there yet.
fn press_until_it_ends(mut process: Process) -> Finished {
    while process.is_alive() {
        process.signal(Signal::POWER);
        sleep(Duration::from_millis(100));
    }
    process.finish()
}

#[test]
fn a_guest_without_a_driver_hears_of_no_button_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "5"]);
    let process = Process::start(&mut scratch.lightv(&["run", &image]));
    process.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    process.signal(Signal::POWER);
    process.wait_stderr(|text| text.contains("Nothing was pressed").then_some(()));
    process.wait_stdout(|text| text.contains("tick 20\n").then_some(()));
    assert_eq!(process.end().code, 143);
}

/// Until the guest has filled its first array, so that there is something to save.
fn wait_for_memory(process: &Process) {
    wait_for("16 MiB of guest memory", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        (kib > 16 << 10).then_some(())
    });
}

#[test]
fn a_reader_that_is_gone_does_not_end_the_guest() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &[]);
    let (reader, writer): (PipeReader, _) = pipe().expect("a pipe");
    drop(reader);
    let mut command = scratch.lightv(&["run", &image, "--", "5", "1"]);
    let finished = Process::start_with(&mut command, &[], Stdio::from(writer)).finish();
    assert_eq!(
        (finished.code, finished.was_killed),
        (0, false),
        "{finished:?}"
    );
}

#[test]
fn closed_standard_streams_do_no_harm_to_disks() {
    if !has_kvm() {
        return;
    }
    const SEED: u64 = 77;
    let scratch = Scratch::new();
    disk::create(&scratch.path("disk"), 1 << 20);
    let image = scratch.build("blk", &["--disk", "d=disk"]);
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        for job in ["--restore", "--boot"] {
            disk::create(&scratch.path("disk"), 1 << 20);
            let vmm = scratch.vmm(&[job, &image, "--", "77", "200"]);
            let finished = run(&mut after_script(&["env"], &format!("exec {closed}"), &vmm));
            assert_eq!(finished.code, 0, "{closed} {finished:?}");
            // Nothing but blocks of the guest and zeros, at their places.
            let numbers = disk::blocks_of(&scratch.read("disk"), SEED);
            assert_eq!(numbers, (0..200).collect::<Vec<_>>(), "{closed} {job}");
        }
    }
    let lightv = scratch.lightv(&["run", &image, "--", "verify", "77", "200"]);
    let finished = run(&mut after_script(&["env"], "exec <&- 2>&-", &lightv)).with_code(0);
    assert!(finished.stdout.contains("blk ok"), "{finished:?}");
}

#[test]
fn a_save_with_closed_standard_streams_is_whole() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = machine::config(&scratch.guest_kernel(), "hello");
    let config = scratch.config("vm.json", &config);
    let vmm = scratch.vmm(&["--config", &config, "--save", "saved.lv"]);
    let _ = run(&mut after_script(&["env"], "exec <&- >&- 2>&-", &vmm)).with_code(0);
    let finished = scratch.run(&["run", "saved.lv"]).with_code(0);
    assert_eq!(finished.stdout, "Hello, world!\n");
}

#[test]
fn the_end_of_lightv_killed_is_the_end_of_the_machine() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("idle", &[]);
    let before = scratch.listing();
    // lightv becomes lightv-vmm: no child stays when it is killed.
    let process = Process::start(&mut scratch.lightv(&["run", &image]));
    sleep(Duration::from_millis(50));
    process.signal(Signal::KILL);
    assert_eq!(process.finish().code, 137);
    scratch.assert_nothing_left(&before);
}

/// Until a signal is the monitor's to serve: before that it ends the process by itself, and there is no exit code.
fn wait_for_blocked_signals(pid: u32) {
    wait_for("blocked signals", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:"))?;
        let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
        (mask & (1 << (15 - 1)) != 0).then_some(())
    });
}

#[test]
fn a_signal_ends_the_wait_for_a_configuration() {
    let scratch = Scratch::new();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut command = scratch.vmm(&["--config", "-"]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("lightv-vmm");
        wait_for_blocked_signals(child.id());
        kill_process(Pid::from_child(&child), signal).expect("a signal");
        let status = wait_for("its end", || child.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(code), "{signal:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_said_and_is_no_success() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for options in [&[][..], &["--cmdline", "console=serial"]] {
        let image = scratch.build("hello", options);
        let mut command = scratch.lightv(&["run", &image]);
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full");
        let output = command.stdout(full).output().expect("lightv");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(
            stderr.matches("No space left on device").count(),
            1,
            "{stderr}"
        );
    }
}
