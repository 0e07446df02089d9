//! The console with a Linux guest: streams apart and whole, a slow reader, the end of input, a terminal, signals.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use lightv_api::exit::{OK, by_signal};
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::pty::AtTerminal;
use lightv_tests::scratch::Scratch;
use lightv_tests::{linux, machine};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const INIT: &str = include_str!("init.c");

/// A configuration of a guest that does `what`.
fn config(scratch: &Scratch, what: &str) -> String {
    let boot = json!({"boot-source": {
        "kernel_image_path": linux::kernel(),
        "initrd_path": linux::initrd_of_source(scratch, INIT),
        "boot_args": format!("console=ttyS0 quiet loglevel=0 panic=-1 -- {what}"),
    }});
    scratch.config("vm.json", &machine::with(&boot, &json!({"console": {}})))
}

/// As `say_random` in init.c.
fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    // Each block of the guest's goes on where the last one ended.
    (0..bytes).map(|_| next()).collect()
}

/// Lines of standard error as they come.
fn collect(child: &mut Child) -> std::sync::Arc<std::sync::Mutex<String>> {
    let text = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let (collected, mut stderr) = (text.clone(), child.stderr.take().expect("a pipe"));
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = stderr.read(&mut piece) {
            let piece = String::from_utf8_lossy(&piece[..length]);
            collected.lock().expect("a text").push_str(&piece);
        }
    });
    text
}

/// All of `stdout`, read as by someone who has other things to do.
fn read_slowly(mut stdout: ChildStdout) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 8192]);
    loop {
        match stdout.read(&mut piece).expect("a pipe") {
            0 => return all,
            length => all.extend_from_slice(&piece[..length]),
        }
        thread::sleep(Duration::from_micros(300));
    }
}

#[test]
fn streams_are_whole_and_apart_however_slow_their_reader() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = config(&scratch, "streams");
    let mut command = scratch.vmm(&["--config", &config]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.stderr(Stdio::piped()).spawn().expect("lightv-vmm");
    let stderr = collect(&mut child);
    let said = |text: &str| stderr.lock().expect("a text").contains(text).then_some(());
    // Nobody reads standard output, and the other stream goes on.
    wait_for("the other stream", || said("beat\n"));
    let input = random(3, 1 << 20);
    let (mut stdin, typed) = (child.stdin.take().expect("a pipe"), input.clone());
    let writer = thread::spawn(move || stdin.write_all(&typed));
    let stdout = read_slowly(child.stdout.take().expect("a pipe"));
    writer.join().expect("no panic").expect("all input taken");
    let parts = [&random(1, 3 << 20), &input, &b"after the end\n"[..]];
    let expected = [&parts.concat(), &random(2, 512 << 10)[..]].concat();
    assert_eq!(stdout.len(), expected.len());
    assert!(
        stdout == expected,
        "standard output is not what was printed"
    );
    assert_eq!(child.wait().expect("our child").code(), Some(0));
    let stderr = stderr.lock().expect("a text").clone();
    assert!(stderr.contains("begin\n"), "{stderr}");
    assert!(stderr.contains("from the serial port"), "{stderr}");
}

