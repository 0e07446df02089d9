//! A guest that breaks every rule of every device (`raw` of the minimal guest), and what the monitor is after each device's turn:
//! alive, no larger, idle, and quiet.

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lightv_api::describe::{ProcessDescription, ProcessDetails};
use lightv_api::exit::OK;
use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::prometheus::{self, Labels, Scrape};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Disks are as large that the longest request is a small part, and sparse.
const DISK_BYTES: u64 = 64 * MIB;
/// Port of the host on which somebody listens; the guest knows it.
const OPEN_PORT: u32 = 5000;
/// Connections that the listener keeps.
const KEPT: usize = 16;

/// Attacks on a virtio device that there must be, at least: what is left out by mistake is seen. And on the rest.
const ATTACKS_MIN: u32 = 130;
const PLATFORM_ATTACKS_MIN: u32 = 20;
/// Growth of the monitor's own memory by all attacks together.
const GROWTH_KIB_MAX: u64 = 4096;
/// After an idle second.
const SETTLED_AFTER: Duration = Duration::from_millis(1300);
/// Threads and open files that may be more or less.
const OTHERS_MAX: usize = 2;
/// New lines of the log for one device.
const LOG_LINES_MAX: usize = 20;
/// What one device takes is seconds; only what hangs takes so long.
const TURN_MAX: Duration = Duration::from_secs(150);
/// However loaded the host is.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// For how long an idle monitor is watched, and how much of that it may work: two steps of its clock.
const IDLE_FOR: Duration = Duration::from_millis(300);
const IDLE_SECONDS_MAX: f64 = 0.021;

/// What a monitor is like before the first attack, and how many KiB of memory it has.
type Baseline = (ProcessDescription, u64);

/// What a machine of these tests is like.
struct Machine {
    scratch: Scratch,
    netns: Netns,
    config: String,
}

impl Machine {
    /// One of `memory_mib` with `more` in its configuration, whose guest attacks `devices`, or all if none is named.
    fn new(memory_mib: u64, devices: &[&str], more: &Value) -> Self {
        let scratch = Scratch::new();
        let netns = Netns::with_tap();
        let drives: Vec<Value> = [
            ("plain", json!({"cache_type": "Writeback", "discard": true})),
            ("async", json!({"io_engine": "Async", "discard": true})),
            ("queues", json!({"num_queues": 2, "io_engine": "Async"})),
            ("overlay", json!({"overlay": {}})),
            ("readonly", json!({"is_read_only": true})),
            (
                "limited",
                json!({"rate_limiter": {"ops": {"size": 4000, "refill_time": 100}}}),
            ),
        ]
        .map(|(id, more)| drive(&scratch, id, &more))
        .into();
        let config = machine::with(
            &machine::config(&scratch.hostile_kernel(), "raw"),
            &json!({
                "drives": drives,
                "run": {"args": devices},
                "network-interfaces": machine::net(),
                "mmds-config": {"version": "V2", "network_interfaces": ["eth0"]},
                "vsock": {"guest_cid": 52, "uds_path": "v.sock"},
                "balloon": {
                    "amount_mib": 0,
                    "deflate_on_oom": false,
                    "stats_polling_interval_s": 1,
                    "free_page_hinting": true,
                    "free_page_reporting": true,
                },
                "entropy": {},
                "console": {},
                "machine-config": {"vcpu_count": 2, "mem_size_mib": memory_mib},
            }),
        );
        let config = machine::with(&config, more);
        let config = scratch.config("vm.json", &config);
        listen(&scratch.path(&format!("v.sock_{OPEN_PORT}")));
        Self {
            scratch,
            netns,
            config,
        }
    }

    fn start(&self) -> Watched<'_> {
        self.watch("vm", &["--config", &self.config])
    }

    fn watch(&self, name: &str, args: &[&str]) -> Watched<'_> {
        let logging = ["--log-path", "log", "--level", "Warning"];
        let args = [args, &logging].concat();
        let (api, process) = self.netns.within(|| Api::start(&self.scratch, name, &args));
        Watched {
            machine: self,
            api,
            process: process.with_deadline(TURN_MAX),
            next: String::new(),
            named: 0,
            attacks: 0,
            devices: 0,
        }
    }
}

/// A drive whose first blocks hold the pattern that the guest knows.
fn drive(scratch: &Scratch, id: &str, more: &Value) -> Value {
    let path = scratch.path(id);
    let pattern = (0..8192_usize).map(|at| (at * 31 + 7).to_le_bytes()[0]);
    scratch.write(id, pattern.collect::<Vec<u8>>());
    let file = std::fs::File::options().write(true).open(&path);
    file.expect("the disk").set_len(DISK_BYTES).expect("room");
    machine::with(&machine::disk(id, id, "Unsafe"), more)
}

