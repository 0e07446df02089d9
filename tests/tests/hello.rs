//! The first minutes with LightV: build an image, run it, look at it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use lightv_api::describe::ImageDescription;
use lightv_api::exit;
use lightv_api::host::HostReport;
use lightv_api::timings::StartTimings;
use lightv_tests::host::has_kvm;
use lightv_tests::process::run;
use lightv_tests::scratch::Scratch;
use serde_json::Value;

#[test]
fn a_built_image_says_hello_and_takes_arguments() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello-world", &[]);
    let check = |args: &[&str], expected: &str| {
        let finished = scratch.run(&[&["run", &image], args].concat()).with_code(0);
        assert_eq!(
            (finished.stdout.as_str(), finished.stderr.as_str()),
            (expected, ""),
            "{args:?}"
        );
    };
    check(&[], "Hello, world!\n");
    check(&["--", "everyone"], "Hello, everyone!\n");
    check(&["--"], "Hello, world!\n");
    check(&["--cold"], "Hello, world!\n");
    check(
        &["--cold", "--memory", "64", "--vcpus", "2", "--", "you"],
        "Hello, you!\n",
    );
}

#[test]
fn arguments_of_the_image_hold_until_others_are_given() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build(
        "args",
        &["-e", "KEPT=1", "-e", "OTHER=2", "--", "one", "two"],
    );
    let stored = scratch.run(&["run", &image]).with_code(0);
    assert!(
        stored.stdout.contains("arg[0]=one\narg[1]=two\n"),
        "{stored:?}"
    );
    assert!(
        stored.stdout.contains("env KEPT=1\nenv OTHER=2\n"),
        "{stored:?}"
    );
    let replaced = scratch.run(&[
        "run",
        &image,
        "-e",
        "OTHER=3",
        "--env",
        "NEW=a=b c",
        "--",
        "--x",
        "ü 漢",
    ]);
    let replaced = replaced.with_code(0);
    assert!(
        replaced.stdout.contains("arg[0]=--x\narg[1]=ü 漢\n"),
        "{replaced:?}"
    );
    assert!(!replaced.stdout.contains("arg[2]"), "{replaced:?}");
    assert!(
        replaced
            .stdout
            .contains("env KEPT=1\nenv NEW=a=b c\nenv OTHER=3\n"),
        "{replaced:?}"
    );
    let passed_through = run(scratch
        .lightv(&["run", &image, "-e", "LVT_GIVEN"])
        .env("LVT_GIVEN", "from us"));
    assert!(
        passed_through.stdout.contains("env LVT_GIVEN=from us\n"),
        "{passed_through:?}"
    );
}

#[test]
fn no_arguments_after_the_dashes_replace_those_of_the_image() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("args", &["--", "one", "two"]);
    for options in [&["--"][..], &["--cold", "--"]] {
        let none = scratch
            .run(&[&["run", &image], options].concat())
            .with_code(0);
        assert!(!none.stdout.contains("arg["), "{none:?}");
    }
}

#[test]
fn arguments_fill_their_room_and_no_more() {
    if !has_kvm() {
        return;
    }
    const ROOM: usize = 61_440;
    let scratch = Scratch::new();
    let image = scratch.build("args", &[]);
    let fits = scratch.run(&["run", &image, "--", &"x".repeat(ROOM - 1)]);
    assert_eq!(fits.with_code(0).value("arg[0]").len(), ROOM - 1);
    let refused = scratch.run(&["run", &image, "--", &"x".repeat(ROOM)]);
    refused.assert_refused(exit::BAD_CONFIG, &["61440"]);
}

#[test]
fn exit_status_is_the_guests() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("exit", &[]);
    for status in [0, 1, 7, 127] {
        let text = status.to_string();
        let _ = scratch.run(&["run", &image, "--", &text]).with_code(status);
        let _ = scratch
            .run(&["run", "--cold", &image, "--", &text])
            .with_code(status);
        let _ = scratch
            .run(&["run", "--timings=json", &image, "--", &text])
            .with_code(status);
    }
}

#[test]
fn memory_and_vcpus_need_a_cold_start() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("args", &["--memory", "100"]);
    let saved = scratch.run(&["run", &image]).with_code(0);
    assert_eq!(
        (saved.value("ram_bytes"), saved.value("vcpus")),
        ("104857600", "1")
    );
    for option in ["--memory", "--vcpus"] {
        let refused = scratch.run(&["run", &image, option, "2"]);
        refused.assert_refused(exit::BAD_ARGUMENTS, &[option, "--cold"]);
    }
    let cold = scratch.run(&["run", &image, "--cold", "--memory", "64", "--vcpus", "3"]);
    let cold = cold.with_code(0);
    assert_eq!(
        (cold.value("ram_bytes"), cold.value("vcpus")),
        ("67108864", "3")
    );
    assert_eq!(
        (cold.value("restores"), saved.value("restores")),
        ("0", "1")
    );
}

