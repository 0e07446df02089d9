//! Who may use the REST API over TCP: whoever has one of the tokens of a file.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hyper::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::limits;

/// Characters of a token: 32 hexadecimal digits are 128 bits, which nobody guesses.
const TOKEN_LENGTHS: std::ops::RangeInclusive<usize> = 32..=512;
/// Permissions that others than the owner have.
const OTHERS: u32 = 0o077;

/// The tokens, as digests: how long a comparison takes says nothing about them.
#[derive(Clone)]
pub struct Tokens(Vec<[u8; 32]>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Tokens({})", self.0.len())
    }
}

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read.
    #[error("--token-file: cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// Others can read it.
    #[error(
        "--token-file: {} has the permissions {mode:03o}: others than its owner must have none; chmod 600 it, and choose \
         other tokens if they may have been read",
        path.display()
    )]
    Open {
        /// Which one.
        path: PathBuf,
        /// What it has.
        mode: u32,
    },
    /// Somebody else can write it.
    #[error("--token-file: {} belongs to user {owner}; it must belong to us or to root", path.display())]
    Foreign {
        /// Which one.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// No token by the rules.
    #[error(
        "--token-file: line {line} of {}: a token has {}–{} letters, digits and signs, no spaces; `openssl rand -hex 32` makes one",
        path.display(), TOKEN_LENGTHS.start(), TOKEN_LENGTHS.end()
    )]
    Token {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// No token at all, or too many.
    #[error(
        "--token-file: {} has {count} tokens; allowed: 1–{}, each on a line of its own; `openssl rand -hex 32` makes one",
        path.display(), limits::TOKENS_MAX
    )]
    Count {
        /// Which file.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

impl Tokens {
    /// Those of the file `path`: one a line; empty lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// [`TokensError`], which never has a token in it.
    pub fn read(path: &Path) -> Result<Self, TokensError> {
        let failed = |cause| TokensError::Read {
            path: path.to_owned(),
            cause,
        };
        let file = File::open(path).map_err(failed)?;
        // What was opened is looked at, not what has the name now.
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(failed(io::Error::other("it is no regular file")));
        }
        let (owner, mode) = (found.uid(), found.mode() & 0o777);
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            let path = path.to_owned();
            return Err(TokensError::Foreign { path, owner });
        }
        if mode & OTHERS != 0 {
            let path = path.to_owned();
            return Err(TokensError::Open { path, mode });
        }
        let mut text = String::new();
        let mut limited = file.take(limits::TOKEN_FILE_BYTES_MAX + 1);
        limited.read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > limits::TOKEN_FILE_BYTES_MAX {
            let max = limits::TOKEN_FILE_BYTES_MAX;
            let text = format!("it is larger than {max} bytes");
            return Err(failed(io::Error::other(text)));
        }
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, TokensError> {
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let token = line.trim();
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            let is_plain = token.bytes().all(|byte| byte.is_ascii_graphic());
            if !is_plain || !TOKEN_LENGTHS.contains(&token.len()) {
                let (path, line) = (path.to_owned(), index + 1);
                return Err(TokensError::Token { path, line });
            }
            tokens.push(Sha256::digest(token).into());
        }
        let count = tokens.len();
        if (1..=limits::TOKENS_MAX).contains(&count) {
            return Ok(Self(tokens));
        }
        let path = path.to_owned();
        Err(TokensError::Count { path, count })
    }

    /// Whether a request with these `headers` comes with one of them: `Authorization: Bearer TOKEN` (RFC 6750).
    #[must_use]
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let token = value.and_then(|value| {
            let (scheme, token) = value.split_at_checked("Bearer ".len())?;
            scheme
                .eq_ignore_ascii_case(b"Bearer ")
                .then(|| token.trim_ascii())
        });
        token.is_some_and(|token| self.knows(token))
    }

    fn knows(&self, token: &[u8]) -> bool {
        let presented: [u8; 32] = Sha256::digest(token).into();
        let mut is_known = subtle::Choice::from(0);
        // All of them, whichever it is.
        for known in &self.0 {
            is_known |= known.ct_eq(&presented);
        }
        is_known.into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use hyper::header::HeaderValue;

    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210-!~";

    fn read(text: &str, mode: u32) -> Result<Tokens, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Tokens::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn one_of_the_tokens_lets_in_and_nothing_else_does() {
        let tokens = read(&format!("# ours\n{ONE}\n\n  {OTHER}  \n"), 0o600).unwrap();
        let admits = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            tokens.admit(&headers)
        };
        assert!(admits(&format!("Bearer {ONE}")));
        assert!(admits(&format!("bearer  {OTHER}")));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            ONE,
            &format!("Basic {ONE}"),
            &format!("Bearer {ONE}0"),
            &format!("Bearer {}", &ONE[1..]),
            &format!("Bearer {}", ONE.to_uppercase()),
            "Bearer # ours",
        ] {
            assert!(!admits(wrong), "{wrong}");
        }
        assert!(!tokens.admit(&HeaderMap::new()));
        assert_eq!(format!("{tokens:?}"), "Tokens(2)");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o620, 0o601, 0o666] {
            let text = read(ONE, mode).unwrap_err();
            assert!(text.contains("chmod 600"), "{text}");
            assert!(text.contains(&format!("{mode:03o}")), "{text}");
        }
        assert!(read(ONE, 0o400).is_ok());
    }

    #[test]
    fn bad_files_are_refused_without_telling_a_token() {
        let secret = "a-secret-that-is-too-short";
        for (text, word) in [
            (String::new(), "has 0 tokens"),
            ("# nothing\n\n".to_owned(), "has 0 tokens"),
            (format!("{ONE}\n{secret}\n"), "line 2"),
            (format!("{ONE} {OTHER}"), "line 1"),
            (format!("{ONE}é"), "line 1"),
            ("x".repeat(513), "line 1"),
            (format!("{ONE}\n").repeat(65), "has 65 tokens"),
            (format!("#{}", "x".repeat(70_000)), "larger than"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tokens");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = Tokens::read(&path).unwrap_err();
            let text = crate::refusal::chain(&error);
            assert!(text.contains(word), "{text}");
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            assert!(!text.contains(secret) && !text.contains(ONE), "{text}");
        }
        let missing = Tokens::read(Path::new("/nowhere/tokens")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/tokens"));
        assert!(Tokens::read(Path::new("/dev/null")).is_err());
    }
}
