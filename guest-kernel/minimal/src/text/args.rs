//! Arguments and environment of a run.

use crate::cmdline::Arguments;

/// Strings that are each ended by a NUL byte.
#[derive(Clone, Debug)]
pub struct NulStrings<'a>(&'a [u8]);

impl<'a> NulStrings<'a> {
    /// The strings in `bytes`; a last one without its NUL byte counts too.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for NulStrings<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let len = self
            .0
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(self.0.len());
        let text = &self.0[..len];
        self.0 = self.0.get(len + 1..).unwrap_or_default();
        Some(text)
    }
}

/// The arguments of a run, from wherever they came.
#[derive(Clone, Debug)]
pub enum Args<'a> {
    /// From the kernel command line.
    Cmdline(Arguments<'a>),
    /// From the control device.
    Run(NulStrings<'a>),
}

impl<'a> Iterator for Args<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        match self {
            Self::Cmdline(words) => words.next().map(str::as_bytes),
            Self::Run(strings) => strings.next(),
        }
    }
}

/// `bytes` as text; `?` if they are not UTF-8.
pub fn text(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_ends_each_string() {
        for (bytes, want) in [
            (&b""[..], &[][..]),
            (b"a\0", &["a"]),
            (b"a\0\0b c\0", &["a", "", "b c"]),
            (b"a\0b", &["a", "b"]),
            (b"\xff\0x\0", &["?", "x"]),
        ] {
            assert_eq!(
                NulStrings::new(bytes).map(text).collect::<Vec<_>>(),
                want,
                "{bytes:?}"
            );
        }
    }
}
