//! Linux images: a folder, an archive or an OCI image becomes an image that runs a program, and each run is one of its
//! own.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;

use lightv_api::exit::{BAD_CONFIG, OK};
use lightv_tests::host::has_kvm;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Finished, Process, run, wait_for};
use lightv_tests::rootfs::{build, busybox, run_recipe, static_rust};
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;

/// Starts `image` with `options`, gives it `input`, and waits for its end.
fn run_with(scratch: &Scratch, args: &[&str], input: &[u8]) -> Finished {
    let mut command = scratch.lightv(&[&["run"], args].concat());
    Process::start_with(&mut command, input, Stdio::piped()).finish()
}

#[test]
fn a_shell_command_says_what_it_says_where_it_says_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let _ = busybox(&scratch, "root");
    let command = "echo out; echo err >&2; exit 7";
    let options = ["--rootfs", "root", "--cmd", command];
    let _ = build(&scratch, "sh.lv", &options);
    for options in [&["sh.lv"][..], &["sh.lv"], &["--cold", "sh.lv"]] {
        let finished = run_with(&scratch, options, b"").with_code(7);
        assert_eq!(finished.stdout, "out\n", "{finished:?}");
        assert_eq!(finished.stderr, "err\n", "{finished:?}");
    }
    // Another program, with other words, environment, and an input that ends.
    let options = ["-e", "NAME=value", "sh.lv", "--", "/bin/sh", "-c"];
    let other = [
        &options[..],
        &["echo $NAME $0; cat; echo again > /dev/stderr; id -u; pwd"],
    ]
    .concat();
    let input = "a line\n".repeat(5000);
    let finished = run_with(&scratch, &other, input.as_bytes()).with_code(OK);
    let expected = format!("value /bin/sh\n{input}0\n/\n");
    assert_eq!(finished.stdout, expected);
    assert_eq!(finished.stderr, "again\n");
}

#[test]
fn clones_write_over_one_ext4_that_was_mounted_before_the_save() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let _ = busybox(&scratch, "root");
    lightv_tests::disk::create(&scratch.path("data"), 16 << 20);
    let mut mkfs = scratch.command("mkfs.ext4", &["-q", "-F", "data"]);
    let _ = run(&mut mkfs).with_code(OK);
    let data = scratch.read("data");
    let command = "read name; test -e /mine && echo stale; echo $name > /mine; sync; cat /mine";
    let options = [
        "--rootfs",
        "root",
        "--writable",
        "/dev/vdb",
        "--cmd",
        command,
    ];
    let disk = ["--disk", "data=data,overlay,cache=writeback"];
    let _ = build(&scratch, "ext4.lv", &[&options[..], &disk].concat());
    let clone = &|name: &str| {
        let finished = run_with(&scratch, &["ext4.lv"], name.as_bytes()).with_code(OK);
        assert_eq!(finished.stdout, name, "{finished:?}");
        assert_eq!(finished.stderr, "", "{finished:?}");
    };
    std::thread::scope(|scope| {
        for name in ["one\n", "two\n", "three\n"] {
            scope.spawn(move || clone(name));
        }
    });
    // The mount before the save has written to the delta, which is in the image.
    let shown = scratch.run(&["inspect", "--json", "ext4.lv"]).with_code(OK);
    assert!(shown.stdout.contains("overlay-sums"), "{shown:?}");
    assert!(scratch.read("data") == data);
}

#[test]
fn a_program_has_address_route_and_name_server_of_a_network_without_privileges() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    netns.ip("link set lo up");
    netns.ip("route add default via 10.0.0.254");
    let _ = busybox(&scratch, "root");
    let listener = netns.within(|| TcpListener::bind("127.0.0.1:8099"));
    let listener = listener.expect("a listener");
    listener.set_nonblocking(true).expect("our socket");
    let command = "ip addr show eth0; ip route; cat /etc/resolv.conf; echo ask | nc 10.0.2.2 8099";
    let options = ["--rootfs", "root", "--net", "user", "--cmd", command];
    let _ = netns.within(|| build(&scratch, "net.lv", &options));
    let run = ["run", "net.lv", "--net", "user,host-loopback"];
    let process = netns.start(&mut scratch.lightv(&run));
    let mut stream = wait_for("the guest", || listener.accept().ok()).0;
    stream.set_nonblocking(false).expect("our socket");
    let mut asked = [0; 4];
    stream.read_exact(&mut asked).expect("four bytes");
    stream.write_all(b"answer\n").expect("all is taken");
    drop(stream);
    let finished = process.finish().with_code(OK);
    for words in [
        "inet 10.0.2.15/24",
        "default via 10.0.2.2",
        "nameserver 10.0.2.3",
        "answer\n",
    ] {
        assert!(finished.stdout.contains(words), "{words}: {finished:?}");
    }
}

