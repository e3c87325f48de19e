//! Seeds, planted bugs, and seeds that found bugs.
#![allow(clippy::print_stdout, reason = "what a campaign came to is for people to read")]

use std::collections::BTreeMap;

use crate::engine::mutant::{Mutant, plant};

use super::faults::Fault;
use super::world::{Report, Verdict, run};

/// Seeds in a run of all tests.
const SEEDS: u64 = 6;

/// Seeds within which a planted bug must be found.
const SEEDS_FOR_BUG: u64 = 100;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs a seed on a thread of its own, so that nothing is left of another.
fn on_its_own(seed: u64, planted: Option<Mutant>, says_all: bool) -> Report {
    let thread = std::thread::spawn(move || match planted {
        Some(mutant) => plant(mutant, || run(seed, says_all)),
        None => run(seed, says_all),
    });
    thread.join().unwrap_or_else(|_| panic!("seed {seed}: the simulation panicked"))
}

fn told(report: &Report) -> String {
    let Report { seed, nodes, trace, events, entries, restores, tally, verdict, .. } = report;
    format!(
        "seed {seed}: {nodes} nodes, {events} events, {entries} entries, {restores} snapshots taken \
         over, {tally:?}, trace {trace:016x}: {verdict:?}"
    )
}

/// Whatever goes wrong, the promises hold, and exact answers come back.
#[test]
fn seeds() {
    if let Some(seed) = number("TOLLKEEPER_SIM_SEED") {
        let report = on_its_own(seed, None, number("TOLLKEEPER_SIM_ALL").is_some());
        println!("{}\n{:?}", told(&report), report.fired);
        assert!(!matches!(report.verdict, Verdict::Broken(_)), "{}", told(&report));
        return;
    }
    let count = number("TOLLKEEPER_SIM_SEEDS").unwrap_or(SEEDS);
    let from = number("TOLLKEEPER_SIM_FROM").unwrap_or(1);
    let (mut held, mut void, mut broken) = (0, 0, Vec::new());
    let mut fired: BTreeMap<Fault, u64> = BTreeMap::new();
    let mut restores = 0;
    for seed in from..from + count {
        let report = on_its_own(seed, None, false);
        match &report.verdict {
            Verdict::Held => {
                held += 1;
                restores += report.restores;
                report
                    .fired
                    .iter()
                    .for_each(|(fault, times)| *fired.entry(*fault).or_default() += times);
            }
            Verdict::Void(_) => void += 1,
            Verdict::Broken(_) => {
                println!("{}", told(&report));
                broken.push(told(&report));
            }
        }
    }
    println!(
        "{held} held, {void} void, {} broken; {restores} snapshots taken over; faults: {fired:?}",
        broken.len()
    );
    assert!(broken.is_empty(), "{} of {count}: {}", broken.len(), broken[0]);
    assert!(held > 0, "all {void} runs are void");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1..=2 {
        let (one, other) = (on_its_own(seed, None, false), on_its_own(seed, None, false));
        assert_eq!((one.trace, one.events), (other.trace, other.events), "{}", told(&one));
        assert!(one.events > 1000);
    }
}

fn finds(mutant: Mutant) {
    // A planted bug may have tasks panic; the first breach is what counts.
    let most = number("TOLLKEEPER_SIM_BUG_SEEDS").unwrap_or(SEEDS_FOR_BUG);
    for seed in 1..=most {
        let report = on_its_own(seed, Some(mutant), false);
        if let Verdict::Broken(why) = report.verdict {
            println!("{mutant:?}: found by seed {seed}: {why}");
            return;
        }
    }
    panic!("{mutant:?} is not found in {most} seeds");
}

macro_rules! mutants {
    ($($mutant:ident)*) => {
        mod mutants {
            $(#[test]
            #[allow(non_snake_case, reason = "named for the bug")]
            fn $mutant() {
                super::finds(super::Mutant::$mutant);
            })*
        }
    };
}

mutants! {
    EntriesNotSynced
    VoteNotSynced
    StampByWall
    StaleApplied
    AnswerBeforeApply
    HandOverTwice
    SessionsNotRestored
}
