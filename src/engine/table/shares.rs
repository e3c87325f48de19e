//! Shares of permits: one record for each concurrency limit that a permit holds something of, in
//! a heap for each counter, the first to lapse on top.
//!
//! The heap is leftist (Crane 1972; Knuth, The Art of Computer Programming 5.2.3) with links to
//! the parent, so taking, giving back from anywhere and letting lapse each walk at most a
//! logarithm of the number held. A record belongs to its counter: only who holds the counter's
//! slot touches it, but for a look at which counter that is (see [`Shares::counter`]).

use crate::engine::key::Key;
use crate::engine::permit::Serial;
use crate::engine::sync::{AtomicU64, Ordering};
use crate::engine::time::{Nanos, Timestamp};

use super::pool::{Piece, Pool};
use super::slot::Tag;

/// Number of a record plus one; zero is none.
pub(super) type Link = u32;

/// The record of one share.
struct Record([AtomicU64; WORDS]);

const WORDS: usize = 8;
const KEY_HIGH: usize = 0;
const KEY_LOW: usize = 1;
const SERIAL: usize = 2;
const LAPSES_AT: usize = 3;
const LEASE: usize = 4;
/// Units in the low 56 bits, rank above.
const UNITS: usize = 5;
/// Left child in the low half, right child in the high half.
const CHILDREN: usize = 6;
/// Parent in the low half, number of the share in the 8 bits above, then the snapshot tag.
const PARENT: usize = 7;

const NUMBER_SHIFT: u32 = 32;
const TAG_SHIFT: u32 = 40;

const UNIT_BITS: u32 = 56;

// Safety: atomic words are valid when zero and have nothing to drop.
unsafe impl Piece for Record {
    const FIRST_BLOCK: u32 = if cfg!(table_model) { 4 } else { 64 };

    #[cfg(table_model)]
    fn blank() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn link(&self) -> &AtomicU64 {
        &self.0[KEY_HIGH]
    }

    /// Whoever takes a record writes all of it.
    fn clear(&self) {}
}

/// What a share is, as it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) counter: Key,
    pub(super) serial: Serial,
    /// Its number within the permit.
    pub(super) number: u8,
    pub(super) units: u64,
    pub(super) lapses_at: Timestamp,
    /// How long it was given for, and is renewed for.
    pub(super) lease: Nanos,
}

/// The shares of a table.
pub(super) struct Shares(Pool<Record>);

impl Shares {
    pub(super) fn new() -> Self {
        Self(Pool::new())
    }

    /// Bytes that the records take.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn word(&self, link: Link, word: usize) -> &AtomicU64 {
        &self.0.piece(link - 1).0[word]
    }

    fn load(&self, link: Link, word: usize) -> u64 {
        self.word(link, word).load(Ordering::Relaxed)
    }

    fn store(&self, link: Link, word: usize, value: u64) {
        self.word(link, word).store(value, Ordering::Relaxed);
    }

    /// Takes a record for a share, in no heap yet.
    pub(super) fn take(&self, share: &Share) -> Link {
        let link = self.0.take() + 1;
        let words = [
            share.counter.high,
            share.counter.low,
            share.serial.word(),
            share.lapses_at.as_nanos(),
            share.lease.get(),
            share.units | 1 << UNIT_BITS,
            0,
            u64::from(share.number) << NUMBER_SHIFT,
        ];
        for (word, value) in words.into_iter().enumerate() {
            self.store(link, word, value);
        }
        link
    }

    /// Gives a record back that is in no heap and that no slot names any more.
    pub(super) fn give(&self, link: Link) {
        self.0.give(link - 1);
    }

    /// Which counter a share is of. Whoever does not hold that counter may read what was here
    /// before or comes after: it holds what it read, and then looks again.
    pub(super) fn counter(&self, link: Link) -> Key {
        Key { high: self.load(link, KEY_HIGH), low: self.load(link, KEY_LOW) }
    }

    pub(super) fn share(&self, link: Link) -> Share {
        Share {
            counter: self.counter(link),
            serial: Serial::from_word(self.load(link, SERIAL)),
            number: (self.load(link, PARENT) >> NUMBER_SHIFT) as u8,
            units: self.load(link, UNITS) & ((1 << UNIT_BITS) - 1),
            lapses_at: self.lapses_at(link),
            lease: Nanos::new(self.load(link, LEASE)),
        }
    }

    pub(super) fn lapses_at(&self, link: Link) -> Timestamp {
        Timestamp::from_nanos(self.load(link, LAPSES_AT))
    }

    /// For which snapshot a share was noted, or in the middle of which it was given.
    pub(super) fn tag(&self, link: Link) -> Tag {
        Tag::new((self.load(link, PARENT) >> TAG_SHIFT) as u8)
    }

    pub(super) fn set_tag(&self, link: Link, tag: Tag) {
        let rest = self.load(link, PARENT) & ((1 << TAG_SHIFT) - 1);
        self.store(link, PARENT, u64::from(tag.number()) << TAG_SHIFT | rest);
    }

    /// Adds a record to a heap. Returns the heap's new top.
    pub(super) fn push(&self, top: Link, link: Link) -> Link {
        let top = self.merge(top, link);
        self.set_parent(top, 0);
        top
    }

    /// Takes a record out of its heap. Returns the heap's new top.
    pub(super) fn remove(&self, top: Link, link: Link) -> Link {
        let parent = self.parent(link);
        let below = self.merge(self.left(link), self.right(link));
        if below != 0 {
            self.set_parent(below, parent);
        }
        self.store(link, CHILDREN, 0);
        self.set_rank(link, 1);
        self.set_parent(link, 0);
        if parent == 0 {
            debug_assert_eq!(top, link);
            return below;
        }
        if self.left(parent) == link {
            self.set_children(parent, below, self.right(parent));
        } else {
            self.set_children(parent, self.left(parent), below);
        }
        // A rank that stays the same changes nothing above it.
        let mut at = parent;
        while at != 0 && self.straighten(at) {
            at = self.parent(at);
        }
        top
    }

    /// Makes a share last until another time. Returns the heap's new top.
    pub(super) fn move_to(&self, top: Link, link: Link, lapses_at: Timestamp) -> Link {
        let top = self.remove(top, link);
        self.store(link, LAPSES_AT, lapses_at.as_nanos());
        self.push(top, link)
    }

    /// Merges two heaps along their right spines, each no longer than a logarithm of its size.
    fn merge(&self, a: Link, b: Link) -> Link {
        if a == 0 || b == 0 {
            return a | b;
        }
        let (top, mut other) = self.in_order(a, b);
        let mut at = top;
        while other != 0 {
            let right = self.right(at);
            let (first, rest) = if right == 0 { (other, 0) } else { self.in_order(right, other) };
            self.set_children(at, self.left(at), first);
            self.set_parent(first, at);
            (at, other) = (first, rest);
        }
        loop {
            self.straighten(at);
            if at == top {
                return top;
            }
            at = self.parent(at);
        }
    }

    fn in_order(&self, a: Link, b: Link) -> (Link, Link) {
        if self.lapses_at(b) < self.lapses_at(a) { (b, a) } else { (a, b) }
    }

    /// Puts the child of greater rank to the left. Returns whether the rank changed.
    fn straighten(&self, link: Link) -> bool {
        let (left, right) = (self.left(link), self.right(link));
        if self.rank(left) < self.rank(right) {
            self.set_children(link, right, left);
        }
        let rank = self.rank(self.right(link)) + 1;
        let changed = rank != self.rank(link);
        self.set_rank(link, rank);
        changed
    }

    pub(super) fn left(&self, link: Link) -> Link {
        self.load(link, CHILDREN) as u32
    }

    pub(super) fn right(&self, link: Link) -> Link {
        (self.load(link, CHILDREN) >> 32) as u32
    }

    fn set_children(&self, link: Link, left: Link, right: Link) {
        self.store(link, CHILDREN, u64::from(right) << 32 | u64::from(left));
    }

    fn parent(&self, link: Link) -> Link {
        self.load(link, PARENT) as u32
    }

    fn set_parent(&self, link: Link, parent: Link) {
        let rest = self.load(link, PARENT) >> NUMBER_SHIFT;
        self.store(link, PARENT, rest << NUMBER_SHIFT | u64::from(parent));
    }

    /// Nodes on the right spine; none has none.
    fn rank(&self, link: Link) -> u64 {
        if link == 0 { 0 } else { self.load(link, UNITS) >> UNIT_BITS }
    }

    fn set_rank(&self, link: Link, rank: u64) {
        let units = self.load(link, UNITS) & ((1 << UNIT_BITS) - 1);
        self.store(link, UNITS, rank << UNIT_BITS | units);
    }
}

