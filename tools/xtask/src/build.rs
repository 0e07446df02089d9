//! Tasks that build in release mode and run the result.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::commands::{self, TaskError};
use crate::reproducible::Recipe;
use crate::{prerequisites, supply, tidy};

/// What is shipped.
pub(crate) const SHIPPED: &[&str] = &["lightv", "lightv-vmm", "lightv-agent", "lightv-floor"];

/// Builds every binary that is shipped, once.
pub(crate) fn release() -> Result<(), TaskError> {
    prerequisites::require()?;
    commands::run(&mut commands::cargo(&[
        "build",
        "--release",
        "--package=lightv",
        "--package=lightv-vmm",
        "--package=lightv-agent",
        "--package=lightv-bench",
    ]))
}

/// The README's first command.
pub(crate) fn hello() -> Result<(), TaskError> {
    release()?;
    let image = commands::target_dir().join("hello-world.lv");
    commands::run(
        lightv()
            .args(["build", "hello-world", "--force", "-o"])
            .arg(&image),
    )?;
    let mut run = lightv();
    run.arg("run").arg(&image);
    eprintln!("$ {}", commands::describe(&run));
    let found = commands::output(&mut run)?;
    print!("{found}");
    if found.trim_end().ends_with("Hello, world!") {
        Ok(())
    } else {
        Err(TaskError::Hello { found })
    }
}

/// `lightv bench start` with `args`.
pub(crate) fn bench(args: &[String]) -> Result<(), TaskError> {
    release()?;
    commands::run(lightv().args(["bench", "start"]).args(args))
}

/// Lets the golden-file tests write what they would compare with.
pub(crate) fn golden() -> Result<(), TaskError> {
    let mut command = commands::cargo(&["test", "--package=lightv-vmm", "--", "golden"]);
    commands::run(command.env("LIGHTV_UPDATE_GOLDEN", "1"))
}

/// Writes docs/openapi.json, docs/agent-openapi.json and the golden answers of the REST server. What they were is in git: the
/// difference is to be read.
pub(crate) fn rest() -> Result<(), TaskError> {
    let packages = [
        "test",
        "--package=lightv-api-server",
        "--package=lightv-agent",
    ];
    let mut command = commands::cargo(&packages);
    commands::run(command.env("LIGHTV_UPDATE_REST", "1"))
}

/// Manual pages and completions, made from the command line's own definition.
pub(crate) fn man() -> Result<(), TaskError> {
    release()?;
    let pages = commands::target_dir().join("man");
    commands::run(lightv().arg("man").arg(&pages))?;
    let completions = commands::target_dir().join("completions");
    create_dir(&completions)?;
    for (shell, file) in [
        ("bash", "lightv.bash"),
        ("zsh", "_lightv"),
        ("fish", "lightv.fish"),
    ] {
        let text = commands::output(lightv().args(["completions", shell]))?;
        write(&completions.join(file), text.as_bytes())?;
    }
    eprintln!("Wrote {} and {}", pages.display(), completions.display());
    Ok(())
}

/// What is shipped, in target/dist (the release profile strips it), and what it is made of. Built anew: its bytes do not
/// depend on the folder.
pub(crate) fn dist() -> Result<(), TaskError> {
    prerequisites::require()?;
    tidy::tidy()?;
    supply::check()?;
    let target = commands::target_dir().join("dist-build");
    let built = Recipe::default().build(&commands::root(), &target)?;
    let dist = commands::target_dir().join("dist");
    create_dir(&dist)?;
    for name in SHIPPED {
        let from = built.join(name);
        let size_bytes = fs::copy(&from, dist.join(name)).map_err(|cause| TaskError::File {
            path: from.clone(),
            cause,
        })?;
        println!("{name:<14} {:>6} KiB", size_bytes / 1024);
    }
    supply::write_sbom(&dist.join("lightv.cdx.json"))
}

fn lightv() -> Command {
    Command::new(commands::release_dir().join("lightv"))
}

fn create_dir(path: &PathBuf) -> Result<(), TaskError> {
    fs::create_dir_all(path).map_err(|cause| TaskError::File {
        path: path.clone(),
        cause,
    })
}

fn write(path: &PathBuf, bytes: &[u8]) -> Result<(), TaskError> {
    fs::write(path, bytes).map_err(|cause| TaskError::File {
        path: path.clone(),
        cause,
    })
}
