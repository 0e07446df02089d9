//! What must not get out: of the host into an image, of a guest into a log, of either to another user; and that a disk is what
//! its configuration says, whatever its guest writes on it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use lightv_api::exit::{BAD_ARGUMENTS, OK};
use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Process, after_script, run, wait_for};
use lightv_tests::prometheus::{Labels, parse};
use lightv_tests::scratch::Scratch;
use lightv_tests::strace::traced;
use lightv_tests::{disk, machine};
use serde_json::{Value, json};

/// Stands nowhere else.
const MARKER: &str = "xq7-Marker-5jZ";

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// The same for a file of a guest's memory, by a tool that is quick at it.
fn file_holds(scratch: &Scratch, file: &str, text: &str) -> bool {
    let mut grep = scratch.command(
        "grep",
        &["--quiet", "--text", "--fixed-strings", "--", text, file],
    );
    let finished = run(&mut grep);
    assert!(finished.code < 2, "{finished:?}");
    finished.code == 0
}

#[test]
fn an_image_holds_nothing_of_the_hosts_environment_flags_or_stack() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let kernel = scratch.guest_kernel();
    let mut config = machine::config(&kernel, "tick -- 0 5");
    config["run"] = json!({"args": ["0", "5", "for-the-guest"]});
    config["machine-config"] = json!({"mem_size_mib": 32});
    let config = scratch.config("vm.json", &config);
    let marked = |suffix: &str| format!("{MARKER}-{suffix}");
    let outputs = [
        marked("log"),
        marked("metrics"),
        marked("timings"),
        marked("vm.sock"),
    ];
    let [log, metrics, timings, socket] = &outputs;
    let timings = format!("--timings={timings}");
    // Its name, and where all is that is the process's and not the machine's.
    let flags = [
        "--config",
        &config,
        "--log-path",
        log,
        "--level",
        "Trace",
        "--metrics-path",
        metrics,
        &timings,
        "--id",
        MARKER,
    ];
    let secret = |args: &[&str]| {
        let mut command = scratch.vmm(&[&flags, args].concat());
        command.env("SECRET", MARKER).env(MARKER, "x");
        command
    };
    let _ = run(&mut secret(&["--save", "x.lv"])).with_code(OK);
    let process = Process::start(&mut secret(&["--api-sock", socket]));
    let api = Api::at(scratch.path(socket));
    process.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    api.set_state("Paused");
    for (kind, name) in [("Full", "full"), ("Diff", "diff")] {
        let body = json!({"snapshot_type": kind, "snapshot_path": format!("{name}.state"), "mem_file_path": format!("{name}.mem")});
        api.put("/snapshot/create", &body);
    }
    let _ = process.end();
    assert!(
        holds(&scratch.read(log), MARKER),
        "the log names the machine"
    );
    for file in ["x.lv", "full.state", "full.mem", "diff.state", "diff.mem"] {
        let bytes = fs::metadata(scratch.path(file)).expect("a file").len();
        assert!(bytes > 1000, "{file}");
        let holds = |text: &str| file_holds(&scratch, file, text);
        assert!(!holds(MARKER), "{file} has the marker");
        for variable in ["LIGHTV_RUNTIME_DIR", "XDG_CACHE_HOME", "PATH="] {
            assert!(!holds(variable), "{file} has {variable}");
        }
    }
    // Looking for what is there finds it: what the guest was given, and its memory.
    for (file, text) in [
        ("x.lv", "for-the-guest"),
        ("x.lv", "app=tick"),
        ("full.state", "for-the-guest"),
        ("full.mem", "app=tick"),
    ] {
        assert!(file_holds(&scratch, file, text), "{file} has no {text}");
    }
}

/// `command`, whose umask takes no right away.
fn without_umask(command: &Command) -> Command {
    after_script(&["env"], "umask 000", command)
}

/// Modes of what is in `folder`.
fn modes(folder: &Path) -> BTreeMap<String, u32> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let modes = entries.map(|entry| {
        let mode = entry.metadata().expect("a file").permissions().mode();
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, mode & 0o777)
    });
    modes.collect()
}

