//! The host agent: images by name, sandboxes from their start to their end, and what it refuses.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::Duration;

use lightv_api::agent::image::StoredImage;
use lightv_api::agent::sandbox::{Sandbox, SandboxState};
use lightv_api::exit::BAD_ARGUMENTS;
use lightv_tests::agent::Agent;
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::wait_for;
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

/// All that a GET without an end sends until the connection ends, without its head; chunks are left as they are.
fn read_all(agent: &Agent, path: &str) -> String {
    let mut stream = agent.api.connect().expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    text.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

/// Looks whether `lightv ps` has the sandbox `one` with its name and labels, and `other` without.
fn check_listed(scratch: &Scratch, one: &str, other: &str) {
    let listed = scratch.run(&["ps", "--json"]).with_code(0).stdout;
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("a list");
    let sandbox_of = |id: &str| {
        let mut same = listed.iter().filter(|vm| vm["id"] == id);
        same.next().expect("a microVM")["sandbox"].clone()
    };
    assert_eq!(
        (sandbox_of(one), sandbox_of(other)),
        (
            json!({"name": "one", "labels": {"team": "a b"}}),
            json!({"name": null, "labels": {}})
        )
    );
    let table = scratch.run(&["ps"]).with_code(0).stdout;
    let is_it = |line: &str| line.starts_with(one) && line.contains(" one ");
    assert!(table.lines().any(is_it), "{table}");
    let info = scratch
        .run(&["api", "--vm", "one", "GET", "/"])
        .with_code(0);
    assert!(info.stdout.contains(one), "{info:?}");
    scratch.run(&["logs", "one"]).assert_refused(
        BAD_ARGUMENTS,
        &["lightv api --agent GET /sandboxes/one/logs"],
    );
    scratch
        .run(&["stop", "two"])
        .assert_refused(BAD_ARGUMENTS, &["no microVM two"]);
}

#[test]
fn a_sandbox_is_created_listed_paused_stopped_and_deleted() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &[]);
    let before = scratch.listing();
    let stored = agent.put_image(&scratch, "tick", &image);
    assert!(stored.digest.starts_with("sha256:"), "{stored:?}");
    let body = json!({"image": "tick", "name": "one", "labels": {"team": "a b"}});
    let made = agent.create(&body);
    assert_eq!(made.state, SandboxState::Running);
    assert_eq!(
        (made.digest.as_str(), made.warm),
        (stored.digest.as_str(), false)
    );
    assert!(made.start_us.is_some_and(|us| us > 0), "{made:?}");
    let by_digest = agent.create(&json!({"image": stored.digest}));
    assert_eq!(agent.list().len(), 2);
    let some: Vec<Value> = agent.ask("GET", "/sandboxes?label=team=a%20b&state=running");
    assert_eq!(some.len(), 1);
    assert_eq!(some[0]["id"], made.id);
    let none: Vec<Value> = agent.ask("GET", "/sandboxes?label=team=b");
    assert_eq!(none.len(), 0);
    check_listed(&scratch, &made.id, &by_digest.id);
    let state = |verb: &str| {
        let answer = agent
            .api
            .call("POST", &format!("/sandboxes/one/{verb}"), &Value::Null);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["state"].as_str().expect("a state").to_owned()
    };
    assert_eq!(state("pause"), "paused");
    assert_eq!(agent.sandbox("one").state, SandboxState::Paused);
    assert_eq!(state("resume"), "running");
    wait_for("a tick", || {
        agent.logs(&made.id).contains("tick 3\n").then_some(())
    });
    assert_eq!(state("stop"), "ended");
    let ended = agent.wait("one");
    assert_eq!((ended.exit_code, ended.pid), (Some(143), None), "{ended:?}");
    let tail = read_all(&agent, &format!("/sandboxes/{}/logs?tail=1", made.id));
    assert!(tail.contains("SIGTERM") || tail.contains("tick"), "{tail}");
    agent.delete(&made.id);
    agent.delete(&by_digest.id);
    assert_eq!(agent.list().len(), 0);
    let answer = agent.api.call("DELETE", "/images/tick", &Value::Null);
    assert_eq!(answer.status, 204, "{answer:?}");
    scratch.assert_same_files_but(&before, "state/images.json");
    agent.end();
}

