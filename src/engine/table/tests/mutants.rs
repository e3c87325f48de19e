//! The laws tested: each bug of [`Mutant`] is planted in turn, and the law that it breaks must
//! find it. A law that cannot fail proves nothing.
//!
//! ```text
//! cargo test --lib mutants -- --nocapture
//! ```
#![allow(clippy::print_stdout, reason = "which law found which bug is for people to read")]

use core::cell::Cell;
use core::fmt::Debug;

use proptest::prelude::*;

use crate::engine::mutant::{Mutant, plant};

use super::book::Which;
use super::laws::{
    Held, a_snapshot_is_the_book, conversion_keeps_time, demands, edits, histories,
    never_above_the_bound, restarts, retry_is_exact, run, table_equals_book,
};

/// Cases within which a law must find a bug.
const CASES: u32 = 5_000;

fn finds<C: Debug>(
    mutant: Mutant,
    law_name: &str,
    strategy: impl Strategy<Value = C>,
    law: impl Fn(C) -> Held,
) {
    let runs = Cell::new(0_u32);
    let counted = |case| {
        runs.set(runs.get() + 1);
        law(case)
    };
    let found = plant(mutant, || run(CASES, strategy, counted));
    let runs = runs.get();
    assert!(found.is_err(), "{law_name} did not find {mutant:?} in {runs} cases");
    println!(
        "{mutant:?}: found by {law_name}; {runs} runs, those that make the case small included"
    );
}

macro_rules! mutants {
    ($($mutant:ident: $law:ident($cases:expr);)*) => {
        $(#[test]
        #[allow(non_snake_case, reason = "named for the bug")]
        fn $mutant() {
            finds(Mutant::$mutant, stringify!($law($cases)), $cases, $law);
        })*
    };
}

mutants! {
    BucketBurstPlusOne: never_above_the_bound(demands(Which::Bucket));
    BucketWaitRoundedDown: retry_is_exact(demands(Which::Bucket));
    CheckClampsDebt: conversion_keeps_time(edits());
    ConversionForgotten: conversion_keeps_time(edits());
    DebtUnbounded: conversion_keeps_time(edits());
    FixedEndsEarly: table_equals_book(histories(Which::Fixed));
    FixedForgetsOnClockBack: table_equals_book(histories(Which::Fixed));
    SlidingLapsesEarly: never_above_the_bound(demands(Which::Sliding));
    SlidingGivesBackNewest: table_equals_book(histories(Which::Sliding));
    SlidingWaitShort: retry_is_exact(demands(Which::Sliding));
    CalendarEndsLate: table_equals_book(histories(Which::Calendar));
    CalendarKeepsUsage: retry_is_exact(demands(Which::Calendar));
    PermitLapsesEarly: table_equals_book(histories(Which::Concurrent));
    ReleaseFreesMore: table_equals_book(histories(Which::Concurrent));
    RenewAfterLapse: table_equals_book(histories(Which::Concurrent));
    LevelPlusOne: never_above_the_bound(demands(Which::Level));
    LevelBelowZero: table_equals_book(histories(Which::Level));
    CapPlusOne: never_above_the_bound(demands(Which::Cap));
    ChargeOnDenial: table_equals_book(histories(Which::Any));
    AlwaysIntoDebt: table_equals_book(histories(Which::Bucket));
    ShadowDecides: table_equals_book(histories(Which::Any));
    SecondCostForgotten: table_equals_book(histories(Which::Level));
    SweepEarly: table_equals_book(histories(Which::Bucket));
    ChangeNotNoted: a_snapshot_is_the_book(restarts(Which::Any));
    ShareNotNoted: a_snapshot_is_the_book(restarts(Which::Concurrent));
    SideNotAsked: a_snapshot_is_the_book(restarts(Which::Any));
    NewcomerNotTagged: a_snapshot_is_the_book(restarts(Which::Any));
    TagsNotCleaned: a_snapshot_is_the_book(restarts(Which::Any));
    SweepDespiteSnapshot: a_snapshot_is_the_book(restarts(Which::Bucket));
}
