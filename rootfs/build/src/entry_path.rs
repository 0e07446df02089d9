//! Paths of entries: names below the root, which is where they all stay.

use crate::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It would lead out of the root.
    #[error("it holds `..`")]
    ParentFolder,
    /// No file system takes it.
    #[error("it holds a NUL byte")]
    Nul,
    /// Longer than Linux allows.
    #[error("it has {bytes} bytes, more than {PATH_BYTES_MAX}")]
    Long {
        /// How long.
        bytes: usize,
    },
    /// A name longer than Linux allows.
    #[error("a name in it has {bytes} bytes, more than {NAME_BYTES_MAX}")]
    LongName {
        /// How long.
        bytes: usize,
    },
}

/// Names from the root on. No `.`, no `..`, no empty name; without any it is the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath(Vec<Name>);

/// A name in a folder.
pub(crate) type Name = Box<[u8]>;

impl EntryPath {
    /// Absolute paths are taken from the root on, as `tar` does.
    pub(crate) fn parse(path: &[u8]) -> Result<Self, PathFault> {
        if path.len() > PATH_BYTES_MAX {
            return Err(PathFault::Long { bytes: path.len() });
        }
        if path.contains(&0) {
            return Err(PathFault::Nul);
        }
        let mut names: Vec<Name> = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err(PathFault::ParentFolder),
                name if name.len() > NAME_BYTES_MAX => {
                    return Err(PathFault::LongName { bytes: name.len() });
                }
                name => names.push(name.into()),
            }
        }
        Ok(Self(names))
    }

    /// Names of the folders, and the entry's own; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&[Name], &[u8])> {
        let (name, folders) = self.0.split_last()?;
        Some((folders, name))
    }

    pub(crate) fn names(&self) -> &[Name] {
        &self.0
    }

    /// The same folder's entry `name`; at the root, `name` in the root.
    pub(crate) fn with_name(&self, name: &[u8]) -> Self {
        let folders = self.split().map_or(&[][..], |(folders, _)| folders);
        Self(folders.iter().cloned().chain([name.into()]).collect())
    }

    /// The entry `name` of the folder that this is.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        Self(self.0.iter().cloned().chain([name.into()]).collect())
    }

    /// The folder that the entry is in; the root's is the root.
    pub(crate) fn folder(&self) -> Self {
        Self(
            self.split()
                .map_or(Vec::new(), |(folders, _)| folders.to_vec()),
        )
    }
}

/// A path as messages show it: what is not UTF-8 is replaced.
pub(crate) fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(path: &[u8]) -> Result<String, PathFault> {
        EntryPath::parse(path).map(|path| display(&path.names().join(&b'/')))
    }

    #[test]
    fn paths_stay_below_the_root() {
        for (path, expected) in [
            ("./a//b/.", "a/b"),
            ("/etc/x", "etc/x"),
            ("./", ""),
            ("", ""),
        ] {
            assert_eq!(joined(path.as_bytes()), Ok(expected.to_owned()), "{path}");
        }
        for path in ["..", "a/../b", "/../etc/passwd", "a/.."] {
            assert_eq!(
                joined(path.as_bytes()),
                Err(PathFault::ParentFolder),
                "{path}"
            );
        }
    }

    #[test]
    fn what_linux_refuses_is_refused() {
        assert_eq!(joined(b"a\0b"), Err(PathFault::Nul));
        let (long_name, long) = ([b'n'; 256], [b'/'; 4096]);
        assert_eq!(joined(&long_name), Err(PathFault::LongName { bytes: 256 }));
        assert_eq!(joined(&long), Err(PathFault::Long { bytes: 4096 }));
        assert!(joined(&long_name[1..]).is_ok() && joined(&long[1..]).is_ok());
    }
}
