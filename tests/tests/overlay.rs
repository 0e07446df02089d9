//! A private layer over a disk that many machines share (docs/overlay.md).

use std::fs;
use std::thread;

use lightv_api::exit::{BAD_CONFIG, OK, SAVE_FAILED};
use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Finished, Process, run};
use lightv_tests::scratch::Scratch;
use lightv_tests::{disk, machine};
use serde_json::{Value, json};

const BLOCKS: u64 = 512;
/// What is on the base.
const BASE_SEED: &str = "42";

/// A folder with a disk `base` of [`BLOCKS`] blocks.
fn scratch_with_base() -> Scratch {
    let scratch = Scratch::new();
    disk::create(&scratch.path("base"), BLOCKS * 4096);
    let drive = machine::disk("d", "base", "Writeback");
    let _ = blk(&scratch, "fill", &drive, &[BASE_SEED, "512"]).with_code(OK);
    scratch
}

fn drive(overlay: &Value) -> Value {
    let mut drive = machine::disk("d", "base", "Writeback");
    drive["overlay"] = overlay.clone();
    drive
}

fn in_file() -> Value {
    json!({"path": "own.delta"})
}

/// A machine with `drive` that runs `app`.
fn config(scratch: &Scratch, name: &str, drive: &Value, app: (&str, &[&str])) -> String {
    let config = machine::config(&scratch.guest_kernel(), app.0);
    let more = json!({"drives": [drive], "run": {"args": app.1}});
    scratch.config(&format!("{name}.json"), &machine::with(&config, &more))
}

/// Runs the guest's `blk ARGS` on `drive`.
fn blk(scratch: &Scratch, name: &str, drive: &Value, args: &[&str]) -> Finished {
    let config = config(scratch, name, drive, ("blk", args));
    run(&mut scratch.vmm(&["--config", &config]))
}

fn idle(scratch: &Scratch, name: &str, drive: &Value) -> (Api, Process) {
    let config = config(scratch, name, drive, ("idle", &[]));
    Api::start(scratch, name, &["--config", &config])
}

fn refused(scratch: &Scratch, drive: &Value, words: &[&str]) {
    blk(scratch, "refused", drive, &["verify", BASE_SEED]).assert_refused(BAD_CONFIG, words);
}

#[test]
fn twenty_machines_write_over_one_base_at_once() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let base = scratch.read("base");
    let check = |number: u32| {
        let (name, seed) = (format!("vm{number}"), (100 + number).to_string());
        let is_kept = number.is_multiple_of(2);
        let overlay = match is_kept {
            true => json!({"path": format!("{number}.delta")}),
            false => json!({}),
        };
        let drive = drive(&overlay);
        let wrote = blk(&scratch, &name, &drive, &[&seed, "64"]).with_code(OK);
        assert!(wrote.stdout.contains("blocks=64"), "{wrote:?}");
        // A delta in a file outlives its machine, one in memory does not.
        let seed = if is_kept { &seed } else { BASE_SEED };
        let _ = blk(&scratch, &name, &drive, &["verify", seed, "64"]).with_code(OK);
    };
    thread::scope(|scope| {
        for number in 0..20 {
            scope.spawn({
                let check = &check;
                move || check(number)
            });
        }
    });
    assert!(scratch.read("base") == base);
}

#[test]
fn what_is_not_written_comes_from_the_base() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    for overlay in [json!({}), in_file()] {
        let drive = drive(&overlay);
        let _ = blk(&scratch, "a", &drive, &["verify", BASE_SEED, "512"]).with_code(OK);
        // The last sector alone is written, and what lies past the end is refused.
        let _ = blk(&scratch, "b", &drive, &["edge"]).with_code(OK);
        let _ = blk(&scratch, "c", &drive, &["verify", BASE_SEED, "511"]).with_code(OK);
    }
    // The last block is now another.
    let drive = drive(&in_file());
    let _ = blk(&scratch, "d", &drive, &["verify", BASE_SEED, "512"]).with_code(1);
}

