//! Jails of sandboxes (docs/jail.md): what their monitors are called with, and the folder that each has of its own.
//!
//! A jail has a folder for what its machine makes outside: the socket of vsock, and state and memory of forks. It has the rest
//! of the runtime directory not, where the agent's socket and those of others are. What is in a folder of a jail may be the work
//! of a monitor that was taken over: nothing here follows a link in it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, lchown};
use std::path::Path;

use lightv_vmm::args::JailArgs;
use lightv_vmm::held_socket::HeldSocket;
use tokio::net::UnixStream;

use crate::limits;

/// Mode of an image that a jail's user reads. The store's folder is the agent's alone.
const IMAGE_MODE: u32 = 0o644;

/// What all jails have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jails {
    words: Vec<OsString>,
    user: Option<u32>,
    group: Option<u32>,
}

impl Jails {
    /// Those that the operator wants, if any.
    #[must_use]
    pub fn of(args: &JailArgs) -> Option<Self> {
        let plan = args.plan()?;
        Some(Self {
            words: args.words(),
            user: plan.uid,
            group: plan.gid,
        })
    }

    /// Whether machines are another user's.
    #[must_use]
    pub const fn change_user(&self) -> bool {
        self.user.is_some() || self.group.is_some()
    }

    /// What a monitor is called with whose own folder is `folder`.
    #[must_use]
    pub fn monitor_args(&self, folder: &Path) -> Vec<OsString> {
        let own: [OsString; 2] = ["--jail-rw".into(), folder.into()];
        self.words.iter().cloned().chain(own).collect()
    }

    /// Makes the folder of a jail, which nobody but its user and the agent looks into.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make_folder(&self, folder: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(folder)?;
        self.give(folder)
    }

    /// Makes `file`, in the folder of a jail, its user's. A link itself is given, not what it leads to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn give(&self, file: &Path) -> io::Result<()> {
        match self.change_user() {
            true => lchown(file, self.user, self.group),
            false => Ok(()),
        }
    }

    /// Lets the user of a jail read `image`, a file of the store.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_image(&self, image: &Path) -> io::Result<()> {
        match self.change_user() {
            true => fs::set_permissions(image, Permissions::from_mode(IMAGE_MODE)),
            false => Ok(()),
        }
    }
}

/// Takes away the folder of a jail that nobody is in any more. It is empty but after a kill, and has no folders but those that a
/// monitor has made that was taken over: then it stays.
///
/// # Errors
/// The kernel's.
pub fn remove_folder(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten().take(limits::JAIL_FILES_MAX) {
        // A link itself goes, not what it leads to. What does not go keeps the folder.
        let _ = fs::remove_file(entry.path());
    }
    fs::remove_dir(folder)
}

/// Connects to the socket `path` of a machine: see [`HeldSocket`].
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = HeldSocket::open(path)?;
    UnixStream::connect(socket.path()).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        jail: JailArgs,
    }

    fn jails(line: &str) -> Option<Jails> {
        let words = line.split_whitespace();
        Jails::of(
            &Cli::try_parse_from(["a"].into_iter().chain(words))
                .unwrap()
                .jail,
        )
    }

    #[test]
    fn a_jail_has_what_was_said_and_its_own_folder() {
        assert_eq!(jails(""), None);
        let line = "--jail --jail-gid 7 --jail-cgroup pids.max=40";
        let jails = jails(line).unwrap();
        let args = jails.monitor_args(Path::new("/r/a"));
        let args: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!(args.join(" "), format!("{line} --jail-rw /r/a"));
        assert!(jails.change_user());
    }

    #[test]
    fn a_folder_goes_with_its_files_and_not_with_what_links_lead_to() {
        let root = tempfile::tempdir().unwrap();
        let (folder, other) = (root.path().join("jail"), root.path().join("other"));
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "").unwrap();
        jails("--jail").unwrap().make_folder(&folder).unwrap();
        assert_eq!(
            fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
            0o700
        );
        symlink(&other, folder.join("link")).unwrap();
        fs::write(folder.join("state"), "").unwrap();
        fs::create_dir(folder.join("strange")).unwrap();
        let refused = remove_folder(&folder).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::DirectoryNotEmpty);
        fs::remove_dir(folder.join("strange")).unwrap();
        remove_folder(&folder).unwrap();
        // It may be gone already.
        remove_folder(&folder).unwrap();
        assert!(!folder.exists() && other.join("file").exists());
    }

    #[test]
    fn a_socket_is_connected_to_and_a_link_to_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let (socket, link) = (root.path().join("socket"), root.path().join("link"));
        let _listener = UnixListener::bind(&socket).unwrap();
        symlink(&socket, &link).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        runtime.unwrap().block_on(async {
            assert!(connect(&socket).await.is_ok());
            assert!(connect(&link).await.is_err());
            assert!(connect(root.path()).await.is_err());
        });
    }
}
