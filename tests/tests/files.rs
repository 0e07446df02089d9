//! What stands at a path that something is to be written to: the table of docs/files.md, row by row.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;

use lightv_api::exit::OK;
use lightv_tests::api::{Answer, Api};
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Finished, Process, after_script, run, wait_for};
use lightv_tests::prometheus::{Labels, parse};
use lightv_tests::scratch::Scratch;
use lightv_tests::{disk, machine};
use rustix::fs::{CWD, FileType, makedev, mknodat};
use serde_json::{Value, json};

/// What stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Free,
    File,
    LinkToFile,
    LinkToNothing,
    LinkToNull,
    Folder,
    Fifo,
    Null,
    Full,
    Socket,
    /// Nothing, in a folder that is not there.
    NoFolder,
    /// Nothing, in a folder where nobody makes files.
    NoRight,
}

use Kind::{
    Fifo, File, Folder, Free, Full, LinkToFile, LinkToNothing, LinkToNull, NoFolder, NoRight, Null,
    Socket,
};

const KINDS: [Kind; 12] = [
    Free,
    File,
    LinkToFile,
    LinkToNothing,
    LinkToNull,
    Folder,
    Fifo,
    Null,
    Full,
    Socket,
    NoFolder,
    NoRight,
];

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// Bytes as they come: log, metrics, serial port, timings.
    Stream,
    /// A file that is there whole or not at all: images, snapshots, exports, what is merged.
    Whole,
    /// A socket that is listened on.
    Socket,
    /// A delta over a disk, which is kept.
    Delta,
}

const OTHER_FILE: &str = "not a regular file";
/// In either of the kernel's words.
const NO_RIGHT: &str = "Permission denied";
const OTHER_SOCKET: &str = "a file that is no socket is there";

/// The word that a refusal must have; `None` where it is granted.
const fn expected(output: Output, kind: Kind) -> Option<&'static str> {
    match (output, kind) {
        (_, Free) | (Output::Whole, File) => None,
        (_, NoFolder) => Some("No such file"),
        (_, NoRight) => Some(NO_RIGHT),
        (Output::Stream, Folder) => Some("Is a directory"),
        (Output::Stream, Kind::Socket) => Some("No such device or address"),
        (Output::Stream, _) => None,
        (Output::Whole, Folder) => Some("directory"),
        (Output::Whole, _) => Some(OTHER_FILE),
        (Output::Socket, Kind::Socket) => Some("a process listens on it"),
        (Output::Socket, _) => Some(OTHER_SOCKET),
        (Output::Delta, LinkToNothing) => None,
        (Output::Delta, File | LinkToFile) => Some("not a delta"),
        (Output::Delta, Folder) => Some("Is a directory"),
        (Output::Delta, Kind::Socket) => Some("No such device or address"),
        (Output::Delta, LinkToNull | Fifo | Null | Full) => Some("not a regular file"),
    }
}

/// Holds nothing of a guest's.
const PUBLIC: &str = "kernel";

/// What is somebody's.
const OTHERS: &str = "somebody's";

/// A folder in which each kind stands at a path of its own.
struct Place {
    scratch: Scratch,
    _listener: UnixListener,
}

impl Place {
    fn new() -> Self {
        let scratch = Scratch::new();
        let path = |kind: Kind| scratch.path(&name(Output::Whole, kind));
        let link = |target: &str, kind: Kind| symlink(target, path(kind)).expect("a link");
        let node = |kind: Kind, file: FileType, minor: u32| {
            let device = makedev(1, minor);
            mknodat(CWD, path(kind), file, 0o600.into(), device).expect("a special file");
        };
        scratch.write("target", OTHERS);
        link("target", LinkToFile);
        link("nowhere", LinkToNothing);
        link("/dev/null", LinkToNull);
        fs::create_dir(path(Folder)).expect("a folder");
        node(Fifo, FileType::Fifo, 0);
        node(Null, FileType::CharacterDevice, 3);
        node(Full, FileType::CharacterDevice, 7);
        let listener = UnixListener::bind(path(Socket)).expect("a socket");
        fs::write(path(File), OTHERS).expect("a file");
        Self {
            scratch,
            _listener: listener,
        }
    }

