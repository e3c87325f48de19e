//! SipHash-1-3 with 128 bits of output (Aumasson and Bernstein, "SipHash: a fast short-input PRF";
//! one round a block and three at the end, as hash tables use it).
//!
//! Our own because it runs for every check, on a few bytes: the crate that the tests compare it
//! with spends more instructions on its buffers than on the hash.

/// The state before the first block, for one key. Making it once saves doing so for each hash.
#[derive(Clone, Copy)]
pub(super) struct Sip {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl Sip {
    pub(super) const fn new(key: [u8; 16]) -> Self {
        let key = u128::from_le_bytes(key);
        let (k0, k1) = (key as u64, (key >> 64) as u64);
        // The constants spell "somepseudorandomlygeneratedbytes"; 0xee asks for 128 bits.
        Self {
            v0: k0 ^ 0x736f_6d65_7073_6575,
            v1: k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            v2: k0 ^ 0x6c79_6765_6e65_7261,
            v3: k1 ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    fn block(&mut self, block: u64) {
        self.v3 ^= block;
        self.round();
        self.v0 ^= block;
    }

    #[inline(always)]
    fn fold(&self) -> u64 {
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }

    /// The hash of `bytes`: its first and its second half.
    #[inline(always)]
    pub(super) fn hash(mut self, bytes: &[u8]) -> (u64, u64) {
        let (blocks, tail) = bytes.as_chunks::<8>();
        for block in blocks {
            self.block(u64::from_le_bytes(*block));
        }
        self.block(((bytes.len() as u64) << 56) | tail_word(tail));
        self.v2 ^= 0xee;
        for _ in 0..3 {
            self.round();
        }
        let first = self.fold();
        self.v1 ^= 0xdd;
        for _ in 0..3 {
            self.round();
        }
        (first, self.fold())
    }
}

/// Up to seven bytes, low first.
#[inline(always)]
fn tail_word(tail: &[u8]) -> u64 {
    let mut word = 0;
    let mut rest = tail;
    if let Some((four, more)) = rest.split_first_chunk::<4>() {
        word = u64::from(u32::from_le_bytes(*four));
        rest = more;
    }
    let mut shift = 8 * (tail.len() - rest.len());
    for byte in rest {
        word |= u64::from(*byte) << shift;
        shift += 8;
    }
    word
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siphasher::sip128::SipHasher13;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn equals_the_crate(
            key in any::<[u8; 16]>(),
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let expected = SipHasher13::new_with_key(&key).hash(&bytes);
            prop_assert_eq!(Sip::new(key).hash(&bytes), (expected.h1, expected.h2));
        }
    }
}
