//! A save whose every system call fails once, and one that is killed in each of thirty moments: the old image stays whole, the
//! new one is there whole or not at all, and nothing else is left (docs/files.md).

use std::fs;
use std::process::Command;

use lightv_api::exit::{OK, SAVE_FAILED};
use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::process::{Finished, Process, run};
use lightv_tests::scratch::Scratch;
use lightv_tests::strace::{Fate, Moment, attached, moments, traced};
use rustix::process::Signal;
use serde_json::json;

/// By these a file is written and gets its name.
const CALLS: &str = "pwrite64,ftruncate,fsync,linkat,rename";
const EIO: (Fate, &str) = (Fate::Error("EIO"), "Input/output error");
const ENOSPC: (Fate, &str) = (Fate::Error("ENOSPC"), "No space left on device");

/// A folder with an image `x.lv`, and the command that saves another guest in its place.
struct Save {
    scratch: Scratch,
    command: Command,
    old: Vec<u8>,
}

impl Save {
    fn new() -> Self {
        let scratch = Scratch::new();
        let _ = scratch.run(&["build", "hello", "-o", "x.lv"]).with_code(OK);
        let old = scratch.read("x.lv");
        let mut config = machine::config(&scratch.guest_kernel(), "args");
        config["run"] = json!({"args": ["new"]});
        let config = scratch.config("vm.json", &config);
        let command = scratch.vmm(&["--config", &config, "--save", "x.lv"]);
        scratch.write("strace.log", "");
        Self {
            scratch,
            command,
            old,
        }
    }

    /// Saves with `options` of strace, over the old image.
    fn run(&self, options: &[&str]) -> Finished {
        self.scratch.write("x.lv", &self.old);
        let log = self.scratch.path("strace.log");
        run(&mut traced(&self.command, CALLS, &log, options))
    }

    /// What a save calls in order.
    fn moments(&self) -> Vec<Moment> {
        let finished = self.run(&[]).with_code(OK);
        assert_eq!(finished.stderr, "");
        let log = self.scratch.read("strace.log");
        let found = moments(&String::from_utf8(log).expect("text"));
        let calls: Vec<&str> = found.iter().map(|moment| moment.call.as_str()).collect();
        // To a name that is taken a file comes by another one; then the folder is synced.
        let end = ["fsync", "linkat", "linkat", "rename", "fsync"];
        assert!(calls.ends_with(&end) && calls.len() > 8, "{calls:?}");
        found
    }

    fn is_old(&self) -> bool {
        self.scratch.read("x.lv") == self.old
    }

    /// What is there can be run, and is the old guest or the new one.
    fn assert_whole(&self) {
        let args = ["run", "x.lv", "--", "again"];
        let finished = self.scratch.run(&args).with_code(OK);
        let expected = match self.is_old() {
            true => "Hello, again!\n",
            false => "arg[0]=again",
        };
        assert!(finished.stdout.contains(expected), "{finished:?}");
    }
}

#[test]
fn whatever_fails_of_a_save_is_told_and_leaves_the_old_image() {
    if !has_kvm() {
        return;
    }
    let save = Save::new();
    let moments = save.moments();
    let before = save.scratch.listing();
    let last = moments.len() - 1;
    for (index, moment) in moments.iter().enumerate() {
        for (fate, text) in [EIO, ENOSPC] {
            // A full disk says so when it is written to; all of it would show little more.
            if fate == ENOSPC.0 && index % 4 > 0 {
                continue;
            }
            let finished = save.run(&[&moment.option(fate)]);
            println!("{moment:?}: {}", finished.stderr.trim_end());
            finished.assert_refused(SAVE_FAILED, &["x.lv", text]);
            // The folder is synced when the new image has its name already.
            assert_eq!(save.is_old(), index < last, "{moment:?}");
            save.scratch.assert_nothing_left(&before);
        }
    }
    save.assert_whole();
    println!("{} calls of a save have failed once each", moments.len());
}

#[test]
fn a_save_that_is_killed_leaves_the_old_image_or_the_whole_new_one() {
    if !has_kvm() {
        return;
    }
    const KILLS: usize = 30;
    let save = Save::new();
    let moments = save.moments();
    let before = save.scratch.listing();
    let (mut kills, mut leftovers) = (0, 0);
    // The last ones, when the file gets its name, all; of the rest as many as it takes, from the first to the last.
    let (writes, end) = moments.split_at(moments.len() - 5);
    let spread = (0..KILLS - end.len()).map(|n| &writes[n * writes.len() / (KILLS - end.len())]);
    for moment in spread.chain(end) {
        let finished = save.run(&[&moment.option(Fate::Kill)]);
        assert_eq!(
            (finished.code, finished.was_killed),
            (137, true),
            "{moment:?}: {finished:?}"
        );
        kills += 1;
        let is_named = *moment == end[4];
        assert_eq!(save.is_old(), !is_named, "{moment:?}");
        save.assert_whole();
        if save.scratch.listing() != before {
            // Killed between the two names: the next save takes it away.
            assert_eq!(*moment, end[3]);
            leftovers += 1;
            let _ = save.run(&[]).with_code(OK);
        }
        save.scratch.assert_nothing_left(&before);
    }
    assert_eq!(leftovers, 1, "a file with its temporary name");
    println!("killed in {kills} moments of {}", moments.len());
}

