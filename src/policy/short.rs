//! Comparing values of attributes, most of which are a few bytes long.

/// Whether two texts are equal, without a call where they are short: the C library's comparison
/// takes as long as all the rest of a condition, and on an empty vector, where it loads nothing by
/// a mask from where that points, 100 ns.
#[inline]
pub(super) fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    // The first and the last word cover two words, and all of what is shorter.
    if let (Some(ends), Some(b_ends)) = (ends::<8>(a), ends::<8>(b)) {
        let same = ends.map(u64::from_ne_bytes) == b_ends.map(u64::from_ne_bytes);
        return same && (a.len() <= 16 || a == b);
    }
    match (ends::<4>(a), ends::<4>(b)) {
        (Some(ends), Some(b_ends)) => {
            ends.map(u32::from_ne_bytes) == b_ends.map(u32::from_ne_bytes)
        }
        _ => a.iter().zip(b).all(|(a, b)| a == b),
    }
}

/// The first and the last `N` bytes.
#[inline]
fn ends<const N: usize>(text: &[u8]) -> Option<[[u8; N]; 2]> {
    Some([*text.first_chunk()?, *text.last_chunk()?])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Texts that differ in one byte, or in length, or not at all.
        #[test]
        fn same_is_equal(
            a in prop::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
            flip in any::<u8>(),
            cut in 0usize..3,
        ) {
            let mut b = a.clone();
            if !b.is_empty() {
                let at = at.index(b.len());
                b[at] ^= flip;
            }
            b.truncate(b.len() - cut.min(b.len()));
            prop_assert_eq!(is_same(&a, &b), a == b);
            prop_assert!(is_same(&a, &a.clone()));
        }
    }
}
