//! Wide cells: where counters live whose numbers a narrow word cannot hold. One pool per shard,
//! addressed by number; the owner of a cell is the one slot whose word names it, and only a
//! holder of that slot touches it.

use alloc::boxed::Box;
use core::ptr;

use crate::engine::kinds::Cell;
use crate::engine::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Cells of the first block; each further block doubles the pool.
const BLOCK_MIN: u32 = 32;
const BLOCKS: usize = 24;

/// The most cells in a pool.
pub(super) const CELLS_MAX: u32 = (BLOCK_MIN << (BLOCKS - 1)) - BLOCK_MIN;

/// Bytes of one cell.
pub(super) const CELL_BYTES: usize = size_of::<Words>();

type Words = [AtomicU64; 4];

pub(super) struct Cells {
    blocks: [AtomicPtr<Words>; BLOCKS],
    /// Cells ever handed out; those below it are in use or on the free list.
    used: AtomicU32,
    /// The free list: a count of its changes in the high half, so that a head which left and came
    /// back is not mistaken for one that stayed; the first free cell plus one in the low half.
    free: AtomicU64,
}

impl Cells {
    pub(super) fn new() -> Self {
        Self {
            blocks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            used: AtomicU32::new(0),
            free: AtomicU64::new(0),
        }
    }

    /// Takes a cell. Its words mean nothing until they are written.
    pub(super) fn take(&self) -> u32 {
        loop {
            // Acquire pairs with the release in `give`: the link of the head is seen.
            let head = self.free.load(Ordering::Acquire);
            let Some(cell) = (head as u32).checked_sub(1) else { break };
            let link = self.words(cell)[0].load(Ordering::Relaxed) & u64::from(u32::MAX);
            let next = next_change(head) | link;
            if self.swap_free(head, next) {
                return cell;
            }
        }
        let used = self.used.fetch_add(1, Ordering::Relaxed);
        assert!(used < CELLS_MAX, "a shard's wide counters fill memory long before their numbers");
        self.ensure_block(place(used).0);
        used
    }

    /// Gives a cell back. The caller held its slot and has already let go of its number.
    pub(super) fn give(&self, cell: u32) {
        loop {
            let head = self.free.load(Ordering::Relaxed);
            self.words(cell)[0].store(head & u64::from(u32::MAX), Ordering::Relaxed);
            if self.swap_free(head, next_change(head) | u64::from(cell + 1)) {
                return;
            }
        }
    }

    fn swap_free(&self, from: u64, to: u64) -> bool {
        self.free.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Reads a cell; the caller holds its slot.
    pub(super) fn read(&self, cell: u32) -> Cell {
        let words = self.words(cell);
        core::array::from_fn(|index| words[index].load(Ordering::Relaxed))
    }

    /// Writes a cell; the caller holds its slot, and the release of the hold publishes it.
    pub(super) fn write(&self, cell: u32, words: Cell) {
        for (to, from) in self.words(cell).iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
    }

    /// Bytes that the pool has handed out at most at one time.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.used.load(Ordering::Relaxed)) * CELL_BYTES as u64
    }

    fn words(&self, cell: u32) -> &Words {
        let (block, index) = place(cell);
        // Acquire pairs with the release in `ensure_block`.
        let first = self.blocks[block].load(Ordering::Acquire);
        debug_assert!(!first.is_null());
        // Safety: `cell` came from `take`, which made sure of its block before it returned the
        // number; a block has `block_cells(block)` elements, is never moved, and lives as long
        // as the pool.
        unsafe { &*first.add(index) }
    }

    fn ensure_block(&self, block: usize) {
        if !self.blocks[block].load(Ordering::Acquire).is_null() {
            return;
        }
        let words = || core::array::from_fn(|_| AtomicU64::new(0));
        let fresh: Box<[Words]> = (0..block_cells(block)).map(|_| words()).collect();
        let fresh = Box::into_raw(fresh).cast::<Words>();
        let null = ptr::null_mut();
        let slot = &self.blocks[block];
        if slot.compare_exchange(null, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // Safety: made above with this length, and never shared: the exchange failed.
            drop(unsafe { boxed_block(fresh, block) });
        }
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        for (block, first) in self.blocks.iter().enumerate() {
            let first = first.load(Ordering::Relaxed);
            if !first.is_null() {
                // Safety: `ensure_block` made it with this length, and `&mut self` proves that
                // nobody else has a reference into it.
                drop(unsafe { boxed_block(first, block) });
            }
        }
    }
}

/// # Safety
/// `first` must be a block made by `Cells::ensure_block(block)` that is not used again.
unsafe fn boxed_block(first: *mut Words, block: usize) -> Box<[Words]> {
    let cells = ptr::slice_from_raw_parts_mut(first, block_cells(block) as usize);
    // Safety: the caller's promise; the length is the one it was made with.
    unsafe { Box::from_raw(cells) }
}

const fn block_cells(block: usize) -> u32 {
    BLOCK_MIN << block
}

/// Block and index of a cell: block `n` begins at cell `BLOCK_MIN * (2^n - 1)`.
const fn place(cell: u32) -> (usize, usize) {
    let block = (cell / BLOCK_MIN + 1).ilog2();
    (block as usize, (cell - BLOCK_MIN * ((1 << block) - 1)) as usize)
}

const fn next_change(head: u64) -> u64 {
    ((head >> 32).wrapping_add(1)) << 32
}

#[cfg(all(test, not(table_model)))]
mod tests {
    use super::*;

    #[test]
    fn cells_lie_one_after_the_other() {
        assert_eq!(place(0), (0, 0));
        assert_eq!(place(BLOCK_MIN - 1), (0, BLOCK_MIN as usize - 1));
        assert_eq!(place(BLOCK_MIN), (1, 0));
        assert_eq!(place(3 * BLOCK_MIN), (2, 0));
        assert_eq!(place(CELLS_MAX - 1).0, BLOCKS - 2);
    }

    #[test]
    fn a_cell_given_back_is_taken_first() {
        let cells = Cells::new();
        let taken: alloc::vec::Vec<_> = (0..100).map(|_| cells.take()).collect();
        cells.write(taken[70], [1, 2, 3, 4]);
        assert_eq!(cells.read(taken[70]), [1, 2, 3, 4]);
        cells.give(taken[70]);
        cells.give(taken[5]);
        assert_eq!(cells.take(), taken[5]);
        assert_eq!(cells.take(), taken[70]);
        assert_eq!(cells.take(), 100);
    }
}
