//! `cargo xtask check`: what must hold before every commit.

use crate::commands::{self, TaskError};
use crate::{fuzz, prerequisites, suite, supply, tidy};

/// [`lint`], then the unit tests.
pub(crate) fn check() -> Result<(), TaskError> {
    lint()?;
    suite::unit_tests()?
        .iter()
        .try_for_each(suite::Run::verdict)
}

/// Format, tidy, supply, clippy, in this order: the quick ones first.
pub(crate) fn lint() -> Result<(), TaskError> {
    prerequisites::require()?;
    commands::run(&mut commands::cargo(&["fmt", "--all", "--check"]))?;
    tidy::tidy()?;
    supply::check()?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--features=lightv-tests/linux,lightv-tests/clients",
        "--",
        "-D",
        "warnings",
    ];
    commands::run(&mut commands::cargo(&clippy))?;
    check_guests()?;
    fuzz::check()
}

/// Both guests: the minimal one, and the agent of a Linux one.
fn check_guests() -> Result<(), TaskError> {
    for cargo in [commands::guest_cargo, commands::agent_cargo] {
        commands::run(&mut cargo(&["fmt", "--check"]))?;
        let clippy = [
            "clippy",
            "--release",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ];
        commands::run(&mut cargo(&clippy))?;
    }
    Ok(())
}
