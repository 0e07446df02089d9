//! `lightv top` at a terminal, with real microVMs.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use lightv_tests::host::has_kvm;
use lightv_tests::picture;
use lightv_tests::process::wait_for;
use lightv_tests::pty::AtTerminal;
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;
use vt100::Color;

fn top(scratch: &Scratch, args: &[&str]) -> Command {
    let mut command = scratch.lightv(&[&["top", "--interval", "0.2"], args].concat());
    command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
    command
}

/// The line of the screen that begins with `id`.
fn line<'a>(screen: &'a str, id: &str) -> Option<&'a str> {
    screen
        .lines()
        .find(|line| line.split(' ').next() == Some(id))
}

fn start(scratch: &Scratch, name: &str, image: &str) {
    let _ = scratch
        .run(&["run", "-d", "--name", name, image])
        .with_code(0);
}

/// A machine that writes to its disk, one that prints now and then, and a paused one.
fn start_three(scratch: &Scratch) {
    let disk = fs::File::create(scratch.path("d")).expect("a disk");
    disk.set_len(64 << 30).expect("a sparse disk");
    let busy = scratch.build("blk", &["--disk", "d=d", "--", "1", "10000000"]);
    let tick = scratch.build("tick", &["--", "0", "20"]);
    start(scratch, "builder", &busy);
    start(scratch, "web-1", &tick);
    start(scratch, "web-2", &tick);
    let _ = scratch.run(&["pause", "web-2"]).with_code(0);
}

/// Settings and screen are those from before the start.
fn wait_given_back(terminal: &AtTerminal) {
    terminal.wait_restored();
    wait_for("the screen from before", || {
        (!terminal.shown().alternate_screen()).then_some(())
    });
}

/// For the documentation: `cargo xtask pictures`.
fn take_picture(scratch: &Scratch, folder: &Path) {
    let idle = scratch.build("idle", &[]);
    for name in ["agent-7f3a", "agent-91c0", "db"] {
        start(scratch, name, &idle);
    }
    let terminal = AtTerminal::start(&top(scratch, &[]), 132, 12);
    let is_full = |text: &str| {
        line(text, "builder").is_some_and(|line| line.contains("GiB") || bars(line) > 20)
    };
    let screen = terminal.wait_shown("graphs", is_full);
    fs::write(folder.join("top.svg"), picture::svg(&screen)).expect("a picture");
}

fn bars(line: &str) -> usize {
    line.chars()
        .filter(|symbol| ('▁'..='█').contains(symbol))
        .count()
}

#[test]
fn microvms_are_watched_filtered_and_killed() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    start_three(&scratch);
    let mut terminal = AtTerminal::start(&top(&scratch, &[]), 132, 12);
    terminal.wait_shown("all three, with their rates", |text| {
        let busy =
            line(text, "builder").is_some_and(|line| line.contains("Running") && bars(line) > 2);
        let paused = line(text, "web-2").is_some_and(|line| line.contains("Paused"));
        busy && paused && line(text, "web-1").is_some() && text.contains("3 microVMs (1 paused)")
    });
    assert!(terminal.is_raw());

    terminal.type_keys("/web\r");
    terminal.wait_shown("the filter's", |text| {
        line(text, "builder").is_none() && line(text, "web-1").is_some()
    });
    terminal.resize(60, 10);
    terminal.wait_shown("a smaller screen", |text| {
        text.contains("3 microVMs") && line(text, "web-2").is_some() && !text.contains("RECV/s")
    });
    terminal.resize(100, 20);
    terminal.type_keys("\u{1b}");
    terminal.wait_shown("all", |text| line(text, "builder").is_some());

    terminal.type_keys("/builder\r\r");
    terminal.wait_shown("details", |text| {
        text.contains("blk.lv") && text.contains("threads")
    });
    terminal.type_keys("k");
    terminal.wait_shown("a question", |text| text.contains("Kill builder"));
    terminal.type_keys("n");
    terminal.wait_shown("no question", |text| !text.contains("Kill builder"));
    assert!(scratch.run(&["ps"]).stdout.contains("builder"));
    terminal.type_keys("ky");
    terminal.wait_shown("its end", |text| text.contains("2 microVMs"));
    assert!(!scratch.run(&["ps"]).stdout.contains("builder"));
    terminal.type_keys("q");
    assert_eq!(terminal.finish().code(), Some(0));
    wait_given_back(&terminal);
    if let Some(folder) = env::var_os("LIGHTV_PICTURES") {
        start(&scratch, "builder", "blk.lv");
        take_picture(&scratch, Path::new(&folder));
    }
    for record in fs::read_dir(scratch.path("run"))
        .expect("a folder")
        .flatten()
    {
        let name = record.file_name().into_string().expect("text");
        if let Some(pid) = name.strip_suffix(".json") {
            let _ = scratch.run(&["stop", "--kill", pid]);
        }
    }
}

#[test]
fn the_terminal_is_given_back_at_each_end_and_pause() {
    let scratch = Scratch::new();
    let mut terminal = AtTerminal::start(&top(&scratch, &[]), 80, 10);
    terminal.wait_shown("nothing runs", |text| text.contains("No microVM runs"));
    for stop in ["signal", "key"] {
        match stop {
            "signal" => terminal.signal(Signal::TSTP),
            _ => terminal.type_keys("\u{1a}"),
        }
        let stat = format!("/proc/{}/stat", terminal.pid());
        wait_for("its standstill", || {
            let stat = fs::read_to_string(&stat).expect("a process");
            stat.contains(") T ").then_some(())
        });
        wait_given_back(&terminal);
        terminal.signal(Signal::CONT);
        terminal.wait_shown("it goes on", |text| text.contains("No microVM runs"));
        assert!(
            terminal.is_raw() && terminal.shown().alternate_screen(),
            "{stop}"
        );
    }
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.finish().code(), Some(143));
    wait_given_back(&terminal);
}

#[test]
fn no_colour_is_shown_where_none_is_wanted_and_nothing_without_a_terminal() {
    let scratch = Scratch::new();
    let mut command = top(&scratch, &[]);
    command.env("NO_COLOR", "1");
    let terminal = AtTerminal::start(&command, 80, 10);
    let screen = terminal.wait_shown("nothing runs", |text| text.contains("No microVM runs"));
    let cells = (0..10).flat_map(|row| (0..80).map(move |column| (row, column)));
    let mut cells = cells.filter_map(|(row, column)| screen.cell(row, column));
    assert!(cells.all(|cell| cell.fgcolor() == Color::Default && cell.bgcolor() == Color::Default));
    scratch
        .run(&["top"])
        .assert_refused(153, &["terminal", "lightv stats --watch"]);
    scratch
        .run(&["top", "--interval", "0"])
        .assert_refused(153, &["0.1"]);
}
