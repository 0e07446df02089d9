//! The root of a jail: an empty file system in memory, with the places of a machine in it, each at the path that it has
//! outside. It belongs to the process, and is gone with it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    unmount,
};
use rustix::process::{chdir, pivot_root, umask};

use super::JailError;
use super::places::{Alias, DEVICES, Found, Kind};
use crate::jail_plan::Access;
use crate::sys::jail::{Depth, MountFlags, restrict_mount};

/// Where the new root is built, until it is the root: a folder that every host has.
const BASE: &str = "/sys";
/// Mode of its folders: it cannot be written anyway.
const FOLDER_MODE: u32 = 0o755;
/// Links to what a process has of its own.
const LINKS: [(&str, &str); 4] = [
    ("dev/fd", "/proc/self/fd"),
    ("dev/stdin", "/proc/self/fd/0"),
    ("dev/stdout", "/proc/self/fd/1"),
    ("dev/stderr", "/proc/self/fd/2"),
];

/// Whose devices there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Devices {
    /// The host's, with the host's rights.
    Hosts,
    /// New ones, which belong to this user and group alone.
    Own(Uid, Gid),
}

/// What is in the root.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    pub(super) places: &'a [Found],
    pub(super) aliases: &'a [Alias],
    pub(super) devices: Devices,
    /// The working folder, which relative paths begin at.
    pub(super) working: &'a Path,
}

/// Makes the root, enters it, and leaves the old one without a way back. The process is in a name space of mounts of its own,
/// and of processes.
///
/// # Errors
/// [`JailError`].
pub(super) fn enter(contents: &Contents<'_>) -> Result<(), JailError> {
    let old_mask = umask(Mode::empty());
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(JailError::step("keep its mounts to itself"))?;
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NOEXEC;
    mount("tmpfs", BASE, "tmpfs", flags, c"mode=755")
        .map_err(JailError::step("mount an empty root at /sys"))?;
    place_devices(contents.devices)?;
    place_processes()?;
    for (index, place) in contents.places.iter().enumerate() {
        let before = contents.places.get(..index).unwrap_or_default();
        if let Some(is_there) = covering(place, before) {
            bind(place, is_there)?;
        }
    }
    chdir(BASE).map_err(JailError::step("enter its root"))?;
    pivot_root(".", ".").map_err(JailError::step("make its root the root (pivot_root)"))?;
    // The old root lies on the new one.
    unmount(".", UnmountFlags::DETACH).map_err(JailError::step("leave the host's root"))?;
    chdir("/").map_err(JailError::step("enter its root"))?;
    for alias in contents.aliases {
        place_alias(alias, contents.places).map_err(|cause| JailError::Place {
            path: alias.path.clone(),
            cause,
        })?;
    }
    make_folders(contents.working)
        .and_then(|()| Ok(chdir(contents.working)?))
        .map_err(JailError::step_of("enter the working folder in it"))?;
    seal(contents.devices)?;
    umask(old_mask);
    Ok(())
}

fn seal(devices: Devices) -> Result<(), JailError> {
    let flags = MountFlags::READ_ONLY.and(MountFlags::NO_PROGRAMS);
    let flags = match devices {
        // Mounts of their own.
        Devices::Hosts => flags.and(MountFlags::NO_DEVICES),
        // Files of the root; nobody in it may make more.
        Devices::Own(..) => flags,
    };
    restrict_mount(Path::new("/"), flags, Depth::One)
        .map_err(JailError::step_of("make its root read-only"))
}

fn inside(path: &Path) -> PathBuf {
    Path::new(BASE).join(path.strip_prefix("/").unwrap_or(path))
}

fn make_folders(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(path)
}

/// A file or folder to mount on.
fn make_target(path: &Path, kind: Kind) -> io::Result<()> {
    if kind == Kind::Folder {
        return make_folders(path);
    }
    make_folders(path.parent().unwrap_or(path))?;
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    Ok(())
}