/// Saves a guest in its session as `x.lv`.
fn save_session(scratch: &Scratch) {
    let config = config(scratch, "session");
    let args = ["--config", &config, "--save", "x.lv", "--save-at", "signal"];
    let vm = Process::start(&mut scratch.vmm(&args));
    vm.wait_stdout(|text| text.contains("end of input\n").then_some(()));
    vm.signal(Signal::USR1);
    let _ = vm.finish().with_code(OK);
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The process that waits for `parent`'s monitor has it as its only child.
fn monitor_of(parent: u32) -> u32 {
    let path = format!("/proc/{parent}/task/{parent}/children");
    wait_for("a monitor", || {
        let children = std::fs::read_to_string(&path).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}

#[test]
fn a_restored_guest_has_new_streams_a_terminal_and_signals() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    save_session(&scratch);
    input_is_open_again_and_signals_are_the_agents(&scratch);
    a_guest_that_ends_at_sigterm_has_its_own_status(&scratch);
    a_guest_that_does_not_end_at_sigterm_is_ended(&scratch);
    a_terminal_has_its_size_and_is_restored_at_the_end(&scratch);
    a_detached_machine_goes_on(&scratch);
    a_monitor_does_not_outlive_who_waits_for_it(&scratch);
    a_signal_to_who_waits_is_passed_on(&scratch);
}

fn start(scratch: &Scratch, input: &str) -> Process {
    let mut command = scratch.lightv(&["run", "x.lv"]);
    Process::start_with(&mut command, input.as_bytes(), Stdio::piped())
}

fn input_is_open_again_and_signals_are_the_agents(scratch: &Scratch) {
    let vm = start(scratch, "again\n");
    vm.wait_stdout(|text| text.contains("input again\n").then_some(()));
    for (signal, number) in [
        (Signal::INT, 2),
        (Signal::HUP, 1),
        (Signal::QUIT, 3),
        (Signal::USR2, 12),
        (Signal::TERM, 15),
    ] {
        vm.signal(signal);
        let line = format!("got signal {number}\n");
        vm.wait_stderr(|text| text.contains(&line).then_some(()));
    }
    // A second SIGTERM, not the same one.
    thread::sleep(Duration::from_millis(600));
    vm.signal(Signal::TERM);
    let finished = vm.finish().with_code(by_signal(15));
    assert!(finished.took < Duration::from_secs(10), "{finished:?}");
}

fn a_guest_that_ends_at_sigterm_has_its_own_status(scratch: &Scratch) {
    let vm = start(scratch, "polite\n");
    vm.wait_stdout(|text| text.contains("input polite\n").then_some(()));
    vm.signal(Signal::TERM);
    let _ = vm.finish().with_code(OK);
}

fn a_guest_that_does_not_end_at_sigterm_is_ended(scratch: &Scratch) {
    let vm = start(scratch, "rude\n");
    vm.wait_stdout(|text| text.contains("input rude\n").then_some(()));
    vm.signal(Signal::TERM);
    let finished = vm.finish().with_code(by_signal(15));
    assert!(finished.took >= Duration::from_secs(10), "{finished:?}");
}

fn at_terminal(scratch: &Scratch) -> AtTerminal {
    AtTerminal::start(&scratch.lightv(&["run", "x.lv"]), 132, 43)
}

fn a_terminal_has_its_size_and_is_restored_at_the_end(scratch: &Scratch) {
    let mut terminal = at_terminal(scratch);
    terminal.wait_screen("size 132x43");
    assert!(terminal.is_raw());
    terminal.resize(100, 50);
    terminal.wait_screen("size 100x50");
    // Ctrl-C is the guest's.
    terminal.type_keys("\x03hello\r");
    terminal.wait_screen("typed <hello>");
    terminal.type_keys("quit\r");
    assert_eq!(terminal.finish().code(), Some(0), "{terminal:?}");
    terminal.wait_restored();
}

fn a_detached_machine_goes_on(scratch: &Scratch) {
    let mut terminal = at_terminal(scratch);
    terminal.wait_screen("size 132x43");
    let monitor = monitor_of(terminal.pid());
    terminal.type_keys("\x1d");
    assert_eq!(terminal.finish().code(), Some(0), "{terminal:?}");
    terminal.wait_restored();
    let line =
        format!("detached; the machine goes on as process {monitor}: kill {monitor} ends it");
    terminal.wait_screen(&line);
    // The terminal is closed, and the session with it.
    drop(terminal);
    thread::sleep(Duration::from_millis(300));
    assert!(is_there(monitor), "it goes on");
    let pid = Pid::from_raw(monitor.try_into().expect("a process id")).expect("a process id");
    for _ in 0..2 {
        let _ = kill_process(pid, Signal::TERM);
        thread::sleep(Duration::from_millis(600));
    }
    wait_for("the end of the monitor", || {
        (!is_there(monitor)).then_some(())
    });
}

fn a_monitor_does_not_outlive_who_waits_for_it(scratch: &Scratch) {
    let mut terminal = at_terminal(scratch);
    terminal.wait_screen("size 132x43");
    let monitor = monitor_of(terminal.pid());
    terminal.signal(Signal::KILL);
    let _ = terminal.finish();
    wait_for("the end of the monitor", || {
        (!is_there(monitor)).then_some(())
    });
    terminal.wait_restored();

    let mut terminal = at_terminal(scratch);
    terminal.wait_screen("size 132x43");
    let monitor = monitor_of(terminal.pid());
    let pid = Pid::from_raw(monitor.try_into().expect("a process id")).expect("a process id");
    let _ = kill_process(pid, Signal::KILL);
    assert_eq!(terminal.finish().code(), Some(137), "{terminal:?}");
    terminal.wait_restored();
}

fn a_signal_to_who_waits_is_passed_on(scratch: &Scratch) {
    let mut terminal = at_terminal(scratch);
    terminal.wait_screen("size 132x43");
    terminal.signal(Signal::TERM);
    terminal.wait_screen("got signal 15");
    thread::sleep(Duration::from_millis(600));
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.finish().code(), Some(143), "{terminal:?}");
    terminal.wait_restored();
}

#[test]
fn a_terminal_is_refused_where_there_is_none() {
    let scratch = Scratch::new();
    let config = config(&scratch, "streams");
    let refused = lightv_tests::process::run(&mut scratch.vmm(&["--config", &config, "--tty"]));
    refused.assert_refused(
        lightv_api::exit::BAD_ARGUMENTS,
        &["--tty", "terminal", "leave --tty out"],
    );
    if has_kvm() {
        let bare = json!({"boot-source": {"kernel_image_path": linux::kernel()}});
        let _ = scratch.config("bare.json", &bare);
        let command: Command = scratch.vmm(&["--config", "bare.json", "--tty"]);
        let mut terminal = AtTerminal::start(&command, 80, 24);
        assert_eq!(terminal.finish().code(), Some(152), "{terminal:?}");
        terminal.wait_screen("console is missing");
        terminal.wait_restored();
    }
}
