//! Dependencies between crates point one way, and each rust-vmm crate is there once.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Finding;
use super::tree::Tree;

/// Which of our crates each of our crates may use (docs/architecture.md). A new edge needs an ADR.
const ALLOWED: &[(&str, &[&str])] = &[
    // What a guest's agent is told and where: the smallest of our crates, shared with the guest.
    ("lightv-contract", &[]),
    ("lightv-api", &["lightv-contract"]),
    // Without hyper and tokio, so that `lightv` can link it.
    ("lightv-api-client", &["lightv-api", "lightv-contract"]),
    // hyper and tokio, away from the start path: docs/adr/0012-rest-server.md.
    ("lightv-api-server", &["lightv-api", "lightv-contract"]),
    // JSON and descriptors between our processes: no threads, no runtime.
    ("lightv-packet", &[]),
    // The host's side of a template, and of nothing else of the monitor: docs/adr/0021-template.md.
    (
        "lightv-pool",
        &["lightv-api", "lightv-contract", "lightv-packet"],
    ),
    ("lightv-devices", &["lightv-contract"]),
    // Root file systems from folders, archives and OCI images (docs/adr/0010-linux-images.md).
    ("lightv-rootfs", &["lightv-contract"]),
    ("lightv-workloads", &[]),
    (
        "lightv-vmm",
        &[
            "lightv-api",
            "lightv-api-server",
            "lightv-contract",
            "lightv-devices",
            "lightv-packet",
        ],
    ),
    (
        "lightv-bench",
        &[
            "lightv-api",
            "lightv-api-client",
            "lightv-packet",
            "lightv-pool",
            "lightv-workloads",
        ],
    ),
    // What `lightv` and the agent share: programs found, monitors started.
    ("lightv-launch", &["lightv-api"]),
    // The host agent: of the monitor's crate the runtime directory, images, files that are whole or not there, and what `--net`
    // means (docs/adr/0023-host-agent.md); of the contract what it says to guests' agents (docs/adr/0025-exec-by-vsock.md).
    (
        "lightv-agent",
        &[
            "lightv-api",
            "lightv-contract",
            "lightv-launch",
            "lightv-packet",
            "lightv-pool",
            "lightv-vmm",
        ],
    ),
    // The monitor for `lightv run` alone: docs/adr/0007-run-is-the-monitor.md.
    (
        "lightv",
        &[
            "lightv-api",
            "lightv-api-client",
            "lightv-bench",
            "lightv-contract",
            "lightv-launch",
            "lightv-packet",
            "lightv-rootfs",
            "lightv-vmm",
        ],
    ),
    ("lightv-tests", &["lightv-api", "lightv-pool"]),
    ("xtask", &["lightv-rootfs"]),
];

/// Crates whose types cross our interfaces: two versions of one would not fit together.
const RUST_VMM: &[&str] = &[
    "acpi_tables",
    "event-manager",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "seccompiler",
    "vhost",
    "virtio-bindings",
    "virtio-queue",
    "virtio-vsock",
    "vm-allocator",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

/// Checks the edges in the answer of `cargo metadata`; `None` when it has not its format.
pub(super) fn check_edges(metadata: &str) -> Option<Vec<Finding>> {
    let metadata: Value = serde_json::from_str(metadata).ok()?;
    let root = metadata.get("workspace_root")?.as_str()?;
    let mut findings = Vec::new();
    for package in metadata.get("packages")?.as_array()? {
        let name = package.get("name")?.as_str()?;
        let manifest = package.get("manifest_path")?.as_str()?;
        let manifest = manifest
            .strip_prefix(root)
            .unwrap_or(manifest)
            .trim_start_matches('/');
        let Some((_, allowed)) = ALLOWED.iter().find(|(ours, _)| *ours == name) else {
            let message = format!("crate {name} has no entry in tools/xtask/src/tidy/edges.rs");
            findings.push(Finding::new(manifest, 1, message));
            continue;
        };
        for dependency in package.get("dependencies")?.as_array()? {
            let used = dependency.get("name")?.as_str()?;
            if ALLOWED.iter().any(|(ours, _)| *ours == used) && !allowed.contains(&used) {
                let message = format!("{name} must not depend on {used} (docs/architecture.md)");
                findings.push(Finding::new(manifest, 1, message));
            }
        }
    }
    Some(findings)
}

/// One version of each rust-vmm crate.
pub(super) fn check_lockfile(tree: &Tree) -> Vec<Finding> {
    let Some(lockfile) = tree.file("Cargo.lock") else {
        return Vec::new();
    };
    let mut versions: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
    let mut name = "";
    for (line, text) in lockfile.lines() {
        if let Some(value) = text.strip_prefix("name = ") {
            name = value.trim_matches('"');
        } else if let Some(value) = text.strip_prefix("version = ")
            && RUST_VMM.contains(&name)
        {
            versions
                .entry(name)
                .or_default()
                .push((line, value.trim_matches('"')));
        }
    }
    let doubled = versions.iter().filter(|(_, found)| found.len() > 1);
    doubled
        .map(|(name, found)| {
            let list: Vec<&str> = found.iter().map(|(_, version)| *version).collect();
            let message = format!("{name} is there in versions {}", list.join(" and "));
            Finding::new(&lockfile.path, found[1].0, message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edges_of(package: &str, dependency: &str) -> usize {
        let metadata = json!({"workspace_root": "/r", "packages": [{
            "name": package,
            "manifest_path": "/r/x/Cargo.toml",
            "dependencies": [{"name": "serde"}, {"name": dependency}],
        }]});
        check_edges(&metadata.to_string())
            .expect("this is cargo's format")
            .len()
    }

    #[test]
    fn edges_point_one_way() {
        assert_eq!(edges_of("lightv-vmm", "lightv-devices"), 0);
        assert_eq!(edges_of("lightv", "lightv-bench"), 0);
        assert_eq!(edges_of("lightv-devices", "lightv-api"), 1);
        assert_eq!(edges_of("lightv", "lightv-vmm"), 0);
        assert_eq!(edges_of("lightv", "lightv-devices"), 1);
        assert_eq!(edges_of("lightv", "lightv-api-server"), 1);
        assert_eq!(edges_of("lightv-new", "serde"), 1);
        assert!(check_edges("{}").is_none());
    }

    #[test]
    fn doubled_rust_vmm_crates_are_found() {
        let entry =
            |name, version| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n\n");
        let once = entry("vm-memory", "0.18.0") + &entry("syn", "2.0.0") + &entry("syn", "3.0.0");
        assert_eq!(check_lockfile(&Tree::of(&[("Cargo.lock", &once)])), vec![]);
        let twice = once + &entry("vm-memory", "0.17.0");
        let findings = check_lockfile(&Tree::of(&[("Cargo.lock", &twice)]));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 15);
    }
}
