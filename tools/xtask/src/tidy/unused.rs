//! No crate is named that nobody uses: in a `Cargo.toml` of ours, and in the workspace's list of versions.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Finding;
use super::source::{code_only, has_word};
use super::tree::Tree;

/// Dependencies that no source names, and why they are there all the same.
const UNNAMED: &[(&str, &str)] = &[];

/// Checks the answer of `cargo metadata`; `None` when it has not its format.
pub(super) fn check(metadata: &str, tree: &Tree) -> Option<Vec<Finding>> {
    let metadata: Value = serde_json::from_str(metadata).ok()?;
    let root = metadata.get("workspace_root")?.as_str()?;
    let mut findings = Vec::new();
    let mut declared = BTreeSet::new();
    for package in metadata.get("packages")?.as_array()? {
        let name = package.get("name")?.as_str()?;
        let manifest = package.get("manifest_path")?.as_str()?;
        let manifest = manifest.strip_prefix(root).unwrap_or(manifest);
        let manifest = manifest.trim_start_matches('/');
        let folder = manifest.trim_end_matches("Cargo.toml");
        let code = code_below(tree, folder);
        for dependency in package.get("dependencies")?.as_array()? {
            let used = dependency.get("name")?.as_str()?;
            declared.insert(used.to_owned());
            let rename = dependency.get("rename").and_then(Value::as_str);
            let word = rename.unwrap_or(used).replace('-', "_");
            if !has_word(&code, &word) && !UNNAMED.contains(&(name, used)) {
                let message = format!("no source of {name} uses {used}: remove it");
                findings.push(Finding::new(
                    manifest,
                    line_of(tree, manifest, used),
                    message,
                ));
            }
        }
    }
    findings.extend(check_list(tree, &declared));
    Some(findings)
}

/// All code of the package in `folder`, without that of packages below it.
fn code_below(tree: &Tree, folder: &str) -> String {
    let manifests = tree
        .files()
        .filter_map(|file| file.path.strip_suffix("Cargo.toml"));
    let inner: Vec<&str> = manifests
        .filter(|other| other.starts_with(folder) && *other != folder)
        .collect();
    let sources = tree.with_extension("rs").filter(|file| {
        file.path.starts_with(folder) && !inner.iter().any(|other| file.path.starts_with(other))
    });
    let mut code = String::new();
    for source in sources {
        code.push_str(&code_only(&source.text));
        code.push('\n');
    }
    code
}

/// Where `manifest` names the crate.
fn line_of(tree: &Tree, manifest: &str, name: &str) -> usize {
    let lines = tree
        .file(manifest)
        .into_iter()
        .flat_map(super::tree::TextFile::lines);
    let mut named = lines.filter(|(_, text)| key_of(text) == Some(name));
    named.next().map_or(1, |(line, _)| line)
}

/// Versions that no package asks for.
fn check_list(tree: &Tree, declared: &BTreeSet<String>) -> Vec<Finding> {
    let Some(manifest) = tree.file("Cargo.toml") else {
        return Vec::new();
    };
    let mut is_in_list = false;
    let mut findings = Vec::new();
    for (line, text) in manifest.lines() {
        if text.starts_with('[') {
            is_in_list = text == "[workspace.dependencies]";
            continue;
        }
        if let Some(name) = key_of(text)
            && is_in_list
            && !declared.contains(name)
        {
            let message = format!("no package uses {name}: remove it");
            findings.push(Finding::new(&manifest.path, line, message));
        }
    }
    findings
}

/// `KEY = …`, or `KEY.workspace = true`.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    let key = key.strip_suffix(".workspace").unwrap_or(key);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (!key.is_empty() && key.chars().all(is_plain)).then_some(key)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_code(code: &str, expected: &[(&str, usize)]) {
        let metadata = json!({"workspace_root": "/r", "packages": [{
            "name": "a", "manifest_path": "/r/a/Cargo.toml",
            "dependencies": [{"name": "one-crate", "rename": null}, {"name": "two", "rename": "other"}],
        }]});
        let root = "[workspace.dependencies]\none-crate = \"1\"\ntwo = \"1\"\nthree = { version = \"1\" }\n[profile.dev]\npanic = \"abort\"";
        let tree = Tree::of(&[
            ("Cargo.toml", root),
            (
                "a/Cargo.toml",
                "[dependencies]\none-crate.workspace = true\n",
            ),
            ("a/src/lib.rs", code),
            ("a/inner/Cargo.toml", ""),
            ("a/inner/src/lib.rs", "use one_crate::x; use other::y;"),
        ]);
        let findings = check(&metadata.to_string(), &tree).expect("cargo's format");
        let found: Vec<(&str, usize)> = findings
            .iter()
            .map(|finding| (finding.file.as_str(), finding.line))
            .collect();
        assert_eq!(found, expected, "{findings:?}");
    }

    #[test]
    fn a_crate_that_no_source_names_is_found() {
        let list = ("Cargo.toml", 4);
        check_code("use one_crate::x; fn f() { other::y() }", &[list]);
        check_code("use other::y;", &[("a/Cargo.toml", 2), list]);
        check_code("// one_crate\nuse other::y;", &[("a/Cargo.toml", 2), list]);
        check_code("", &[("a/Cargo.toml", 2), ("a/Cargo.toml", 1), list]);
        assert!(check("{}", &Tree::of(&[])).is_none());
    }
}
