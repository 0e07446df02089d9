//! Sockets between guest and host, as programs of both sides use them: by the guest's `vsock` app, which echoes, and sends a
//! pattern to the host.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use lightv_api::exit::{BAD_CONFIG, OK};
use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::process::{DEADLINE, Process, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

/// The guest's port on which it echoes.
const ECHO: u32 = 7;
/// Connections that a machine has at most.
const CONNECTIONS_MAX: usize = 1023;

/// A machine with vsock whose app has `args`.
fn config(scratch: &Scratch, args: &str) -> Value {
    let config = machine::config(&scratch.guest_kernel(), &format!("vsock -- {args}"));
    machine::with(
        &config,
        &json!({"vsock": {"guest_cid": 52, "uds_path": "v.sock"}}),
    )
}

/// Starts that machine, and waits until its app listens.
fn start(scratch: &Scratch, args: &str) -> Process {
    let name = scratch.config("vm.json", &config(scratch, args));
    let process = Process::start(&mut scratch.vmm(&["--config", &name]));
    process.wait_stdout(|text| text.contains("vsock cid=52").then_some(()));
    process
}

fn client(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Connects to the guest's `port`, if it listens there.
fn connect(socket: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = client(socket).ok()?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .ok()?;
    let line = read_line(&mut stream).ok()?;
    let host_port = line.strip_prefix("OK ")?.strip_suffix('\n')?;
    assert!(host_port.parse::<u32>().is_ok(), "{line:?}");
    Some(stream)
}

fn connected(socket: &Path) -> UnixStream {
    connect(socket, ECHO).expect("a connection")
}

/// Whether `stream` is echoed what it sends.
fn check_echo(stream: &mut UnixStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("to be taken");
    let mut echoed = vec![0; text.len()];
    stream.read_exact(&mut echoed).expect("to be echoed");
    assert_eq!(String::from_utf8_lossy(&echoed), text);
}

/// Whether the other side has ended `stream`.
fn is_ended(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(cause) => cause.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Byte `at` of the pattern that the guest sends.
fn pattern(at: usize) -> u8 {
    u32::try_from(at / 4).expect("few words").to_le_bytes()[at % 4]
}

/// Bytes that are not the same anywhere.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..bytes).map(next).collect()
}

#[test]
fn megabytes_come_back_as_they_were_from_a_slow_reader_that_has_closed_its_half() {
    if !has_kvm() {
        return;
    }
    const BYTES: usize = 3 << 20;
    let scratch = Scratch::new();
    let process = start(&scratch, "7");
    let socket = scratch.path("v.sock");
    let mut stream = connected(&socket);
    let mut other = connected(&socket);
    let sent = noise(BYTES);
    let mut writer = stream.try_clone().expect("a second descriptor");
    let to_send = sent.clone();
    let writer = thread::spawn(move || {
        writer.write_all(&to_send)?;
        writer.shutdown(Shutdown::Write)
    });
    // Nobody reads yet: it stands still, and others do not.
    thread::sleep(Duration::from_millis(300));
    check_echo(&mut other, "meanwhile");
    let mut received = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut piece).expect("more");
        if length == 0 {
            break;
        }
        received.extend_from_slice(&piece[..length]);
        thread::sleep(Duration::from_micros(500));
    }
    writer.join().expect("a writer").expect("to be taken");
    assert_eq!(received.len(), BYTES);
    assert!(received == sent, "the bytes are others");
    check_echo(&mut other, "afterwards");
    assert_eq!(process.end().code, 143);
    assert!(!socket.exists());
}

#[test]
fn the_guest_sends_to_a_service_of_the_host_and_is_answered_after_it_has_closed_its_half() {
    if !has_kvm() {
        return;
    }
    const BYTES: usize = 1_000_003;
    let scratch = Scratch::new();
    let service = UnixListener::bind(scratch.path("v.sock_5000")).expect("a service");
    let process = start(&scratch, &format!("7 5000 {BYTES}"));
    let (mut stream, _) = service.accept().expect("the guest");
    // It is held back while nobody reads.
    thread::sleep(Duration::from_millis(200));
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("its pattern");
    assert_eq!(received.len(), BYTES);
    let bad = (0..BYTES).find(|at| received[*at] != pattern(*at));
    assert_eq!(bad, None);
    stream.write_all(b"all is there\n").expect("an answer");
    drop(stream);
    process.wait_stdout(|text| text.contains("vsock answer: all is there\n").then_some(()));
    // The other direction works beside it.
    check_echo(&mut connected(&scratch.path("v.sock")), "echo");
    assert_eq!(process.end().code, 143);
    assert!(
        scratch.path("v.sock_5000").exists(),
        "the service's own socket stays"
    );
}