#[test]
fn an_embedded_app_is_built_once_and_kept() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let kept = || {
        let entries = fs::read_dir(scratch.path("cache/lightv/images")).expect("the cache");
        let entries = entries.map(|entry| entry.expect("an entry"));
        let facts = entries.map(|entry| {
            (
                entry.file_name(),
                entry.metadata().expect("a file").modified().ok(),
            )
        });
        facts.collect::<Vec<_>>()
    };
    assert_eq!(
        scratch.run(&["run", "hello-world"]).with_code(0).stdout,
        "Hello, world!\n"
    );
    let first = kept();
    assert_eq!(first.len(), 1, "{first:?}");
    let again = scratch
        .run(&["run", "hello-world", "--", "again"])
        .with_code(0);
    assert_eq!(again.stdout, "Hello, again!\n");
    assert_eq!(kept(), first);
}

#[test]
fn first_runs_at_once_do_not_disturb_each_other() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let finished = scratch.run(&["run", "hello-world"]).with_code(0);
                assert_eq!(finished.stdout, "Hello, world!\n");
            });
        }
    });
    let kept = fs::read_dir(scratch.path("cache/lightv/images")).expect("the cache");
    assert_eq!(kept.count(), 1);
}

#[test]
fn a_missing_image_is_answered_with_how_to_make_one() {
    let scratch = Scratch::new();
    let refused = scratch.run(&["run", "nothing.lv"]);
    refused.assert_refused(
        exit::BAD_CONFIG,
        &["nothing.lv", "lightv build", "hello-world"],
    );
}

#[test]
fn timings_have_the_four_steps_and_their_sum() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello-world", &[]);
    for (way, options) in [("restore", &[][..]), ("boot", &["--cold"])] {
        let finished = scratch
            .run(&[&["run", &image, "--timings=json"], options].concat())
            .with_code(0);
        assert_eq!(finished.stdout, "Hello, world!\n");
        let t: StartTimings = serde_json::from_str(&finished.stderr).expect(&finished.stderr);
        let steps = [t.image_load_us, t.sandbox_us, t.resources_us, t.process_us];
        assert_eq!(t.way, way);
        assert!(
            steps.iter().all(|us| *us > 0.0) && t.spawn_us > 0.0,
            "{t:?}"
        );
        assert!((steps.iter().sum::<f64>() - t.sum_us).abs() < 0.01, "{t:?}");
        assert!((t.sum_us + t.spawn_us - t.total_us).abs() < 0.01, "{t:?}");
        assert!(t.total_us / 1e6 < finished.took.as_secs_f64(), "{t:?}");
        let is_ordered = t
            .marks
            .windows(2)
            .all(|pair| pair[0].at_us <= pair[1].at_us);
        assert!(is_ordered && !t.marks.is_empty(), "{t:?}");
    }
    let table = scratch.run(&["run", &image, "--timings"]).with_code(0);
    for step in [
        "image load",
        "sandbox",
        "resources",
        "process",
        "sum of the four",
    ] {
        assert!(table.stderr.contains(step), "{step}: {table:?}");
    }
}

#[test]
fn an_image_is_for_its_owner_only_and_not_overwritten_without_force() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &[]);
    let mode = fs::metadata(scratch.path(&image))
        .expect("the image")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let (bytes, before) = (scratch.read(&image), scratch.listing());
    let refused = scratch.run(&["build", "exit", "-o", &image]);
    refused.assert_refused(exit::BAD_ARGUMENTS, &[&image, "--force"]);
    scratch.assert_nothing_left(&before);
    assert_eq!(scratch.read(&image), bytes);
    let _ = scratch
        .run(&["build", "exit", "--force", "-o", &image])
        .with_code(0);
    scratch.assert_nothing_left(&before);
    let _ = scratch.run(&["run", &image, "--", "9"]).with_code(9);
}

#[test]
fn a_guest_that_ends_before_it_is_ready_gives_no_image() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let kernel = lightv_tests::machine::elf(&lightv_tests::machine::code_that_exits(5));
    scratch.write("kernel", kernel);
    let before = scratch.listing();
    let refused = scratch.run(&["build", "--kernel", "kernel", "-o", "x.lv"]);
    assert_eq!(refused.code, i32::from(exit::SAVE_FAILED), "{refused:#?}");
    assert!(
        refused.stdout.is_empty() && refused.stderr.contains("status 5"),
        "{refused:#?}"
    );
    scratch.assert_nothing_left(&before);
}

