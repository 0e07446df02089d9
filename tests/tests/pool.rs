//! A pool: a template, and machines of it that are ready before they are asked for.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{PipeReader, Read as _, Write as _, pipe};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use lightv_api::exit::{BAD_CONFIG, OK};
use lightv_pool::{
    Assignment, Exit, MachineError, News, Options, Ready, Running, Template, TemplateError,
};
use lightv_tests::api::Api;
use lightv_tests::host::{has_kvm, processes_in};
use lightv_tests::machine;
use lightv_tests::process::{DEADLINE, Process, run, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::usage::{Curve, Usage};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A template that works in the test's folder.
fn template(scratch: &Scratch, image: &str, options: &Options) -> Result<Template, TemplateError> {
    let template = Template::spawn(scratch.vmm(&[]), Path::new(image), options)?;
    template.wait_ready(DEADLINE)?;
    Ok(template)
}

fn plain(scratch: &Scratch, image: &str) -> Template {
    template(scratch, image, &Options::default()).expect("a template")
}

fn make(template: &Template) -> Ready {
    let starting = template.fork(DEADLINE).expect("a process");
    starting.wait(DEADLINE).expect("a machine")
}

fn work(id: &str, args: &[&str]) -> Assignment {
    Assignment {
        id: id.to_owned(),
        args: Some(args.iter().map(|arg| (*arg).to_owned()).collect()),
        ends_with_pool: true,
        ..Assignment::default()
    }
}

/// Gives a machine work: what it prints can be read.
fn assign(ready: Ready, assignment: &Assignment) -> (Running, PipeReader) {
    let (reader, writer) = pipe().expect("a pipe");
    let null = File::open("/dev/null").expect("/dev/null");
    let streams = [null.as_fd(), writer.as_fd(), writer.as_fd()];
    let running = ready.assign(assignment, streams).expect("a machine");
    (running, reader)
}

/// Waits for the end of a machine, and gives what it printed.
fn finish((mut running, mut reader): (Running, PipeReader)) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text");
    assert_eq!(running.wait(DEADLINE).unwrap(), News::Running, "{text}");
    assert_eq!(running.wait(DEADLINE).unwrap(), News::Ended(OK), "{text}");
    assert_eq!(running.wait_exit(DEADLINE).unwrap(), Exit::Status(OK));
    assert_eq!(running.next().unwrap(), Some(News::Closed));
    text
}

/// An image of a machine with vsock.
fn vsock_image(scratch: &Scratch) -> String {
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "vsock"),
        &json!({"vsock": {"guest_cid": 3, "uds_path": "image.sock"}}),
    );
    let config = scratch.config("vm.json", &config);
    let args = ["--config", &config, "--save", "vsock.lv"];
    let _ = run(&mut scratch.vmm(&args)).with_code(OK);
    "vsock.lv".to_owned()
}

fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("there is no {name}: {text}"))
}

