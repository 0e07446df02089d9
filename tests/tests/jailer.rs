//! Jails by the flags of Firecracker's jailer.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lightv_api::exit::{BAD_ARGUMENTS, HOST_FAILURE, OK};
use lightv_tests::api::Api;
use lightv_tests::cgroups::{groups, version_of};
use lightv_tests::host::{binary, has_kvm, proc_file};
use lightv_tests::machine;
use lightv_tests::process::{Process, run, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::unprivileged::{UNPRIVILEGED, open_to_all};
use rustix::process::Signal;
use serde_json::json;

/// A folder for jails, and `jailer` with what it needs.
struct Jailer {
    scratch: Scratch,
    root: PathBuf,
}

impl Jailer {
    /// With the root of machine `a` made, and a machine that runs `app` in it.
    fn new(app: &str) -> Self {
        let scratch = Scratch::new();
        open_to_all(scratch.folder(), 0o755);
        for name in ["jailer", "firecracker"] {
            std::os::unix::fs::symlink(binary("lightv-vmm"), scratch.path(name)).expect("a link");
        }
        // Its name is that of the file itself.
        fs::remove_file(scratch.path("firecracker")).expect("our link");
        fs::copy(binary("lightv-vmm"), scratch.path("firecracker")).expect("a copy");
        let root = scratch.path("jails/firecracker/a/root");
        fs::create_dir_all(&root).expect("a folder");
        fs::copy(scratch.guest_kernel(), root.join("kernel")).expect("a copy");
        let config = machine::config("kernel", app).to_string();
        fs::write(root.join("vm.json"), config).expect("a file");
        for file in ["kernel", "vm.json"] {
            open_to_all(&root.join(file), 0o644);
        }
        Self { scratch, root }
    }

    fn command(&self, flags: &[&str], args: &[&str]) -> Command {
        self.command_as("1234", flags, args)
    }

    fn command_as(&self, uid: &str, flags: &[&str], args: &[&str]) -> Command {
        let needed = [
            "--id",
            "a",
            "--exec-file",
            "firecracker",
            "--uid",
            uid,
            "--gid",
            "1234",
        ];
        let base = ["--chroot-base-dir", "jails"];
        let words = [&needed[..], &base, flags, &["--"], args].concat();
        self.scratch.command(self.scratch.path("jailer"), &words)
    }

    fn forget_pid(&self) -> u32 {
        let path = self.root.join("firecracker.pid");
        let text = fs::read_to_string(&path).expect("its process id");
        fs::remove_file(&path).expect("its file");
        text.parse().expect("a number")
    }
}

#[test]
fn firecrackers_jailer_runs_a_monitor_in_a_folder_without_copying_it() {
    if !has_kvm() {
        return;
    }
    let jailer = Jailer::new("hello");
    let finished = run(&mut jailer.command(&[], &["--config-file", "vm.json", "--no-api"]));
    assert_eq!(finished.with_code(OK).stdout, "Hello, world!\n");
    assert!(!jailer.root.join("firecracker").exists());
    let again = run(&mut jailer.command(&[], &["--config-file", "vm.json", "--no-api"]));
    again.assert_refused(HOST_FAILURE, &["firecracker.pid", "--id"]);
    let _ = jailer.forget_pid();
    // In the foreground its process is the jailer's own.
    let config = machine::config("kernel", "tick -- 0 20").to_string();
    fs::write(jailer.root.join("vm.json"), config).expect("a file");
    let process = Process::start(&mut jailer.command(&[], &["--config-file", "vm.json"]));
    process.wait_stdout(|text| text.contains("tick 1\n").then_some(()));
    assert_eq!(jailer.forget_pid(), process.pid());
    let socket = Api::at(jailer.root.join("run/firecracker.socket"));
    assert_eq!(socket.get("/")["id"], "a");
    let proc = jailer.root.join("proc");
    assert_eq!(
        fs::read_dir(proc).expect("a folder").count(),
        0,
        "seen from outside"
    );
    let status = proc_file(process.pid(), "status");
    assert!(status.contains("Uid:\t1234\t1234") && status.contains("CapEff:\t0000000000000000"));
    let inside = fs::read_dir(format!("/proc/{}/root/proc", process.pid())).expect("its proc");
    assert!(inside.count() >= 3);
    // It is saved, which takes proc.
    socket.set_state("Paused");
    let files = json!({"snapshot_path": "/run/state", "mem_file_path": "/run/memory"});
    socket.put("/snapshot/create", &files);
    assert!(jailer.root.join("run/memory").is_file());
    assert_eq!(process.end().code, 143);
}

#[test]
fn firecrackers_jailer_leaves_a_daemon_alone_in_its_groups() {
    if !has_kvm() {
        return;
    }
    let jailer = Jailer::new("tick -- 0 20");
    let parent = format!("lightv-jailer-{}", std::process::id());
    let version = version_of("pids");
    let flags = [
        "--daemonize",
        "--new-pid-ns",
        "--cgroup",
        "pids.max=50",
        "--cgroup-version",
        version,
    ];
    let more = [
        "--parent-cgroup",
        &parent,
        "--resource-limit",
        "no-file=300",
    ];
    let command = &mut jailer.command(&[&flags[..], &more].concat(), &["--config-file", "vm.json"]);
    let finished = run(command).with_code(OK);
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("", "")
    );
    let pid = jailer.forget_pid();
    let socket = Api::at(jailer.root.join("run/firecracker.socket"));
    wait_for("its API", || socket.try_call("GET", "/", "").ok());
    assert!(proc_file(pid, "status").contains(&format!("NSpid:\t{pid}\t1\n")));
    assert!(
        proc_file(pid, "limits").contains("Max open files            300                  300")
    );
    let group = groups(&parent)
        .into_iter()
        .next()
        .expect("its parent")
        .join("a");
    let read = |name: &str| fs::read_to_string(group.join(name)).expect(name);
    assert_eq!(read("pids.max").trim(), "50");
    assert_eq!(read("cgroup.procs").trim(), pid.to_string());
    let session = proc_file(pid, "stat");
    let session = session.rsplit_once(')').expect("a name").1;
    assert_eq!(
        session.split_whitespace().nth(3),
        Some(pid.to_string().as_str())
    );
    end_daemon(pid, &group, &parent);
}

