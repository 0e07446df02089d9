//! Landlock (landlock(7)): files and folders that a thread may open from here on. What is open already stays so.
//!
//! A thread that runs a vCPU is not held to it: its list of system calls has none that opens a file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// The newest interface of the kernel that is asked for; an older kernel does what it can of it.
const NEWEST: ABI = ABI::V6;

/// It was said that the kernel has no Landlock.
static IS_TOLD: AtomicBool = AtomicBool::new(false);

/// What may be done with a file, or in a folder and all that is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathAccess {
    /// Files are read, folders are listed.
    Read,
    /// Files are made, written, renamed and removed too, and devices used.
    ReadWrite,
    /// Folders are listed and synced, and nothing else.
    List,
    /// Files are removed, and nothing else.
    Remove,
}

impl PathAccess {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Self::ReadWrite => AccessFs::from_all(NEWEST) & !AccessFs::Execute,
            Self::List => AccessFs::ReadDir.into(),
            Self::Remove => AccessFs::RemoveFile.into(),
        }
    }
}

/// Paths that may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<(PathBuf, PathAccess)>);

impl Rules {
    /// Allows `path` too. One that is not there when the rules are [entered](Self::enter) is left out.
    #[must_use]
    pub fn with(mut self, path: impl Into<PathBuf>, access: PathAccess) -> Self {
        self.0.push((path.into(), access));
        self
    }

    /// Allows what is done with a file called `path`, which may not be there yet: in its folder.
    #[must_use]
    pub fn with_folder_of(self, path: &Path, access: PathAccess) -> Self {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        self.with(folder.unwrap_or(Path::new(".")), access)
    }

    /// Holds the calling thread, and all that it will start, to these paths; nor may it use TCP or abstract Unix sockets of
    /// others. A kernel without Landlock is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self) -> Result<(), RulesetError> {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        for (path, access) in &self.0 {
            ruleset = ruleset.add_rules(path_beneath_rules([path], access.rights()))?;
        }
        let is_absent = ruleset.restrict_self()?.ruleset == RulesetStatus::NotEnforced;
        if is_absent && !IS_TOLD.swap(true, Ordering::Relaxed) {
            tracing::debug!("this kernel has no Landlock: files are not restricted by it");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::thread;

    use super::*;

    /// Whether this kernel has Landlock at all.
    fn is_there() -> bool {
        // A child of its own would say the same; a thread's restriction ends with it.
        thread::spawn(|| {
            let status = Ruleset::default()
                .handle_access(AccessFs::from_all(ABI::V1))
                .and_then(Ruleset::create)
                .and_then(|ruleset| ruleset.restrict_self());
            status.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
        })
        .join()
        .unwrap()
    }

    #[test]
    fn only_what_is_allowed_can_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        for name in ["read", "write", "other"] {
            fs::create_dir(inside(name)).unwrap();
            fs::write(inside(name).join("file"), "text").unwrap();
        }
        let rules = Rules::default()
            .with(inside("read"), PathAccess::Read)
            .with_folder_of(&inside("write").join("file"), PathAccess::ReadWrite)
            .with(inside("missing"), PathAccess::Read);
        let denied = is_there();
        let paths = ["read", "write", "other"].map(|name| inside(name).join("file"));
        thread::spawn(move || {
            rules.enter().unwrap();
            let [read, write, other] = paths;
            assert_eq!(fs::read_to_string(&read).unwrap(), "text");
            fs::rename(&write, write.with_extension("new")).unwrap();
            fs::write(&write, "new").unwrap();
            let refused = |result: std::io::Result<()>| {
                result.is_err_and(|cause| cause.kind() == ErrorKind::PermissionDenied)
            };
            assert_eq!(refused(fs::write(&read, "new")), denied);
            assert_eq!(refused(fs::read(&other).map(drop)), denied);
            assert_eq!(refused(fs::remove_file(&other)), denied);
        })
        .join()
        .unwrap();
    }
}
