//! Machines in jails: what they see of the host, what they can do, and what is left of them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lightv_api::exit::{BAD_ARGUMENTS, BAD_CONFIG, GUEST_PANIC, HOST_FAILURE, OK};
use lightv_tests::api::Api;
use lightv_tests::cgroups::{groups, tree};
use lightv_tests::disk::{self, blocks_of};
use lightv_tests::host::{has_kvm, proc_file};
use lightv_tests::jails::{AS_USER, name_space, probe, seen, with_folders};
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, after_script, run, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::unprivileged::{MOUNT_NAME_SPACE, UNPRIVILEGED, open_to_all, private_dev};
use rustix::process::Signal;
use serde_json::json;

/// The image of `app`, which everyone may read.
fn image(scratch: &Scratch, app: &str, options: &[&str]) -> String {
    let image = scratch.build(app, options);
    open_to_all(&scratch.path(&image), 0o644);
    image
}

/// `command` as the user nobody, with a KVM for all. Its program and `files` are put where that user finds them.
fn as_nobody(scratch: &Scratch, command: &Command) -> Command {
    open_to_all(scratch.folder(), 0o755);
    let run = scratch.path("nobody-run");
    if !run.exists() {
        fs::create_dir(&run).expect("a folder");
        open_to_all(&run, 0o700);
        std::os::unix::fs::chown(&run, Some(65534), Some(65534)).expect("our folder");
    }
    let program = Path::new(command.get_program());
    let copy = scratch.path(
        program
            .file_name()
            .expect("a program")
            .to_str()
            .expect("text"),
    );
    if !copy.exists() {
        fs::copy(program, &copy).expect("a copy");
    }
    let words: Vec<&str> = command
        .get_args()
        .filter_map(|word| word.to_str())
        .collect();
    let copy = copy.to_str().expect("text");
    let args = [&UNPRIVILEGED[1..], &[copy], &words[..]].concat();
    let mut command = scratch.command(UNPRIVILEGED[0], &args);
    command.env("LIGHTV_RUNTIME_DIR", &run);
    after_script(&MOUNT_NAME_SPACE, &private_dev(Some("666")), &command)
}

/// The process in the jail that `keeper` keeps, once it gives something out.
fn jailed(keeper: &Process, says: &str) -> u32 {
    keeper.wait_stdout(|text| text.contains(says).then_some(()));
    let pid = keeper.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("its children");
    let mut pids = children.split_whitespace();
    let found = pids.next().and_then(|pid| pid.parse().ok());
    assert_eq!(pids.next(), None, "one child");
    found.expect("a child")
}

#[test]
fn a_machine_sees_its_own_files_processes_and_sockets_and_has_no_privileges() {
    if !has_kvm() {
        return;
    }
    let (one, other) = (Scratch::new(), Scratch::new());
    let (own, others) = (image(&one, "tick", &[]), image(&other, "tick", &[]));
    let args = [&["run"][..], &AS_USER, &[&own, "--", "0", "20"]].concat();
    let (before, others_before) = (one.listing(), other.listing());
    let process = Process::start(&mut one.lightv(&args));
    let mut of_nobody = as_nobody(&other, &other.lightv(&["run", "--jail", &others]));
    let unprivileged = Process::start(&mut of_nobody);
    let pid = jailed(&process, "tick 2\n");
    let pid_of_nobody = jailed(&unprivileged, "tick 1\n");
    assert_eq!(seen(pid), with_folders(&[one.path(&own)]));
    let devices = ["/dev/userfaultfd"].map(PathBuf::from);
    // Its host has but three.
    let expected = with_folders(&[other.path(&others)]);
    let expected: BTreeSet<PathBuf> = expected
        .into_iter()
        .filter(|path| !devices.contains(path))
        .collect();
    assert_eq!(seen(pid_of_nobody), expected);
    probe(pid, 1234, pid_of_nobody, None);
    probe(pid_of_nobody, 65534, pid, None);
    assert_ne!(name_space(pid_of_nobody, "user"), name_space(pid, "user"));
    for (process, signal, code) in [
        (process, Signal::TERM, 143),
        (unprivileged, Signal::INT, 130),
    ] {
        process.signal(signal);
        let finished = process.finish();
        assert_eq!(
            (finished.code, finished.stderr.as_str()),
            (code, ""),
            "{finished:?}"
        );
    }
    one.assert_nothing_left(&before);
    let nobodys = other.path("nobody-run");
    assert_eq!(fs::read_dir(&nobodys).expect("its folder").count(), 0);
    fs::remove_dir(&nobodys).expect("an empty folder");
    fs::remove_file(other.path("lightv")).expect("our copy");
    other.assert_nothing_left(&others_before);
}

