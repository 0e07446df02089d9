use super::*;

fn limits(texts: &[&str]) -> Vec<Limit> {
    let texts = texts.iter();
    texts.map(|text| text.parse().expect(text)).collect()
}

/// A folder that looks like a tree of version 2 with the controllers memory and pids, and has the group `vms/one` already,
/// for no file comes by itself here.
fn version_2() -> (tempfile::TempDir, Trees) {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    fs::create_dir_all(root.join("vms/one")).expect("the group");
    fs::write(root.join("cgroup.controllers"), "cpuset memory pids\n").expect("a file");
    for group in ["", "vms"] {
        fs::write(root.join(group).join("cgroup.subtree_control"), "pids\n").expect("a file");
    }
    for file in ["memory.max", "pids.max", "cgroup.procs"] {
        fs::write(root.join("vms/one").join(file), "").expect("a file");
    }
    let mounts = format!(
        "tmpfs / tmpfs rw 0 0\ncgroup2 {} cgroup2 rw 0 0\n",
        root.display()
    );
    let trees = Trees::parse(&mounts);
    (folder, trees)
}

fn plan<'a>(limits: &'a [Limit], version: Option<Version>) -> Plan<'a> {
    Plan {
        version,
        parent: Path::new("vms"),
        name: "one",
        limits,
    }
}

#[test]
fn version_2_is_given_its_controllers_and_values() {
    let (folder, trees) = version_2();
    let read = |path: &str| fs::read_to_string(folder.path().join(path)).expect(path);
    let limits = limits(&["pids.max=7", "memory.max=5000"]);
    let groups = Cgroups::make(&trees, plan(&limits, None)).expect("groups");
    groups.enter().expect("a way in");
    // Files keep what is not written over: a kernel's are written as a whole.
    assert_eq!(read("cgroup.subtree_control"), "+memory");
    assert_eq!(read("vms/cgroup.subtree_control"), "+memory");
    assert_eq!(read("vms/one/memory.max"), "5000");
    assert_eq!(read("vms/one/pids.max"), "7");
    assert_eq!(read("vms/one/cgroup.procs"), "0");
    drop(groups);
    assert!(
        folder.path().join("vms/one").is_dir(),
        "it was there before"
    );
}

#[test]
fn what_the_host_does_not_have_is_named() {
    let (_folder, trees) = version_2();
    let error = |text: &str, version| {
        let limits = limits(&[text]);
        let made = Cgroups::make(&trees, plan(&limits, version));
        made.expect_err(text).to_string()
    };
    let no_controller = error("io.max=8:0 rbps=1", None);
    for word in ["io.max", "controller io", "cpuset, memory, pids"] {
        assert!(no_controller.contains(word), "{no_controller}");
    }
    let no_version = error("memory.limit_in_bytes=1", Some(Version::V1));
    assert!(no_version.contains("version 1"), "{no_version}");
    let no_file = error("memory.nonsense=1", None);
    for word in ["vms/one/memory.nonsense", "no such file"] {
        assert!(no_file.contains(word), "{no_file}");
    }
}

#[test]
fn groups_that_were_made_go_and_kept_ones_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let mounts = format!(
        "cgroup {} cgroup rw,relatime,pids 0 0\n",
        folder.path().display()
    );
    let trees = Trees::parse(&mounts);
    let limits = limits(&["pids.max=7"]);
    // The group has no such file: what was made for it is gone again.
    let refused = Cgroups::make(&trees, plan(&limits, Some(Version::V1)));
    assert!(refused.is_err());
    assert!(!folder.path().join("vms").exists());
    let mut made = Cgroups {
        made: Vec::new(),
        doors: Vec::new(),
    };
    let tree = trees.0[0].clone();
    made.make_folders(&tree, Path::new("vms/one"))
        .expect("folders");
    made.keep();
    assert!(folder.path().join("vms/one").is_dir());
}
