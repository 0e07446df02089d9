//! The crates of one workspace as cargo resolves them for the one platform that is built for.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;

use crate::commands::{self, TARGET, TaskError};

/// A version of a crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) version: String,
}

/// What cargo knows of it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Package {
    name: String,
    version: String,
    id: String,
    pub(super) license: Option<String>,
    /// Where it comes from; `None` for what lies in the repository.
    pub(super) source: Option<String>,
    pub(super) description: Option<String>,
    pub(super) repository: Option<String>,
}

impl Package {
    fn key(&self) -> Key {
        Key {
            name: self.name.clone(),
            version: self.version.clone(),
        }
    }
}

/// Which uses of a crate count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edges {
    /// What a build needs.
    Built,
    /// What tests need too.
    WithTests,
}

/// The crates and who uses which.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) packages: BTreeMap<Key, Package>,
    pub(super) uses: BTreeMap<Key, BTreeSet<Key>>,
    /// SHA-256 of the archives, by Cargo.lock.
    pub(super) checksums: BTreeMap<Key, String>,
    /// What was asked about.
    pub(super) roots: Vec<Key>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_root: std::path::PathBuf,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Lockfile {
    package: Vec<LockedPackage>,
}

#[derive(Debug, Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    checksum: Option<String>,
}

impl Graph {
    /// What `roots`, or all members, of the workspace of `cargo` use.
    pub(super) fn read(
        cargo: fn(&[&str]) -> Command,
        roots: &[&str],
        edges: Edges,
    ) -> Result<Self, TaskError> {
        let platform = format!("--filter-platform={TARGET}");
        let metadata = ["metadata", "--locked", "--format-version=1", &platform];
        let metadata = commands::output(&mut cargo(&metadata))?;
        let kinds = match edges {
            Edges::Built => "--edges=normal,build",
            Edges::WithTests => "--edges=normal,build,dev",
        };
        let target = format!("--target={TARGET}");
        let mut tree = cargo(&["tree", "--locked", "--quiet", &target, kinds]);
        tree.args(["--prefix=none", "--format={p}"]);
        if roots.is_empty() {
            tree.arg("--workspace");
        }
        for root in roots {
            tree.args(["--package", root]);
        }
        let used = commands::output(&mut tree)?;
        let metadata: Metadata =
            serde_json::from_str(&metadata).map_err(|_| TaskError::Metadata)?;
        let lockfile = super::read(&metadata.workspace_root.join("Cargo.lock"))?;
        let mut graph = Self::of(metadata, &used, edges);
        graph.checksums = checksums(&lockfile).ok_or(TaskError::Metadata)?;
        graph.roots = graph.packages.keys().cloned().collect();
        graph.roots.retain(|key| roots.contains(&key.name.as_str()));
        Ok(graph)
    }

    /// The packages of `metadata` that `used` names: the answer of `cargo tree`, which alone knows which optional ones
    /// are left out.
    fn of(metadata: Metadata, used: &str, edges: Edges) -> Self {
        let used: BTreeSet<Key> = used.lines().filter_map(key_of_line).collect();
        let keys: BTreeMap<String, Key> = metadata
            .packages
            .iter()
            .map(|package| (package.id.clone(), package.key()))
            .filter(|(_, key)| used.contains(key))
            .collect();
        let mut graph = Self::default();
        for node in metadata.resolve.nodes {
            let Some(user) = keys.get(&node.id) else {
                continue;
            };
            let counts = |dependency: &&Dependency| {
                let is_for_tests = |kind: &DependencyKind| kind.kind.as_deref() == Some("dev");
                edges == Edges::WithTests || !dependency.dep_kinds.iter().all(is_for_tests)
            };
            let used = node.deps.iter().filter(counts);
            let used = used.filter_map(|dependency| keys.get(&dependency.pkg).cloned());
            graph.uses.insert(user.clone(), used.collect());
        }
        for package in metadata.packages {
            let key = package.key();
            if used.contains(&key) {
                graph.packages.insert(key, package);
            }
        }
        graph
    }
}

/// `NAME vVERSION …`.
fn key_of_line(line: &str) -> Option<Key> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let version = words.next()?.strip_prefix('v')?.to_owned();
    Some(Key { name, version })
}

fn checksums(lockfile: &str) -> Option<BTreeMap<Key, String>> {
    let lockfile: Lockfile = toml::from_str(lockfile).ok()?;
    let known = lockfile.package.into_iter().filter_map(|package| {
        let LockedPackage {
            name,
            version,
            checksum,
        } = package;
        Some((Key { name, version }, checksum?))
    });
    Some(known.collect())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// `first` uses `second`, and `third` in its tests.
    pub(in crate::supply) fn graph(edges: Edges) -> Graph {
        let package = |name: &str, source: Option<&str>| {
            json!({"name": name, "version": "1.0.0", "id": format!("id-{name}"), "license": "MIT/Apache-2.0",
                "source": source, "description": null, "repository": null})
        };
        let registry = Some("registry+https://github.com/rust-lang/crates.io-index");
        let uses = |name: &str, kind: Option<&str>| json!({"pkg": format!("id-{name}"), "dep_kinds": [{"kind": kind}]});
        let packages = [
            ("first", None),
            ("second", registry),
            ("third", registry),
            ("left-out", registry),
        ];
        let metadata = json!({
            "packages": packages.map(|(name, source)| package(name, source)),
            "resolve": {"nodes": [
                {"id": "id-first", "deps": [uses("second", None), uses("third", Some("dev")), uses("left-out", None)]},
                {"id": "id-second", "deps": []},
                {"id": "id-third", "deps": []},
            ]},
            "workspace_root": "/r",
        });
        let metadata = serde_json::from_value(metadata).expect("cargo's format");
        let used = "first v1.0.0 (/r/first)\nsecond v1.0.0 (proc-macro)\n\nthird v1.0.0\n";
        let used = if edges == Edges::Built {
            &used[..52]
        } else {
            used
        };
        let mut graph = Graph::of(metadata, used, edges);
        let lockfile = "version = 4\n[[package]]\nname = \"second\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n[[package]]\nname = \"first\"\nversion = \"1.0.0\"\n";
        graph.checksums = checksums(lockfile).expect("cargo's format");
        graph.roots = vec![key("first")];
        graph
    }

    pub(in crate::supply) fn key(name: &str) -> Key {
        Key {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
        }
    }

    #[test]
    fn what_is_used_is_what_cargo_builds() {
        let built = graph(Edges::Built);
        assert_eq!(
            built.packages.keys().collect::<Vec<_>>(),
            [&key("first"), &key("second")]
        );
        assert_eq!(built.uses[&key("first")], BTreeSet::from([key("second")]));
        let tested = graph(Edges::WithTests);
        assert_eq!(
            tested.uses[&key("first")],
            BTreeSet::from([key("second"), key("third")])
        );
        assert!(!tested.packages.contains_key(&key("left-out")));
        assert_eq!(tested.checksums.len(), 1);
    }
}