#[test]
fn disks_are_written_and_machines_saved_through_the_walls() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    disk::create(&scratch.path("real-disk"), 1 << 20);
    std::os::unix::fs::symlink("real-disk", scratch.path("disk")).expect("a link");
    open_to_all(&scratch.path("real-disk"), 0o666);
    fs::create_dir(scratch.path("out")).expect("a folder");
    open_to_all(&scratch.path("out"), 0o777);
    open_to_all(scratch.folder(), 0o755);
    let image = image(&scratch, "blk", &["--disk", "data_1=disk"]);
    let jailed_run = |options: &[&str], args: &[&str]| {
        let words = [&["run"][..], &AS_USER, options, &[&image, "--"], args].concat();
        scratch.run(&words)
    };
    let written = jailed_run(&[], &["42", "100"]).with_code(OK);
    assert!(written.stdout.contains("blk ok"), "{written:?}");
    assert_eq!(
        blocks_of(&scratch.read("real-disk"), 42),
        (0..100).collect::<Vec<_>>()
    );
    let written = jailed_run(&["--cold"], &["43", "100"]).with_code(OK);
    assert!(written.stdout.contains("blk ok"), "{written:?}");
    assert_eq!(
        blocks_of(&scratch.read("real-disk"), 43),
        (0..100).collect::<Vec<_>>()
    );

    let config = machine::config(&scratch.guest_kernel(), "hello");
    let config = scratch.config("vm.json", &config);
    // In one folder: what is only read stays so.
    let beside = ["--config", &config, "--jail", "--save", "beside.lv"];
    let outputs = ["--log-path", "log", "--metrics-path", "/dev/null"];
    let saved = run(&mut scratch.vmm(&[&beside[..], &outputs].concat()));
    let _ = saved.with_code(OK);
    assert!(scratch.path("log").is_file() && scratch.path("beside.lv").is_file());
    let args = [&["--config", &config, "--save", "out/new.lv"][..], &AS_USER].concat();
    let _ = run(&mut scratch.vmm(&args)).with_code(OK);
    let args = [&["run"][..], &AS_USER, &["out/new.lv"]].concat();
    let saved = scratch.run(&args).with_code(OK);
    assert_eq!(saved.stdout, "Hello, world!\n");
    // From standard input, which is read outside first.
    let args = ["--config", "-", "--jail"];
    let text = scratch.read("vm.json");
    let process = Process::start_with(&mut scratch.vmm(&args), &text, std::process::Stdio::piped());
    assert_eq!(process.finish().with_code(OK).stdout, "Hello, world!\n");
    let (input, _kept_open) = std::io::pipe().expect("a pipe");
    let mut waiting = scratch.vmm(&args).stdin(input).spawn().expect("one");
    wait_for("a look at standard input", || {
        // read(0, …), as proc(5) has it.
        let call = proc_file(waiting.id(), "syscall");
        call.starts_with("0 0x0 ").then_some(())
    });
    let pid = rustix::process::Pid::from_child(&waiting);
    rustix::process::kill_process(pid, Signal::TERM).expect("ours");
    assert!(!waiting.wait().expect("its end").success());
}