#[test]
fn twenty_machines_of_a_template_have_their_own_arguments_and_random_numbers() {
    if !has_kvm() {
        return;
    }
    const MACHINES: usize = 20;
    let scratch = Scratch::new();
    let image = scratch.build("args", &["-e", "KEPT=1", "--", "stored"]);
    let before = scratch.listing();
    let options = Options {
        env: vec![("OF_TEMPLATE".into(), "2".into())],
        ..Options::default()
    };
    let template = template(&scratch, &image, &options).expect("a template");
    let ready: Vec<Ready> = (0..MACHINES).map(|_| make(&template)).collect();
    // One process a machine, and the template.
    assert_eq!(processes_in(scratch.folder()).len(), MACHINES + 1);
    let began = std::time::SystemTime::now();
    let running = ready.into_iter().enumerate().map(|(number, ready)| {
        let number = number.to_string();
        let assignment = Assignment {
            env: vec![("CLONE".into(), number.clone())],
            ..work(&format!("vm-{number}"), &[&number])
        };
        assign(ready, &assignment)
    });
    let running: Vec<_> = running.collect();
    let mut seen: [BTreeSet<String>; 3] = Default::default();
    for (number, running) in running.into_iter().enumerate() {
        let text = finish(running);
        for (name, expected) in [("arg[0]", number.to_string()), ("restores", "1".into())] {
            assert_eq!(value(&text, name), expected, "{text}");
        }
        for line in [
            "env KEPT=1",
            "env OF_TEMPLATE=2",
            &format!("env CLONE={number}"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        for (name, seen) in ["generation", "seed"].iter().zip(&mut seen) {
            seen.insert(value(&text, name).to_owned());
        }
        // The clock is that of the assignment, not of the template.
        let since_1970 = began.duration_since(std::time::UNIX_EPOCH).unwrap();
        let now: u128 = value(&text, "wall_clock_ns").parse().expect("a number");
        assert!(now + 1_000_000 >= since_1970.as_nanos(), "{text}");
    }
    assert_eq!(seen.map(|seen| seen.len()), [MACHINES, MACHINES, 0]);
    // Without arguments, the image's.
    let assignment = Assignment {
        args: None,
        ..work("vm", &[])
    };
    let text = finish(assign(make(&template), &assignment));
    assert_eq!(value(&text, "arg[0]"), "stored");
    drop(template);
    scratch.assert_nothing_left(&before);
}

#[test]
fn an_assignment_that_is_refused_changes_nothing() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("args", &[]);
    let template = plain(&scratch, &image);
    let mut ready = make(&template);
    let long = "x".repeat(100 << 10);
    for (assignment, words) in [
        (work("", &[]), &["id", "1–64"][..]),
        (work("a b", &[]), &["\"a b\""]),
        (work("vm", &["a\0b"]), &["Argument 0", "NUL"]),
        (work("vm", &[&long]), &["bytes"]),
        (
            Assignment {
                api_socket: Some("vm.sock".into()),
                ..work("vm", &[])
            },
            &["vm.sock", "--template-api"],
        ),
        (
            Assignment {
                env: vec![("A=B".into(), String::new())],
                ..work("vm", &[])
            },
            &["A=B"],
        ),
    ] {
        let (running, _reader) = assign(ready, &assignment);
        let News::Refused(refusal) = running.wait(DEADLINE).unwrap() else {
            panic!("{assignment:?} is not refused");
        };
        assert_eq!(refusal.exit_code, BAD_CONFIG, "{refusal:?}");
        for word in words {
            assert!(refusal.text.contains(word), "{word}: {refusal:?}");
        }
        ready = running.into_ready();
    }
    let text = finish(assign(ready, &work("vm", &["good"])));
    assert_eq!(value(&text, "arg[0]"), "good");
    assert!(!text.contains("arg[1]") && !text.contains("env "), "{text}");
}

#[test]
fn what_cannot_be_a_template_is_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let refused = |image: &str, words: &[&str]| {
        let Err(TemplateError::Refused(refusal)) = template(&scratch, image, &Options::default())
        else {
            panic!("{image} is not refused");
        };
        assert_eq!(refusal.exit_code, BAD_CONFIG, "{refusal:?}");
        for word in words {
            assert!(refusal.text.contains(word), "{word}: {refusal:?}");
        }
    };
    refused("no.lv", &["no.lv", "No such file"]);
    scratch.write("text.lv", "no image");
    refused("text.lv", &["text.lv"]);
    let image = vsock_image(&scratch);
    refused(&image, &["vsock", "image.sock", "{pid}"]);
    // Standard input is no pool.
    let alone = run(&mut scratch.vmm(&["--template", &image]));
    alone.assert_refused(153, &["SOCK_SEQPACKET", "docs/pool.md"]);
    // By itself each has a socket of its own.
    let options = Options {
        vsock: Some(scratch.path("vm-{pid}.sock")),
        ..Options::default()
    };
    let before = scratch.listing();
    let template = template(&scratch, &image, &options).expect("a template");
    let machines = [make(&template), make(&template)];
    let running = machines.map(|ready| assign(ready, &work("vm", &[])));
    for (number, (running, _)) in running.iter().enumerate() {
        let socket = scratch.path(&format!("vm-{}.sock", running.pid()));
        let mut stream = UnixStream::connect(socket).expect("a socket");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        stream.write_all(b"CONNECT 7\n").expect("a line");
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"OK ", "{number}");
    }
    for (mut running, _) in running {
        running.signal(Signal::TERM).expect("a signal");
        assert_eq!(running.wait_exit(DEADLINE).unwrap().code(), 143);
    }
    drop(template);
    scratch.assert_nothing_left(&before);
}

