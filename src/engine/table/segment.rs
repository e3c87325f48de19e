//! The memory of a slot array: segments of one size from a pool that all arrays share.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::NonNull;

use crate::engine::sync::AtomicU64;

use super::pool::{Piece, Pool};
use super::slot::Slot;

/// Slots of a segment: 4 KiB. Tests take few, so that small tables grow and wrap.
pub(super) const SEGMENT_SLOTS: usize = if cfg!(any(test, table_model)) { 4 } else { 128 };

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

    /// The slot at `index`, which must be below the length.
    #[inline]
    pub(super) fn slot(&self, index: usize) -> &Slot {
        let segment = self.segments[index / SEGMENT_SLOTS];
        // Safety: the segment is this array's until it is dropped, and its pool lives as long.
        let segment = unsafe { segment.as_ref() };
        &segment.0[index % SEGMENT_SLOTS]
    }

    /// The slots from `from` on that lie in its segment and before `to`. `from` must be below the
    /// length.
    #[inline]
    pub(super) fn within_segment(&self, from: usize, to: usize) -> &[Slot] {
        let segment = self.segments[from / SEGMENT_SLOTS];
        // Safety: as in `slot`.
        let segment = unsafe { segment.as_ref() };
        let begin = from % SEGMENT_SLOTS;
        let end = SEGMENT_SLOTS.min(begin + to.saturating_sub(from));
        &segment.0[begin..end]
    }

    /// The slots of a part of the array.
    pub(super) fn range(&self, range: core::ops::Range<usize>) -> impl Iterator<Item = &Slot> {
        range.map(|index| self.slot(index))
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
