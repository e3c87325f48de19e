//! One shard: the arrays its counters are in.

use alloc::sync::Arc;

use crate::engine::key::Key;
use crate::engine::sync::epoch::{self, Atomic, Guard, Owned, Shared};
use crate::engine::sync::{AtomicU32, Ordering};

use super::Shape;
use super::array::{Array, Home, Located};
use super::overlay::Overlay;
use super::probe;
use super::segment::Segments;
use super::slot::{Meta, Slot, Tag, Word};

#[repr(align(64))]
pub(super) struct Shard {
    /// The first array of the chain: where every search begins.
    pub(super) current: Atomic<Array>,
    /// Counters that differ from fresh ones.
    pub(super) live: AtomicU32,
    /// Counters that a snapshot in progress has yet to come to, as they were at its moment.
    pub(super) overlay: Overlay,
    /// Slot segments: every shard's come from the same pool.
    pub(super) pool: Arc<Segments>,
    /// Slots of this shard's first array; later ones are multiples of it.
    pub(super) slots_at_first: u32,
}

/// Where the search for a key ended.
pub(super) enum Place<'g> {
    /// At its slot. The counter may be live, held, dead, moving or moved.
    Found(&'g Slot),
    /// It has none; an insert must go here.
    Vacant(&'g Slot),
}

/// The search for one key along a shard's arrays. It only moves forward: from an array that is
/// being moved to the next one.
pub(super) struct Path<'g> {
    shard: &'g Shard,
    array: &'g Array,
    key: Key,
    shape: Shape,
    guard: &'g Guard,
}

impl Shard {
    pub(super) fn new(slots: u32, pool: &Arc<Segments>) -> Self {
        Self::of_sizes(slots, slots, pool)
    }

    fn of_sizes(slots: u32, slots_at_first: u32, pool: &Arc<Segments>) -> Self {
        Self {
            current: Atomic::new(Array::new(0, slots, pool)),
            live: AtomicU32::new(0),
            overlay: Overlay::new(),
            pool: Arc::clone(pool),
            slots_at_first,
        }
    }

    /// An empty shard for `keys` counters, which will not have to grow for them.
    pub(super) fn for_keys(keys: u32, slots_at_first: u32, pool: &Arc<Segments>) -> Self {
        let slots = probe::slots_holding(keys, slots_at_first);
        Self::of_sizes(slots, slots_at_first, pool)
    }

    /// The array at which every search begins.
    #[inline]
    pub(super) fn array<'g>(&self, guard: &'g Guard) -> &'g Array {
        // Acquire pairs with the exchange in `unlink`.
        self.array_of(self.current.load(Ordering::Acquire, guard))
    }

    #[inline]
    pub(super) fn array_of<'g>(&self, current: Shared<'g, Array>) -> &'g Array {
        // Safety: a shard always has an array, and one that has left its shard is freed only
        // after the guards of that time, of which the pointer's lifetime is one, are gone.
        unsafe { current.deref() }
    }

    /// Slots of all arrays of the chain.
    pub(super) fn slots(&self, guard: &Guard) -> u64 {
        let mut array = Some(self.array(guard));
        let mut slots = 0;
        while let Some(counted) = array {
            slots += u64::from(counted.len());
            array = counted.next(guard);
        }
        slots
    }

    /// The key's slot, if it has one and the shard is not growing.
    #[inline]
    pub(super) fn find_settled<'g>(
        &self,
        key: Key,
        shape: Shape,
        guard: &'g Guard,
    ) -> Option<&'g Slot> {
        match self.home(key, shape, guard).look_settled(key, guard)? {
            Located::Found(slot) => Some(slot),
            _ => None,
        }
    }

    /// Where the search for a key begins.
    #[inline]
    pub(super) fn home<'g>(&self, key: Key, shape: Shape, guard: &'g Guard) -> Home<'g> {
        self.array(guard).home(key, shape.shard_bits)
    }

    /// Whether a slot's counter must be noted before it changes: a snapshot has yet to come here.
    #[inline]
    pub(super) fn awaits(&self, meta: Meta) -> bool {
        let tag = self.overlay.tag();
        tag != Tag::NONE && meta.tag() != tag
    }

    pub(super) fn count_live(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_more_live(&self, counters: u32) {
        self.live.fetch_add(counters, Ordering::Relaxed);
    }

    pub(super) fn uncount_live(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn path<'g>(&'g self, key: Key, shape: Shape, guard: &'g Guard) -> Path<'g> {
        self.path_from(self.array(guard), key, shape, guard)
    }

    #[inline]
    pub(super) fn path_from<'g>(
        &'g self,
        array: &'g Array,
        key: Key,
        shape: Shape,
        guard: &'g Guard,
    ) -> Path<'g> {
        Path { shard: self, array, key, shape, guard }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        // Safety: `&mut self` proves that no thread is in the shard, so no guard is needed, and
        // the arrays still linked from it are owned by nobody else.
        unsafe {
            let guard = epoch::unprotected();
            let mut array = self.current.load(Ordering::Relaxed, guard);
            while !array.is_null() {
                let owned: Owned<Array> = array.into_owned();
                array = owned.next_shared(guard);
            }
        }
    }
}

impl<'g> Path<'g> {
    /// Finds the key's slot, or the vacant one where it would go.
    #[inline]
    pub(super) fn locate(&mut self) -> Place<'g> {
        loop {
            match self.array.locate(self.key, self.shape.shard_bits) {
                Located::Found(slot) => return Place::Found(slot),
                Located::Vacant(slot) => {
                    let Some(next) = self.array.next(self.guard) else {
                        return Place::Vacant(slot);
                    };
                    // The key may go to the next array only once it can no longer come to this.
                    if slot.seal() {
                        self.shard.retire(self.array, self.guard);
                        self.array = next;
                    }
                }
                Located::Sealed => self.go_on(),
                Located::Full => {
                    self.shard.begin_move(self.array, self.guard);
                    self.go_on();
                }
            }
        }
    }

    /// Finds the key's slot as a reader, who changes nothing.
    pub(super) fn find(&mut self) -> Option<&'g Slot> {
        loop {
            if let Located::Found(slot) = self.array.locate(self.key, self.shape.shard_bits) {
                return Some(slot);
            }
            // Not here, but perhaps it went to the next array, if there is one.
            self.array = self.array.next(self.guard)?;
        }
    }

    /// Goes on to the next array from a slot whose counter has moved or is moving there.
    #[cold]
    pub(super) fn follow(&mut self, slot: &Slot) {
        self.shard.move_slot(self.array, slot, self.shape, self.guard);
        self.go_on();
    }

    fn go_on(&mut self) {
        let next = self.array.next(self.guard);
        self.array = next.expect("a slot is sealed or moved only when a next array stands");
    }

    /// Makes the vacant slot this key's, with the given word; false if another insert came first
    /// or overtook this one.
    pub(super) fn insert(&self, slot: &Slot, meta: Meta, word: Word) -> bool {
        if !slot.claim(meta) {
            return false;
        }
        let published = slot.publish(self.key, word);
        self.shard.count_claim(self.array, self.guard);
        published
    }
}