    /// Writes `output` to a path of each kind by `write`, which gives what it was refused with.
    fn check(&self, what: &str, output: Output, write: impl Fn(&str) -> Option<String>) {
        for kind in KINDS {
            let before = self.scratch.listing();
            let name = name(output, kind);
            let refused = write(&name);
            println!("{what} as {kind:?}: {refused:?}");
            match (expected(output, kind), refused) {
                (None, None) => self.clean_up(what, output, kind),
                (Some(word), Some(text)) => {
                    assert!(text.contains(word), "{what} as {kind:?}: {word}: {text}");
                    // Of a file that cannot be made some name the folder.
                    let shown = match kind {
                        NoFolder | NoRight => {
                            name.rsplit_once('/').map_or("", |(folder, _)| folder)
                        }
                        _ => &name,
                    };
                    assert!(text.contains(shown), "{what}: {text}");
                    self.scratch.assert_same_files(&before);
                }
                (expected, refused) => panic!("{what} as {kind:?}: {refused:?}, not {expected:?}"),
            }
            assert_eq!(
                self.scratch.read("target"),
                OTHERS.as_bytes(),
                "{what} as {kind:?}"
            );
            assert!(!self.scratch.path("nowhere").exists(), "{what} as {kind:?}");
        }
    }

    /// Looks at what was written, and makes it as it was before.
    fn clean_up(&self, what: &str, output: Output, kind: Kind) {
        let path = self.scratch.path(&name(output, kind));
        let written = match kind {
            Free | File => path,
            LinkToFile => self.scratch.path("target"),
            LinkToNothing => self.scratch.path("nowhere"),
            _ => return,
        };
        let found = fs::symlink_metadata(&written).expect("what was written");
        // A socket goes with its process.
        assert!(found.is_file() && found.len() > 0, "{what} as {kind:?}");
        let is_new = matches!(kind, Free | LinkToNothing) || output == Output::Whole;
        if is_new && what != PUBLIC {
            assert_eq!(
                found.permissions().mode() & 0o777,
                0o600,
                "{what} as {kind:?}"
            );
        }
        match kind {
            Free | LinkToNothing => fs::remove_file(&written).expect("to be removed"),
            _ => fs::write(&written, OTHERS).expect("to be written"),
        }
    }
}

/// Where it stands. What must not be replaced is the host's devices last of all: where that would show, they are ours.
fn name(output: Output, kind: Kind) -> String {
    let is_opened = matches!(output, Output::Stream | Output::Delta);
    match kind {
        Null if is_opened => "/dev/null".to_owned(),
        Full if is_opened => "/dev/full".to_owned(),
        NoFolder => "no/where".to_owned(),
        NoRight => "/sys/lightv".to_owned(),
        other => format!("out-{other:?}"),
    }
}

/// One error for the two that a folder gives in which nobody makes anything.
fn plain(text: &str) -> String {
    text.replace("Operation not permitted", NO_RIGHT)
}

fn refusal(finished: &Finished) -> Option<String> {
    assert!(!finished.was_killed, "{finished:?}");
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
    (finished.code != 0).then(|| plain(&finished.stderr))
}

fn refusal_of(answer: &Answer) -> Option<String> {
    (answer.status != 204).then(|| plain(answer.fault()))
}

