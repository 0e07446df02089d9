//! What a process is told of its own confinement: from flags to [`sandbox`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::MachineConfig;
use crate::kernel::{ReadFileError, read_file};
use crate::sandbox::{self, Chosen, CompileError, Filters, PathAccess, Rules};
use crate::vm::KVM_PATH;
use crate::{limits, runtime_dir};

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// The system calls of its threads.
    pub seccomp: SeccompChoice,
    /// The files that its threads may open.
    pub landlock: LandlockChoice,
}

/// Which files a process may still open once the guest runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LandlockChoice {
    /// Those that its flags and its machine name. Of a process with a REST API all: clients name more of them later.
    #[default]
    Named,
    /// All.
    Off,
    /// Those that its flags and its machine name, and these; also with a REST API.
    Given(Vec<(PathBuf, PathAccess)>),
}

/// To which system calls threads are held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeccompChoice {
    /// Those of LightV's lists.
    #[default]
    BuiltIn,
    /// All.
    Off,
    /// Those of the lists in this file, and of LightV's for threads that are not in it.
    File(PathBuf),
}

/// Why it cannot be done as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// No file.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// No filters in it.
    #[error("Seccomp filter {} is refused", path.display())]
    Compile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: CompileError,
    },
    /// A path that is allowed is not there.
    #[error("--landlock-rules: cannot look at {}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// What a process without a REST API may still write once the guest runs.
#[derive(Debug)]
pub struct Written<'a> {
    /// Images.
    pub images: [Option<&'a Path>; 2],
    /// Where the times of the start go.
    pub timings: Option<&'a Path>,
}

impl Confinement {
    /// Has the threads of this process held to it, from the time at which each is confined; of one with a REST API also to the
    /// paths that were given, and the folder of its socket.
    ///
    /// # Errors
    /// [`ConfinementError`].
    pub fn choose(&self, api_socket: Option<&Path>) -> Result<(), ConfinementError> {
        let given = self.given()?;
        let rules = api_socket.zip(given).map(|(socket, given)| {
            let used = [KVM_PATH, "/dev/net/tun", "/dev/userfaultfd"];
            let rules = used.into_iter().fold(own_rules(), |rules, path| {
                rules.with(path, PathAccess::ReadWrite)
            });
            let rules = with_runtime_folder(rules);
            add(rules.with_folder_of(socket, PathAccess::Remove), given)
        });
        let filters = self.filters()?;
        sandbox::choose(Chosen { filters, rules });
        Ok(())
    }

    /// What the loop of a process without a REST API may open once there is a machine, besides the runtime directory; `None`:
    /// all.
    #[must_use]
    pub fn rules(&self, config: &MachineConfig, written: &Written<'_>) -> Option<Rules> {
        let given = match &self.landlock {
            LandlockChoice::Off => return None,
            LandlockChoice::Named => &[][..],
            LandlockChoice::Given(given) => given,
        };
        let files = written.images.into_iter().chain([written.timings]);
        let mut rules = files.flatten().fold(own_rules(), |rules, path| {
            rules.with_folder_of(path, PathAccess::ReadWrite)
        });
        if let Some(vsock) = config.vsock() {
            rules = rules.with_folder_of(&vsock.path, PathAccess::Remove);
        }
        // A new delta is safe when its name is.
        let overlays = config
            .drives()
            .iter()
            .filter_map(|drive| drive.overlay.as_ref());
        for delta in overlays.filter_map(|overlay| overlay.path.as_deref()) {
            rules = rules.with_folder_of(delta, PathAccess::List);
        }
        Some(add(rules, given))
    }

    /// The paths that were given, which have to be there.
    fn given(&self) -> Result<Option<&[(PathBuf, PathAccess)]>, ConfinementError> {
        let LandlockChoice::Given(given) = &self.landlock else {
            return Ok(None);
        };
        for (path, _) in given {
            fs::metadata(path).map_err(|cause| ConfinementError::Path {
                path: path.clone(),
                cause,
            })?;
        }
        Ok(Some(given))
    }

    fn filters(&self) -> Result<Filters, ConfinementError> {
        Ok(match &self.seccomp {
            SeccompChoice::BuiltIn => Filters::default(),
            SeccompChoice::Off => Filters::Off,
            SeccompChoice::File(path) => {
                let json = read_file("seccomp filter", path, limits::FILTER_FILE_BYTES_MAX)?;
                sandbox::compile(&json).map_err(|cause| ConfinementError::Compile {
                    path: path.clone(),
                    cause,
                })?
            }
        })
    }
}

/// What every process opens: what the kernel says of itself and of the process, and a place to leave a terminal for.
fn own_rules() -> Rules {
    Rules::default()
        .with("/proc/self", PathAccess::Read)
        .with("/proc/sys/kernel/random", PathAccess::Read)
        .with("/dev/null", PathAccess::ReadWrite)
}

/// Allows the runtime directory too, which is made for that.
#[must_use]
pub fn with_runtime_folder(rules: Rules) -> Rules {
    match runtime_dir::ensure_folder() {
        Ok(folder) => rules.with(folder, PathAccess::ReadWrite),
        // It is said when the process would be listed there.
        Err(_) => rules,
    }
}

fn add(rules: Rules, given: &[(PathBuf, PathAccess)]) -> Rules {
    let given = given.iter();
    given.fold(rules, |rules, (path, access)| rules.with(path, *access))
}
