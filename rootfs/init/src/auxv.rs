//! What the kernel tells a program that it starts: the auxiliary vector of `/proc/PID/auxv`.

/// Where the program's own first instruction stands (`AT_ENTRY`).
pub const ENTRY: u64 = 9;
/// Where 16 random bytes stand, from which libc makes its canaries (`AT_RANDOM`).
pub const RANDOM: u64 = 25;

/// The value of `kind` in `auxv`: pairs of 64-bit numbers up to one of kind 0.
#[must_use]
pub fn value(auxv: &[u8], kind: u64) -> Option<u64> {
    let (words, _) = auxv.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs
        .iter()
        .map(|[kind, value]| (u64::from_ne_bytes(*kind), u64::from_ne_bytes(*value)))
        .take_while(|(kind, _)| *kind != 0)
        .find_map(|(found, value)| (found == kind).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_before_the_end() {
        let words: [u64; 8] = [6, 4096, ENTRY, 0x401000, 0, 0, RANDOM, 7];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(value(&bytes, ENTRY), Some(0x401000));
        assert_eq!(value(&bytes, 6), Some(4096));
        assert_eq!(value(&bytes, RANDOM), None);
        assert_eq!(value(&bytes[..31], ENTRY), None);
        assert_eq!(value(&[], ENTRY), None);
    }

    #[test]
    fn this_process_has_both() {
        let auxv = std::fs::read("/proc/self/auxv").unwrap();
        assert!(value(&auxv, ENTRY).is_some_and(|entry| entry != 0));
        assert!(value(&auxv, RANDOM).is_some_and(|random| random != 0));
    }
}