fn place_devices(devices: Devices) -> Result<(), JailError> {
    for path in DEVICES.map(Path::new) {
        // Without it there is no such device, as outside.
        let Ok(found) = fs::metadata(path) else {
            continue;
        };
        let target = inside(path);
        let made = make_folders(target.parent().unwrap_or(&target)).and_then(|()| match devices {
            Devices::Hosts => bind_device(path, &target),
            Devices::Own(uid, gid) => match own_device(&target, found.rdev(), (uid, gid)) {
                // Root of a user name space that is not the host's.
                Err(Errno::PERM) => bind_device(path, &target),
                owned => Ok(owned?),
            },
        });
        made.map_err(|cause| JailError::Place {
            path: path.to_owned(),
            cause,
        })?;
    }
    for (path, leads_to) in LINKS {
        symlink(leads_to, inside(Path::new(path)))
            .map_err(JailError::step_of("make the links of standard streams"))?;
    }
    Ok(())
}

fn bind_device(path: &Path, target: &Path) -> io::Result<()> {
    make_target(target, Kind::Device)?;
    mount_bind(path, target)?;
    restrict_mount(target, MountFlags::NO_PROGRAMS, Depth::One)
}

/// A device that is this user's alone.
pub(super) fn own_device(target: &Path, number: u64, (uid, gid): (Uid, Gid)) -> Result<(), Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, target, FileType::CharacterDevice, mode, number)?;
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    chownat(CWD, target, Some(uid), Some(gid), flags)
}

/// The process's own entries of proc, and nothing of the host's.
fn place_processes() -> Result<(), JailError> {
    let target = inside(Path::new("/proc"));
    make_folders(&target).map_err(JailError::step_of("make a folder for proc"))?;
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC
        | rustix::mount::MountFlags::RDONLY;
    mount("proc", &target, "proc", flags, c"subset=pid").map_err(JailError::step(
        "mount proc for its own processes (in a container: /proc must not be masked; Linux 5.8 or later)",
    ))
}

/// Whether `place` is to be mounted on what is there already, or on something new; `None` when it is there as it should be.
fn covering(place: &Found, before: &[Found]) -> Option<bool> {
    let is_in =
        |folder: &&Found| folder.kind == Kind::Folder && place.path.starts_with(&folder.path);
    match before.iter().rev().find(is_in) {
        Some(folder) if folder.access == place.access && place.kind != Kind::Device => None,
        Some(_) => Some(true),
        None => Some(false),
    }
}

fn bind(place: &Found, is_there: bool) -> Result<(), JailError> {
    let target = inside(&place.path);
    let flags = MountFlags::NO_PROGRAMS;
    let flags = match place.kind {
        Kind::Device => flags,
        Kind::Folder | Kind::File => flags.and(MountFlags::NO_DEVICES),
    };
    let flags = match place.access {
        Access::Read => flags.and(MountFlags::READ_ONLY),
        Access::Write => flags,
    };
    let bound = || {
        if !is_there {
            make_target(&target, place.kind)?;
        }
        match place.kind {
            Kind::Folder => mount_bind_recursive(&place.path, &target)?,
            Kind::Device | Kind::File => mount_bind(&place.path, &target)?,
        }
        restrict_mount(&target, flags, Depth::All)
    };
    bound().map_err(|cause| JailError::Place {
        path: place.path.clone(),
        cause,
    })
}

/// In the new root, where a path cannot lead out of it.
fn place_alias(alias: &Alias, places: &[Found]) -> io::Result<()> {
    let is_of_host =
        |folder: &Found| folder.kind == Kind::Folder && alias.path.starts_with(&folder.path);
    // In a folder of the host its links are there already; and nothing is made there.
    if places.iter().any(is_of_host) || fs::symlink_metadata(&alias.path).is_ok() {
        return Ok(());
    }
    make_folders(alias.path.parent().unwrap_or(&alias.path))?;
    symlink(&alias.leads_to, &alias.path)
}
