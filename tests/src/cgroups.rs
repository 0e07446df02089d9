//! Control groups of this host, of either version.

use std::fs;
use std::path::{Path, PathBuf};

/// Where version 1 of control groups has `controller`; `None` where version 2 has it.
///
/// # Panics
/// When there is no list of mounts.
#[must_use]
pub fn tree(controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let line = mounts.lines().find(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        fields[2] == "cgroup" && fields[3].split(',').any(|option| option == controller)
    });
    line.map(|line| line.split(' ').nth(1).expect("a path").into())
}

/// Which version has `controller`.
#[must_use]
pub fn version_of(controller: &str) -> &'static str {
    if tree(controller).is_some() { "1" } else { "2" }
}

/// The group `parent` in each tree that has it.
///
/// # Panics
/// When there is no list of mounts.
#[must_use]
pub fn groups(parent: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let trees = mounts.lines().filter(|line| line.contains(" cgroup"));
    let parents = trees.map(|line| Path::new(line.split(' ').nth(1).expect("a path")).join(parent));
    parents.filter(|parent| parent.exists()).collect()
}

/// Takes away the group `parent`, in which no machine has one any more.
///
/// # Panics
/// When one has, or nothing ever was in it.
#[track_caller]
pub fn remove_empty(parent: &str) {
    let groups = groups(parent);
    assert!(!groups.is_empty(), "no group {parent}");
    for group in groups {
        // A group that has groups in it cannot be removed.
        fs::remove_dir(&group).unwrap_or_else(|cause| panic!("{}: {cause}", group.display()));
    }
}