#[test]
fn ports_where_nobody_listens_refuse_and_bad_lines_end_their_client_alone() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let process = start(&scratch, "7 5000 10");
    process.wait_stdout(|text| text.contains("vsock refused at 5000\n").then_some(()));
    let socket = scratch.path("v.sock");
    let mut witness = connected(&socket);
    for port in [0, 8, u32::MAX] {
        assert!(connect(&socket, port).is_none(), "{port}");
    }
    let endless = "C".repeat(1 << 20);
    for line in [
        "HELLO\n",
        "CONNECT\n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        "CONNECT 52 53\n",
        "CONNECT 0x34\n",
        "\n",
        &endless,
    ] {
        let mut stream = client(&socket).expect("a client");
        // The socket may be closed before all of it is written.
        let _ = stream.write_all(line.as_bytes());
        assert!(is_ended(&mut stream), "{:?}", &line[..line.len().min(40)]);
    }
    // Clients that go at any moment.
    for part in ["", "CONN", "CONNECT 7", "CONNECT 7\n", "CONNECT 7\nbytes"] {
        let mut stream = client(&socket).expect("a client");
        stream.write_all(part.as_bytes()).expect("to be taken");
    }
    // In pieces, in other letters, and with more behind it.
    let mut stream = client(&socket).expect("a client");
    for part in ["conn", "ect ", "7\r\nhello"] {
        stream.write_all(part.as_bytes()).expect("to be taken");
        thread::sleep(Duration::from_millis(30));
    }
    let line = read_line(&mut stream).expect("a line");
    assert!(line.starts_with("OK "), "{line:?}");
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).expect("to be echoed");
    assert_eq!(&hello, b"hello");
    check_echo(&mut witness, "witness");
    assert_eq!(process.end().code, 143);
}

#[test]
fn the_limit_of_connections_holds_and_is_free_again_afterwards() {
    let mut files = getrlimit(Resource::Nofile);
    let wanted = CONNECTIONS_MAX as u64 + 100;
    let is_enough = files.maximum.is_none_or(|maximum| maximum >= wanted);
    if !has_kvm() || !is_enough {
        return;
    }
    if files.current.is_some_and(|current| current < wanted) {
        files.current = Some(wanted);
        setrlimit(Resource::Nofile, files).expect("more descriptors");
    }
    let scratch = Scratch::new();
    let process = start(&scratch, "7");
    let socket = scratch.path("v.sock");
    let mut streams: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connected(&socket)).collect();
    assert!(connect(&socket, ECHO).is_none());
    process.wait_stderr(|text| {
        text.contains("all 1023 connections are in use")
            .then_some(())
    });
    check_echo(&mut streams[0], "first");
    check_echo(&mut streams[CONNECTIONS_MAX - 1], "last");
    drop(streams);
    let mut stream = wait_for("a free place", || connect(&socket, ECHO));
    check_echo(&mut stream, "again");
    assert_eq!(process.end().code, 143);
}

/// Tells `api` of a machine with vsock at `path`.
fn configure(scratch: &Scratch, api: &Api, args: &str, path: &str) {
    api.put("/vsock", &json!({"guest_cid": 52, "uds_path": path}));
    let kernel = scratch.guest_kernel();
    let boot = json!({"kernel_image_path": kernel, "boot_args": format!("app=vsock -- {args}")});
    api.put("/boot-source", &boot);
}

fn load_body(vsock: Option<&str>) -> Value {
    let backend = json!({"backend_type": "File", "backend_path": "a.mem"});
    let mut body = json!({"snapshot_path": "a.state", "mem_backend": backend, "resume_vm": true});
    if let Some(path) = vsock {
        body["vsock_override"] = json!({"uds_path": path});
    }
    body
}

