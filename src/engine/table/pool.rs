//! Memory for pieces of one size: segments of slot arrays, cells of wide counters.
//!
//! Pieces of one size leave no holes: what one array gives back another takes, however the sizes
//! of the arrays go on. (Arrays that grow by a quarter, each in one piece from the heap, left a
//! third of it unusable.) Blocks of pieces come zeroed from the operating system and are touched
//! piece by piece; they are given back when the pool is dropped.

use core::ptr;

use crate::engine::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Blocks double, so this many address more than any memory holds.
const BLOCKS: usize = 24;

/// What a pool is made of.
///
/// # Safety
/// All bytes zero must be a valid value, and there must be nothing to drop.
pub(super) unsafe trait Piece {
    /// Pieces of the first block; each further block doubles the pool.
    const FIRST_BLOCK: u32;

    /// A new piece. Loom's atomics are not made of zeroes.
    #[cfg(table_model)]
    fn blank() -> Self;

    /// The word that links free pieces.
    fn link(&self) -> &AtomicU64;

    /// Makes a piece that was in use like a new one.
    fn clear(&self);
}

/// Pieces addressed by number. A piece belongs to whoever took it until it is given back.
pub(super) struct Pool<T: Piece> {
    blocks: [AtomicPtr<T>; BLOCKS],
    /// Pieces ever handed out; those below it are in use or on the free list.
    used: AtomicU32,
    /// The free list: a count of its changes in the high half, so that a head which left and came
    /// back is not mistaken for one that stayed; the first free piece plus one in the low half.
    free: AtomicU64,
}

impl<T: Piece> Pool<T> {
    const PIECES_MAX: u32 = (T::FIRST_BLOCK << (BLOCKS - 1)) - T::FIRST_BLOCK;

    pub(super) fn new() -> Self {
        Self {
            blocks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            used: AtomicU32::new(0),
            free: AtomicU64::new(0),
        }
    }

    /// Takes a piece, all zero.
    pub(super) fn take(&self) -> u32 {
        loop {
            // Acquire pairs with the release in `give`: the link of the head is seen.
            let head = self.free.load(Ordering::Acquire);
            let Some(piece) = (head as u32).checked_sub(1) else { break };
            let link = self.piece(piece).link().load(Ordering::Relaxed) & u64::from(u32::MAX);
            if self.swap_free(head, next_change(head) | link) {
                self.piece(piece).clear();
                return piece;
            }
        }
        let used = self.used.fetch_add(1, Ordering::Relaxed);
        assert!(used < Self::PIECES_MAX, "memory ends long before the numbers of its pieces do");
        self.ensure_block(place::<T>(used).0);
        used
    }

    /// Gives a piece back. Nobody uses it any more.
    pub(super) fn give(&self, piece: u32) {
        loop {
            let head = self.free.load(Ordering::Relaxed);
            self.piece(piece).link().store(head & u64::from(u32::MAX), Ordering::Relaxed);
            if self.swap_free(head, next_change(head) | u64::from(piece + 1)) {
                return;
            }
        }
    }

    fn swap_free(&self, from: u64, to: u64) -> bool {
        self.free.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The piece with this number, which `take` gave out.
    pub(super) fn piece(&self, piece: u32) -> &T {
        let (block, index) = place::<T>(piece);
        // Acquire pairs with the release in `ensure_block`.
        let first = self.blocks[block].load(Ordering::Acquire);
        debug_assert!(!first.is_null());
        // Safety: `take` made sure of the block before it gave out the number. A block has
        // `block_pieces` pieces, zeroed, which `Piece` says is a valid value; it is never moved
        // and lives as long as the pool.
        unsafe { &*first.add(index) }
    }

    /// Bytes of all pieces ever handed out.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.used.load(Ordering::Relaxed)) * size_of::<T>() as u64
    }

    fn ensure_block(&self, block: usize) {
        if !self.blocks[block].load(Ordering::Acquire).is_null() {
            return;
        }
        let first = memory::allocate::<T>(block_pieces::<T>(block));
        let (slot, null) = (&self.blocks[block], ptr::null_mut());
        if slot.compare_exchange(null, first, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // Safety: allocated above, and never shared: the exchange failed.
            unsafe { memory::free(first, block_pieces::<T>(block)) };
        }
    }
}

impl<T: Piece> Drop for Pool<T> {
    fn drop(&mut self) {
        for (block, first) in self.blocks.iter().enumerate() {
            let first = first.load(Ordering::Relaxed);
            if !first.is_null() {
                // Safety: `ensure_block` allocated it, and `&mut self` proves that nobody has a
                // reference into it.
                unsafe { memory::free(first, block_pieces::<T>(block)) };
            }
        }
    }
}

const fn block_pieces<T: Piece>(block: usize) -> usize {
    (T::FIRST_BLOCK as usize) << block
}

/// Block and index of a piece: block `n` begins at piece `FIRST_BLOCK * (2^n - 1)`.
const fn place<T: Piece>(piece: u32) -> (usize, usize) {
    let block = (piece / T::FIRST_BLOCK + 1).ilog2();
    (block as usize, (piece - T::FIRST_BLOCK * ((1 << block) - 1)) as usize)
}

