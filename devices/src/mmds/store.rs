//! What the service holds: a JSON object, read by paths.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

/// The object.
#[derive(Debug)]
pub(super) struct Store(Mutex<Value>);

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// As JSON.
    Json,
    /// As EC2's service does: of an object its keys, a line each, `/` after those of objects; a string as it is.
    Text,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LookUpError {
    /// The path leads nowhere.
    NotFound,
    /// The value has no text: it is a number, a truth value, a list, or null.
    NoText,
}

impl Default for Store {
    fn default() -> Self {
        Self(Mutex::new(Value::Object(Map::new())))
    }
}

impl Store {
    /// Holds `data` from now on.
    pub(super) fn put(&self, data: Map<String, Value>) {
        let old = std::mem::replace(&mut *self.lock(), Value::Object(data));
        // Let go without the lock, which a guest's request may wait for.
        drop(old);
    }

    /// The value at `path`, a JSON pointer (RFC 6901) that may end with a slash, in text.
    pub(super) fn look_up(&self, path: &str, format: Format) -> Result<String, LookUpError> {
        let data = self.lock();
        let path = path.strip_suffix('/').unwrap_or(path);
        let value = data.pointer(path).ok_or(LookUpError::NotFound)?;
        match (format, value) {
            (Format::Json, value) => Ok(value.to_string()),
            (Format::Text, Value::Object(fields)) => Ok(lines(fields)),
            (Format::Text, Value::String(text)) => Ok(text.clone()),
            (Format::Text, _) => Err(LookUpError::NoText),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Value> {
        // Nothing that is done under the lock can stop half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lines(fields: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (key, value) in fields {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(key);
        if value.is_object() {
            text.push('/');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store() -> Store {
        let store = Store::default();
        let Value::Object(data) = json!({
            "name": {"first": "Ada", "second": {"a": 1}},
            "age": 43, "list": ["x", {"y": "z"}], "no": null, "a/b": "slash", "empty": {},
        }) else {
            panic!("a test's data is an object");
        };
        store.put(data);
        store
    }

    #[test]
    fn paths_lead_to_values_in_both_formats() {
        use Format::{Json, Text};
        let store = store();
        for (path, format, expected) in [
            ("/name", Text, Ok("first\nsecond/")),
            ("/name/", Text, Ok("first\nsecond/")),
            ("/name/first", Text, Ok("Ada")),
            ("/name/first", Json, Ok("\"Ada\"")),
            ("/name", Json, Ok(r#"{"first":"Ada","second":{"a":1}}"#)),
            ("/age", Json, Ok("43")),
            ("/age", Text, Err(LookUpError::NoText)),
            ("/no", Json, Ok("null")),
            ("/no", Text, Err(LookUpError::NoText)),
            ("/list", Text, Err(LookUpError::NoText)),
            ("/list/0", Text, Ok("x")),
            ("/list/1/y", Text, Ok("z")),
            ("/list/2", Json, Err(LookUpError::NotFound)),
            ("/list/-1", Json, Err(LookUpError::NotFound)),
            ("/a~1b", Text, Ok("slash")),
            ("/empty", Text, Ok("")),
            ("/nope", Json, Err(LookUpError::NotFound)),
            ("nope", Json, Err(LookUpError::NotFound)),
        ] {
            let found = store.look_up(path, format);
            let expected = expected.map(str::to_owned);
            assert_eq!(found, expected, "{path} {format:?}");
        }
    }

    #[test]
    fn the_root_is_the_whole_and_empty_at_first() {
        assert_eq!(
            Store::default().look_up("/", Format::Text),
            Ok(String::new())
        );
        assert_eq!(Store::default().look_up("/", Format::Json), Ok("{}".into()));
        let keys = store().look_up("/", Format::Text).unwrap();
        assert_eq!(keys, "a/b\nage\nempty/\nlist\nname/\nno");
    }
}
