//! Sandboxes of an agent that was started with `--jail`: each in a jail of its own, in every way in which it starts, and what cannot be
//! in one is refused.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use lightv_api::agent::sandbox::{Sandbox, SandboxState};
use lightv_api::exit::{BAD_ARGUMENTS, FAILURE};
use lightv_tests::agent::{Agent, command, command_at};
use lightv_tests::api::Api;
use lightv_tests::cgroups::{groups, remove_empty};
use lightv_tests::host::{has_kvm, processes_in};
use lightv_tests::jails::{AS_USER, probe, seen, with_folders};
use lightv_tests::machine;
use lightv_tests::process::{DEADLINE, run, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::unprivileged::{MOUNT_NAME_SPACE, UNPRIVILEGED, open_to_all, private_dev};
use serde_json::{Value, json};

/// The image `vsock` of a guest that echoes what comes by its vsock.
fn build_vsock(scratch: &Scratch) {
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "vsock"),
        &json!({"vsock": {"guest_cid": 3, "uds_path": "image.sock"}}),
    );
    let config = scratch.config("vm.json", &config);
    let _ = run(&mut scratch.vmm(&["--config", &config, "--save", "vsock.lv"])).with_code(0);
}

/// An agent with that image, whose sandboxes are in jails.
fn jailing(scratch: &Scratch) -> Agent {
    build_vsock(scratch);
    let agent = Agent::start(scratch, &["--jail"]);
    agent.put_image(scratch, "vsock", "vsock.lv");
    agent
}

/// The folder of the jail of `sandbox`.
fn folder_of(scratch: &Scratch, sandbox: &Sandbox) -> PathBuf {
    scratch.path("run").join(format!("jail-{}", sandbox.id))
}

/// Whether the guest of `sandbox` echoes.
fn check_echo(sandbox: &Sandbox) {
    let socket = sandbox.vsock_socket.as_ref().expect("a vsock");
    let said = wait_for("an echo", || {
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        stream.write_all(b"CONNECT 7\n").ok()?;
        let mut said = Vec::new();
        while !said.ends_with(b"\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            said.push(byte[0]);
        }
        stream.write_all(b"echo").ok()?;
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).ok()?;
        Some((String::from_utf8_lossy(&said).into_owned(), echo))
    });
    assert!(said.0.starts_with("OK ") && said.1 == *b"echo", "{said:?}");
}

/// Looks at the jail of `sandbox` from outside: it is the user `uid`'s, and has its own folder and `files`.
fn check_jail(scratch: &Scratch, (sandbox, uid, files): (&Sandbox, u32, &[PathBuf]), others: u32) {
    assert!(sandbox.jailed, "{sandbox:?}");
    let folder = folder_of(scratch, sandbox);
    assert_eq!(sandbox.vsock_socket, Some(folder.join("vsock")));
    let pid = sandbox.pid.expect("a process");
    probe(pid, uid, others, Some(&folder));
    let own = [folder.join("vsock"), scratch.folder().to_owned()];
    let files: Vec<PathBuf> = files.iter().cloned().chain(own).collect();
    assert_eq!(seen(pid), with_folders(&files));
}

/// Looks whether each of the processes `pids` is alone in a group of `parent`, which has its limit.
fn check_groups(parent: &str, pids: &[u32]) {
    let mut found = BTreeSet::new();
    for group in groups(parent) {
        for entry in fs::read_dir(group).expect("groups").flatten() {
            if let Ok(max) = fs::read_to_string(entry.path().join("pids.max")) {
                assert_eq!(max.trim(), "77");
                let inside = fs::read_to_string(entry.path().join("cgroup.procs"));
                let inside = inside.expect("processes");
                found.insert(inside.trim().parse::<u32>().expect("one process"));
            }
        }
    }
    let pids: BTreeSet<u32> = pids.iter().copied().collect();
    assert_eq!(found, pids);
}

/// The file of the store that holds the image `digest`.
fn file_of(agent: &Agent, digest: &str) -> PathBuf {
    let name = digest.replace("sha256:", "sha256-");
    agent.state().join("images").join(name + ".lv")
}