#[test]
fn the_api_is_served_and_makes_what_it_was_given_a_place_for() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("out")).expect("a folder");
    open_to_all(&scratch.path("out"), 0o777);
    let kernel = scratch.guest_kernel();
    let args = [&AS_USER[..], &["--jail-ro", &kernel, "--jail-rw", "out"]].concat();
    let before = scratch.listing();
    let (api, process) = Api::start(&scratch, "vm", &args);
    let listed = wait_for("its record", || {
        let listed = scratch.run(&["ps", "--json"]).with_code(OK).stdout;
        listed.contains("\"vm\"").then_some(listed)
    });
    let pid = fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.pid()));
    let pid = pid.expect("its children").trim().to_owned();
    assert!(listed.contains(&pid), "{pid}: {listed}");
    let inspected = scratch
        .run(&["inspect", "--pid", &pid, "--json"])
        .with_code(OK);
    assert!(inspected.stdout.contains("threads"), "{inspected:?}");
    let boot = machine::config(&kernel, "tick -- 0 20")["boot-source"].clone();
    api.put("/boot-source", &boot);
    let absent = api.call(
        "PUT",
        "/boot-source",
        &json!({"kernel_image_path": "/etc/hosts"}),
    );
    assert!(absent.fault().contains("No such file"), "{absent:?}");
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("tick 3\n").then_some(()));
    api.set_state("Paused");
    let files = json!({"snapshot_path": "out/state", "mem_file_path": "out/memory"});
    api.put("/snapshot/create", &files);
    for file in ["out/state", "out/memory"] {
        fs::remove_file(scratch.path(file)).expect(file);
    }
    assert_eq!(process.end().code, 143);
    scratch.assert_nothing_left(&before);
}

#[test]
fn exit_codes_come_through_and_a_keeper_that_is_killed_takes_its_machine_along() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (exits, panics) = (image(&scratch, "exit", &[]), image(&scratch, "panic", &[]));
    let ticks = image(&scratch, "tick", &[]);
    let before = scratch.listing();
    let ended = scratch
        .run(&["run", "--jail", &exits, "--", "3"])
        .with_code(3);
    assert_eq!(ended.stderr, "");
    let _ = scratch
        .run(&["run", "--jail", &panics, "--", "x"])
        .with_code(GUEST_PANIC);
    let process = Process::start(&mut scratch.lightv(&["run", "--jail", &ticks]));
    let pid = jailed(&process, "tick 1\n");
    process.signal(Signal::KILL);
    let is_gone = || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(());
    wait_for("the machine's end", is_gone);
    let _ = process.finish();
    scratch.assert_nothing_left(&before);
    let detached = scratch
        .run(&["run", "-d", "--name", "away", "--jail", &ticks])
        .with_code(OK);
    assert_eq!(detached.stdout, "away\n");
    let _ = scratch.run(&["stop", "away"]).with_code(OK);
}

/// Sends `data` to the guest at `address`, which sends it back.
fn echo(netns: &Netns, address: SocketAddr) {
    wait_for("the guest's answer", || {
        let mut stream = netns.try_connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"echo").ok()?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).ok()?;
        (answer == *b"echo").then_some(())
    });
}

#[test]
fn a_machine_is_in_the_network_that_is_named_or_has_one_in_user_space() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    netns.ip("tuntap add dev tap1 mode tap user 1234");
    netns.ip("link del tap0");
    netns.ip("addr add 10.0.0.1/24 dev tap1");
    netns.ip("link set tap1 up");
    netns.ip("link set lo up");
    netns.ip("route add default via 10.0.0.254");
    let net = [
        "build",
        "echo",
        "-o",
        "echo.lv",
        "--net",
        "tap1,ip=10.0.0.2/24",
    ];
    let _ = netns
        .start(&mut scratch.lightv(&net))
        .finish()
        .with_code(OK);
    open_to_all(&scratch.path("echo.lv"), 0o644);
    let path = netns.path();
    let args = [&["run"][..], &AS_USER, &["--jail-netns", &path, "echo.lv"]].concat();
    // From outside of it.
    let process = Process::start(&mut scratch.lightv(&args));
    echo(&netns, machine::guest_at(2, 7));
    assert_eq!(process.end().code, 143);
    let lost = scratch.run(&[&["run"][..], &AS_USER, &["echo.lv"]].concat());
    lost.assert_refused(BAD_CONFIG, &["eth0", "tap1", "--jail-netns"]);

    let net = ["build", "echo", "-o", "user.lv", "--net", "user"];
    let _ = netns
        .start(&mut scratch.lightv(&net))
        .finish()
        .with_code(OK);
    open_to_all(&scratch.path("user.lv"), 0o644);
    let user = ["run", "--jail", "--net", "user,publish=8080:7", "user.lv"];
    let mut command = as_nobody(&scratch, &scratch.lightv(&user));
    let process = netns.start(&mut command);
    echo(&netns, SocketAddr::from(([127, 0, 0, 1], 8080)));
    let finished = process.end();
    assert_eq!(
        (finished.code, finished.stderr.as_str()),
        (143, ""),
        "{finished:?}"
    );
}

