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
use crate::engine::decision::Reading;
use crate::engine::kinds::{Fill, Form};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::quota::Quota;
use crate::engine::time::Now;

use super::Pinned;
use super::check::{is_of_other_numbers, reading, stateless, within_window};
use super::shard::Place;
use super::slot::{Payload, Slot, State, Tag, Word};

/// Counters that a check of this way may have. More than pages of real APIs put on one request, and
/// few enough that looking for a counter that comes twice costs less than sorting.
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
    /// How full it then stands.
    charged: Fill,
}

impl Pinned<'_> {
    /// Decides a check of several charges and gives each its reading, in order. `None` is no
    /// answer: nothing has changed, and what `readings` has is void.
    pub(super) fn check_together(
        &self,
        charges: &[Charge],
        now: Now,
        readings: &mut Vec<Reading>,
    ) -> Option<()> {
        // One ring or permit, and all looks at the others would be for nothing.
        if charges.iter().any(|it| matches!(it.quota.form(), Form::Ring | Form::Permits)) {
            return None;
        }
        let mut standings = [const { None }; COUNTERS_MAX];
        let mut counters = 0;
        let (mut allow, mut always) = (true, false);
        for (place, charge) in charges.iter().enumerate() {
            if charge.quota.form() == Form::None {
                let reading = stateless(charge);
                allow &= reading.passes();
                readings.push(reading);
                continue;
            }
            // One that comes twice is charged for both at once, there and not here.
            let is_twin =
                |other: &Charge| other.key == charge.key && other.quota.form() != Form::None;
            if charges[..place].iter().any(is_twin) {
                return None;
            }
            let (standing, fill, fits) = self.stand(charge, place, now)?;
            if standing.is_some() {
                *standings.get_mut(counters)? = standing;
                counters += 1;
            }
            let reading = Reading { fits, ..reading(charge, fill) };
            allow &= reading.passes();
            always |= charge.on == ChargeOn::Always;
            readings.push(reading);
        }
        let standings = &standings[..counters];
        if !allow {
            return (!always && !planted(Mutant::ChargeOnDenial)).then_some(());
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
            let reading = &mut readings[standing.place];
            if reading.fits {
                reading.fill = standing.charged;
            }
        }
        Some(())
    }

    /// How a counter stands, for a check that takes nothing of it yet: how full, and whether the cost
    /// fits. `None`: it is not there, not narrow before or after, somebody is at it, or it is charged
    /// though the cost does not fit.
    ///
    /// There is no standing where nothing is asked of a counter that is not there: it was fresh at
    /// the look, and nothing hangs on what becomes of it.
    #[inline]
    fn stand(
        &self,
        charge: &Charge,
        place: usize,
        now: Now,
    ) -> Option<(Option<Standing<'_>>, Fill, bool)> {
        let Charge { quota, cost, .. } = charge;
        if within_window(charge, now).is_err() {
            return None;
        }
        let fresh = || {
            let fill = quota.fill_narrow(0, now);
            (*cost == 0).then_some((None, fill, true))
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
        let standing = |to, charged| Some(Standing { slot, from, to, place, charged });
        if let Quota::Bucket(bucket) = quota
            && bucket.is_narrow()
            && (1..=bucket.burst()).contains(cost)
        {
            let fill = |value| Fill::Bucket { backlog: bucket.backlog_narrow(value, now) };
            let stands = fill(from.value());
            return Some(match bucket.charge_narrow(from.value(), *cost, now) {
                Some(value) => (standing(Payload::narrow(value), fill(value)), stands, true),
                None if charge.on == ChargeOn::Always => return None,
                None => (standing(from, stands), stands, false),
            });
        }
        let fill = quota.fill_narrow(from.value(), now);
        let fits = quota.fits(fill, *cost);
        if !fits && charge.on == ChargeOn::Always {
            return None;
        }
        if !fits || *cost == 0 {
            return Some((standing(from, fill), fill, fits));
        }
        let charged = quota.charged(fill, *cost);
        let to = Payload::narrow(quota.narrow(charged, now)?);
        Some((standing(to, charged), fill, true))
    }
}

/// Ends holds under which nothing was changed.
#[cold]
fn release_unchanged(standings: &[Option<Standing<'_>>]) -> Option<()> {
    for standing in standings.iter().flatten() {
        standing.slot.release(Word::live(standing.from));
    }
    None
}
