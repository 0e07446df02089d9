//! Snapshots of two files: differences that add up, chains of generations, many clones of one.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Process, run, wait_for};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

/// Starts a guest of `mib` that runs `app`, with or without tracking.
fn start(scratch: &Scratch, mib: u64, app: &str, tracks: bool) -> (Api, Process) {
    let (api, process) = Api::start(scratch, "vm", &[]);
    let machine = json!({"vcpu_count": 1, "mem_size_mib": mib, "track_dirty_pages": tracks});
    api.put("/machine-config", &machine);
    let boot =
        json!({"kernel_image_path": scratch.guest_kernel(), "boot_args": format!("app={app}")});
    api.put("/boot-source", &boot);
    api.act("InstanceStart");
    (api, process)
}

/// Saves the paused machine as `NAME.state` and `NAME.mem`.
fn save(api: &Api, name: &str, kind: &str) {
    let (state, memory) = (format!("{name}.state"), format!("{name}.mem"));
    api.put(
        "/snapshot/create",
        &json!({"snapshot_path": state, "mem_file_path": memory, "snapshot_type": kind}),
    );
}

/// Lets the machine go on until its guest has done something, then pauses it.
fn work(api: &Api, process: &Process) {
    /// One that prints nothing has written some pages by then.
    const WORK_NS: u64 = 20_000_000;
    let (bytes, ns) = (process.stdout().len(), vcpu_ns(process));
    api.set_state("Resumed");
    wait_for("a guest that works", || {
        let has_worked = process.stdout().len() > bytes || vcpu_ns(process) > ns + WORK_NS;
        has_worked.then_some(())
    });
    api.set_state("Paused");
}

/// Time on a processor that the vCPU has had (Documentation/scheduler/sched-stats.rst).
fn vcpu_ns(process: &Process) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("a process");
    let is_vcpu = |task: &fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.starts_with("vcpu-")
    };
    let vcpu = tasks.flatten().find(is_vcpu).expect("a vCPU");
    let text = fs::read_to_string(vcpu.path().join("schedstat")).expect("a thread");
    let ns = text.split(' ').next().and_then(|ns| ns.parse().ok());
    ns.expect("a number")
}

fn merge(scratch: &Scratch, files: &[&str], out: &str) {
    let args = [&["snapshot", "merge"], files, &["-o", out]].concat();
    let _ = scratch.run(&args).with_code(0);
}

/// Bytes that `name` takes on the disk.
fn allocated(scratch: &Scratch, name: &str) -> u64 {
    fs::metadata(scratch.path(name)).expect("a file").blocks() * 512
}

fn assert_same(scratch: &Scratch, a: &str, b: &str) {
    let mut command = Command::new("cmp");
    command.args([a, b]).current_dir(scratch.folder());
    let _ = run(&mut command).with_code(0);
}

fn load(name: &str, memory: &Value) -> Value {
    json!({"snapshot_path": format!("{name}.state"), "mem_backend": memory, "resume_vm": true})
}

/// A guest of `mib` that sleeps between ticks.
fn check_merge(mib: u64) {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, mib, "tick -- 0 5", true);
    process.wait_stdout(|text| text.contains("tick 2").then_some(()));
    api.set_state("Paused");
    save(&api, "base", "Full");
    save(&api, "none", "Diff");
    assert_eq!(
        allocated(&scratch, "none.mem"),
        0,
        "nothing has changed since the full save"
    );
    for name in ["one", "two"] {
        work(&api, &process);
        save(&api, name, "Diff");
        let bytes = allocated(&scratch, &format!("{name}.mem"));
        assert!((1..64 << 10).contains(&bytes), "{name}: {bytes}");
    }
    save(&api, "full", "Full");
    merge(
        &scratch,
        &["base.mem", "none.mem", "one.mem", "two.mem"],
        "merged.mem",
    );
    assert_same(&scratch, "merged.mem", "full.mem");
    assert_eq!(
        fs::metadata(scratch.path("one.mem")).expect("a file").len(),
        mib << 20
    );
    let last = process.stdout();
    let _ = process.end();

    for memory in [
        json!({"backend_type": "File", "backend_path": "merged.mem"}),
        json!({"backend_type": "File", "backend_path": "base.mem", "diffs": ["one.mem", "two.mem"]}),
    ] {
        let (api, process) = Api::start(&scratch, "clone", &[]);
        let missing =
            json!({"backend_type": "File", "backend_path": "base.mem", "diffs": ["one.mem"]});
        let refused = api.call("PUT", "/snapshot/load", &load("two", &missing));
        assert!(refused.fault().contains("does not belong"), "{refused:?}");
        api.put("/snapshot/load", &load("two", &memory));
        let next = process.wait_stdout(|text| Some(text.lines().next()?.to_owned()));
        assert!(
            !last.contains(&format!("{next}\n")),
            "{next} was printed before the save"
        );
        let _ = process.end();
    }
}

