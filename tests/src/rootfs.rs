//! Root file systems for tests: made on the spot, of what Debian has.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::linux::{self, PATIENCE};
use crate::process::{Finished, Process, run};
use crate::scratch::Scratch;

/// Debian's static busybox (package `busybox-static`).
const BUSYBOX: &str = "/bin/busybox";
/// What the tests use of it.
const APPLETS: [&str; 14] = [
    "cat", "echo", "env", "id", "ip", "ls", "nc", "ping", "poweroff", "pwd", "reboot", "sh",
    "sleep", "uname",
];

/// The recipes of the repository.
#[must_use]
pub fn recipe(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("a workspace").join("rootfs/recipes").join(name)
}

/// A folder `name` in `scratch` that is a root with busybox in it; gives its path.
///
/// # Panics
/// When it cannot be made: `./setup` installs busybox.
#[must_use]
pub fn busybox(scratch: &Scratch, name: &str) -> PathBuf {
    let folder = scratch.path(name);
    let make = |path: &Path| std::fs::create_dir_all(path).expect("a new folder");
    make(&folder.join("bin"));
    make(&folder.join("etc"));
    std::fs::copy(BUSYBOX, folder.join("bin/busybox")).expect("busybox-static is installed");
    for applet in APPLETS {
        symlink("busybox", folder.join("bin").join(applet)).expect("a free name");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000::/srv:/bin/sh\n";
    std::fs::write(folder.join("etc/passwd"), passwd).expect("a new file");
    std::fs::write(folder.join("etc/group"), "root:x:0:\nguest:x:1000:\n").expect("a new file");
    folder
}

/// Compiles the Rust program `source` statically; gives its path.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn static_rust(scratch: &Scratch, source: &str) -> PathBuf {
    let (file, program) = (scratch.write("program.rs", source), scratch.path("program"));
    let mut rustc = Command::new("rustc");
    rustc.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "target-feature=+crt-static",
    ]);
    let status = rustc.arg("-o").args([&program, &file]).status();
    assert!(status.expect("rustc").success(), "it does not compile");
    program
}

/// `lightv build` of the image `out` with `options`, with the tests' kernel.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn build(scratch: &Scratch, out: &str, options: &[&str]) -> Finished {
    let seconds = PATIENCE.as_secs().to_string();
    let args = [&["build", "--timeout", &seconds, "-o", out], options].concat();
    let mut command = scratch.lightv(&args);
    command.env("LIGHTV_LINUX_KERNEL", linux::kernel());
    let process = Process::start(&mut command).with_deadline(PATIENCE);
    process.finish().with_code(0)
}

/// Runs a recipe in `scratch`.
///
/// # Panics
/// When it fails.
pub fn run_recipe(scratch: &Scratch, name: &str, args: &[&str]) {
    let _ = run(&mut scratch.command(recipe(name), args)).with_code(0);
}
