//! What the two ends of a measurement of a network say to each other, besides the data.
//!
//! TCP: one end sends until its time is over and closes its half; the end that received answers with [`Count`]. UDP: each
//! datagram begins with a [`Mark`]. Data may be lost; all else is said again until it is answered.

/// Bytes that each call of a sender of a stream is given, and that each call of a receiver has room for.
pub const PIECE_BYTES: usize = 64 * 1024;
/// Bytes of [`Count`].
pub const COUNT_BYTES: usize = 16;

/// First byte of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Counts.
    Data,
    /// The receiver is there, at the address that this comes from.
    Hello,
    /// The sender has sent all. Asks for [`Mark::Count`].
    End,
    /// A [`Count`] follows.
    Count,
}

impl Mark {
    /// As it is sent.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Hello => 1,
            Self::End => 2,
            Self::Count => 3,
        }
    }

    /// That of a datagram.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let first = *datagram.first()?;
        let all = [Self::Data, Self::Hello, Self::End, Self::Count];
        all.into_iter().find(|mark| mark.byte() == first)
    }
}

/// What a receiver has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Bytes of data.
    pub bytes: u64,
    /// From the first of them to the last.
    pub ns: u64,
}

impl Count {
    /// Takes note of `bytes` more, at `now_ns` of any clock; `start_ns` is when the first came.
    pub fn add(&mut self, bytes: usize, start_ns: u64, now_ns: u64) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.ns = now_ns.saturating_sub(start_ns);
    }

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; COUNT_BYTES] {
        let mut out = [0; COUNT_BYTES];
        let (bytes, ns) = out.split_at_mut(COUNT_BYTES / 2);
        bytes.copy_from_slice(&self.bytes.to_le_bytes());
        ns.copy_from_slice(&self.ns.to_le_bytes());
        out
    }

    /// From what was sent.
    pub fn from_bytes(sent: [u8; COUNT_BYTES]) -> Self {
        let (words, _) = sent.as_chunks();
        let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
        Self {
            bytes: word(0),
            ns: word(1),
        }
    }

    /// From a datagram of [`Mark::Count`].
    pub fn from_datagram(datagram: &[u8]) -> Option<Self> {
        let (mark, rest) = datagram.split_first()?;
        let sent = rest.first_chunk()?;
        (*mark == Mark::Count.byte()).then(|| Self::from_bytes(*sent))
    }

    /// A datagram of [`Mark::Count`].
    pub fn to_datagram(self) -> [u8; 1 + COUNT_BYTES] {
        let mut out = [Mark::Count.byte(); 1 + COUNT_BYTES];
        if let Some((_, rest)) = out.split_first_mut() {
            rest.copy_from_slice(&self.to_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for mark in [Mark::Data, Mark::Hello, Mark::End, Mark::Count] {
            assert_eq!(Mark::of(&[mark.byte(), 9]), Some(mark));
        }
        assert_eq!([Mark::of(&[]), Mark::of(&[4])], [None, None]);
        let mut count = Count::default();
        count.add(5, 100, 100);
        count.add(7, 100, 130);
        assert_eq!(count, Count { bytes: 12, ns: 30 });
        assert_eq!(Count::from_bytes(count.to_bytes()), count);
        assert_eq!(Count::from_datagram(&count.to_datagram()), Some(count));
        for bad in [&[][..], &[3; COUNT_BYTES], &[0; 1 + COUNT_BYTES]] {
            assert_eq!(Count::from_datagram(bad), None);
        }
    }
}
