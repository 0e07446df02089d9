//! Bytes that anyone can compute: what the guest's HTTP server sends for `/bytes/N`.

/// Byte `index` of the pattern: `(index * 31 + 7) mod 256`.
pub const fn byte(index: u64) -> u8 {
    index.wrapping_mul(31).wrapping_add(7).to_le_bytes()[0]
}

/// Fills `out` with the pattern from byte `start` on.
pub fn fill(out: &mut [u8], start: u64) {
    let mut value = byte(start);
    for place in out {
        *place = value;
        value = value.wrapping_add(31);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_agrees_with_byte_at_any_start() {
        for start in [0, 1, 255, 256, u64::MAX - 3] {
            let mut out = [0; 600];
            fill(&mut out, start);
            for (offset, &value) in (0..).zip(&out) {
                assert_eq!(
                    value,
                    byte(start.wrapping_add(offset)),
                    "start {start} offset {offset}"
                );
            }
        }
    }
}
