//! Bodies and ids.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::fault::Fault;

/// Longest id, in bytes.
pub(super) const ID_BYTES_MAX: usize = 64;

/// Reads a body. A list is none, although serde would take its items for the fields of an object, in order.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    if let Some(start) = body.iter().position(|byte| !byte.is_ascii_whitespace())
        && body.get(start) == Some(&b'[')
    {
        let (line, column) = position(body.get(..start).unwrap_or_default());
        let cause = "invalid type: sequence, expected a map";
        return Err(json_fault(format!(
            "{cause} at line {line} column {column}"
        )));
    }
    serde_json::from_slice(body).map_err(json_fault)
}

/// Reads a body that must have fields which a configuration file may leave out.
pub(super) fn read_with<T: DeserializeOwned>(body: &[u8], required: &[&str]) -> Result<T, Fault> {
    let value = read(body)?;
    let fields: BTreeMap<String, IgnoredAny> = read(body)?;
    match required.iter().find(|name| !fields.contains_key(**name)) {
        None => Ok(value),
        Some(name) => {
            let (line, column) = position(body.trim_ascii_end());
            let message = format!("missing field `{name}` at line {line} column {column}");
            Err(json_fault(message))
        }
    }
}

pub(super) fn json_fault(cause: impl Display) -> Fault {
    Fault::bad(format!(
        "An error occurred when deserializing the json body of a request: {cause}."
    ))
}

/// Line and column of the last character of `text`, as serde counts them.
fn position(text: &[u8]) -> (usize, usize) {
    let line = text.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = text
        .rsplit(|byte| *byte == b'\n')
        .next()
        .map_or(0, <[u8]>::len);
    (line, column)
}

/// Proves an id out of a path.
pub(super) fn id(segment: Option<&str>) -> Result<&str, Fault> {
    let id = segment.unwrap_or_default();
    if id.is_empty() {
        return Err(Fault::bad("The ID cannot be empty."));
    }
    if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(Fault::bad(
            "API Resource IDs can only contain alphanumeric characters and underscores.",
        ));
    }
    if id.len() > ID_BYTES_MAX {
        return Err(Fault::bad(format!(
            "API Resource IDs have at most {ID_BYTES_MAX} characters."
        )));
    }
    Ok(id)
}

/// Proves that path and body name the same thing.
pub(super) fn same_id(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        Ok(())
    } else {
        Err(Fault::bad(
            "The id from the path does not match the id from the body!",
        ))
    }
}
