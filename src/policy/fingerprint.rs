//! A hash that is the same on every machine and in every version: FNV-1a with 64 bits.
//!
//! It tells apart what honest people wrote (layouts, versions). What an attacker may choose is
//! hashed with the engine's keyed hash.

/// A hash in the making. Each part counts with its length.
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn part(&mut self, part: &[u8]) -> &mut Self {
        for byte in (part.len() as u64).to_le_bytes().iter().chain(part) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }

    /// The hash; never 0, which callers may take for none.
    pub(super) fn finish(&self) -> u64 {
        self.0.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_count_with_their_lengths_and_the_value_never_changes() {
        let of = |parts: &[&[u8]]| {
            let mut hash = Fingerprint::new();
            for part in parts {
                hash.part(part);
            }
            hash.finish()
        };
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_eq!(of(&[]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(of(&[b"media", b"images_post"]), of(&[b"media", b"images_post"]));
    }
}
