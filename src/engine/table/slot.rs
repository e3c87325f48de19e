//! One slot of the table, 32 bytes: the state word that all decisions compare and swap, what the
//! slot is for, and its key.
//!
//! ```text
//! state  63 HELD   62 MOVING   61 WIDE   60..0 value, or number of the wide cell
//!        HELD and MOVING together: not a counter, see the values of [`Word`]
//! meta   63..48 fingerprint   47..32 limit   31..8 a bucket's generation, or in 31..16 a window
//!        number   7..4 snapshot tag   3..0 what it holds, never zero
//! key    two words, written once between claim and publication
//! ```
//!
//! Within one array a slot never changes its key, so a late compare-and-swap can fail but can
//! never charge another key. What may happen to a state word:
//!
//! ```text
//! UNBORN --publish--> live or HELD      live <--charge--> live       live <--hold, release--> HELD
//! UNBORN --kill-----> KILLED            live --sweep----> DEAD --charge--> live
//! live --move--> MOVING --> MOVED       DEAD --move-----> MOVED     KILLED --move--> BURIED
//! ```

use crate::engine::command::LimitId;
use crate::engine::key::Key;
use crate::engine::kinds::GENERATION_BITS;
use crate::engine::quota::Kind;
use crate::engine::sync::{AtomicU64, Ordering};

use super::rings::RingId;

const HELD: u64 = 1 << 63;
const MOVING: u64 = 1 << 62;
const WIDE: u64 = 1 << 61;
const SPECIAL: u64 = HELD | MOVING;

/// What a live counter's word says: a narrow value, or where its wide form is. Zero is a fresh
/// counter, which only a held slot can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Payload(u64);

impl Payload {
    pub(super) const FRESH: Self = Self(0);

    /// The payload with this word, as [`Payload::word`] gave it.
    pub(super) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(super) const fn word(self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) const fn narrow(value: u64) -> Self {
        debug_assert!(value < WIDE);
        Self(value)
    }

    /// A counter in the cell, or a permit's share in the record, of this number.
    pub(super) const fn wide(number: u32) -> Self {
        Self(WIDE | number as u64)
    }

    /// A counter in this ring.
    pub(super) const fn ring(id: RingId) -> Self {
        Self(WIDE | (id.class() as u64) << 32 | id.number as u64)
    }

    #[inline]
    pub(super) const fn is_wide(self) -> bool {
        self.0 & WIDE != 0
    }

    /// The number of the cell or record, if it is wide.
    #[inline]
    pub(super) const fn cell(self) -> Option<u32> {
        if self.is_wide() { Some(self.0 as u32) } else { None }
    }

    /// The ring, if it is wide.
    pub(super) const fn ring_id(self) -> Option<RingId> {
        if self.is_wide() { Some(RingId::new(self.0 as u32, (self.0 >> 32) as u8)) } else { None }
    }

    /// The narrow value; call only without a cell.
    #[inline]
    pub(super) const fn value(self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) const fn is_fresh(self) -> bool {
        self.0 == 0
    }
}

/// The state word of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    /// Claimed by an insert that has not yet said which key; also a vacant slot's word.
    pub(super) const UNBORN: Self = Self(0);
    /// The counter equals a fresh one; the key may come back.
    pub(super) const DEAD: Self = Self(SPECIAL | 1);
    /// Moved to the next array.
    pub(super) const MOVED: Self = Self(SPECIAL | 2);
    /// An insert was overtaken before it said which key. The slot never has one.
    pub(super) const KILLED: Self = Self(SPECIAL | 3);
    /// Killed, and counted as retired by the move to the next array.
    pub(super) const BURIED: Self = Self(SPECIAL | 4);

    #[inline]
    pub(super) const fn live(payload: Payload) -> Self {
        debug_assert!(!payload.is_fresh());
        Self(payload.0)
    }

    pub(super) const fn held(payload: Payload) -> Self {
        Self(HELD | payload.0)
    }

    pub(super) const fn moving(payload: Payload) -> Self {
        Self(MOVING | payload.0)
    }

    /// The value of a live narrow counter: what [`Word::state`] says mostly, by one comparison.
    #[inline]
    pub(super) const fn narrow_live(self) -> Option<Payload> {
        if self.0.wrapping_sub(1) < WIDE - 1 { Some(Payload(self.0)) } else { None }
    }

    /// Whether the slot has a key: it is neither unborn nor killed. All words between these do.
    #[inline]
    pub(super) const fn has_key(self) -> bool {
        self.0.wrapping_sub(1) < Self::KILLED.0 - 1
    }

    #[inline]
    pub(super) fn state(self) -> State {
        match self.0 & SPECIAL {
            0 if self == Self::UNBORN => State::Unborn,
            0 => State::Live(Payload(self.0)),
            HELD => State::Held,
            MOVING => State::Moving(Payload(self.0 & !MOVING)),
            _ => match self {
                Self::DEAD => State::Dead,
                Self::MOVED => State::Moved,
                _ => State::Killed,
            },
        }
    }
}

