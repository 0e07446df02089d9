//! The host agent's pools: sandboxes and runs from machines that are ready, and what becomes of those that are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use lightv_api::agent::event::AgentHappening;
use lightv_api::agent::sandbox::SandboxState;
use lightv_api::exit::FAILURE;
use lightv_tests::agent::{Agent, command_at};
use lightv_tests::host::{has_kvm, pids_of, proc_file};
use lightv_tests::machine;
use lightv_tests::process::{Process, run, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind,
    listen, recv, send, socket_with,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), Signal::KILL).expect("a signal");
}

/// An agent that has hello-world.
fn with_hello(scratch: &Scratch) -> Agent {
    let image = scratch.build("hello", &[]);
    let agent = Agent::start(scratch, &[]);
    agent.put_image(scratch, "hello", &image);
    agent
}

#[test]
fn a_sandbox_comes_from_its_pool_and_the_pool_is_filled_again() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let agent = with_hello(&scratch);
    let pool = agent.fill_pool("hello", &json!({"min": 2, "max": 4}));
    assert_eq!(
        (pool.ready, pool.served, pool.missed),
        (2, 0, 0),
        "{pool:?}"
    );
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        let body = json!({"image": "hello", "warm": "require", "args": [name], "env": {"A": "b"}});
        agent.wait_pool("hello", |pool| pool.ready > 0);
        let made = agent.create(&body);
        assert!(made.warm, "{made:?}");
        assert_eq!(agent.wait(&made.id).exit_code, Some(0));
        let logs = agent.logs(&made.id);
        assert!(logs.contains(&format!("Hello, {name}!")), "{logs}");
        ids.push(made.id);
    }
    let cold = agent.create(&json!({"image": "hello", "warm": "never"}));
    assert!(!cold.warm, "{cold:?}");
    ids.push(cold.id);
    let pool = agent.wait_pool("hello", |pool| pool.ready == pool.target);
    assert_eq!((pool.served, pool.missed), (3, 0), "{pool:?}");
    for id in ids {
        agent.wait(&id);
        agent.delete(&id);
    }
    // One that is not there keeps none of the others.
    let forget = |what: &str| scratch.run(&[what, "rm", "gone", "hello"]);
    forget("pool").assert_refused(FAILURE, &["gone"]);
    wait_for("the end of what was ready", || {
        pids_of("lightv-vmm", scratch.folder())
            .is_empty()
            .then_some(())
    });
    let body = json!({"image": "hello", "warm": "require"});
    agent.refused(("POST", "/sandboxes"), &body, (503, &["no pool"]));
    forget("images").assert_refused(FAILURE, &["gone"]);
    assert_eq!(agent.ask::<Vec<Value>>("GET", "/images").len(), 0);
    agent.end();
}

/// Looks whether `runs` runs, which are over, were told of from the first to the last.
fn check_told(scratch: &Scratch, agent: &Agent, runs: usize) {
    agent.put_image(scratch, "last", "hello.lv");
    let is_last = |event: &AgentHappening| matches!(event, AgentHappening::ImageSet { image, .. } if image == "last");
    let mut told: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for event in agent.events(is_last) {
        let (sandbox, what) = match event {
            AgentHappening::Created { sandbox, .. } => (sandbox, "created"),
            AgentHappening::Ended { sandbox, .. } => (sandbox, "ended"),
            AgentHappening::Deleted { sandbox } => (sandbox, "deleted"),
            _ => continue,
        };
        told.entry(sandbox).or_default().push(what);
    }
    let told: Vec<_> = told.into_values().collect();
    assert_eq!(told, vec![["created", "ended", "deleted"]; runs]);
}

