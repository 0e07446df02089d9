//! Control groups of a machine, by either version of them: made, limited, entered, taken away.
//!
//! Which version serves a controller is seen in the list of mounts: version 1 has a mount for each, version 2 one for all.
//! A host has both, each for some controllers, as often as not.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, open, unlinkat};
use rustix::io::Errno;

use crate::jail_plan::{Limit, Version};

/// Why there is no group. None of those that were made is left.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mounts cannot be read.
    #[error("Cannot read /proc/self/mounts, to find control groups")]
    Mounts(#[source] io::Error),
    /// No tree has the controller.
    #[error(
        "No control group{} on this host has the controller {controller}, which {file} needs; it has: {}",
        of_version(*version), names(known)
    )]
    NoController {
        /// Which one.
        controller: String,
        /// For what.
        file: String,
        /// If one was asked for.
        version: Option<Version>,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Version 2 is not there.
    #[error("Control groups of version 2 are not mounted here, in which {} was to be entered", parent.display())]
    NoVersion2 {
        /// What was to be entered.
        parent: PathBuf,
    },
    /// A file of a group.
    #[error("Cannot {what} {}{advice}", path.display())]
    File {
        /// What was done.
        what: String,
        /// Which one.
        path: PathBuf,
        /// What to do about it, if that is known.
        advice: &'static str,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
}

fn of_version(version: Option<Version>) -> String {
    version.map_or_else(String::new, |version| {
        format!(" of version {}", version.number())
    })
}

fn names(known: &[String]) -> String {
    if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    }
}

/// As long as the group is there.
fn advice(path: &Path, cause: &io::Error) -> &'static str {
    let is_of_group = path.parent().is_some_and(Path::is_dir);
    match cause.raw_os_error() {
        Some(libc::ENOENT) if is_of_group => ": the group has no such file",
        Some(libc::EACCES | libc::EPERM) => {
            ": give a parent group that is this user's, or do it as root"
        }
        Some(libc::EBUSY) => ": version 2 limits no group that has processes and groups in it",
        _ => "",
    }
}

/// The trees of this host.
#[derive(Debug, Default)]
pub(super) struct Trees(Vec<Tree>);

#[derive(Debug, Clone)]
struct Tree {
    at: PathBuf,
    version: Version,
    controllers: Vec<String>,
}

impl Trees {
    /// Those that are mounted.
    ///
    /// # Errors
    /// [`CgroupError::Mounts`].
    pub(super) fn of_host() -> Result<Self, CgroupError> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(CgroupError::Mounts)?;
        Ok(Self::parse(&mounts))
    }

    /// Those in a list of mounts (proc_pid_mounts(5)).
    fn parse(mounts: &str) -> Self {
        let words = |text: &str, separator| text.split(separator).map(str::to_owned).collect();
        let tree = |line: &str| {
            let mut fields = line.split(' ').skip(1);
            let (at, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let at = PathBuf::from(at);
            match kind {
                "cgroup" => Some(Tree {
                    at,
                    version: Version::V1,
                    controllers: words(options, ','),
                }),
                "cgroup2" => {
                    let controllers = at.join("cgroup.controllers");
                    let controllers = fs::read_to_string(controllers).unwrap_or_default();
                    Some(Tree {
                        at,
                        version: Version::V2,
                        controllers: words(controllers.trim_end(), ' '),
                    })
                }
                _ => None,
            }
        };
        Self(mounts.lines().filter_map(tree).collect())
    }

    fn of_version(&self, version: Option<Version>) -> impl Iterator<Item = &Tree> {
        let trees = self.0.iter();
        trees.filter(move |tree| version.is_none_or(|version| tree.version == version))
    }

    fn serving(&self, limit: &Limit, version: Option<Version>) -> Result<&Tree, CgroupError> {
        let controller = limit.controller();
        let has = |tree: &&Tree| tree.controllers.iter().any(|name| name == controller);
        self.of_version(version).find(has).ok_or_else(|| {
            // Options of a mount of version 1 that are none of its controllers.
            let options = ["rw", "ro", "relatime", "nosuid", "nodev", "noexec", "xattr"];
            let is_option = |name: &String| options.contains(&name.as_str()) || name.contains('=');
            let all = self.of_version(version).flat_map(|tree| &tree.controllers);
            let known = all.filter(|name| !(name.is_empty() || is_option(name)));
            CgroupError::NoController {
                controller: controller.to_owned(),
                file: limit.file().to_owned(),
                version,
                known: known.cloned().collect(),
            }
        })
    }
}

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    /// Of this version; of whichever has the controller, if none is said.
    pub(super) version: Option<Version>,
    /// The group in which it is made, from the top of the tree.
    pub(super) parent: &'a Path,
    /// Its name.
    pub(super) name: &'a str,
    /// Its limits, in the order in which they are written.
    pub(super) limits: &'a [Limit],
}

/// The groups of a machine: one in each tree that serves a limit. Dropped, those that were made are taken away, if nothing
/// is in them any more.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// Name and parent of each, in the order in which they were made. They may have to be found from another root.
    made: Vec<(OwnedFd, OsString)>,
    doors: Vec<Door>,
}

/// A group to be entered.
#[derive(Debug)]
struct Door {
    path: PathBuf,
    way_in: File,
    /// Into the top of the tree.
    way_out: File,
}

