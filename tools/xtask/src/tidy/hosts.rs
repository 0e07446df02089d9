//! Nothing in the repository names one machine, or a registry other than the public default.

use super::Finding;
use super::tree::{TextFile, Tree};

/// This file names what it forbids.
const OWN_PATH: &str = "tools/xtask/src/tidy/hosts.rs";

/// Starts of absolute paths that exist on one machine only.
const MACHINE_PATHS: &[&str] = &["/work/", "/home/", "/root/", "/Users/"];

/// Cargo settings that take crates from somewhere else.
const REGISTRY_SETTINGS: &[&str] = &[
    "[source.",
    "[registries",
    "[registry]",
    "replace-with",
    "registry = ",
    "registry-index",
];

/// Parts of host names that are a registry's, a mirror's or a proxy's.
const REGISTRY_HOSTS: &[&str] = &["registry.", "mirror", "proxy.", "artifactory", "nexus."];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let ours = tree
        .files()
        .filter(|file| file.path != OWN_PATH && file.path != "Cargo.lock");
    ours.flat_map(check_file).collect()
}

fn check_file(file: &TextFile) -> Vec<Finding> {
    let is_cargo_setting = file.path.ends_with(".toml");
    let mut findings = Vec::new();
    for (line, text) in file.lines() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| names_path(text, path)) {
            let message = format!("an absolute path below {path} exists on one machine only");
            findings.push(Finding::new(&file.path, line, message));
        }
        let has_setting = REGISTRY_SETTINGS
            .iter()
            .any(|setting| text.trim().starts_with(setting));
        if (is_cargo_setting && has_setting) || hosts(text).any(is_registry) {
            let message = "names a registry; the machine's own settings say where crates come from";
            findings.push(Finding::new(&file.path, line, message));
        }
    }
    findings
}

/// Whether an absolute path starts with `path` in `text` (and not a relative one holds it).
fn names_path(text: &str, path: &str) -> bool {
    text.match_indices(path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_-./}$~*>".contains(c))
    })
}

/// Host names of the URLs in `text`.
fn hosts(text: &str) -> impl Iterator<Item = &str> {
    text.split("://").skip(1).map(|rest| {
        rest.split(|c: char| !(c.is_alphanumeric() || ".-".contains(c)))
            .next()
            .unwrap_or_default()
    })
}

fn is_registry(host: &str) -> bool {
    REGISTRY_HOSTS.iter().any(|part| host.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_line(path: &str, text: &str, broken: usize) {
        assert_eq!(check(&Tree::of(&[(path, text)])).len(), broken, "{text}");
    }

    #[test]
    fn absolute_paths_of_machines_are_found() {
        check_line("a.md", "cd /work/main", 1);
        check_line("a.sh", "HOME=\"/home/me\"", 1);
        check_line("a.md", "see ./work/main and $x/home/y", 0);
        check_line("a.md", "/dev/kvm, /proc/self/fd/3", 0);
    }

    #[test]
    fn registries_are_found() {
        check_line("a.md", "https://registry.example.org/x", 1);
        check_line(".cargo/config.toml", "[source.other]", 1);
        check_line("a.md", "https://docs.kernel.org/virt/kvm/api.html", 0);
        check_line("a.rs", "[source.other]", 0);
    }
}
