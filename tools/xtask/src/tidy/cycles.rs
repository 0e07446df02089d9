//! No two modules of one crate import each other, directly or around a corner.
//!
//! A module and those inside it are one subject, so imports between them do not count; neither do tests.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::source::code_only;
use super::tree::{TextFile, Tree};

/// Crates that are large enough to need the rule.
const CRATES: &[&str] = &[
    "api/src/",
    "api/server/src/",
    "vmm/src/",
    "devices/src/",
    "tools/lightv/src/",
    "tools/bench/src/",
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    CRATES
        .iter()
        .flat_map(|source| check_crate(tree, source))
        .collect()
}

/// Where an import was seen.
type Place = (String, usize);

/// Imports between modules: from → to → the first place.
type Graph = BTreeMap<String, BTreeMap<String, Place>>;

fn check_crate(tree: &Tree, source: &str) -> Vec<Finding> {
    let files: Vec<&TextFile> = tree
        .with_extension("rs")
        .filter(|file| file.path.starts_with(source))
        .collect();
    let modules: BTreeSet<String> = files
        .iter()
        .map(|file| module_name(&file.path, source))
        .collect();
    let mut graph = Graph::new();
    for file in files {
        let from = module_name(&file.path, source);
        if from.is_empty() || file.path.ends_with("_tests.rs") {
            continue;
        }
        for (line, import) in imports(&file.text, &from) {
            let Some(to) = longest_module(&import, &modules) else {
                continue;
            };
            if !is_inside(&from, &to) && !is_inside(&to, &from) {
                let places = graph.entry(from.clone()).or_default();
                places
                    .entry(to)
                    .or_insert_with(|| (file.path.clone(), line));
            }
        }
    }
    cycles(&graph)
}

/// `vmm/src/image/header.rs` is `image::header`; `lib.rs`, `main.rs` and those in `bin/` are roots: "".
pub(super) fn module_name(path: &str, source: &str) -> String {
    let name = path[source.len()..].trim_end_matches(".rs");
    match name.trim_end_matches("/mod") {
        "lib" | "main" | "mod" => String::new(),
        name if name.starts_with("bin/") => String::new(),
        name => name.replace('/', "::"),
    }
}

/// Every path below `crate` that the code before the tests names, with its line.
pub(super) fn imports(text: &str, from: &str) -> Vec<(usize, String)> {
    let code = code_only(text);
    let code = code
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count() + 1;
        let paths = expand(&code[at + "crate::".len()..]);
        found.extend(paths.into_iter().map(|path| (line, path)));
    }
    let parent = from.rsplit_once("::").map_or("", |(parent, _)| parent);
    for (at, _) in code.match_indices("use super::") {
        let line = code[..at].matches('\n').count() + 1;
        let paths = expand(&code[at + "use super::".len()..]);
        let absolute = |path| {
            if parent.is_empty() {
                path
            } else {
                format!("{parent}::{path}")
            }
        };
        found.extend(paths.into_iter().map(|path| (line, absolute(path))));
    }
    found
}

/// The paths of a use tree at the start of `code`: `a::{b, c::d}` gives `a::b` and `a::c::d`.
fn expand(code: &str) -> Vec<String> {
    let end = code
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
        .unwrap_or(code.len());
    let prefix = &code[..end];
    let Some(group) = code[end..].strip_prefix('{') else {
        return vec![prefix.trim_end_matches(':').to_owned()];
    };
    split_group(group)
        .into_iter()
        .flat_map(|member| expand(member.trim()))
        .map(|member| format!("{prefix}{member}"))
        .collect()
}

/// The members of a group, up to the brace that closes it.
fn split_group(group: &str) -> Vec<&str> {
    let (mut members, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    members.retain(|member| !member.trim().is_empty());
    members
}

fn longest_module(path: &str, modules: &BTreeSet<String>) -> Option<String> {
    let mut path = path;
    loop {
        if modules.contains(path) && !path.is_empty() {
            return Some(path.to_owned());
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// Whether `module` is `outer` or lies in it.
fn is_inside(module: &str, outer: &str) -> bool {
    module
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn cycles(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (from, targets) in graph {
        for (to, (file, line)) in targets {
            if let Some(back) = path_between(graph, to, from)
                // Reported once, at the edge out of its smallest module.
                && back.iter().all(|module| from <= module)
            {
                let mut chain = vec![from.clone()];
                chain.extend(back);
                let message = format!("modules import each other: {}", chain.join(" → "));
                findings.push(Finding::new(file, *line, message));
            }
        }
    }
    findings
}

/// A shortest chain of modules from `start` to `goal`, both included.
fn path_between(graph: &Graph, start: &str, goal: &str) -> Option<Vec<String>> {
    let mut reached: BTreeSet<&str> = BTreeSet::from([start]);
    let mut chains = vec![vec![start]];
    while !chains.is_empty() {
        let mut longer = Vec::new();
        for chain in chains {
            let last = *chain.last()?;
            if last == goal {
                return Some(chain.into_iter().map(str::to_owned).collect());
            }
            for next in graph.get(last).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(next) {
                    longer.push([chain.as_slice(), &[next.as_str()]].concat());
                }
            }
        }
        chains = longer;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_files(files: &[(&str, &str)], expected: &[&str]) {
        let found: Vec<String> = check(&Tree::of(files))
            .into_iter()
            .map(|finding| finding.message)
            .collect();
        let expected: Vec<String> = expected
            .iter()
            .map(|chain| format!("modules import each other: {chain}"))
            .collect();
        assert_eq!(found, expected, "{files:?}");
    }

    #[test]
    fn two_modules_that_import_each_other_are_found() {
        let a = ("vmm/src/a.rs", "use crate::b::B;");
        check_files(
            &[a, ("vmm/src/b.rs", "use crate::a::{A, C};")],
            &["a → b → a"],
        );
        check_files(&[a, ("vmm/src/b.rs", "use std::io;")], &[]);
        check_files(
            &[a, ("vmm/src/b.rs", "fn f() -> crate::a::A {}")],
            &["a → b → a"],
        );
    }

    #[test]
    fn longer_cycles_are_found_once() {
        let files = [
            ("vmm/src/a.rs", "use crate::{b::B, d};"),
            ("vmm/src/b/mod.rs", "use crate::c::x::X;"),
            ("vmm/src/c/x.rs", "use crate::a;"),
            ("vmm/src/c/mod.rs", ""),
            ("vmm/src/d.rs", ""),
        ];
        check_files(&files, &["a → b → c::x → a"]);
    }

    #[test]
    fn a_module_and_its_parts_are_one_subject() {
        let files = [
            ("vmm/src/a/mod.rs", "use crate::a::x::X;"),
            ("vmm/src/a/x.rs", "use super::A;\nuse super::y::Y;"),
            ("vmm/src/a/y.rs", ""),
        ];
        check_files(&files, &[]);
        let both = [
            ("vmm/src/a/mod.rs", ""),
            ("vmm/src/a/x.rs", "use super::y::Y;"),
            ("vmm/src/a/y.rs", "use super::x::X;"),
        ];
        check_files(&both, &["a::x → a::y → a::x"]);
    }

    #[test]
    fn tests_and_comments_do_not_count() {
        let files = [
            ("vmm/src/a.rs", "use crate::b;"),
            (
                "vmm/src/b.rs",
                "// use crate::a;\n#[cfg(test)]\nmod tests { use crate::a; }",
            ),
            ("vmm/src/b_tests.rs", "use crate::a;"),
        ];
        check_files(&files, &[]);
    }
}
