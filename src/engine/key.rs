//! What addresses one counter: a 128-bit keyed hash of everything that makes it itself.
//!
//! The hash is SipHash-1-3 with 128 bits of output. Its seed is secret, made once per instance or
//! cluster, so that nobody outside can choose keys that collide.

use alloc::vec::Vec;

use super::sip::Sip;

/// The secret of an instance from which all its keys derive.
#[derive(Clone, Copy)]
pub struct Seed(Sip);

impl Seed {
    /// A seed from 16 random bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(Sip::new(bytes))
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

impl Key {
    /// Stands where there is no counter.
    pub(crate) const NONE: Self = Self { high: 0, low: 0 };

    /// The key as a snapshot has it: the high half first.
    pub(crate) const fn words(self) -> [u64; 2] {
        [self.high, self.low]
    }

    /// What [`Key::words`] gave.
    pub(crate) const fn from_words([high, low]: [u64; 2]) -> Self {
        Self { high, low }
    }
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
        let bytes = (u128::from(key.low) << 64) | u128::from(key.high);
        Self(Seed::new(bytes.to_le_bytes()))
    }

    /// The key of the counter of a limit with one attribute. A space is for one number of
    /// attributes, so the value needs no length before it.
    #[inline]
    pub fn key_of_one(&self, value: &[u8]) -> Key {
        finish(&self.0, value)
    }

    /// The key of the counter with these attribute values, in the limit's order.
    #[inline]
    pub fn key<'a>(&self, values: impl IntoIterator<Item = &'a [u8]>) -> Key {
        hash(&self.0, values)
    }
}

/// Values of attributes, hashed once for all the limits that count by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    high: u64,
    low: u64,
}

/// The counters of one limit of a policy: as a [`KeySpace`], but all that derive from one seed hash
/// values alike and differ by what they lay over the hash. So a request that several limits count
/// by the same values is hashed once. Keys of such spaces must not be shown to callers: two of one
/// subject tell how the spaces differ.
#[derive(Clone, Copy)]
pub struct LimitSpace {
    subjects: Seed,
    own: Own,
}

/// What sets the keys of one space apart from those of others. As secret as the seed, and as hard
/// to collide.
#[derive(Clone, Copy)]
pub(crate) struct Own(Key);

impl Own {
    /// The key of the subject's counter.
    #[inline]
    pub(crate) fn key(self, subject: Subject) -> Key {
        Key { high: subject.high ^ self.0.high, low: subject.low ^ self.0.low }
    }
}

impl LimitSpace {
    /// The space of `parts`, each of which counts with its length.
    pub fn derive<'a>(seed: &Seed, parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let KeySpace(subjects) = KeySpace::derive(seed, [&b"subject"[..]]);
        Self { subjects, own: Own(hash(seed, parts)) }
    }

    /// The subject of one value. A space is for one number of attributes, so the value needs no
    /// length before it.
    #[inline]
    pub fn subject_of_one(&self, value: &[u8]) -> Subject {
        let (high, low) = self.subjects.0.hash(value);
        Subject { high, low }
    }

    /// The subject of these values, in the limit's order.
    #[inline]
    pub fn subject<'a>(&self, values: impl IntoIterator<Item = &'a [u8]>) -> Subject {
        let Key { high, low } = hash(&self.subjects, values);
        Subject { high, low }
    }

    /// The key of the subject's counter.
    #[inline]
    pub fn key(&self, subject: Subject) -> Key {
        self.own.key(subject)
    }

    /// What sets its keys apart.
    pub(crate) fn own(&self) -> Own {
        self.own
    }
}

/// Bytes of lengths and parts that are hashed without allocating. Longer keys are rare and pay
/// for it.
const SHORT_BYTES: usize = 128;

/// Each part goes in behind its length, so that no two lists of parts hash the same bytes.
#[inline]
fn hash<'a>(seed: &Seed, parts: impl IntoIterator<Item = &'a [u8]>) -> Key {
    let mut short = [0; SHORT_BYTES];
    let mut len = 0;
    let mut parts = parts.into_iter();
    while let Some(part) = parts.next() {
        let Some(room) = short.get_mut(len..len + 4 + part.len()) else {
            return hash_long(seed, &short[..len], part, parts);
        };
        let (length, room) = room.split_at_mut(4);
        // A part is far below 4 GiB: values are capped at a kilobyte.
        length.copy_from_slice(&(part.len() as u32).to_le_bytes());
        copy_short(room, part);
        len += 4 + part.len();
    }
    finish(seed, &short[..len])
}

/// Copies a few bytes without a call; both slices are equally long.
#[inline]
fn copy_short(to: &mut [u8], from: &[u8]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<8>(), from.first_chunk::<8>()) {
        *to = *from;
    }
    let done = from.len().min(8) & 8;
    if done == from.len() {
        return;
    }
    if done == 0 {
        for (to, from) in to.iter_mut().zip(from) {
            *to = *from;
        }
    } else {
        to[done..].copy_from_slice(&from[done..]);
    }
}

#[cold]
fn hash_long<'a>(
    seed: &Seed,
    front: &[u8],
    part: &'a [u8],
    parts: impl Iterator<Item = &'a [u8]>,
) -> Key {
    let mut bytes = Vec::from(front);
    for part in core::iter::once(part).chain(parts) {
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    finish(seed, &bytes)
}

#[inline]
fn finish(seed: &Seed, bytes: &[u8]) -> Key {
    let (high, low) = seed.0.hash(bytes);
    Key { high, low }
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
    fn long_parts_count_as_short_ones_do() {
        let space = KeySpace::derive(&Seed::new([7; 16]), [&b"media"[..]]);
        let long = [b'x'; 300];
        assert_ne!(space.key([&long[..]]), space.key([&long[..299]]));
        assert_ne!(space.key([&long[..150], &long[150..]]), space.key([&long[..]]));
        assert_ne!(space.key([&b"a"[..], &long[..]]), space.key([&b"b"[..], &long[..]]));
        assert_eq!(space.key([&b"a"[..], &long[..]]), space.key([&b"a"[..], &long[..]]));
    }

    #[test]
    fn limits_share_subjects_and_not_keys() {
        let seed = Seed::new([7; 16]);
        let day = LimitSpace::derive(&seed, [&b"day"[..]]);
        let month = LimitSpace::derive(&seed, [&b"month"[..]]);
        let other = LimitSpace::derive(&Seed::new([8; 16]), [&b"day"[..]]);
        let (one, two) = (day.subject_of_one(b"t1"), day.subject([&b"t"[..], b"1"]));
        assert_eq!(one, month.subject_of_one(b"t1"));
        assert_ne!(one, other.subject_of_one(b"t1"));
        assert_ne!(one, two);
        assert_ne!(day.key(one), month.key(one));
        assert_ne!(day.key(one), day.key(two));
        assert_ne!(day.key(one).words(), [one.high, one.low], "a key is not its subject");
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
