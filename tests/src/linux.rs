//! A Linux kernel of ours, and an initial RAM disk with the program `tests/guest/init.c` in it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine;
use crate::process::{Finished, Process};
use crate::scratch::Scratch;

/// For whatever is waited for of a Linux guest: on software KVM on a busy host a boot may take minutes.
pub const PATIENCE: Duration = Duration::from_secs(420);

/// What no kernel may say of a guest that is well.
const COMPLAINTS: [&str; 8] = [
    "stall",
    "lockup",
    "unstable",
    "hung",
    "BUG",
    "WARNING",
    "all Trace",
    "init: failed",
];

/// The kernel that `cargo xtask linux` builds, uncompressed: the one that the test run names, or else asked for.
///
/// # Panics
/// When there is none, and none can be built.
#[must_use]
pub fn kernel() -> PathBuf {
    if let Some(path) = env::var_os("LIGHTV_LINUX_KERNEL") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    let output = Command::new("cargo")
        .args(["xtask", "linux"])
        .current_dir(root)
        .output()
        .expect("cargo");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let path = stdout.lines().last().map(PathBuf::from);
    path.filter(|path| path.is_file())
        .unwrap_or_else(|| panic!("no kernel: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The same as a bzImage.
#[must_use]
pub fn bzimage() -> PathBuf {
    kernel().with_file_name("bzImage")
}

/// A Linux guest to be.
#[derive(Debug)]
pub struct Guest {
    /// Where it is run.
    pub scratch: Scratch,
    /// Its configuration.
    pub config: Value,
}

impl Guest {
    /// One vCPU, 128 MiB, no devices; what the kernel is told are `args`, those after `--` go to the init.
    ///
    /// # Panics
    /// When there is no kernel or no C compiler.
    #[must_use]
    pub fn new(args: &str) -> Self {
        Self::with_file(args, &[])
    }

    /// The same, with `content` as `/file` in its initial RAM disk, unless it is empty.
    ///
    /// # Panics
    /// When there is no kernel or no C compiler.
    #[must_use]
    pub fn with_file(args: &str, content: &[u8]) -> Self {
        let scratch = Scratch::new();
        let config = json!({
            "boot-source": {
                "kernel_image_path": kernel(),
                "initrd_path": initrd(&scratch, content),
                "boot_args": format!("console=ttyS0 panic=-1 {args}"),
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        });
        Self { scratch, config }
    }

    /// Itself with another `key` of its boot source.
    #[must_use]
    pub fn booted_with(mut self, key: &str, value: &Value) -> Self {
        self.config["boot-source"][key] = value.clone();
        self
    }

    /// Itself with as many vCPUs, and RAM in MiB.
    #[must_use]
    pub fn sized(mut self, vcpus: u32, mib: u64) -> Self {
        self.config["machine-config"] = json!({"vcpu_count": vcpus, "mem_size_mib": mib});
        self
    }

    /// Itself with the keys of `more`.
    #[must_use]
    pub fn with(mut self, more: &Value) -> Self {
        self.config = machine::with(&self.config, more);
        self
    }

    /// Starts it, with more of the monitor's options.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self, options: &[&str]) -> Process {
        let config = self.scratch.config("vm.json", &self.config);
        self.vmm(&[&["--config", &config], options].concat())
    }

    /// Starts a monitor for it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn vmm(&self, options: &[&str]) -> Process {
        Process::start(&mut self.scratch.vmm(options)).with_deadline(PATIENCE)
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it does not end with `code`, or its kernel complains.
    #[must_use]
    #[track_caller]
    pub fn run(&self, code: u8) -> Finished {
        let finished = self.start(&[]).finish().with_code(code);
        assert_is_well(&finished.stdout);
        finished
    }
}

/// Looks whether the kernel complains in its log.
///
/// # Panics
/// When it does.
#[track_caller]
pub fn assert_is_well(log: &str) {
    for complaint in COMPLAINTS {
        let line = log.lines().find(|line| line.contains(complaint));
        assert_eq!(line, None, "{log}");
    }
}

/// Writes an initial RAM disk with the init, linked statically, and a file unless that is empty. Returns its name.
fn initrd(scratch: &Scratch, content: &[u8]) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/init.c");
    let mut files = vec![("init", static_program(scratch, &source))];
    if !content.is_empty() {
        files.push(("file", content.to_vec()));
    }
    initrd_of(scratch, &files)
}

/// Writes an initial RAM disk whose `/init` is the C program `source`, linked statically. Returns its name.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn initrd_of_source(scratch: &Scratch, source: &str) -> String {
    let program = static_program(scratch, &scratch.write("init.c", source));
    initrd_of(scratch, &[("init", program)])
}

/// Compiles a C program, linked statically.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn static_program(scratch: &Scratch, source: &Path) -> Vec<u8> {
    let program = scratch.path("init");
    let status = Command::new("cc")
        .args(["-static", "-Os", "-o"])
        .args([&program, source])
        .status();
    assert!(
        status.expect("cc").success(),
        "{} does not compile",
        source.display()
    );
    scratch.read("init")
}

