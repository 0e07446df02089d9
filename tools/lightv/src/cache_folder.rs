//! Where LightV keeps what is made once.

use std::env;
use std::path::PathBuf;

/// What LightV keeps between runs: `$XDG_CACHE_HOME/lightv`, else `~/.cache/lightv`.
pub(crate) fn base() -> Option<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("lightv"))
}