#[test]
fn limits_of_control_groups_hold_and_the_groups_go_with_the_machine() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = image(&scratch, "tick", &[]);
    let parent = format!("lightv-test-{}", std::process::id());
    let (memory, pids) = (tree("memory"), tree("pids"));
    let memory_file = if memory.is_some() {
        "memory.limit_in_bytes"
    } else {
        "memory.max"
    };
    let unified = || {
        let groups = groups("");
        groups.into_iter().next().expect("control groups")
    };
    let [memory_limit, pids_limit] = [&format!("{memory_file}=314572800"), "pids.max=40"];
    let limits = ["--jail-cgroup", memory_limit, "--jail-cgroup", pids_limit];
    let args = [
        &["run"][..],
        &AS_USER,
        &limits,
        &["--jail-parent-cgroup", &parent, &image],
    ]
    .concat();
    let process = Process::start(&mut scratch.lightv(&args));
    let pid = jailed(&process, "tick 1\n");
    for (tree, file, value) in [(memory, memory_file, "314572800"), (pids, "pids.max", "40")] {
        let group = tree.unwrap_or_else(unified).join(&parent);
        let group = group.join(format!("anonymous-instance-{}", process.pid()));
        let read = |name: &str| fs::read_to_string(group.join(name)).expect(name);
        assert_eq!(read(file).trim(), value);
        assert_eq!(read("cgroup.procs").trim(), pid.to_string());
    }
    assert_eq!(process.end().code, 143);
    assert_eq!(groups(&parent), Vec::<PathBuf>::new());
    // Version 2, where it has this controller.
    let unified = groups("").into_iter().find(|tree| {
        let controllers = fs::read_to_string(tree.join("cgroup.controllers"));
        controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "hugetlb"))
    });
    if let Some(unified) = unified {
        let limit = [
            "--jail-cgroup",
            "hugetlb.2MB.max=4194304",
            "--jail-parent-cgroup",
            &parent,
        ];
        let args = [&["run", "--jail"][..], &limit, &[&image]].concat();
        let process = Process::start(&mut scratch.lightv(&args));
        let pid = jailed(&process, "tick 1\n");
        let name = format!("anonymous-instance-{}", process.pid());
        let group = unified.join(&parent).join(name);
        let read = |name: &str| fs::read_to_string(group.join(name)).expect(name);
        assert_eq!(read("hugetlb.2MB.max").trim(), "4194304");
        assert_eq!(read("cgroup.procs").trim(), pid.to_string());
        assert_eq!(process.end().code, 143);
        assert_eq!(groups(&parent), Vec::<PathBuf>::new());
    }
    // Too little for what it is.
    let args = [
        "run",
        "--jail",
        "--jail-cgroup",
        "pids.max=1",
        "--jail-parent-cgroup",
        &parent,
        &image,
    ];
    let finished = scratch.run(&args);
    assert_eq!(finished.code, i32::from(HOST_FAILURE), "{finished:?}");
    assert_eq!(groups(&parent), Vec::<PathBuf>::new());
}