/// Listens at `path`, and holds the last few connections.
fn listen(path: &Path) {
    let listener = UnixListener::bind(path).expect("a socket");
    thread::spawn(move || {
        let mut kept = VecDeque::new();
        while let Ok((stream, _)) = listener.accept() {
            kept.push_back(stream);
            if kept.len() > KEPT {
                kept.pop_front();
            }
        }
    });
}

/// A machine that runs, and what is known of its monitor.
struct Watched<'a> {
    machine: &'a Machine,
    api: Api,
    process: Process,
    /// The device whose turn it is.
    next: String,
    /// Devices that were named so far.
    named: usize,
    attacks: u32,
    devices: u32,
}

impl Watched<'_> {
    /// Has the guest attack device after device, up to and without `end`.
    fn attack_until(&mut self, end: &str) {
        // What only the start needed is given back by then.
        thread::sleep(SETTLED_AFTER);
        let first = (self.describe(), self.memory_kib());
        while self.next != end {
            let device = std::mem::take(&mut self.next);
            self.attacks += self.attack(&device, &first);
            self.devices += 1;
            self.wait_for_next();
        }
    }

    /// Waits until the guest says that it is ready for the next device.
    fn wait_for_next(&mut self) {
        let named = self.named;
        self.next = self.process.wait_stdout(|text| {
            let mut ready = text.lines().filter_map(|line| line.strip_prefix("ready "));
            ready.nth(named).map(str::to_owned)
        });
        self.named += 1;
    }

    /// The monitor's own facts, guest memory left out.
    fn describe(&self) -> ProcessDescription {
        let pid = self.process.pid().to_string();
        let scratch = &self.machine.scratch;
        let found = scratch
            .run(&["inspect", "--pid", &pid, "--json"])
            .with_code(OK);
        serde_json::from_str(&found.stdout).expect("a description")
    }

    /// The monitor's own memory without its program, whose pages come and go with what is done.
    fn memory_kib(&self) -> u64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", self.process.pid()));
        let mut program_kib = 0;
        let mut is_program = false;
        for line in maps.expect("the monitor's mappings").lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Pss:"), Some(kib)) if is_program => {
                    program_kib += kib.parse::<u64>().expect("a number of KiB");
                }
                // The first line of a mapping begins with its addresses.
                (Some(first), _) if first.contains('-') => {
                    is_program = line.ends_with("/lightv-vmm");
                }
                _ => {}
            }
        }
        let own_kib = details(&self.describe()).own_pss_kib;
        own_kib.saturating_sub(program_kib)
    }

    fn scrape(&self) -> Scrape {
        let answer = self.api.call("GET", "/metrics", &Value::Null);
        prometheus::parse(answer.body.as_str().expect("text"))
    }

    fn log_lines(&self) -> usize {
        let log = std::fs::read_to_string(self.machine.scratch.path("log"));
        self.process.stderr().lines().count() + log.unwrap_or_default().lines().count()
    }

    /// Has the guest attack `device`, and looks at the monitor afterwards. Gives the number of attacks.
    fn attack(&mut self, device: &str, first: &Baseline) -> u32 {
        let (log_before, counts_before) = (self.log_lines(), faults(&self.scrape(), device));
        self.api.act("SendCtrlAltDel");
        let line = self.process.wait_stdout(|text| {
            let done = format!("done {device} ");
            text.lines()
                .find(|line| line.starts_with(&done))
                .map(str::to_owned)
        });
        let stderr = self.process.stderr();
        let attacks_min = match device {
            "platform" => PLATFORM_ATTACKS_MIN,
            _ => ATTACKS_MIN,
        };
        assert!(line.ends_with("failures=0"), "{line}\n{stderr}");
        let attacks = line
            .split_once("attacks=")
            .and_then(|(_, rest)| rest.split_once(' '));
        let attacks: u32 = attacks
            .and_then(|(number, _)| number.parse().ok())
            .expect("a number");
        let told = self.process.stdout();
        let told = told
            .lines()
            .filter(|line| line.starts_with(&format!("ok {device} ")));
        assert_eq!(told.count(), attacks as usize, "{device}");
        self.check_alive(device, first);
        let lines = self.log_lines() - log_before;
        assert!(lines < LOG_LINES_MAX, "{device}: {lines} lines\n{stderr}");
        let counts = faults(&self.scrape(), device);
        assert!(
            counts > counts_before,
            "{device}: {counts} faults, {counts_before} before"
        );
        assert!(attacks >= attacks_min, "{attacks} attacks on {device}");
        println!("{attacks} attacks on {device}, all survived");
        attacks
    }

    fn check_alive(&mut self, device: &str, (first, first_kib): &Baseline) {
        let began = Instant::now();
        let _ = self.api.get("/");
        assert!(
            began.elapsed() < ANSWER_MAX,
            "{device}: {:?}",
            began.elapsed()
        );
        assert!(self.process.is_alive());
        assert!(
            !self.process.stderr().contains("panicked"),
            "{}",
            self.process.stderr()
        );
        let busy = || {
            let thread = Labels::from([("thread".to_owned(), "control".to_owned())]);
            self.scrape().value("lightv_cpu_seconds_total", &thread)
        };
        wait_for(&format!("an idle monitor after {device}"), || {
            let before = busy();
            thread::sleep(IDLE_FOR);
            (busy() - before < IDLE_SECONDS_MAX).then_some(())
        });
        let now = self.describe();
        let (threads, files) = (now.threads.len(), details(&now).open_files.len());
        assert!(
            threads.abs_diff(first.threads.len()) <= OTHERS_MAX,
            "{device}: {now:#?}"
        );
        assert!(
            files.abs_diff(details(first).open_files.len()) <= OTHERS_MAX,
            "{device}: {now:#?}"
        );
        let grown = self.memory_kib().saturating_sub(*first_kib);
        println!("{device}: {grown} KiB more, {threads} threads, {files} open files");
        assert!(grown < GROWTH_KIB_MAX, "{device}: {now:#?}");
    }
}

