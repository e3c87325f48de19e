//! Bugs that are planted to test the tests: each is caught by the law that it breaks
//! (`cargo test --lib mutants -- --nocapture` shows which; those of a cluster, by its simulation).
//! They exist in test builds only.

/// A bug, planted where its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(dead_code, reason = "only test builds plant any")]
pub(crate) enum Mutant {
    /// A bucket holds one unit too many.
    BucketBurstPlusOne,
    /// A bucket's wait is rounded down to a nanosecond.
    BucketWaitRoundedDown,
    /// Every check cuts debt to a full refill, not only the first by new numbers.
    CheckClampsDebt,
    /// New numbers do not cut what old ones left.
    ConversionForgotten,
    /// Debt may grow without end.
    DebtUnbounded,
    /// A fixed window is over a nanosecond early.
    FixedEndsEarly,
    /// A clock that goes back opens an old window anew.
    FixedForgetsOnClockBack,
    /// A sub-window stops counting one sub-window early.
    SlidingLapsesEarly,
    /// Units given back are taken from the newest sub-window.
    SlidingGivesBackNewest,
    /// A sliding window's wait ends a nanosecond early.
    SlidingWaitShort,
    /// A calendar window lasts a nanosecond into the next.
    CalendarEndsLate,
    /// A calendar counter of the window before still counts.
    CalendarKeepsUsage,
    /// A calendar window opens again for whoever says that it opened a little later.
    CalendarOpensTwice,
    /// A permit lapses a nanosecond early.
    PermitLapsesEarly,
    /// Giving a permit back frees a unit more than it held.
    ReleaseFreesMore,
    /// A permit that was given back can still be renewed.
    RenewAfterLapse,
    /// Whoever gives a permit back trusts what it saw before it held the counter.
    ReleaseTrustsFirstLook,
    /// A level takes one unit too many.
    LevelPlusOne,
    /// Giving back more than a level holds leaves a credit.
    LevelBelowZero,
    /// A cap lets one unit more pass.
    CapPlusOne,
    /// A denied check is charged on the limits that would have let it pass.
    ChargeOnDenial,
    /// A denied check is charged and then uncharged by subtraction.
    UndoBySubtraction,
    /// `charge = "always"` goes into debt.
    AlwaysIntoDebt,
    /// A shadow decides.
    ShadowDecides,
    /// A key twice in a check is charged for its first cost only.
    SecondCostForgotten,
    /// The sweeper takes counters a second early.
    SweepEarly,
    /// A counter changes in the middle of a snapshot and nobody notes what it was.
    ChangeNotNoted,
    /// A check of several narrow counters writes to one that changed since its look.
    TogetherTrustsLook,
    /// A check of several narrow counters changes them in the middle of a snapshot unasked.
    SideNotAsked,
    /// A permit is renewed or given back in the middle of a snapshot and nobody notes it.
    ShareNotNoted,
    /// A counter that comes in the middle of a snapshot is taken for one that was there.
    NewcomerNotTagged,
    /// A snapshot takes another's tag for its own.
    TagsNotCleaned,
    /// The sweeper takes counters that a snapshot has yet to come to.
    SweepDespiteSnapshot,
    /// The log says that entries are on disk before they are.
    EntriesNotSynced,
    /// The log says that a vote is on disk before it is.
    VoteNotSynced,
    /// A leader stamps by its wall clock.
    StampByWall,
    /// A group of another policy than the one in force is applied.
    StaleApplied,
    /// A leader answers for its own clients when it proposes, not when it applies.
    AnswerBeforeApply,
    /// What was handed over to the leader of one term is handed over to the next before it is
    /// known to be lost.
    HandOverTwice,
    /// A snapshot's sessions are not taken over.
    SessionsNotRestored,
    /// A client that gives a call up as its answer comes is not noticed.
    ResetsUnseen,
}

#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn planted(_: Mutant) -> bool {
    false
}

#[cfg(test)]
pub(crate) use planted::{plant, planted};

#[cfg(test)]
mod planted {
    use core::cell::Cell;

    use super::Mutant;

    std::thread_local! {
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this thread has planted this bug.
    pub(crate) fn planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }

    /// Runs with a bug planted in this thread.
    pub(crate) fn plant<R>(mutant: Mutant, run: impl FnOnce() -> R) -> R {
        PLANTED.set(Some(mutant));
        let result = run();
        PLANTED.set(None);
        result
    }
}
