//! How a command ends without success: one message, one exit code.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use lightv_api::exit;

/// An operation's error that knows its exit code.
pub(crate) trait Coded: Error + 'static {
    /// One of [`lightv_api::exit`], or the status of a process that was run.
    fn exit_code(&self) -> u8;
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An operation failed.
    Operation {
        error: Box<dyn Error>,
        exit_code: u8,
    },
    /// Our output could not be written.
    Output(io::Error),
}

impl<E: Coded> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Operation {
            exit_code: error.exit_code(),
            error: Box::new(error),
        }
    }
}

impl Failure {
    /// In words, with its causes, in one line.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Operation { error, .. } => chain(error.as_ref()),
            Self::Output(cause) => format!("Cannot write the output: {cause}"),
        }
    }

    /// Prints `lightv: …` and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Operation { exit_code, .. } => {
                eprintln!("lightv: {}", self.text());
                ExitCode::from(*exit_code)
            }
            // Whoever read our output has seen enough.
            Self::Output(cause) if cause.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Output(_) => {
                eprintln!("lightv: {}", self.text());
                ExitCode::from(exit::FAILURE)
            }
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
