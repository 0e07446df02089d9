//! `cargo xtask linux`: the Linux guest kernel, built once for each set of inputs.
//!
//! The cache lies outside of the repository, in one folder a key: a hash of the recipe, the configuration, the
//! patches, and the versions of Debian's source package and of the compiler. A folder of that name is complete: it is
//! built under another name and renamed at the end.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::commands::{self, TaskError};

/// The recipe, its configuration and its patches.
const RECIPE: &str = "guest-kernel/linux";

/// Hexadecimal digits of a hash that become a folder's name.
const KEY_DIGITS: usize = 16;

/// Builds the kernel unless it is there, and prints its path. `args` name more configuration files: `hardened` is the
/// recipe's own `hardened.config`, anything else a path.
pub(crate) fn linux(args: &[String]) -> Result<(), TaskError> {
    println!("{}", kernel(args)?.display());
    Ok(())
}

/// The kernel's path; builds it unless it is there.
pub(crate) fn kernel(args: &[String]) -> Result<PathBuf, TaskError> {
    let recipe = commands::root().join(RECIPE);
    let fragments: Vec<PathBuf> = args.iter().map(|arg| fragment(&recipe, arg)).collect();
    commands::output(script(&recipe).arg("prepare"))?;
    let key = key(&recipe, &fragments)?;
    let cache = cache_dir()?;
    let folder = cache.join(&key);
    if !folder.is_dir() {
        build(&recipe, &fragments, &cache, &folder)?;
    }
    if args.is_empty() {
        name_default(&cache, &key)?;
    }
    Ok(folder.join("vmlinux"))
}

/// `vmlinux` in the cache is the kernel of this key: what `lightv build --rootfs` boots when it is told nothing else.
fn name_default(cache: &Path, key: &str) -> Result<(), TaskError> {
    let (name, target) = (cache.join("vmlinux"), Path::new(key).join("vmlinux"));
    if fs::read_link(&name).is_ok_and(|found| found == target) {
        return Ok(());
    }
    // Renamed over the old one: there is a kernel at any moment.
    let new = cache.join(format!("vmlinux.{}", std::process::id()));
    symlink(target, &new).map_err(|cause| file_error(&new, cause))?;
    fs::rename(&new, &name).map_err(|cause| file_error(&name, cause))
}

fn fragment(recipe: &Path, arg: &str) -> PathBuf {
    let own = recipe.join(format!("{arg}.config"));
    if own.is_file() { own } else { arg.into() }
}

fn script(recipe: &Path) -> Command {
    Command::new(recipe.join("build.sh"))
}

/// $XDG_CACHE_HOME/lightv/linux, or below ~/.cache.
fn cache_dir() -> Result<PathBuf, TaskError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
        .ok_or(TaskError::NoCache)?;
    Ok(base.join("lightv/linux"))
}

/// The name of the folder for these inputs.
fn key(recipe: &Path, fragments: &[PathBuf]) -> Result<String, TaskError> {
    let mut files = vec![recipe.join("build.sh"), recipe.join("kernel.config")];
    files.extend(patches(&recipe.join("patches"))?);
    files.extend_from_slice(fragments);
    let mut inputs = commands::output(script(recipe).arg("versions"))?.into_bytes();
    for path in &files {
        let name = path.file_name().unwrap_or(path.as_os_str());
        inputs.extend(entry(name, &read(path)?));
    }
    sha256(&inputs)
}

/// One input as it is hashed: its name and length keep neighbours apart.
fn entry(name: &OsStr, content: &[u8]) -> Vec<u8> {
    let head = format!("{} {}\n", name.to_string_lossy(), content.len());
    [head.as_bytes(), content].concat()
}

/// The patches in the order in which the recipe applies them.
fn patches(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let failure = |cause| file_error(folder, cause);
    let entries = fs::read_dir(folder).map_err(failure)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failure)?;
    paths.retain(|path| path.extension() == Some(OsStr::new("patch")));
    paths.sort();
    Ok(paths)
}

fn sha256(bytes: &[u8]) -> Result<String, TaskError> {
    let mut command = Command::new("sha256sum");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let failure = |cause| TaskError::Start {
        program: "sha256sum".to_owned(),
        cause,
    };
    let mut child = command.spawn().map_err(failure)?;
    // Taken and dropped: sha256sum answers when its input has ended.
    if let Some(mut input) = child.stdin.take() {
        input.write_all(bytes).map_err(failure)?;
    }
    let output = child.wait_with_output().map_err(failure)?;
    let digits = String::from_utf8_lossy(&output.stdout)
        .chars()
        .take_while(char::is_ascii_hexdigit)
        .take(KEY_DIGITS)
        .collect::<String>();
    if digits.len() == KEY_DIGITS {
        Ok(digits)
    } else {
        Err(TaskError::Failed {
            command: "sha256sum".to_owned(),
            status: output.status,
        })
    }
}

/// Builds into a folder of another name and renames it. One builder at a time: the second waits and finds the result.
fn build(
    recipe: &Path,
    fragments: &[PathBuf],
    cache: &Path,
    folder: &Path,
) -> Result<(), TaskError> {
    fs::create_dir_all(cache).map_err(|cause| file_error(cache, cause))?;
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).map_err(|cause| file_error(&lock_path, cause))?;
    if lock.try_lock().is_err() {
        eprintln!("linux: another build is under way; waiting for it");
        lock.lock().map_err(|cause| file_error(&lock_path, cause))?;
    }
    if folder.is_dir() {
        return Ok(());
    }
    // Nobody else builds now, so what is there was left by a build that was killed.
    let unfinished = cache.join("unfinished");
    remove_dir(&unfinished)?;
    let mut command = script(recipe);
    command.arg("build").arg(&unfinished);
    // The lock is held as long as any process of the build has it open, also when this one is killed.
    let held = lock.try_clone();
    command.stdin(held.map_err(|cause| file_error(&lock_path, cause))?);
    for fragment in fragments {
        command.arg(absolute(fragment)?);
    }
    commands::output(&mut command)?;
    fs::rename(&unfinished, folder).map_err(|cause| file_error(folder, cause))
}

/// The recipe works in a folder of its own, so paths must not depend on the current one.
fn absolute(path: &Path) -> Result<PathBuf, TaskError> {
    std::path::absolute(path).map_err(|cause| file_error(path, cause))
}

fn remove_dir(path: &Path) -> Result<(), TaskError> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(file_error(path, cause)),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TaskError> {
    fs::read(path).map_err(|cause| file_error(path, cause))
}

fn file_error(path: &Path, cause: io::Error) -> TaskError {
    TaskError::File {
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_read_alike_when_joined_have_different_keys() {
        let key = |parts: &[(&str, &str)]| {
            let bytes: Vec<u8> = parts
                .iter()
                .flat_map(|(name, content)| entry(OsStr::new(name), content.as_bytes()))
                .collect();
            sha256(&bytes).unwrap()
        };
        let keys = [
            key(&[("a", "xy"), ("b", "")]),
            key(&[("a", "x"), ("b", "y")]),
            key(&[("a", "xy")]),
            key(&[("b", "xy")]),
        ];
        for (index, one) in keys.iter().enumerate() {
            assert_eq!(one.len(), KEY_DIGITS);
            assert!(!keys[..index].contains(one), "{keys:?}");
        }
    }
}