#[test]
fn a_delta_that_is_full_is_an_error_of_the_disk_and_named() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let small = drive(&json!({"size_mib": 1}));
    let _ = blk(&scratch, "fits", &small, &["9", "256"]).with_code(OK);
    let full = blk(&scratch, "full", &small, &["9", "257"]).with_code(1);
    assert!(
        full.stdout.contains("blk error write sector=2048"),
        "{full:?}"
    );
    assert!(full.stderr.contains("overlay.size_mib"), "{full:?}");
}

#[test]
fn a_delta_belongs_to_one_machine_and_one_base() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let own = drive(&in_file());
    let (api, first) = idle(&scratch, "first", &own);
    refused(&scratch, &own, &["Drive d", "own.delta", "in use"]);
    // The base has readers: nobody writes it.
    let writer = machine::disk("d", "base", "Writeback");
    refused(&scratch, &writer, &["Drive d", "base", "in use"]);
    let patch = json!({"drive_id": "d", "path_on_host": "base"});
    let answer = api.call("PATCH", "/drives/d", &patch);
    assert!(answer.fault().contains("under an overlay"), "{answer:?}");
    assert_eq!(first.end().code, 143);
    let _ = blk(&scratch, "a", &own, &["7", "8"]).with_code(OK);
    let mut other = scratch.read("base");
    other[0] ^= 1;
    scratch.write("other", &other);
    let mut elsewhere = own.clone();
    elsewhere["path_on_host"] = json!("other");
    refused(&scratch, &elsewhere, &["own.delta", "another disk"]);
    scratch.write("own.delta", [0; 4096]);
    refused(&scratch, &own, &["own.delta", "not a delta"]);
    assert!(scratch.read("own.delta") == [0; 4096]);
    let folder = drive(&json!({"path": "missing/own.delta"}));
    refused(&scratch, &folder, &["missing/own.delta", "No such file"]);
    fs::remove_file(scratch.path("own.delta")).expect("it is there");
    let _ = blk(&scratch, "b", &own, &["verify", BASE_SEED]).with_code(OK);
}

#[test]
fn a_start_that_fails_leaves_no_delta_behind() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let missing = machine::disk("e", "missing", "Unsafe");
    let config = machine::config(&scratch.guest_kernel(), "idle");
    let config = machine::with(&config, &json!({"drives": [drive(&in_file()), missing]}));
    let config = scratch.config("vm.json", &config);
    let failed = run(&mut scratch.vmm(&["--config", &config]));
    failed.assert_refused(BAD_CONFIG, &["Drive e", "missing"]);
    assert!(!scratch.path("own.delta").exists());
}

#[test]
fn what_does_not_go_with_an_overlay_is_refused_by_name() {
    let scratch = Scratch::new();
    disk::create(&scratch.path("base"), 4096);
    let check = |field: &str, value: Value, words: &[&str]| {
        let mut drive = drive(&json!({}));
        drive[field] = value;
        refused(&scratch, &drive, words);
    };
    check("is_read_only", json!(true), &["drives[0].overlay is set"]);
    check(
        "io_engine",
        json!("Async"),
        &["drives[0].io_engine is Async", "Sync"],
    );
    check("direct", json!(true), &["drives[0].direct is set"]);
    check(
        "overlay",
        json!({"path": ""}),
        &["drives[0].overlay.path is empty"],
    );
    check(
        "overlay",
        json!({"size_mib": 0}),
        &["drives[0].overlay.size_mib is 0"],
    );
    check("overlay", json!({"size": 1}), &["unknown field `size`"]);
    check("overlay", json!("memory"), &["invalid type"]);
}

/// An image of `blk` with a drive `d` over the base.
fn image(scratch: &Scratch, options: &str) -> String {
    let disk = format!("d=base,cache=writeback,{options}");
    scratch.build("blk", &["--disk", &disk])
}

