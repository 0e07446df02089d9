//! Lists of modules in docs/architecture.md: all modules of the crate are there, and each uses only those before it.

use super::Finding;
use super::cycles::{imports, module_name};
use super::tree::{TextFile, Tree};

const DOCUMENT: &str = "docs/architecture.md";

/// What the paragraph below a heading lists.
const LISTS: &[(&str, &str)] = &[
    ("## The host agent", "tools/agent/src/"),
    ("## Modules of `vmm`", "vmm/src/"),
];

/// It is no module of the library, and stands last.
const PROGRAM: &str = "main";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(document) = tree.file(DOCUMENT) else {
        return Vec::new();
    };
    LISTS
        .iter()
        .flat_map(|(heading, source)| check_crate(tree, &listed(document, heading), source))
        .collect()
}

/// Names in the paragraph below `heading`, with their lines, in order.
fn listed<'a>(document: &'a TextFile, heading: &str) -> Vec<(usize, &'a str)> {
    document
        .lines()
        .skip_while(|(_, text)| !text.starts_with(heading))
        .skip(1)
        .take_while(|(_, text)| !text.is_empty())
        .flat_map(|(line, text)| {
            let names = text.split('`').skip(1).step_by(2);
            names.map(move |name| (line, name))
        })
        .collect()
}

fn check_crate(tree: &Tree, listed: &[(usize, &str)], source: &str) -> Vec<Finding> {
    let Some(root) = tree.file(&format!("{source}lib.rs")) else {
        return Vec::new();
    };
    let place = |module: &str| listed.iter().position(|(_, name)| *name == module);
    let declared: Vec<(usize, &str)> = root
        .lines()
        .filter_map(|(line, text)| {
            let text = text.strip_prefix("pub ").unwrap_or(text);
            Some((line, text.strip_prefix("mod ")?.strip_suffix(';')?))
        })
        .collect();
    let mut findings = Vec::new();
    for (line, module) in &declared {
        if place(module).is_none() {
            let message = format!("module {module} is not in the list of {DOCUMENT}");
            findings.push(Finding::new(&root.path, *line, message));
        }
    }
    for (line, name) in listed {
        if *name != PROGRAM && !declared.iter().any(|(_, module)| module == name) {
            let message = format!("{source} has no module {name}");
            findings.push(Finding::new(DOCUMENT, *line, message));
        }
    }
    let files = tree.with_extension("rs");
    for file in files.filter(|file| file.path.starts_with(source)) {
        findings.extend(check_order(file, &module_name(&file.path, source), place));
    }
    findings
}

fn check_order(file: &TextFile, from: &str, place: impl Fn(&str) -> Option<usize>) -> Vec<Finding> {
    let top = |path: &str| path.split("::").next().unwrap_or_default().to_owned();
    let module = top(from);
    if file.path.ends_with("_tests.rs") {
        return Vec::new();
    }
    let Some(own) = place(&module) else {
        return Vec::new();
    };
    let used = imports(&file.text, from).into_iter();
    used.filter_map(|(line, path)| {
        let used = top(&path);
        let message = format!("{module} uses {used}, which comes after it in {DOCUMENT}");
        (place(&used)? > own).then(|| Finding::new(&file.path, line, message))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_list(list: &str, files: &[(&str, &str)], expected: &[&str]) {
        let document = format!("# A\n\n## Modules of `vmm`, in order\n{list}\n\n`c`\n");
        let files = [&[(DOCUMENT, document.as_str())], files].concat();
        let found: Vec<String> = check(&Tree::of(&files))
            .into_iter()
            .map(|finding| format!("{}:{}: {}", finding.file, finding.line, finding.message))
            .collect();
        assert_eq!(found, expected, "{list}");
    }

    #[test]
    fn lists_of_modules_are_whole_and_in_order() {
        let root = ("vmm/src/lib.rs", "pub mod a;\n#[x]\nmod b;");
        let both = [
            root,
            ("vmm/src/a/x.rs", "use super::y;\nuse crate::a;"),
            ("vmm/src/b.rs", "use std::io;\nuse crate::a::A;"),
        ];
        check_list("`a` ·\n`b` · `main`", &both, &[]);
        let order = "vmm/src/b.rs:2: b uses a, which comes after it in docs/architecture.md";
        check_list("`b` `a`", &both, &[order]);
        let missing = "vmm/src/lib.rs:3: module b is not in the list of docs/architecture.md";
        check_list("`a`", &both, &[missing]);
        let unknown = "docs/architecture.md:5: vmm/src/ has no module d";
        check_list("`a`\n`d` `b`", &[root], &[unknown]);
    }
}
