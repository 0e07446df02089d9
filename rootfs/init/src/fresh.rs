//! Random bytes made in the agent. On software KVM a system call for them costs a millisecond; this costs nothing.

/// 24 bytes that say nothing about `seed`, and differ for every seed: the first of ChaCha20's key stream (RFC 8439) with
/// `seed` as the key. The seed itself goes to the kernel's pool and must stay secret.
#[must_use]
pub fn bytes_from(seed: &[u8; 32]) -> [u8; 24] {
    let block = block(seed, 0, [0; 3]);
    let mut bytes = [0; 24];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(block) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A block of the key stream (RFC 8439, 2.3).
fn block(key: &[u8; 32], counter: u32, nonce: [u32; 3]) -> [u32; 16] {
    let mut start = [0; 16];
    // "expand 32-byte k"
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    let (words, _) = key.as_chunks::<4>();
    for (to, word) in start[4..12].iter_mut().zip(words) {
        *to = u32::from_le_bytes(*word);
    }
    start[12] = counter;
    start[13..].copy_from_slice(&nonce);
    let mut state = start;
    for _ in 0..10 {
        for at in 0..4 {
            quarter_round(&mut state, [at, at + 4, at + 8, at + 12]);
        }
        for at in 0..4 {
            let diagonal = [at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4];
            quarter_round(&mut state, diagonal);
        }
    }
    for (word, first) in state.iter_mut().zip(start) {
        *word = word.wrapping_add(first);
    }
    state
}

fn quarter_round(state: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    for (to, from, mixed, by) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        state[to] = state[to].wrapping_add(state[from]);
        state[mixed] = (state[mixed] ^ state[to]).rotate_left(by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_that_of_rfc_8439() {
        let key = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let found = block(&key, 1, [0x0900_0000, 0x4a00_0000, 0]);
        let expected = [
            0xe4e7_f110,
            0x1559_3bd1,
            0x1fdd_0f50,
            0xc471_20a3,
            0xc7f4_d1c7,
            0x0368_c033,
            0x9aaa_2204,
            0x4e6c_d4c3,
            0x4664_82d2,
            0x09aa_9f07,
            0x05d7_c214,
            0xa202_8bd9,
            0xd19c_12b5,
            0xb94e_16de,
            0xe883_d0cb,
            0x4e3c_50a2,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn other_seeds_give_other_bytes() {
        let mut seed = [0; 32];
        let first = bytes_from(&seed);
        seed[31] = 1;
        assert_ne!(first, bytes_from(&seed));
    }
}
