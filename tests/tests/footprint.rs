//! What an idle microVM takes of its host.

use std::thread;
use std::time::{Duration, Instant};

use lightv_api::describe::{ProcessDescription, ProcessDetails};
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;

/// 2 MiB.
const OWN_PSS_KIB_MAX: u64 = 2048;
const OPEN_FILES_MAX: usize = 20;
const SETTLED_ANYWAY_AFTER: Duration = Duration::from_secs(20);
/// Between two looks at a machine that comes to rest.
const SETTLED_AFTER: Duration = Duration::from_millis(1200);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The control loop's thread, and one for each vCPU.
const OTHER_THREADS: usize = 1;

/// Describes a running machine once nothing of it changes any more, and what only its start needed is given back: after a second
/// of nothing to do, or after ten seconds where a host's packets leave it none.
fn settled(scratch: &Scratch, process: &Process) -> ProcessDescription {
    let pid = process.pid().to_string();
    let look = || {
        // Until it has begun to be a monitor there is nothing to inspect.
        let found = scratch.run(&["inspect", "--pid", &pid, "--json"]);
        serde_json::from_str::<ProcessDescription>(&found.stdout).ok()
    };
    thread::sleep(SETTLED_AFTER);
    let began = Instant::now();
    let mut last = None;
    wait_for("an idle machine", || {
        thread::sleep(LOOK_INTERVAL);
        let now = look().filter(|found| found.threads.len() > OTHER_THREADS);
        let is_same = now.is_some() && now == last;
        let is_small = now
            .as_ref()
            .is_some_and(|found| details(found).own_pss_kib <= OWN_PSS_KIB_MAX);
        last = now;
        let is_settled = is_same && (is_small || began.elapsed() > SETTLED_ANYWAY_AFTER);
        last.clone().filter(|_| is_settled)
    })
}

/// What root is told of it.
#[track_caller]
fn details(found: &ProcessDescription) -> &ProcessDetails {
    found.details.as_ref().expect("the tests run as root")
}

fn check(name: &str, vcpus: usize, found: &ProcessDescription) {
    let threads = &found.threads;
    let ProcessDetails {
        own_pss_kib,
        guest_pss_kib,
        guest_private_kib,
        open_files,
    } = details(found);
    println!(
        "{name}: own Pss {own_pss_kib} KiB, guest Pss {guest_pss_kib} KiB (private {guest_private_kib} KiB), {} threads {threads:?}, {} open files",
        threads.len(),
        open_files.len()
    );
    assert!(
        *own_pss_kib > 0 && *own_pss_kib <= OWN_PSS_KIB_MAX,
        "{name}: {found:#?}"
    );
    // KVM puts a thread of the kernel's own into the process since Linux 6.13.
    let own_threads = threads
        .iter()
        .filter(|thread| !thread.starts_with("kvm-"))
        .count();
    assert!(own_threads <= OTHER_THREADS + vcpus, "{name}: {found:#?}");
    assert!(open_files.len() < OPEN_FILES_MAX, "{name}: {found:#?}");
}

#[test]
fn an_idle_machine_of_128_mib_takes_two_mib_at_most() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("idle", &["--memory", "128"]);
    for (name, options) in [("restored", &["run"][..]), ("booted", &["run", "--cold"])] {
        let process = Process::start(&mut scratch.lightv(&[options, &[&image]].concat()));
        check(name, 1, &settled(&scratch, &process));
        assert_eq!(process.end().code, 143);
    }
}

#[test]
fn devices_and_vcpus_add_little() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let netns = Netns::with_tap();
    lightv_tests::disk::create(&scratch.path("disk"), 1 << 20);
    let options = [
        "--disk",
        "d=disk",
        "--net",
        "tap0,ip=10.0.0.2/24",
        "--entropy",
        "--vcpus",
        "4",
    ];
    let image = netns.within(|| scratch.build("http", &options));
    let process = netns.start(&mut scratch.lightv(&["run", &image]));
    let address = machine::guest_at(2, 80);
    assert_eq!(
        lightv_tests::http::get(&netns, address, "/"),
        "Hello, world!\n"
    );
    let found = settled(&scratch, &process);
    let all = details(&found);
    println!("{:?}", all.open_files);
    let without_files = ProcessDetails {
        open_files: vec![],
        ..all.clone()
    };
    check(
        "4 vCPUs, disk, net, entropy",
        4,
        &ProcessDescription {
            details: Some(without_files),
            ..found.clone()
        },
    );
    // Each device has queues with two event descriptors at most, and a file of its own.
    assert!(all.open_files.len() < 2 * OPEN_FILES_MAX, "{found:#?}");
    assert_eq!(process.end().code, 143);
}