#[test]
fn firecrackers_jailer_changes_nothing_of_a_machine_that_has_the_id() {
    if !has_kvm() {
        return;
    }
    let jailer = Jailer::new("tick -- 0 20");
    let parent = format!("lightv-taken-{}", std::process::id());
    let version = version_of("pids");
    let limited = |limit| {
        let version = ["--cgroup-version", version];
        [
            &["--cgroup", limit, "--parent-cgroup", &parent],
            &version[..],
        ]
        .concat()
    };
    let args = ["--config-file", "vm.json"];
    let flags = [&["--daemonize"], &limited("pids.max=64")[..]].concat();
    let _ = run(&mut jailer.command(&flags, &args)).with_code(OK);
    let parents = groups(&parent);
    let group = parents.first().expect("its parent").join("a");
    let seen = || {
        let limit = fs::read_to_string(group.join("pids.max")).expect("its limit");
        let files = ["", "dev", "dev/kvm", "run", "firecracker.pid"].map(|name| {
            let found = fs::metadata(jailer.root.join(name)).expect(name);
            (name, found.ino(), found.uid(), found.mode())
        });
        (limit, files)
    };
    let before = seen();
    assert_eq!(before.0.trim(), "64");
    for way in [&["--daemonize"][..], &["--daemonize", "--new-pid-ns"], &[]] {
        let flags = [way, &limited("pids.max=63")[..]].concat();
        let second = run(&mut jailer.command_as("1235", &flags, &args));
        second.assert_refused(HOST_FAILURE, &["firecracker.pid", "--id"]);
        assert_eq!(seen(), before, "{way:?}");
    }
    end_daemon(jailer.forget_pid(), &group, &parent);
}

