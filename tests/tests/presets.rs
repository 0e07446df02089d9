//! How the host runs a machine (docs/presets.md): each setting by its flag and by the API, and presets of them.

use std::collections::BTreeMap;
use std::fs;

use lightv_api::exit::{BAD_ARGUMENTS, BAD_CONFIG, HOST_FAILURE, OK};
use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::machine::{self, config};
use lightv_tests::process::{Process, run, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::{Value, json};

/// The CPUs of each thread of a process, by the thread's name, as the kernel lists them.
fn cpus(pid: u32) -> BTreeMap<String, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let read = |task: &fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("status")).ok()?;
        let find = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let (name, cpus) = (find("Name:")?, find("Cpus_allowed_list:")?);
        Some((name.trim().to_owned(), cpus.trim().to_owned()))
    };
    tasks.flatten().filter_map(|task| read(&task)).collect()
}

/// The last CPU that this process may use.
fn last_cpu() -> u32 {
    let own = cpus(std::process::id()).into_values().next();
    let own = own.expect("a thread");
    let last = own.rsplit([',', '-']).next();
    last.and_then(|cpu| cpu.parse().ok()).expect("a number")
}

/// Waits until both threads of a machine with one vCPU are on `cpu` alone. `vcpu` is the name of the vCPU's.
fn assert_pinned(process: &Process, vcpu: &str, cpu: u32) {
    let pid = process.pid();
    let wanted = [vcpu, "control"].map(|name| (name.to_owned(), cpu.to_string()));
    wait_for("threads on their CPU", || {
        let found = cpus(pid);
        let is_there = |(name, cpu): &(String, String)| found.get(name) == Some(cpu);
        wanted.iter().all(is_there).then_some(())
    });
}

fn tuning(settings: &Value) -> Value {
    json!({"machine-config": {"tuning": settings}})
}

#[test]
fn threads_are_held_to_the_cpus_that_flags_or_the_api_name() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let cpu = last_cpu();
    let base = config(&scratch.guest_kernel(), "idle");
    let file = scratch.config("vm.json", &base);
    let (pin, control) = (format!("0={cpu}"), cpu.to_string());
    let flags = [
        "--config",
        &file,
        "--pin-vcpus",
        &pin,
        "--pin-control",
        &control,
    ];
    let saved = scratch.text("pinned.lv");
    let save = ["--save", &saved, "--save-at", "signal"];
    let process = Process::start(&mut scratch.vmm(&[&flags[..], &save].concat()));
    assert_pinned(&process, "lightv-vmm", cpu);
    process.signal(Signal::USR1);
    let _ = process.finish().with_code(OK);
    // Another host has other CPUs.
    let described = run(&mut scratch.vmm(&["--describe", &saved])).with_code(OK);
    assert!(described.stdout.contains("\"machine-config\""));
    assert!(!described.stdout.contains("pin_"), "{}", described.stdout);

    let (api, process) = Api::start(&scratch, "vm", &[]);
    let kernel = &base["boot-source"];
    let pins = json!({"pin_vcpus": {"0": cpu}, "pin_control": cpu, "halt_poll_us": 0});
    api.put("/boot-source", kernel);
    api.put(
        "/machine-config",
        &json!({"vcpu_count": 1, "mem_size_mib": 64, "tuning": pins}),
    );
    assert_eq!(api.get("/machine-config")["tuning"], pins);
    api.act("InstanceStart");
    assert_pinned(&process, "vcpu-0", cpu);
}

#[test]
fn what_cannot_be_is_refused_before_there_is_a_machine() {
    let scratch = Scratch::new();
    let base = config("no-kernel", "idle");
    for (settings, field) in [
        (json!({"pin_vcpus": {"1": 0}}), "pin_vcpus is for vCPU 1"),
        (
            json!({"pin_vcpus": {"0": 1023}}),
            "CPUs that this process may use: 0",
        ),
        (
            json!({"pin_control": 5000}),
            "tuning.pin_control is CPU 5000",
        ),
        (json!({"halt_poll_us": 10_001}), "0–10000"),
        (
            json!({"disk_poll_us": 10_001}),
            "tuning.disk_poll_us is 10001; allowed: 0–10000",
        ),
        (json!({"give_back_after_ms": 3_600_001}), "0–3600000"),
    ] {
        let file = scratch.config("vm.json", &machine::with(&base, &tuning(&settings)));
        let finished = run(&mut scratch.vmm(&["--config", &file]));
        finished.assert_refused(BAD_CONFIG, &["machine-config.tuning", field]);
    }
    let file = scratch.config("vm.json", &base);
    for flags in [
        &["--pin-vcpus", "0"][..],
        &["--pin-vcpus", "0=0,0=1"],
        &["--huge-pages", "4M"],
        &["--optimize-startup", "--optimize-performance"],
    ] {
        let args = [&["--config", &file], flags].concat();
        let refused = run(&mut scratch.vmm(&args)).with_code(BAD_ARGUMENTS);
        assert!(refused.stderr.contains(flags[0]), "{refused:?}");
    }
}

