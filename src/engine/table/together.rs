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
use crate::engine::kinds::{Form, Narrowed};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::time::Now;

use super::Pinned;
use super::array::{Home, Located};
use super::check::{is_of_other_numbers, reading, stateless, within_window};
use super::few::Few;
use super::slot::{Payload, Slot, Tag, Word};

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
    slot: Option<(&'g Slot, Payload)>,
    /// What it holds then, how full that is, and whether the cost fits.
    charged: Narrowed,
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
        let mut homes = Few::new();
        self.find_homes(charges, &mut homes)?;
        let mut homes = homes.as_slice().iter();
        let mut standings: Few<_, COUNTERS_MAX> = Few::new();
        let (mut allow, mut absent) = (true, false);
        for (place, charge) in charges.iter().enumerate() {
            if charge.quota.form() == Form::None {
                let reading = stateless(charge);
                allow &= reading.passes();
                readings.push(reading);
                continue;
            }
            let Stand { slot, charged } = self.stand(charge, *homes.next()?, now)?;
            match slot {
                None => absent = true,
                Some((slot, from)) => {
                    let to = Payload::narrow(charged.value);
                    standings.push(Standing { slot, from, to, place })?;
                }
            }
            let reading = Reading { fits: charged.fits, ..reading(charge, charged.fill) };
            allow &= reading.passes();
            readings.push(reading);
        }
        let standings = standings.as_slice();
        if !allow {
            return self.deny_together(charges, standings, now, readings);
        }
        // A counter that comes twice is charged for both at once, and not here. One that is there
        // shows when it is to be held again.
        if absent && comes_twice(charges) {
            return None;
        }
        for (held, standing) in standings.iter().enumerate() {
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
        for standing in standings {
            standing.slot.release(Word::live(standing.to));
        }
        Some(Verdict::Allow)
    }

    /// Where the searches for the counters begin. Found for all of them before the first is looked
    /// at, so that what they wait for they wait for at once. `None`: there are too many, or one is
    /// of another form, and all looks at the others would be for nothing.
    #[inline]
    fn find_homes<'g>(
        &'g self,
        charges: &[Charge],
        homes: &mut Few<Home<'g>, COUNTERS_MAX>,
    ) -> Option<()> {
        for charge in charges {
            match charge.quota.form() {
                Form::Numbers => {
                    let shard = self.table.shard(charge.key);
                    let home = shard.home(charge.key, self.table.shape, &self.guard);
                    home.fetch_near();
                    homes.push(home)?;
                }
                Form::Ring | Form::Permits => return None,
                Form::None => {}
            }
        }
        Some(())
    }

    /// Ends a check that is denied, by what was read of its counters: no more is needed, unless a
    /// counter comes twice, whose costs count together, or a limit is charged all the same.
    fn deny_together(
        &self,
        charges: &[Charge],
        standings: &[Standing<'_>],
        now: Now,
        readings: &mut [Reading],
    ) -> Option<Verdict> {
        let always = charges.iter().any(|charge| charge.on == ChargeOn::Always);
        if always || comes_twice(charges) || planted(Mutant::ChargeOnDenial) {
            return None;
        }
        for Standing { place, from, .. } in standings {
            readings[*place].fill = charges[*place].quota.fill_narrow(from.value(), now);
        }
        Some(Verdict::Deny)
    }

    /// How a counter stands, for a check that takes nothing of it yet. `None`: it is not there, not
    /// narrow before or after, somebody is at it, or it is charged though the cost does not fit.
    #[inline]
    fn stand<'g>(&'g self, charge: &Charge, home: Home<'g>, now: Now) -> Option<Stand<'g>> {
        if within_window(charge, now).is_err() {
            return None;
        }
        let fresh = || {
            let fill = charge.quota.fill_narrow(0, now);
            let charged = Narrowed { value: 0, fill, fits: true };
            (charge.cost == 0).then_some(Stand { slot: None, charged })
        };
        let slot = match home.look_settled(charge.key, &self.guard)? {
            Located::Found(slot) => slot,
            _ => return fresh(),
        };
        let word = slot.word();
        let Some(from) = word.narrow_live() else {
            return if word == Word::DEAD { fresh() } else { None };
        };
        if is_of_other_numbers(slot.meta(), charge) {
            return None;
        }
        let charged = charge.quota.charge_narrow(from.value(), charge.cost, now)?;
        if !charged.fits && charge.on == ChargeOn::Always {
            return None;
        }
        Some(Stand { slot: Some((slot, from)), charged })
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
fn release_unchanged<T>(standings: &[Standing<'_>]) -> Option<T> {
    for standing in standings {
        standing.slot.release(Word::live(standing.from));
    }
    None
}
