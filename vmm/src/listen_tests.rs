use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

use super::*;
use crate::frozen::FrozenMemory;
use crate::memory::GuestRam;
use crate::memory_watch::{SERVES, WHOLE};
use crate::snapshot::page_map::PageKinds;

fn refusal(path: &Path) -> String {
    listen(path, Purpose::Api)
        .expect_err("it is refused")
        .to_string()
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(UnixListener::bind(&path).unwrap());
    let (listener, file) = listen(&path, Purpose::Api).unwrap();
    let text = refusal(&path);
    assert!(
        text.contains("Check that it is not already used."),
        "{text}"
    );
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    listener.set_nonblocking(false).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
    drop(file);
    assert!(!path.exists());
}

#[test]
fn whatever_else_lies_there_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "content").unwrap();
    let link = folder.path().join("link");
    symlink(&file, &link).unwrap();
    let dangling = folder.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    for path in [&file, &link, &dangling, &folder.path().to_path_buf()] {
        let text = refusal(path);
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let missing = folder.path().join("no/such.sock");
    assert!(refusal(&missing).contains("no/such.sock"));
}

#[test]
fn paths_of_107_bytes_are_the_longest() {
    let folder = tempfile::tempdir().unwrap();
    let room = limits::SOCKET_PATH_BYTES_MAX - folder.path().as_os_str().len() - 1;
    let longest = folder.path().join("a".repeat(room));
    assert!(listen(&longest, Purpose::Api).is_ok());
    for more in [1, 93] {
        let text = refusal(&folder.path().join("a".repeat(room + more)));
        assert!(text.contains("allowed: 1–107"), "{text}");
    }
    assert!(refusal(Path::new("")).contains("allowed: 1–107"));
}

#[test]
fn a_socket_that_has_come_to_the_same_inode_is_another_and_one_of_another_mode_is_not() {
    use rustix::fs::{AtFlags, CWD, Mode, Timestamps, chmod, utimensat};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let (_listener, file) = listen(&path, Purpose::Api).unwrap();
    // As if it had been made a moment later.
    let found = fs::symlink_metadata(&path).unwrap();
    let time = rustix::time::Timespec {
        tv_sec: found.mtime(),
        tv_nsec: (found.mtime_nsec() + 4_000_000) % 1_000_000_000,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    file.remove();
    assert!(path.exists());
    fs::remove_file(&path).unwrap();
    let (_listener, file) = listen(&path, Purpose::Api).unwrap();
    chmod(&path, Mode::from(0o640)).unwrap();
    file.remove();
    assert!(!path.exists());
}

#[test]
fn a_socket_of_somebody_else_is_not_removed_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let (_listener, file) = listen(&path, Purpose::Api).unwrap();
    // The other name keeps the inode's number from coming again.
    fs::hard_link(&path, folder.path().join("kept")).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    file.remove();
    assert!(path.exists());
}

#[test]
fn who_looks_whether_frozen_memory_is_given_out_is_no_machine_that_does_not_come() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.sock");
    let (listener, _file) = listen(&path, Purpose::Frozen).unwrap();
    let server = thread::spawn(move || {
        let ram = GuestRam::allocate(1 << 20).unwrap();
        let pages = &PageKinds::all_held(&ram);
        FrozenMemory { ram: &ram, pages }.give_out(&listener, 1)
    });
    for purpose in [Purpose::Frozen, Purpose::Api] {
        let refused = listen(&path, purpose);
        assert!(matches!(refused, Err(ListenError::InUse { .. })));
    }
    // One without memory has all of it at once.
    let mut machine = UnixStream::connect(&path).unwrap();
    let (faults, _kernel) = UnixStream::pair().unwrap();
    let fds = [faults.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let parts = [IoSlice::new(b"[]")];
    sendmsg(&machine, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    let deadline = Some(Duration::from_secs(10));
    machine.set_read_timeout(deadline).unwrap();
    let mut words = Vec::new();
    machine.read_to_end(&mut words).unwrap();
    assert_eq!(words, [SERVES, WHOLE]);
    server.join().unwrap().unwrap();
}