#[test]
fn logs_metrics_timings_and_the_serial_port_go_where_bytes_can_go() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let scratch = &place.scratch;
    let config = scratch.config(
        "vm.json",
        &machine::config(&scratch.guest_kernel(), "hello"),
    );
    let start = |option: &str, path: &str| {
        let option = format!("{option}={path}");
        let finished = run(&mut scratch.vmm(&["--config", &config, &option]));
        let is_run = finished.stdout == "Hello, world!\n";
        assert_eq!(is_run, finished.code == 0, "{finished:?}");
        finished
    };
    place.check("log", Output::Stream, |path| {
        refusal(&start("--log-path", path))
    });
    place.check("metrics", Output::Stream, |path| {
        refusal(&start("--metrics-path", path))
    });
    let (api, process) = Api::start(scratch, "vm", &[]);
    // Nothing is printed there: only that it is opened is seen.
    place.check("serial", Output::Stream, |path| {
        let refused = refusal_of(&api.call("PUT", "/serial", &json!({"serial_out_path": path})));
        if refused.is_none() && matches!(path, "out-Free" | "out-LinkToNothing") {
            fs::write(scratch.path(path), "the guest's").expect("what was made");
        }
        refused
    });
    let _ = process.end();
    // The guest has run already when there are timings: they are never a reason not to.
    for kind in KINDS {
        let path = name(Output::Stream, kind);
        let finished = start("--timings", &path).with_code(OK);
        let word = match kind {
            // Nobody would read them once the process has ended.
            Fifo => Some("No such device or address"),
            Full => Some("No space left"),
            kind => expected(Output::Stream, kind),
        };
        println!("timings as {kind:?}: {:?}", finished.stderr);
        match word {
            None => {
                assert_eq!(finished.stderr, "", "{kind:?}");
                place.clean_up("timings", Output::Stream, kind);
            }
            Some(word) => assert!(
                finished.stderr.contains("cannot write the timings")
                    && finished.stderr.contains(word),
                "{kind:?}: {finished:?}"
            ),
        }
    }
}

#[test]
fn images_kernels_and_what_is_merged_are_regular_files_and_replace_no_others() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let scratch = &place.scratch;
    let config = scratch.config(
        "vm.json",
        &machine::config(&scratch.guest_kernel(), "hello"),
    );
    // An image replaces an image, and no other file.
    let image = |path: &str, save: &dyn Fn() -> Finished| {
        let refused = refusal(&save());
        if path != name(Output::Whole, File) {
            return refused;
        }
        assert!(
            refused.is_some_and(|text| text.contains("not a LightV image")),
            "{path}"
        );
        fs::copy(scratch.path("old.lv"), scratch.path(path)).expect("a copy");
        refusal(&save())
    };
    let _ = scratch
        .run(&["build", "hello", "-o", "old.lv"])
        .with_code(OK);
    place.check("saved image", Output::Whole, |path| {
        image(path, &|| {
            run(&mut scratch.vmm(&["--config", &config, "--save", path]))
        })
    });
    // With --force it replaces any file, and nothing that is none.
    place.check("built image", Output::Whole, |path| {
        refusal(&scratch.run(&["build", "hello", "--force", "-o", path]))
    });
    place.check("kernel", Output::Whole, |path| {
        refusal(&scratch.run(&["kernel", "-o", path]))
    });
    for file in ["base.mem", "diff.mem"] {
        disk::create(&scratch.path(file), 1 << 20);
    }
    place.check("merged memory", Output::Whole, |path| {
        refusal(&scratch.run(&["snapshot", "merge", "base.mem", "diff.mem", "-o", path]))
    });
}

/// A configuration of an idle machine with a disk that has an overlay at `delta`.
fn with_overlay(scratch: &Scratch, delta: &str) -> String {
    let mut drive = machine::disk("d", "base", "Writeback");
    drive["overlay"] = json!({"path": delta});
    let config = machine::config(&scratch.guest_kernel(), "idle");
    let more = json!({"drives": [drive], "machine-config": {"mem_size_mib": 32}});
    scratch.config("overlay.json", &machine::with(&config, &more))
}

