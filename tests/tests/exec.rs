//! Programs that `lightv exec`, or a client of the host agent, starts in a running guest.

use std::io::Read as _;
use std::process::Stdio;
use std::thread;

use lightv_api::agent::exec::{ExecEnd, ExecLine};
use lightv_api::exit::{BAD_ARGUMENTS, FAILURE, OK, by_signal};
use lightv_tests::agent::{Agent, ended};
use lightv_tests::host::has_kvm;
use lightv_tests::linux::PATIENCE;
use lightv_tests::machine;
use lightv_tests::process::{Finished, Process, wait_for};
use lightv_tests::pty::AtTerminal;
use lightv_tests::rootfs::{build, busybox};
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;
use serde_json::{Value, json};

/// `lightv exec OPTIONS one -- sh -c SCRIPT`, with `input`.
fn start(scratch: &Scratch, options: &[&str], script: &str, input: &[u8]) -> Process {
    let args = [&["exec"], options, &["one", "--", "sh", "-c", script]].concat();
    Process::start_with(&mut scratch.lightv(&args), input, Stdio::piped())
}

fn exec(scratch: &Scratch, options: &[&str], script: &str) -> Finished {
    start(scratch, options, script, b"").finish()
}

/// `one.lv`: a guest in which nothing happens but what is started there.
fn build_one(scratch: &Scratch, more: &[&str]) {
    let _ = busybox(scratch, "root");
    let options = ["--rootfs", "root", "--exec", "-e", "BASE=1"];
    let command = ["--cmd", "sleep 100000"];
    let _ = build(scratch, "one.lv", &[&options[..], more, &command].concat());
}

fn check_streams(scratch: &Scratch) {
    let finished = exec(scratch, &[], "echo out; echo err >&2; exit 7").with_code(7);
    assert_eq!((&*finished.stdout, &*finished.stderr), ("out\n", "err\n"));
    // Input that is more than may be under way, and back again.
    let input: String = (0..15_000).map(|number| format!("{number}\n")).collect();
    let finished = start(scratch, &["-i"], "cat", input.as_bytes()).finish();
    assert!(finished.with_code(OK).stdout == input, "other bytes");
    // Without -i there is none.
    let finished = start(scratch, &[], "cat; echo end", b"more\n").finish();
    assert_eq!(finished.with_code(OK).stdout, "end\n");
    // It goes on without streams, and others go on with its streams.
    let _ = exec(scratch, &[], "exec >&- 2>&-; sleep 0.2; exit 9").with_code(9);
    let finished = exec(scratch, &[], "sleep 1000 & echo done").with_code(OK);
    assert_eq!(finished.stdout, "done\n");
    // Whoever reads its output has gone.
    let args = ["exec", "one", "--", "sh", "-c", "while :; do echo y; done"];
    let mut command = scratch.lightv(&args);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("lightv");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 2]).expect("a line");
    drop(stdout);
    let status = wait_for("its end", || child.try_wait().expect("our child"));
    assert_eq!(status.code(), Some(128 + 13));
}

fn check_identity(scratch: &Scratch) {
    let script = "echo $BASE $MORE $A $(pwd) $(id -u)";
    let finished = exec(scratch, &[], script).with_code(OK);
    assert_eq!(finished.stdout, "1 2 /srv 0\n");
    let options = ["-e", "A=b", "-e", "MORE=3", "-w", "/tmp", "-u", "guest"];
    let finished = exec(scratch, &options, script).with_code(OK);
    assert_eq!(finished.stdout, "1 3 b /tmp 1000\n");
}

fn check_refusals(scratch: &Scratch) {
    for (options, program, code, words) in [
        (&[][..], "nothing", 127, "nothing: No such file"),
        (&[], "/etc/passwd", 126, "/etc/passwd: Permission denied"),
        (&["-w", "/none"], "sh", 126, "sh in /none: folder: No such"),
        (&["-u", "nobody"], "sh", 126, "no user nobody"),
    ] {
        let args = [&["exec"], options, &["one", "--", program]].concat();
        let finished = scratch.run(&args);
        finished.assert_refused(code, &["In the guest", words]);
    }
}