#[test]
fn differences_of_128_mib_add_up() {
    check_merge(128);
}

#[test]
fn differences_of_3071_mib_add_up() {
    check_merge(3071);
}

#[test]
fn differences_of_4097_mib_on_both_sides_of_the_hole_add_up() {
    check_merge(4097);
}

#[test]
fn without_tracking_a_difference_holds_all_that_may_have_changed() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 64, "tick -- 0 5", false);
    process.wait_stdout(|text| text.contains("tick 2").then_some(()));
    api.set_state("Paused");
    save(&api, "base", "Full");
    work(&api, &process);
    save(&api, "diff", "Diff");
    save(&api, "full", "Full");
    merge(&scratch, &["base.mem", "diff.mem"], "merged.mem");
    assert_same(&scratch, "merged.mem", "full.mem");
    let _ = process.end();

    // Since a load, by the page map.
    let (api, process) = Api::start(&scratch, "clone", &[]);
    api.put(
        "/snapshot/load",
        &load(
            "full",
            &json!({"backend_type": "File", "backend_path": "full.mem"}),
        ),
    );
    process.wait_stdout(|text| text.contains("tick").then_some(()));
    api.set_state("Paused");
    save(&api, "first", "Diff");
    work(&api, &process);
    save(&api, "second", "Diff");
    save(&api, "whole", "Full");
    assert!(allocated(&scratch, "first.mem") < 256 << 10);
    merge(&scratch, &["full.mem", "second.mem"], "merged.mem");
    assert_same(&scratch, "merged.mem", "whole.mem");
    let _ = process.end();
}

#[test]
fn a_guest_that_writes_much_is_saved_in_differences() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 96, "mem -- 1000s", true);
    wait_for("memory that is written", || {
        let resident = fs::read_to_string(format!("/proc/{}/statm", process.pid())).ok()?;
        let pages: u64 = resident.split(' ').nth(1)?.parse().ok()?;
        (pages > 10_000).then_some(())
    });
    api.set_state("Paused");
    save(&api, "base", "Full");
    for name in ["one", "two"] {
        work(&api, &process);
        save(&api, name, "Diff");
    }
    save(&api, "full", "Full");
    assert!(
        allocated(&scratch, "one.mem") > 64 << 10,
        "it writes all the time"
    );
    merge(&scratch, &["base.mem", "one.mem", "two.mem"], "merged.mem");
    assert_same(&scratch, "merged.mem", "full.mem");
    let _ = process.end();
}

#[test]
fn eight_generations_with_a_new_disk_each_keep_all_markers() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("disk0", vec![0; 1 << 20]);
    let (api, process) = Api::start(&scratch, "vm", &[]);
    api.put(
        "/drives/d",
        &json!({"drive_id": "d", "path_on_host": "disk0", "is_root_device": false}),
    );
    api.put(
        "/boot-source",
        &json!({"kernel_image_path": scratch.guest_kernel(), "boot_args": "app=tick -- 0 5"}),
    );
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("tick 1\n").then_some(()));
    api.set_state("Paused");
    save(&api, "g0", "Full");
    let mut output = process.end().stdout;
    for generation in 1..=8 {
        let (before, name) = (format!("g{}", generation - 1), format!("g{generation}"));
        let (api, process) = Api::start(&scratch, "vm", &[]);
        let backend = json!({"backend_type": "File", "backend_path": format!("{before}.mem")});
        api.put("/snapshot/load", &load(&before, &backend));
        process.wait_stdout(|text| text.contains("tick").then_some(()));
        let (old, new) = (
            format!("disk{}", generation - 1),
            format!("disk{generation}"),
        );
        fs::rename(scratch.path(&old), scratch.path(&new)).expect("a disk");
        api.patch("/drives/d", &json!({"drive_id": "d", "path_on_host": new}));
        api.set_state("Paused");
        save(&api, &name, "Full");
        assert_eq!(api.get("/vm/config")["drives"][0]["path_on_host"], new);
        output.push_str(&process.end().stdout);
    }
    // The number is in the guest's memory: one that was lost or came twice would show.
    let ticks: Vec<u64> = output
        .lines()
        .filter_map(|line| line.strip_prefix("tick ")?.parse().ok())
        .collect();
    assert!(ticks.len() > 8);
    assert_eq!(ticks, (1..=ticks.len() as u64).collect::<Vec<_>>());
}

