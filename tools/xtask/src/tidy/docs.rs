//! Rules on documents: links lead somewhere, decisions are listed, saved forms are described.

use super::Finding;
use super::tree::{TextFile, Tree};

const FORMAT: &str = "docs/snapshot-format.md";
const ADRS: &str = "docs/adr/";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings: Vec<Finding> = tree
        .with_extension("md")
        .flat_map(|file| check_links(tree, file))
        .collect();
    findings.extend(check_adrs(tree));
    findings.extend(check_sections(tree));
    findings
}

/// Relative links resolve.
fn check_links(tree: &Tree, file: &TextFile) -> Vec<Finding> {
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    let mut is_fenced = false;
    for (line, text) in file.lines() {
        if text.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        }
        if is_fenced {
            continue;
        }
        for link in links(text) {
            let target = link.split(['#', ' ']).next().unwrap_or_default();
            let is_elsewhere = target.contains("://") || target.starts_with("mailto:");
            if target.is_empty() || is_elsewhere {
                continue;
            }
            if !resolve(folder, target).is_some_and(|path| tree.contains(&path)) {
                let message = format!("the link to {target} leads nowhere");
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

/// Targets of `[text](target)` outside of `code`.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (index, part) in text.split('`').enumerate() {
        // Every second part is code, except that a link's text may hold code: `](` then starts the next part.
        if index % 2 == 1 {
            continue;
        }
        for (at, _) in part.match_indices("](") {
            let target = &part[at + 2..];
            found.extend(target.find(')').map(|end| &target[..end]));
        }
    }
    found
}

/// `target` as a path from the repository's root; `None` when it leaves the repository.
fn resolve(folder: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Every decision is linked from the list of decisions.
fn check_adrs(tree: &Tree) -> Vec<Finding> {
    let index_path = format!("{ADRS}README.md");
    let index = tree.file(&index_path).map_or("", |file| file.text.as_str());
    let adrs = tree
        .with_extension("md")
        .filter_map(|file| file.path.strip_prefix(ADRS));
    adrs.filter(|name| *name != "README.md" && !index.contains(&format!("]({name})")))
        .map(|name| {
            Finding::new(
                &format!("{ADRS}{name}"),
                1,
                format!("not linked from {index_path}"),
            )
        })
        .collect()
}

/// Every `const KIND` and `const VERSION` of a saved section stands in one line of the format's document.
fn check_sections(tree: &Tree) -> Vec<Finding> {
    let document = tree.file(FORMAT).map_or("", |file| file.text.as_str());
    let sources = tree.with_extension("rs").filter(|file| {
        ["vmm/src/", "devices/src/"]
            .iter()
            .any(|source| file.path.starts_with(source))
    });
    let mut findings = Vec::new();
    for file in sources {
        for (line, kind, version) in sections(file) {
            let is_described = document.lines().any(|row| {
                row.contains(&format!("`{kind}`"))
                    && row
                        .split(|c: char| !c.is_ascii_digit())
                        .any(|word| word == version)
            });
            if !is_described {
                let message = format!("section `{kind}` version {version} is not in {FORMAT}");
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

/// `const KIND: … = "kind";` with the `const VERSION: … = N;` that follows within three lines.
fn sections(file: &TextFile) -> Vec<(usize, String, String)> {
    let lines: Vec<&str> = file.text.lines().collect();
    let value = |line: &str, name: &str| {
        let (declaration, value) = line.split_once('=')?;
        declaration
            .contains(&format!("const {name}:"))
            .then(|| value.trim_matches([' ', ';', '"']).to_owned())
    };
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(kind) = value(line, "KIND") else {
            continue;
        };
        let next = lines[index..].iter().take(4).find_map(|line| {
            let at = line.find("const VERSION")?;
            value(&line[at..], "VERSION")
        });
        found.extend(next.map(|version| (index + 1, kind.clone(), version)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_files(files: &[(&str, &str)], expected: &[(&str, usize)]) {
        let findings = check(&Tree::of(files));
        let found: Vec<(&str, usize)> = findings
            .iter()
            .map(|finding| (finding.file.as_str(), finding.line))
            .collect();
        assert_eq!(found, expected, "{findings:?}");
    }

    #[test]
    fn relative_links_resolve() {
        let target = ("docs/b.md", "");
        check_files(
            &[
                ("docs/a.md", "x\n[b](b.md) [c](../docs/b.md#x) [d](../docs)"),
                target,
            ],
            &[],
        );
        check_files(
            &[("docs/a.md", "x\n[b](c.md)"), target],
            &[("docs/a.md", 2)],
        );
        check_files(
            &[("docs/a.md", "[b](../../b.md)"), target],
            &[("docs/a.md", 1)],
        );
        check_files(&[("docs/a.md", "[`b`](c.md)"), target], &[("docs/a.md", 1)]);
        check_files(
            &[(
                "a.md",
                "`[b](c.md)` [w](https://x.org) [h](#h)\n```\n[b](c.md)\n```",
            )],
            &[],
        );
    }

    #[test]
    fn decisions_are_listed() {
        let adr = ("docs/adr/0001-x.md", "");
        check_files(&[adr, ("docs/adr/README.md", "[x](0001-x.md)")], &[]);
        check_files(
            &[adr, ("docs/adr/README.md", "")],
            &[("docs/adr/0001-x.md", 1)],
        );
    }

    #[test]
    fn saved_sections_are_described() {
        let source = (
            "vmm/src/a.rs",
            "\nconst KIND: &'static str = \"vcpu\";\nconst VERSION: u16 = 2;",
        );
        check_files(&[source, (FORMAT, "| `vcpu` | 2 |")], &[]);
        check_files(
            &[source, (FORMAT, "| `vcpu` | 12 |")],
            &[("vmm/src/a.rs", 2)],
        );
        check_files(&[source], &[("vmm/src/a.rs", 2)]);
    }
}