/// A state word, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Unborn,
    Live(Payload),
    Held,
    Moving(Payload),
    Dead,
    Moved,
    Killed,
}

/// What a slot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// A counter of this kind.
    Counter(Kind),
    /// A share of a permit: its key is the permit's, its payload the record's number.
    Share,
}

/// The number of [`Holds::Share`], behind those of the kinds.
const SHARE: u64 = 8;

const _: () = assert!((Kind::Cap as u64) < SHARE && SHARE < 16);

/// What a slot is for; written by its claim. Only a bucket's generation and the snapshot tag may
/// change afterwards, while the slot is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta(u64);

/// Which snapshot a slot's counter was last noted for before it changed, or came in the middle of:
/// [`Tag::NONE`], or one of a few numbers that snapshots use in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u8);

const TAG_BITS: u32 = 4;
const TAG_SHIFT: u32 = 4;
const TAG: u64 = ((1 << TAG_BITS) - 1) << TAG_SHIFT;

impl Tag {
    /// No snapshot's.
    pub(super) const NONE: Self = Self(0);
    /// The tags of snapshots are `1..=MAX`.
    pub(super) const MAX: u8 = (1 << TAG_BITS) - 1;

    /// The tag with this number, of which the lowest bits count.
    #[inline]
    pub(super) const fn new(number: u8) -> Self {
        Self(number & Self::MAX)
    }

    #[inline]
    pub(super) const fn number(self) -> u8 {
        self.0
    }
}

const DETAIL_SHIFT: u32 = 8;
const DETAIL: u64 = ((1 << GENERATION_BITS) - 1) << DETAIL_SHIFT;
const _: () = assert!(GENERATION_BITS == 24);

impl Meta {
    /// Nobody's yet.
    pub(super) const VACANT: Self = Self(0);
    /// Nobody's any more: the array is being moved, and the key must go to the next one.
    pub(super) const SEALED: Self = Self(u64::MAX);

    /// Window number of a slot whose counter is always wide, or needs none.
    pub(super) const NO_WINDOW: u16 = u16::MAX;

    const fn new(key: Key, limit: LimitId, detail: u32, holds: u64) -> Self {
        let detail = (detail as u64) << DETAIL_SHIFT;
        Self((fingerprint(key) as u64) << 48 | (limit.0 as u64) << 32 | detail | holds)
    }

    /// A bucket, last charged by numbers of this generation.
    pub(super) const fn bucket(key: Key, limit: LimitId, generation: u32) -> Self {
        Self::new(key, limit, generation, Kind::Bucket as u64)
    }

    /// A counter of another kind, with the number of its window's length.
    pub(super) const fn counter(key: Key, kind: Kind, limit: LimitId, window: u16) -> Self {
        Self::new(key, limit, (window as u32) << 8, kind as u64)
    }

    /// A share of a permit.
    pub(super) const fn share(key: Key, limit: LimitId) -> Self {
        Self::new(key, limit, 0, SHARE)
    }

    #[inline]
    pub(super) const fn fingerprint(self) -> u16 {
        (self.0 >> 48) as u16
    }

    pub(super) const fn limit(self) -> LimitId {
        LimitId((self.0 >> 32) as u16)
    }

    /// Number of the window's length in the table's list of them; not of a bucket.
    pub(super) const fn window(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// By which numbers a bucket was last charged.
    #[inline]
    pub(super) const fn generation(self) -> u32 {
        ((self.0 & DETAIL) >> DETAIL_SHIFT) as u32
    }

    /// The snapshot tag.
    #[inline]
    pub(super) const fn tag(self) -> Tag {
        Tag::new(((self.0 & TAG) >> TAG_SHIFT) as u8)
    }

    const fn with_tag(self, tag: Tag) -> Self {
        Self(self.0 & !TAG | (tag.0 as u64) << TAG_SHIFT)
    }

    /// Of a note of a counter as it was: everything but the tag.
    pub(super) const fn word(self) -> u64 {
        self.0 & !TAG
    }

    /// What [`Meta::word`] gave.
    pub(super) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    const fn with_generation(self, generation: u32) -> Self {
        Self(self.0 & !DETAIL | (generation as u64) << DETAIL_SHIFT)
    }

    /// Whether the sweeper could judge a narrow counter here.
    pub(super) const fn can_be_narrow(self) -> bool {
        match self.holds() {
            Holds::Counter(Kind::Fixed | Kind::Calendar) => self.window() != Self::NO_WINDOW,
            _ => true,
        }
    }

    pub(super) const fn holds(self) -> Holds {
        Holds::Counter(match self.0 & 0xf {
            1 => Kind::Bucket,
            2 => Kind::Sliding,
            3 => Kind::Fixed,
            4 => Kind::Calendar,
            5 => Kind::Concurrent,
            6 => Kind::Level,
            _ => return Holds::Share,
        })
    }
}

/// Bits of the key that neither shard nor home slot are chosen by.
#[inline]
pub(super) const fn fingerprint(key: Key) -> u16 {
    key.low as u16
}

/// Two slots share a cache line; none straddles one.
#[repr(C, align(32))]
pub(super) struct Slot {
    state: AtomicU64,
    meta: AtomicU64,
    key_high: AtomicU64,
    key_low: AtomicU64,
}

impl Slot {
    #[cfg(table_model)]
    pub(super) fn vacant() -> Self {
        let zero = || AtomicU64::new(0);
        Self { state: zero(), meta: zero(), key_high: zero(), key_low: zero() }
    }

