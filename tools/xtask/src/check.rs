//! `cargo xtask check`: what must hold before every commit.

use crate::commands::{self, TaskError};
use crate::{prerequisites, suite, tidy};

/// Format, clippy, tidy, unit tests, in this order: the quick ones first.
pub(crate) fn check() -> Result<(), TaskError> {
    prerequisites::require()?;
    commands::run(&mut commands::cargo(&["fmt", "--all", "--check"]))?;
    tidy::tidy()?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    commands::run(&mut commands::cargo(&clippy))?;
    check_guest()?;
    suite::unit_tests()?
        .iter()
        .try_for_each(suite::Run::verdict)
}

fn check_guest() -> Result<(), TaskError> {
    commands::run(&mut commands::guest_cargo(&["fmt", "--check"]))?;
    commands::run(&mut commands::guest_cargo(&[
        "clippy",
        "--release",
        "--",
        "-D",
        "warnings",
    ]))
}
