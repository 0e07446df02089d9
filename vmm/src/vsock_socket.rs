//! The socket of vsock: made when it is configured, and taken away when nobody uses it any more.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, Weak};

use crate::at_end;
use crate::limits;
use crate::listen::{ListenError, Purpose, SocketFile, listen};
use crate::lock::lock;
use crate::report;

/// A socket that is listened on. Its file goes with the last that holds `file`, and at the end of the process.
#[derive(Debug)]
pub struct VsockSocket {
    /// Where clients come.
    pub listener: UnixListener,
    /// What stands for it in the file system.
    pub file: Arc<SocketFile>,
}

/// The file of the last socket: a process has one at a time. It ends without dropping anything.
static LAST: Mutex<Weak<SocketFile>> = Mutex::new(Weak::new());
static IS_REGISTERED: Once = Once::new();

/// Listens on `path`.
///
/// # Errors
/// [`ListenError`].
pub fn open(path: &Path) -> Result<VsockSocket, ListenError> {
    let (listener, file) = listen(path, Purpose::Vsock)?;
    let file = Arc::new(file);
    *lock(&LAST) = Arc::downgrade(&file);
    IS_REGISTERED.call_once(|| {
        at_end::register(|| {
            let last = lock(&LAST).upgrade();
            if let Some(file) = last {
                file.remove();
            }
        });
    });
    let bytes = path.as_os_str().len();
    if bytes + limits::VSOCK_PORT_BYTES_MAX > limits::SOCKET_PATH_BYTES_MAX {
        report::say(&format!(
            "vsock: uds_path has {bytes} bytes, and a socket's path at most {}: the guest cannot connect to ports for which \
             `{}_PORT` is longer",
            limits::SOCKET_PATH_BYTES_MAX,
            path.display()
        ));
    }
    Ok(VsockSocket { listener, file })
}

/// A socket that is made before there is a machine: clients of the REST API learn at once of one that cannot be had, and
/// may connect as soon as they have named it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct HeldVsock(Arc<Mutex<Option<(PathBuf, VsockSocket)>>>);

impl HeldVsock {
    /// Makes the socket `path`, in place of the one that is held.
    ///
    /// # Errors
    /// [`ListenError`]; another one that was held is held.
    pub fn hold(&self, path: &Path) -> Result<(), ListenError> {
        let mut held = lock(&self.0);
        if held.as_ref().is_some_and(|(known, _)| known == path) {
            *held = None;
        }
        *held = Some((path.to_owned(), open(path)?));
        Ok(())
    }

    /// The socket `path`, if it is held; it is not any more.
    #[must_use]
    pub fn take(&self, path: &Path) -> Option<VsockSocket> {
        let mut held = lock(&self.0);
        let found = held.take_if(|(known, _)| known == path)?;
        Some(found.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_socket_takes_the_place_of_the_one_that_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        let held = HeldVsock::default();
        for path in [&first, &first, &second] {
            held.hold(path).unwrap();
            assert!(path.exists());
        }
        assert!(!first.exists());
        std::fs::write(&first, "somebody's").unwrap();
        assert!(held.hold(&first).is_err());
        assert!(second.exists(), "a refusal changes nothing");
        assert!(held.take(&first).is_none());
        drop(held.take(&second).unwrap());
        assert!(!second.exists() && first.exists());
    }
}
