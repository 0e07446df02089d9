//! Networks without privileges: `--net user`, by passt.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use lightv_api::exit::{BAD_ARGUMENTS, BAD_CONFIG, OK};
use lightv_tests::disk::noise;
use lightv_tests::host::has_kvm;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;

/// Whole segments: of a rest the guest waits until what went before is acknowledged.
const PIECE_BYTES: usize = 16 * 1460;

/// A name space whose default route leads nowhere: passt wants one.
fn with_route() -> Netns {
    let netns = Netns::with_tap();
    netns.ip("link set lo up");
    netns.ip("route add default via 10.0.0.254");
    netns
}

/// An image of `app` on a network in user space.
fn build(scratch: &Scratch, netns: &Netns, app: &str, net: &str) -> String {
    let image = format!("{app}.lv");
    let args = ["build", app, "-o", &image, "--net", net];
    let _ = netns
        .start(&mut scratch.lightv(&args))
        .finish()
        .with_code(OK);
    image
}

/// The process ids of the passts that `process` has started and that are there.
fn children(process: &Process) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("its threads");
    let lists = tasks.map(|task| fs::read_to_string(task.expect("one").path().join("children")));
    let all: String = lists.map(|list| list.unwrap_or_default() + " ").collect();
    all.split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect()
}

/// Sends `data` to the guest, which sends it back. A guest that still has the connections of those who gave it up may refuse one more,
/// and passt has taken it by then.
fn echo(netns: &Netns, port: u16, data: &[u8]) -> Vec<u8> {
    wait_for("all that was sent", || {
        let stream = netns.try_connect(SocketAddr::from(([127, 0, 0, 1], port)));
        try_echo(stream.ok()?, data).ok()
    })
}

/// By pieces, each of which has come back before the next: never as much as the guest's window. One that is full loses connections
/// by passt as Debian 12 has it, which sends an acknowledgment ahead of the data before it, hears of it by many duplicate ones,
/// begins the data again each time, and does not answer what the guest then sends twice.
fn try_echo(mut stream: TcpStream, data: &[u8]) -> io::Result<Vec<u8>> {
    let mut back = Vec::new();
    for piece in data.chunks(PIECE_BYTES) {
        stream.write_all(piece)?;
        let mut came = vec![0; piece.len()];
        stream.read_exact(&mut came)?;
        back.append(&mut came);
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut back)?;
    Ok(back)
}

/// Waits for a guest that serves: passt takes connections before it does.
fn wait_for_echo(netns: &Netns, port: u16) {
    wait_for("the guest's first answer", || {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = netns.try_connect(address).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .ok()?;
        stream.write_all(b"x").ok()?;
        stream.read_exact(&mut [0]).ok()
    });
}

#[test]
fn published_ports_lead_to_the_guest_and_passt_ends_with_the_machine() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = with_route();
    let image = build(&scratch, &netns, "echo", "user");
    let ports = "user,publish=127.0.0.1:8080:7,publish=9090:7/udp";
    for end in [Signal::TERM, Signal::KILL] {
        let run = ["run", image.as_str(), "--net", ports];
        let process = netns.start(&mut scratch.lightv(&run));
        wait_for_echo(&netns, 8080);
        let data = noise(1 << 20, 5);
        assert!(echo(&netns, 8080, &data) == data, "TCP");
        let socket = netns.udp(SocketAddr::from(([10, 0, 0, 1], 9090)));
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("a time-out");
        wait_for("the echo of a datagram", || {
            socket.send(b"datagram").ok()?;
            let mut answer = [0; 16];
            let bytes = socket.recv(&mut answer).ok()?;
            (answer[..bytes] == *b"datagram").then_some(())
        });
        let passt = children(&process);
        assert_eq!(passt.len(), 1, "one child");
        process.signal(end);
        let finished = process.finish();
        assert_eq!(finished.stderr, "");
        wait_for("the end of passt", || {
            let is_there = Path::new(&format!("/proc/{}", passt[0])).exists();
            (!is_there).then_some(())
        });
    }
}

#[test]
fn the_guest_reaches_the_hosts_loopback_only_where_it_is_allowed() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = with_route();
    let image = build(&scratch, &netns, "net-bench", "user");
    let listener = netns
        .within(|| TcpListener::bind("127.0.0.1:0"))
        .expect("a listener");
    listener.set_nonblocking(true).expect("our socket");
    let port = listener.local_addr().expect("bound").port();
    let to = format!("10.0.2.2:{port}");
    let run = |net: &str| {
        let words = [
            "run", &image, "--net", net, "--", "tcp-send", &to, "50", "1000",
        ];
        netns.start(&mut scratch.lightv(&words))
    };
    let process = run("user,host-loopback");
    let stream = wait_for("the guest", || listener.accept().ok()).0;
    assert!(come(stream) > 0);
    // The other end of the measurement does not say what it should.
    let finished = process.finish();
    assert!(
        finished.stderr.contains("closed the connection"),
        "{finished:?}"
    );

    let process = run("user");
    // Without leave it is any address of the network: 10.0.2.2 as proc(5) has it, in SYN_SENT.
    let on_its_way = format!("0202000A:{port:04X} 02");
    wait_for("the guest's connection on its way out", || {
        let sockets = netns.within(|| fs::read_to_string("/proc/thread-self/net/tcp"));
        sockets.ok()?.contains(&on_its_way).then_some(())
    });
    assert!(listener.accept().is_err());
    assert_eq!(process.end().code, 143);
}

/// Bytes that come until the guest has sent all.
fn come(mut stream: TcpStream) -> usize {
    stream.set_nonblocking(false).expect("our socket");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("the end")
}

#[test]
fn what_passt_cannot_do_is_told_and_nothing_is_left() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = with_route();
    let image = build(&scratch, &netns, "hello", "user");
    let before = scratch.listing();
    let _taken = netns
        .within(|| TcpListener::bind("127.0.0.1:8080"))
        .expect("a listener");
    let run = |net: &str| scratch.lightv(&["run", &image, "--net", net]);
    let refused = netns
        .start(&mut run("user,publish=127.0.0.1:8080:80"))
        .finish();
    refused.assert_refused(
        BAD_CONFIG,
        &["eth0", "passt ended with", "127.0.0.1/8080:80"],
    );
    let mut without = run("user");
    let refused = netns.start(without.env("PATH", "/nowhere")).finish();
    refused.assert_refused(
        BAD_CONFIG,
        &["eth0", "no passt in PATH", "apt-get install passt"],
    );
    for (net, words) in [
        (
            "user,publish=80",
            &["publish=[ADDRESS:]PORT:GUEST_PORT"][..],
        ),
        ("user,ip=10.0.0.2/24", &["10.0.2.15/24", "10.0.2.2"]),
        ("tap0,publish=80:80", &["publish is for --net user"]),
    ] {
        let refused = netns.start(&mut run(net)).finish();
        refused.assert_refused(BAD_ARGUMENTS, words);
    }
    let twice = netns
        .start(&mut run("user,publish=80:80,publish=127.0.0.1:80:81"))
        .finish();
    twice.assert_refused(
        BAD_CONFIG,
        &["network-interfaces[0].user.publish[1]", "once"],
    );
    scratch.assert_nothing_left(&before);
}
