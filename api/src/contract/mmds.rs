//! `mmds`: the metadata service.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What the metadata service holds: any JSON object.
pub type MmdsData = Map<String, Value>;

/// `PUT /mmds/config`: how guests reach the metadata service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// Ids of the interfaces that reach it, at least one.
    pub network_interfaces: Vec<String>,
    /// How it is asked.
    #[serde(default)]
    pub version: MmdsVersion,
    /// Its address. Default: 169.254.169.254.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Whether it answers as EC2's does, whatever the guest accepts.
    #[serde(default)]
    pub imds_compat: bool,
}

/// How guests ask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MmdsVersion {
    /// At once. Deprecated.
    #[default]
    V1,
    /// By a token that they ask for first.
    V2,
}

/// `data` after `patch`, by JSON merge patch (RFC 7396): `null` takes a key away.
pub fn merge(data: &mut MmdsData, patch: MmdsData) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                data.remove(&key);
            }
            Value::Object(patch) => {
                let old = data.entry(key).or_insert(Value::Null);
                if !old.is_object() {
                    *old = Value::Object(Map::new());
                }
                if let Value::Object(old) = old {
                    merge(old, patch);
                }
            }
            other => {
                data.insert(key, other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_is_merged_as_rfc_7396_says() {
        for (data, patch, merged) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (
                json!({"a": "foo"}),
                json!({"a": {"b": 1}}),
                json!({"a": {"b": 1}}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
        ] {
            let (Value::Object(mut found), Value::Object(patch)) = (data, patch) else {
                panic!("a test's data is an object");
            };
            merge(&mut found, patch);
            assert_eq!(Value::Object(found), merged);
        }
    }
}
