//! Programs that clients of the host agent start in guests: what is refused, and guests that are not what they should be. Those of
//! Linux guests are in `exec.rs`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use lightv_api::agent::exec::ExecLine;
use lightv_tests::agent::{Agent, Exec, ended};
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::process::{DEADLINE, run};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

/// A message of the guest's agent (rootfs/contract/src/exec.rs).
fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short one");
    [&[kind], &length.to_le_bytes()[..], payload].concat()
}

fn started() -> Vec<u8> {
    message(1, b"")
}

/// Who takes the place of a machine's vsock: lets the next client in and says `bytes`; gives the stream, and what it was told
/// to start.
fn serve(listener: &UnixListener, bytes: &[u8]) -> (UnixStream, Value) {
    let (stream, _) = listener.accept().expect("a client");
    stream.set_read_timeout(Some(DEADLINE)).expect("a limit");
    let read = |length: usize| {
        let mut bytes = vec![0; length];
        (&stream)
            .read_exact(&mut bytes)
            .expect("bytes of the agent");
        bytes
    };
    assert_eq!(read(13), b"CONNECT 1000\n");
    (&stream).write_all(b"OK 1\n").expect("a reader");
    let head = read(5);
    assert_eq!(head[0], 1, "a start");
    let length = u32::from_le_bytes(head[1..].try_into().expect("four"));
    let start = serde_json::from_slice(&read(length as usize)).expect("JSON");
    (&stream).write_all(bytes).expect("a reader");
    (stream, start)
}

/// Waits until the agent has closed the connection.
fn wait_closed(mut stream: &UnixStream) {
    assert_eq!(stream.read(&mut [0; 64]).expect("an end"), 0);
}

fn take_place(socket: &Path) -> UnixListener {
    fs::remove_file(socket).expect("the machine's socket");
    UnixListener::bind(socket).expect("a free path")
}

fn start(scratch: &Scratch) -> Agent {
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "vsock"),
        &json!({"vsock": {"guest_cid": 3, "uds_path": "image.sock"}}),
    );
    let config = scratch.config("vm.json", &config);
    let _ = run(&mut scratch.vmm(&["--config", &config, "--save", "vsock.lv"])).with_code(0);
    let agent = Agent::start(scratch, &[]);
    agent.put_image(scratch, "vsock", "vsock.lv");
    agent
}

#[test]
fn programs_are_refused_where_nobody_starts_them() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let agent = start(&scratch);
    let image = scratch.build("hello", &[]);
    agent.put_image(&scratch, "hello", &image);
    let tick = scratch.build("tick", &["--", "0", "20"]);
    agent.put_image(&scratch, "tick", &tick);
    let _ = agent.create(&json!({"image": "tick", "name": "plain"}));
    let one = agent.create(&json!({"image": "vsock", "name": "one"}));
    let done = agent.create(&json!({"image": "hello", "name": "done"}));
    agent.wait(&done.id);
    let ls = ls();
    let exec = |id: &str, body: &Value, status, words: &[&str]| {
        agent.refused(
            ("POST", &format!("/sandboxes/{id}/exec")),
            body,
            (status, words),
        );
    };
    exec("none", &ls, 404, &["none"]);
    exec("done", &ls, 409, &["has ended"]);
    exec("plain", &ls, 409, &["no vsock", "--exec"]);
    // Its app listens on another port.
    exec("one", &ls, 409, &["no agent", "--exec"]);
    exec("one", &Value::Null, 400, &["body"]);
    exec("one", &json!({"args": []}), 400, &["args"]);
    exec("one", &json!({"args": ["ls"], "tty": true}), 400, &["tty"]);
    exec(
        "one",
        &json!({"args": ["ls"], "stdin": "a", "stdin_base64": "YQ=="}),
        400,
        &["both"],
    );
    exec(
        "one",
        &json!({"args": ["ls"], "timeout_ms": 0}),
        400,
        &["timeout_ms"],
    );
    let vm = lightv_tests::api::Api::at(one.api_socket.as_ref().expect("a socket"));
    // By its own API, of which the agent is not told.
    vm.set_state("Paused");
    exec("one", &ls, 409, &["paused", "resume"]);
    vm.set_state("Resumed");
    exec("one", &ls, 409, &["no agent"]);
    fs::remove_file(one.vsock_socket.as_ref().expect("a socket")).expect("it");
    exec("one", &ls, 503, &[".vsock", "No such file"]);
    assert_eq!(agent.ask::<Value>("GET", "/")["counts"]["programs"], 0);
    for name in ["plain", "one"] {
        agent.delete(name);
    }
    agent.end();
}

fn ls() -> Value {
    json!({"args": ["ls"]})
}

/// A program that runs and has said `said`: what its client gets, and its stream.
fn begin(agent: &Agent, guest: &UnixListener, said: &[u8]) -> (Exec, UnixStream) {
    thread::scope(|scope| {
        let served = scope.spawn(|| serve(guest, &[&started(), said].concat()).0);
        let exec = agent.exec("one", &ls());
        (exec, served.join().expect("a program"))
    })
}

