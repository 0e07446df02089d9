//! Jails, looked at from outside.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::host::proc_file;

/// A user of a machine's own.
pub const AS_USER: [&str; 5] = ["--jail", "--jail-uid", "1234", "--jail-gid", "1234"];

/// What a process sees from its root on, without what is in proc.
///
/// # Panics
/// When it cannot be looked at.
#[must_use]
pub fn seen(pid: u32) -> BTreeSet<PathBuf> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let (mut seen, mut folders) = (BTreeSet::new(), vec![PathBuf::from("/")]);
    while let Some(folder) = folders.pop() {
        let outside = root.join(folder.strip_prefix("/").expect("absolute"));
        for entry in fs::read_dir(outside).expect("a folder of its") {
            let entry = entry.expect("an entry");
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("its kind").is_dir() && path != Path::new("/proc") {
                folders.push(path.clone());
            }
            seen.insert(path);
        }
    }
    seen
}

/// What it should see: `files`, the folders that they are in, devices and streams.
#[must_use]
pub fn with_folders(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let always = ["fd", "stdin", "stdout", "stderr", "kvm", "null", "net/tun"];
    let always = always.map(|name| Path::new("/dev").join(name));
    let maybe = Path::new("/dev/userfaultfd");
    let maybe = maybe.exists().then(|| maybe.to_owned());
    let files = files.iter().cloned().chain(always).chain(maybe);
    let all = files.flat_map(|file| file.ancestors().map(Path::to_owned).collect::<Vec<_>>());
    let root = Path::new("/");
    let all: BTreeSet<PathBuf> = all.filter(|path| path != root).collect();
    all.into_iter().chain(["/proc".into()]).collect()
}

/// The name space of `pid` of this kind.
///
/// # Panics
/// When it cannot be looked at.
#[must_use]
pub fn name_space(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a name space")
}

/// Looks whether `pid`, the user `uid`, is in a jail that is neither ours nor that of the process `others`, and writes no files but
/// those in `folder`.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn probe(pid: u32, uid: u32, others: u32, folder: Option<&Path>) {
    let proc = format!("/proc/{pid}/root/proc");
    let names = fs::read_dir(proc).expect("its proc").flatten();
    let names = names.map(|entry| entry.file_name().into_string().expect("text"));
    let names: BTreeSet<String> = names.collect();
    let own = ["1", "self", "thread-self"].map(str::to_owned);
    assert_eq!(
        names,
        BTreeSet::from(own),
        "processes, and nothing of the host's"
    );
    let status = proc_file(pid, "status");
    let ids = format!("{uid}\t{uid}\t{uid}\t{uid}");
    for line in [
        format!("Uid:\t{ids}"),
        format!("Gid:\t{ids}"),
        "Groups:\t ".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
    ] {
        assert!(
            status.lines().any(|found| found == line),
            "{line}: {status}"
        );
    }
    for kind in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        let line = format!("Cap{kind}:\t0000000000000000");
        assert!(status.contains(&line), "{line}: {status}");
    }
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let own = name_space(pid, kind);
        for other in [others, std::process::id()] {
            assert_ne!(own, name_space(other, kind), "{kind}");
        }
    }
    let sockets = proc_file(pid, "net/unix");
    let is_own = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // A fork has a connection to its memory. Where others may connect (SO_ACCEPTCON) there is a path.
        let is_connection = fields[3] != "00010000";
        let parent = fields.get(7).and_then(|path| Path::new(path).parent());
        folder.is_some_and(|folder| is_connection || parent == Some(folder))
    };
    let others = sockets.lines().skip(1).filter(|line| !is_own(line));
    assert_eq!(others.count(), 0, "a heading, and its own: {sockets}");
    assert_eq!(
        proc_file(pid, "net/dev").lines().count(),
        3,
        "lo, and a heading of two lines"
    );
    for mount in proc_file(pid, "mountinfo").lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let (at, options) = (fields[4], fields[5]);
        assert!(
            options.contains("nosuid") && options.contains("noexec"),
            "{mount}"
        );
        let is_written = at.starts_with("/dev/") || folder == Some(Path::new(at));
        assert!(is_written || options.starts_with("ro,"), "{mount}");
    }
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    for fd in fds.flatten() {
        let is_folder = fs::metadata(fd.path()).is_ok_and(|found| found.is_dir());
        assert!(!is_folder, "a way out: {:?}", fs::read_link(fd.path()));
    }
}