/// A machine of `mib` that counts, paused once it has come to `tick`.
fn paused(scratch: &Scratch, mib: u64, tick: u32) -> (Api, Process) {
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "tick -- 0 5"),
        &json!({"machine-config": {"mem_size_mib": mib}}),
    );
    let config = scratch.config("vm.json", &config);
    let (api, process) = Api::start(scratch, "vm", &["--config", &config]);
    let counted = format!("tick {tick}\n");
    process.wait_stdout(|text| text.contains(&counted).then_some(()));
    api.set_state("Paused");
    (api, process)
}

/// The calls of a snapshot's two files, one after the other, on one machine that goes on living.
#[test]
fn a_machine_outlives_every_fault_of_its_snapshots() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = paused(&scratch, 32, 2);
    let body = json!({"snapshot_path": "s", "mem_file_path": "m"});
    let create = || api.call("PUT", "/snapshot/create", &body);
    assert_eq!(create().status, 204);
    let log = scratch.path("strace.log");
    let watch = |options: &[&str]| attached(process.pid(), CALLS, &log, options);
    let strace = watch(&[]);
    assert_eq!(create().status, 204);
    strace.signal(Signal::INT);
    let _ = strace.finish();
    let text = fs::read_to_string(&log).expect("a log");
    let moments = moments(&text);
    // Both have been there: each gets its name by another one.
    let renames = moments.iter().filter(|moment| moment.call == "rename");
    assert_eq!(renames.count(), 2, "{text}");
    // And neither before both are written.
    let named = moments.iter().position(|moment| moment.call == "linkat");
    let written = moments.iter().rposition(|moment| moment.call == "pwrite64");
    assert!(written < named, "{text}");
    let before = scratch.listing();
    let (state, memory) = (scratch.read("s"), scratch.read("m"));
    for moment in &moments {
        let strace = watch(&[&moment.option(EIO.0)]);
        let refused = create();
        strace.signal(Signal::INT);
        let _ = strace.finish();
        assert!(refused.fault().contains(EIO.1), "{moment:?}: {refused:?}");
        assert_eq!(api.get("/")["state"], "Paused");
        scratch.assert_same_files(&before);
        // What is not replaced is as it was. A machine that stands still has the same memory each time.
        assert!(scratch.read("m") == memory, "{moment:?}");
        let is_last = *moment == moments[moments.len() - 1];
        assert_eq!(scratch.read("s").len(), state.len(), "{moment:?}");
        assert!(is_last || scratch.read("s") == state, "{moment:?}");
    }
    assert_eq!(create().status, 204);
    let _ = process.end();
    let (api, process) = Api::start(&scratch, "clone", &[]);
    let mut load = body.clone();
    load["resume_vm"] = json!(true);
    api.put("/snapshot/load", &load);
    process.wait_stdout(|text| text.contains("tick").then_some(()));
    let _ = process.end();
    println!(
        "{} calls of a snapshot have failed once each",
        moments.len()
    );
}

/// Of a snapshot whose memory has got its name when its state is refused, the old state and the new memory would be left: no
/// snapshot at all.
#[test]
fn a_snapshot_whose_state_cannot_be_written_leaves_the_one_that_was_there() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = paused(&scratch, 16, 1);
    api.put(
        "/snapshot/create",
        &json!({"snapshot_path": "s", "mem_file_path": "m"}),
    );
    let (before, memory) = (scratch.listing(), scratch.read("m"));
    // The guest counts in memory: what would be saved now is another.
    api.set_state("Resumed");
    process.wait_stdout(|text| text.contains("tick 3\n").then_some(()));
    for live in [true, false] {
        if !live {
            api.set_state("Paused");
        }
        let body = json!({"snapshot_path": "nodir/s", "mem_file_path": "m", "live": live});
        let refused = api.call("PUT", "/snapshot/create", &body);
        assert!(refused.fault().contains("nodir/s"), "{refused:?}");
        assert!(scratch.read("m") == memory, "live: {live}");
        scratch.assert_same_files(&before);
    }
    api.put(
        "/snapshot/create",
        &json!({"snapshot_path": "s", "mem_file_path": "m"}),
    );
    assert!(scratch.read("m") != memory, "its memory has changed");
    let _ = process.end();
}