fn run_image(scratch: &Scratch, image: &str, options: &[&str], args: &[&str]) -> Finished {
    scratch.run(&[&["run", image], options, &["--"], args].concat())
}

#[test]
fn clones_of_an_image_that_holds_the_base_each_have_a_delta_of_their_own() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let (base, image) = (scratch.read("base"), image(&scratch, "in-image,overlay"));
    // All that they need is in the image.
    fs::rename(scratch.path("base"), scratch.path("away")).expect("a free name");
    let bytes = scratch.read(&image);
    let check = |number: usize| {
        let options: &[&str] = if number == 7 { &["--cold"] } else { &[] };
        let seed = (100 + number).to_string();
        let _ = run_image(&scratch, &image, options, &[&seed, "64"]).with_code(OK);
    };
    thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || check(number));
        }
    });
    assert!(scratch.read(&image) == bytes && scratch.read("away") == base);
    let verify = ["verify", BASE_SEED, "512"];
    let _ = run_image(&scratch, &image, &[], &verify).with_code(OK);
    let refused = run_image(&scratch, &image, &["--disk", "d=away"], &verify);
    refused.assert_refused(BAD_CONFIG, &["Drive d", "another disk"]);
    let refused = run_image(&scratch, &image, &["--delta", "d=x"], &verify);
    refused.assert_refused(BAD_CONFIG, &["--delta is for `d`", "overlay.path"]);
}

#[test]
fn a_delta_in_a_file_is_named_by_the_image_and_another_can_be_given() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let image = image(&scratch, "overlay=own.delta");
    fs::copy(scratch.path("own.delta"), scratch.path("second.delta")).expect("a copy");
    let _ = run_image(&scratch, &image, &[], &["7", "64"]).with_code(OK);
    let _ = run_image(&scratch, &image, &[], &["verify", "7", "64"]).with_code(OK);
    let other = ["--delta", "d=second.delta"];
    let _ = run_image(&scratch, &image, &other, &["8", "64"]).with_code(OK);
    let _ = run_image(&scratch, &image, &other, &["verify", "8", "64"]).with_code(OK);
    let _ = run_image(&scratch, &image, &[], &["verify", "7", "64"]).with_code(OK);
    // A machine that goes on needs what it wrote.
    let missing = run_image(
        &scratch,
        &image,
        &["--delta", "d=none.delta"],
        &["verify", "7"],
    );
    missing.assert_refused(BAD_CONFIG, &["Drive d", "none.delta", "No such file"]);
    assert!(!scratch.path("none.delta").exists());
}

#[test]
fn a_snapshot_of_the_rest_api_has_the_delta_too() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let filled = config(&scratch, "a", &drive(&json!({})), ("idle", &[]));
    let (api, process) = Api::start(&scratch, "a", &["--config", &filled]);
    api.set_state("Paused");
    let paths = json!({"snapshot_path": "s", "mem_file_path": "m"});
    api.put("/snapshot/create", &paths);
    assert_eq!(process.end().code, 143);
    let shown = scratch.run(&["inspect", "--json", "s"]).with_code(OK);
    assert!(shown.stdout.contains("overlay-map"), "{shown:?}");
    let (api, process) = Api::start(&scratch, "b", &[]);
    let load = |overrides: &Value| {
        let backend = json!({"backend_type": "File", "backend_path": "m"});
        let load =
            json!({"snapshot_path": "s", "mem_backend": backend, "drive_overrides": [overrides]});
        api.call("PUT", "/snapshot/load", &load)
    };
    let nothing = load(&json!({"drive_id": "d"}));
    assert!(nothing.fault().contains("`overlay_path`"), "{nothing:?}");
    let memory = load(&json!({"drive_id": "d", "overlay_path": "x"}));
    assert!(memory.fault().contains("no drive has"), "{memory:?}");
    fs::copy(scratch.path("base"), scratch.path("copy")).expect("a copy");
    let same = load(&json!({"drive_id": "d", "path_on_host": "copy"}));
    assert_eq!(same.status, 204, "{same:?}");
    assert_eq!(process.end().code, 143);
}

