//! `cargo xtask tidy`: the rules that no compiler checks, each with a message that names file and line.

mod cycles;
mod docs;
mod edges;
mod hosts;
mod order;
mod rust_rules;
mod source;
mod tree;
mod unused;

use self::tree::Tree;
use crate::commands::{self, TaskError};

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Relative to the repository.
    file: String,
    /// From 1.
    line: usize,
    message: String,
}

impl Finding {
    fn new(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            message: message.into(),
        }
    }
}

/// Checks every rule and prints what is broken.
pub(crate) fn tidy() -> Result<(), TaskError> {
    let root = commands::root();
    let tree = Tree::read(&root).map_err(|cause| TaskError::File {
        path: root.clone(),
        cause,
    })?;
    let metadata = commands::output(&mut commands::cargo(&[
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
    ]))?;
    let mut findings = edges::check_edges(&metadata).ok_or(TaskError::Metadata)?;
    findings.extend(unused::check(&metadata, &tree).ok_or(TaskError::Metadata)?);
    findings.extend(check_tree(&tree));
    findings.sort();
    findings.dedup();
    for Finding {
        file,
        line,
        message,
    } in &findings
    {
        println!("{file}:{line}: {message}");
    }
    match findings.len() {
        0 => Ok(()),
        broken => Err(TaskError::Tidy { broken }),
    }
}

fn check_tree(tree: &Tree) -> Vec<Finding> {
    [
        rust_rules::check(tree),
        cycles::check(tree),
        edges::check_lockfile(tree),
        docs::check(tree),
        hosts::check(tree),
        order::check(tree),
    ]
    .concat()
}