/// Runs a machine that writes all that one can, as `made-…`; gives the modes in the runtime directory.
fn make_files(scratch: &Scratch) -> BTreeMap<String, u32> {
    disk::create(&scratch.path("base"), 1 << 20);
    let mut drive = machine::disk("d", "base", "Writeback");
    drive["overlay"] = json!({"path": "made-delta"});
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "tick -- 0 5"),
        &json!({"drives": [drive], "machine-config": {"mem_size_mib": 32, "track_dirty_pages": true}}),
    );
    let config = scratch.config("vm.json", &config);
    let flags = "--api-sock vm.sock --log-path made-log --metrics-path made-metrics --timings=made-timings --config";
    let flags: Vec<&str> = flags.split(' ').chain([config.as_str()]).collect();
    let process = Process::start(&mut without_umask(&scratch.vmm(&flags)));
    let api = Api::at(scratch.path("vm.sock"));
    process.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    wait_for("its record", || {
        let record = scratch.path(&format!("run/{}.json", process.pid()));
        record.exists().then_some(())
    });
    api.set_state("Paused");
    for kind in ["Full", "Diff"] {
        let body = json!({"snapshot_type": kind, "snapshot_path": format!("made-{kind}.state"), "mem_file_path": format!("made-{kind}.mem")});
        api.put("/snapshot/create", &body);
    }
    let export = json!({"action": "Export", "path": "made-export"});
    api.put("/drives/d/overlay", &export);
    let records = modes(&scratch.path("run"));
    let _ = process.end();
    records
}

#[test]
fn what_is_written_is_its_owners_alone_whatever_the_umask() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let mut found = make_files(&scratch);
    for line in [
        "snapshot merge made-Full.mem made-Diff.mem -o made-memory",
        "disk merge base made-delta -o made-disk",
        "build hello -o made-image",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let mut command = without_umask(&scratch.lightv(&words));
        let _ = run(&mut command).with_code(OK);
    }
    found.extend(modes(scratch.folder()));
    found.retain(|name, _| name.starts_with("made-") || name.ends_with(".json"));
    found.remove("vm.json");
    println!("{found:?}");
    assert_eq!(found.len(), 13, "{found:?}");
    for (name, mode) in found {
        assert_eq!(mode, 0o600, "{name}: {mode:o}");
    }
}

/// Eight letters, as one number that a guest writes.
const WORD: &[u8; 8] = b"s3cr3tZq";

/// A guest that has [`WORD`] in its memory and writes it wherever nothing is, or what is there refuses it; then it sleeps.
fn code_that_misbehaves() -> Vec<u8> {
    let mut code = vec![0x48, 0xb8]; // mov rax, WORD
    code.extend(WORD);
    for address in [
        0xc000_0008_u32, // read-only fields of the control device
        0xc000_0820,     // MARK, of another width
        0xc000_0808,     // PRINT, of a buffer that is nowhere
        0xc000_1000,     // its arguments
        0xc001_0000,     // registers of a device: its magic, a queue's size, past its configuration
        0xc001_0038,
        0xc001_0ff8,
        0xd000_0000, // the boot timer's place
        0xdfff_0000, // nothing
    ] {
        code.push(0xbb); // mov ebx, address
        code.extend(address.to_le_bytes());
        code.extend([0x48, 0x89, 0x03]); // mov [rbx], rax
        code.extend([0x89, 0x03]); // mov [rbx], eax
        code.extend([0x88, 0x03]); // mov [rbx], al
    }
    // Ports where nothing is; each byte of it.
    code.extend([0x66, 0xba, 0x00, 0x05]); // mov dx, 0x500
    code.extend([0xef, 0xee]); // out dx, eax; out dx, al
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    code
}

