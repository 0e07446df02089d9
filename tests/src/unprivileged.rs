//! Users without privileges: a /dev of their own, and how to become one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Shell text that gives a mount name space its own /dev: with KVM for all, for root only, or without.
#[must_use]
pub fn private_dev(kvm_mode: Option<&str>) -> String {
    let kvm = kvm_mode.map_or(String::new(), |mode| {
        format!("mknod -m {mode} /dev/kvm c 10 232")
    });
    format!(
        "mount -t tmpfs -o mode=755 tmpfs /dev; {kvm}
         mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9
         mkdir /dev/net; mknod -m 666 /dev/net/tun c 10 200"
    )
}

/// What runs the rest of a command line in a mount name space of its own.
pub const MOUNT_NAME_SPACE: [&str; 4] = ["unshare", "--mount", "--propagation", "private"];
/// What runs the rest of a command line as the user nobody, 65534.
pub const UNPRIVILEGED: [&str; 6] = [
    "setpriv",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
];

/// Gives a file or folder of ours the mode `mode`: for others to read, or to write.
///
/// # Panics
/// When it is not ours.
pub fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our file");
}
