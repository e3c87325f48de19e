//! The memory of a slot array: segments of one size from a pool that all arrays share.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::NonNull;

use crate::engine::sync::AtomicU64;

use super::pool::{Piece, Pool};
use super::slot::Slot;

/// Slots of a segment: 16 KiB. A search reads where the segment is before it reads a slot, so all
/// shards' lists of them should stay in the processor's nearest caches. Tests take few slots, so that
/// small tables grow and wrap.
pub(super) const SEGMENT_SLOTS: usize = if cfg!(any(test, table_model)) { 4 } else { 512 };

/// The number of slots next to this that fills whole segments: in the mean over all shards, arrays
/// are then as large as they are meant to be. Of small ones the remainder counts, and they are made
/// at least as large.
pub(super) const fn nearest_whole(slots: u32) -> u32 {
    const FEW: u32 = 8 * SEGMENT_SLOTS as u32;
    const HALF: u32 = SEGMENT_SLOTS as u32 / 2;
    if slots < FEW { slots } else { slots.saturating_add(HALF) & !(SEGMENT_SLOTS as u32 - 1) }
}

const _: () = assert!(SEGMENT_SLOTS.is_power_of_two());

/// Where all arrays of a table get their segments.
pub(super) type Segments = Pool<Segment>;

pub(super) struct Segment([Slot; SEGMENT_SLOTS]);

// Safety: a slot is atomic words, which are valid when zero and have nothing to drop.
unsafe impl Piece for Segment {
    const FIRST_BLOCK: u32 = if cfg!(table_model) { 2 } else { 64 };

    #[cfg(table_model)]
    fn blank() -> Self {
        Self(core::array::from_fn(|_| Slot::vacant()))
    }

    fn link(&self) -> &AtomicU64 {
        self.0[0].first_word()
    }

    fn clear(&self) {
        self.0.iter().for_each(Slot::clear);
    }
}

/// The slots of one array.
pub(super) struct Slots {
    segments: Box<[NonNull<Segment>]>,
    /// Their numbers in the pool. Apart, so that a search has half as much to keep in its cache.
    numbers: Box<[u32]>,
    pool: Arc<Segments>,
}

impl Slots {
    /// At least so many vacant slots: as many as fill whole segments.
    pub(super) fn vacant(slots: u32, pool: &Arc<Segments>) -> Self {
        let segments = (slots as usize).div_ceil(SEGMENT_SLOTS).max(1);
        let numbers: Box<[u32]> = (0..segments).map(|_| pool.take()).collect();
        let segments = numbers.iter().map(|number| NonNull::from(pool.piece(*number))).collect();
        Self { segments, numbers, pool: Arc::clone(pool) }
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len() * SEGMENT_SLOTS
    }

    /// The slots from `from` to the end of its segment. `from` must be below the length.
    #[inline]
    pub(super) fn rest_of_segment(&self, from: usize) -> &[Slot] {
        let segment = self.segments[from / SEGMENT_SLOTS];
        // Safety: the segment is this array's until it is dropped, and its pool lives as long.
        let segment = unsafe { segment.as_ref() };
        &segment.0[from % SEGMENT_SLOTS..]
    }

    /// The slots from `from` on that lie in its segment and before `to`. `from` must be below the
    /// length.
    pub(super) fn within_segment(&self, from: usize, to: usize) -> &[Slot] {
        let rest = self.rest_of_segment(from);
        &rest[..rest.len().min(to.saturating_sub(from))]
    }

    /// The slots of a part of the array.
    pub(super) fn range(&self, range: core::ops::Range<usize>) -> impl Iterator<Item = &Slot> {
        range.map(|index| &self.rest_of_segment(index)[0])
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for number in &self.numbers {
            self.pool.give(*number);
        }
    }
}

// Safety: the pointers are to segments that this array alone holds, and slots are atomics.
unsafe impl Send for Slots {}
// Safety: as above; all access through `&Slots` is atomic.
unsafe impl Sync for Slots {}