/// Looks whether `name` is the base with 64 blocks of seed 7 at its beginning.
fn check_exported(scratch: &Scratch, name: &str) {
    let (found, base) = (scratch.read(name), scratch.read("base"));
    let (written, rest) = found.split_at(64 * 4096);
    assert_eq!(disk::blocks_of(written, 7), (0..64).collect::<Vec<_>>());
    assert!(*rest == base[64 * 4096..]);
}

#[test]
fn a_disk_is_exported_and_reset_while_its_machine_lives() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let own = drive(&in_file());
    let _ = blk(&scratch, "a", &own, &["7", "64"]).with_code(OK);
    let (api, process) = idle(&scratch, "vm", &own);
    let vm = process.pid().to_string();
    let path = "/drives/d/overlay";
    let export = json!({"action": "Export", "path": "x.img"});
    let running = api.call("PUT", path, &export);
    assert!(running.fault().contains("pause it"), "{running:?}");
    for (body, word) in [
        (json!({"action": "Export"}), "needs `path`"),
        (json!({"action": "Reset", "path": "x"}), "`Export` alone"),
        (json!({"action": "Grow"}), "unknown variant"),
    ] {
        let answer = api.call("PUT", path, &body);
        assert!(answer.fault().contains(word), "{answer:?}");
    }
    let other = api.call("PUT", "/drives/e/overlay", &json!({"action": "Reset"}));
    assert!(other.fault().contains("Device not found"), "{other:?}");
    let run = |args: &[&str]| scratch.run(&[&["disk"], args].concat());
    let _ = run(&["export", &vm, "d", "-o", "live.img"]).with_code(OK);
    check_exported(&scratch, "live.img");
    for in_use in ["base", "own.delta"] {
        let refused = run(&["export", &vm, "d", "-o", in_use]).with_code(1);
        assert!(refused.stderr.contains("made of"), "{refused:?}");
    }
    // It goes on, was told, and is at its beginning again.
    assert_eq!(api.get("/")["state"], "Running");
    let _ = run(&["reset", &vm, "d"]).with_code(OK);
    let _ = run(&["export", &vm, "d", "-o", "live.img"]).with_code(OK);
    assert!(scratch.read("live.img") == scratch.read("base"));
    api.set_state("Paused");
    api.put(path, &json!({"action": "Reset"}));
    api.put(path, &export);
    api.set_state("Resumed");
    assert_eq!(process.end().code, 143);
    let _ = blk(&scratch, "b", &own, &["verify", BASE_SEED, "512"]).with_code(OK);
}

#[test]
fn a_base_and_its_delta_are_made_one_without_a_machine() {
    if !has_kvm() {
        return;
    }
    let scratch = scratch_with_base();
    let own = drive(&in_file());
    let _ = blk(&scratch, "a", &own, &["7", "64"]).with_code(OK);
    let delta = scratch.read("own.delta");
    let merge = |base: &str, delta: &str, out: &str| {
        scratch.run(&["disk", "merge", base, delta, "-o", out])
    };
    let _ = merge("base", "own.delta", "one.img").with_code(OK);
    check_exported(&scratch, "one.img");
    assert!(scratch.read("own.delta") == delta);
    let (_api, process) = idle(&scratch, "vm", &own);
    merge("base", "own.delta", "x").assert_refused(BAD_CONFIG, &["own.delta", "in use"]);
    assert_eq!(process.end().code, 143);
    merge("one.img", "own.delta", "x").assert_refused(BAD_CONFIG, &["own.delta", "another disk"]);
    merge("base", "one.img", "x").assert_refused(BAD_CONFIG, &["one.img", "not a delta"]);
    merge("base", "own.delta", "base").assert_refused(SAVE_FAILED, &["base", "made of"]);
    merge("base", "own.delta", "no/x").assert_refused(SAVE_FAILED, &["no/x", "No such file"]);
    assert!(!scratch.path("x").exists());
}
