//! Sweeping: counters that equal fresh ones make room. No decision ever depends on it.

use crate::engine::kinds::{Bucket, Calendar, Fixed};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::quota::Kind;
use crate::engine::sync::Ordering;
use crate::engine::time::{Nanos, Now, SECOND};

use super::held::Held;
use super::probe;
use super::shard::Shard;
use super::slot::{Holds, Meta, Payload, Slot, State, Word};
use super::{Pinned, Table};

/// How far the sweeper has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct SweepCursor {
    shard: usize,
    slot: usize,
}

/// What one step of sweeping found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Slots looked at.
    pub slots: usize,
    /// Counters that were fresh again and made room.
    pub reclaimed: usize,
}

impl Table {
    /// Looks at up to about `slots_max` slots from where the cursor stands, within one shard, and
    /// reclaims counters that equal fresh ones at `now`.
    ///
    /// `now` must not be later than the moment of any check still to be decided: the shell passes
    /// one that lies behind by more than a batch can take.
    pub fn sweep(&self, cursor: &mut SweepCursor, now: Now, slots_max: usize) -> Swept {
        let early = Nanos::new(u64::from(planted(Mutant::SweepEarly)) * SECOND);
        let now = now.after(early);
        let pinned = self.pin();
        let guard = &pinned.guard;
        let shard = &self.shards[cursor.shard % self.shards.len()];
        shard.help_move(self.shape, guard);
        let array = shard.array(guard);
        let len = array.slots().len();
        let last = cursor.slot.saturating_add(slots_max).min(len);
        let mut swept = Swept::default();
        for slot in array.slots().range(cursor.slot.min(last)..last) {
            swept.slots += 1;
            swept.reclaimed += usize::from(self.sweep_slot(&pinned, shard, slot, now));
        }
        cursor.slot += swept.slots;
        if cursor.slot >= len {
            *cursor = SweepCursor { shard: (cursor.shard + 1) % self.shards.len(), slot: 0 };
            let live = shard.live.load(Ordering::Relaxed);
            if probe::is_sparse(live, array.len(), shard.slots_at_first) {
                shard.begin_move(array, guard);
            }
        }
        swept
    }

    fn sweep_slot(&self, pinned: &Pinned<'_>, shard: &Shard, slot: &Slot, now: Now) -> bool {
        let word = slot.word();
        let State::Live(payload) = word.state() else { return false };
        let meta = slot.meta();
        // A permit's share goes with its counter.
        let Holds::Counter(kind) = meta.holds() else { return false };
        // What is fresh at this moment may not have been at a snapshot's. Permits are noted as they
        // lapse; the others wait until the snapshot has come by.
        let awaits = shard.awaits(meta) && !planted(Mutant::SweepDespiteSnapshot);
        if kind != Kind::Concurrent && awaits {
            return false;
        }
        if !payload.is_wide() {
            let swept =
                self.narrow_is_fresh(kind, meta, payload, now) && slot.swap(word, Word::DEAD);
            if swept {
                self.uncount(shard, meta.limit());
            }
            return swept;
        }
        if !slot.swap(word, Word::held(payload)) {
            return false;
        }
        let mut hold = Held::new(slot, payload);
        hold.side = pinned.side();
        pinned.sweep_wide(&mut hold, kind, now);
        pinned.end_hold(&hold, slot.key());
        hold.payload.is_fresh()
    }

    fn narrow_is_fresh(&self, kind: Kind, meta: Meta, payload: Payload, now: Now) -> bool {
        let window = || self.windows.length(meta.window());
        match kind {
            Kind::Bucket => Bucket::narrow_is_fresh(payload.value(), now),
            Kind::Fixed => Fixed::narrow_is_fresh(payload.value(), window(), now),
            Kind::Calendar => Calendar::narrow_is_fresh(payload.value(), window(), now),
            // What a level holds it holds until it is given back.
            _ => false,
        }
    }
}

impl Pinned<'_> {
    /// Takes its payload from a held wide counter that is fresh.
    fn sweep_wide(&self, hold: &mut Held<'_>, kind: Kind, now: Now) {
        let table = self.table;
        if kind == Kind::Concurrent {
            let mut heap = self.heap(hold);
            if self.lapse(hold, &mut heap, now) {
                self.put_heap(hold, heap);
            }
        } else if kind == Kind::Sliding {
            if let Some(id) = hold.payload.ring_id()
                && table.rings.at(id).is_fresh(now)
            {
                hold.payload = Payload::FRESH;
                table.rings.give(id);
            }
        } else if let Some(cell) = hold.payload.cell() {
            let words = table.cells.read(cell);
            let fresh = match kind {
                Kind::Bucket => Bucket::wide_is_fresh(words, now),
                Kind::Fixed => Fixed::wide_is_fresh(words, now),
                Kind::Calendar => Calendar::wide_is_fresh(words, now),
                _ => false,
            };
            if fresh {
                hold.payload = Payload::FRESH;
                table.cells.give(cell);
            }
        }
    }
}
