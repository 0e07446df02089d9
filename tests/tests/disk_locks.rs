//! 23: one disk, two machines. A writer has a disk alone, readers share it, and nothing of a lock stays.

use std::fs;
use std::os::unix::fs::symlink;

use lightv_api::exit::BAD_CONFIG;
use lightv_tests::api::Api;
use lightv_tests::disk;
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::json;

/// A machine that does nothing, with the drive `d` on `path`.
fn start(scratch: &Scratch, name: &str, path: &str, read_only: bool) -> Process {
    let mut drive = machine::disk("d", path, "Unsafe");
    drive["is_read_only"] = json!(read_only);
    let config = machine::config(&scratch.guest_kernel(), "idle");
    let config = machine::with(&config, &json!({"drives": [drive]}));
    let config = scratch.config(&format!("{name}.json"), &config);
    Process::start(&mut scratch.vmm(&["--config", &config]))
}

/// A machine that has locked its disk.
fn running(scratch: &Scratch, name: &str, path: &str, read_only: bool) -> Process {
    let mut process = start(scratch, name, path, read_only);
    let real = fs::canonicalize(scratch.path(path)).expect("the disk");
    wait_for("a lock on the disk", || {
        assert!(process.is_alive(), "{:?}", process.stderr());
        let open = fs::read_dir(format!("/proc/{}/fd", process.pid())).ok()?;
        let is_locked = |fd: &fs::DirEntry| {
            let number = fd.file_name().into_string().unwrap_or_default();
            let about = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", process.pid()));
            about.is_ok_and(|about| about.contains("\nlock:"))
        };
        let is_disk = |fd: &fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|it| it == real);
        let mut open = open.flatten();
        open.any(|fd| is_disk(&fd) && is_locked(&fd)).then_some(())
    });
    process
}

fn refused(scratch: &Scratch, path: &str, read_only: bool) {
    let finished = start(scratch, "other", path, read_only).finish();
    let path = scratch.text(path);
    let file = path.rsplit('/').next().unwrap_or_default();
    finished.assert_refused(BAD_CONFIG, &["Drive d", file, "is in use"]);
}

#[test]
fn a_writer_has_a_disk_alone_by_whatever_name() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    disk::create(&scratch.path("disk"), 1 << 20);
    fs::hard_link(scratch.path("disk"), scratch.path("hard")).expect("a link");
    symlink("disk", scratch.path("soft")).expect("a link");
    let writer = running(&scratch, "writer", "disk", false);
    for path in ["disk", "hard", "soft"] {
        for read_only in [false, true] {
            refused(&scratch, path, read_only);
        }
    }
    // A machine that is killed leaves nothing, and is waited for while it goes.
    writer.signal(Signal::KILL);
    let next = running(&scratch, "next", "disk", false);
    let _ = writer.finish();
    assert_eq!(next.end().code, 143);
}

#[test]
fn readers_share_a_disk_and_no_writer_comes_among_them() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    disk::create(&scratch.path("disk"), 1 << 20);
    let readers: Vec<Process> = (0..20)
        .map(|number| running(&scratch, &format!("r{number}"), "disk", true))
        .collect();
    refused(&scratch, "disk", false);
    for reader in readers {
        assert_eq!(reader.end().code, 143);
    }
    let writer = running(&scratch, "writer", "disk", false);
    assert_eq!(writer.end().code, 143);
}

#[test]
fn a_disk_that_is_replaced_is_let_go_and_the_same_one_may_be_named_again() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for name in ["first", "second"] {
        disk::create(&scratch.path(name), 1 << 20);
    }
    let drives = json!({"drives": [machine::disk("d", "first", "Unsafe")]});
    let config = machine::config(&scratch.guest_kernel(), "idle");
    let config = scratch.config("vm.json", &machine::with(&config, &drives));
    let (api, process) = Api::start(&scratch, "vm", &["--config", &config]);
    let patch = |path: &str| json!({"drive_id": "d", "path_on_host": path});
    for _ in 0..3 {
        api.patch("/drives/d", &patch("first"));
    }
    refused(&scratch, "first", true);
    let second = running(&scratch, "second", "second", true);
    let answer = api.call("PATCH", "/drives/d", &patch("second"));
    assert!(answer.fault().contains("is in use"), "{answer:?}");
    refused(&scratch, "first", true);
    assert_eq!(second.end().code, 143);
    api.patch("/drives/d", &patch("second"));
    let first = running(&scratch, "other", "first", false);
    refused(&scratch, "second", false);
    assert_eq!(first.end().code, 143);
    assert_eq!(process.end().code, 143);
}
