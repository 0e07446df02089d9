//! The filters of system calls: compiled from `vmm/seccomp/*.json` when the monitor is built, or from a file of that form.

use std::error::Error;
use std::fmt;

use seccompiler::{BpfProgram, TargetArch, sock_filter};

use super::ThreadKind;

// COMPILED, by vmm/build.rs.
include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// What the threads of this process are held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filters {
    /// Nothing.
    Off,
    /// Its own lists, but for threads that have another one here.
    On(Vec<(ThreadKind, BpfProgram)>),
}

impl Default for Filters {
    fn default() -> Self {
        Self::On(Vec::new())
    }
}

/// Why a file holds no filters.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// seccompiler's.
    #[error("it is not a list of filters in seccompiler's JSON form")]
    Refused(#[source] seccompiler::Error),
    /// Of no thread.
    #[error("there is no kind of thread `{name}`; there are {}", Names)]
    UnknownThread {
        /// What it says.
        name: String,
    },
    /// Nothing in it.
    #[error("it holds no filter")]
    Empty,
}

/// The names of all kinds of threads.
struct Names;

impl fmt::Display for Names {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&ThreadKind::ALL.map(ThreadKind::name).join(", "))
    }
}

/// Compiles a file of filters. Threads that it does not name keep LightV's.
///
/// # Errors
/// [`CompileError`].
pub fn compile(json: &[u8]) -> Result<Filters, CompileError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|cause| CompileError::Refused(cause.into()))?;
    let compiled = seccompiler::compile_from_json(json, arch).map_err(CompileError::Refused)?;
    if compiled.is_empty() {
        return Err(CompileError::Empty);
    }
    let programs = compiled.into_iter().map(|(name, program)| {
        let kind = ThreadKind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.map(|kind| (kind, program))
            .ok_or(CompileError::UnknownThread { name })
    });
    programs.collect::<Result<_, _>>().map(Filters::On)
}

impl Filters {
    /// Holds the calling thread, and all that it will start, to the list of `kind`.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn apply(&self, kind: ThreadKind) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Self::On(given) = self else {
            return Ok(());
        };
        let given = given.iter().find(|(other, _)| *other == kind);
        let program = match given {
            Some((_, program)) => program,
            None => built_in(kind).ok_or("there is no list for it")?,
        };
        Ok(seccompiler::apply_filter(program)?)
    }
}

fn built_in(kind: ThreadKind) -> Option<&'static [sock_filter]> {
    let found = COMPILED.iter().find(|(name, _)| *name == kind.name());
    found.map(|(_, program)| *program)
}

#[cfg(test)]
#[path = "filters_tests.rs"]
mod tests;
