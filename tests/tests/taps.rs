//! Taps that somebody else has made: persistent ones, and descriptors that are passed on.

use std::io::{Read as _, Write as _};
use std::process::Command;

use lightv_api::exit::{BAD_CONFIG, OK};
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::wait_for;
use lightv_tests::scratch::Scratch;

/// Flags of if_tun(4): IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
const TUN: u16 = 0x0001;
const TAP: u16 = 0x0002;
const NO_PI: u16 = 0x1000;
const VNET_HDR: u16 = 0x4000;

/// Becomes a command that inherits an attached interface as descriptor 9.
const PASS_ON: &str = "
import fcntl, os, struct, sys
name, flags, command = sys.argv[1].encode(), int(sys.argv[2]), sys.argv[3:]
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', name, flags))
os.dup2(tun, 9)
os.execvp(command[0], command)
";

/// `lightv run image --net fd=9`, with the interface `name` as descriptor 9.
fn with_passed(scratch: &Scratch, image: &str, name: &str, flags: u16) -> Command {
    let run = scratch.lightv(&["run", image, "--net", "fd=9"]);
    let flags = flags.to_string();
    let mut words = vec!["-c", PASS_ON, name, &flags];
    words.extend(run.get_program().to_str());
    words.extend(run.get_args().filter_map(|word| word.to_str()));
    scratch.command("python3", &words)
}

fn image(scratch: &Scratch, netns: &Netns, app: &str) -> String {
    let image = format!("{app}.lv");
    let args = ["build", app, "-o", &image, "--net", "tap0,ip=10.0.0.2/24"];
    let _ = netns
        .start(&mut scratch.lightv(&args))
        .finish()
        .with_code(OK);
    image
}

#[test]
fn a_persistent_tap_serves_one_machine_after_the_other_by_name_or_passed_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    let links = netns.links();
    let image = image(&scratch, &netns, "echo");
    for mut command in [
        with_passed(&scratch, &image, "tap0", TAP | NO_PI | VNET_HDR),
        scratch.lightv(&["run", &image, "--net", "tap0"]),
        with_passed(&scratch, &image, "tap0", TAP | NO_PI | VNET_HDR),
    ] {
        let process = netns.start(&mut command);
        wait_for("the guest's answer", || {
            let mut stream = netns.try_connect(machine::guest_at(2, 7)).ok()?;
            stream.write_all(b"echo").ok()?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).ok()?;
            (answer == *b"echo").then_some(())
        });
        let finished = process.end();
        assert_eq!((finished.code, finished.stderr.as_str()), (143, ""));
        assert_eq!(netns.links(), links);
    }
}

#[test]
fn a_card_with_several_queue_pairs_has_a_tap_with_as_many_queues() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (plain, queued) = (Netns::with_tap(), Netns::new());
    queued.add_queued_tap("tap0");
    let start = |netns: &Netns, args: &[&str]| netns.start(&mut scratch.lightv(args));
    for (netns, net, word) in [
        (&plain, "tap0,queues=2", "mode tap multi_queue"),
        (&queued, "tap0", "num_queues of 2 or more"),
        (&plain, "tap0,queues=9", "1–8"),
        (&plain, "user,queues=2", "a tap by its name"),
    ] {
        let refused = start(netns, &["build", "echo", "-o", "no.lv", "--net", net]).finish();
        assert_ne!(refused.code, i32::from(OK), "{net}: {refused:?}");
        assert!(refused.stderr.contains(word), "{net}: {refused:?}");
    }
    let net = "tap0,queues=2,ip=10.0.0.2/24";
    let built = start(&queued, &["build", "echo", "-o", "echo.lv", "--net", net]);
    let _ = built.finish().with_code(OK);
    // Onto another tap, that the monitor makes itself: the driver uses one pair of the two.
    for (net, made) in [("tap0", false), ("tap1", true)] {
        let process = start(&queued, &["run", "echo.lv", "--net", net]);
        if made {
            wait_for("the tap", || {
                queued.links().contains(&net.into()).then_some(())
            });
            queued.ip("addr del 10.0.0.1/24 dev tap0");
            queued.ip(&format!("addr add 10.0.0.1/24 dev {net}"));
            queued.ip(&format!("link set {net} up"));
        }
        wait_for("the guest's answer", || {
            let mut stream = queued.try_connect(machine::guest_at(2, 7)).ok()?;
            stream.write_all(b"echo").ok()?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).ok()?;
            (answer == *b"echo").then_some(())
        });
        let finished = process.end();
        assert_eq!((finished.code, finished.stderr.as_str()), (143, ""));
    }
    for (net, word) in [
        ("tap0,queues=4", "which was saved with 2"),
        ("fd=3", "num_queues is 2"),
        ("user", "num_queues is 2"),
    ] {
        let refused = start(&queued, &["run", "echo.lv", "--net", net]).finish();
        refused.assert_refused(BAD_CONFIG, &[word]);
    }
}

#[test]
fn a_descriptor_that_is_no_usable_tap_is_refused() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    let image = image(&scratch, &netns, "hello");
    let before = scratch.listing();
    for (name, flags, word) in [
        ("tap0", TAP | NO_PI, "IFF_VNET_HDR"),
        ("tun9", TUN | NO_PI | VNET_HDR, "IFF_TAP"),
    ] {
        let command = &mut with_passed(&scratch, &image, name, flags);
        let refused = netns.start(command).finish();
        refused.assert_refused(BAD_CONFIG, &["eth0", "Descriptor 9", name, word]);
    }
    let run = scratch.lightv(&["run", &image, "--net", "fd=9"]);
    let nothing = netns.start(&mut scratch.lightv(&["run", &image, "--net", "fd=9"]));
    nothing
        .finish()
        .assert_refused(BAD_CONFIG, &["Descriptor 9", "was passed", "FD_CLOEXEC"]);
    let words = [
        "-c",
        "exec \"$@\" 9</dev/null",
        "sh",
        run.get_program().to_str().expect("a path"),
        "run",
        &image,
        "--net",
        "fd=9",
    ];
    let other = netns.start(&mut scratch.command("sh", &words)).finish();
    other.assert_refused(BAD_CONFIG, &["Descriptor 9 is no tap"]);
    scratch.assert_nothing_left(&before);
}