#[test]
fn snapshots_and_exports_are_regular_files_and_a_delta_is_a_delta() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let scratch = &place.scratch;
    disk::create(&scratch.path("base"), 1 << 20);
    let config = with_overlay(scratch, "own.delta");
    let (api, process) = Api::start(scratch, "vm", &["--config", &config]);
    api.set_state("Paused");
    let save = |state: &str, memory: &str| {
        let body = json!({"snapshot_path": state, "mem_file_path": memory});
        refusal_of(&api.call("PUT", "/snapshot/create", &body))
    };
    assert_eq!(save("s", "m"), None);
    place.check("memory", Output::Whole, |path| save("s", path));
    place.check("state", Output::Whole, |path| {
        match name(Output::Whole, File) == path {
            // A state replaces a state, as an image does an image.
            true => {
                assert!(save(path, "m").is_some_and(|text| text.contains("not a LightV image")));
                fs::copy(scratch.path("s"), scratch.path(path)).expect("a copy");
                save(path, "m")
            }
            false => save(path, "m"),
        }
    });
    place.check("export", Output::Whole, |path| {
        let body = json!({"action": "Export", "path": path});
        refusal_of(&api.call("PUT", "/drives/d/overlay", &body))
    });
    let _ = process.end();
    place.check("merged disk", Output::Whole, |path| {
        refusal(&scratch.run(&["disk", "merge", "base", "own.delta", "-o", path]))
    });
    place.check("delta", Output::Delta, |path| {
        let before = scratch.listing();
        let config = with_overlay(scratch, path);
        let args = ["--config", &config, "--api-sock", "delta.sock"];
        let mut process = Process::start(&mut scratch.vmm(&args));
        let api = Api::at(scratch.path("delta.sock"));
        // It serves, or it is refused.
        while process.is_alive() {
            if api.try_call("GET", "/", "").is_ok() {
                assert_eq!(process.end().code, 143);
                return None;
            }
        }
        let refused = refusal(&process.finish());
        scratch.assert_same_files(&before);
        refused
    });
}

#[test]
fn a_socket_replaces_nothing_but_a_socket_that_nobody_listens_on() {
    let place = Place::new();
    let scratch = &place.scratch;
    drop(UnixListener::bind(scratch.path("stale")).expect("a socket"));
    let serve = |path: &str| {
        let mut process = Process::start(&mut scratch.vmm(&["--api-sock", path]));
        let api = Api::at(scratch.path(path));
        while process.is_alive() {
            // Another's socket answers nobody.
            let is_ours = path != name(Output::Socket, Socket);
            if is_ours && api.try_call("GET", "/", "").is_ok() {
                assert_eq!(process.end().code, 143);
                return None;
            }
        }
        refusal(&process.finish())
    };
    assert_eq!(serve("stale"), None);
    let check = |what: &str, write: &dyn Fn(&str) -> Option<String>| {
        for kind in KINDS {
            let before = scratch.listing();
            let name = name(Output::Socket, kind);
            let refused = write(&name);
            println!("{what} as {kind:?}: {refused:?}");
            match (expected(Output::Socket, kind), refused) {
                (None, None) => {}
                (Some(word), Some(text)) => assert!(
                    text.contains(word) && text.contains(&name),
                    "{what} as {kind:?}: {word}: {text}"
                ),
                (expected, refused) => panic!("{what} as {kind:?}: {refused:?}, not {expected:?}"),
            }
            scratch.assert_same_files(&before);
            assert_eq!(scratch.read("target"), OTHERS.as_bytes());
        }
    };
    check("API socket", &serve);
    let (api, process) = Api::start(scratch, "vm", &[]);
    // The next one takes the place of the one that is held.
    api.put("/vsock", &json!({"guest_cid": 52, "uds_path": "held"}));
    check("vsock socket", &|path: &str| {
        let body: Value = json!({"guest_cid": 52, "uds_path": path});
        let refused = refusal_of(&api.call("PUT", "/vsock", &body));
        api.put("/vsock", &json!({"guest_cid": 52, "uds_path": "held"}));
        refused
    });
    let _ = process.end();
}