#[test]
fn arguments_environment_status_and_logs_are_the_guests() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &[]);
    let agent = Agent::start(&scratch, &[]);
    agent.put_image(&scratch, "hello", &image);
    let made = agent.create(&json!({"image": "hello", "args": ["you"]}));
    let ended = agent.wait(&made.id);
    assert_eq!(ended.exit_code, Some(0), "{ended:?}");
    assert!(
        agent.logs(&made.id).contains("Hello, you!"),
        "{}",
        agent.logs(&made.id)
    );
    let followed = read_all(&agent, &format!("/sandboxes/{}/logs?follow", made.id));
    assert!(followed.contains("Hello, you!"), "{followed}");
    // By the command line too, whatever bytes they are.
    let log = agent.state().join(format!("logs/{}.log", made.id));
    let log = fs::OpenOptions::new().append(true).open(log);
    log.and_then(|mut log| log.write_all(b"\xff\n"))
        .expect("a log");
    let ask = |path: &str| {
        let path = format!("/sandboxes/{}/{path}", made.id);
        scratch.run(&["api", "--agent", "GET", &path]).with_code(0)
    };
    for path in ["logs", "logs?tail=9&follow"] {
        let shown = ask(path).stdout;
        assert!(shown.contains("Hello, you!"), "{shown}");
        assert!(shown.ends_with("\u{fffd}\n"), "{shown}");
    }
    assert!(ask("wait").stdout.contains("\"ended\""));
    agent.end();
}

#[test]
fn a_replaced_image_is_the_next_ones_alone() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let first = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &[]);
    let old = agent.put_image(&scratch, "app", &first);
    let running = agent.create(&json!({"image": "app"}));
    let second = scratch.build("hello", &[]);
    let new = agent.put_image(&scratch, "app", &second);
    assert_ne!(old.digest, new.digest);
    // The old bytes have no name any more, and who runs from them does not notice.
    let images = fs::read_dir(scratch.path("state/images")).expect("the store");
    assert_eq!(images.count(), 1);
    let made = agent.create(&json!({"image": "app", "args": ["new"]}));
    agent.wait(&made.id);
    assert!(
        agent.logs(&made.id).contains("Hello, new!"),
        "{}",
        agent.logs(&made.id)
    );
    let so_far = agent.logs(&running.id).len();
    wait_for("more ticks", || {
        (agent.logs(&running.id).len() > so_far).then_some(())
    });
    let list: Vec<StoredImage> = agent.ask("GET", "/images");
    assert_eq!(list, [new]);
    agent.delete(&running.id);
    agent.end();
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &[]);
    let agent = Agent::start(&scratch, &[]);
    agent.put_image(&scratch, "hello", &image);
    let before = scratch.listing();
    let post = ("POST", "/sandboxes");
    for (body, status, words) in [
        (json!({"image": "x"}), 404, &["\"x\""][..]),
        (json!({"image": "hello", "memory": 1}), 400, &["memory"]),
        (
            json!({"image": "hello", "name": "a_b"}),
            400,
            &["name", "a_b"],
        ),
        (json!({"image": "hello", "env": {"A=": "b"}}), 400, &["env"]),
        (json!({"image": "hello", "vsock": true}), 400, &["vsock"]),
        (
            json!({"image": "hello", "net": ["eth0=none"]}),
            400,
            &["eth0"],
        ),
        (json!({"image": "hello", "warm": "require"}), 503, &["pool"]),
        (Value::String("{".to_owned()), 400, &["body"]),
    ] {
        agent.refused(post, &body, (status, words));
    }
    scratch.assert_same_files(&before);
    assert_eq!(agent.list().len(), 0);
    agent.end();
}