#[cfg(all(test, not(table_model)))]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn share(lapses_at: u64) -> Share {
        Share {
            counter: Key { high: 1, low: 2 },
            serial: Serial::new(lapses_at, 1),
            number: 0,
            units: 1,
            lapses_at: Timestamp::from_nanos(lapses_at),
            lease: Nanos::from_secs(1),
        }
    }

    /// The longest walk from a node to a missing right child, and that every node has its place.
    fn check(shares: &Shares, link: Link) -> u64 {
        if link == 0 {
            return 0;
        }
        for child in [shares.left(link), shares.right(link)].into_iter().filter(|link| *link != 0) {
            assert_eq!(shares.parent(child), link);
            assert!(shares.lapses_at(child) >= shares.lapses_at(link));
        }
        let (left, right) = (check(shares, shares.left(link)), check(shares, shares.right(link)));
        assert!(left >= right);
        assert_eq!(shares.rank(link), right + 1);
        right + 1
    }

    proptest! {
        #[test]
        fn a_heap_is_an_ordered_set(steps in prop::collection::vec((0..4_u8, 0..1000_u64), 1..200)) {
            let shares = Shares::new();
            let (mut top, mut set, mut links) = (0, BTreeSet::new(), Vec::new());
            for (step, number) in steps {
                match step {
                    0 | 1 => {
                        let link = shares.take(&share(number));
                        top = shares.push(top, link);
                        set.insert((number, link));
                        links.push(link);
                    }
                    2 if !links.is_empty() => {
                        let link = links.swap_remove(number as usize % links.len());
                        set.remove(&(shares.lapses_at(link).as_nanos(), link));
                        top = shares.remove(top, link);
                        shares.give(link);
                    }
                    3 if !links.is_empty() => {
                        let link = links[number as usize % links.len()];
                        set.remove(&(shares.lapses_at(link).as_nanos(), link));
                        top = shares.move_to(top, link, Timestamp::from_nanos(number + 500));
                        set.insert((number + 500, link));
                    }
                    _ => {}
                }
                check(&shares, top);
                let first = set.first().map(|(lapses_at, _)| *lapses_at);
                prop_assert_eq!((top != 0).then(|| shares.lapses_at(top).as_nanos()), first);
            }
        }
    }

    #[test]
    fn a_share_reads_back_as_given_wherever_it_hangs() {
        let shares = Shares::new();
        let mut top = 0;
        let given: Vec<_> = (0..100_u64)
            .map(|number| {
                let units = (1 << 54) + number;
                let share = Share { units, number: number as u8, ..share(number * 7 % 31) };
                let link = shares.take(&share);
                top = shares.push(top, link);
                (link, share)
            })
            .collect();
        for (link, share) in given {
            assert_eq!(shares.share(link), share);
        }
    }
}