#[test]
fn a_run_is_a_pools_where_its_bytes_are_ready_and_its_own_elsewhere() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let hello = scratch.build("hello", &[]);
    let tick = scratch.build("tick", &["--", "0", "20"]);
    // Nobody to ask.
    let alone = scratch.run(&["run", &hello, "--", "a"]).with_code(0);
    let agent = Agent::start(&scratch, &[]);
    for (name, file) in [("hello", &hello), ("tick", &tick)] {
        agent.put_image(&scratch, name, file);
        agent.fill_pool(name, &json!({"min": 1}));
    }
    let before = scratch.listing();
    let served = || agent.wait_pool("hello", |pool| pool.ready > 0).served;
    let warm = scratch.run(&["run", &hello, "--", "a"]).with_code(0);
    assert_eq!(warm.stdout, alone.stdout);
    assert_eq!(served(), 1);
    let own = scratch
        .run(&["run", "--no-agent", &hello, "--", "a"])
        .with_code(0);
    assert_eq!((own.stdout, served()), (alone.stdout.clone(), 1));
    // Its status, and its signals.
    let run = Process::start(&mut scratch.lightv(&["run", &tick]));
    run.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    let list = agent.list();
    assert!(list.len() == 1 && list[0].warm, "{list:?}");
    let _ = run.end().with_code(143);
    // A client that is gone is one that wants its run to end.
    agent.wait_pool("tick", |pool| pool.ready > 0);
    let run = Process::start(&mut scratch.lightv(&["run", &tick]));
    run.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    run.signal(Signal::KILL);
    wait_for("the end of its run", || {
        agent.list().is_empty().then_some(())
    });
    assert_eq!(agent.wait_pool("tick", |pool| pool.ready > 0).served, 2);
    scratch.assert_same_files(&before);
    // Other bytes of the same name.
    let _ = scratch.build("hello", &["--", "other"]);
    let other = scratch.run(&["run", &hello]).with_code(0);
    assert!(other.stdout.contains("other"), "{other:?}");
    assert_eq!(served(), 1);
    check_told(&scratch, &agent, 3);
    agent.end();
}

#[test]
fn a_pool_goes_on_after_its_template_its_image_and_its_agent() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let hello = scratch.build("hello", &[]);
    let tick = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &[]);
    let old = agent.put_image(&scratch, "app", &hello);
    let first = agent.fill_pool("app", &json!({"min": 2}));
    // Its template crashes.
    kill(first.template_pid.expect("a template"));
    let is_other = |pid: Option<u32>| pid.is_some() && pid != first.template_pid;
    agent.wait_pool("app", |pool| is_other(pool.template_pid) && pool.ready == 2);
    // Its name leads to other bytes.
    let new = agent.put_image(&scratch, "app", &tick);
    assert_ne!(old.digest, new.digest);
    let pool = agent.wait_pool("app", |pool| pool.digest == new.digest && pool.ready == 2);
    let made = agent.create(&json!({"image": "app", "warm": "require"}));
    assert_eq!((made.warm, &made.digest), (true, &new.digest));
    wait_for("a tick", || {
        agent.logs(&made.id).contains("tick 1\n").then_some(())
    });
    // One of those that are ready crashes.
    let ready = pids_of("lightv-vmm", scratch.folder());
    let busy = [pool.template_pid, made.pid];
    let idle = ready.into_iter().find(|pid| !busy.contains(&Some(*pid)));
    let idle = idle.expect("one that is ready");
    kill(idle);
    // Its socket is closed some time after its program is gone, and all of it is over when its parent, the agent, knows.
    wait_for("its end", || {
        let process = format!("/proc/{idle}");
        (!Path::new(&process).exists()).then_some(())
    });
    agent.wait_pool("app", |pool| pool.ready == 2);
    let next = agent.create(&json!({"image": "app", "warm": "require"}));
    assert!(next.warm, "{next:?}");
    // Its agent is killed: what is ready ends, what runs goes on.
    let _ = agent.kill();
    let mut living: Vec<u32> = [made.pid, next.pid].into_iter().flatten().collect();
    living.sort_unstable();
    wait_for("the end of what was ready", || {
        let mut found = pids_of("lightv-vmm", scratch.folder());
        found.sort_unstable();
        (found == living).then_some(())
    });
    let agent = Agent::start(&scratch, &[]);
    for sandbox in [&made, &next] {
        let found = agent.sandbox(&sandbox.id);
        assert_eq!(
            (found.state, found.pid),
            (SandboxState::Running, sandbox.pid)
        );
        agent.delete(&sandbox.id);
    }
    agent.wait_pool("app", |pool| pool.ready == 2);
    agent.end();
    wait_for("the end of all", || {
        pids_of("lightv-vmm", scratch.folder())
            .is_empty()
            .then_some(())
    });
}