#[test]
fn connections_go_on_after_a_save_and_clones_answer_on_sockets_of_their_own() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let service = UnixListener::bind(scratch.path("v.sock_5000")).expect("a service");
    let (api, process) = Api::start(&scratch, "source", &[]);
    configure(&scratch, &api, "7 5000 100", "v.sock");
    api.act("InstanceStart");
    let (mut from_guest, _) = service.accept().expect("the guest");
    let socket = scratch.path("v.sock");
    let mut stream = connected(&socket);
    check_echo(&mut stream, "before");

    api.set_state("Paused");
    stream
        .write_all(b"while it stands still")
        .expect("to be taken");
    let mut waiting = client(&socket).expect("a client");
    waiting.write_all(b"CONNECT 7\n").expect("to be taken");
    api.put(
        "/snapshot/create",
        &json!({"snapshot_path": "a.state", "mem_file_path": "a.mem"}),
    );
    api.set_state("Resumed");
    let mut echoed = [0; 21];
    stream.read_exact(&mut echoed).expect("to be echoed");
    assert_eq!(&echoed, b"while it stands still");
    let line = read_line(&mut waiting).expect("a line");
    assert!(line.starts_with("OK "), "{line:?}");
    let mut received = Vec::new();
    from_guest.read_to_end(&mut received).expect("the pattern");
    assert_eq!(received.len(), 100);

    // The source has its socket still: a clone is told so, and can have another.
    let clones: Vec<_> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let (clone_api, clone) = Api::start(&scratch, name, &[]);
            let refused = clone_api.call("PUT", "/snapshot/load", &load_body(None));
            for word in ["v.sock", "vsock_override", "a process listens on it"] {
                assert!(refused.fault().contains(word), "{word}: {refused:?}");
            }
            let path = format!("{name}.vsock");
            clone_api.put("/snapshot/load", &load_body(Some(&path)));
            assert_eq!(clone_api.get("/vm/config")["vsock"]["uds_path"], path);
            (scratch.path(&path), clone_api, clone)
        })
        .collect();
    for (socket, _, clone) in &clones {
        // What the guest had has ended; what listens, listens.
        clone.wait_stdout(|text| text.contains("vsock answer: \n").then_some(()));
        let mut streams: Vec<_> = (0..20).map(|_| connected(socket)).collect();
        for stream in &mut streams {
            check_echo(stream, "clone");
        }
    }
    check_echo(&mut stream, "source");
    from_guest.write_all(b"late\n").expect("to be taken");
    drop(from_guest);
    process.wait_stdout(|text| text.contains("vsock answer: late\n").then_some(()));
    assert_eq!(process.end().code, 143);
    for (socket, _, clone) in clones {
        assert_eq!(clone.end().code, 143);
        assert!(!socket.exists());
    }
    assert!(!socket.exists());

    // Its path is free now.
    let (clone_api, clone) = Api::start(&scratch, "three", &[]);
    clone_api.put("/snapshot/load", &load_body(None));
    check_echo(&mut connected(&socket), "three");
    assert_eq!(clone.end().code, 143);
    assert!(!socket.exists());
}

#[test]
fn an_image_has_vsock_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let name = scratch.config("vm.json", &config(&scratch, "7"));
    let args = ["--config", &name, "--save", "vm.lv"];
    let saved = Process::start(&mut scratch.vmm(&args)).finish();
    let _ = saved.with_code(OK);
    assert!(!scratch.path("v.sock").exists());
    let process = Process::start(&mut scratch.vmm(&["--restore", "vm.lv"]));
    let socket = scratch.path("v.sock");
    let mut stream = wait_for("the guest", || connect(&socket, ECHO));
    check_echo(&mut stream, "restored");
    // Another one beside it.
    let second = Process::start(&mut scratch.vmm(&["--restore", "vm.lv"])).finish();
    second.assert_refused(
        BAD_CONFIG,
        &["v.sock", "--vsock", "a process listens on it"],
    );
    let args = ["run", "vm.lv", "--vsock", "w.sock"];
    let second = Process::start(&mut scratch.lightv(&args));
    let other = scratch.path("w.sock");
    let mut on_other = wait_for("the second guest", || connect(&other, ECHO));
    check_echo(&mut on_other, "second");
    check_echo(&mut stream, "first");
    assert_eq!(second.end().code, 143);
    assert_eq!(process.end().code, 143);
    assert!(!socket.exists() && !other.exists());
}

