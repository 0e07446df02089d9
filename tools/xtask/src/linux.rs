//! `cargo xtask linux`: the Linux guest kernel, built once for each set of inputs: the recipe, the configuration, the
//! patches, and the versions of Debian's source package and of the compiler.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::commands::{self, TaskError};

/// The recipe, its configuration and its patches.
const RECIPE: &str = "guest-kernel/linux";

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
    let cache = cache::dir("linux")?;
    let folder = cache::folder(&cache, &key, |unfinished, lock| {
        let mut command = script(&recipe);
        // The lock is held as long as any process of the build has it open, also when this one is killed.
        command.arg("build").arg(unfinished).stdin(lock);
        for fragment in &fragments {
            command.arg(absolute(fragment)?);
        }
        commands::output(&mut command).map(|_| ())
    })?;
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
    symlink(target, &new).map_err(|cause| cache::file_error(&new, cause))?;
    fs::rename(&new, &name).map_err(|cause| cache::file_error(&name, cause))
}

fn fragment(recipe: &Path, arg: &str) -> PathBuf {
    let own = recipe.join(format!("{arg}.config"));
    if own.is_file() { own } else { arg.into() }
}

fn script(recipe: &Path) -> Command {
    Command::new(recipe.join("build.sh"))
}

/// The name of the folder for these inputs.
fn key(recipe: &Path, fragments: &[PathBuf]) -> Result<String, TaskError> {
    let mut files = vec![recipe.join("build.sh"), recipe.join("kernel.config")];
    files.extend(patches(&recipe.join("patches"))?);
    files.extend_from_slice(fragments);
    let mut inputs = commands::output(script(recipe).arg("versions"))?.into_bytes();
    for path in &files {
        let name = path.file_name().unwrap_or(path.as_os_str());
        inputs.extend(cache::entry(name, &cache::read(path)?));
    }
    cache::key(&inputs)
}

/// The patches in the order in which the recipe applies them.
fn patches(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let failure = |cause| cache::file_error(folder, cause);
    let entries = fs::read_dir(folder).map_err(failure)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failure)?;
    paths.retain(|path| path.extension() == Some(OsStr::new("patch")));
    paths.sort();
    Ok(paths)
}

/// The recipe works in a folder of its own, so paths must not depend on the current one.
fn absolute(path: &Path) -> Result<PathBuf, TaskError> {
    std::path::absolute(path).map_err(|cause| cache::file_error(path, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A recipe with these files; it does nothing but tell the versions of what it would use.
    fn recipe(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("patches")).unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        // By `cp`: a file that another test's child still has open for writing cannot be executed.
        let script = folder.path().join("build.sh");
        let copied = Command::new("cp").arg("/bin/echo").arg(&script).status();
        assert!(copied.unwrap().success());
        folder
    }

    #[test]
    fn a_changed_option_patch_or_fragment_is_another_kernel_and_nothing_else_is() {
        let key_of = |files: &[(&str, &str)], fragments: &[&str]| {
            let recipe = recipe(files);
            let path = |name: &&str| recipe.path().join(name);
            let fragments: Vec<PathBuf> = fragments.iter().map(path).collect();
            key(recipe.path(), &fragments).unwrap()
        };
        let config = ("kernel.config", "CONFIG_SMP=y\n");
        let base = key_of(&[config], &[]);
        assert_eq!(key_of(&[config, ("README.md", "…")], &[]), base);
        assert_eq!(key_of(&[config, ("patches/notes", "…")], &[]), base);
        let fragment = ("my.config", "CONFIG_A=y\n");
        let others = [
            key_of(&[("kernel.config", "CONFIG_SMP=n\n")], &[]),
            key_of(&[config, ("patches/1.patch", "+a\n")], &[]),
            key_of(&[config, ("patches/1.patch", "+b\n")], &[]),
            key_of(&[config, ("patches/2.patch", "+a\n")], &[]),
            key_of(&[config, fragment], &["my.config"]),
        ];
        for (index, one) in others.iter().enumerate() {
            assert!(*one != base && !others[..index].contains(one), "{others:?}");
        }
    }
}