/// Flags, and what is said of them.
const REFUSED: [(&str, u8, &[&str]); 13] = [
    ("--jail-uid 5", BAD_ARGUMENTS, &["--jail"]),
    ("--jail --jail-uid -1", BAD_ARGUMENTS, &["-1"]),
    ("--jail --jail-gid x", BAD_ARGUMENTS, &["--jail-gid"]),
    ("--jail --tty", BAD_ARGUMENTS, &["--tty"]),
    ("--jail --jail-rw /", BAD_ARGUMENTS, &["--jail-rw"]),
    (
        "--jail --jail-cgroup memory.max",
        BAD_ARGUMENTS,
        &["FILE=VALUE"],
    ),
    (
        "--jail --jail-cgroup ../pids.max=1",
        BAD_ARGUMENTS,
        &["control group"],
    ),
    (
        "--jail --jail-cgroup cgroup.procs=1",
        BAD_ARGUMENTS,
        &["control group"],
    ),
    (
        "--jail --jail-cgroup nonsense.max=1",
        HOST_FAILURE,
        &["nonsense", "pids"],
    ),
    (
        "--jail --jail-cgroup pids.nonsense=1",
        HOST_FAILURE,
        &["pids.nonsense", "no such file"],
    ),
    (
        "--jail --jail-cgroup pids.max=many",
        HOST_FAILURE,
        &["many", "Invalid argument"],
    ),
    (
        "--jail --jail-netns /nowhere",
        HOST_FAILURE,
        &["/nowhere", "No such file"],
    ),
    (
        "--jail --jail-netns /dev/null",
        HOST_FAILURE,
        &["/dev/null", "Invalid"],
    ),
];

#[test]
fn a_jail_that_cannot_be_is_refused_and_nothing_of_it_is_left() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = image(&scratch, "hello", &[]);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let parent = format!("lightv-bad-{}", std::process::id());
    let before = scratch.listing();
    for (flags, code, words) in REFUSED {
        let mut args = vec!["--restore", &image];
        args.extend(flags.split(' '));
        if flags.contains("--jail-cgroup") {
            args.extend(["--jail-parent-cgroup", &parent]);
        }
        let finished = run(&mut scratch.vmm(&args));
        println!("{flags}\n    {}", finished.stderr.trim_end());
        assert_eq!(finished.code, i32::from(code), "{finished:?}");
        assert_eq!(finished.stdout, "", "{finished:?}");
        for word in words {
            assert!(finished.stderr.contains(word), "{word}: {finished:?}");
        }
    }
    scratch.assert_nothing_left(&before);
    assert_eq!(
        fs::read_to_string("/proc/self/mounts").expect("mounts"),
        mounts
    );
    assert_eq!(groups(&parent), Vec::<PathBuf>::new());
}

#[test]
fn a_user_is_told_what_the_host_refuses_them() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = image(&scratch, "hello", &[]);
    let command = scratch.vmm(&["--restore", &image, "--jail", "--jail-uid", "5"]);
    let finished = run(&mut as_nobody(&scratch, &command));
    finished.assert_refused(BAD_ARGUMENTS, &["root", "65534"]);
    let (program, image) = (scratch.text("lightv-vmm"), scratch.text(&image));
    let jailed = [program.as_str(), "--restore", &image, "--jail"];
    let words = [&UNPRIVILEGED[1..], &jailed].concat();
    let command = scratch.command(UNPRIVILEGED[0], &words);
    let refused = |dev: &str, command: &Command, words: &[&str]| {
        let finished = run(&mut after_script(&MOUNT_NAME_SPACE, dev, command));
        println!("{}", finished.stderr.trim_end());
        finished.assert_refused(HOST_FAILURE, words);
    };
    let closed = private_dev(Some("600"));
    let words = ["/dev/kvm", "65534", "group root (0)", "600"];
    refused(&closed, &command, &words);
    // In a root that is not its name space's, as on a host that allows none, nobody has a user name space.
    let root = scratch.text("tmp");
    let words = [&["--userspec", "65534:65534", &root], &jailed[..]].concat();
    let command = scratch.command("chroot", &words);
    let open = format!("{}; mount --rbind / {root}", private_dev(Some("666")));
    let words = ["user.max_user_namespaces", "not permitted"];
    refused(&open, &command, &words);
}
