//! File systems. A root file system that cannot be written gets a writable layer stacked on it, and the result is the root
//! from then on.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;

use lightv_contract::OVERLAY_FOLDER;
use lightv_contract::agent::Writable;
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};

use crate::message::{say, with_causes};

/// A file system that is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {what} at {target}")]
pub struct MountError {
    what: String,
    target: String,
    #[source]
    cause: Errno,
}

/// The root file system as the kernel leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// It can be written: a disk, or an initial RAM disk.
    Writable,
    /// It cannot. A file system in memory stands at [`OVERLAY_FOLDER`].
    ReadOnly,
}

impl Root {
    /// Where `proc` and `dev` stand until the root is complete.
    #[must_use]
    pub fn base(self) -> &'static str {
        match self {
            Self::Writable => "",
            Self::ReadOnly => OVERLAY_FOLDER,
        }
    }
}

const NO_SPECIAL: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Mounts `kind` at `target`, which is made if it is absent.
fn add(kind: &str, target: &str, flags: MountFlags, options: &str) -> Result<(), MountError> {
    add_from(kind, kind, target, (flags, options))
}

fn add_from(
    source: &str,
    kind: &str,
    target: &str,
    (flags, options): (MountFlags, &str),
) -> Result<(), MountError> {
    // A folder that is there is an error here, and one that cannot be made is one of the mount.
    let _ = fs::create_dir(target);
    let options = CString::new(options).unwrap_or_default();
    match mount(source, target, kind, flags, options.as_c_str()) {
        // The kernel has mounted it (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(cause) => Err(MountError {
            what: source.to_owned(),
            target: target.to_owned(),
            cause,
        }),
    }
}

fn shift(from: &str, target: &str) -> Result<(), MountError> {
    let _ = fs::create_dir(target);
    mount_move(from, target).map_err(|cause| MountError {
        what: from.to_owned(),
        target: target.to_owned(),
        cause,
    })
}

/// Makes `/proc` and `/dev` available below [`Root::base`]: the agent's orders are read through them.
///
/// # Errors
/// When one of them cannot be mounted.
pub fn begin() -> Result<Root, MountError> {
    let root = match rustix::fs::statvfs("/") {
        Ok(found) if found.f_flag.contains(StatVfsMountFlags::RDONLY) => Root::ReadOnly,
        _ => Root::Writable,
    };
    if root == Root::ReadOnly {
        add("tmpfs", OVERLAY_FOLDER, MountFlags::empty(), "mode=755")?;
    }
    let base = root.base();
    add("proc", &format!("{base}/proc"), NO_SPECIAL, "")?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    add("devtmpfs", &format!("{base}/dev"), flags, "mode=755")?;
    Ok(root)
}

/// Makes the root as `writable` says, and puts everything into it that programs expect.
///
/// # Errors
/// When the writable layer, `/proc` or `/dev` cannot be mounted. What is less is said only.
pub fn complete(root: Root, writable: &Writable) -> Result<(), MountError> {
    let is_layered = root == Root::ReadOnly && *writable != Writable::Nowhere;
    if is_layered {
        stack(writable)?;
    } else if root == Root::ReadOnly {
        for folder in ["/proc", "/dev"] {
            shift(&format!("{OVERLAY_FOLDER}{folder}"), folder)?;
        }
    }
    let is_tmp_writable = root == Root::Writable || is_layered;
    fill(is_tmp_writable);
    Ok(())
}

/// Stacks the writable layer on the root, and makes it the root.
fn stack(writable: &Writable) -> Result<(), MountError> {
    let layers = layers(writable)?;
    let (upper, work) = (format!("{layers}/upper"), format!("{layers}/work"));
    for folder in [&upper, &work] {
        // Of a disk they may be there. What cannot be made is an error of the mount.
        let _ = fs::create_dir(folder);
    }
    let options = format!("lowerdir=/,upperdir={upper},workdir={work}");
    let new_root = format!("{OVERLAY_FOLDER}/root");
    add("overlay", &new_root, MountFlags::empty(), &options)?;
    for folder in ["/proc", "/dev"] {
        shift(
            &format!("{OVERLAY_FOLDER}{folder}"),
            &format!("{new_root}{folder}"),
        )?;
    }
    // As switch_root(8) does: the kernel's first mount cannot be pivoted away, but it can be covered.
    let switch = || {
        rustix::process::chdir(&*new_root)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    switch().map_err(|cause| MountError {
        what: new_root.clone(),
        target: "/".to_owned(),
        cause,
    })
}

/// Folder of the file system that takes the writes.
fn layers(writable: &Writable) -> Result<String, MountError> {
    match writable {
        Writable::MemoryMib(mib) => {
            let options = CString::new(format!("size={mib}m")).unwrap_or_default();
            mount_remount(OVERLAY_FOLDER, MountFlags::empty(), options.as_c_str()).map_err(
                |cause| MountError {
                    what: format!("tmpfs of {mib} MiB"),
                    target: OVERLAY_FOLDER.to_owned(),
                    cause,
                },
            )?;
            Ok(OVERLAY_FOLDER.to_owned())
        }
        Writable::Disk(device) => {
            let target = format!("{OVERLAY_FOLDER}/disk");
            let source = format!("{OVERLAY_FOLDER}{device}");
            add_from(&source, "ext4", &target, (MountFlags::NOATIME, ""))?;
            Ok(target)
        }
        Writable::Memory | Writable::Nowhere => Ok(OVERLAY_FOLDER.to_owned()),
    }
}

/// Mounts what a program may miss but can start without.
fn fill(is_tmp_writable: bool) {
    let no_devices = MountFlags::NOSUID | MountFlags::NODEV;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    let mut wanted = vec![
        ("sysfs", "/sys", NO_SPECIAL, ""),
        ("cgroup2", "/sys/fs/cgroup", NO_SPECIAL, ""),
        (
            "devpts",
            "/dev/pts",
            terminals,
            "mode=620,gid=5,ptmxmode=666",
        ),
        ("tmpfs", "/dev/shm", no_devices, "mode=1777"),
        ("tmpfs", "/run", no_devices, "mode=755"),
    ];
    if !is_tmp_writable {
        wanted.push(("tmpfs", "/tmp", no_devices, "mode=1777"));
    }
    for (kind, target, flags, options) in wanted {
        if let Err(error) = add(kind, target, flags, options) {
            say(with_causes(&error));
        }
    }
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        // They are there when somebody has made them before.
        let _ = symlink(target, name);
    }
}
