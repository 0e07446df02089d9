//! The host agent when things go wrong: killed at any moment, too many clients, clients that never read, a full disk, no
//! descriptors. Nothing that was answered is lost, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{ErrorKind, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use lightv_api::agent::sandbox::{Sandbox, SandboxState};
use lightv_tests::agent::{Agent, command};
use lightv_tests::api::Api;
use lightv_tests::cgroups::remove_empty;
use lightv_tests::host::{has_kvm, pids_of, proc_file, processes_in};
use lightv_tests::process::{after_script, wait_for};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

/// Says how often the agent is killed.
const KILLS: &str = "LIGHTV_AGENT_KILLS";

/// What clients were told.
#[derive(Debug, Default)]
struct Told {
    /// Sandboxes that were created.
    created: BTreeSet<String>,
    /// Those of which somebody has asked that they be deleted.
    asked_away: BTreeSet<String>,
    /// Those of which that was answered.
    deleted: BTreeSet<String>,
}

/// Creates sandboxes and deletes every second one until the agent is gone.
fn load(api: &Api, told: &Mutex<Told>) {
    for turn in 0.. {
        let Ok(answer) = api.try_call("POST", "/sandboxes", r#"{"image": "tick"}"#) else {
            return;
        };
        assert_eq!(answer.status, 201, "{answer:?}");
        let id = answer.body["id"].as_str().expect("an id").to_owned();
        told.lock().expect("no panic").created.insert(id.clone());
        if turn % 2 == 1 {
            continue;
        }
        told.lock().expect("no panic").asked_away.insert(id.clone());
        let Ok(answer) = api.try_call("DELETE", &format!("/sandboxes/{id}"), "") else {
            return;
        };
        assert_eq!(answer.status, 204, "{answer:?}");
        told.lock().expect("no panic").deleted.insert(id);
    }
}

/// Looks whether what an agent says after its start is what clients were told by the one before it, and what there is.
fn check_adopted(scratch: &Scratch, agent: &Agent, told: &Told) {
    let list = || -> BTreeMap<String, Sandbox> {
        let sandboxes = agent.list().into_iter();
        sandboxes.map(|it| (it.id.clone(), it)).collect()
    };
    let listed = list();
    for id in told.created.difference(&told.asked_away) {
        let sandbox = listed
            .get(id)
            .unwrap_or_else(|| panic!("{id} is lost: {listed:?}"));
        // Nothing ends these but the agent.
        assert_eq!(sandbox.state, SandboxState::Running, "{sandbox:?}");
    }
    for id in &told.deleted {
        assert!(!listed.contains_key(id), "{id} is there again");
    }
    // What was ready for the agent before ends with it, what it was about to delete may yet end, and nobody else is there.
    let (running, listed) = wait_for("the end of all others", || {
        let listed = list();
        let running = listed
            .values()
            .filter_map(|it| Some((it.pid?, it.id.clone())));
        let running: BTreeMap<u32, String> = running.collect();
        let keepers = running.iter().filter(|(_, id)| listed[*id].jailed);
        let keepers = keepers.filter_map(|(pid, _)| parent_of(*pid));
        let expected: BTreeSet<u32> = running.keys().copied().chain(keepers).collect();
        let found = pids_of("lightv-vmm", scratch.folder()).into_iter();
        let is_all = found.collect::<BTreeSet<u32>>() == expected;
        is_all.then_some((running, listed))
    });
    let kept: Vec<_> = told.created.difference(&told.asked_away).collect();
    assert!(
        kept.iter().all(|id| running.values().any(|it| it == *id)),
        "{kept:?} {listed:?}"
    );
    let sockets = ["agent.sock", "agent-run.sock"];
    let mut files: BTreeSet<String> = sockets.map(str::to_owned).into();
    for (pid, id) in &running {
        files.extend([format!("{pid}.json"), format!("{id}.sock")]);
        files.extend(listed[id].jailed.then(|| format!("jail-{id}")));
    }
    assert_eq!(names_in(scratch, "run"), files);
    let records = listed.keys().map(|id| format!("{id}.json")).collect();
    assert_eq!(names_in(scratch, "state/sandboxes"), records);
    let logs: BTreeSet<String> = listed.keys().map(|id| format!("{id}.log")).collect();
    assert_eq!(names_in(scratch, "state/logs"), logs);
}

