//! Jails as they are asked for: by `--jail`, and by the flags of Firecracker's jailer.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// The network that a jail is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// An empty one of its own.
    #[default]
    Own,
    /// The host's.
    Hosts,
    /// The name space that this file stands for.
    Named(PathBuf),
}

/// A jail as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JailPlan {
    /// The user that the machine's process becomes; the same as now, if none is said.
    pub uid: Option<u32>,
    /// Its group.
    pub gid: Option<u32>,
    /// Its network.
    pub network: Network,
    /// Limits of its control groups.
    pub limits: Vec<Limit>,
    /// The group in which they are made.
    pub parent_cgroup: PathBuf,
    /// Files and folders beside those that the machine names.
    pub places: Vec<Place>,
}

/// What may be done with a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// It is read.
    Read,
    /// It is read and written.
    Write,
}

/// A file or folder that is seen in the jail, at the path that it has outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As it was given.
    pub path: PathBuf,
    /// What may be done with it.
    pub access: Access,
}

impl Place {
    /// One that is read.
    #[must_use]
    pub fn read(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            access: Access::Read,
        }
    }

    /// One that is written too.
    #[must_use]
    pub fn write(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            access: Access::Write,
        }
    }
}

/// A version of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A tree for each controller.
    V1,
    /// One tree for all.
    V2,
}

impl Version {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// A value for a file of a group: `memory.max=268435456`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    file: String,
    value: String,
}

/// Text that is no [`Limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLimit {
    /// There is no `=`, or nothing on one side of it.
    #[error("expected FILE=VALUE, for example memory.max=268435456 or pids.max=64")]
    NotPair,
    /// A file that is none of a group.
    #[error(
        "the file must be one of a control group, CONTROLLER.NAME of letters, digits, `_`, `-` and `.`"
    )]
    File,
    /// More than one line, or a very long one.
    #[error("the value must be one line of at most {VALUE_BYTES_MAX} bytes")]
    Value,
}

/// Far above any value.
const VALUE_BYTES_MAX: usize = 512;

impl FromStr for Limit {
    type Err = BadLimit;

    fn from_str(text: &str) -> Result<Self, BadLimit> {
        let (file, value) = text.split_once('=').ok_or(BadLimit::NotPair)?;
        if file.is_empty() || value.is_empty() {
            return Err(BadLimit::NotPair);
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let is_of_controller = file.split_once('.').is_some_and(|(controller, name)| {
            !(controller.is_empty() || name.is_empty() || name.starts_with('.'))
        });
        // `cgroup.procs` and its like are not for limits.
        if !file.bytes().all(is_plain) || !is_of_controller || file.starts_with("cgroup.") {
            return Err(BadLimit::File);
        }
        if value.len() > VALUE_BYTES_MAX || value.contains(['\n', '\0']) {
            return Err(BadLimit::Value);
        }
        Ok(Self {
            file: file.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl Limit {
    /// The file's name.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What is written into it.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The controller whose file it is.
    #[must_use]
    pub fn controller(&self) -> &str {
        self.file.split_once('.').map_or("", |(name, _)| name)
    }
}

/// The path of a group that others are made in, from the top of its tree: names alone, no `.` and no `..`.
///
/// # Errors
/// In words.
pub fn parse_parent(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let is_name = |part| matches!(part, Component::Normal(_));
    if path.components().next().is_some() && path.components().all(is_name) {
        Ok(path.to_owned())
    } else {
        Err("a relative path without `.` and `..` is allowed, for example machines/web".to_owned())
    }
}

/// A limit of the process (setrlimit(2)), by the jailer's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceLimit {
    /// `fsize`: bytes of a file that it writes.
    FileBytes(u64),
    /// `no-file`: one more than the highest number of a descriptor.
    Files(u64),
}

/// Text that is no [`ResourceLimit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected fsize=BYTES or no-file=COUNT, with a number of 0 or more")]
pub struct BadResourceLimit;

impl FromStr for ResourceLimit {
    type Err = BadResourceLimit;

    fn from_str(text: &str) -> Result<Self, BadResourceLimit> {
        let (name, value) = text.split_once('=').ok_or(BadResourceLimit)?;
        let value = value.parse().map_err(|_| BadResourceLimit)?;
        match name {
            "fsize" => Ok(Self::FileBytes(value)),
            "no-file" => Ok(Self::Files(value)),
            _ => Err(BadResourceLimit),
        }
    }
}

/// A jail by the flags of Firecracker's jailer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailerPlan {
    /// Name of the machine, and of its folder.
    pub id: String,
    /// The monitor that is run.
    pub exec_file: PathBuf,
    /// The user that it becomes.
    pub uid: u32,
    /// The group that it becomes.
    pub gid: u32,
    /// The folder with the folders of all jails.
    pub chroot_base: PathBuf,
    /// The name space of networks that it is in; this one, if none is said.
    pub netns: Option<PathBuf>,
    /// Whether it is left alone: a session of its own, without standard streams.
    pub daemonize: bool,
    /// Whether it is process 1 of its own.
    pub new_pid_ns: bool,
    /// Limits of its control groups.
    pub limits: Vec<Limit>,
    /// Of which version they are.
    pub cgroup_version: Version,
    /// The group in which they are made; the name of the monitor's file, if none is said.
    pub parent_cgroup: Option<PathBuf>,
    /// Limits of the process.
    pub resource_limits: Vec<ResourceLimit>,
    /// The monitor's own arguments.
    pub args: Vec<OsString>,
}

#[cfg(test)]
#[path = "jail_plan_tests.rs"]
mod tests;