/// Its first act is to draw random bytes; then it says who it is.
const PROGRAM: &str = r#"
use std::io::Read;
unsafe extern "C" {
    fn getrandom(buffer: *mut u8, bytes: usize, flags: u32) -> isize;
}
fn main() {
    let mut random = [0_u8; 16];
    unsafe { getrandom(random.as_mut_ptr(), random.len(), 0) };
    println!("random={random:02x?}");
    println!("args={:?}", std::env::args().skip(1).collect::<Vec<_>>());
    println!("now={}", std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs());
    let mut threads = Vec::new();
    for number in 0..4_u64 {
        threads.push(std::thread::spawn(move || (0..=number * 1000).sum::<u64>()));
    }
    println!("sum={}", threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>());
    eprintln!("to the other stream");
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).unwrap();
    std::process::exit(input.trim().parse().unwrap_or(0));
}
"#;

#[test]
fn twenty_clones_of_a_static_program_draw_twenty_numbers() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let _ = static_rust(&scratch, PROGRAM);
    std::fs::create_dir(scratch.path("root")).expect("a free name");
    let options = [
        "--rootfs",
        "root",
        "--copy",
        "program:/app",
        "--",
        "/app",
        "x",
    ];
    let _ = build(&scratch, "app.lv", &options);
    let mut numbers = BTreeSet::new();
    for clone in 0..20 {
        let before = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("now")
            .as_secs();
        let status = clone % 3;
        let finished = run_with(&scratch, &["app.lv"], status.to_string().as_bytes());
        let finished = finished.with_code(status);
        assert_eq!(finished.value("args"), r#"["x"]"#);
        assert_eq!(finished.value("sum"), "7003000", "{finished:?}");
        assert_eq!(finished.stderr, "to the other stream\n");
        let now: u64 = finished.value("now").parse().expect("seconds");
        assert!(
            (before..=before + 60).contains(&now),
            "{now} is not {before}"
        );
        numbers.insert(finished.value("random").to_owned());
    }
    assert_eq!(numbers.len(), 20, "{numbers:?}");
}

#[test]
fn an_oci_archive_runs_python_as_it_says() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    run_recipe(&scratch, "debian-to-tar", &["base.tar", "python3-minimal"]);
    let program = "import os, sys, hashlib\n\
        print(sys.argv[1:], os.environ['MODE'], os.getcwd(), os.getuid())\n\
        print(hashlib.sha256(b'lightv').hexdigest(), file=sys.stderr)\n\
        open('here', 'w').write('x')\n\
        sys.exit(int(sys.argv[1]))\n";
    std::fs::create_dir_all(scratch.path("layer/srv")).expect("a free name");
    scratch.write("layer/srv/app.py", program);
    let tar = "tar -C layer --owner=1000 --group=1000 -cf layer.tar srv";
    let _ = run(&mut scratch.command("sh", &["-c", tar])).with_code(0);
    let options = "-o app.oci.tar -e MODE=fast -w /srv -u 1000:1000 --entrypoint python3 base.tar layer.tar -- app.py 5";
    let options: Vec<&str> = options.split(' ').collect();
    run_recipe(&scratch, "oci-from-tar", &options);
    let options = ["--rootfs", "app.oci.tar", "--memory", "256"];
    let _ = build(&scratch, "python.lv", &options);
    let digest = "5290cdc98257a3f04a4d886a9e77ee9e2f52aa7f88d291eb7fe4ac6c03936308\n";
    for (args, said, status) in [
        (&["python.lv"][..], "['5'] fast /srv 1000", 5),
        (
            &["python.lv", "--", "app.py", "9", "more"],
            "['9', 'more'] fast /srv 1000",
            9,
        ),
    ] {
        let finished = run_with(&scratch, args, b"").with_code(status);
        assert_eq!(finished.stdout.trim_end(), said);
        assert_eq!(finished.stderr, digest);
    }
}

#[test]
fn a_program_says_itself_when_it_is_ready() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let _ = busybox(&scratch, "root");
    let command = "echo loading; cat /run/lightv/ready; echo serving $(cat /run/lightv/run.json)";
    scratch.write(
        "lightv.toml",
        format!(
            "rootfs = 'root'\nentrypoint = '{command}'\nready = 'doorbell'\nhostname = 'box'\n"
        ),
    );
    let built = build(&scratch, "bell.lv", &["--file"]);
    assert!(built.stderr.contains("loading"), "{built:?}");
    let finished = run_with(&scratch, &["bell.lv"], b"").with_code(OK);
    assert_eq!(finished.stdout, "serving {\"args\":[],\"env\":{}}\n");
    let args = ["bell.lv", "-e", "A=b", "--", "x", "y"];
    let finished = run_with(&scratch, &args, b"").with_code(OK);
    let told = "serving {\"args\":[\"x\",\"y\"],\"env\":{\"A\":\"b\"}}\n";
    assert_eq!(finished.stdout, told);
}

