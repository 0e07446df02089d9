//! Tokens of sessions: made and recognised without keeping any.
//!
//! A token is a number, the moment at which it ends, and a code of both (HMAC-SHA-256) by a key that only this process
//! has and that no snapshot holds. So nobody else can make one, a clone of a machine takes none of another's, and a guest
//! can ask for as many as it likes.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::sys::random;

/// How long a token may live, in seconds.
pub(super) const LIFE_SECONDS: RangeInclusive<u32> = 1..=21_600;

const KEY_BYTES: usize = 32;
/// Number and end, 8 bytes each.
const FACTS_BYTES: usize = 16;
const CODE_BYTES: usize = 32;
const BYTES: usize = FACTS_BYTES + CODE_BYTES;
/// Letters of a token: base64, whose groups come out even.
const LETTERS: usize = BYTES / 3 * 4;

type Code = Hmac<Sha256>;

/// Who makes tokens.
pub(super) struct Tokens {
    began: Instant,
    made: AtomicU64,
    /// Drawn when the first token is asked for.
    key: OnceLock<[u8; KEY_BYTES]>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            made: AtomicU64::new(0),
            key: OnceLock::new(),
        }
    }
}

impl Tokens {
    /// A token that is valid for `life`.
    ///
    /// # Errors
    /// The host has no random bytes.
    pub(super) fn make(&self, life: Duration) -> io::Result<String> {
        let ends = self.began.elapsed().saturating_add(life);
        self.make_until(ends)
    }

    /// Whether `token` was made here and has not ended.
    pub(super) fn is_valid(&self, token: &str) -> bool {
        self.is_valid_at(token, self.began.elapsed())
    }

    fn make_until(&self, ends: Duration) -> io::Result<String> {
        let number = self.made.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let ends = millis(ends).to_le_bytes();
        let mut code = code(self.drawn_key()?).ok_or(io::ErrorKind::InvalidInput)?;
        code.update(&number);
        code.update(&ends);
        let code = code.finalize().into_bytes();
        let mut token = Vec::with_capacity(BYTES);
        for part in [&number[..], &ends, &code] {
            token.extend_from_slice(part);
        }
        Ok(STANDARD.encode(token))
    }

    fn is_valid_at(&self, token: &str, now: Duration) -> bool {
        self.end_of(token)
            .is_some_and(|ends_ms| millis(now) < ends_ms)
    }

    /// When `token` ends, in milliseconds since the beginning, if it was made here.
    fn end_of(&self, token: &str) -> Option<u64> {
        if token.len() != LETTERS {
            return None;
        }
        let bytes = STANDARD.decode(token).ok()?;
        let (facts, found) = bytes.split_at_checked(FACTS_BYTES)?;
        let mut code = code(self.key.get()?)?;
        code.update(facts);
        // In a time that does not tell how much of it is right.
        code.verify_slice(found).ok()?;
        let (_, ends) = facts.split_last_chunk()?;
        Some(u64::from_le_bytes(*ends))
    }

    fn drawn_key(&self) -> io::Result<&[u8; KEY_BYTES]> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let mut key = [0; KEY_BYTES];
        random::fill(&mut key)?;
        Ok(self.key.get_or_init(|| key))
    }
}

fn code(key: &[u8; KEY_BYTES]) -> Option<Code> {
    // A key of any length will do.
    Code::new_from_slice(key).ok()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Without the key.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: Duration = Duration::from_secs(60);

    #[test]
    fn a_token_is_valid_until_its_end_and_only_where_it_was_made() {
        let tokens = Tokens::default();
        let token = tokens.make_until(END).unwrap();
        assert_eq!(token.len(), LETTERS);
        let before = END - Duration::from_millis(1);
        assert!(tokens.is_valid_at(&token, Duration::ZERO));
        assert!(tokens.is_valid_at(&token, before));
        assert!(!tokens.is_valid_at(&token, END));
        let others = Tokens::default();
        assert!(!others.is_valid_at(&token, before), "no key yet");
        let other = others.make_until(END).unwrap();
        assert!(!others.is_valid_at(&token, before), "another key");
        assert!(!tokens.is_valid_at(&other, before));
    }

    #[test]
    fn tokens_differ_and_live_from_now_on() {
        let tokens = Tokens::default();
        let [first, second] = [(); 2].map(|()| tokens.make(END).unwrap());
        assert_ne!(first, second);
        assert!(tokens.is_valid(&first) && tokens.is_valid(&second));
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        let tokens = Tokens::default();
        let _ = tokens.make(END).unwrap();
        assert_eq!(format!("{tokens:?}"), "Tokens { made: 1, .. }");
    }

    proptest! {
        #[test]
        fn a_changed_token_is_not_valid(at in 0..BYTES, bit in 0..8_u32) {
            let tokens = Tokens::default();
            let mut bytes = STANDARD.decode(tokens.make_until(END).unwrap()).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert!(!tokens.is_valid_at(&STANDARD.encode(bytes), Duration::ZERO));
        }

        #[test]
        fn no_text_is_a_token(text in ".{0,80}") {
            let tokens = Tokens::default();
            let _ = tokens.make_until(END).unwrap();
            prop_assert!(!tokens.is_valid_at(&text, Duration::ZERO));
        }
    }
}
