//! Builds whose bytes depend on the sources and the toolchain alone, not on the folder that they are made in.
//!
//! Crates of others lie in cargo's home, generated sources in the target directory; names of both, and of the repository,
//! come into a binary with the texts of panics. They are replaced. `lightv` embeds guests, whose build does the same
//! (tools/lightv/build.rs).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::build::SHIPPED;
use crate::cache::{self, file_error};
use crate::commands::{self, TARGET, TaskError};
use crate::supply;

/// Between two flags in CARGO_ENCODED_RUSTFLAGS.
const SEPARATOR: &str = "\x1f";

/// Two folders, of names whose lengths differ too.
const FOLDERS: [&str; 2] = ["one", "the-other-one"];

/// What is built, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe {
    profile: String,
    packages: Vec<String>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            profile: "release".to_owned(),
            packages: supply::SHIPPED
                .iter()
                .map(|name| (*name).to_owned())
                .collect(),
        }
    }
}

impl Recipe {
    /// By `--profile=NAME` and names of packages.
    fn of(args: &[String]) -> Result<Self, TaskError> {
        let mut recipe = Self::default();
        let (options, packages): (Vec<_>, Vec<_>) =
            args.iter().cloned().partition(|arg| arg.starts_with('-'));
        for option in options {
            match option.strip_prefix("--profile=") {
                Some(profile) => recipe.profile = profile.to_owned(),
                None => return Err(TaskError::Argument(option)),
            }
        }
        if !packages.is_empty() {
            recipe.packages = packages;
        }
        Ok(recipe)
    }

    /// Builds `source` into `target`; gives the folder with the binaries.
    pub(crate) fn build(&self, source: &Path, target: &Path) -> Result<PathBuf, TaskError> {
        let mut command: Command = commands::cargo(&["build", "--locked"]);
        command
            .arg(format!("--profile={}", self.profile))
            .args(self.packages.iter().map(|name| format!("--package={name}")))
            .current_dir(source)
            .env("CARGO_TARGET_DIR", target)
            // What an earlier build has left must not show.
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_ENCODED_RUSTFLAGS", flags(source, target)?);
        // What is embedded is built from the same sources.
        for embedded in ["LIGHTV_GUEST_ELF", "LIGHTV_AGENT_ELF"] {
            command.env_remove(embedded);
        }
        commands::run(&mut command)?;
        let folder = match self.profile.as_str() {
            "dev" => "debug",
            profile => profile,
        };
        Ok(target.join(TARGET).join(folder))
    }
}

/// `cargo xtask reproducible [--profile=NAME] [PACKAGE…]`: builds twice in two folders and compares.
pub(crate) fn reproducible(args: &[String]) -> Result<(), TaskError> {
    let recipe = Recipe::of(args)?;
    let base = commands::target_dir().join("reproducible");
    let folders = FOLDERS.map(|name| base.join(name));
    // Both before the first build, which takes minutes: of the same sources.
    for folder in &folders {
        copy_sources(&folder.join("source"))?;
    }
    let mut built = Vec::new();
    for folder in &folders {
        built.push(recipe.build(&folder.join("source"), &folder.join("target"))?);
    }
    let [first, second] = built.as_slice() else {
        return Ok(());
    };
    let mut differ = Vec::new();
    let mut compared = 0;
    for name in SHIPPED {
        if !first.join(name).exists() {
            continue;
        }
        let (one, other) = (
            cache::read(&first.join(name))?,
            cache::read(&second.join(name))?,
        );
        compared += 1;
        match first_difference(&one, &other) {
            None => println!("{name:<14} {:>9} bytes, equal", one.len()),
            Some(at) => {
                println!("{name:<14} differs from byte {at:#x} on");
                differ.push((*name).to_owned());
            }
        }
    }
    if compared == 0 || !differ.is_empty() {
        return Err(TaskError::NotReproducible { names: differ });
    }
    Ok(())
}

/// Where `one` and `other` differ first, if they do.
fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    let pairs = one.iter().zip(other);
    let differing = pairs.enumerate().find(|(_, (a, b))| a != b);
    let shorter = (one.len() != other.len()).then(|| one.len().min(other.len()));
    differing.map(|(at, _)| at).or(shorter)
}

/// The flags of .cargo/config.toml, and names in place of folders.
fn flags(source: &Path, target: &Path) -> Result<String, TaskError> {
    let path = source.join(".cargo/config.toml");
    let text = String::from_utf8(cache::read(&path)?).unwrap_or_default();
    let config: Config = toml::from_str(&text).map_err(|cause| TaskError::Policy {
        path: path.clone(),
        cause,
    })?;
    let remap =
        |folder: &Path, name: &str| format!("--remap-path-prefix={}={name}", folder.display());
    let mut flags = config.target.own.rustflags;
    // The last that fits counts: the target directory may lie in the repository.
    flags.push(remap(source, "/lightv"));
    flags.push(remap(target, "/target"));
    if let Some(home) = cargo_home() {
        flags.push(remap(&home, "/cargo"));
    }
    Ok(flags.join(SEPARATOR))
}

/// A part of cargo's configuration.
#[derive(Debug, Deserialize)]
struct Config {
    target: Targets,
}

#[derive(Debug, Deserialize)]
struct Targets {
    #[serde(rename = "x86_64-unknown-linux-gnu")]
    own: TargetConfig,
}

#[derive(Debug, Deserialize)]
struct TargetConfig {
    rustflags: Vec<String>,
}

fn cargo_home() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let home = || set("HOME").map(|home| Path::new(&home).join(".cargo"));
    set("CARGO_HOME").map(PathBuf::from).or_else(home)
}

/// Copies what git knows of the repository, and what it would, into `to`.
fn copy_sources(to: &Path) -> Result<(), TaskError> {
    if to.exists() {
        fs::remove_dir_all(to).map_err(|cause| file_error(to, cause))?;
    }
    let root = commands::root();
    let mut git = Command::new("git");
    git.current_dir(&root);
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let names = commands::output(&mut git)?;
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (root.join(name), to.join(name));
        // One that was removed and not yet committed.
        if !from.is_file() {
            continue;
        }
        let folder = to.parent().unwrap_or(&to);
        fs::create_dir_all(folder).map_err(|cause| file_error(folder, cause))?;
        fs::copy(&from, &to).map_err(|cause| file_error(&to, cause))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() {
        assert_eq!(first_difference(b"same", b"same"), None);
        assert_eq!(first_difference(b"same", b"some"), Some(1));
        assert_eq!(first_difference(b"same", b"same."), Some(4));
        assert_eq!(first_difference(b"", b"x"), Some(0));
    }

    #[test]
    fn arguments_choose_profile_and_packages() {
        let of = |args: &[&str]| {
            Recipe::of(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]).unwrap(), Recipe::default());
        let recipe = of(&["--profile=dev", "lightv-vmm"]).unwrap();
        assert_eq!(
            (recipe.profile.as_str(), recipe.packages.as_slice()),
            ("dev", &["lightv-vmm".to_owned()][..])
        );
        assert!(of(&["--fast"]).is_err());
    }

    #[test]
    fn flags_are_those_of_the_repository_and_names_of_folders() {
        let flags = flags(&commands::root(), Path::new("/t")).unwrap();
        assert!(
            flags.starts_with("-C\x1ftarget-feature=+crt-static\x1f--remap-path-prefix="),
            "{flags:?}"
        );
        assert!(
            flags.contains("\x1f--remap-path-prefix=/t=/target"),
            "{flags:?}"
        );
    }
}