#[test]
fn a_server_is_ready_when_it_listens_and_takes_another_address_in_each_clone() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let _ = busybox(&scratch, "root");
    let netns = Netns::with_tap();
    netns.add_tap("tap1");
    let server = "while :; do echo hello from $(ip -4 -o addr show eth0) | nc -l -p 80; done";
    let net = "tap0,ip=10.0.0.2/24,gw=10.0.0.1";
    let options = [
        "--rootfs",
        "root",
        "--cmd",
        server,
        "--net",
        net,
        "--ready",
        "listen:80",
    ];
    let _ = netns.within(|| build(&scratch, "web.lv", &options));
    // Two clones of one image on two taps, each with an address of its own.
    let clones = [("tap0", "10.0.0.2"), ("tap1", "10.0.1.7")];
    netns.ip("addr add 10.0.1.1/24 dev tap1");
    let started = clones.map(|(tap, address)| {
        let net = format!("{tap},ip={address}/24");
        netns.within(|| Process::start(&mut scratch.lightv(&["run", "web.lv", "--net", &net])))
    });
    for (_, address) in clones {
        let ask = format!("nc -w 5 {address} 80 < /dev/null");
        let ask = || run(&mut scratch.command("busybox", &["sh", "-c", &ask]));
        // The first answer was made ready before the save, in the world of the build.
        let told = format!("inet {address}/24");
        wait_for(&format!("an answer with {told}"), || {
            netns.within(ask).stdout.contains(&told).then_some(())
        });
    }
    for clone in started {
        clone.signal(Signal::TERM);
        let _ = clone.finish().with_code(143);
    }
}

#[test]
fn signals_reach_the_program() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let _ = busybox(&scratch, "root");
    let command = "trap 'echo got term; exit 3' TERM; echo waiting; while :; do sleep 0.1; done";
    let _ = build(&scratch, "trap.lv", &["--rootfs", "root", "--cmd", command]);
    let waiting = |process: &Process| {
        process.wait_stdout(|text| text.contains("waiting").then_some(()));
    };
    let process = Process::start(&mut scratch.lightv(&["run", "trap.lv"]));
    waiting(&process);
    process.signal(Signal::TERM);
    let finished = process.finish().with_code(3);
    assert_eq!(finished.stdout, "waiting\ngot term\n");
    // The program has no handler for this one.
    let process = Process::start(&mut scratch.lightv(&["run", "trap.lv"]));
    waiting(&process);
    process.signal(Signal::INT);
    let _ = process.finish().with_code(130);
}

#[test]
fn what_cannot_become_an_image_is_refused_by_name() {
    let scratch = Scratch::new();
    let root = busybox(&scratch, "root");
    scratch.write("kernel", "no kernel");
    scratch.write("bad.toml", "rootfs = 'root'\nbogus = 1\n");
    let before = scratch.listing();
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--rootfs", "nowhere"], &["nowhere", "No such file"]),
        (&["--rootfs", "kernel"], &["kernel", "OCI"]),
        (&["--rootfs", "root"], &["root", "--cmd"]),
        (&["--file", "bad.toml"], &["bad.toml:2", "bogus"]),
    ];
    for (options, words) in cases {
        let args = [&["build", "-o", "x.lv"], options].concat();
        let mut command = scratch.lightv(&args);
        let finished = run(command.env("LIGHTV_LINUX_KERNEL", scratch.path("kernel")));
        finished.assert_refused(BAD_CONFIG, words);
        scratch.assert_nothing_left(&before);
    }
    // These the monitor refuses, which says why.
    for (options, words) in [
        (["--kernel", "absent"], ["absent", "No such file"]),
        (["--hostname", "a b"], ["run.agent.hostname", "a b"]),
    ] {
        let args = [
            &["build", "-o", "x.lv", "--rootfs", "root", "--cmd", "x"],
            &options[..],
        ];
        let mut command = scratch.lightv(&args.concat());
        let finished = run(command.env("LIGHTV_LINUX_KERNEL", scratch.path("kernel")));
        let finished = finished.with_code(BAD_CONFIG);
        assert!(
            words.iter().all(|word| finished.stderr.contains(word)),
            "{finished:?}"
        );
        scratch.assert_nothing_left(&before);
    }
    assert!(root.is_dir());
}
