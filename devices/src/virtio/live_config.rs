//! Configuration of a device that changes while its driver works, and of which the driver writes a part
//! (virtio 1.2 §2.5).
//!
//! The loop changes it while vCPUs read it through the register front, whose lock the loop must not take: so it is made of
//! atomics, one for each field.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::register_page::{RegisterPage, reg};

/// Bytes of a field.
const WORD_BYTES: usize = 4;

/// Fields of 32 bits, little-endian to the guest. Shared by the device and its register front.
#[derive(Debug)]
pub struct LiveConfig {
    words: Vec<AtomicU32>,
    /// Those that the driver may write.
    driver_words: Range<usize>,
    generation: AtomicU32,
    page: OnceLock<Arc<RegisterPage>>,
}

impl LiveConfig {
    /// Fields with these values; the driver may write those of the indices `driver_words`.
    #[must_use]
    pub fn new(words: &[u32], driver_words: Range<usize>) -> Self {
        Self {
            words: words.iter().copied().map(AtomicU32::new).collect(),
            driver_words,
            generation: AtomicU32::new(0),
            page: OnceLock::new(),
        }
    }

    /// The field at `index`; 0 if there is none.
    #[must_use]
    pub fn word(&self, index: usize) -> u32 {
        self.words
            .get(index)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Gives a field another value. The driver is to be told by a configuration interrupt.
    pub fn set_word(&self, index: usize, value: u32) {
        if let Some(word) = self.words.get(index) {
            word.store(value, Ordering::Release);
            // After the value: a driver that reads the same generation twice has read one state.
            self.generation.fetch_add(1, Ordering::AcqRel);
            if let Some(page) = self.page.get() {
                page.show(|shown| {
                    shown.set_config(&self.bytes());
                    shown.set(reg::CONFIG_GENERATION, self.generation());
                });
            }
        }
    }

    /// Has the fields and their generation shown on `page` from now on.
    pub(crate) fn show_on(&self, page: &Arc<RegisterPage>) {
        let _ = self.page.set(Arc::clone(page));
    }

    /// ConfigGeneration: changes with every change by the device.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Goes on from the ConfigGeneration of a saved device.
    pub(crate) fn continue_from(&self, generation: u32) {
        self.generation.fetch_add(generation, Ordering::AcqRel);
    }

    /// All fields as the guest reads them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let words = 0..self.words.len();
        words
            .flat_map(|index| self.word(index).to_le_bytes())
            .collect()
    }

    /// The driver writes `data` at `offset`. False, and nothing is written, unless that is one whole field of its own.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> bool {
        let (Ok(offset), Ok(bytes)) = (usize::try_from(offset), <[u8; WORD_BYTES]>::try_from(data))
        else {
            return false;
        };
        let index = offset / WORD_BYTES;
        let is_own = offset.is_multiple_of(WORD_BYTES) && self.driver_words.contains(&index);
        match self.words.get(index).filter(|_| is_own) {
            Some(word) => {
                word.store(u32::from_le_bytes(bytes), Ordering::Release);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_writes_whole_fields_of_its_own_and_nothing_else() {
        let config = LiveConfig::new(&[1, 2, 3], 1..2);
        for (offset, bytes) in [
            (0, 4),
            (8, 4),
            (12, 4),
            (u64::MAX, 4),
            (4, 2),
            (5, 4),
            (4, 8),
        ] {
            assert!(
                !config.write(offset, &vec![0xff; bytes]),
                "{offset}+{bytes}"
            );
        }
        assert_eq!(config.bytes(), [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        assert!(config.write(4, &[4, 3, 2, 1]));
        assert_eq!((config.word(1), config.generation()), (0x0102_0304, 0));
        config.set_word(2, 7);
        config.set_word(9, 7);
        assert_eq!(
            (config.word(2), config.word(9), config.generation()),
            (7, 0, 1)
        );
    }
}
