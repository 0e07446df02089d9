//! `cargo xtask rootfs busybox`: Debian's static busybox with the agent, as an image of a few MB, built once for each set
//! of inputs: both programs, the files of `rootfs/busybox`, and the code that makes images.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use lightv_rootfs::{BuildRequest, Compression, Source};
use tar::{Builder, EntryType, Header};

use crate::cache;
use crate::commands::{self, TaskError};

/// The only recipe so far.
const BUSYBOX: &str = "busybox";
/// Files of the root file system that are ours.
const FILES: &str = "rootfs/busybox/etc";
/// What the agent is built of: a workspace of its own, and the crate that it shares with the host.
const AGENT: &str = "rootfs/init";
const CONTRACT: &str = "rootfs/contract";
/// What the image is made by.
const MAKER: &[&str] = &["rootfs/build/src", "tools/xtask/src/rootfs.rs"];
/// Names an agent that was built before (tools/lightv/build.rs knows it too).
const AGENT_VARIABLE: &str = "LIGHTV_AGENT_ELF";
/// Names the dynamic linker in programs that need one.
const LINKER: &[u8] = b"/ld-linux-";

/// Builds the image unless it is there, and prints its path.
pub(crate) fn rootfs(args: &[String]) -> Result<(), TaskError> {
    match args {
        [name] if name == BUSYBOX => {}
        _ => return Err(TaskError::Recipe),
    }
    println!("{}", busybox()?.display());
    Ok(())
}

/// The image's path; builds it unless it is there.
pub(crate) fn busybox() -> Result<PathBuf, TaskError> {
    let program = find_busybox()?;
    let ours = env::var_os(AGENT_VARIABLE).map(PathBuf::from);
    let key = key(&program, ours.as_deref())?;
    let folder = cache::folder(&cache::dir("rootfs")?, &key, |unfinished, _lock| {
        let agent = match &ours {
            Some(path) => path.clone(),
            None => build_agent()?,
        };
        fs::create_dir_all(unfinished).map_err(|cause| cache::file_error(unfinished, cause))?;
        build(&program, &cache::read(&agent)?, unfinished)
    })?;
    Ok(folder.join("rootfs.erofs"))
}

/// The static busybox in PATH, and its content.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    content: Vec<u8>,
}

fn find_busybox() -> Result<Program, TaskError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|folder| folder.join(BUSYBOX));
    let path = places.find(|place| place.is_file());
    let path = path.ok_or(TaskError::Busybox)?;
    let content = cache::read(&path)?;
    if content.windows(LINKER.len()).any(|found| found == LINKER) {
        return Err(TaskError::Busybox);
    }
    Ok(Program { path, content })
}

/// A hash of everything that decides what is in the image.
fn key(program: &Program, agent: Option<&Path>) -> Result<String, TaskError> {
    let root = commands::root();
    let mut folders: Vec<&str> = [FILES].into_iter().chain(MAKER.iter().copied()).collect();
    let mut inputs = cache::entry(OsStr::new(BUSYBOX), &program.content);
    match agent {
        Some(agent) => inputs.extend(cache::entry(OsStr::new("agent"), &cache::read(agent)?)),
        None => folders.extend([AGENT, CONTRACT]),
    }
    for folder in folders {
        add_files(&root.join(folder), &root, &mut inputs)?;
    }
    cache::key(&inputs)
}

/// Adds a file, or all files of a folder in the order of their names; what cargo has built is left out.
fn add_files(path: &Path, root: &Path, inputs: &mut Vec<u8>) -> Result<(), TaskError> {
    if !path.is_dir() {
        let name = path.strip_prefix(root).unwrap_or(path);
        inputs.extend(cache::entry(name.as_os_str(), &cache::read(path)?));
        return Ok(());
    }
    if path.ends_with("target") {
        return Ok(());
    }
    list(path)?
        .iter()
        .try_for_each(|path| add_files(path, root, inputs))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let failure = |cause| cache::file_error(folder, cause);
    let entries = fs::read_dir(folder).map_err(failure)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(failure)?;
    paths.sort();
    Ok(paths)
}

/// Builds the agent, by the flags of its own workspace.
fn build_agent() -> Result<PathBuf, TaskError> {
    let target = commands::target_dir().join("agent");
    let mut command = commands::cargo(&["build", "--release"]);
    command
        .current_dir(commands::root().join(AGENT))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env("CARGO_TARGET_DIR", &target);
    // The last line of our own output is the image's path.
    commands::output(&mut command)?;
    Ok(target.join(commands::TARGET).join("release/lightv-init"))
}

/// Builds the image in `folder`.
fn build(program: &Program, agent: &[u8], folder: &Path) -> Result<(), TaskError> {
    let archive = folder.join("busybox.tar");
    write_archive(program, &archive)?;
    let source = Source::detect(&archive).map_err(TaskError::RootfsSource)?;
    let request = BuildRequest {
        source: &source,
        out: &folder.join("rootfs.erofs"),
        format: None,
        compression: Compression::None,
        size_mib: None,
        agent,
        copies: &[],
    };
    lightv_rootfs::build(&request).map_err(TaskError::Rootfs)?;
    fs::remove_file(&archive).map_err(|cause| cache::file_error(&archive, cause))
}

/// Writes a tar with busybox, a link for each applet, and `/etc`.
fn write_archive(program: &Program, path: &Path) -> Result<(), TaskError> {
    let failure = |cause| cache::file_error(path, cause);
    let applets = commands::output(Command::new(&program.path).arg("--list-full"))?;
    let mut archive = Builder::new(File::create(path).map_err(failure)?);
    let mut add = |path: &str, mode, content: &[u8]| {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        archive
            .append_data(&mut header, path, content)
            .map_err(failure)
    };
    add("bin/busybox", 0o755, &program.content)?;
    for path in list(&commands::root().join(FILES))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        add(&format!("etc/{name}"), 0o644, &cache::read(&path)?)?;
    }
    // `linuxrc`, which is in the root, is for initial RAM disks.
    let applets = applets.lines().filter(|applet| applet.contains('/'));
    for applet in applets.filter(|applet| *applet != "bin/busybox") {
        let mut header = header(EntryType::Symlink, 0o777);
        let added = archive.append_link(&mut header, applet, "/bin/busybox");
        added.map_err(failure)?;
    }
    archive.finish().map_err(failure)
}

/// Root's, of 1970: the same in each build.
fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}