fn check_signals(scratch: &Scratch) {
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let process = start(scratch, &[], script, b"");
    process.wait_stdout(|text| text.contains("ready").then_some(()));
    process.signal(Signal::TERM);
    let _ = process.finish().with_code(5);
    let finished = exec(scratch, &[], "kill -9 $$");
    assert_eq!(finished.code, 137, "{finished:?}");
    // When we are killed, the program gets SIGHUP.
    let script = "trap 'echo hung > /tmp/up; exit' HUP; echo ready; while :; do sleep 0.1; done";
    let process = start(scratch, &[], script, b"");
    process.wait_stdout(|text| text.contains("ready").then_some(()));
    process.signal(Signal::KILL);
    let _ = process.finish();
    wait_for("a trace of SIGHUP", || {
        let seen = exec(scratch, &[], "cat /tmp/up");
        (seen.stdout == "hung\n").then_some(())
    });
}

fn check_terminal(scratch: &Scratch) {
    let script = "trap 'busybox stty size' WINCH; busybox stty size; echo $TERM; while [ \"$y\" != it ]; do read y; done; echo got $y";
    let args = ["exec", "-t", "one", "--", "sh", "-c", script];
    let mut command = scratch.lightv(&args);
    let mut terminal = AtTerminal::start(command.env("TERM", "vt52"), 91, 37);
    terminal.wait_screen("37 91");
    terminal.wait_screen("vt52");
    assert!(terminal.is_raw());
    // busybox's shell looks at its traps between two commands; a `read` may end by a signal, or by the line.
    terminal.resize(92, 38);
    terminal.type_keys("\r");
    terminal.wait_screen("38 92");
    terminal.type_keys("it\r");
    terminal.wait_screen("got it");
    assert_eq!(terminal.finish().code(), Some(0));
    terminal.wait_restored();
    let args = ["exec", "-t", "one", "--", "sh", "-c", "echo here; read x"];
    let mut terminal = AtTerminal::start(&scratch.lightv(&args), 80, 25);
    terminal.wait_screen("here");
    terminal.type_keys("\x03");
    assert_eq!(terminal.finish().code(), Some(130));
    let finished = exec(scratch, &["-t"], "true");
    finished.assert_refused(BAD_ARGUMENTS, &["--tty", "terminal", "leave --tty out"]);
}

/// A save ends nothing. In a restored machine the streams have ended, and the agent's port has not.
fn check_restore(scratch: &Scratch) {
    let script =
        "trap 'echo hung > /tmp/restored; exit 0' HUP; echo ready; while :; do sleep 0.1; done";
    let process = start(scratch, &[], script, b"");
    process.wait_stdout(|text| text.contains("ready").then_some(()));
    let save = ["snapshot", "create", "one", "s.state", "s.mem"];
    let _ = scratch.run(&save).with_code(OK);
    let load = ["snapshot", "load", "s.state", "s.mem", "--name", "clone"];
    let _ = scratch.run(&load).with_code(OK);
    wait_for("a trace of SIGHUP", || {
        let seen = scratch.run(&["exec", "clone", "--", "cat", "/tmp/restored"]);
        (seen.stdout == "hung\n").then_some(())
    });
    let _ = scratch.run(&["stop", "clone"]).with_code(OK);
    let _ = exec(scratch, &[], "cat /tmp/restored").with_code(1);
    process.signal(Signal::HUP);
    let _ = process.finish().with_code(OK);
}

