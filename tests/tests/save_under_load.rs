//! A guest that writes a disk and serves HTTP is saved while it is busy with both, and goes on from there: in eight
//! clones at once, or itself.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use lightv_api::exit::OK;
use lightv_tests::host::has_kvm;
use lightv_tests::http::{Client, DiskJob, disk_job, get};
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;
use lightv_tests::{disk, machine};
use rustix::process::Signal;
use serde_json::{Value, json};

const SEED: u64 = 11;
const DISK_BYTES: u64 = 4 << 20;
const CLONES: u8 = 8;
/// So far the disk job has come before the save: once round the disk, so that blocks lie on it in a known order.
const BLOCKS_BEFORE: u64 = DISK_BYTES / disk::BLOCK_BYTES as u64 + 200;
/// Bytes of one answer: more than the guest's send buffer holds.
const ANSWER_BYTES: usize = 100_000;

/// The machine before the save.
struct Source {
    scratch: Scratch,
    netns: Netns,
    process: Process,
}

/// The engine that waits.
fn sync() -> Value {
    json!({"io_engine": "Sync"})
}

fn address(number: u8) -> SocketAddr {
    machine::guest_at(10 + number, 80)
}

impl Source {
    /// A machine with a disk and a tap, to be saved as `saved.lv` at SIGUSR1.
    fn start(vcpus: u64, after_save: &str, more: &Value) -> Self {
        let scratch = Scratch::new();
        let netns = Netns::with_tap();
        disk::create(&scratch.path("disk"), DISK_BYTES);
        let mut config = machine::config(&scratch.guest_kernel(), "server");
        config["machine-config"] = json!({"vcpu_count": vcpus});
        let drive = machine::with(&machine::disk("data", "disk", "Writeback"), more);
        config["drives"] = json!([drive]);
        config["network-interfaces"] = machine::net();
        config["entropy"] = json!({});
        config["run"] = json!({"args": [SEED.to_string()], "env": {"LIGHTV_IP": "10.0.0.10/24"}});
        let config = scratch.config("vm.json", &config);
        let args = [
            "--config",
            &config,
            "--save",
            "saved.lv",
            "--save-at",
            "signal",
            "--after-save",
            after_save,
        ];
        let process = netns.start(&mut scratch.vmm(&args));
        Self {
            scratch,
            netns,
            process,
        }
    }

    fn job(&self) -> DiskJob {
        disk_job(&self.netns, address(0))
    }

    /// Waits until the disk job has come some way.
    fn wait_for_work(&self) {
        wait_for("the guest's disk job", || {
            (self.job().written > BLOCKS_BEFORE).then_some(())
        });
    }
}

/// What a byte of `/bytes/N` is.
fn is_pattern(body: &[u8]) -> bool {
    body.iter()
        .enumerate()
        .all(|(index, byte)| index.wrapping_mul(31).wrapping_add(7).to_le_bytes()[0] == *byte)
}

/// Asks and asks on one connection, until `stop` or until the connection fails.
fn load(mut client: Client, stop: &AtomicBool, answers: &AtomicU64) -> bool {
    while !stop.load(Ordering::Relaxed) {
        let Ok(body) = client.get(&format!("/bytes/{ANSWER_BYTES}")) else {
            return false;
        };
        assert!(
            body.len() == ANSWER_BYTES && is_pattern(&body),
            "an answer is damaged"
        );
        answers.fetch_add(1, Ordering::Relaxed);
    }
    true
}

#[test]
fn a_machine_saved_under_load_goes_on_in_eight_clones_at_once() {
    if !has_kvm() {
        return;
    }
    let source = Source::start(1, "end", &sync());
    source.wait_for_work();
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let stream = source.netns.connect(address(0));
    let client = Client::new(stream.try_clone().expect("the connection"));
    let (scratch, source_seed, before) = thread::scope(|scope| {
        scope.spawn(|| load(client, &stop, &answers));
        wait_for("answers under load", || {
            (answers.load(Ordering::Relaxed) > 20).then_some(())
        });
        let source_seed = get(&source.netns, address(0), "/seed");
        let before = source.job();
        source.process.signal(Signal::USR1);
        let Source {
            scratch, process, ..
        } = source;
        let saved = process.finish().with_code(OK);
        assert_eq!((saved.stdout.as_str(), saved.stderr.as_str()), ("", ""));
        // The machine said no good-bye.
        stop.store(true, Ordering::Relaxed);
        stream.shutdown(Shutdown::Both).expect("our connection");
        (scratch, source_seed, before)
    });
    assert_eq!(before.errors, 0);
    check_clones(&scratch, &source_seed, before);
}

