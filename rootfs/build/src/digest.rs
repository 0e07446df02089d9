//! SHA-256 of what is read.

use std::fmt;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

const PREFIX: &str = "sha256:";

/// A SHA-256 as image formats write it: `sha256:` and 64 hexadecimal digits in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest(String);

impl Digest {
    /// `None` for other algorithms and for what is no digest.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let is_valid = digits.len() == 64
            && digits
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        is_valid.then(|| Self(digits.to_owned()))
    }

    /// The digits alone: the blob's file name.
    pub(crate) fn digits(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}", self.0)
    }
}

/// Passes on what it reads and hashes it.
pub(crate) struct HashingReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        let hash = Sha256::new();
        Self { inner, hash }
    }

    /// The digest of all: what nobody has read yet is read here.
    pub(crate) fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        let bytes = self.hash.finalize();
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Digest(digits))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_everything_also_of_what_was_not_read() {
        let mut reader = HashingReader::new(&b"abc"[..]);
        reader.read_exact(&mut [0]).expect("in memory");
        let expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let found = reader.finish().expect("in memory");
        assert_eq!(
            (found.to_string().as_str(), Digest::parse(expected)),
            (expected, Some(found))
        );
    }

    #[test]
    fn what_is_no_sha256_is_none() {
        for text in ["", "sha512:00", "sha256:xyz", "sha256:../../etc/passwd"] {
            assert_eq!(Digest::parse(text), None, "{text}");
        }
        assert_eq!(Digest::parse(&format!("sha256:{}", "A".repeat(64))), None);
    }
}
