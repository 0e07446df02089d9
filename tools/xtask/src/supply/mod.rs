//! `cargo xtask supply`, `sbom`: what of others is in a build, and whether deny.toml allows it. All that needs no network;
//! known vulnerabilities are cargo-deny's, which reads the same file.

mod graph;
mod policy;
mod sbom;

use std::path::{Path, PathBuf};

use self::graph::{Edges, Graph};
use self::policy::Policy;
use crate::cache::file_error;
use crate::commands::{self, TaskError};

/// What is shipped is built of these: packages of the workspace, and both guests, which `lightv` embeds.
pub(crate) const SHIPPED: &[&str] = &["lightv", "lightv-vmm", "lightv-agent", "lightv-bench"];

/// Licences, sources and doubled versions.
pub(crate) fn check() -> Result<(), TaskError> {
    let path = commands::root().join("deny.toml");
    let text = read(&path)?;
    let policy = Policy::parse(&text).map_err(|cause| TaskError::Policy { path, cause })?;
    let all = Edges::WithTests;
    let graphs = [
        Graph::read(commands::cargo, &[], all)?,
        Graph::read(commands::guest_cargo, &[], all)?,
        Graph::read(commands::agent_cargo, &[], all)?,
    ];
    let findings = policy.check(&graphs);
    for finding in &findings {
        println!("deny.toml: {finding}");
    }
    match findings.len() {
        0 => Ok(()),
        broken => Err(TaskError::Supply { broken }),
    }
}

/// Writes what is in the shipped binaries as CycloneDX, into the file named by `args` or into target/.
pub(crate) fn sbom(args: &[String]) -> Result<(), TaskError> {
    let path = match args {
        [] => commands::target_dir().join("lightv.cdx.json"),
        [path] => PathBuf::from(path),
        [_, other, ..] => return Err(TaskError::Argument(other.clone())),
    };
    write_sbom(&path)?;
    println!("{}", path.display());
    Ok(())
}

/// The same, as `path`.
pub(crate) fn write_sbom(path: &Path) -> Result<(), TaskError> {
    let graphs = [
        Graph::read(commands::cargo, SHIPPED, Edges::Built)?,
        Graph::read(commands::guest_cargo, &["lightv-guest"], Edges::Built)?,
        Graph::read(commands::agent_cargo, &["lightv-init"], Edges::Built)?,
    ];
    let document = sbom::document(&graphs, &platform()?);
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|cause| file_error(folder, cause))?;
    }
    std::fs::write(path, text).map_err(|cause| file_error(path, cause))
}

/// What every binary has in it that is no crate.
fn platform() -> Result<Vec<sbom::Foreign>, TaskError> {
    let rustc = commands::output(std::process::Command::new("rustc").arg("--version"))?;
    let libc = commands::output(std::process::Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let second = |text: &str| {
        let word = text.split_whitespace().nth(1);
        word.unwrap_or("unknown").to_owned()
    };
    Ok(vec![
        sbom::Foreign {
            name: "rust-std",
            version: second(&rustc),
            license: "MIT OR Apache-2.0",
        },
        sbom::Foreign {
            name: "glibc",
            version: second(&libc),
            license: "LGPL-2.1-or-later",
        },
    ])
}

fn read(path: &Path) -> Result<String, TaskError> {
    std::fs::read_to_string(path).map_err(|cause| file_error(path, cause))
}
