//! A test's own folder: everything that it starts works there, and what is left of it is seen there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::host::{binary, pids_in, processes_in};
use crate::process::{Finished, run, wait_for};

/// The folder. Cache, home and temporary files of what is started here lie in it too.
#[derive(Debug)]
pub struct Scratch {
    _folder: TempDir,
    path: PathBuf,
}

/// What was there at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing(BTreeSet<PathBuf>);

impl Scratch {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("lightv-tests-")
            .tempdir()
            .expect("a folder");
        let path = folder.path().canonicalize().expect("the folder's path");
        let mode = fs::Permissions::from_mode(0o700);
        fs::create_dir(path.join("run")).expect("a folder in the folder");
        fs::set_permissions(path.join("run"), mode).expect("the folder's mode");
        for part in ["tmp", "cache"] {
            fs::create_dir(path.join(part)).expect("a folder in the folder");
        }
        Self {
            _folder: folder,
            path,
        }
    }

    /// Its path.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A path in it, as text.
    ///
    /// # Panics
    /// When the path of temporary files is not text.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path in text").to_owned()
    }

    /// Writes a file in it.
    ///
    /// # Panics
    /// When there is no room.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// Reads a file in it.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"))
    }

    /// `program ARGS`, to be started here.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .args(args)
            .current_dir(&self.path)
            .env("TMPDIR", self.path("tmp"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("HOME", &self.path)
            .env("LIGHTV_RUNTIME_DIR", self.path("run"))
            .env_remove("LIGHTV_VMM");
        command
    }

    /// `lightv ARGS`, to be started here.
    #[must_use]
    pub fn lightv(&self, args: &[&str]) -> Command {
        self.command(binary("lightv"), args)
    }

    /// `lightv-vmm ARGS`, to be started here.
    #[must_use]
    pub fn vmm(&self, args: &[&str]) -> Command {
        self.command(binary("lightv-vmm"), args)
    }

    /// Runs `lightv ARGS` to its end.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Finished {
        run(&mut self.lightv(args))
    }

    /// Builds the image `APP.lv` of an embedded app with more of `lightv build`'s options; gives its name.
    ///
    /// # Panics
    /// When it cannot be built.
    #[must_use]
    pub fn build(&self, app: &str, options: &[&str]) -> String {
        let image = format!("{app}.lv");
        let args = [&["build", app, "--force", "-o", &image], options].concat();
        let _ = self.run(&args).with_code(0);
        image
    }

    /// The minimal guest as a file; gives its path.
    ///
    /// # Panics
    /// When `lightv` does not give it out.
    #[must_use]
    pub fn guest_kernel(&self) -> String {
        if let Ok(path) = std::env::var("LIGHTV_GUEST_ELF") {
            return path;
        }
        let path = self.text("guest.elf");
        if !Path::new(&path).exists() {
            let _ = self.run(&["kernel", "-o", &path]).with_code(0);
        }
        path
    }

    /// The minimal guest with the app that breaks the rules of every device, as a file.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn hostile_kernel(&self) -> String {
        let path = self.text("hostile.elf");
        if !Path::new(&path).exists() {
            let _ = self.run(&["kernel", "--raw", "-o", &path]).with_code(0);
        }
        path
    }

    /// Writes a configuration as a file; gives its name.
    ///
    /// # Panics
    /// When there is no room.
    #[must_use]
    pub fn config(&self, name: &str, json: &Value) -> String {
        self.write(name, json.to_string());
        name.to_owned()
    }

    /// Every file and folder in it.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn listing(&self) -> Listing {
        let mut found = BTreeSet::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder") {
                let entry = entry.expect("an entry");
                if entry.file_type().expect("its kind").is_dir() {
                    folders.push(entry.path());
                }
                found.insert(entry.path());
            }
        }
        Listing(found)
    }

    /// Looks whether nothing has come since `before`, and nothing runs here any more.
    ///
    /// # Panics
    /// When something has, or does.
    #[track_caller]
    pub fn assert_nothing_left(&self, before: &Listing) {
        self.assert_same_files(before);
        wait_for(
            &format!("the end of {:?}", processes_in(&self.path)),
            || processes_in(&self.path).is_empty().then_some(()),
        );
    }

    /// The same, but for the file `name`, which may have come.
    ///
    /// # Panics
    /// When another one has, or one is gone.
    #[track_caller]
    pub fn assert_same_files_but(&self, before: &Listing, name: &str) {
        let mut before = before.clone();
        let path = self.path(name);
        if path.exists() {
            before.0.insert(path);
        }
        self.assert_same_files(&before);
    }

    /// Looks whether nothing has come and nothing has gone since `before`.
    ///
    /// # Panics
    /// When something has.
    #[track_caller]
    pub fn assert_same_files(&self, before: &Listing) {
        let now = self.listing();
        let new: Vec<_> = now.0.difference(&before.0).collect();
        assert!(new.is_empty(), "left behind: {new:?}");
        let gone: Vec<_> = before.0.difference(&now.0).collect();
        assert!(gone.is_empty(), "removed: {gone:?}");
    }
}

impl Drop for Scratch {
    /// A test that fails leaves nothing running, though what it has started in the background would go on.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pid in pids_in(&self.path) {
                // One that has ended is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
