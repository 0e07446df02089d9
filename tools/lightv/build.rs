//! Builds what runs in guests, and gives it to the crate, which embeds it: the minimal guest (guest-kernel/minimal) and
//! the agent of Linux guests (rootfs/init).
//!
//! Both are linked with flags of their own: the flags of this build must not reach them. `LIGHTV_GUEST_ELF=FILE` and
//! `LIGHTV_AGENT_ELF=FILE` embed what was built before.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program for guests, in a workspace of its own.
struct Embedded {
    /// Its folder.
    folder: &'static str,
    /// The binary's name.
    bin: &'static str,
    /// What the file is called that is embedded.
    name: &'static str,
    /// Features that it is built with, separated by commas.
    features: &'static str,
    /// Names a file to be embedded instead.
    variable: &'static str,
    /// What else it is built of.
    sources: &'static [&'static str],
    /// `RUSTFLAGS`, separated by 0x1f as cargo wants it; empty values override those of .cargo/config.toml too.
    flags: &'static str,
}

const GUEST: Embedded = Embedded {
    folder: "guest-kernel/minimal",
    bin: "lightv-guest",
    name: "lightv-guest",
    features: "",
    variable: "LIGHTV_GUEST_ELF",
    sources: &[
        "guest-kernel/minimal/build.rs",
        "guest-kernel/minimal/link.ld",
        "guest-kernel/workloads/src",
        "guest-kernel/minimal/workloads/Cargo.toml",
    ],
    flags: "",
};

/// The same with the app that breaks the rules of every device.
const RAW_GUEST: Embedded = Embedded {
    name: "lightv-guest-raw",
    features: "raw",
    variable: "LIGHTV_RAW_GUEST_ELF",
    ..GUEST
};

const AGENT: Embedded = Embedded {
    folder: "rootfs/init",
    bin: "lightv-init",
    name: "lightv-init",
    features: "",
    variable: "LIGHTV_AGENT_ELF",
    sources: &["rootfs/contract/src", "rootfs/init/contract/Cargo.toml"],
    // As rootfs/init/.cargo/config.toml says, which does not count here: CARGO_ENCODED_RUSTFLAGS goes before it.
    flags: "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static",
};

fn main() {
    let guest = embed(&GUEST, "LIGHTV_EMBEDDED_GUEST");
    embed(&RAW_GUEST, "LIGHTV_EMBEDDED_RAW_GUEST");
    embed(&AGENT, "LIGHTV_EMBEDDED_AGENT");
    println!(
        "cargo:rustc-env=LIGHTV_EMBEDDED_GUEST_HASH={:016x}",
        fnv1a(&guest)
    );
    println!(
        "cargo:rustc-env=LIGHTV_MONITOR_HASH={:016x}",
        monitor_hash()
    );
}

/// Puts the program into the file that the environment variable `name` tells the crate of.
fn embed(program: &Embedded, name: &str) -> Vec<u8> {
    println!("cargo:rerun-if-env-changed={}", program.variable);
    let given = env::var_os(program.variable).map(PathBuf::from);
    if let Some(elf) = &given {
        println!("cargo:rerun-if-changed={}", elf.display());
    }
    // What is built here is newer than the beginning of this program, which cargo would take for a change.
    let elf = given.unwrap_or_else(|| build(program));
    let bytes = fs::read(&elf).unwrap_or_else(|cause| fail(&format!("{}: {cause}", elf.display())));
    let embedded = out_dir().join(format!("{}.elf", program.name));
    fs::write(&embedded, &bytes)
        .unwrap_or_else(|cause| fail(&format!("{}: {cause}", embedded.display())));
    println!("cargo:rustc-env={name}={}", embedded.display());
    bytes
}

/// Changes with the sources that decide what an image holds: images that another build has kept are not taken up.
fn monitor_hash() -> u64 {
    let mut files = Vec::new();
    for part in ["vmm/src", "devices/src"] {
        let folder = repository().join(part);
        println!("cargo:rerun-if-changed={}", folder.display());
        list_files(&folder, &mut files);
    }
    files.sort();
    let read = |path: &PathBuf| fs::read(path).unwrap_or_default();
    let hashes = files
        .iter()
        .map(read)
        .flat_map(|bytes| fnv1a(&bytes).to_le_bytes());
    fnv1a(&hashes.collect::<Vec<u8>>())
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list_files(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn build(program: &Embedded) -> PathBuf {
    let folder = repository().join(program.folder);
    let own = ["src", "Cargo.toml", "Cargo.lock"].map(|part| folder.join(part));
    let others = program.sources.iter().map(|path| repository().join(path));
    for path in own.into_iter().chain(others) {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    // Its own target directory: the outer build holds the lock of the shared one.
    let target_dir = out_dir().join(program.bin);
    let target = env::var("TARGET").unwrap_or_else(|_| fail("cargo sets TARGET"));
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&folder)
        .args(["build", "--release", "--bin", program.bin, "--target"])
        .args([&target, "--features", program.features, "--target-dir"])
        .arg(&target_dir);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(program, &target_dir));
    for inherited in [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
    ] {
        cargo.env_remove(inherited);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("the build of {} ended with {status}", program.bin)),
        Err(cause) => fail(&format!("cargo: {cause}")),
    }
    target_dir.join(target).join("release").join(program.bin)
}

/// Its own flags, and names in place of folders, which would come into it with the texts of panics: its bytes are the same
/// wherever it is built, and an image that was made of it is known again.
fn flags(program: &Embedded, target_dir: &Path) -> String {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let home = || set("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo_home = set("CARGO_HOME").map(PathBuf::from).or_else(home);
    // The last that fits counts.
    let folders = [
        (Some(repository()), "/lightv"),
        (Some(target_dir.to_owned()), "/target"),
        (cargo_home, "/cargo"),
    ];
    let mut flags: Vec<String> = program
        .flags
        .split_terminator('\x1f')
        .map(str::to_owned)
        .collect();
    for (folder, name) in folders {
        flags.extend(
            folder.map(|folder| format!("--remap-path-prefix={}={name}", folder.display())),
        );
    }
    flags.join("\x1f")
}

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

fn out_dir() -> PathBuf {
    env::var_os("OUT_DIR").map_or_else(|| fail("cargo sets OUT_DIR"), PathBuf::from)
}

/// Names the content of cached images; no protection against an attacker is meant.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn fail(message: &str) -> ! {
    println!("cargo:error=Cannot build what is embedded: {message}");
    std::process::exit(1)
}