#[test]
fn pools_that_cannot_be_are_refused() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let agent = with_hello(&scratch);
    let before = scratch.listing();
    let pool = ("PUT", "/pools/hello");
    for (what, body, status, words) in [
        (("PUT", "/pools/x"), json!({}), 404, &["\"x\""][..]),
        (pool, json!({"min": 3, "max": 2}), 400, &["min", "3", "2"]),
        (pool, json!({"max": 0}), 400, &["max", "1–4096"]),
        (pool, json!({"refill": {"parallel": 0}}), 400, &["parallel"]),
        (pool, json!({"size": 1}), 400, &["size"]),
        (("GET", "/pools/hello"), Value::Null, 404, &["hello"]),
        (("DELETE", "/pools/hello"), Value::Null, 404, &["hello"]),
    ] {
        agent.refused(what, &body, (status, words));
    }
    scratch.assert_same_files(&before);
    agent.end();
}

#[test]
fn what_no_machine_can_be_told_costs_a_pool_one_of_them() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let agent = with_hello(&scratch);
    agent.fill_pool("hello", &json!({"min": 3, "max": 3}));
    // Each of its bytes is six in JSON.
    let long = "\u{1}".repeat(24_000);
    let body = json!({"image": "hello", "warm": "require", "args": [long]});
    let words: &[&str] = &["args", "131072"];
    agent.refused(("POST", "/sandboxes"), &body, (400, words));
    let pool = agent.wait_pool("hello", |pool| pool.ready == 3);
    assert_eq!((pool.served, pool.missed), (1, 0), "{pool:?}");
    assert_eq!(agent.list().len(), 0);
    agent.end();
}

#[test]
fn each_machine_of_a_pool_has_a_vsock_of_its_own_which_goes_with_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "vsock"),
        &json!({"vsock": {"guest_cid": 3, "uds_path": "image.sock"}}),
    );
    let config = scratch.config("vm.json", &config);
    let _ = run(&mut scratch.vmm(&["--config", &config, "--save", "vsock.lv"])).with_code(0);
    let agent = Agent::start(&scratch, &[]);
    let stored = agent.put_image(&scratch, "vsock", "vsock.lv");
    assert!(stored.vsock, "{stored:?}");
    let sockets = || {
        let entries = fs::read_dir(scratch.path("run")).expect("a folder");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let is_vsock = |path: &PathBuf| path.extension().is_some_and(|end| end == "vsock");
        paths.filter(is_vsock).collect::<BTreeSet<PathBuf>>()
    };
    agent.fill_pool("vsock", &json!({"min": 2, "max": 2}));
    assert_eq!(sockets().len(), 2);
    let body = json!({"image": "vsock", "warm": "require", "vsock": true});
    let warm = agent.create(&body);
    let cold = agent.create(&json!({"image": "vsock", "warm": "never"}));
    for sandbox in [&warm, &cold] {
        let path = sandbox.vsock_socket.as_ref().expect("a socket");
        assert!(sockets().contains(path), "{sandbox:?}");
        UnixStream::connect(path).expect("somebody who listens");
    }
    agent.wait_pool("vsock", |pool| pool.ready == 2);
    let answer = agent.api.call("DELETE", "/pools/vsock", &Value::Null);
    assert_eq!(answer.status, 204, "{answer:?}");
    let both = [&warm, &cold].map(|sandbox| sandbox.vsock_socket.clone().expect("a socket"));
    wait_for("the sockets of the others", || {
        (sockets() == both.clone().into()).then_some(())
    });
    // An agent that does not know them leaves them alone.
    for pid in [warm.pid, cold.pid].into_iter().flatten() {
        let record = scratch.path(&format!("run/{pid}.json"));
        wait_for("what it says of itself", || record.exists().then_some(()));
    }
    agent.end();
    Agent::start_as(&scratch, &mut command_at(&scratch, "other", &[])).end();
    assert_eq!(sockets(), BTreeSet::from(both));
    let agent = Agent::start(&scratch, &[]);
    for sandbox in [&warm, &cold] {
        agent.delete(&sandbox.id);
    }
    assert_eq!(sockets(), BTreeSet::new());
    // Killed all together: the next agent takes them away.
    agent.fill_pool("vsock", &json!({"min": 2, "max": 2}));
    let ready = pids_of("lightv-vmm", scratch.folder());
    let _ = agent.kill();
    wait_for("the end of what was ready", || {
        pids_of("lightv-vmm", scratch.folder())
            .is_empty()
            .then_some(())
    });
    let agent = Agent::start(&scratch, &[]);
    let of = |pid: &u32| scratch.path(&format!("run/pool-{pid}.vsock"));
    assert!(
        !ready.iter().any(|pid| sockets().contains(&of(pid))),
        "{:?}",
        sockets()
    );
    agent.end();
}