#[test]
fn machines_outlive_their_template_and_serve() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("args", &[]);
    let before = scratch.listing();
    let template = plain(&scratch, &image);
    let (one, other) = (make(&template), make(&template));
    let pid = Pid::from_raw(i32::try_from(template.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).expect("our child");
    assert!(matches!(
        template.wait(DEADLINE),
        Err(TemplateError::Gone { .. })
    ));
    let text = finish(assign(one, &work("vm", &["late"])));
    assert_eq!(value(&text, "arg[0]"), "late");
    // One that nobody wants any more ends.
    drop(other);
    drop(template);
    scratch.assert_nothing_left(&before);
}

#[test]
fn nothing_outlives_a_pool_that_is_killed() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "5"]);
    // A guest that does not end: the only machine runs, and its bench waits for its end.
    let args = ["bench", "pool", "--image", &image, "--rounds", "1"];
    let bench = Process::start(&mut scratch.lightv(&args));
    wait_for("a pool, a template and a machine", || {
        let names: Vec<String> = pids_in(scratch.folder())
            .into_iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok())
            .collect();
        let has = |name: &str| names.iter().any(|found| found.trim_end() == name);
        (has("lightv-template") && has("lightv-vmm")).then_some(())
    });
    bench.signal(Signal::KILL);
    let _ = bench.finish();
    // But for the files of its host agent.
    wait_for("the end of all", || {
        processes_in(scratch.folder()).is_empty().then_some(())
    });
}

fn pids_in(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    entries
        .filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == folder))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[test]
fn machines_of_an_image_that_was_replaced_have_the_bytes_of_their_template() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("args", &["--", "old"]);
    fs::rename(scratch.path(&image), scratch.path("image.lv")).expect("an image");
    let old = plain(&scratch, "image.lv");
    let made_before = make(&old);
    let image = scratch.build("args", &["--", "new"]);
    fs::rename(scratch.path(&image), scratch.path("image.lv")).expect("an image");
    let new = plain(&scratch, "image.lv");
    let assignment = Assignment {
        args: None,
        ..work("vm", &[])
    };
    for (ready, expected) in [
        (made_before, "old"),
        (make(&old), "old"),
        (make(&new), "new"),
    ] {
        let text = finish(assign(ready, &assignment));
        assert_eq!(value(&text, "arg[0]"), expected);
    }
}

#[test]
fn a_hundred_rounds_leave_nothing_in_template_and_pool() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello-world", &[]);
    let template = plain(&scratch, &image);
    let mut pids = Vec::new();
    let mut round = || {
        let ready = make(&template);
        pids.push(ready.pid());
        let usage = Usage::of(ready.pid());
        let text = finish(assign(ready, &work("vm", &["you"])));
        assert_eq!(text, "Hello, you!\n");
        usage
    };
    let first = round();
    let (mut of_template, mut last) = (Curve::of("a template", template.pid()), first);
    of_template.follow(100, 20, |_| last = round());
    of_template.assert_flat();
    // The last machine that was ready is as the first was.
    println!("ready: first {first}, last {last}");
    assert_eq!((last.files, last.threads), (first.files, first.threads));
    assert!(
        last.resident_kib < first.resident_kib + 1024,
        "{first} {last}"
    );
    // The pool holds none of them, and none is a zombie.
    template.reap();
    assert_eq!(template.dying(), 0);
    pids.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
    assert!(pids.is_empty(), "{pids:?}");
}