const fn next_change(head: u64) -> u64 {
    ((head >> 32).wrapping_add(1)) << 32
}

/// Blocks of zeroed memory at page boundaries.
#[cfg(not(table_model))]
mod memory {
    use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
    use core::alloc::Layout;

    use rustix::mm::{Advice, madvise};

    use super::Piece;

    /// Pieces lie at multiples of their size from a page's begin, so none of a page's size or
    /// less straddles one.
    const PAGE: usize = 4096;

    /// A large page. A random key's slot is out of reach of the processor's address caches where
    /// pages are small: to find the page then costs more than to fetch the slot.
    const LARGE_PAGE: usize = 2 << 20;

    /// The boundary at which a block of so many bytes begins.
    const fn boundary(bytes: usize) -> usize {
        if bytes >= LARGE_PAGE { LARGE_PAGE } else { PAGE }
    }

    /// The allocation behind a block has room to find its boundary in, and before it a word that
    /// says how far the allocation's own begin is. Also the bytes of the block.
    fn layout<T>(pieces: usize) -> (Layout, usize) {
        let block = Layout::array::<T>(pieces).expect("a block fits the address space");
        let bytes = block.size();
        // A small alignment: for a large one the allocator clears all of the memory at once.
        let layout = Layout::from_size_align(bytes + 2 * boundary(bytes), align_of::<usize>())
            .expect("a block fits the address space");
        (layout, bytes)
    }

    pub(super) fn allocate<T: Piece>(pieces: usize) -> *mut T {
        let (layout, length) = layout::<T>(pieces);
        // Safety: the layout has a size.
        let bytes = unsafe { alloc_zeroed(layout) };
        if bytes.is_null() {
            handle_alloc_error(layout);
        }
        let offset = size_of::<usize>();
        // Safety: within the allocation, which has twice the boundary for this.
        let offset = offset + unsafe { bytes.add(offset) }.align_offset(boundary(length));
        // Safety: `offset` is at least a word and below twice the boundary; the word before the
        // block is within the allocation and aligned, as the block is at a page's begin.
        let block = unsafe {
            let block = bytes.add(offset);
            block.cast::<usize>().sub(1).write(offset);
            block
        };
        if length >= LARGE_PAGE {
            // Safety: the block's own memory, which the advice does not change. It is a hint: where
            // the system has no large pages, small ones do.
            let _ = unsafe { madvise(block.cast(), length, Advice::LinuxHugepage) };
        }
        block.cast::<T>()
    }

    /// # Safety
    /// `first` must come from [`allocate`] with this number of pieces and not be used again.
    pub(super) unsafe fn free<T: Piece>(first: *mut T, pieces: usize) {
        // Safety: `allocate` wrote the offset before the block and used this layout.
        unsafe {
            let offset = first.cast::<usize>().sub(1).read();
            dealloc(first.cast::<u8>().sub(offset), layout::<T>(pieces).0);
        }
    }
}

#[cfg(table_model)]
mod memory {
    use alloc::boxed::Box;
    use core::ptr;

    use super::Piece;

    pub(super) fn allocate<T: Piece>(pieces: usize) -> *mut T {
        let block: Box<[T]> = (0..pieces).map(|_| T::blank()).collect();
        Box::into_raw(block).cast()
    }

    /// # Safety
    /// `first` must come from [`allocate`] with this number of pieces and not be used again.
    pub(super) unsafe fn free<T: Piece>(first: *mut T, pieces: usize) {
        // Safety: the caller's promise.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(first, pieces)) });
    }
}

#[cfg(all(test, not(table_model)))]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    struct Word(AtomicU64);

    // Safety: an atomic word is valid when zero and has nothing to drop.
    unsafe impl Piece for Word {
        const FIRST_BLOCK: u32 = 32;

        fn link(&self) -> &AtomicU64 {
            &self.0
        }

        fn clear(&self) {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    #[test]
    fn pieces_lie_one_after_the_other() {
        assert_eq!(place::<Word>(0), (0, 0));
        assert_eq!(place::<Word>(31), (0, 31));
        assert_eq!(place::<Word>(32), (1, 0));
        assert_eq!(place::<Word>(96), (2, 0));
        assert_eq!(place::<Word>(Pool::<Word>::PIECES_MAX - 1).0, BLOCKS - 2);
    }

    #[test]
    fn a_piece_given_back_is_taken_first_and_is_clear() {
        let pool = Pool::<Word>::new();
        let taken: Vec<_> = (0..1000).map(|_| pool.take()).collect();
        for &piece in &taken {
            assert_eq!(pool.piece(piece).0.swap(u64::from(piece) + 1, Ordering::Relaxed), 0);
        }
        pool.give(taken[70]);
        pool.give(taken[5]);
        for expected in [taken[5], taken[70], 1000] {
            assert_eq!(pool.take(), expected);
            assert_eq!(pool.piece(expected).0.load(Ordering::Relaxed), 0);
        }
        assert_eq!(pool.piece(taken[999]).0.load(Ordering::Relaxed), 1000);
    }
}
