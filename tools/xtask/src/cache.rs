//! What is built once for each set of inputs.
//!
//! The cache lies outside of the repository, in one folder a key: a hash of all inputs. A folder of that name is
//! complete: it is built under another name and renamed at the end.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::commands::TaskError;

/// Hexadecimal digits of a hash that become a folder's name.
const KEY_DIGITS: usize = 16;

/// $XDG_CACHE_HOME/lightv/KIND, or below ~/.cache.
pub(crate) fn dir(kind: &str) -> Result<PathBuf, TaskError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
        .ok_or(TaskError::NoCache)?;
    Ok(base.join("lightv").join(kind))
}

/// One input as it is hashed: its name and length keep neighbours apart.
pub(crate) fn entry(name: &OsStr, content: &[u8]) -> Vec<u8> {
    let head = format!("{} {}\n", name.to_string_lossy(), content.len());
    [head.as_bytes(), content].concat()
}

/// The name of the folder for these inputs.
pub(crate) fn key(bytes: &[u8]) -> Result<String, TaskError> {
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

/// The folder of `key` in `cache`. Unless it is there, `build` makes it under another name, which does not exist yet;
/// the file is the lock. One builder at a time: the second waits and finds the result.
pub(crate) fn folder(
    cache: &Path,
    key: &str,
    build: impl FnOnce(&Path, File) -> Result<(), TaskError>,
) -> Result<PathBuf, TaskError> {
    let folder = cache.join(key);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(cache).map_err(|cause| file_error(cache, cause))?;
    let lock_path = cache.join("lock");
    let lock_error = |cause| file_error(&lock_path, cause);
    let lock = File::create(&lock_path).map_err(lock_error)?;
    if lock.try_lock().is_err() {
        eprintln!("xtask: another build is under way; waiting for it");
        lock.lock().map_err(lock_error)?;
    }
    if folder.is_dir() {
        return Ok(folder);
    }
    // Nobody else builds now, so what is there was left by a build that was killed.
    let unfinished = cache.join("unfinished");
    remove_dir(&unfinished)?;
    build(&unfinished, lock.try_clone().map_err(lock_error)?)?;
    fs::rename(&unfinished, &folder).map_err(|cause| file_error(&folder, cause))?;
    Ok(folder)
}

fn remove_dir(path: &Path) -> Result<(), TaskError> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(file_error(path, cause)),
        _ => Ok(()),
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TaskError> {
    fs::read(path).map_err(|cause| file_error(path, cause))
}

pub(crate) fn file_error(path: &Path, cause: io::Error) -> TaskError {
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
            super::key(&bytes).unwrap()
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