impl Cgroups {
    /// Makes them.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub(super) fn make(trees: &Trees, plan: Plan<'_>) -> Result<Self, CgroupError> {
        let mut groups = Self {
            made: Vec::new(),
            doors: Vec::new(),
        };
        let mut entered: Vec<(&Tree, PathBuf)> = Vec::new();
        for limit in plan.limits {
            let tree = trees.serving(limit, plan.version)?;
            let group = tree.at.join(plan.parent).join(plan.name);
            if tree.version == Version::V2 {
                groups.enable(tree, plan.parent, limit.controller())?;
            }
            groups.make_folders(tree, &plan.parent.join(plan.name))?;
            let file = group.join(limit.file());
            write(&file, limit.value())
                .map_err(|cause| failed(format!("write `{}` into", limit.value()), file, cause))?;
            if !entered.iter().any(|(_, other)| *other == group) {
                entered.push((tree, group));
            }
        }
        for (tree, group) in entered {
            groups.open_door(tree, &group)?;
        }
        Ok(groups)
    }

    /// The group `parent` of version 2, which is there.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub(super) fn existing(trees: &Trees, parent: &Path) -> Result<Self, CgroupError> {
        let mut groups = Self {
            made: Vec::new(),
            doors: Vec::new(),
        };
        let tree = trees.of_version(Some(Version::V2)).next();
        let tree = tree.ok_or_else(|| CgroupError::NoVersion2 {
            parent: parent.to_owned(),
        })?;
        groups.open_door(tree, &tree.at.join(parent))?;
        Ok(groups)
    }

    /// Lets the groups from the top of the tree to `parent` give `controller` to those in them.
    fn enable(&mut self, tree: &Tree, parent: &Path, controller: &str) -> Result<(), CgroupError> {
        let mut path = PathBuf::new();
        for part in [Path::new("")]
            .into_iter()
            .chain(parent.iter().map(Path::new))
        {
            path.push(part);
            self.make_folders(tree, &path)?;
            let control = tree.at.join(&path).join("cgroup.subtree_control");
            let given = fs::read_to_string(&control).unwrap_or_default();
            if !given.split_whitespace().any(|name| name == controller) {
                write(&control, &format!("+{controller}")).map_err(|cause| {
                    failed(
                        format!("give the controller {controller} by"),
                        control,
                        cause,
                    )
                })?;
            }
        }
        Ok(())
    }

    fn make_folders(&mut self, tree: &Tree, path: &Path) -> Result<(), CgroupError> {
        let mut group = tree.at.clone();
        for part in path {
            let parent = group.clone();
            group.push(part);
            match make_group(&parent, part) {
                Ok(made) => self.made.extend(made),
                Err(cause) => return Err(failed("make the control group".into(), group, cause)),
            }
            if tree.version == Version::V1 && tree.controllers.iter().any(|name| name == "cpuset") {
                inherit_cpuset(&parent, &group)?;
            }
        }
        Ok(())
    }

    fn open_door(&mut self, tree: &Tree, group: &Path) -> Result<(), CgroupError> {
        let open = |group: &Path| {
            let path = group.join("cgroup.procs");
            match OpenOptions::new().write(true).open(&path) {
                Ok(door) => Ok((path, door)),
                Err(cause) => Err(failed("open".into(), path, cause)),
            }
        };
        let (path, way_in) = open(group)?;
        // For who may not go there it is the way in that matters.
        let way_out = open(&tree.at).map_or_else(|_| way_in.try_clone(), |(_, door)| Ok(door));
        let way_out = way_out.map_err(|cause| failed("open".into(), path.clone(), cause))?;
        self.doors.push(Door {
            path,
            way_in,
            way_out,
        });
        Ok(())
    }

    /// Puts the calling process into them. They can be out of its sight by now.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub(super) fn enter(&self) -> Result<(), CgroupError> {
        for door in &self.doors {
            // 0: whoever writes it.
            (&door.way_in)
                .write_all(b"0")
                .map_err(|cause| failed("enter the group of".into(), door.path.clone(), cause))?;
        }
        Ok(())
    }

    /// Takes the calling process out of them, so that they can be removed.
    pub(super) fn leave(&self) {
        for door in &self.doors {
            // One that cannot leave keeps its groups.
            let _ = (&door.way_out).write_all(b"0");
        }
    }

    /// Leaves them where they are.
    pub(super) fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for (parent, name) in self.made.iter().rev() {
            // What others have come to use in the meantime, such as a parent, cannot be removed, and stays.
            let _ = unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Makes `name` in `parent`; `None` if it is there.
fn make_group(parent: &Path, name: &OsStr) -> io::Result<Option<(OwnedFd, OsString)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = open(parent, flags, Mode::empty())?;
    match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(Some((parent, name.to_owned()))),
        Err(Errno::EXIST) => Ok(None),
        Err(cause) => Err(cause.into()),
    }
}

/// A group of version 1 begins without CPUs and memory nodes, and then takes no process.
fn inherit_cpuset(parent: &Path, group: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(group.join(file)).unwrap_or_default();
        if !own.trim().is_empty() {
            continue;
        }
        let inherited = fs::read_to_string(parent.join(file)).unwrap_or_default();
        let path = group.join(file);
        write(&path, inherited.trim())
            .map_err(|cause| failed("write the parent's value into".into(), path, cause))?;
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    // Never made: a name that the kernel does not know is refused.
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(value.as_bytes())
}

fn failed(what: String, path: PathBuf, cause: io::Error) -> CgroupError {
    CgroupError::File {
        what,
        advice: advice(&path, &cause),
        path,
        cause,
    }
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
