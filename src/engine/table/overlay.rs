//! What counters were before they changed, for a snapshot that has yet to come to them.
//!
//! A snapshot is taken while others decide. Its moment is when the table's *side* becomes its tag:
//! a check that finds the old side once it has all of its holds is before that moment, whole, and
//! one that finds the tag is after it, whole. Before the first change after the moment, a
//! counter that the writer has not come to yet is *noted* as it was, in the list of its shard, and
//! its slot is tagged; a counter that comes new is only tagged. The writer copies the slots
//! without the tag, then takes the list, and with that the shard is done: nothing is noted in it
//! any more.
//!
//! Why no check is split by the moment: the side only goes from none to the tag. Whoever finds it
//! writes to a slot, and releases; whoever holds that slot afterwards acquires that and, reading
//! the side later than that, finds it too. So at every slot those before the moment come before
//! those after it. The writer begins only once all who may have found the old side are gone
//! (an epoch's end), so each slot without the tag still says what it said at the moment. A shard's
//! word is set before the side and taken after its slots were copied: who finds the tag as side
//! finds the word set, unless the shard is done.

use crate::engine::key::Key;
use crate::engine::sync::{AtomicU64, Ordering};

use super::Table;
use super::pool::{Piece, Pool};
use super::shares::Link;
use super::slot::{Holds, Meta, Payload, Tag};

/// The tag of the snapshot that has yet to come to a shard, and the list of what was noted for it:
/// number of the last note plus one in the low half, the tag in the bits above. Zero: none.
pub(super) struct Overlay(AtomicU64);

const TAG_SHIFT: u32 = 32;

impl Overlay {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Which snapshot has yet to come here. All that it vouches for comes by the side and by the
    /// slots, so that this costs a decision no more than a look at its shard's own cache line.
    #[inline]
    pub(super) fn tag(&self) -> Tag {
        Tag::new((self.0.load(Ordering::Relaxed) >> TAG_SHIFT) as u8)
    }

    /// A snapshot with this tag will come here.
    pub(super) fn open(&self, tag: Tag) {
        self.0.store(u64::from(tag.number()) << TAG_SHIFT, Ordering::Relaxed);
    }

    /// Nothing is noted here any more. Returns what was, last first.
    pub(super) fn close(&self) -> Link {
        // Acquire pairs with the release in `push`: the notes are seen whole.
        self.0.swap(0, Ordering::AcqRel) as Link
    }

    /// Puts a note before the others; false if the snapshot with this tag is done here.
    fn push(&self, tag: Tag, link: Link, notes: &Pool<Note>) -> bool {
        let mut word = self.0.load(Ordering::Relaxed);
        while word >> TAG_SHIFT == u64::from(tag.number()) {
            notes.piece(link - 1).0[NEXT].store(word & u64::from(Link::MAX), Ordering::Relaxed);
            let to = u64::from(tag.number()) << TAG_SHIFT | u64::from(link);
            match self.0.compare_exchange(word, to, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(found) => word = found,
            }
        }
        false
    }
}

/// One counter as it was. What its payload names beside the slots is a copy, and the note's own.
struct Note([AtomicU64; 5]);

const NEXT: usize = 0;
const KEY_HIGH: usize = 1;
const KEY_LOW: usize = 2;
const META: usize = 3;
const PAYLOAD: usize = 4;

// Safety: atomic words are valid when zero and have nothing to drop.
unsafe impl Piece for Note {
    const FIRST_BLOCK: u32 = if cfg!(table_model) { 4 } else { 64 };

    #[cfg(table_model)]
    fn blank() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn link(&self) -> &AtomicU64 {
        &self.0[NEXT]
    }

    /// Whoever takes a note writes all of it.
    fn clear(&self) {}
}

/// A counter as it was.
pub(super) struct Noted {
    pub(super) key: Key,
    pub(super) meta: Meta,
    pub(super) payload: Payload,
}

/// Notes of a table, and the snapshot that they are for.
pub(super) struct Notes {
    notes: Pool<Note>,
    /// The tag of the snapshot in progress.
    side: AtomicU64,
    /// Notes of that snapshot, taken ones included.
    noted: AtomicU64,
    noted_max: AtomicU64,
    /// 1 while there is a snapshot: there is one at a time.
    pub(super) busy: AtomicU64,
    /// A bit for each tag that slots may have. Only who made `busy` 1 touches it.
    pub(super) dirty: AtomicU64,
}