#[test]
fn a_guest_that_never_gets_ready_is_given_up() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // hlt with interrupts off, for ever.
    scratch.write("kernel", lightv_tests::machine::elf(&[0xf4, 0xeb, 0xfd]));
    let before = scratch.listing();
    let refused = scratch.run(&[
        "build",
        "--kernel",
        "kernel",
        "--timeout",
        "1",
        "-o",
        "x.lv",
    ]);
    refused.assert_refused(exit::SAVE_FAILED, &["1 s", "READY", "--timeout"]);
    scratch.assert_nothing_left(&before);
}

#[test]
fn images_are_listed_and_inspected() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &["-e", "A=1", "--memory", "48", "--", "b"]);
    let listed = scratch.run(&["images"]).with_code(0);
    assert!(
        listed.stdout.contains(&image) && listed.stdout.contains("48 MiB"),
        "{listed:?}"
    );
    let listed = scratch.run(&["images", "--json", "."]).with_code(0);
    let listed: Vec<ImageDescription> = serde_json::from_str(&listed.stdout).expect("images");
    let inspected = scratch.run(&["inspect", &image, "--json"]).with_code(0);
    let inspected: ImageDescription = serde_json::from_str(&inspected.stdout).expect("an image");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].sections, inspected.sections);
    assert_eq!(inspected.file_bytes, scratch.read(&image).len() as u64);
    assert_eq!(
        (
            inspected.ram_bytes,
            inspected.restores,
            inspected.has_snapshot
        ),
        (48 << 20, 0, true)
    );
    assert!(inspected.sections.iter().all(|section| section.intact));
    for kind in ["manifest", "kernel", "memory", "vcpu"] {
        assert!(
            inspected
                .sections
                .iter()
                .any(|section| section.kind == kind),
            "{kind}"
        );
    }
    let run = inspected.config.run.expect("arguments");
    assert_eq!(
        (run.args, run.env["A"].as_str()),
        (vec!["b".to_owned()], "1")
    );
    let table = scratch.run(&["inspect", &image]).with_code(0);
    assert!(
        table.stdout.contains("manifest") && table.stdout.contains("48 MiB"),
        "{table:?}"
    );
}

#[test]
fn a_damaged_image_does_not_end_the_list_and_is_seen_by_inspect() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &[]);
    let mut bytes = scratch.read(&image);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    scratch.write("damaged.lv", &bytes);
    scratch.write("none.lv", "text");
    let listed = scratch.run(&["images", "."]).with_code(0);
    assert!(
        listed.stdout.contains(&image) && listed.stderr.contains("none.lv"),
        "{listed:?}"
    );
    let inspected = scratch
        .run(&["inspect", "damaged.lv"])
        .with_code(exit::FAILURE);
    assert!(inspected.stdout.contains("damaged"), "{inspected:?}");
    scratch
        .run(&["inspect", "none.lv"])
        .assert_refused(exit::BAD_CONFIG, &["none.lv"]);
}

#[test]
fn doctor_tells_what_kvm_there_is() {
    let scratch = Scratch::new();
    let finished = scratch.run(&["doctor", "--json"]);
    let report: HostReport = serde_json::from_str(&finished.stdout).expect("a report");
    let kinds = if std::path::Path::new("/dev/kvm").exists() && has_kvm() {
        &["hardware", "software"][..]
    } else {
        &["none"]
    };
    assert!(kinds.contains(&report.kvm.as_str()), "{report:?}");
    assert!(
        report.cores > 0 && report.memory_bytes > 0 && !report.kernel.is_empty(),
        "{report:?}"
    );
    let text = scratch.run(&["doctor"]);
    assert_eq!(text.code, finished.code);
    let without = run(scratch.lightv(&["doctor"]).env("PATH", "/nowhere"));
    assert_eq!(without.code, finished.code);
    for words in ["not installed", "apt-get install passt"] {
        assert!(without.stdout.contains(words), "{without:?}");
    }
    if report.kvm == "software" {
        // With what is done about it for a Linux kernel, and how to turn that off.
        for words in ["software KVM", "options", "--no-software-kvm-options"] {
            assert!(text.stdout.contains(words), "{words}: {text:?}");
        }
    }
    assert!(
        report
            .checks
            .iter()
            .all(|check| text.stdout.contains(&check.name)),
        "{text:?}"
    );
}

#[test]
fn completions_man_pages_help_and_version_are_there() {
    let scratch = Scratch::new();
    let check = |args: &[&str], words: &[&str]| {
        let finished = scratch.run(args).with_code(0);
        for word in words {
            assert!(
                finished.stdout.contains(word),
                "{args:?}: {word}: {finished:?}"
            );
        }
    };
    check(&["completions", "bash"], &["_lightv", "--timings"]);
    check(&["man"], &[".TH", "lightv"]);
    check(&["--help"], &["run", "build", "152"]);
    check(&["run", "--help"], &["--cold", "--env"]);
    let version = scratch.run(&["--version"]).with_code(0);
    let vmm = run(&mut scratch.vmm(&["--version"])).with_code(0);
    assert_eq!(
        version.stdout.split(' ').next_back(),
        vmm.stdout.split(' ').next_back()
    );
}