fn names_in(scratch: &Scratch, folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(scratch.path(folder)).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// The parent of the process `pid`, if that is there.
fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

#[test]
fn killed_at_any_moment_it_loses_nothing_and_leaves_nothing() {
    if has_kvm() {
        kill_at_any_moment(10, &[]);
    }
}

#[test]
fn killed_at_any_moment_it_leaves_nothing_of_jails_either() {
    if !has_kvm() {
        return;
    }
    let parent = format!("lightv-faults-{}", std::process::id());
    let limit = ["--jail-cgroup", "pids.max=64"];
    let args = [&["--jail"][..], &limit, &["--jail-parent-cgroup", &parent]].concat();
    kill_at_any_moment(4, &args);
    remove_empty(&parent);
}

/// Kills agents with the options `args`, `kills` of them unless the environment says it.
fn kill_at_any_moment(kills: u64, args: &[&str]) {
    let kills = std::env::var(KILLS).map_or(kills, |text| text.parse().expect("a number"));
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let random = RandomState::new();
    let mut agent = Agent::start(&scratch, args);
    agent.put_image(&scratch, "tick", &image);
    for round in 0..kills {
        // Every other time some of them come from a pool.
        let has_pool = round % 2 == 1 && args.is_empty();
        if has_pool {
            agent.fill_pool("tick", &json!({"min": 2}));
        }
        let told = Arc::new(Mutex::new(Told::default()));
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (api, told) = (agent.api.clone(), Arc::clone(&told));
                thread::spawn(move || load(&api, &told))
            })
            .collect();
        thread::sleep(Duration::from_millis(random.hash_one(round) % 300));
        let said = agent.kill();
        assert!(!said.contains("panicked"), "{said}");
        for worker in workers {
            worker.join().expect("a worker");
        }
        agent = Agent::start(&scratch, args);
        if has_pool {
            let answer = agent.api.call("DELETE", "/pools/tick", &Value::Null);
            assert_eq!(answer.status, 204, "{answer:?}");
        }
        check_adopted(&scratch, &agent, &told.lock().expect("no panic"));
        for sandbox in agent.list() {
            agent.delete(&sandbox.id);
        }
    }
    agent.end();
    assert_eq!(names_in(&scratch, "run"), BTreeSet::new());
    assert_eq!(names_in(&scratch, "state/sandboxes"), BTreeSet::new());
    assert_eq!(processes_in(scratch.folder()), Vec::<String>::new());
}

#[test]
fn one_that_died_meanwhile_is_told_of_and_an_adopted_one_tells_its_status() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &[]);
    agent.put_image(&scratch, "tick", &image);
    let [dead, paused, living] = ["dead", "paused", "living"].map(|name| {
        let body = json!({"image": "tick", "name": name});
        agent.create(&body)
    });
    let answer = agent
        .api
        .call("POST", "/sandboxes/paused/pause", &Value::Null);
    assert_eq!(answer.status, 200, "{answer:?}");
    let _ = agent.kill();
    let _ = scratch.run(&["stop", "--kill", &dead.id]).with_code(0);
    let agent = Agent::start(&scratch, &[]);
    let found = agent.sandbox(&dead.id);
    assert_eq!(
        (found.state, found.exit_code),
        (SandboxState::Ended, None),
        "{found:?}"
    );
    assert!(
        found
            .end_reason
            .is_some_and(|text| text.contains("no agent ran"))
    );
    assert_eq!(agent.sandbox(&paused.id).state, SandboxState::Paused);
    assert_eq!(agent.sandbox("living").pid, living.pid);
    // Not a child of this agent, and its status is known all the same.
    let answer = agent
        .api
        .call("POST", "/sandboxes/living/stop", &Value::Null);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(agent.wait("living").exit_code, Some(143));
    for id in [&dead.id, &paused.id, &living.id] {
        agent.delete(id);
    }
    agent.end();
    assert_eq!(names_in(&scratch, "run"), BTreeSet::new());
}

#[test]
fn a_fork_that_was_never_answered_leaves_neither_state_nor_memory() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    Agent::start(&scratch, &[]).end();
    let id = "00112233445566ff";
    let record = json!({
        "id": id, "image": "tick", "digest": "sha256:0", "state": "starting", "warm": false,
        "memory_mib": 1, "created_unix_ms": 1,
        "api_socket": scratch.path(&format!("run/{id}.sock")),
    });
    scratch.write(&format!("state/sandboxes/{id}.json"), record.to_string());
    scratch.write(&format!("run/fork-{id}.state"), "");
    let memory = scratch.path(&format!("run/fork-{id}.memory.sock"));
    let memory = UnixListener::bind(memory).expect("a socket");
    let agent = Agent::start(&scratch, &[]);
    // Memory that is frozen does not wait on for somebody who takes it.
    memory.set_nonblocking(true).expect("a socket");
    memory.accept().expect("a word that nobody comes");
    agent.end();
    for folder in ["run", "state/sandboxes"] {
        assert_eq!(names_in(&scratch, folder), BTreeSet::new(), "{folder}");
    }
}

