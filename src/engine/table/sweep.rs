//! Sweeping: counters that equal fresh ones make room. No decision ever depends on it.

use crate::engine::kinds::{Bucket, Fixed};
use crate::engine::quota::Kind;
use crate::engine::sync::Ordering;
use crate::engine::sync::epoch;
use crate::engine::time::Now;

use super::Table;
use super::probe;
use super::shard::Shard;
use super::slot::{Meta, Payload, Slot, State, Word};

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
        let guard = epoch::pin();
        let shard = &self.shards[cursor.shard % self.shards.len()];
        shard.help_move(self.shape, &guard);
        let array = shard.array(&guard);
        let len = array.slots().len();
        let last = cursor.slot.saturating_add(slots_max).min(len);
        let mut swept = Swept::default();
        for slot in array.slots().range(cursor.slot.min(last)..last) {
            swept.slots += 1;
            swept.reclaimed += usize::from(self.sweep_slot(shard, slot, now));
        }
        cursor.slot += swept.slots;
        if cursor.slot >= len {
            *cursor = SweepCursor { shard: (cursor.shard + 1) % self.shards.len(), slot: 0 };
            let live = shard.live.load(Ordering::Relaxed);
            if probe::is_sparse(live, array.len(), shard.slots_at_first) {
                shard.begin_move(array, &guard);
            }
        }
        swept
    }

    fn sweep_slot(&self, shard: &Shard, slot: &Slot, now: Now) -> bool {
        let word = slot.word();
        let State::Live(payload) = word.state() else { return false };
        let meta = slot.meta();
        let swept = match payload.cell() {
            None => self.narrow_is_fresh(meta, payload, now) && slot.swap(word, Word::DEAD),
            Some(cell) => {
                slot.swap(word, Word::held(payload)) && {
                    let words = shard.cells.read(cell);
                    let fresh = match meta.kind() {
                        Kind::Bucket => Bucket::wide_is_fresh(words, now),
                        Kind::Fixed => Fixed::wide_is_fresh(words, now),
                    };
                    slot.release(if fresh { Word::DEAD } else { word });
                    if fresh {
                        shard.cells.give(cell);
                    }
                    fresh
                }
            }
        };
        if swept {
            self.counts.remove(meta.limit());
            shard.uncount_live();
        }
        swept
    }

    fn narrow_is_fresh(&self, meta: Meta, payload: Payload, now: Now) -> bool {
        match meta.kind() {
            Kind::Bucket => Bucket::narrow_is_fresh(payload.value(), now),
            Kind::Fixed => {
                let window = self.windows.length(meta.window());
                Fixed::narrow_is_fresh(payload.value(), window, now)
            }
        }
    }
}
