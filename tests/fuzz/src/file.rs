//! A file with an input in it, for what is opened by its path.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

/// A file in memory.
#[derive(Debug)]
pub(crate) struct InputFile(File);

impl InputFile {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let fd = memfd_create("input", MemfdFlags::CLOEXEC).expect("the host has memory");
        let file = File::from(fd);
        file.write_all_at(bytes, 0).expect("it is in memory");
        Self(file)
    }

    /// By which the file can be opened while it is there.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.metadata().expect("it is open").len()
    }
}