#[test]
fn many_at_once_are_all_answered() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &[]);
    let agent = Agent::start(&scratch, &["--max-requests", "50"]);
    agent.put_image(&scratch, "hello", &image);
    let clients: Vec<_> = (0..500)
        .map(|_| {
            let api = agent.api.clone();
            let ask = move || api.try_call("POST", "/sandboxes", r#"{"image": "hello"}"#);
            let client = thread::Builder::new().stack_size(256 << 10);
            client.spawn(ask).expect("a thread")
        })
        .collect();
    let mut counts = BTreeMap::new();
    for client in clients {
        let answer = client.join().expect("a client").expect("an answer");
        *counts.entry(answer.status).or_insert(0) += 1;
        if answer.status == 503 {
            let text = answer.body["fault_message"].as_str().expect("a text");
            assert!(
                text.contains("50") && text.contains("--max-requests"),
                "{text}"
            );
        }
    }
    let granted = counts.get(&201).copied().unwrap_or_default();
    let refused = counts.get(&503).copied().unwrap_or_default();
    assert_eq!(granted + refused, 500, "{counts:?}");
    assert!(granted >= 50, "{counts:?}");
    for sandbox in agent.list() {
        assert_eq!(agent.wait(&sandbox.id).exit_code, Some(0));
    }
    agent.end();
}

#[test]
fn clients_that_never_read_hold_nobody_up() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &[]);
    agent.put_image(&scratch, "tick", &image);
    let made = agent.create(&json!({"image": "tick"}));
    let resident_kib = || {
        let status = proc_file(agent.process().pid(), "status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse::<u64>().ok())
            .expect("VmRSS")
    };
    let before = resident_kib();
    let logs = format!("/sandboxes/{}/logs?follow", made.id);
    let clients: Vec<_> = ["/", "/sandboxes", "/events", &logs]
        .into_iter()
        .cycle()
        .take(40)
        .map(|path| {
            let mut stream = agent.api.connect().expect("a connection");
            stream.set_nonblocking(true).expect("a socket");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(1000);
            // Until the agent takes no more of them.
            if let Err(cause) = stream.write_all(request.as_bytes()) {
                assert_eq!(cause.kind(), ErrorKind::WouldBlock, "{path}: {cause}");
            }
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(agent.sandbox(&made.id).state, SandboxState::Running);
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(
        grown < 16 << 10,
        "{grown} KiB for {} clients",
        clients.len()
    );
    agent.delete(&made.id);
    drop(clients);
    agent.end();
}

#[test]
fn a_full_disk_is_told_and_costs_nothing_else() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &[]);
    let large = scratch.text("large.lv");
    fs::File::create(&large)
        .and_then(|mut file| file.write_all(&vec![7; 16 << 20]))
        .expect("a file");
    let state = scratch.path("state");
    fs::create_dir(&state).expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size=12m,mode=700 none {}",
        state.display()
    );
    let mut command = after_script(&["unshare", "--mount"], &script, &command(&scratch, &[]));
    let agent = Agent::start_as(&scratch, &mut command);
    agent.put_image(&scratch, "hello", &image);
    let put = ("PUT", "/images/large");
    let words = ["large.lv", "No space left on device"];
    agent.refused(put, &json!({"path": large}), (507, &words));
    // Its folder, as it sees it.
    let inside = format!("/proc/{}/root{}", agent.process().pid(), state.display());
    let filler = format!("{inside}/filler");
    let mut file = fs::File::create(&filler).expect("a file");
    let full = loop {
        if let Err(cause) = file.write_all(&[0; 4096]) {
            break cause;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    let post = ("POST", "/sandboxes");
    let words = ["No space left on device", "sandboxes"];
    agent.refused(post, &json!({"image": "hello"}), (507, &words));
    assert_eq!(agent.list().len(), 0);
    fs::remove_file(&filler).expect("the file");
    drop(file);
    let made = agent.create(&json!({"image": "hello"}));
    assert_eq!(agent.wait(&made.id).exit_code, Some(0));
    agent.end();
}

#[test]
fn without_descriptors_it_refuses_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let start = || {
        let limit = ["prlimit", "--nofile=80:80"];
        let mut command = after_script(&limit, ":", &command(&scratch, &[]));
        Agent::start_as(&scratch, &mut command)
    };
    let agent = start();
    agent.put_image(&scratch, "tick", &image);
    let clients: Vec<_> = (0..200).map(|_| agent.api.connect()).collect();
    let answer = wait_for("a refusal", || {
        let answer = agent.api.try_call("GET", "/", "").ok()?;
        (answer.status == 503).then_some(answer)
    });
    let text = answer.body["fault_message"].as_str().expect("a text");
    assert!(text.contains("connections"), "{text}");
    drop(clients);
    let list = wait_for("a place", || {
        let answer = agent.api.try_call("GET", "/sandboxes", "").ok()?;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(list.body, json!([]));
    let answer = loop {
        let answer = agent
            .api
            .call("POST", "/sandboxes", &json!({"image": "tick"}));
        if answer.status != 201 {
            break answer;
        }
    };
    assert_eq!(answer.status, 429, "{answer:?}");
    let list = agent.list();
    assert!(list.len() >= 8, "{}", list.len());
    agent.end();
    // The next one has connections to all of them, and so hears how they end.
    let agent = start();
    for sandbox in list {
        let stopped: Sandbox = agent.ask("POST", &format!("/sandboxes/{}/stop", sandbox.id));
        assert_eq!(stopped.exit_code, Some(143), "{stopped:?}");
        agent.delete(&sandbox.id);
    }
    agent.end();
}
