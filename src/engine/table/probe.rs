//! Where in an array a key is looked for, and how full an array may be.
//!
//! Linear probing from a home slot: the next slot is in the same cache line or the one after, and
//! those that most searches see are fetched ahead together. The home is the key's hash scaled to the capacity, so
//! that any capacity works, not only powers of two, and so that a walk over an old array visits
//! the new one in order too.

/// Fewest slots that an array is asked for: the first shard's; the last one begins with a quarter
/// more. All of them are one segment.
pub(super) const SLOTS_MIN: u32 = 409;

#[cfg(not(any(test, table_model)))]
const _: () = assert!(SLOTS_MIN + SLOTS_MIN / 4 <= super::segment::SEGMENT_SLOTS as u32);

/// A shard grows when four in five of its slots are claimed.
pub(super) const fn is_full(claimed: u32, slots: u32) -> bool {
    claimed as u64 * 5 >= slots as u64 * 4
}

/// Slots for `live` counters in a new array of a shard that began with `slots_at_first`: the least
/// of its own ladder of sizes, each a quarter above the one before, at which two in three are
/// live. A shard whose claimed slots are all live so goes from a load of 0.8 to one of 0.64. At
/// these loads a present key is found after 1.9 to 3 slots on average (Knuth, The Art of Computer
/// Programming 6.4), and a counter takes 40 to 50 bytes; shards begin at different sizes and keep
/// to their own ladders, so over all of them it is 44.6 at any size of the table by this sum; whole
/// segments and two arrays while one grows make it 47 at ten million (`cargo bench --bench memory`).
pub(super) const fn slots_for(live: u32, slots_at_first: u32) -> u32 {
    let mut slots = slots_at_first as u64;
    while slots * 2 < live as u64 * 3 {
        slots += slots / 4;
    }
    if slots > u32::MAX as u64 { u32::MAX } else { slots as u32 }
}

/// Slots of the array in which a shard with `keys` counters would be by now: the least of its
/// ladder that would not have to grow for them.
pub(super) const fn slots_holding(keys: u32, slots_at_first: u32) -> u32 {
    let mut slots = slots_at_first as u64;
    while slots * 4 <= keys as u64 * 5 {
        slots += slots / 4;
    }
    if slots > u32::MAX as u64 { u32::MAX } else { slots as u32 }
}

/// An array so much larger than its live counters need is rebuilt smaller.
pub(super) const fn is_sparse(live: u32, slots: u32, slots_at_first: u32) -> bool {
    slots > slots_at_first * 2 && (live as u64) * 5 < slots as u64
}

/// The slot at which the search for a key begins.
#[inline]
pub(super) const fn home(high: u64, slots: u32, shard_bits: u32) -> usize {
    // The bits below those that chose the shard, scaled from 2^32 to the capacity.
    let spread = (high << shard_bits) >> 32;
    ((spread * slots as u64) >> 32) as usize
}

/// Which of `1 << shard_bits` shards a key lives in.
#[inline]
pub(super) const fn shard(high: u64, shard_bits: u32) -> usize {
    if shard_bits == 0 { 0 } else { (high >> (64 - shard_bits)) as usize }
}

/// Slots of shard number `index` to begin with: spread over a factor of 1.25, so that shards
/// grow one after the other and never all at once. (Small arrays are of few whole segments and grow
/// together all the same, until they have eight.)
pub(super) const fn slots_at_first(index: usize, shards: usize, slots_min: u32) -> u32 {
    slots_min + (slots_min as usize * index / (shards * 4)) as u32
}