/// A `lightv run` that has asked an agent at `listener`, and the agent's end.
fn ask_silent(scratch: &Scratch, listener: &OwnedFd) -> (Process, OwnedFd) {
    let run = Process::start(&mut scratch.lightv(&["run", "any.lv"]));
    let client = wait_for("a client", || accept(listener).ok());
    wait_for("its request", || {
        recv(&client, &mut [0; 1][..], RecvFlags::DONTWAIT).ok()
    });
    (run, client)
}

#[test]
fn a_signal_ends_a_run_that_an_agent_has_not_granted() {
    let scratch = Scratch::new();
    scratch.write("any.lv", "");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    let listener = socket_with(AddressFamily::UNIX, kind, flags, None).expect("a socket");
    let address = SocketAddrUnix::new(scratch.path("run/agent-run.sock")).expect("short");
    bind(&listener, &address).expect("a name");
    listen(&listener, 8).expect("a listener");
    // It never answers.
    let (run, _client) = ask_silent(&scratch, &listener);
    let _ = run.end().with_code(143);
    // It refuses when the signal has come: the run does not begin here.
    let (run, client) = ask_silent(&scratch, &listener);
    run.signal(Signal::STOP);
    wait_for("its stop", || {
        proc_file(run.pid(), "stat").contains(") T ").then_some(())
    });
    run.signal(Signal::TERM);
    let refused = br#"{"refused": "none", "exit_code": 1}"#;
    let _ = send(&client, refused, SendFlags::NOSIGNAL).expect("a client");
    run.signal(Signal::CONT);
    let _ = run.finish().with_code(143);
}

#[test]
fn a_run_goes_on_without_its_agent_and_says_what_it_does_not_know() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let tick = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &[]);
    agent.put_image(&scratch, "tick", &tick);
    agent.fill_pool("tick", &json!({"min": 1}));
    let run = Process::start(&mut scratch.lightv(&["run", &tick]));
    run.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    let made = agent.list().pop().expect("a sandbox");
    let _ = agent.kill();
    let so_far = run.stdout().len();
    run.wait_stdout(|text| (text.len() > so_far).then_some(()));
    let agent = Agent::start(&scratch, &[]);
    let found = agent.sandbox(&made.id);
    assert_eq!((found.state, found.pid), (SandboxState::Running, made.pid));
    let answer = agent.api.call(
        "POST",
        &format!("/sandboxes/{}/stop", made.id),
        &Value::Null,
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let finished = run.finish().with_code(1);
    assert!(finished.stderr.contains("not known"), "{finished:?}");
    agent.end();
}
