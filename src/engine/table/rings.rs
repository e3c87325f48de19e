//! Rings: where sliding windows keep their sub-windows. A ring belongs to the one slot whose word
//! names it, and only a holder of that slot touches it.
//!
//! Counts are packed as tightly as the largest of them allows, in rings of three classes, so that
//! a limit of a few thousand units takes 184 bytes a key and none is ever clamped.

use crate::engine::kinds::{Packed, Ring, Sliding};
use crate::engine::sync::{AtomicU64, Ordering};

use super::pool::{Piece, Pool};

/// How wide a ring's counts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Class {
    /// 16 bits.
    Small = 0,
    /// 32 bits.
    Medium = 1,
    /// 64 bits.
    Large = 2,
}

impl Class {
    const fn bits(self) -> u32 {
        match self {
            Self::Small => 16,
            Self::Medium => 32,
            Self::Large => 64,
        }
    }

    /// The narrowest class for counts of at most `most`.
    const fn holding(most: u64) -> Self {
        if most < 1 << 16 {
            Self::Small
        } else if most < 1 << 32 {
            Self::Medium
        } else {
            Self::Large
        }
    }

    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Small,
            1 => Self::Medium,
            _ => Self::Large,
        }
    }
}

/// Which ring a slot's word names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingId {
    pub(super) number: u32,
    class: Class,
}

impl RingId {
    /// The class and the number as a payload has them.
    pub(super) const fn new(number: u32, class: u8) -> Self {
        Self { number, class: Class::of(class) }
    }

    pub(super) const fn class(self) -> u8 {
        self.class as u8
    }
}

struct Words<const N: usize>([AtomicU64; N]);

// Safety: atomic words are valid when zero and have nothing to drop.
unsafe impl<const N: usize> Piece for Words<N> {
    const FIRST_BLOCK: u32 = if cfg!(table_model) { 2 } else { 64 };

    #[cfg(table_model)]
    fn blank() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn link(&self) -> &AtomicU64 {
        &self.0[0]
    }

    /// Whoever takes a ring writes all of it.
    fn clear(&self) {}
}

/// The rings of a table.
pub(super) struct Rings {
    small: Pool<Words<{ Packed::words(Class::Small.bits()) }>>,
    medium: Pool<Words<{ Packed::words(Class::Medium.bits()) }>>,
    large: Pool<Words<{ Packed::words(Class::Large.bits()) }>>,
}

impl Rings {
    pub(super) fn new() -> Self {
        Self { small: Pool::new(), medium: Pool::new(), large: Pool::new() }
    }

    fn words(&self, id: RingId) -> &[AtomicU64] {
        match id.class {
            Class::Small => &self.small.piece(id.number).0,
            Class::Medium => &self.medium.piece(id.number).0,
            Class::Large => &self.large.piece(id.number).0,
        }
    }

    /// A ring in place; the caller holds its slot, and the release of the hold publishes changes.
    pub(super) fn at(&self, id: RingId) -> Packed<'_> {
        Packed::new(self.words(id), id.class.bits())
    }

    /// A fresh ring for a limit of these numbers. Debt may come to twice the limit, all of it in one
    /// sub-window.
    pub(super) fn take_for(&self, sliding: &Sliding) -> RingId {
        let id = self.take(Class::holding(sliding.units().saturating_mul(2)));
        self.at(id).clear(sliding);
        id
    }

    /// A ring whose counts have room for `more` units: this one, or another that takes its place.
    pub(super) fn with_room(&self, id: RingId, more: u64) -> RingId {
        let most = Class::holding(self.at(id).total().saturating_add(more));
        if most <= id.class {
            return id;
        }
        let wider = self.take(most);
        self.at(wider).write(&self.at(id).read());
        self.give(id);
        wider
    }

    /// A ring that holds what a copy says.
    pub(super) fn take_copy(&self, ring: &Ring) -> RingId {
        let id = self.take(Class::holding(ring.total));
        self.at(id).write(ring);
        id
    }

    /// A copy of a ring, in a ring of its own; the caller holds the slot of the one.
    pub(super) fn copy(&self, id: RingId) -> RingId {
        let copy = self.take(id.class);
        for (to, from) in self.words(copy).iter().zip(self.words(id)) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        copy
    }

    fn take(&self, class: Class) -> RingId {
        let number = match class {
            Class::Small => self.small.take(),
            Class::Medium => self.medium.take(),
            Class::Large => self.large.take(),
        };
        RingId { number, class }
    }

    /// Gives a ring back. The caller held its slot and has already let go of its number.
    pub(super) fn give(&self, id: RingId) {
        match id.class {
            Class::Small => self.small.give(id.number),
            Class::Medium => self.medium.give(id.number),
            Class::Large => self.large.give(id.number),
        }
    }

    /// Bytes that the rings take.
    pub(super) fn bytes(&self) -> u64 {
        self.small.bytes() + self.medium.bytes() + self.large.bytes()
    }
}
