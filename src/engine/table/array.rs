//! One array of slots: where a shard's counters are, and how a key's slot is found in it.
//!
//! A slot once claimed stays claimed for the array's life, so a key's search path only ever grows
//! longer, and all inserts of one key meet at the same vacant slot: a key has one slot, or none.

use alloc::sync::Arc;

use crate::engine::key::Key;
use crate::engine::sync::epoch::{Atomic, Guard, Owned, Shared};
use crate::engine::sync::{AtomicU32, Backoff, Ordering};

use super::probe;
use super::segment::{Segments, Slots};
use super::slot::{Meta, Slot, State, Word, fingerprint};

// What every search reads of it is one cache line.
#[repr(align(64))]
pub(super) struct Array {
    slots: Slots,
    /// Its place in the shard's chain; arrays that have left it count.
    pub(super) number: u32,
    /// The array that this one's counters move to; null until it is full.
    next: Atomic<Array>,
    /// Slots that are no longer vacant.
    pub(super) claimed: AtomicU32,
    /// The first slot that no thread has yet taken upon itself to move.
    pub(super) cursor: AtomicU32,
    /// Slots that are moved, sealed or buried.
    pub(super) retired: AtomicU32,
}

/// Where the search for a key in one array ended.
pub(super) enum Located<'a> {
    /// At its slot. The counter may be live, held, dead, moving or moved.
    Found(&'a Slot),
    /// At a vacant slot: the key has none, and this is where an insert must go.
    Vacant(&'a Slot),
    /// At a sealed slot: the key has none and can get none in this array.
    Sealed,
    /// Nowhere: every slot is another key's.
    Full,
}

impl Array {
    /// An array of at least so many slots, the one of this number in its chain.
    pub(super) fn new(number: u32, slots: u32, pool: &Arc<Segments>) -> Self {
        Self {
            slots: Slots::vacant(slots, pool),
            number,
            next: Atomic::null(),
            claimed: AtomicU32::new(0),
            cursor: AtomicU32::new(0),
            retired: AtomicU32::new(0),
        }
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(super) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(super) fn next<'g>(&'g self, guard: &'g Guard) -> Option<&'g Array> {
        // Acquire pairs with the release in `offer_next`: the array is seen whole.
        // Safety: an array leaves its shard only after those before it in the chain, so the next
        // one outlives this one, which the guard keeps.
        unsafe { self.next.load(Ordering::Acquire, guard).as_ref() }
    }

    /// Sets the next array if there is none yet.
    pub(super) fn offer_next(&self, next: Array, guard: &Guard) {
        let (null, next) = (Shared::null(), Owned::new(next));
        // A loser's array is dropped with the error.
        drop(self.next.compare_exchange(null, next, Ordering::AcqRel, Ordering::Relaxed, guard));
    }

    pub(super) fn next_shared<'g>(&self, guard: &'g Guard) -> Shared<'g, Array> {
        self.next.load(Ordering::Acquire, guard)
    }

    /// Where the search for a key begins.
    #[inline]
    pub(super) fn home(&self, key: Key, shard_bits: u32) -> Home<'_> {
        let index = probe::home(key.high, self.len(), shard_bits);
        Home { array: self, index, near: self.slots.rest_of_segment(index) }
    }

    #[inline]
    pub(super) fn locate(&self, key: Key, shard_bits: u32) -> Located<'_> {
        self.home(key, shard_bits).locate(key)
    }

    /// Goes on with a search that began at `home` and has come to `from`, where a segment begins.
    #[cold]
    fn locate_from(&self, from: usize, home: usize, key: Key) -> Located<'_> {
        for (mut from, to) in [(from, self.slots.len()), (0, home)] {
            while from < to {
                let slots = self.slots.within_segment(from, to);
                if let Some(located) = slots.iter().find_map(|slot| look_at(slot, key)) {
                    return located;
                }
                from += slots.len();
            }
        }
        Located::Full
    }
}

/// Where the search for a key in one array begins.
#[derive(Clone, Copy)]
pub(super) struct Home<'a> {
    array: &'a Array,
    index: usize,
    /// The slots from there to the end of their segment.
    near: &'a [Slot],
}

/// Cache lines in which a present key's slot is looked for ahead of time. Where seven slots in ten
/// are claimed, one search in nine goes on past two lines, and would wait for memory there; one in
/// twenty-five past four.
const LINES_AHEAD: usize = 4;

impl<'a> Home<'a> {
    #[inline]
    pub(super) fn locate(self, key: Key) -> Located<'a> {
        for slot in self.near {
            if let Some(located) = look_at(slot, key) {
                return located;
            }
        }
        self.array.locate_from(self.index + self.near.len(), self.index, key)
    }

    /// Where the search ends, at a found or a vacant slot, as long as its shard is not growing.
    /// Nothing may be inserted by it.
    #[inline]
    pub(super) fn look_settled(self, key: Key, guard: &Guard) -> Option<Located<'a>> {
        let located = match self.locate(key) {
            Located::Sealed | Located::Full => return None,
            located => located,
        };
        self.array.next(guard).is_none().then_some(located)
    }

    /// Begins to fetch the slots that a search will see.
    #[inline]
    pub(super) fn fetch(&self) {
        self.fetch_lines::<LINES_AHEAD>();
    }

    /// Begins to fetch what [`Home::fetch`] fetched a while ago from a cache further off: the slots
    /// that seven searches in eight end at.
    #[inline]
    pub(super) fn fetch_near(&self) {
        self.fetch_lines::<2>();
    }

    #[inline]
    fn fetch_lines<const LINES: usize>(&self) {
        #[cfg(all(target_arch = "x86_64", not(table_model)))]
        for line in 0..LINES {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            const LINE_SLOTS: usize = 64 / size_of::<Slot>();
            let slot = self.near.as_ptr().wrapping_add(line * LINE_SLOTS);
            // Safety: a prefetch is a hint, of whatever address; the instruction is part of every
            // x86-64 processor.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(slot.cast()) };
        }
    }
}

/// Whether the search for a key ends at this slot.
#[inline]
fn look_at(slot: &Slot, key: Key) -> Option<Located<'_>> {
    let meta = slot.meta();
    if meta == Meta::VACANT {
        return Some(Located::Vacant(slot));
    }
    if meta == Meta::SEALED {
        return Some(Located::Sealed);
    }
    let found = meta.fingerprint() == fingerprint(key) && is_slot_of(slot, key);
    found.then_some(Located::Found(slot))
}

/// Whether a claimed slot is this key's. An insert that has claimed it but not yet said for which
/// key is given a moment and then overtaken: it finds its slot killed and starts over.
#[inline]
fn is_slot_of(slot: &Slot, key: Key) -> bool {
    if slot.word().has_key() { slot.key() == key } else { is_slot_of_unborn(slot, key) }
}

#[cold]
fn is_slot_of_unborn(slot: &Slot, key: Key) -> bool {
    let mut backoff = Backoff::new();
    loop {
        match slot.word().state() {
            State::Unborn if backoff.is_long() => {
                slot.swap(Word::UNBORN, Word::KILLED);
            }
            State::Unborn => backoff.wait(),
            State::Killed => return false,
            _ => return slot.key() == key,
        }
    }
}