/// Puts the bytes of the image `file`, of which a sandbox runs, once more: users of jails still read them.
fn put_again(scratch: &Scratch, agent: &Agent, file: &Path) {
    let looks = || {
        let found = fs::metadata(file).expect("an image");
        (found.permissions().mode() & 0o777, found.ino())
    };
    let (mode, inode) = looks();
    let _ = agent.put_image(scratch, "vsock", "vsock.lv");
    let (mode_again, inode_again) = looks();
    assert_ne!(inode, inode_again, "another file");
    assert_eq!((mode, mode_again), (0o644, 0o644));
}

/// Looks whether the agent and all its sandboxes have left neither files, processes nor mounts.
fn check_nothing_left(scratch: &Scratch) {
    let left: Vec<_> = fs::read_dir(scratch.path("run"))
        .expect("its folder")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    wait_for("the end of all", || {
        processes_in(scratch.folder()).is_empty().then_some(())
    });
    let folder = scratch.folder().to_str().expect("text");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let is_ours = |line: &&str| line.contains(folder) || line.starts_with("tmpfs /sys ");
    assert_eq!(mounts.lines().find(is_ours), None);
}

fn post(agent: &Agent, id: &str, verb: &str) -> Sandbox {
    agent.ask("POST", &format!("/sandboxes/{id}/{verb}"))
}

/// Ends `one`, `two` and `other`, each in another way.
fn end_all(scratch: &Scratch, agent: &Agent, other: &Sandbox) {
    assert_eq!(post(agent, "one", "stop").state, SandboxState::Ended);
    assert_eq!(agent.sandbox("one").exit_code, Some(143));
    let killed = json!({"time_s": 0});
    let answer = agent.api.call("POST", "/sandboxes/two/stop", &killed);
    assert_eq!(answer.body["exit_code"], 137, "{answer:?}");
    assert_eq!(
        answer.body["end_reason"],
        "its process was killed by signal 9"
    );
    // What a monitor that was taken over may put into its folder leads nobody anywhere.
    let folder = folder_of(scratch, other);
    let kept = scratch.path("kept");
    fs::write(&kept, "").expect("a file");
    symlink(&kept, folder.join("link")).expect("a link");
    agent.delete(&other.id);
    assert!(kept.exists());
    fs::remove_file(kept).expect("a file of ours");
}

#[test]
fn every_sandbox_is_in_a_jail_of_its_own_and_nothing_is_left_of_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    build_vsock(&scratch);
    let parent = format!("lightv-agent-{}", std::process::id());
    let limit = [
        "--jail-cgroup",
        "pids.max=77",
        "--jail-parent-cgroup",
        &parent,
    ];
    let before = scratch.listing();
    let agent = Agent::start(&scratch, &[&AS_USER[..], &limit].concat());
    let digest = agent.put_image(&scratch, "vsock", "vsock.lv").digest;
    let info: Value = agent.ask("GET", "/");
    assert_eq!(info["jails"], true, "{info}");
    let image = [file_of(&agent, &digest)];

    let one = agent.create(&json!({"image": "vsock", "name": "one"}));
    put_again(&scratch, &agent, &image[0]);
    let other = agent.create(&json!({"image": "vsock"}));
    let pids = [&one, &other].map(|it| it.pid.expect("a process"));
    check_jail(&scratch, (&one, 1234, &image), pids[1]);
    check_jail(&scratch, (&other, 1234, &image), pids[0]);
    check_echo(&one);
    check_groups(&parent, &pids);
    assert_eq!(post(&agent, "one", "pause").state, SandboxState::Paused);
    // A fork sees neither the folder of its source nor the image, whose disks it has from its source.
    let two = agent.fork("one", &json!({"name": "two"}));
    assert_eq!(post(&agent, "one", "resume").state, SandboxState::Running);
    check_jail(&scratch, (&two, 1234, &[]), pids[0]);
    check_echo(&two);
    check_echo(&one);
    assert_eq!(agent.sandbox(&two.id), two, "the same as it was answered");
    let listed = scratch.run(&["ps", "--json"]).with_code(0).stdout;
    for pid in [one.pid, two.pid, other.pid].into_iter().flatten() {
        assert!(
            listed.contains(&format!("\"pid\": {pid},")),
            "{pid}: {listed}"
        );
    }

    end_all(&scratch, &agent, &other);
    for id in ["one", "two"] {
        agent.delete(id);
    }
    let answer = agent.api.call("DELETE", "/images/vsock", &Value::Null);
    assert_eq!(answer.status, 204, "{answer:?}");
    agent.end();
    check_nothing_left(&scratch);
    remove_empty(&parent);
    fs::remove_dir_all(scratch.path("state")).expect("the agent's folder");
    scratch.assert_nothing_left(&before);
}

