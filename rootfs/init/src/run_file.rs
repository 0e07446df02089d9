//! What a run brings, for a program that is running already when the run is known: a file (`/run/lightv/run.json`).

use std::collections::BTreeMap;
use std::fs;
use std::io;

use lightv_contract::RUN_PATH;

use crate::control::Orders;

/// Writes the file. It is replaced at once: a reader sees the old one or the new one.
///
/// # Errors
/// When there is no room for it.
pub fn write(orders: &Orders) -> io::Result<()> {
    let new = format!("{RUN_PATH}.new");
    fs::write(&new, text(orders))?;
    fs::rename(&new, RUN_PATH)
}

fn text(orders: &Orders) -> String {
    let word = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let args: Vec<String> = orders.args().map(word).collect();
    let env: BTreeMap<String, String> = orders
        .env()
        .map(|variable| {
            let variable = word(variable);
            let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
            (name.to_owned(), value.to_owned())
        })
        .collect();
    serde_json::json!({"args": args, "env": env}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_words_are_json_too() {
        assert_eq!(text(&Orders::default()), r#"{"args":[],"env":{}}"#);
    }
}