/// Ends the daemon `pid`, and takes its groups away.
fn end_daemon(pid: u32, group: &Path, parent: &str) {
    let number = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    rustix::process::kill_process(number.expect("a pid"), Signal::TERM).expect("ours");
    wait_for("its end", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
    wait_for("the end of its groups", || {
        let _ = fs::remove_dir(group);
        (!group.exists()).then_some(())
    });
    for parent in groups(parent) {
        fs::remove_dir(parent).expect("an empty group");
    }
}

impl Jailer {
    /// Looks whether a machine `b` with `flags` is refused, and nothing of it is left.
    #[track_caller]
    fn refuses(&self, flags: &[&str], code: u8, words: &[&str]) {
        let needed = ["--id", "b", "--uid", "1234", "--gid", "1234"];
        let before = self.scratch.listing();
        let program = self.scratch.path("jailer");
        let all = [&needed[..], flags].concat();
        let finished = run(&mut self.scratch.command(program, &all));
        println!("{flags:?}\n    {}", finished.stderr.trim_end());
        assert_eq!(finished.code, i32::from(code), "{finished:?}");
        for word in words {
            assert!(finished.stderr.contains(word), "{word}: {finished:?}");
        }
        self.scratch.assert_nothing_left(&before);
        assert_eq!(groups("firecracker").len() + groups("dynamic").len(), 0);
    }
}

#[test]
fn firecrackers_jailer_refuses_flags_that_cannot_be() {
    let jailer = Jailer::new("hello");
    let version = version_of("pids");
    let limit = ["--cgroup", "pids.max=x", "--cgroup-version", version];
    for (flags, code, words) in [
        (&["--id", "b"][..], BAD_ARGUMENTS, &["--id"][..]),
        (&["--cgroup", "pids.max"], BAD_ARGUMENTS, &["FILE=VALUE"]),
        (&["--cgroup", "nonsense.max=1"], HOST_FAILURE, &["nonsense"]),
        (&limit, HOST_FAILURE, &["pids.max"]),
        (&["--parent-cgroup", "../x"], BAD_ARGUMENTS, &["relative"]),
        (&["--netns", "/nowhere"], HOST_FAILURE, &["/nowhere"]),
        (&["--resource-limit", "core=1"], BAD_ARGUMENTS, &["no-file"]),
    ] {
        let files = ["--exec-file", "firecracker", "--chroot-base-dir", "jails"];
        jailer.refuses(&[&files, flags].concat(), code, words);
    }
    let absent = ["--exec-file", "firecracker", "--chroot-base-dir", "absent"];
    jailer.refuses(&absent, BAD_ARGUMENTS, &["absent"]);
    let unprivileged = jailer.command(&[], &["--no-api"]);
    let given = unprivileged.get_args();
    let given: Vec<&str> = given.filter_map(|word| word.to_str()).collect();
    let program = jailer.scratch.text("jailer");
    let args = [&UNPRIVILEGED[1..], &[&program], &given[..]].concat();
    let finished = run(&mut jailer.scratch.command(UNPRIVILEGED[0], &args));
    finished.assert_refused(HOST_FAILURE, &["root", "lightv-vmm --jail"]);
}

#[test]
fn firecrackers_jailer_takes_back_what_it_made_for_a_program_that_cannot_be_run() {
    let jailer = Jailer::new("hello");
    fs::copy("/bin/true", jailer.scratch.path("dynamic")).expect("a copy");
    let with = |program: &'static str, more: &[&'static str]| {
        let files = ["--exec-file", program, "--chroot-base-dir", "jails"];
        [&files, more].concat()
    };
    let gone = ["absent", "No such file"];
    jailer.refuses(&with("absent", &[]), BAD_ARGUMENTS, &gone);
    let folder = ["jails", "regular file"];
    jailer.refuses(&with("jails", &[]), BAD_ARGUMENTS, &folder);
    let version = version_of("pids");
    let limited = ["--cgroup", "pids.max=50", "--cgroup-version", version];
    let apart = [&["--new-pid-ns", "--daemonize"], &limited[..]].concat();
    for more in [&limited[..], &["--daemonize"], &apart] {
        let words = ["dynamic", "static"];
        jailer.refuses(&with("dynamic", more), HOST_FAILURE, &words);
        open_to_all(&jailer.scratch.path("firecracker"), 0o700);
        let words = ["1234", "chmod"];
        jailer.refuses(&with("firecracker", more), HOST_FAILURE, &words);
        open_to_all(&jailer.scratch.path("firecracker"), 0o755);
    }
}