/// Does `work` while the API of `bad` says that its vsock has the socket of `good`.
fn name_as_vsock(scratch: &Scratch, (bad, good): (&Sandbox, &Sandbox), work: impl FnOnce()) {
    let api = scratch.path("run").join(format!("{}.sock", bad.id));
    let kept = scratch.path("kept.sock");
    let info = Api::at(&api).get("/");
    let mut config = Api::at(&api).get("/vm/config");
    config["vsock"]["uds_path"] = json!(good.vsock_socket);
    fs::rename(&api, &kept).expect("its socket");
    let listener = UnixListener::bind(&api).expect("a socket");
    let server = thread::spawn(move || {
        for body in [info.to_string(), config.to_string()] {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                asked.push(byte[0]);
            }
            let length = body.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            stream
                .write_all((head + &body).as_bytes())
                .expect("an answer");
        }
    });
    work();
    server.join().expect("both were asked for");
    fs::rename(&kept, &api).expect("its socket");
}

#[test]
fn programs_of_a_jail_go_to_its_own_guest_whatever_lies_in_its_folder() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let agent = jailing(&scratch);
    let [bad, good] =
        ["bad", "good"].map(|name| agent.create(&json!({"image": "vsock", "name": name})));
    let socket = bad.vsock_socket.clone().expect("a socket");
    fs::remove_file(&socket).expect("its socket");
    symlink(good.vsock_socket.as_ref().expect("a socket"), &socket).expect("a link");
    let ls = json!({"args": ["ls"]});
    let at_good = ("POST", "/sandboxes/good/exec");
    // It is asked, and has nobody who starts programs.
    agent.refused(at_good, &ls, (409, &["no agent"]));
    agent.refused(
        ("POST", "/sandboxes/bad/exec"),
        &ls,
        (503, &["Cannot connect", "vsock"]),
    );
    let exec_bad = || {
        let finished = scratch.run(&["exec", &bad.id, "--", "ls"]);
        finished.assert_refused(FAILURE, &["Cannot connect", socket.to_str().expect("text")]);
    };
    exec_bad();
    name_as_vsock(&scratch, (&bad, &good), exec_bad);
    for sandbox in [&bad, &good] {
        agent.delete(&sandbox.id);
    }
    agent.end();
    check_nothing_left(&scratch);
}

/// Options of an agent, what is asked of it, and what it says.
const REFUSED: [(&str, &str, u16, &[&str]); 4] = [
    (
        "--jail-cgroup nonsense.max=1",
        r#"{"image": "tick"}"#,
        503,
        &["nonsense", "pids"],
    ),
    (
        "--jail-netns /nowhere",
        r#"{"image": "tick"}"#,
        503,
        &["/nowhere", "No such file"],
    ),
    (
        "--jail-ro /",
        r#"{"image": "tick"}"#,
        400,
        &["--jail-ro", "/ is not allowed"],
    ),
    (
        "",
        r#"{"image": "net", "net": ["eth0=tap7"]}"#,
        400,
        &["eth0", "tap7", "--jail-netns"],
    ),
];

