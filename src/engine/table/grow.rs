//! Growth, shard by shard and slot by slot, while checks go on.
//!
//! A full array gets a next one. Every thread that then enters the shard moves a few slots before
//! its own work, and anyone who meets a slot on the move finishes that move; nobody waits for
//! another thread's progress. An array whose slots are all retired leaves the shard and is freed
//! once no thread can still be in it.
//!
//! An array that fills up before it is its shard's current one gets a next array just the same:
//! arrays form a chain that every search walks from the current one.

use crate::engine::key::Key;
use crate::engine::sync::epoch::Guard;
use crate::engine::sync::{Backoff, Ordering};

use super::Shape;
use super::array::Array;
use super::probe;
use super::segment::nearest_whole;
use super::shard::{Place, Shard};
use super::slot::{Meta, Payload, Slot, State, Word};

/// Slots that a thread moves on entering a shard that is growing.
const MOVES_PER_STEP: u32 = if cfg!(table_model) { 2 } else { 128 };

impl Shard {
    /// Counts a claimed slot, and begins to grow once there are too many.
    pub(super) fn count_claim(&self, array: &Array, guard: &Guard) {
        let claimed = array.claimed.fetch_add(1, Ordering::Relaxed) + 1;
        if probe::is_full(claimed, array.len()) {
            self.begin_move(array, guard);
        }
    }

    /// Gives `array` a next one, sized for what is live, if it has none yet.
    #[cold]
    pub(super) fn begin_move(&self, array: &Array, guard: &Guard) {
        if array.next(guard).is_none() {
            let live = self.live.load(Ordering::Relaxed);
            // Rounded down it is a sixteenth smaller at most, and so far from full all the same.
            let slots = nearest_whole(probe::slots_for(live, self.slots_at_first));
            let number = array.number.wrapping_add(1);
            array.offer_next(Array::new(number, slots, &self.pool), guard);
        }
    }

    /// One bounded step of the move, if the shard is growing. The caller holds no slot: a step
    /// waits for slots that others hold.
    #[inline]
    pub(super) fn help_move(&self, shape: Shape, guard: &Guard) {
        let array = self.array(guard);
        if array.next(guard).is_some() {
            self.step_move(array, shape, guard);
        }
    }

    #[cold]
    fn step_move(&self, array: &Array, shape: Shape, guard: &Guard) {
        if array.cursor.load(Ordering::Relaxed) >= array.len() {
            return;
        }
        let first = array.cursor.fetch_add(MOVES_PER_STEP, Ordering::Relaxed).min(array.len());
        let last = first.saturating_add(MOVES_PER_STEP).min(array.len());
        for slot in array.slots().range(first as usize..last as usize) {
            self.move_slot(array, slot, shape, guard);
        }
    }

    /// Retires one slot of an array that has a next: moves its counter, or makes it unusable.
    /// Any number of threads may do this to one slot; exactly one of them counts it.
    pub(super) fn move_slot(&self, array: &Array, slot: &Slot, shape: Shape, guard: &Guard) {
        let next = array.next(guard).expect("only an array with a next one is moved");
        let mut backoff = Backoff::new();
        loop {
            if slot.meta() == Meta::SEALED {
                return;
            }
            if slot.meta() == Meta::VACANT {
                if slot.seal() {
                    return self.retire(array, guard);
                }
                continue;
            }
            let word = slot.word();
            let (from, to) = match word.state() {
                State::Moved => return,
                State::Killed if word == Word::BURIED => return,
                State::Killed => (word, Word::BURIED),
                State::Dead => (word, Word::MOVED),
                State::Moving(payload) => {
                    self.move_into(next, slot.key(), slot.meta(), payload, shape, guard);
                    (word, Word::MOVED)
                }
                State::Held => {
                    backoff.wait();
                    continue;
                }
                State::Live(payload) => {
                    slot.swap(word, Word::moving(payload));
                    continue;
                }
                State::Unborn => {
                    slot.swap(word, Word::KILLED);
                    continue;
                }
            };
            if slot.swap(from, to) {
                return self.retire(array, guard);
            }
        }
    }

    /// Puts a moving counter into the arrays from `next` on unless somebody already has. A slot
    /// keeps its key for its array's life, so a thread that comes late finds the key there and
    /// does nothing, whatever has happened to the counter since.
    fn move_into(
        &self,
        next: &Array,
        key: Key,
        meta: Meta,
        payload: Payload,
        shape: Shape,
        guard: &Guard,
    ) {
        let mut path = self.path_from(next, key, shape, guard);
        while let Place::Vacant(slot) = path.locate() {
            if path.insert(slot, meta, Word::live(payload)) {
                return;
            }
        }
    }

    /// Counts a retired slot; after the last one the array leaves the shard.
    pub(super) fn retire(&self, array: &Array, guard: &Guard) {
        // Sequentially consistent with the exchange in `unlink`: of a thread that retires an
        // array's last slot and one that makes the array current, at least one sees both.
        let retired = array.retired.fetch_add(1, Ordering::SeqCst) + 1;
        if retired == array.len() {
            self.unlink(guard);
        }
    }

    /// Takes arrays without counters out of the front of the chain.
    #[cold]
    fn unlink(&self, guard: &Guard) {
        loop {
            let current = self.current.load(Ordering::SeqCst, guard);
            let array = self.array_of(current);
            if array.retired.load(Ordering::SeqCst) < array.len() {
                return;
            }
            let next = array.next_shared(guard);
            let (to, failed) = (Ordering::SeqCst, Ordering::SeqCst);
            if self.current.compare_exchange(current, next, to, failed, guard).is_ok() {
                // Safety: no search begins at this array any more, and those that began there
                // before hold guards.
                unsafe { guard.defer_destroy(current) };
                // An array is worth more than the batch that the collector would wait for.
                guard.flush();
            }
        }
    }
}