/// Starts clone `number` of `saved.lv` with all of its own.
fn start_clone(scratch: &Scratch, number: u8, netns: &Netns) -> Process {
    fs::copy(scratch.path("disk"), scratch.path(&copy(number))).expect("a copy of the disk");
    let number_text = number.to_string();
    let (disk, address, name) = (
        format!("data={}", copy(number)),
        format!("LIGHTV_IP=10.0.0.{}/24", 10 + number),
        format!("CLONE=number {number}"),
    );
    let options = [
        "--net",
        "eth0=tap0",
        "--disk",
        &disk,
        "-e",
        &address,
        "-e",
        &name,
    ];
    let args = [
        &["run", "saved.lv"],
        &options[..],
        &["--", "clone", &number_text],
    ]
    .concat();
    netns.start(&mut scratch.lightv(&args))
}

fn copy(number: u8) -> String {
    format!("disk-{number}")
}

/// Runs all clones of `saved.lv` at once, each of which must go on from `before` or a later point.
fn check_clones(scratch: &Scratch, source_seed: &str, before: DiskJob) {
    let (image, original) = (scratch.read("saved.lv"), scratch.read("disk"));
    let netns: Vec<Netns> = (0..CLONES).map(|_| Netns::with_tap()).collect();
    let numbered = || (0..CLONES).zip(&netns);
    let clones: Vec<Process> = numbered()
        .map(|(number, netns)| start_clone(scratch, number, netns))
        .collect();
    let identities: Vec<[String; 2]> = thread::scope(|scope| {
        let check = |(number, netns)| scope.spawn(move || check_clone(number, netns, before));
        let checks: Vec<_> = numbered().map(check).collect();
        checks
            .into_iter()
            .map(|check| check.join().expect("a clone that goes on"))
            .collect()
    });
    let mut different: BTreeSet<&str> = identities.iter().flatten().map(String::as_str).collect();
    different.insert(source_seed.trim());
    assert_eq!(
        different.len(),
        2 * usize::from(CLONES) + 1,
        "seeds, generations: {identities:?}"
    );
    for (clone, number) in clones.into_iter().zip(0..) {
        let finished = clone.end();
        assert_eq!(
            (finished.code, finished.stderr.as_str()),
            (143, ""),
            "clone {number}"
        );
        check_copy(&scratch.read(&copy(number)), &original);
    }
    assert!(
        scratch.read("saved.lv") == image,
        "the image was changed by its clones"
    );
    assert!(
        scratch.read("disk") == original,
        "the original disk was changed by the clones"
    );
}

/// Looks whether a clone has written on from where the original stood.
fn check_copy(copy: &[u8], original: &[u8]) {
    let (numbers, before) = (disk::blocks_of(copy, SEED), disk::blocks_of(original, SEED));
    assert!(
        numbers.iter().max() > before.iter().max(),
        "the clone has written nothing"
    );
    let blocks = numbers.len() as u64;
    assert!(
        (0..)
            .zip(&numbers)
            .all(|(place, number)| number % blocks == place),
        "{numbers:?}"
    );
}

/// Looks whether a clone is itself and goes on; gives its seed and generation.
fn check_clone(number: u8, netns: &Netns, before: DiskJob) -> [String; 2] {
    let ask = |path: &str| get(netns, address(number), path);
    assert_eq!(ask("/"), "Hello, world!\n");
    let (args, env) = (ask("/args"), ask("/env"));
    assert_eq!(
        args.lines().collect::<Vec<_>>(),
        ["clone".to_owned(), number.to_string()],
        "{args}"
    );
    assert!(env.contains(&format!("CLONE=number {number}\n")), "{env}");
    let first = disk_job(netns, address(number));
    assert!(
        first.written >= before.written && first.verified >= before.verified,
        "{first:?} {before:?}"
    );
    // Blocks from before the save are read back among those from after it.
    let last = wait_for("the clone's disk job", || {
        let job = disk_job(netns, address(number));
        (job.verified > first.verified + 300).then_some(job)
    });
    assert_eq!((first.errors, last.errors), (0, 0), "clone {number}");
    assert!(last.written > first.written, "{first:?} {last:?}");
    let body = Client::new(netns.connect(address(number)))
        .get("/bytes/300000")
        .expect("an answer");
    assert!(body.len() == 300_000 && is_pattern(&body), "clone {number}");
    ["/seed", "/generation"].map(|path| ask(path).trim().to_owned())
}

