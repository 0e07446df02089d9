//! `cargo xtask clients`: public clients of Firecracker, as they are published, against LightV's socket. What they need is
//! built once: Rust clients into target/clients, Python ones into a folder of the cache for each list of versions.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::commands::{self, TaskError};

/// The Rust clients' workspace.
const RUST: &str = "tests/clients/rust";
/// The Python clients: scripts, and the list of versions.
const PYTHON: &str = "tests/clients/python";
const REQUIREMENTS: &str = "requirements.txt";

/// What was built.
#[derive(Debug)]
pub(crate) struct Clients {
    /// Folder with the Rust programs.
    pub(crate) programs: PathBuf,
    /// Folder with `python` and what the list names.
    pub(crate) python: PathBuf,
}

/// Builds all of them.
pub(crate) fn build() -> Result<Clients, TaskError> {
    Ok(Clients {
        programs: build_rust()?,
        python: build_python()?,
    })
}

fn build_rust() -> Result<PathBuf, TaskError> {
    let target = commands::target_dir().join("clients");
    let mut command = commands::cargo(&["build", "--locked"]);
    // In its own folder: that is where its settings are.
    command
        .current_dir(commands::root().join(RUST))
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("CARGO_BUILD_TARGET");
    commands::run(&mut command)?;
    Ok(target.join(commands::TARGET).join("debug"))
}

/// Builds what is in Python alone; gives its folder.
pub(crate) fn build_python() -> Result<PathBuf, TaskError> {
    let list = commands::root().join(PYTHON).join(REQUIREMENTS);
    let version = commands::output(Command::new("python3").arg("--version"))?;
    let mut inputs = cache::entry(OsStr::new("python"), version.as_bytes());
    inputs.extend(cache::entry(OsStr::new(REQUIREMENTS), &cache::read(&list)?));
    let key = cache::key(&inputs)?;
    let folder = cache::folder(&cache::dir("clients")?, &key, |unfinished, _lock| {
        // No `activate`: programs are called by their paths, and the folder is renamed.
        commands::run(Command::new("python3").args(["-m", "venv"]).arg(unfinished))?;
        install(unfinished, &list)
    })?;
    Ok(folder.join("bin"))
}

fn install(folder: &Path, list: &Path) -> Result<(), TaskError> {
    let mut command = Command::new(folder.join("bin/python"));
    command
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ])
        .arg(list);
    commands::run(&mut command)
}