fn details(found: &ProcessDescription) -> &ProcessDetails {
    found.details.as_ref().expect("the tests run as root")
}

/// Mistakes of the driver of `device` that were counted; of the platform: accesses that mean nothing.
fn faults(scrape: &Scrape, device: &str) -> f64 {
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        let owned = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        owned.collect()
    };
    if device == "platform" {
        let spaces = ["mmio", "port", "doorbell", "print"];
        let of = |space| {
            scrape.value(
                "lightv_unknown_accesses_total",
                &labels(&[("space", space)]),
            )
        };
        return spaces.into_iter().map(of).fold(f64::MAX, f64::min);
    }
    let (kind, id) = device.split_once('-').unwrap_or((device, device));
    let id = match kind {
        "net" => "eth0",
        other if other == device => other,
        _ => id,
    };
    let labels = labels(&[("device", id), ("kind", kind)]);
    let names = ["guest_faults", "needs_resets", "ignored_accesses"];
    let of = |name| scrape.value(&format!("lightv_device_{name}_total"), &labels);
    names.into_iter().map(of).fold(f64::MAX, f64::min)
}

/// Has a guest attack `devices`, each in its turn.
fn check(devices: &[&str]) {
    if !has_kvm() {
        return;
    }
    // On both sides of the hole.
    let machine = Machine::new(4096, devices, &json!({}));
    let mut watched = machine.start();
    watched.wait_for_next();
    watched.attack_until("end");
    let (attacks, count) = (watched.attacks, watched.devices);
    watched.api.act("SendCtrlAltDel");
    let _ = watched.process.finish().with_code(OK);
    println!("{attacks} attacks on {count} devices, all survived");
    assert_eq!(count as usize, devices.len());
}

#[test]
fn every_attack_on_disks_of_either_engine_is_survived() {
    check(&["block-plain", "block-async", "block-queues"]);
}

#[test]
fn every_attack_on_overlays_and_on_disks_with_limits_is_survived() {
    check(&["block-overlay", "block-readonly", "block-limited"]);
}

#[test]
fn every_attack_on_network_sockets_and_console_is_survived() {
    check(&["net", "vsock", "console"]);
}

#[test]
fn every_attack_on_memory_randomness_and_the_platform_is_survived() {
    check(&["entropy", "balloon", "platform"]);
}

#[test]
fn attacks_go_on_after_a_restore_and_where_registers_are_read_by_exits() {
    if !has_kvm() {
        return;
    }
    let devices = ["block-async", "net", "entropy", "balloon", "vsock"];
    let more = json!({
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 128, "register_pages": false},
        "entropy": {"rate_limiter": {"bandwidth": {"size": 8 * MIB, "refill_time": 100}}},
    });
    let machine = Machine::new(128, &devices, &more);
    let mut watched = machine.start();
    watched.wait_for_next();
    watched.attack_until("entropy");
    watched.api.set_state("Paused");
    let files = json!({"snapshot_path": "a.state", "mem_file_path": "a.mem"});
    watched.api.put("/snapshot/create", &files);
    let Watched {
        attacks, process, ..
    } = watched;
    let _ = process.end();

    let mut clone = machine.watch("clone", &[]);
    let load = machine::with(&files, &json!({"resume_vm": true}));
    clone.api.put("/snapshot/load", &load);
    // It was said before the save.
    clone.next = "entropy".to_owned();
    clone.attack_until("end");
    clone.api.act("SendCtrlAltDel");
    let attacks = attacks + clone.attacks;
    let _ = clone.process.finish().with_code(OK);
    println!("{attacks} attacks on 5 devices, all survived, with a restore among them");
}