    /// Makes the slot vacant again. Nobody else may be at it.
    pub(super) fn clear(&self) {
        for word in [&self.state, &self.meta, &self.key_high, &self.key_low] {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// A word for the pool to use while the slot is nobody's.
    pub(super) fn first_word(&self) -> &AtomicU64 {
        &self.state
    }

    #[inline]
    pub(super) fn meta(&self) -> Meta {
        // Acquire pairs with the release of `seal`: whoever sees a sealed slot sees the next array.
        // Of a claimed slot nothing hangs on it: the key is read behind a published state word.
        Meta(self.meta.load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn word(&self) -> Word {
        // Acquire pairs with the release of `publish`, `swap` and `release`: whoever sees a
        // counter sees its key and its wide cell.
        Word(self.state.load(Ordering::Acquire))
    }

    /// Says by which numbers a bucket is charged from now on. The caller holds the slot; the
    /// release of the hold publishes it to whoever reads the word first.
    pub(super) fn set_generation(&self, generation: u32) {
        debug_assert!(matches!(self.word().state(), State::Held));
        let meta = Meta(self.meta.load(Ordering::Relaxed)).with_generation(generation);
        self.meta.store(meta.0, Ordering::Relaxed);
    }

    /// Says for which snapshot the counter has been noted. The caller holds the slot; the release
    /// of the hold publishes it.
    pub(super) fn set_tag(&self, tag: Tag) {
        debug_assert!(matches!(self.word().state(), State::Held));
        let meta = Meta(self.meta.load(Ordering::Relaxed)).with_tag(tag);
        self.meta.store(meta.0, Ordering::Relaxed);
    }

    /// The key of a slot whose word is neither unborn nor killed.
    #[inline]
    pub(super) fn key(&self) -> Key {
        Key {
            high: self.key_high.load(Ordering::Relaxed),
            low: self.key_low.load(Ordering::Relaxed),
        }
    }

    /// Takes a vacant slot for an insert.
    pub(super) fn claim(&self, meta: Meta) -> bool {
        self.replace_vacant(meta)
    }

    /// Makes a vacant slot unusable. The caller has seen that the array has a next one, and the
    /// release hands that on.
    pub(super) fn seal(&self) -> bool {
        self.replace_vacant(Meta::SEALED)
    }

    fn replace_vacant(&self, meta: Meta) -> bool {
        let vacant = Meta::VACANT.0;
        self.meta.compare_exchange(vacant, meta.0, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Says which key a claimed slot is for and what its counter is; false if it was killed.
    pub(super) fn publish(&self, key: Key, word: Word) -> bool {
        self.key_high.store(key.high, Ordering::Relaxed);
        self.key_low.store(key.low, Ordering::Relaxed);
        self.swap(Word::UNBORN, word)
    }

    /// Replaces the state word if it still is `from`. Release publishes what was written before
    /// (key, wide cell) to the acquire in `word`; acquire takes over a cell from its last holder.
    #[inline]
    pub(super) fn swap(&self, from: Word, to: Word) -> bool {
        self.state.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends a hold. Nobody else writes a held word, so a store is enough.
    pub(super) fn release(&self, to: Word) {
        debug_assert!(matches!(self.word().state(), State::Held));
        self.state.store(to.0, Ordering::Release);
    }
}

#[cfg(all(test, not(table_model)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is asked of a word by one comparison is what its state says.
        #[test]
        fn a_word_is_its_state(word in words()) {
            let narrow = match word.state() {
                State::Live(payload) if !payload.is_wide() => Some(payload),
                _ => None,
            };
            prop_assert_eq!(word.narrow_live(), narrow);
            let has_none = matches!(word.state(), State::Unborn | State::Killed);
            prop_assert_eq!(word.has_key(), !has_none);
        }
    }

    fn words() -> impl Strategy<Value = Word> {
        use Word as W;
        let payload = || prop_oneof![1..4u64, 1..WIDE, WIDE..2 * WIDE].prop_map(Payload);
        prop_oneof![
            prop::sample::select(vec![W::UNBORN, W::DEAD, W::MOVED, W::KILLED, W::BURIED]),
            payload().prop_map(Word::live),
            prop_oneof![Just(Payload::FRESH), payload()].prop_map(Word::held),
            payload().prop_map(Word::moving),
        ]
    }
}
