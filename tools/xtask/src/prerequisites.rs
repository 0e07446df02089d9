//! What a build needs from the host, and which Debian package brings it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::commands::TaskError;

/// One thing that must be there.
struct Prerequisite {
    what: &'static str,
    package: &'static str,
    is_present: fn() -> bool,
}

const PREREQUISITES: &[Prerequisite] = &[
    Prerequisite {
        what: "gcc (links every binary)",
        package: "gcc",
        is_present: || runs("gcc"),
    },
    Prerequisite {
        what: "g++ (builds libFuzzer)",
        package: "g++",
        is_present: || runs("g++"),
    },
    Prerequisite {
        what: "ld (links the guest)",
        package: "binutils",
        is_present: || runs("ld"),
    },
    Prerequisite {
        what: "libc.a (binaries are static)",
        package: "libc6-dev",
        is_present: || gcc_finds("libc.a"),
    },
    Prerequisite {
        what: "fsck.erofs (tests read images back by it)",
        package: "erofs-utils",
        is_present: || is_installed("fsck.erofs"),
    },
    Prerequisite {
        what: "mke2fs (makes ext4 images)",
        package: "e2fsprogs",
        is_present: || is_installed("mke2fs"),
    },
    Prerequisite {
        what: "sqfstar (makes squashfs images)",
        package: "squashfs-tools",
        is_present: || is_installed("sqfstar"),
    },
    Prerequisite {
        what: "fakeroot (owners of files in ext4 images)",
        package: "fakeroot",
        is_present: || is_installed("fakeroot"),
    },
    Prerequisite {
        what: "setfattr (attributes of files in ext4 images)",
        package: "attr",
        is_present: || is_installed("setfattr"),
    },
    Prerequisite {
        what: "passt (networks in user space, in tests)",
        package: "passt",
        is_present: || is_installed("passt"),
    },
    Prerequisite {
        what: "strace (makes system calls fail, in tests)",
        package: "strace",
        is_present: || is_installed("strace"),
    },
    Prerequisite {
        what: "node (runs the agent's web page, in tests)",
        package: "nodejs",
        is_present: || is_installed("node"),
    },
    Prerequisite {
        what: "chromium-headless-shell (shows the agent's web page, in tests)",
        package: "chromium-headless-shell",
        is_present: || is_installed("chromium-headless-shell"),
    },
    Prerequisite {
        what: "openssl (makes certificates, in tests)",
        package: "openssl",
        is_present: || is_installed("openssl"),
    },
    Prerequisite {
        what: "python3 (rootfs/recipes)",
        package: "python3",
        is_present: || is_installed("python3"),
    },
];

/// Names everything that is missing, with the package that brings it.
pub(crate) fn require() -> Result<(), TaskError> {
    let missing: Vec<&Prerequisite> = PREREQUISITES
        .iter()
        .filter(|needed| !(needed.is_present)())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for needed in &missing {
        eprintln!("Missing: {}", needed.what);
    }
    let mut packages: Vec<&str> = missing.iter().map(|needed| needed.package).collect();
    packages.dedup();
    eprintln!("Remedy on Debian: apt-get install {}", packages.join(" "));
    Err(TaskError::Prerequisites)
}

/// Whether cargo-nextest is installed; without it `cargo test` serves.
pub(crate) fn has_nextest() -> bool {
    Command::new("cargo")
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|o| o.status.success())
}

fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Whether a program is in PATH, or where PATHs of users who are not root do not lead.
fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut folders = env::split_paths(&path).chain(system);
    folders.any(|folder| folder.join(program).is_file())
}

/// gcc answers with a path when it finds the file, and with the bare name when not.
fn gcc_finds(file: &str) -> bool {
    let output = Command::new("gcc")
        .arg(format!("-print-file-name={file}"))
        .output();
    output.is_ok_and(|output| {
        Path::new(String::from_utf8_lossy(&output.stdout).trim())
            .components()
            .count()
            > 1
    })
}
