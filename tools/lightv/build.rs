//! Builds the minimal guest (guest-kernel/minimal) and gives its ELF to the crate, which embeds it.
//!
//! The guest is linked for no operating system, with flags of its own: the flags of this build must not reach it.
//! `LIGHTV_GUEST_ELF=FILE` embeds a guest that was built before.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const GUEST: &str = "guest-kernel/minimal";

fn main() {
    println!("cargo:rerun-if-env-changed=LIGHTV_GUEST_ELF");
    let elf = env::var_os("LIGHTV_GUEST_ELF").map_or_else(build_guest, PathBuf::from);
    let bytes = fs::read(&elf).unwrap_or_else(|cause| fail(&format!("{}: {cause}", elf.display())));
    let embedded = out_dir().join("guest.elf");
    fs::write(&embedded, &bytes)
        .unwrap_or_else(|cause| fail(&format!("{}: {cause}", embedded.display())));
    println!("cargo:rerun-if-changed={}", elf.display());
    println!(
        "cargo:rustc-env=LIGHTV_EMBEDDED_GUEST={}",
        embedded.display()
    );
    println!(
        "cargo:rustc-env=LIGHTV_EMBEDDED_GUEST_HASH={:016x}",
        fnv1a(&bytes)
    );
    println!(
        "cargo:rustc-env=LIGHTV_MONITOR_HASH={:016x}",
        monitor_hash()
    );
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

fn build_guest() -> PathBuf {
    let root = repository();
    for source in [GUEST, "guest-kernel/workloads"] {
        for part in ["src", "Cargo.toml"] {
            println!(
                "cargo:rerun-if-changed={}",
                root.join(source).join(part).display()
            );
        }
    }
    for part in ["build.rs", "link.ld", "Cargo.lock"] {
        println!(
            "cargo:rerun-if-changed={}",
            root.join(GUEST).join(part).display()
        );
    }
    // Its own target directory: the outer build holds the lock of the shared one.
    let target_dir = out_dir().join("guest");
    let target = env::var("TARGET").unwrap_or_else(|_| fail("cargo sets TARGET"));
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root.join(GUEST))
        .args([
            "build",
            "--release",
            "--bin",
            "lightv-guest",
            "--target",
            &target,
        ])
        .arg("--target-dir")
        .arg(&target_dir);
    // An empty value overrides the flags of .cargo/config.toml; removing the variable would not.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "");
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
        Ok(status) => fail(&format!("the guest's build ended with {status}")),
        Err(cause) => fail(&format!("cargo: {cause}")),
    }
    target_dir.join(target).join("release").join("lightv-guest")
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
    println!("cargo:error=Cannot build the embedded guest: {message}");
    std::process::exit(1)
}
