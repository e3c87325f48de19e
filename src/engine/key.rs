//! What addresses one counter: a 128-bit keyed hash of everything that makes it itself.
//!
//! The hash is SipHash-1-3 with 128 bits of output. Its seed is secret, made once per instance or
//! cluster, so that nobody outside can choose keys that collide.

use core::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

/// The secret of an instance from which all its keys derive.
#[derive(Clone, Copy)]
pub struct Seed([u8; 16]);

impl Seed {
    /// A seed from 16 random bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    fn hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

/// The name of one counter in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The high half orders keys first, and picks shard and home slot.
    pub(super) high: u64,
    /// The low half.
    pub(super) low: u64,
}

/// Everything about a counter but the values of its attributes: namespace, API, limit, window,
/// kind, attribute names. Two spaces never share a counter.
///
/// A space is a seed of its own, derived from the instance's: hashing the names once here leaves
/// only the values for each check.
#[derive(Clone, Copy)]
pub struct KeySpace(Seed);

impl KeySpace {
    /// The space of `parts`, each of which counts with its length.
    pub fn derive<'a>(seed: &Seed, parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let key = hash(seed, parts);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&key.high.to_le_bytes());
        bytes[8..].copy_from_slice(&key.low.to_le_bytes());
        Self(Seed(bytes))
    }

    /// The key of the counter with these attribute values, in the limit's order.
    #[inline]
    pub fn key<'a>(&self, values: impl IntoIterator<Item = &'a [u8]>) -> Key {
        hash(&self.0, values)
    }
}

/// Each part goes in behind its length, so that no two lists of parts hash the same bytes.
#[inline]
fn hash<'a>(seed: &Seed, parts: impl IntoIterator<Item = &'a [u8]>) -> Key {
    let mut hasher = seed.hasher();
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    let hash = hasher.finish128();
    Key { high: hash.h1, low: hash.h2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_count_with_their_lengths() {
        let space = KeySpace::derive(&Seed::new([7; 16]), [&b"media"[..], b"images_post"]);
        assert_ne!(space.key([&b"ab"[..], b"c"]), space.key([&b"a"[..], b"bc"]));
        assert_ne!(space.key([&b"ab"[..]]), space.key([&b"ab"[..], b""]));
        assert_eq!(space.key([&b"t1"[..]]), space.key([&b"t1"[..]]));
    }

    #[test]
    fn spaces_and_seeds_do_not_share_keys() {
        let seed = Seed::new([7; 16]);
        let images = KeySpace::derive(&seed, [&b"images"[..]]);
        let videos = KeySpace::derive(&seed, [&b"videos"[..]]);
        let other = KeySpace::derive(&Seed::new([8; 16]), [&b"images"[..]]);
        assert_ne!(images.key([&b"t1"[..]]), videos.key([&b"t1"[..]]));
        assert_ne!(images.key([&b"t1"[..]]), other.key([&b"t1"[..]]));
    }
}
