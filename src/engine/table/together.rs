//! Checks of several narrow counters that are there, or of which nothing is asked, and that nobody
//! is at: the common case of a check of several limits. Each counter is looked up once, and nothing
//! is waited for: what this way cannot do, it leaves undone to `check_held`.
//!
//! All words are read and the check is decided by them; if it is allowed, each word is made HELD by
//! a compare-and-swap from what was read. Once all are, they still say what was decided by, so the
//! new ones are written. If one is not, those before it go back to what they were, which is no undoing
//! of a charge: nobody else could change a word meanwhile.
//!
//! The check is decided at the moment that it came with, as one of a single counter is, and for the
//! same reason: a counter that others have charged at a later moment is found as full as it then
//! stood, or fuller.

use alloc::vec::Vec;

use crate::engine::command::{Charge, ChargeOn};
use crate::engine::decision::{Reading, Verdict};
use crate::engine::kinds::{Fill, Form, Narrowed};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::time::Now;

use super::Pinned;
use super::check::{is_of_other_numbers, reading, stateless, within_window};
use super::shard::Place;
use super::slot::{Payload, Slot, State, Tag, Word};

/// Counters that a check of this way may have: more than pages of real APIs put on one request.
const COUNTERS_MAX: usize = 8;

/// One counter of the check.
#[derive(Clone, Copy)]
struct Standing<'g> {
    slot: &'g Slot,
    from: Payload,
    /// What it holds if the check is allowed.
    to: Payload,
    /// Place of its charge in the check.
    place: usize,
}

/// What a check would do to one counter.
struct Stand<'g> {
    /// None where nothing is asked of a counter that is not there: it was fresh at the look, and
    /// nothing hangs on what becomes of it.
    standing: Option<Standing<'g>>,
    /// How full the counter then stands; as it did if the cost does not fit.
    fill: Fill,
    fits: bool,
}

impl Pinned<'_> {
    /// Decides a check of several charges and gives each its reading, in order. `None` is no
    /// answer: nothing has changed, and what `readings` has is void.
    pub(super) fn check_together(
        &self,
        charges: &[Charge],
        now: Now,
        readings: &mut Vec<Reading>,
    ) -> Option<Verdict> {
        // One ring or permit, and all looks at the others would be for nothing.
        if charges.iter().any(|it| matches!(it.quota.form(), Form::Ring | Form::Permits)) {
            return None;
        }
        let mut standings = [const { None }; COUNTERS_MAX];
        let mut counters = 0;
        let (mut allow, mut absent) = (true, false);
        for (place, charge) in charges.iter().enumerate() {
            if charge.quota.form() == Form::None {
                let reading = stateless(charge);
                allow &= reading.passes();
                readings.push(reading);
                continue;
            }
            let Stand { standing, fill, fits } = self.stand(charge, place, now)?;
            match standing {
                None => absent = true,
                Some(_) => {
                    *standings.get_mut(counters)? = standing;
                    counters += 1;
                }
            }
            let reading = Reading { fits, ..reading(charge, fill) };
            allow &= reading.passes();
            readings.push(reading);
        }
        let standings = &standings[..counters];
        if !allow {
            return self.deny_together(charges, standings, now, readings);
        }
        // A counter that comes twice is charged for both at once, and not here. One that is there
        // shows when it is to be held again.
        if absent && comes_twice(charges) {
            return None;
        }
        for (held, standing) in standings.iter().flatten().enumerate() {
            let is_held = standing.slot.swap(Word::live(standing.from), Word::held(standing.from));
            // Numbers change only under a hold, and leave the word as it is at times.
            if !is_held && planted(Mutant::TogetherTrustsLook) {
                continue;
            }
            if !is_held || is_of_other_numbers(standing.slot.meta(), &charges[standing.place]) {
                let held = held + usize::from(is_held);
                return release_unchanged(&standings[..held]);
            }
        }
        // Asked once all are held, as by any check of several: see `overlay`.
        if self.side() != Tag::NONE && !planted(Mutant::SideNotAsked) {
            return release_unchanged(standings);
        }
        for standing in standings.iter().flatten() {
            standing.slot.release(Word::live(standing.to));
        }
        Some(Verdict::Allow)
    }

    /// Ends a check that is denied, by what was read of its counters: no more is needed, unless a
    /// counter comes twice, whose costs count together, or a limit is charged all the same.
    fn deny_together(
        &self,
        charges: &[Charge],
        standings: &[Option<Standing<'_>>],
        now: Now,
        readings: &mut [Reading],
    ) -> Option<Verdict> {
        let always = charges.iter().any(|charge| charge.on == ChargeOn::Always);
        if always || comes_twice(charges) || planted(Mutant::ChargeOnDenial) {
            return None;
        }
        for Standing { place, from, .. } in standings.iter().flatten() {
            readings[*place].fill = charges[*place].quota.fill_narrow(from.value(), now);
        }
        Some(Verdict::Deny)
    }

    /// How a counter stands, for a check that takes nothing of it yet. `None`: it is not there, not
    /// narrow before or after, somebody is at it, or it is charged though the cost does not fit.
    #[inline]
    fn stand(&self, charge: &Charge, place: usize, now: Now) -> Option<Stand<'_>> {
        let Charge { quota, cost, .. } = charge;
        if within_window(charge, now).is_err() {
            return None;
        }
        let fresh = || {
            let fill = quota.fill_narrow(0, now);
            (*cost == 0).then_some(Stand { standing: None, fill, fits: true })
        };
        let shard = self.table.shard(charge.key);
        let slot = match shard.look_settled(charge.key, self.table.shape, &self.guard)? {
            Place::Found(slot) => slot,
            Place::Vacant(_) => return fresh(),
        };
        let from = match slot.word().state() {
            State::Live(from) => from,
            State::Dead => return fresh(),
            _ => return None,
        };
        if from.is_wide() || is_of_other_numbers(slot.meta(), charge) {
            return None;
        }
        let Narrowed { value, fill, fits } = quota.charge_narrow(from.value(), *cost, now)?;
        if !fits && charge.on == ChargeOn::Always {
            return None;
        }
        let standing = Some(Standing { slot, from, to: Payload::narrow(value), place });
        Some(Stand { standing, fill, fits })
    }
}

/// Whether two charges are on one counter.
fn comes_twice(charges: &[Charge]) -> bool {
    let keeps = |charge: &&Charge| charge.quota.form() != Form::None;
    let mut kept = charges.iter().enumerate().filter(|(_, charge)| keeps(charge));
    kept.any(|(at, charge)| charges[..at].iter().filter(keeps).any(|it| it.key == charge.key))
}

/// Ends holds under which nothing was changed.
#[cold]
fn release_unchanged<T>(standings: &[Option<Standing<'_>>]) -> Option<T> {
    for standing in standings.iter().flatten() {
        standing.slot.release(Word::live(standing.from));
    }
    None
}
