//! `lightv profile`: what it tells of a start is what the start did.

use lightv_tests::host::has_kvm;
use lightv_tests::process::{run, wait_for};
use lightv_tests::scratch::Scratch;
use serde_json::Value;

fn profiled(scratch: &Scratch, args: &[&str]) -> Value {
    let args = [&["profile", "--json"], args].concat();
    let finished = scratch.run(&args).with_code(0);
    serde_json::from_str(&finished.stdout).expect("JSON")
}

/// The members of the list `list` for which `is_right`.
fn those<'a>(profile: &'a Value, list: &str, is_right: impl Fn(&Value) -> bool) -> Vec<&'a Value> {
    let all = profile.pointer(list).and_then(Value::as_array);
    let all = all.unwrap_or_else(|| panic!("{list}: {profile}"));
    all.iter().filter(|member| is_right(member)).collect()
}

#[test]
fn a_start_is_told_by_steps_calls_faults_exits_and_pages() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello-world", &[]);
    let files = ["--html", "p.html", "--svg", "p.svg"];
    let profile = profiled(&scratch, &[&[&image, "-n", "3"], &files[..]].concat());
    assert_eq!(
        (&profile["starts"], &profile["way"]),
        (&3.into(), &"restore".into())
    );
    for step in ["spawn", "image_load", "sandbox", "resources", "process"] {
        let found = those(&profile, "/steps", |found| found["name"] == step);
        let [found] = found[..] else {
            panic!("{step}: {profile}")
        };
        assert!(found["median_us"].as_f64() > Some(0.0), "{step}: {found}");
        assert!(found["system_calls"].as_u64() > Some(0), "{step}: {found}");
        assert!(found["faults"].as_u64().is_some(), "{step}: {found}");
    }
    for (thread, name) in [
        ("main", "image proved"),
        ("main", "confined"),
        ("control", "confined"),
    ] {
        let is_it = |span: &Value| span["thread"] == thread && span["name"] == name;
        assert_eq!(
            those(&profile, "/spans", is_it).len(),
            1,
            "{thread} {name}: {profile}"
        );
    }
    // Each start makes one machine, and enters the guest in the last step.
    let calls = |name: &str| -> u64 {
        let calls = those(&profile, "/system_calls/calls", |call| call["name"] == name);
        calls.iter().filter_map(|call| call["count"].as_u64()).sum()
    };
    assert_eq!(calls("ioctl KVM_CREATE_VM"), 1, "{profile}");
    let entered = |call: &Value| call["name"] == "ioctl KVM_RUN" && call["step"] == "process";
    assert_eq!(
        those(&profile, "/system_calls/calls", entered).len(),
        1,
        "{profile}"
    );
    // Its one line is one exit of the control device.
    let printed = |exit: &Value| {
        let place = exit["place"].as_str().expect("a place");
        exit["reason"] == "mmio_write" && place.starts_with("control device")
    };
    let printed = those(&profile, "/exits", printed);
    assert!(printed.iter().any(|exit| exit["count"] == 1), "{profile}");
    assert!(profile["pages"]["written"].as_u64() > Some(0), "{profile}");
    let page = String::from_utf8(scratch.read("p.html")).expect("text");
    assert!(
        page.contains("ioctl KVM_CREATE_VM") && page.contains("<svg"),
        "{page}"
    );
    let picture = String::from_utf8(scratch.read("p.svg")).expect("text");
    assert!(
        picture.contains("control") && picture.contains("image proved"),
        "{picture}"
    );
}

#[test]
fn a_boot_and_a_guest_that_goes_on_are_profiled_too_and_strace_can_be_done_without() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let mut command = scratch.lightv(&["profile", &image, "-n", "1"]);
    run(command.env("PATH", "/nonexistent")).assert_refused(158, &["apt-get install strace"]);
    let args = ["profile", &image, "-n", "1", "--cold", "--no-system-calls"];
    let mut command = scratch.lightv(&args);
    let text = run(command.env("PATH", "/nonexistent")).with_code(0).stdout;
    for part in [
        "one start (boot)",
        "kernel loaded",
        "control device",
        "Pages of RAM",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("System calls"), "{text}");
}

#[test]
fn a_microvm_that_runs_tells_what_it_has_counted() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let _ = scratch
        .run(&["run", "-d", "--name", "clock", &image])
        .with_code(0);
    let exits = || {
        let profile = profiled(&scratch, &["clock"]);
        let writes = those(&profile, "/exits", |exit| exit["reason"] == "mmio_write");
        let count = writes.first()?["count"].as_u64()?;
        // The guest's first exit may be counted before its start is over; then there are no steps yet, and never some of them.
        let steps = those(&profile, "/steps", |_| true).len();
        assert!(steps == 4 || profile["starts"] == 0, "{profile}");
        assert!(profile["kvm"]["exits"].as_u64() >= Some(count), "{profile}");
        (steps == 4).then_some(count)
    };
    let first = wait_for("its ticks", exits);
    wait_for("more of them", || exits().filter(|count| *count > first));
    let text = scratch.run(&["profile", "clo"]).with_code(0).stdout;
    assert!(text.contains("clock: one start (restore)"), "{text}");
    scratch
        .run(&["profile", "clock", "--cold"])
        .assert_refused(153, &["--cold is for an image", "clock"]);
    let _ = scratch.run(&["stop", "--kill", "clock"]).with_code(0);
}

#[test]
fn what_cannot_be_profiled_is_refused() {
    let scratch = Scratch::new();
    for (args, code, words) in [
        (
            &["nobody"][..],
            153,
            &["nobody", "lightv ps", "hello-world"][..],
        ),
        (&["nobody", "-n", "0"], 153, &["1..=10000"]),
        (
            &["nobody", "--html", "no/where"],
            153,
            &["no/where", "folder"],
        ),
    ] {
        scratch
            .run(&[&["profile"], args].concat())
            .assert_refused(code, words);
    }
    scratch.write("garbage.lv", "no image");
    scratch
        .run(&["profile", "garbage.lv", "--no-system-calls"])
        .assert_refused(152, &["garbage.lv"]);
    for (args, word) in [(&["--profile"][..], "--timings"), (SERVED, "REST API")] {
        let finished = run(&mut scratch.vmm(&[&["--restore", "a.lv"], args].concat()));
        let finished = finished.with_code(153);
        assert!(finished.stderr.contains(word), "{finished:?}");
    }
}

const SERVED: &[&str] = &["--timings", "--profile", "--api-sock", "s"];