#[test]
fn nothing_that_a_guest_writes_where_it_should_not_is_logged() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("kernel", machine::elf(&code_that_misbehaves()));
    disk::create(&scratch.path("disk"), 1 << 20);
    let more = json!({"drives": [machine::disk("d", "disk", "Unsafe")], "entropy": {}, "balloon": {"amount_mib": 0, "deflate_on_oom": false}});
    let config = machine::with(&machine::config("kernel", ""), &more);
    let config = scratch.config("vm.json", &config);
    let flags = "--log-path log --level Trace --metrics-path metrics --config";
    let flags: Vec<&str> = flags.split(' ').chain([config.as_str()]).collect();
    let (api, process) = Api::start(&scratch, "vm", &flags);
    let counted = |space: &str| {
        let answer = api.call("GET", "/metrics", &Value::Null);
        let labels = Labels::from([("space".to_owned(), space.to_owned())]);
        let scrape = parse(answer.body.as_str().expect("text"));
        scrape.value("lightv_unknown_accesses_total", &labels)
    };
    // Ports come last.
    wait_for("its last access", || (counted("port") >= 5.0).then_some(()));
    for space in ["mmio", "doorbell", "print"] {
        assert!(counted(space) > 0.0, "{space}");
    }
    let finished = process.end();
    let (metrics, log) = (scratch.read("metrics"), scratch.read("log"));
    assert!(holds(&log, "GET /metrics"), "there is a log");
    let number = u64::from_le_bytes(*WORD);
    let low = number & u64::from(u32::MAX);
    for text in [
        String::from_utf8_lossy(WORD).into_owned(),
        String::from_utf8_lossy(&WORD[..4]).into_owned(),
        format!("{number:x}"),
        format!("{low:x}"),
        number.to_string(),
        low.to_string(),
        format!("{:?}", WORD),
    ] {
        for (name, bytes) in [
            ("log", &log[..]),
            ("metrics", &metrics),
            ("stderr", finished.stderr.as_bytes()),
        ] {
            assert!(
                !holds(bytes, &text),
                "{name} has {text}: {}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
    // But for what was asked over the API there is next to nothing.
    let log = String::from_utf8(log).expect("text");
    let lines = log.lines().filter(|line| !line.contains("GET /"));
    assert!(lines.count() < 20, "{log}");
}

/// Version 2 of qcow2, with a file of the host's below it.
fn qcow2() -> Vec<u8> {
    let below = b"/etc/passwd";
    let mut image = b"QFI\xfb\0\0\0\x02".to_vec();
    image.extend(0x68_u64.to_be_bytes());
    image.extend(u32::try_from(below.len()).expect("a length").to_be_bytes());
    // Clusters of 64 KiB, 1 GiB, no encryption, tables after the header.
    image.extend(16_u32.to_be_bytes());
    image.extend((1_u64 << 30).to_be_bytes());
    image.extend([0; 4]);
    image.extend(16_u32.to_be_bytes());
    image.extend(0x1_0000_u64.to_be_bytes());
    image.extend(0x2_0000_u64.to_be_bytes());
    image.extend(1_u32.to_be_bytes());
    image.resize(0x68, 0);
    image.extend(below);
    image
}

#[test]
fn a_disk_that_looks_like_another_format_is_its_bytes_and_leads_nowhere() {
    if !has_kvm() {
        return;
    }
    const BYTES: usize = 1 << 20;
    let scratch = Scratch::new();
    let vhd = [b"conectix\0\0\0\x02".as_slice(), &[0; 500]].concat();
    let vmdk = b"# Disk DescriptorFile\nversion=1\nparentFileNameHint=\"/etc/passwd\"\ncreateType=\"monolithicFlat\"\n";
    for (name, header) in [("qcow2", qcow2()), ("vhd", vhd), ("vmdk", vmdk.to_vec())] {
        let mut bytes = header.clone();
        bytes.resize(BYTES, 0);
        scratch.write("disk", &bytes);
        let image = format!("{name}.lv");
        // The image is made with it, a boot and a restore have it.
        let build = ["build", "blk", "--disk", "d=disk", "--force", "-o", &image];
        for args in [
            &build[..],
            &["run", "--cold", &image, "--", "edge"],
            &["run", &image, "--", "edge"],
        ] {
            let log = scratch.path("strace.log");
            let command = scratch.lightv(args);
            let finished = run(&mut traced(&command, "%file", &log, &[])).with_code(OK);
            if args[0] == "run" {
                // As many sectors as the file has, not those that the header speaks of.
                let sectors = format!("capacity_sectors={} ", BYTES / 512);
                assert!(finished.stdout.contains(&sectors), "{name}: {finished:?}");
            }
            let log = fs::read_to_string(&log).expect("a log");
            assert!(
                log.contains("disk\"") && !log.contains("passwd"),
                "{name}: {log}"
            );
        }
        let found = scratch.read("disk");
        assert!(found.len() == BYTES && found.starts_with(&header), "{name}");
        // The guest has written its last sector, and no more.
        assert!(
            found[..BYTES - 4096] == bytes[..BYTES - 4096] && found != bytes,
            "{name}"
        );
    }
    // Nor is there a way to ask for it.
    let config = machine::with(
        &machine::config(&scratch.guest_kernel(), "hello"),
        &json!({"drives": [{"drive_id": "d", "path_on_host": "disk", "format": "qcow2"}]}),
    );
    let config = scratch.config("vm.json", &config);
    let finished = run(&mut scratch.vmm(&["--config", &config]));
    finished.assert_refused(lightv_api::exit::BAD_CONFIG, &["format"]);
    let _ = run(&mut scratch.vmm(&["--config", &config, "--disk-format", "qcow2"]))
        .with_code(BAD_ARGUMENTS);
}
