//! Atomics, epochs and waiting: the standard library's, or loom's for the models. The one file
//! that names either.

#[cfg(not(table_model))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64};

#[cfg(table_model)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64};

pub(crate) use core::sync::atomic::Ordering;

pub(crate) use crossbeam_epoch as epoch;

/// Waiting for another thread that is about to be done: spins briefly, then yields the processor.
pub(crate) struct Backoff {
    spins: u32,
}

impl Backoff {
    /// Spins before the first yield. A hold lasts well under this many pauses unless its thread
    /// lost the processor, and then only yielding helps.
    const SPINS_MAX: u32 = 64;

    pub(crate) const fn new() -> Self {
        Self { spins: 0 }
    }

    /// Whether spinning has gone on for so long that the other thread has likely lost the
    /// processor.
    pub(crate) const fn is_long(&self) -> bool {
        self.spins >= Self::SPINS_MAX
    }

    #[cfg(not(table_model))]
    pub(crate) fn wait(&mut self) {
        if self.is_long() {
            std::thread::yield_now();
        } else {
            self.spins += 1;
            core::hint::spin_loop();
        }
    }

    /// In a model every wait is a yield: another thread has to run.
    #[cfg(table_model)]
    pub(crate) fn wait(&mut self) {
        self.spins = Self::SPINS_MAX;
        loom::thread::yield_now();
    }
}
