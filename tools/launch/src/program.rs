//! Where LightV's programs are.

use std::env;
use std::path::{Path, PathBuf};

/// A program that another one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `lightv-vmm`.
    Monitor,
    /// `lightv-agent`.
    Agent,
}

/// A program is nowhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "Cannot find {}: it is neither beside lightv nor on PATH. Install both together, or set {}",
    program.name(), program.variable()
)]
pub struct NotFound {
    /// Which one.
    pub program: Program,
}

impl Program {
    /// Its file's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Monitor => "lightv-vmm",
            Self::Agent => "lightv-agent",
        }
    }

    /// The environment variable that names another one.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Monitor => "LIGHTV_VMM",
            Self::Agent => "LIGHTV_AGENT",
        }
    }

    /// The one that the environment names, if it does.
    #[must_use]
    pub fn overridden(self) -> Option<PathBuf> {
        env::var_os(self.variable()).map(PathBuf::from)
    }

    /// Where it is: named by the environment, else beside our own program, else on PATH.
    ///
    /// # Errors
    /// [`NotFound`].
    pub fn find(self) -> Result<PathBuf, NotFound> {
        if let Some(program) = self.overridden() {
            return Ok(program);
        }
        let on_path = || {
            let path = env::var_os("PATH")?;
            env::split_paths(&path)
                .map(|folder| folder.join(self.name()))
                .find(|program| program.is_file())
        };
        self.beside_us()
            .filter(|program| program.is_file())
            .or_else(on_path)
            .ok_or(NotFound { program: self })
    }

    fn beside_us(self) -> Option<PathBuf> {
        let own = env::current_exe().ok()?;
        Some(own.parent().unwrap_or(Path::new(".")).join(self.name()))
    }
}