/// Writes an initial RAM disk of these programs, named from the root, in folders `bin`, `lib`, `lib64`, and a console.
/// Returns its name.
#[must_use]
pub fn initrd_of(scratch: &Scratch, programs: &[(&str, Vec<u8>)]) -> String {
    let mut archive = Vec::new();
    for folder in ["dev", "bin", "lib", "lib64"] {
        push(&mut archive, folder, 0o40755, &[]);
    }
    push(&mut archive, "dev/console", 0o20600, &[]);
    for (name, program) in programs {
        push(&mut archive, name, 0o100_755, program);
    }
    push(&mut archive, "TRAILER!!!", 0, &[]);
    scratch.write("initrd.cpio", archive);
    "initrd.cpio".to_owned()
}

/// LightV's agent (rootfs/init), built when it is not.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn agent() -> Vec<u8> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    // A folder of its own: it has other flags than the workspace, and must not wait for who builds that.
    let target = target.join("agent");
    let output = Command::new("cargo")
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(&target)
        .args(["--target", TARGET])
        .current_dir(root.join("rootfs/init"))
        .output()
        .expect("cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the agent does not build: {said}");
    fs::read(target.join(TARGET).join("release/lightv-init")).expect("the agent")
}

/// A program of the C source `source`, linked dynamically, and the libraries that it needs, all as parts of an initial RAM
/// disk.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn dynamic_program(scratch: &Scratch, source: &str) -> Vec<(&'static str, Vec<u8>)> {
    let (file, program) = (scratch.write("app.c", source), scratch.path("app"));
    let status = Command::new("cc")
        .arg("-o")
        .args([&program, &file])
        .status();
    assert!(status.expect("cc").success(), "app.c does not compile");
    let [libc, linker] = libraries();
    vec![("bin/app", scratch.read("app")), libc, linker]
}

/// What every dynamic program needs, where it looks for it: the C library and the dynamic linker.
///
/// # Panics
/// When the C compiler does not find them.
#[must_use]
pub fn libraries() -> [(&'static str, Vec<u8>); 2] {
    ["lib/libc.so.6", "lib64/ld-linux-x86-64.so.2"].map(|path| {
        let name = path.rsplit('/').next().unwrap_or(path);
        let asked = format!("-print-file-name={name}");
        let output = Command::new("cc").arg(asked).output().expect("cc");
        let found = String::from_utf8(output.stdout).expect("a path in text");
        (path, fs::read(found.trim_end()).expect("a library"))
    })
}

/// Adds an entry in the format that Linux reads (Documentation/driver-api/early-userspace/buffer-format.rst, "newc"). A
/// device is the console, 5:1.
fn push(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let is_device = mode & 0o170_000 == 0o20000;
    let (major, minor) = if is_device { (5, 1) } else { (0, 0) };
    let (inode, bytes, name_bytes) = (archive.len(), content.len(), name.len() + 1);
    let mut header = format!(
        "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}",
        0, 0, 1, 0
    );
    header += &format!(
        "{bytes:08x}{:08x}{:08x}{major:08x}{minor:08x}{name_bytes:08x}{:08x}",
        0, 0, 0
    );
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
