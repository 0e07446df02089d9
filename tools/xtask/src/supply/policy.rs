//! deny.toml: which licences, sources and doubled versions are allowed.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use super::graph::{Graph, Key, Package};

/// The file, as far as it is followed here. The rest is cargo-deny's.
#[derive(Debug, Deserialize)]
pub(super) struct Policy {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

/// A version that does not count as the second one.
#[derive(Debug, Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

impl Policy {
    pub(super) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// What `graphs`, each of a workspace of its own, have in them against the rules.
    pub(super) fn check(&self, graphs: &[Graph]) -> Vec<String> {
        let mut findings = BTreeSet::new();
        let mut doubled = BTreeSet::new();
        for graph in graphs {
            for (key, package) in &graph.packages {
                findings.extend(self.check_license(key, package));
                findings.extend(self.check_source(key, package));
            }
            findings.extend(self.check_versions(graph, &mut doubled));
        }
        let unneeded = self.bans.skip.iter().filter(|skip| {
            let is_it = |key: &Key| skip.names(key);
            !doubled.iter().any(is_it)
        });
        findings.extend(unneeded.map(|skip| {
            format!(
                "bans.skip: there are no two versions because of {}",
                skip.version
            )
        }));
        findings.into_iter().collect()
    }

    fn check_license(&self, key: &Key, package: &Package) -> Option<String> {
        let Key { name, version } = key;
        let Some(text) = &package.license else {
            return Some(format!("{name} {version} names no licence"));
        };
        // Older crates write `MIT/Apache-2.0`.
        let Ok(expression) = Expression::parse_mode(text, ParseMode::LAX) else {
            return Some(format!("{name} {version}: {text:?} is no licence by SPDX"));
        };
        let allowed = self.licenses.allow.iter();
        let allowed: Vec<Licensee> = allowed
            .filter_map(|text| Licensee::parse(text).ok())
            .collect();
        let is_allowed =
            expression.evaluate(|wanted| allowed.iter().any(|license| license.satisfies(wanted)));
        (!is_allowed).then(|| format!("{name} {version}: licences.allow does not have {text}"))
    }

    fn check_source(&self, key: &Key, package: &Package) -> Option<String> {
        let source = package.source.as_deref()?;
        let registry = source.strip_prefix("registry+");
        let is_known = |registry: &str| {
            self.sources
                .allow_registry
                .iter()
                .any(|known| known == registry)
        };
        let Key { name, version } = key;
        (!registry.is_some_and(is_known)).then(|| {
            format!(
                "{name} {version} comes from {source}, which sources.allow-registry does not have"
            )
        })
    }

    /// Crates of which `graph` has several versions; those with one that is skipped are added to `doubled`.
    fn check_versions(&self, graph: &Graph, doubled: &mut BTreeSet<Key>) -> Vec<String> {
        let mut versions: BTreeMap<&str, Vec<&Key>> = BTreeMap::new();
        for key in graph.packages.keys() {
            versions.entry(&key.name).or_default().push(key);
        }
        versions.retain(|_, keys| keys.len() > 1);
        let mut findings = Vec::new();
        for (name, keys) in versions {
            let is_skipped = |key: &&&Key| self.bans.skip.iter().any(|skip| skip.names(key));
            doubled.extend(keys.iter().filter(is_skipped).map(|key| (*key).clone()));
            if keys.iter().filter(|key| !is_skipped(key)).count() > 1 {
                let list: Vec<&str> = keys.iter().map(|key| key.version.as_str()).collect();
                findings.push(format!(
                    "{name} is there in versions {}",
                    list.join(" and ")
                ));
            }
        }
        findings
    }
}

impl Skip {
    fn names(&self, key: &Key) -> bool {
        self.version.split_once('@') == Some((&key.name, &key.version))
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::Edges;
    use super::super::graph::tests::{graph, key};
    use super::*;

    fn policy(licenses: &str, skip: &str) -> Policy {
        let text = format!(
            "[licenses]\nallow = [{licenses}]\n[bans]\nmultiple-versions = \"deny\"\nskip = [{skip}]\n\
            [sources]\nallow-registry = [\"https://github.com/rust-lang/crates.io-index\"]"
        );
        Policy::parse(&text).expect("its format")
    }

    fn check(policy: &Policy, change: impl FnOnce(&mut Graph), words: &[&str]) {
        let mut graph = graph(Edges::Built);
        change(&mut graph);
        let findings = policy.check(&[graph]);
        assert_eq!(findings.len(), words.len(), "{findings:?}");
        for (finding, word) in findings.iter().zip(words) {
            assert!(finding.contains(word), "{findings:?}");
        }
    }

    #[test]
    fn what_is_allowed_passes_and_all_else_is_named() {
        let plain = policy("\"MIT\"", "");
        check(&plain, |_| {}, &[]);
        check(&policy("\"Apache-2.0\"", ""), |_| {}, &[]);
        let no_license = policy("\"Zlib\"", "");
        check(
            &no_license,
            |_| {},
            &["first 1.0.0: lic", "second 1.0.0: lic"],
        );
        let set = |license: Option<&'static str>| {
            move |graph: &mut Graph| {
                let package = graph.packages.get_mut(&key("second")).expect("a package");
                package.license = license.map(str::to_owned);
            }
        };
        check(&plain, set(None), &["second 1.0.0 names no licence"]);
        check(
            &plain,
            set(Some("MIT AND GPL-3.0-only")),
            &["does not have MIT AND GPL"],
        );
        check(&plain, set(Some("Mine alone")), &["no licence by SPDX"]);
        check(&plain, set(Some("MIT OR GPL-3.0-only")), &[]);
    }

    #[test]
    fn other_sources_are_refused() {
        for source in [
            "git+https://example.org/x",
            "registry+https://example.org/index",
        ] {
            let other = |graph: &mut Graph| {
                let package = graph.packages.get_mut(&key("second")).expect("a package");
                package.source = Some(source.to_owned());
            };
            check(&policy("\"MIT\"", ""), other, &[source]);
        }
    }

    #[test]
    fn a_second_version_needs_a_reason_and_a_reason_a_second_version() {
        let older = Key {
            version: "0.9.0".to_owned(),
            ..key("second")
        };
        let double = |graph: &mut Graph| {
            let package = graph.packages[&key("second")].clone();
            graph.packages.insert(older.clone(), package);
        };
        let skipped = policy("\"MIT\"", "{ crate = \"second@0.9.0\", reason = \"x\" }");
        check(
            &policy("\"MIT\"", ""),
            double,
            &["second is there in versions 0.9.0 and 1.0.0"],
        );
        check(&skipped, double, &[]);
        check(
            &skipped,
            |_| {},
            &["no two versions because of second@0.9.0"],
        );
    }
}
