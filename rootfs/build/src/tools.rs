//! Debian's tools: found, run, and their failures told with what they said.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fmt};

use crate::limits::TOOL_TEXT_BYTES_MAX;

/// Folders that users who are not root may not have in PATH.
const SYSTEM_FOLDERS: &[&str] = &["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Time of files that tools make by themselves: 1 is the earliest that e2fsprogs takes.
const FIXED_TIME: &str = "1";

/// A tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    /// Debian's package.
    pub(crate) package: &'static str,
}

pub(crate) const FAKEROOT: Tool = tool("fakeroot", "fakeroot");
pub(crate) const TAR: Tool = tool("tar", "tar");
pub(crate) const SETFATTR: Tool = tool("setfattr", "attr");
pub(crate) const MKFS_EROFS: Tool = tool("mkfs.erofs", "erofs-utils");
pub(crate) const MKE2FS: Tool = tool("mke2fs", "e2fsprogs");
pub(crate) const DEBUGFS: Tool = tool("debugfs", "e2fsprogs");
pub(crate) const SQFSTAR: Tool = tool("sqfstar", "squashfs-tools");

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is missing; Debian's package {package} has it (apt-get install {package})")]
    Missing {
        /// The program.
        program: &'static str,
        /// The package.
        package: &'static str,
    },
    /// The host refused to run it.
    #[error("Cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It failed.
    #[error("{program} ended with {status}: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last that it said.
        said: Said,
    },
}

/// What a tool said, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said(String);

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => formatter.write_str("it said nothing"),
            false => formatter.write_str(&self.0),
        }
    }
}

impl Tool {
    /// Its path.
    pub(crate) fn locate(self) -> Result<PathBuf, ToolError> {
        let path = search_path();
        let mut places = env::split_paths(&path).map(|folder| folder.join(self.program));
        places
            .find(|place| place.is_file())
            .ok_or(ToolError::Missing {
                program: self.program,
                package: self.package,
            })
    }

    /// A command that says the same on every host.
    pub(crate) fn command(self) -> Result<Command, ToolError> {
        let mut command = Command::new(self.locate()?);
        command
            .env("PATH", search_path())
            .env("LC_ALL", "C")
            .env("E2FSPROGS_FAKE_TIME", FIXED_TIME)
            // Owners are noted, not set: the staged files stay the caller's, also when that is root.
            .env("FAKEROOTDONTTRYCHOWN", "1")
            .env_remove("SOURCE_DATE_EPOCH");
        Ok(command)
    }

    /// Runs `command` to its end. `feed` writes its standard input; its error counts when the tool itself has none.
    pub(crate) fn run<E>(
        self,
        command: &mut Command,
        feed: impl FnOnce(std::process::ChildStdin) -> Result<(), E>,
    ) -> Result<Result<(), E>, ToolError> {
        let run_error = |cause| ToolError::Run {
            program: self.program,
            cause,
        };
        // A file, not a pipe: nobody reads it while the input is fed.
        let mut said = tempfile::tempfile().map_err(run_error)?;
        let copy = || said.try_clone().map_err(run_error);
        command
            .stdin(Stdio::piped())
            .stdout(copy()?)
            .stderr(copy()?);
        let mut child = command.spawn().map_err(run_error)?;
        // Dropped by `feed`, so that the tool sees the end.
        let fed = child.stdin.take().map_or(Ok(()), feed);
        let status = child.wait().map_err(run_error)?;
        if status.success() {
            return Ok(fed);
        }
        Err(ToolError::Failed {
            program: self.program,
            status,
            said: last_said(&mut said).map_err(run_error)?,
        })
    }
}

fn search_path() -> OsString {
    let own = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&own).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    env::join_paths(folders).unwrap_or(own)
}

/// The last lines, joined.
fn last_said(file: &mut File) -> io::Result<Said> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(
        length.saturating_sub(TOOL_TEXT_BYTES_MAX as u64),
    ))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(Said(lines.collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const SHELL: Tool = tool("sh", "dash");

    fn run(script: &str) -> Result<Result<(), io::Error>, ToolError> {
        let mut command = SHELL.command().expect("there");
        command.args(["-c", script]);
        SHELL.run(&mut command, |mut input| input.write_all(&[0; 1 << 20]))
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = tool("mkfs.nothing", "nothing-utils").locate();
        let text = error.expect_err("there is none").to_string();
        assert!(text.contains("apt-get install nothing-utils"), "{text}");
    }

    #[test]
    fn failures_tell_what_the_tool_said() {
        let error = run("cat >/dev/null; echo one; echo two >&2; exit 3").expect_err("it failed");
        assert_eq!(error.to_string(), "sh ended with exit status: 3: one; two");
        assert!(
            run("exit 1")
                .expect_err("it failed")
                .to_string()
                .contains("said nothing")
        );
    }

    #[test]
    fn input_that_a_successful_tool_did_not_take_is_an_error() {
        assert!(run("cat >/dev/null").expect("it ran").is_ok());
        assert!(run("exit 0").expect("it ran").is_err());
    }
}