#[test]
fn paths_queries_and_images_that_cannot_be_are_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("bad.lv", "no image");
    let agent = Agent::start(&scratch, &[]);
    let before = scratch.listing();
    let put = |path: &str| json!({"path": path});
    for (what, body, status, words) in [
        (("PUT", "/images/a%2fb"), put("/a"), 400, &["name"][..]),
        (("PUT", "/images/x"), put("a.lv"), 400, &["absolute"]),
        (
            ("PUT", "/images/x"),
            put("/nowhere/a.lv"),
            400,
            &["/nowhere/a.lv", "No such file"],
        ),
        (("PUT", "/images/x"), put("/"), 400, &["regular file"]),
        (
            ("PUT", "/images/x"),
            put(&scratch.text("bad.lv")),
            400,
            &["bad.lv"],
        ),
        (("GET", "/sandboxes/x"), Value::Null, 404, &["\"x\""]),
        (
            ("GET", "/sandboxes?state=dead"),
            Value::Null,
            400,
            &["dead", "running"],
        ),
        (
            ("GET", "/sandboxes?colour=red"),
            Value::Null,
            400,
            &["colour"],
        ),
        (("GET", "/events?since=x"), Value::Null, 400, &["since"]),
        (("DELETE", "/images/x"), Value::Null, 404, &["\"x\""]),
        (("PATCH", "/"), Value::Null, 404, &["PATCH /"]),
    ] {
        agent.refused(what, &body, (status, words));
    }
    scratch.assert_same_files(&before);
    agent.end();
}

#[test]
fn a_sandbox_is_forked_and_both_go_on_each_by_itself() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &["--max-sandboxes", "3"]);
    let stored = agent.put_image(&scratch, "tick", &image);
    let one = agent.create(&json!({"image": "tick", "name": "one"}));
    let has = |id: &str, word: &str| agent.logs(id).contains(word).then_some(());
    wait_for("a tick", || has(&one.id, "tick 5\n"));
    let two = agent.fork("one", &json!({"name": "two", "labels": {"of": "one"}}));
    assert_eq!(
        (two.state, &two.digest),
        (SandboxState::Running, &stored.digest)
    );
    assert!(
        two.id != one.id && two.pid != one.pid && !two.warm,
        "{two:?}"
    );
    assert_eq!(two.labels["of"], "one");
    // It goes on where the other one was.
    wait_for("a tick of the fork", || has(&two.id, "tick"));
    assert!(
        !agent.logs(&two.id).contains("tick 5\n"),
        "{}",
        agent.logs(&two.id)
    );
    let of_one = ("POST", "/sandboxes/one/fork");
    for (what, body, status, words) in [
        (
            ("POST", "/sandboxes/none/fork"),
            Value::Null,
            404,
            &["none"][..],
        ),
        (of_one, json!({"count": 2}), 400, &["count"]),
        (of_one, json!({"name": "a b"}), 400, &["a b"]),
        (of_one, json!({"name": "two"}), 409, &["two"]),
    ] {
        agent.refused(what, &body, (status, words));
    }
    // A fork has a fork as soon as it has all of its memory.
    let three: Sandbox = wait_for("a fork of the fork", || {
        let answer = agent.api.call("POST", "/sandboxes/two/fork", &Value::Null);
        assert!([201, 409].contains(&answer.status), "{answer:?}");
        (answer.status == 201).then(|| serde_json::from_value(answer.body).expect("a sandbox"))
    });
    agent.refused(of_one, &Value::Null, (429, &["--max-sandboxes"]));
    agent.delete(&one.id);
    for fork in [&two, &three] {
        let ticks = || agent.logs(&fork.id).lines().count();
        let before = ticks();
        wait_for("more ticks", || (ticks() > before + 2).then_some(()));
    }
    let left = fs::read_dir(scratch.path("run"))
        .expect("a folder")
        .flatten();
    let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
    let is_passage = |name: &&std::ffi::OsString| name.to_string_lossy().starts_with("fork-");
    assert_eq!(names.iter().find(is_passage), None, "{names:?}");
    agent.delete("two");
    agent.delete(&three.id);
    agent.end();
}