#[test]
fn what_cannot_be_in_a_jail_is_refused_and_nothing_of_it_is_left() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let with_net = scratch.build("echo", &["--net", "user"]);
    let none: Vec<&str> = Vec::new();
    let pool = json!({"min": 1, "max": 1});
    // Its pool waits for an agent like this one.
    let agent = Agent::start(&scratch, &none);
    agent.put_image(&scratch, "tick", &image);
    agent.put_image(&scratch, "net", &with_net);
    agent.fill_pool("tick", &pool);
    let free = agent.create(&json!({"image": "tick", "name": "free", "warm": "never"}));
    assert!(!free.jailed, "{free:?}");
    agent.end();
    for (flags, body, status, words) in REFUSED {
        let flags = flags.split_whitespace();
        let args: Vec<&str> = ["--jail"].into_iter().chain(flags).collect();
        let agent = Agent::start(&scratch, &args);
        let pools: Vec<Value> = agent.ask("GET", "/pools");
        assert_eq!(pools, Vec::<Value>::new());
        let body = serde_json::from_str(body).expect("JSON");
        agent.refused(("POST", "/sandboxes"), &body, (status, words));
        assert_eq!(agent.list().len(), 1, "but for the one that was there");
        let folders = fs::read_dir(scratch.path("run"))
            .expect("its folder")
            .flatten();
        let jails =
            folders.filter(|entry| entry.file_name().to_string_lossy().starts_with("jail-"));
        assert_eq!(jails.count(), 0);
        agent.end();
    }
    let agent = Agent::start(&scratch, &AS_USER);
    agent.refused(("PUT", "/pools/tick"), &pool, (409, &["--jail"]));
    let warm = json!({"image": "tick", "warm": "require"});
    agent.refused(("POST", "/sandboxes"), &warm, (409, &["--jail", "pool"]));
    // One that was there before stays what it is; its fork is in a jail.
    let before = agent.sandbox("free");
    assert_eq!((before.jailed, before.pid), (false, free.pid));
    let fork = agent.fork("free", &json!({"name": "fork"}));
    let [fork_pid, free_pid] = [&fork, &free].map(|it| it.pid.expect("a process"));
    assert!(fork.jailed, "{fork:?}");
    probe(fork_pid, 1234, free_pid, Some(&folder_of(&scratch, &fork)));
    wait_for("a tick", || {
        agent.logs(&fork.id).contains("tick").then_some(())
    });
    // Its network is a program outside; for what comes by requests there is none.
    let net = agent.create(&json!({"image": "net", "name": "net"}));
    let fork_of_net = ("POST", "/sandboxes/net/fork");
    agent.refused(fork_of_net, &Value::Null, (409, &["eth0"]));
    assert_eq!(agent.sandbox("net"), net, "it goes on");
    agent.delete("net");
    agent.end();
    // And the other way round.
    let agent = Agent::start(&scratch, &none);
    assert_eq!(agent.sandbox("fork"), fork);
    let words: &[&str] = &["in a jail", "--jail"];
    agent.refused(("POST", "/sandboxes/fork/fork"), &Value::Null, (409, words));
    let _ = agent.wait_pool("tick", |pool| pool.ready == 1);
    for id in ["fork", "free"] {
        agent.delete(id);
    }
    agent.end();
    check_nothing_left(&scratch);
}

#[test]
fn options_that_cannot_be_are_refused() {
    let scratch = Scratch::new();
    for flags in ["--jail-uid 5", "--jail --jail-cgroup memory.max"] {
        let flags: Vec<&str> = flags.split(' ').collect();
        let finished = run(&mut command(&scratch, &flags));
        assert_eq!(finished.code, i32::from(BAD_ARGUMENTS), "{finished:?}");
        assert!(finished.stderr.contains("--jail"), "{finished:?}");
    }
}

#[test]
fn a_jail_that_loses_its_agent_or_its_keeper_is_taken_away_all_the_same() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &["--jail"]);
    agent.put_image(&scratch, "tick", &image);
    let [kept, dead, lost] =
        ["kept", "dead", "lost"].map(|name| agent.create(&json!({"image": "tick", "name": name})));
    let folders = [&kept, &dead, &lost].map(|it| folder_of(&scratch, it));
    let pid_of = |sandbox: &Sandbox| {
        let pid = i32::try_from(sandbox.pid.expect("a process")).expect("small");
        rustix::process::Pid::from_raw(pid).expect("a process")
    };
    let kill =
        |pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("ours");
    let keeper_of = |sandbox: &Sandbox| {
        let status = lightv_tests::host::proc_file(sandbox.pid.expect("a process"), "status");
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let pid = line.expect("a parent").trim().parse().expect("a number");
        rustix::process::Pid::from_raw(pid).expect("a process")
    };
    let _ = agent.kill();
    kill(pid_of(&dead));
    wait_for("its end", || {
        processes_in(scratch.folder()).len().eq(&4).then_some(())
    });
    // Whoever it was of is forgotten.
    let strange = scratch.path("run/jail-0123456789abcdef");
    fs::create_dir(&strange).expect("a folder");
    let agent = Agent::start(&scratch, &["--jail"]);
    assert_eq!(folders.clone().map(|it| it.exists()), [true, false, true]);
    assert!(!strange.exists());
    assert_eq!(agent.sandbox("dead").state, SandboxState::Ended);
    assert_eq!(
        (agent.sandbox("kept"), agent.sandbox("lost")),
        (kept.clone(), lost.clone())
    );
    // Nobody passes its status on, and its machine goes with it.
    kill(keeper_of(&lost));
    let _ = agent.wait("lost");
    assert!(!folders[2].exists());
    assert_eq!(post(&agent, "kept", "stop").exit_code, Some(143));
    assert!(!folders[0].exists());
    for id in ["kept", "dead", "lost"] {
        agent.delete(id);
    }
    agent.end();
    wait_for("its machine's end", || {
        processes_in(scratch.folder()).is_empty().then_some(())
    });
    // A record of one whose keeper was killed goes when somebody lists.
    let _ = scratch.run(&["ps"]).with_code(0);
    check_nothing_left(&scratch);
}