#[test]
fn programs_of_the_host_run_in_a_running_guest() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    build_one(&scratch, &["-e", "MORE=2", "--workdir", "/srv"]);
    for name in ["one", "two"] {
        let run = ["run", "-d", "--name", name, "one.lv"];
        let _ = scratch.run(&run).with_code(OK);
    }
    // Each has its own socket.
    let _ = scratch
        .run(&["exec", "two", "--", "sh", "-c", "echo two > /tmp/who"])
        .with_code(OK);
    let _ = exec(&scratch, &[], "cat /tmp/who").with_code(1);
    let _ = scratch.run(&["stop", "two"]).with_code(OK);
    check_streams(&scratch);
    check_identity(&scratch);
    check_refusals(&scratch);
    check_signals(&scratch);
    check_terminal(&scratch);
    check_restore(&scratch);
    thread::scope(|scope| {
        for number in 0..4 {
            let scratch = &scratch;
            scope.spawn(move || {
                let finished = exec(scratch, &[], &format!("echo {number}")).with_code(OK);
                assert_eq!(finished.stdout, format!("{number}\n"));
            });
        }
    });
    let _ = scratch.run(&["pause", "one"]).with_code(OK);
    exec(&scratch, &[], "true").assert_refused(FAILURE, &["one is paused"]);
    let _ = scratch.run(&["resume", "one"]).with_code(OK);
    let last = start(&scratch, &[], "echo last; sleep 1000", b"");
    last.wait_stdout(|text| text.contains("last").then_some(()));
    let _ = scratch.run(&["stop", "one"]).with_code(OK);
    let finished = last.finish().with_code(by_signal(9));
    assert!(finished.stderr.contains("microVM ended"), "{finished:?}");
    exec(&scratch, &[], "true").assert_refused(BAD_ARGUMENTS, &["no microVM one"]);
    let left = std::fs::read_dir(scratch.path("run")).expect("a folder");
    let left = left.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left
        .filter(|name| !name.as_encoded_bytes().ends_with(b".log"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What programs say by the host agent, in the sandbox `id`.
fn check_by_agent(agent: &Agent, id: &str) {
    let sh = |script: &str, more: &Value| {
        let body = machine::with(&json!({"args": ["sh", "-c", script]}), more);
        agent.exec(id, &body).finish()
    };
    let text = |out: &str, err: &str, last| (out.to_owned(), err.to_owned(), last);
    let (none, script) = (json!({}), "echo out; echo err >&2; exit 7");
    assert_eq!(sh(script, &none), text("out\n", "err\n", ended(7)));
    // Input that is more than may be under way, and back again.
    let input: String = (0..15_000).map(|number| format!("{number}\n")).collect();
    let (stdout, _, last) = sh("cat", &json!({"stdin": input}));
    assert!((stdout == input) && last == ended(0), "{last:?}");
    assert_eq!(sh("cat", &none), text("", "", ended(0)));
    let other = json!({"env": {"MORE": "2"}, "workdir": "/tmp", "user": "guest"});
    let script = "echo $BASE $MORE $(pwd) $(id -u)";
    assert_eq!(sh(script, &other), text("1 2 /tmp 1000\n", "", ended(0)));
    let mut exec = agent.exec(id, &json!({"args": ["cat"], "stdin_base64": "AP8="}));
    let bytes = ExecLine::StdoutBase64("AP8=".to_owned());
    assert_eq!(exec.next_line(), Some(bytes));
    assert_eq!(exec.next_line(), Some(ended(0)));
    // One that heeds nothing.
    let script = "trap '' HUP TERM; sleep 1000";
    let (_, _, last) = sh(script, &json!({"timeout_ms": 100}));
    let killed = ExecEnd {
        exit_code: by_signal(9),
        timed_out: true,
    };
    assert_eq!(last, ExecLine::Ended(killed));
    let refused = ("POST", &*format!("/sandboxes/{id}/exec"));
    let nothing = json!({"args": ["nothing"]});
    agent.refused(refused, &nothing, (400, &["In the guest", "nothing"]));
}

/// The same by another agent, which has the image `one` of the one before it and starts sandboxes in jails.
fn check_in_jails(scratch: &Scratch) {
    let agent = Agent::start(scratch, &["--jail"]).with_deadline(PATIENCE);
    let cold = agent.create(&json!({"image": "one"}));
    let said = |id: &str, script: &str| {
        let body = json!({"args": ["sh", "-c", script]});
        let (stdout, _, last) = agent.exec(id, &body).finish();
        assert_eq!(last, ended(0));
        stdout
    };
    assert_eq!(said(&cold.id, "echo mark | tee /tmp/mark"), "mark\n");
    let fork = agent.fork(&cold.id, &Value::Null);
    assert!(cold.jailed && fork.jailed, "{cold:?} {fork:?}");
    assert_eq!(
        said(&fork.id, "cat /tmp/mark; echo other > /tmp/mark"),
        "mark\n"
    );
    assert_eq!(said(&cold.id, "cat /tmp/mark"), "mark\n");
    // `lightv exec` finds it too.
    let finished = scratch.run(&["exec", &cold.id, "--", "echo", "here"]);
    assert_eq!(finished.with_code(OK).stdout, "here\n");
    for id in [&fork.id, &cold.id] {
        agent.delete(id);
    }
    agent.end();
}

#[test]
fn clients_of_the_host_agent_run_programs_in_cold_warm_forked_and_jailed_sandboxes() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    build_one(&scratch, &[]);
    let agent = Agent::start(&scratch, &[]).with_deadline(PATIENCE);
    let stored = agent.put_image(&scratch, "one", "one.lv");
    assert!(stored.vsock, "{stored:?}");
    let cold = agent.create(&json!({"image": "one"}));
    check_by_agent(&agent, &cold.id);
    // Its client leaves.
    let script = "trap 'echo hung > /tmp/up; exit' HUP; echo ready; sleep 1000 & wait";
    let mut exec = agent.exec(&cold.id, &json!({"args": ["sh", "-c", script]}));
    assert_eq!(exec.next_line(), Some(ExecLine::Stdout("ready\n".into())));
    drop(exec);
    let cat = json!({"args": ["cat", "/tmp/up"]});
    wait_for("a trace of SIGHUP", || {
        let (stdout, _, _) = agent.exec(&cold.id, &cat).finish();
        (stdout == "hung\n").then_some(())
    });
    agent.fill_pool("one", &json!({"min": 1, "max": 1}));
    let warm = agent.create(&json!({"image": "one", "warm": "require"}));
    let forked = agent.fork(&cold.id, &Value::Null);
    for (id, code, said) in [(&warm.id, 1, ""), (&forked.id, 0, "hung\n")] {
        let (stdout, _, last) = agent.exec(id, &cat).finish();
        assert_eq!((stdout.as_str(), last), (said, ended(code)));
    }
    // `lightv exec` finds them too.
    let finished = scratch.run(&["exec", &warm.id, "--", "echo", "here"]);
    assert_eq!(finished.with_code(OK).stdout, "here\n");
    let last = agent.exec(&warm.id, &json!({"args": ["sleep", "1000"]}));
    agent.delete(&warm.id);
    let why = ExecLine::Failed("The microVM ended before the program".to_owned());
    assert_eq!(last.finish().2, why);
    let gone = agent.api.call("DELETE", "/pools/one", &Value::Null);
    assert_eq!(gone.status, 204, "{gone:?}");
    agent.delete(&forked.id);
    agent.delete(&cold.id);
    agent.end();
    check_in_jails(&scratch);
}

#[test]
fn guests_without_an_agent_are_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("idle", &[]);
    let _ = scratch
        .run(&["run", "-d", "--name", "plain", &image])
        .with_code(OK);
    let refused = scratch.run(&["exec", "plain", "--", "ls"]);
    refused.assert_refused(BAD_ARGUMENTS, &["plain has no vsock", "--exec"]);
    let _ = scratch.run(&["stop", "plain"]).with_code(OK);

    // Its app listens on another port.
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "vsock"),
        &json!({"vsock": {"guest_cid": 52, "uds_path": "v.sock"}}),
    );
    let config = scratch.config("vm.json", &config);
    let process = Process::start(&mut scratch.vmm(&["--config", &config, "--id", "socket"]));
    wait_for("a list", || {
        scratch.run(&["ps"]).stdout.contains("socket").then_some(())
    });
    let refused = scratch.run(&["exec", "socket", "--", "ls"]);
    refused.assert_refused(FAILURE, &["no agent", "--exec"]);
    let _ = process.end().with_code(by_signal(15));
}