#[test]
fn wrong_command_lines_are_refused() {
    let scratch = Scratch::new();
    let before = scratch.listing();
    for args in [
        &["walk"][..],
        &["run"],
        &["run", "a.lv", "b"],
        &["run", "a.lv", "--memory", "x"],
        &["run", "a.lv", "--net", "eth0="],
        &["run", "a.lv", "--disk", "x"],
        &["run", "a.lv", "-e", "LVT_NOT_SET"],
        &["build", "nothing", "-o", "x.lv"],
        &["build", "hello"],
        &["build", "hello", "-o", "x.lv", "--disk", "d=x,fast"],
        &["inspect"],
    ] {
        scratch.run(args).assert_refused(exit::BAD_ARGUMENTS, &[]);
    }
    for args in [
        &["--nope"][..],
        &["--restore", "a", "--config", "b"],
        &["--restore", "a", "--id", "a_b"],
        &[],
    ] {
        let finished = run(&mut scratch.vmm(args)).with_code(exit::BAD_ARGUMENTS);
        assert!(
            !finished.stderr.is_empty() && finished.stdout.is_empty(),
            "{finished:?}"
        );
    }
    scratch.assert_nothing_left(&before);
}

#[test]
fn lightv_without_its_monitor_says_so_and_runs_images_all_the_same() {
    let scratch = Scratch::new();
    fs::copy(lightv_tests::host::binary("lightv"), scratch.path("lightv")).expect("a copy");
    let alone = |args: &[&str]| {
        let mut command = scratch.command(scratch.path("lightv"), args);
        run(command.env("PATH", "/nonexistent"))
    };
    let refused = alone(&["build", "hello", "-o", "x.lv"]);
    refused.assert_refused(exit::HOST_FAILURE, &["lightv-vmm", "LIGHTV_VMM"]);
    let mut command = scratch.lightv(&["build", "hello", "-o", "x.lv"]);
    let refused = run(command.env("LIGHTV_VMM", "/nonexistent/vmm"));
    refused.assert_refused(exit::HOST_FAILURE, &["/nonexistent/vmm"]);
    if has_kvm() {
        let image = scratch.build("hello", &[]);
        assert_eq!(
            alone(&["run", &image]).with_code(0).stdout,
            "Hello, world!\n"
        );
    }
}

#[test]
fn run_by_another_monitor_is_the_same() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("args", &["-e", "A=1"]);
    let mut command = scratch.lightv(&["run", &image, "-e", "B=2", "--", "x"]);
    let finished =
        run(command.env("LIGHTV_VMM", lightv_tests::host::binary("lightv-vmm"))).with_code(0);
    assert!(
        finished.stdout.starts_with("arg[0]=x\nenv A=1\nenv B=2\n"),
        "{finished:?}"
    );
}

#[test]
fn a_run_writes_metrics_with_kvm_s_own_counts_and_a_log_by_either_monitor() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &[]);
    let other = lightv_tests::host::binary("lightv-vmm");
    for (path, monitor) in [("own", None), ("other", Some(other))] {
        let log = format!("{path}.log");
        let outputs = ["--metrics-path", path, "--log-path", &log, "--log-format"];
        let mut command = scratch.lightv(&[&["run"], &outputs[..], &["json", &image]].concat());
        if let Some(monitor) = monitor {
            command.env("LIGHTV_VMM", monitor);
        }
        let _ = run(&mut command).with_code(0);
        let line: Value = serde_json::from_slice(&scratch.read(path)).expect("one line");
        let kvm = |name: &str| line["kvm"][name].as_u64();
        // READY, PRINT and EXIT; KVM itself served some more.
        assert!(
            kvm("user_exits") >= Some(2) && kvm("exits") > kvm("user_exits"),
            "{path}: {line}"
        );
        let logged = String::from_utf8(scratch.read(&log)).expect("a log");
        let lines: Vec<Value> = logged
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let ended = "the guest ended: it exited with status 0";
        assert!(
            lines.iter().any(|line| line["message"] == ended),
            "{logged}"
        );
    }
    for option in ["--metrics-path", "--log-path"] {
        let refused = scratch.run(&["run", option, "no/where", &image]);
        refused.assert_refused(exit::BAD_CONFIG, &["no/where"]);
    }
    scratch.write("metadata", "{}");
    let refused = scratch.run(&["run", "--metadata", "metadata", &image]);
    refused.assert_refused(exit::BAD_CONFIG, &["mmds-config"]);
}