#[test]
fn a_jail_that_lives_keeps_its_vsock_though_an_agent_does_not_know_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let agent = jailing(&scratch);
    let made = agent.create(&json!({"image": "vsock", "name": "one"}));
    agent.end();
    // It is another agent's.
    Agent::start_as(&scratch, &mut command_at(&scratch, "other", &[])).end();
    check_echo(&made);
    // Nobody can read what is written down of it.
    let record = scratch.path(&format!("state/sandboxes/{}.json", made.id));
    let written = fs::read(&record).expect("a record");
    fs::write(&record, "{}").expect("a record");
    let agent = Agent::start(&scratch, &["--jail"]);
    assert_eq!(agent.list().len(), 0);
    agent.end();
    check_echo(&made);
    fs::write(&record, written).expect("a record");
    let agent = Agent::start(&scratch, &["--jail"]);
    assert_eq!(agent.sandbox("one"), made);
    check_echo(&made);
    agent.delete("one");
    agent.end();
    check_nothing_left(&scratch);
}

#[test]
fn an_agent_without_privileges_jails_its_sandboxes_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    open_to_all(&scratch.path(&image), 0o644);
    open_to_all(scratch.folder(), 0o755);
    for name in ["run", "state"] {
        let folder = scratch.path(name);
        fs::create_dir_all(&folder).expect("a folder");
        open_to_all(&folder, 0o700);
        std::os::unix::fs::chown(&folder, Some(65534), Some(65534)).expect("our folder");
    }
    let as_nobody = |args: &[&str]| {
        let started = command(&scratch, args);
        let copy = |program: &Path| {
            let to = scratch.path(program.file_name().expect("a name").to_str().expect("text"));
            if !to.exists() {
                fs::copy(program, &to).expect("a copy");
            }
            to.to_str().expect("text").to_owned()
        };
        let program = copy(Path::new(started.get_program()));
        let monitor = copy(&lightv_tests::host::binary("lightv-vmm"));
        let words = started.get_args().filter_map(|word| word.to_str());
        let words: Vec<&str> = UNPRIVILEGED[1..]
            .iter()
            .copied()
            .chain([program.as_str()])
            .chain(words)
            .collect();
        let mut command = scratch.command(UNPRIVILEGED[0], &words);
        command.env("LIGHTV_VMM", monitor);
        lightv_tests::process::after_script(&MOUNT_NAME_SPACE, &private_dev(Some("666")), &command)
    };
    let refused = run(&mut as_nobody(&AS_USER));
    refused.assert_refused(BAD_ARGUMENTS, &["need root", "65534"]);
    let agent = Agent::start_as(&scratch, &mut as_nobody(&["--jail"]));
    agent.put_image(&scratch, "tick", &image);
    let [one, two] =
        ["one", "two"].map(|name| agent.create(&json!({"image": "tick", "name": name})));
    let [first, second] = [&one, &two].map(|it| it.pid.expect("a process"));
    probe(first, 65534, second, Some(&folder_of(&scratch, &one)));
    probe(second, 65534, first, Some(&folder_of(&scratch, &two)));
    assert_eq!(post(&agent, "one", "stop").exit_code, Some(143));
    for id in ["one", "two"] {
        agent.delete(id);
    }
    agent.end();
    check_nothing_left(&scratch);
}