/// Has the guest at 10.0.0.2 say something again.
#[track_caller]
fn check_echo(netns: &Netns) {
    let mut stream = netns.connect(machine::guest_at(2, 7));
    stream
        .write_all(b"are you there?")
        .expect("a guest that reads");
    let mut back = [0; 14];
    stream.read_exact(&mut back).expect("a guest that answers");
    assert_eq!(&back, b"are you there?");
}

#[test]
fn a_fork_of_a_machine_with_a_tap_gets_another_one() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    let build = [
        "build",
        "echo",
        "-o",
        "echo.lv",
        "--net",
        "tap0,ip=10.0.0.2/24",
    ];
    let built = netns.start(&mut scratch.lightv(&build)).finish();
    let _ = built.with_code(0);
    let agent = netns.within(|| Agent::start(&scratch, &[]));
    agent.put_image(&scratch, "echo", "echo.lv");
    let one = agent.create(&json!({"image": "echo", "name": "one"}));
    check_echo(&netns);
    netns.add_tap("tap1");
    let of_one = ("POST", "/sandboxes/one/fork");
    for (nets, status, words) in [
        (json!([]), 409, &["tap0", "in use"][..]),
        (json!(["eth9=tap1"]), 409, &["eth9", "eth0"]),
        (json!(["eth0=fd=7"]), 400, &["fd=7", "TAP"]),
        (
            json!(["tap1,ip=10.0.0.3/24"]),
            400,
            &["net", "no address", "TAP"],
        ),
        (json!(["=tap1"]), 400, &["net", "=tap1"]),
    ] {
        agent.refused(of_one, &json!({"net": nets}), (status, words));
    }
    assert_eq!(agent.list().len(), 1);
    let two = agent.fork("one", &json!({"net": ["eth0=tap1"]}));
    // It has the same address in another network; with the first one there, the way there leads to that.
    agent.delete(&one.id);
    netns.ip("link set tap0 down");
    check_echo(&netns);
    agent.delete(&two.id);
    agent.end();
}

#[test]
fn limits_are_told_and_a_place_is_free_again() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &["--max-sandboxes", "2"]);
    let memory = agent.put_image(&scratch, "tick", &image).memory_mib;
    let body = json!({"image": "tick", "name": "one"});
    let one = agent.create(&body);
    agent.refused(("POST", "/sandboxes"), &body, (409, &["one"]));
    let body = json!({"image": "tick"});
    let two = agent.create(&body);
    agent.refused(
        ("POST", "/sandboxes"),
        &body,
        (429, &["2", "--max-sandboxes"]),
    );
    agent.delete(&one.id);
    let three = agent.create(&body);
    for sandbox in [two, three] {
        agent.delete(&sandbox.id);
    }
    agent.end();
    let max = (memory + 1).to_string();
    let agent = Agent::start(&scratch, &["--max-memory", &max]);
    let one = agent.create(&body);
    agent.refused(
        ("POST", "/sandboxes"),
        &body,
        (507, &["--max-memory", &max]),
    );
    agent.delete(&one.id);
    agent.end();
    let agent = Agent::start(&scratch, &["--keep-memory", "99999999"]);
    agent.refused(("POST", "/sandboxes"), &body, (507, &["--keep-memory"]));
    agent.end();
}

#[test]
fn events_tell_what_happens() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &[]);
    let agent = Agent::start(&scratch, &[]);
    agent.put_image(&scratch, "hello", &image);
    let made = agent.create(&json!({"image": "hello"}));
    agent.wait(&made.id);
    agent.delete(&made.id);
    let mut stream = agent.api.connect().expect("a connection");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a limit");
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("a request");
    let mut names = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.expect("a line");
        let Ok(event) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let Some(name) = event["event"].as_str() else {
            continue;
        };
        names.push(name.to_owned());
        if name == "deleted" {
            break;
        }
    }
    assert_eq!(
        names,
        ["agent-started", "image-set", "created", "ended", "deleted"]
    );
    agent.end();
}