#[test]
fn eight_clones_of_one_snapshot_leave_its_files_alone() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, 64, "tick -- 0 5", false);
    process.wait_stdout(|text| text.contains("tick 1\n").then_some(()));
    api.set_state("Paused");
    save(&api, "s", "Full");
    let _ = process.end();
    let (state, memory) = (scratch.read("s.state"), scratch.read("s.mem"));
    let body = load(
        "s",
        &json!({"backend_type": "File", "backend_path": "s.mem"}),
    );
    let clones: Vec<(Api, Process)> = (0..8)
        .map(|number| {
            let (api, process) = Api::start(&scratch, &format!("clone{number}"), &[]);
            api.put("/snapshot/load", &body);
            (api, process)
        })
        .collect();
    for (_, process) in &clones {
        process.wait_stdout(|text| (text.lines().count() > 20).then_some(()));
    }
    assert!(
        scratch.read("s.state") == state && scratch.read("s.mem") == memory,
        "clones wrote"
    );
    // One saves onto the very files; the others keep what they have.
    clones[0].0.set_state("Paused");
    save(&clones[0].0, "s", "Full");
    for (_, process) in &clones[1..] {
        let lines = process.stdout().lines().count();
        process.wait_stdout(|text| (text.lines().count() > lines + 20).then_some(()));
    }
    for (_, process) in clones {
        let _ = process.end();
    }
}

/// A guest of `mib` whose memory another process serves.
fn check_served(mib: u64) {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, mib, "tick -- 0 5", false);
    process.wait_stdout(|text| text.contains("tick 1\n").then_some(()));
    api.set_state("Paused");
    save(&api, "s", "Full");
    let last = process.stdout();
    let _ = process.end();

    let (api, process) = Api::start(&scratch, "clone", &[]);
    let body = load(
        "s",
        &json!({"backend_type": "Uffd", "backend_path": "uffd.sock"}),
    );
    let refused = api.call("PUT", "/snapshot/load", &body);
    assert!(refused.fault().contains("uffd.sock"), "{refused:?}");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/uffd_handler.py");
    let handler = Process::start(&mut scratch.command("python3", &[script, "uffd.sock", "s.mem"]));
    handler.wait_stdout(|text| text.contains("listening").then_some(()));
    api.put("/snapshot/load", &body);
    let next = process.wait_stdout(|text| Some(text.lines().nth(3)?.to_owned()));
    assert!(
        !last.contains(&format!("{next}\n")),
        "{next} was printed before the save"
    );
    let line = handler.wait_stdout(|text| {
        Some(
            text.lines()
                .find(|line| line.starts_with("regions"))?
                .to_owned(),
        )
    });
    let regions: Value = serde_json::from_str(&line["regions ".len()..]).expect("JSON");
    let sizes: Vec<u64> = regions
        .as_array()
        .expect("a list")
        .iter()
        .map(|region| region["size"].as_u64().expect("a size"))
        .collect();
    assert_eq!(sizes.iter().sum::<u64>(), mib << 20, "{regions}");
    assert_eq!(regions[0]["page_size"], 4096);
    // Only what is touched is asked for.
    let served = handler
        .stdout()
        .lines()
        .filter(|line| line.starts_with("served"))
        .count();
    assert!((2..2000).contains(&served), "{served}");
    let _ = process.end();
}

#[test]
fn memory_is_served_by_another_process() {
    check_served(128);
}

#[test]
fn memory_on_both_sides_of_the_hole_is_served() {
    check_served(4097);
}