/// Memory of a process in KiB by a name of smaps_rollup.
fn rollup_kib(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok());
    kib.expect(name)
}

/// What /proc/meminfo says.
fn host(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("the kernel's");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

#[test]
fn memory_is_of_the_pages_that_were_asked_for() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("mem", &["--memory", "64"]);
    let start = |options: &[&str]| {
        let args = [&["run", "--no-tty"], options, &[&image]].concat();
        Process::start(&mut scratch.lightv(&args))
    };
    let large_kib = |options: &[&str], key: &str| {
        let process = start(options);
        process.wait_stdout(|text| text.contains("name=").then_some(()));
        rollup_kib(process.pid(), key)
    };
    let transparent = "/sys/kernel/mm/transparent_hugepage/enabled";
    let transparent = fs::read_to_string(transparent).unwrap_or_default();
    if transparent.contains("[madvise]") {
        assert_eq!(large_kib(&[], "AnonHugePages:"), 0);
        for options in [
            &["--huge-pages", "transparent"][..],
            &["--optimize-performance"],
        ] {
            assert!(large_kib(options, "AnonHugePages:") > 8 << 10);
        }
    }
    // Reserved as a whole: what is not there is known before the guest runs.
    if host("HugePages_Free:") >= 32 {
        assert!(large_kib(&["--huge-pages", "2M"], "Private_Hugetlb:") > 8 << 10);
    } else {
        let finished = start(&["--huge-pages", "2M"]).finish();
        finished.assert_refused(HOST_FAILURE, &["2 MiB pages", "HugePages_Free"]);
    }
}

#[test]
fn presets_say_what_they_chose_and_single_settings_stand() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello-world", &["--optimize-startup"]);
    let described = scratch.run(&["inspect", "--json", &image]).with_code(OK);
    assert!(
        described.stdout.contains("\"working-set\""),
        "{}",
        described.stdout
    );
    let said = |options: &[&str]| {
        let args = [&["run", "--no-tty", "-v"], options, &[&image]].concat();
        let finished = scratch.run(&args).with_code(OK);
        assert!(finished.stdout.contains("Hello"), "{}", finished.stdout);
        finished.stderr
    };
    for (options, words) in [
        // The image has it stored.
        (
            &[][..],
            &["startup", "prefetch=true", "huge_pages=None"][..],
        ),
        (&["--prefetch=false"], &["startup", "prefetch=false"]),
        (
            &["--optimize-concurrency"],
            &[
                "concurrency",
                "disk_poll_us=0",
                "prefetch=false",
                "give_back_after_ms=100",
            ],
        ),
        (
            &["--optimize-performance"],
            &["performance", "halt_poll_us=1000", "disk_poll_us=1000"],
        ),
        (
            &[
                "--optimize-performance",
                "--halt-poll-us",
                "7",
                "--disk-poll-us",
                "9",
                "--pin-vcpus",
                "0=0",
            ],
            &[
                "performance",
                "huge_pages=Transparent",
                "halt_poll_us=7",
                "disk_poll_us=9",
                "pin_vcpus=0=0",
            ],
        ),
    ] {
        let text = said(options);
        for word in words {
            assert!(text.contains(word), "{options:?}: {word}: {text}");
        }
    }
    // A process that was given a CPU of its own.
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    if online.trim() != "0" {
        let cpu = last_cpu().to_string();
        let mut command = scratch.command("taskset", &["-c", &cpu]);
        let lightv = scratch.lightv(&["run", "--no-tty", "-v", "--optimize-performance", &image]);
        command.arg(lightv.get_program()).args(lightv.get_args());
        let finished = run(&mut command).with_code(OK);
        let pinned = format!("pin_vcpus=0={cpu} pin_control=none");
        assert!(finished.stderr.contains(&pinned), "{}", finished.stderr);
    }
}

#[test]
fn memory_that_the_start_needed_goes_back_when_it_was_asked_for() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.config("vm.json", &config(&scratch.guest_kernel(), "idle"));
    let start = |after: &str| {
        let flags = ["--config", &file, "--give-back-after-ms", after];
        Process::start(&mut scratch.vmm(&flags))
    };
    let (never, soon) = (start("3600000"), start("0"));
    // Of the program alone: guest memory of a boot is no file's.
    let file_kib = |process: &Process| {
        let text = fs::read_to_string(format!("/proc/{}/status", process.pid()));
        let text = text.expect("a process");
        let line = text.lines().find_map(|line| line.strip_prefix("RssFile:"));
        let kib = line.and_then(|line| line.trim_end_matches("kB").trim().parse::<u64>().ok());
        kib.expect("RssFile")
    };
    let is_up = |process: &Process| cpus(process.pid()).contains_key("control");
    wait_for("both", || (is_up(&never) && is_up(&soon)).then_some(()));
    wait_for("the memory", || {
        (2 * file_kib(&soon) < file_kib(&never)).then_some(())
    });
}
