//! What is in the shipped binaries, in CycloneDX 1.5's JSON form (ECMA-424). The same sources give the same bytes: no time, no
//! random serial number, all in order.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use spdx::Expression;

use super::graph::{Graph, Key, Package};

/// What it is about.
const PRODUCT: &str = "lightv";

/// What is in every binary without being a crate.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) license: &'static str,
}

impl Foreign {
    fn reference(&self) -> String {
        format!("pkg:generic/{}@{}", self.name, encoded(&self.version))
    }
}

/// The document about what the roots of `graphs` are built of, and `platform`.
pub(super) fn document(graphs: &[Graph], platform: &[Foreign]) -> Value {
    let mut components = BTreeMap::new();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut parts: BTreeSet<String> = platform.iter().map(Foreign::reference).collect();
    for foreign in platform {
        components.insert(foreign.reference(), component_of_foreign(foreign));
    }
    for graph in graphs {
        let reference = |key: &Key| reference(key, graph.packages.get(key));
        for (key, package) in &graph.packages {
            let checksum = graph.checksums.get(key).map(String::as_str);
            components.insert(reference(key), component(key, package, checksum));
            let used = graph.uses.get(key).into_iter().flatten().map(reference);
            uses.entry(reference(key)).or_default().extend(used);
        }
        parts.extend(graph.roots.iter().map(reference));
    }
    let versions = graphs.iter().flat_map(|graph| &graph.roots);
    let version = versions
        .map(|key| key.version.as_str())
        .next()
        .unwrap_or_default();
    uses.insert(PRODUCT.to_owned(), parts);
    for foreign in platform {
        uses.entry(foreign.reference()).or_default();
    }
    let dependencies = uses
        .iter()
        .map(|(user, used)| json!({"ref": user, "dependsOn": used}));
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "cargo xtask sbom", "version": version}]},
            "component": {"type": "application", "bom-ref": PRODUCT, "name": PRODUCT, "version": version,
                "licenses": [{"expression": "Apache-2.0"}]},
        },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    })
}

/// A name that the document has once: the package's URL, or of a crate of ours its name.
fn reference(key: &Key, package: Option<&Package>) -> String {
    let Key { name, version } = key;
    match package.and_then(|package| package.source.as_ref()) {
        Some(_) => format!("pkg:cargo/{name}@{}", encoded(version)),
        None => format!("{name}@{version}"),
    }
}

/// As package URLs have it: `+`, which versions may have, is not a plain character there.
fn encoded(version: &str) -> String {
    version.replace('+', "%2B")
}

fn component(key: &Key, package: &Package, checksum: Option<&str>) -> Value {
    let reference = reference(key, Some(package));
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    add("type", "library".into());
    add("bom-ref", reference.clone().into());
    add("name", key.name.clone().into());
    add("version", key.version.clone().into());
    if let Some(text) = &package.description {
        add("description", text.trim().into());
    }
    if let Some(checksum) = checksum {
        add("hashes", json!([{"alg": "SHA-256", "content": checksum}]));
    }
    if let Some(license) = &package.license {
        // `MIT/Apache-2.0` is no expression; what cannot be mended stays as its author wrote it.
        let mended = Expression::canonicalize(license).ok().flatten();
        let license = mended.as_ref().unwrap_or(license);
        add("licenses", json!([{"expression": license}]));
    }
    if package.source.is_some() {
        add("purl", reference.into());
    }
    if let Some(url) = &package.repository {
        add("externalReferences", json!([{"type": "vcs", "url": url}]));
    }
    Value::Object(fields)
}

fn component_of_foreign(foreign: &Foreign) -> Value {
    json!({
        "type": "library",
        "bom-ref": foreign.reference(),
        "name": foreign.name,
        "version": foreign.version,
        "licenses": [{"expression": foreign.license}],
        "purl": foreign.reference(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::graph::Edges;
    use super::super::graph::tests::graph;
    use super::*;

    fn texts<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
        let items = list.as_array().expect("a list").iter();
        items
            .map(|item| item[field].as_str().expect(field))
            .collect()
    }

    #[test]
    fn required_fields_are_there_and_every_reference_leads_to_a_component() {
        let libc = Foreign {
            name: "glibc",
            version: "2.36+deb".to_owned(),
            license: "LGPL-2.1-or-later",
        };
        let document = document(&[graph(Edges::Built), graph(Edges::Built)], &[libc]);
        assert_eq!(
            (
                &document["bomFormat"],
                &document["specVersion"],
                &document["version"]
            ),
            (&json!("CycloneDX"), &json!("1.5"), &json!(1))
        );
        let references = texts(&document["components"], "bom-ref");
        let expected = [
            "first@1.0.0",
            "pkg:cargo/second@1.0.0",
            "pkg:generic/glibc@2.36%2Bdeb",
        ];
        assert_eq!(references, expected);
        for field in ["type", "name", "version"] {
            assert_eq!(texts(&document["components"], field).len(), 3);
        }
        let second = &document["components"][1];
        assert_eq!(second["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(
            second["hashes"],
            json!([{"alg": "SHA-256", "content": "ab"}])
        );
        assert_eq!(second["purl"], "pkg:cargo/second@1.0.0");
        let all = [references, vec![PRODUCT]].concat();
        let users = texts(&document["dependencies"], "ref");
        assert_eq!(users.iter().collect::<BTreeSet<_>>(), all.iter().collect());
        let product = document["dependencies"].as_array().expect("a list");
        let product = product.iter().find(|item| item["ref"] == PRODUCT);
        let parts = &product.expect("the product")["dependsOn"];
        assert_eq!(
            parts,
            &json!(["first@1.0.0", "pkg:generic/glibc@2.36%2Bdeb"])
        );
    }
}