#[test]
fn a_socket_is_there_from_its_request_on_and_goes_in_good_order() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &[]);
    let put = |path: &str| api.call("PUT", "/vsock", &json!({"guest_cid": 52, "uds_path": path}));
    let exists = |name: &str| scratch.path(name).exists();
    scratch.write("file", "somebody's");
    // One that was left by a process that was killed.
    drop(UnixListener::bind(scratch.path("stale")).expect("a socket"));
    let _live = UnixListener::bind(scratch.path("live")).expect("a socket");
    assert_eq!(put("first").status, 204);
    for (path, word) in [
        ("file", "no socket"),
        ("live", "listens"),
        ("no/where", "no/where"),
        ("", "uds_path"),
        (&"a".repeat(108), "1–107 bytes"),
    ] {
        let refused = put(path);
        assert!(refused.fault().starts_with("Vsock config error: "));
        assert!(refused.fault().contains(word), "{path}: {refused:?}");
        assert!(exists("first"), "it stays");
        assert_eq!(api.get("/vm/config")["vsock"]["uds_path"], "first");
    }
    for cid in [0_u32, 2, u32::MAX] {
        let body = json!({"guest_cid": cid, "uds_path": "second"});
        let refused = api.call("PUT", "/vsock", &body);
        assert!(refused.fault().contains("3–4294967294"), "{refused:?}");
    }
    assert_eq!(put("stale").status, 204);
    assert!(exists("stale") && !exists("first"));
    configure(&scratch, &api, "7", "v.sock");
    assert!(exists("v.sock") && !exists("stale"));
    // The same again: it is made anew.
    assert_eq!(put("v.sock").status, 204);

    // A start that fails leaves none; the next one makes it.
    scratch.write("bad", "no kernel");
    api.put("/boot-source", &json!({"kernel_image_path": "bad"}));
    let refused = api.call("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    assert!(refused.fault().contains("bad"), "{refused:?}");
    configure(&scratch, &api, "7", "v.sock");
    let early: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = client(&scratch.path("v.sock")).expect("a client");
            stream.write_all(b"CONNECT 7\n").expect("to be taken");
            stream
        })
        .collect();
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("vsock cid=52").then_some(()));
    for mut stream in early {
        let line = read_line(&mut stream).expect("a line");
        assert!(line.starts_with("OK "), "{line:?}");
        check_echo(&mut stream, "early");
    }
    let line = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("its status");
    assert!(line.contains("VmRSS"), "{line}");
    assert_eq!(process.end().code, 143);
    assert!(!exists("v.sock"));
    assert_eq!(scratch.read("file"), b"somebody's");
}

#[test]
fn a_file_at_the_socket_s_path_is_left_alone() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("v.sock", "somebody's");
    let name = scratch.config("vm.json", &config(&scratch, "7"));
    let before = scratch.listing();
    let finished = Process::start(&mut scratch.vmm(&["--config", &name])).finish();
    finished.assert_refused(BAD_CONFIG, &["vsock", "v.sock", "no socket"]);
    assert_eq!(scratch.read("v.sock"), b"somebody's");
    scratch.assert_nothing_left(&before);
}

#[test]
fn what_happens_on_connections_is_counted() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "vm", &["--metrics-path", "metrics"]);
    configure(&scratch, &api, "7", "v.sock");
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("vsock cid=52").then_some(()));
    let mut stream = connected(&scratch.path("v.sock"));
    check_echo(&mut stream, "0123456789");
    drop(stream);
    let line = wait_for("the end of the connection", || {
        api.act("FlushMetrics");
        let text = String::from_utf8(scratch.read("metrics")).expect("text");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let lines: Vec<Value> = lines.collect();
        let sum = |name: &str| {
            let values = lines.iter().map(|line| line["vsock"][name].as_u64());
            values.map(|value| value.expect(name)).sum::<u64>()
        };
        (sum("conns_removed") == 1).then(|| {
            [
                "conns_added",
                "conns_killed",
                "rx_bytes_count",
                "tx_bytes_count",
            ]
            .map(sum)
        })
    });
    assert_eq!(line, [1, 0, 10, 10]);
    assert_eq!(process.end().code, 143);
}