#[test]
fn a_runtime_directory_that_is_none_is_told_of_and_not_used() {
    let place = Place::new();
    let scratch = &place.scratch;
    fs::create_dir(scratch.path("open")).expect("a folder");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(scratch.path("open"), mode).expect("a mode");
    // Of our own and closed to others, but by another name.
    symlink("run", scratch.path("link")).expect("a link");
    let kinds = KINDS.map(|kind| name(Output::Whole, kind));
    let is_there = |path: &&str| scratch.path(path).symlink_metadata().is_ok();
    let there = kinds.iter().map(String::as_str).filter(is_there);
    // A folder of this user's is made closed, and is one that can be used.
    let folder = name(Output::Whole, Folder);
    let cases = there.filter(|path| *path != folder).chain(["open", "link"]);
    let mut count = 0;
    for path in cases {
        let before = scratch.listing();
        let mut command = scratch.vmm(&["--api-sock", "vm.sock"]);
        command.env("LIGHTV_RUNTIME_DIR", scratch.path(path));
        let process = Process::start(&mut command);
        let told = process.wait_stderr(|text| {
            let line = text.lines().find(|line| line.contains("untime directory"));
            line.map(str::to_owned)
        });
        println!("{told}");
        assert!(told.contains(path), "{told}");
        let api = Api::at(scratch.path("vm.sock"));
        assert_eq!(api.get("/")["state"], "Not started");
        assert_eq!(process.end().code, 143);
        scratch.assert_same_files(&before);
        count += 1;
    }
    assert_eq!(count, 10);
}

/// The lines of a log, which must all be whole.
fn log_lines(bytes: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(bytes);
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let lines = text.lines().map(serde_json::from_str);
    lines.map(|line| line.expect("a whole line")).collect()
}

fn dropped(api: &Api) -> f64 {
    let answer = api.call("GET", "/metrics", &Value::Null);
    let scrape = parse(answer.body.as_str().expect("text"));
    scrape.value("lightv_log_lines_dropped_total", &Labels::new())
}

#[test]
fn lines_that_a_full_disk_does_not_take_are_counted_and_the_rest_is_whole() {
    const CALLS: usize = 1000;
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("small")).expect("a folder");
    let flags = [
        "--api-sock",
        "vm.sock",
        "--log-path",
        "small/log",
        "--log-format",
        "json",
    ];
    let vmm = scratch.vmm(&flags);
    let mount = "mount -t tmpfs -o size=64k none small";
    let process = Process::start(&mut after_script(&["unshare", "--mount"], mount, &vmm));
    let api = Api::at(scratch.path("vm.sock"));
    wait_for("the API", || api.try_call("GET", "/", "").ok());
    for _ in 0..CALLS {
        let _ = api.get("/");
    }
    let missing = dropped(&api);
    assert!(missing > 0.0);
    // As the process sees it.
    let log = fs::read(format!("/proc/{}/cwd/small/log", process.pid())).expect("the log");
    let (whole, cut) = log.split_at(
        log.iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1),
    );
    let lines = log_lines(whole).len();
    // A part of one line is what there was room for last.
    assert!(
        lines > 100 && lines < CALLS && cut.len() < 300,
        "{lines} lines and {cut:?}"
    );
    let _ = process.end();
    let (api, process) = Api::start(&scratch, "vm", &["--log-path", "/dev/full"]);
    for _ in 0..20 {
        let _ = api.get("/");
    }
    assert!(dropped(&api) >= 20.0);
    let _ = process.end();
}

#[test]
fn a_log_that_is_moved_away_is_written_on_until_it_is_named_anew() {
    let scratch = Scratch::new();
    let flags = ["--log-path", "log", "--log-format", "json"];
    let (api, process) = Api::start(&scratch, "vm", &flags);
    let _ = api.get("/");
    fs::rename(scratch.path("log"), scratch.path("log.1")).expect("to be moved");
    let before = log_lines(&scratch.read("log.1")).len();
    let _ = api.get("/version");
    wait_for("a line where it is now", || {
        let lines = log_lines(&scratch.read("log.1"));
        (lines.len() > before).then_some(())
    });
    assert!(!scratch.path("log").exists());
    api.put("/logger", &json!({"log_path": "log", "format": "json"}));
    let _ = api.get("/version");
    wait_for("a line in the new file", || {
        (!log_lines(&scratch.read("log")).is_empty()).then_some(())
    });
    let moved = scratch.read("log.1");
    fs::remove_file(scratch.path("log")).expect("to be removed");
    let _ = api.get("/version");
    assert_eq!(api.get("/")["id"], "vm");
    assert_eq!(scratch.read("log.1"), moved);
    let _ = process.end();
}
