//! What `lightv` carries along: the minimal guest with its apps, and the agent for Linux guests.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

/// One static ELF (guest-kernel/minimal).
pub(crate) const GUEST: &[u8] = include_bytes!(env!("LIGHTV_EMBEDDED_GUEST"));
/// The same with an app that breaks the rules of every device, and is as large as all others together.
pub(crate) const RAW_GUEST: &[u8] = include_bytes!(env!("LIGHTV_EMBEDDED_RAW_GUEST"));
/// Changes with the guest.
pub(crate) const GUEST_HASH: &str = env!("LIGHTV_EMBEDDED_GUEST_HASH");

/// LightV's agent (rootfs/init): PID 1 of Linux guests, a static program.
pub(crate) const AGENT: &[u8] = include_bytes!(env!("LIGHTV_EMBEDDED_AGENT"));

/// The first example has a longer name for users than for the guest.
const ALIAS: (&str, &str) = ("hello-world", "hello");

/// The guest's names (guest-kernel/minimal/src/apps/mod.rs).
const APPS: &[&str] = &[
    "hello",
    "args",
    "bad-instruction",
    "balloon",
    "blk",
    "cpu",
    "dirty",
    "disk-bench",
    "echo",
    "entropy",
    "exit",
    "http",
    "idle",
    "mark",
    "mem",
    "metadata",
    "net-bench",
    "panic",
    "reset",
    "server",
    "smp",
    "tick",
    "vsock",
    "vsock-bench",
    "triple-fault",
];

/// The guest's name of the app that users call `name`.
pub(crate) fn app(name: &str) -> Option<&'static str> {
    let (alias, app) = ALIAS;
    let name = if name == alias { app } else { name };
    APPS.iter().find(|known| **known == name).copied()
}

/// All names, for messages.
pub(crate) fn names() -> String {
    let mut names = vec![ALIAS.0];
    names.extend(APPS);
    names.join(", ")
}

/// The guest as a file in memory that child processes can open by name.
#[derive(Debug)]
pub(crate) struct GuestFile(File);

impl GuestFile {
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn create() -> io::Result<Self> {
        // Not close-on-exec: the child finds it under the same number.
        let mut file = File::from(memfd_create("lightv-guest", MemfdFlags::empty())?);
        file.write_all(GUEST)?;
        Ok(Self(file))
    }

    /// Its name in a child process.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_guest() {
        let source = include_str!("../../../guest-kernel/minimal/src/apps/mod.rs");
        let table = source
            .split("const APPS")
            .nth(1)
            .and_then(|rest| rest.split("];").next());
        let entries = table.unwrap_or_default().split("(\"").skip(1);
        let names: Vec<&str> = entries
            .filter_map(|entry| entry.split('"').next())
            .filter(|name| *name != "raw")
            .collect();
        assert_eq!(names, APPS);
    }

    #[test]
    fn users_may_say_hello_world() {
        assert_eq!(app("hello-world"), Some("hello"));
        assert_eq!(app("hello"), Some("hello"));
        assert_eq!(app("world"), None);
    }
}