fn check_refusals(agent: &Agent, guest: &UnixListener) {
    let body = json!({"args": ["ls", "-l"], "env": {"A": "b"}, "user": "me", "stdin": "in"});
    for (said, status, words) in [
        (
            message(2, b"\x7fls: No such file"),
            400,
            &["In the guest: ls: No such file"][..],
        ),
        (message(2, b"\x7d32 programs run"), 429, &["32 programs"]),
        (message(3, b"early"), 502, &["protocol", "not started"]),
        (message(9, b""), 502, &["protocol", "kind 9"]),
        (Vec::new(), 503, &["ended before the program"]),
    ] {
        thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, start) = serve(guest, &said);
                assert_eq!(start["words"], json!(["ls", "-l"]));
                assert_eq!(
                    (&start["env"]["A"], &start["user"]),
                    (&json!("b"), &json!("me"))
                );
                assert_eq!(
                    (&start["version"], &start["has_stdin"]),
                    (&json!(1), &json!(true))
                );
                if !said.is_empty() {
                    wait_closed(&stream);
                }
            });
            let exec = ("POST", "/sandboxes/one/exec");
            agent.refused(exec, &body, (status, words));
        });
    }
}

fn check_output(scratch: &Scratch, agent: &Agent, guest: &UnixListener) {
    let output = [
        message(3, b"a\xc3"),
        message(3, b"\xbc\n"),
        message(4, b"e\xff"),
    ]
    .concat();
    let (mut exec, stream) = begin(agent, guest, &[output, message(6, &[7])].concat());
    let text = |text: &str| Some(ExecLine::Stdout(text.to_owned()));
    assert_eq!(
        (exec.next_line(), exec.next_line()),
        (text("a"), text("ü\n"))
    );
    let bytes = Some(ExecLine::StderrBase64("Zf8=".to_owned()));
    assert_eq!(
        (exec.next_line(), exec.next_line()),
        (bytes, Some(ended(7)))
    );
    assert_eq!(exec.next_line(), None);
    wait_closed(&stream);
    let (exec, _stream) = begin(agent, guest, &message(1, b""));
    let (_, _, last) = exec.finish();
    assert!(
        matches!(&last, ExecLine::Failed(why) if why.contains("had started")),
        "{last:?}"
    );
    // The command line passes on what comes.
    let output = [started(), message(3, b"hi"), message(6, &[0])].concat();
    thread::scope(|scope| {
        scope.spawn(|| serve(guest, &output));
        let text = ls().to_string();
        let args = ["api", "--agent", "POST", "/sandboxes/one/exec", &text];
        let said = scratch.run(&args).with_code(0).stdout;
        assert_eq!(said, "{\"stdout\":\"hi\"}\n{\"ended\":{\"exit_code\":0}}\n");
    });
}

/// Clients leave, one before the program has started, and then the machine ends.
fn check_ends(agent: &Agent, guest: &UnixListener) {
    thread::scope(|scope| {
        let served = scope.spawn(|| serve(guest, b"").0);
        let mut client = agent.api.connect().expect("a connection");
        let text = ls().to_string();
        let head = format!(
            "POST /sandboxes/one/exec HTTP/1.1\r\nHost: x\r\nContent-Length: {}",
            text.len()
        );
        client
            .write_all(format!("{head}\r\n\r\n{text}").as_bytes())
            .expect("a request");
        let stream = served.join().expect("a start");
        drop(client);
        wait_closed(&stream);
    });
    let (exec, stream) = begin(agent, guest, b"");
    assert_eq!(agent.ask::<Value>("GET", "/")["counts"]["programs"], 1);
    drop(exec);
    wait_closed(&stream);
    let (exec, stream) = begin(agent, guest, &message(3, b"x"));
    let stopped = agent
        .api
        .call("POST", "/sandboxes/one/stop", &json!({"time_s": 0}));
    assert_eq!(stopped.status, 200, "{stopped:?}");
    drop(stream);
    let (stdout, _, last) = exec.finish();
    let why = "The microVM ended before the program";
    assert_eq!(
        (stdout.as_str(), last),
        ("x", ExecLine::Failed(why.to_owned()))
    );
}

#[test]
fn guests_that_break_off_or_the_rules_are_told_from_those_that_refuse() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let agent = start(&scratch);
    let one = agent.create(&json!({"image": "vsock", "name": "one"}));
    let guest = take_place(one.vsock_socket.as_ref().expect("a socket"));
    check_refusals(&agent, &guest);
    check_output(&scratch, &agent, &guest);
    check_ends(&agent, &guest);
    assert_eq!(agent.ask::<Value>("GET", "/")["counts"]["programs"], 0);
    agent.delete("one");
    agent.end();
}