/// Saves a machine that goes on, some times under load: no answer is lost, no connection, no block.
fn check_continue(vcpus: u64, drive: &Value) {
    let source = Source::start(vcpus, "continue", drive);
    source.wait_for_work();
    let seed = get(&source.netns, address(0), "/seed");
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let client = Client::new(source.netns.connect(address(0)));
    thread::scope(|scope| {
        let loader = scope.spawn(|| load(client, &stop, &answers));
        for round in 0..5 {
            let seen = answers.load(Ordering::Relaxed);
            wait_for("answers under load", || {
                (answers.load(Ordering::Relaxed) > seen + 5).then_some(())
            });
            let before = source.job();
            let _ = fs::remove_file(source.scratch.path("saved.lv"));
            source.process.signal(Signal::USR1);
            wait_for("the image", || {
                source.scratch.path("saved.lv").exists().then_some(())
            });
            let seen = answers.load(Ordering::Relaxed);
            wait_for("answers after the save", || {
                (answers.load(Ordering::Relaxed) > seen + 5).then_some(())
            });
            let after = wait_for("the disk job after the save", || {
                let job = source.job();
                (job.written > before.written + 100).then_some(job)
            });
            assert_eq!(after.errors, 0, "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(
            loader.join().expect("the load"),
            "a connection did not outlive the saves"
        );
    });
    assert_eq!(
        get(&source.netns, address(0), "/seed"),
        seed,
        "a machine that goes on is still the same"
    );
    let finished = source.process.end();
    assert_eq!((finished.code, finished.stderr.as_str()), (143, ""));
    let _ = source.scratch.run(&["inspect", "saved.lv"]).with_code(OK);
}

#[test]
fn a_machine_saved_under_load_goes_on_itself() {
    if has_kvm() {
        check_continue(1, &sync());
    }
}

#[test]
fn a_machine_of_four_vcpus_saved_under_load_goes_on_itself() {
    if has_kvm() {
        check_continue(4, &json!({"io_engine": "Async"}));
    }
}

#[test]
fn saves_at_random_moments_lose_no_block() {
    if has_kvm() {
        let _ = check_random_moments(&sync());
    }
}

#[test]
fn saves_at_random_moments_lose_no_block_that_is_under_way() {
    if has_kvm() {
        let _ = check_random_moments(&json!({"io_engine": "Async"}));
    }
}

#[test]
fn saves_at_random_moments_lose_no_block_of_a_delta_in_memory() {
    if has_kvm() {
        let scratch = check_random_moments(&json!({"overlay": {}}));
        assert!(scratch.read("disk").iter().all(|byte| *byte == 0));
    }
}

/// Gives the folder of the disk.
fn check_random_moments(drive: &Value) -> Scratch {
    const ROUNDS: usize = 25;
    let source = Source::start(1, "end", drive);
    source.wait_for_work();
    let mut last = source.job();
    let Source {
        scratch,
        netns,
        mut process,
    } = source;
    for round in 0..ROUNDS {
        // Another moment each time: some requests after the last look.
        let mut client = Client::new(netns.connect(address(0)));
        let body = client
            .get(&format!("/bytes/{}", round * 10_000))
            .expect("an answer");
        assert!(
            body.len() == round * 10_000 && is_pattern(&body),
            "round {round}"
        );
        process.signal(Signal::USR1);
        let saved = process.finish().with_code(OK);
        assert_eq!(saved.stderr, "", "round {round}");
        fs::rename(scratch.path("saved.lv"), scratch.path("from.lv")).expect("the image");
        let args = [
            "--restore",
            "from.lv",
            "--save",
            "saved.lv",
            "--save-at",
            "signal",
        ];
        process = netns.start(&mut scratch.vmm(&args));
        let job = wait_for("the disk job after the restore", || {
            let job = disk_job(&netns, address(0));
            (job.verified > last.verified + 100).then_some(job)
        });
        assert_eq!(job.errors, 0, "round {round}");
        assert!(job.written > last.written, "round {round}");
        last = job;
    }
    assert_eq!(process.end().code, 143);
    scratch
}