/// Name and `Seccomp:` of each thread of a process (proc_pid_status(5)): 2 is a filter. KVM's own are left out.
fn filters(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let texts = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a field").trim().to_owned()
    };
    let found = texts.map(|text| (field(&text, "Name:"), field(&text, "Seccomp:")));
    let mut found: Vec<_> = found
        .filter(|(name, _)| !name.starts_with("kvm-"))
        .collect();
    found.sort();
    found
}

#[test]
fn a_machine_with_an_api_is_listed_paused_and_stopped() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "5"]);
    let options = Options {
        has_api: true,
        ..Options::default()
    };
    let before = scratch.listing();
    let template = template(&scratch, &image, &options).expect("a template");
    let socket = scratch.path("run/vm.sock");
    let assignment = Assignment {
        id: "pooled".into(),
        api_socket: Some(socket.clone()),
        ..Assignment::default()
    };
    let ready = make(&template);
    // All of its threads are held to their lists before it has work.
    let names = ["api", "api-machine", "control", "lightv-vmm"];
    assert_eq!(
        filters(ready.pid()),
        names.map(|name| (name.to_owned(), "2".to_owned()))
    );
    let (mut running, reader) = assign(ready, &assignment);
    // Not tied to the pool, it goes on without.
    assert_eq!(running.wait(DEADLINE).unwrap(), News::Running);
    let api = Api::at(&socket);
    assert_eq!(api.get("/")["state"], "Running");
    assert_eq!(api.get("/")["id"], "pooled");
    let listed = scratch.run(&["ps", "--json"]).with_code(0);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert!(listed.to_string().contains("pooled"), "{listed}");
    api.set_state("Paused");
    assert_eq!(api.get("/")["state"], "Paused");
    api.set_state("Resumed");
    let body = json!({"snapshot_path": "s", "mem_file_path": "m"});
    api.set_state("Paused");
    api.put("/snapshot/create", &body);
    for file in ["s", "m"] {
        fs::remove_file(scratch.path(file)).expect("a snapshot");
    }
    let _ = scratch.run(&["stop", "pooled"]).with_code(0);
    assert_eq!(running.wait_exit(DEADLINE).unwrap().code(), 143);
    drop((running, reader, template));
    scratch.assert_nothing_left(&before);
}

#[test]
fn a_machine_that_is_not_tied_goes_on_without_its_pool() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "5"]);
    let template = plain(&scratch, &image);
    let start = |ends_with_pool| {
        let assignment = Assignment {
            args: None,
            ends_with_pool,
            ..work("vm", &[])
        };
        assign(make(&template), &assignment)
    };
    let ((free, mut free_reader), (tied, mut tied_reader)) = (start(false), start(true));
    let pid = Pid::from_raw(i32::try_from(free.pid()).unwrap()).unwrap();
    drop((free, tied));
    let mut rest = String::new();
    tied_reader.read_to_string(&mut rest).expect("its end");
    // More than was on its way when its pool was gone.
    let mut ticks = [0; 4096];
    for _ in 0..5 {
        assert!(free_reader.read(&mut ticks).expect("ticks") > 0);
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(pid, Signal::TERM).expect("a signal");
    free_reader.read_to_string(&mut rest).expect("its end");
}

#[test]
fn a_machine_that_cannot_be_made_says_why() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = vsock_image(&scratch);
    let options = Options {
        vsock: Some(scratch.path("no/vm-{pid}.sock")),
        ..Options::default()
    };
    let template = template(&scratch, &image, &options).expect("a template");
    let starting = template.fork(DEADLINE).expect("a process");
    let Err(MachineError::Refused(refusal)) = starting.wait(DEADLINE) else {
        panic!("it is made");
    };
    assert!(refusal.text.contains("no/vm-"), "{refusal:?}");
    // The template goes on.
    assert!(template.fork(DEADLINE).is_ok());
}