impl Notes {
    pub(super) fn new() -> Self {
        Self {
            notes: Pool::new(),
            side: AtomicU64::new(0),
            noted: AtomicU64::new(0),
            noted_max: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            dirty: AtomicU64::new(0),
        }
    }

    /// On which side of a snapshot's moment a change is whose counters are all held.
    #[inline]
    pub(super) fn side(&self) -> Tag {
        // Acquire pairs with the release in `set_side`: who finds the tag finds the shards open.
        Tag::new(self.side.load(Ordering::Acquire) as u8)
    }

    pub(super) fn set_side(&self, side: Tag) {
        self.side.store(side.number().into(), Ordering::Release);
    }

    /// Forgets how many notes there were, and allows so many.
    pub(super) fn allow(&self, noted_max: u64) {
        self.noted.store(0, Ordering::Relaxed);
        self.noted_max.store(noted_max, Ordering::Relaxed);
    }

    /// Notes of the snapshot in progress.
    pub(super) fn noted(&self) -> u64 {
        self.noted.load(Ordering::Relaxed)
    }

    /// Whether there were too many, so that some are missing.
    pub(super) fn are_spent(&self) -> bool {
        self.noted() > self.noted_max.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.notes.bytes()
    }
}

impl Table {
    /// Notes a counter for the snapshot with this tag, if that has yet to come to the counter's
    /// shard. The caller holds the counter. False: there is nothing to note any more, or no room.
    pub(super) fn note(&self, tag: Tag, noted: &Noted) -> bool {
        let shard = self.shard(noted.key);
        if shard.overlay.tag() != tag || self.notes.are_spent() {
            return false;
        }
        self.notes.noted.fetch_add(1, Ordering::Relaxed);
        if self.notes.are_spent() {
            return false;
        }
        let payload = self.copied(noted.meta, noted.payload);
        let link = self.notes.notes.take() + 1;
        let words = &self.notes.notes.piece(link - 1).0;
        words[KEY_HIGH].store(noted.key.high, Ordering::Relaxed);
        words[KEY_LOW].store(noted.key.low, Ordering::Relaxed);
        words[META].store(noted.meta.word(), Ordering::Relaxed);
        words[PAYLOAD].store(payload.word(), Ordering::Relaxed);
        let pushed = shard.overlay.push(tag, link, &self.notes.notes);
        if !pushed {
            self.forget_note(link);
        }
        pushed
    }

    /// The note with this link, and the one after it.
    pub(super) fn noted(&self, link: Link) -> (Noted, Link) {
        let words = &self.notes.notes.piece(link - 1).0;
        let load = |word: usize| words[word].load(Ordering::Relaxed);
        let key = Key { high: load(KEY_HIGH), low: load(KEY_LOW) };
        let (meta, payload) = (Meta::from_word(load(META)), Payload::from_word(load(PAYLOAD)));
        (Noted { key, meta, payload }, load(NEXT) as Link)
    }

    /// Gives a note and its copies back.
    pub(super) fn forget_note(&self, link: Link) {
        let (noted, _) = self.noted(link);
        if let (Some(cell), Some(ring)) = (noted.payload.cell(), noted.payload.ring_id()) {
            match noted.meta.holds() {
                Holds::Share => self.shares.give(cell),
                Holds::Counter(kind) if kind.has_ring() => self.rings.give(ring),
                Holds::Counter(_) => self.cells.give(cell),
            }
        }
        self.notes.notes.give(link - 1);
    }

    fn copied(&self, meta: Meta, payload: Payload) -> Payload {
        let (Some(cell), Some(ring)) = (payload.cell(), payload.ring_id()) else { return payload };
        match meta.holds() {
            Holds::Share => Payload::wide(self.shares.take(&self.shares.share(cell))),
            Holds::Counter(kind) if kind.has_ring() => Payload::ring(self.rings.copy(ring)),
            Holds::Counter(_) => {
                let copy = self.cells.take();
                self.cells.write(copy, self.cells.read(cell));
                Payload::wide(copy)
            }
        }
    }
}
