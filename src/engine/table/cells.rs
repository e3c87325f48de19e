//! Wide cells: where counters live whose numbers a narrow word cannot hold. A cell belongs to the
//! one slot whose word names it, and only a holder of that slot touches it.

use crate::engine::kinds;
use crate::engine::sync::{AtomicU64, Ordering};

use super::pool::{Piece, Pool};

/// The cells of a table.
pub(super) struct Cells(Pool<Cell>);

struct Cell([AtomicU64; 4]);

// Safety: atomic words are valid when zero and have nothing to drop.
unsafe impl Piece for Cell {
    const FIRST_BLOCK: u32 = if cfg!(table_model) { 4 } else { 128 };

    #[cfg(table_model)]
    fn blank() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn link(&self) -> &AtomicU64 {
        &self.0[0]
    }

    /// Whoever takes a cell writes all of it.
    fn clear(&self) {}
}

impl Cells {
    pub(super) fn new() -> Self {
        Self(Pool::new())
    }

    /// Takes a cell. Its words mean nothing until they are written.
    pub(super) fn take(&self) -> u32 {
        self.0.take()
    }

    /// Gives a cell back. The caller held its slot and has already let go of its number.
    pub(super) fn give(&self, cell: u32) {
        self.0.give(cell);
    }

    /// Reads a cell; the caller holds its slot.
    pub(super) fn read(&self, cell: u32) -> kinds::Cell {
        let words = &self.0.piece(cell).0;
        core::array::from_fn(|index| words[index].load(Ordering::Relaxed))
    }

    /// Writes a cell; the caller holds its slot, and the release of the hold publishes it.
    pub(super) fn write(&self, cell: u32, words: kinds::Cell) {
        for (to, from) in self.0.piece(cell).0.iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
    }

    /// Bytes that the cells take.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}
