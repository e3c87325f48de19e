//! What became of a batch's items, as its door reads it.

use crate::doors::{Cause, Due, Intent, Problem};
use crate::engine::decision::{Decision, Reading};
use crate::engine::quota::QuotaError;
use crate::engine::time::Nanos;
use crate::policy::{Handle, Rendered, Request, ResolveError, RuleEffect, Unavailable};

use super::Batch;
use super::room::{Ask, Asked, AskedPart, Item, Settled};

/// What became of one of the requests of a check.
#[derive(Clone, Copy, Debug)]
pub enum PartOutcome<'a> {
    /// These limits were looked at; none if a rule answered, or if none knows the request.
    Decided {
        /// Their counters.
        readings: &'a [Reading],
        /// For each reading the index of its limit in the handle.
        limits: &'a [u16],
        /// What a rule made of it, if one did.
        rule: Option<RuleEffect>,
    },
    /// It does not fit the policy, and `when_unavailable` answered.
    Unresolved(&'a ResolveError),
    /// No decision was made.
    Undecided,
}

/// What became of an item.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// A check or peek was decided.
    Decided {
        /// How.
        decision: &'a Decision,
        /// Each charge's counter, in their order. None if a rule of the policy decided.
        readings: &'a [Reading],
        /// For each reading the index of its limit in the handle; none of an inline check.
        limits: &'a [u16],
    },
    /// No decision could be had, and `when_unavailable` lets the request pass.
    FailedOpen(&'a Problem),
    /// No decision could be had. Nothing was charged.
    Failed(&'a Problem),
    /// So many counters were amended; how they stand, if they were given inline.
    Amended(usize, &'a [Reading]),
    /// A permit was given back, and held so many units.
    Released(u64),
    /// A permit is kept for so long; `None`: it holds nothing any more.
    Renewed(Option<Nanos>),
    /// The lease asked for is outside its range.
    BadLease(&'a QuotaError),
    /// Not decided yet.
    Pending,
}

impl Batch {
    /// Of an item's requests the one that a denial was of.
    pub(super) fn concerned(&self, index: usize, due: Due) -> Option<&Asked> {
        match (&self.room.items.get(index)?.ask, due.cause) {
            (Ask::Together { parts, .. }, Cause::Rule(_)) => {
                let by_rule = |part: &&AskedPart| match &part.resolved {
                    Some(Ok((resolved, _))) => resolved.rule == Some(due.index),
                    _ => false,
                };
                let part = self.room.parts[parts.clone()].iter().find(by_rule)?;
                Some(&part.request)
            }
            _ => self.shown(index, due.place).map(|(asked, _)| asked),
        }
    }

    /// What became of a request of [`Batch::check_together`], by its place in it.
    pub fn part(&self, index: usize, part: usize) -> PartOutcome<'_> {
        let Some(Item { ask: Ask::Together { parts, .. }, outcome }) = self.room.items.get(index)
        else {
            return PartOutcome::Undecided;
        };
        let resolved =
            self.room.parts[parts.clone()].get(part).and_then(|part| part.resolved.as_ref());
        let (resolved, from) = match resolved {
            Some(Ok(resolved)) => resolved,
            Some(Err(error)) => return PartOutcome::Unresolved(error),
            None => return PartOutcome::Undecided,
        };
        let Settled::Decided { resolved: Some(all), limits, readings, .. } = outcome else {
            return PartOutcome::Undecided;
        };
        let rule = resolved.rule.and_then(|rule| {
            let handle = self.handle(index)?;
            Some(handle.rules().get(usize::from(rule))?.effect)
        });
        // A rule that denied the whole check leaves no readings.
        let count = if all.rule.is_some() { 0 } else { resolved.charges().len() };
        let limits = self.room.limits.get(limits + from..limits + from + count).unwrap_or_default();
        let readings =
            self.room.readings[readings.clone()].get(*from..from + count).unwrap_or_default();
        PartOutcome::Decided { readings, limits, rule }
    }

    /// What became of an item; indexes are those that asking returned.
    pub fn outcome(&self, index: usize) -> Outcome<'_> {
        match self.room.items.get(index).map(|item| &item.outcome) {
            Some(Settled::Decided { resolved, decision, limits, readings }) => {
                let count = if resolved.is_some() { readings.len() } else { 0 };
                let limits = self.room.limits.get(*limits..limits + count).unwrap_or_default();
                Outcome::Decided {
                    decision,
                    readings: &self.room.readings[readings.clone()],
                    limits,
                }
            }
            Some(Settled::FailedOpen(problem)) => Outcome::FailedOpen(problem),
            Some(Settled::Failed(problem)) => Outcome::Failed(problem),
            Some(Settled::Amended { counters, readings }) => {
                Outcome::Amended(*counters, &self.room.readings[readings.clone()])
            }
            Some(Settled::Released(units)) => Outcome::Released(*units),
            Some(Settled::Renewed(Ok(kept))) => Outcome::Renewed(*kept),
            Some(Settled::Renewed(Err(error))) => Outcome::BadLease(error),
            Some(Settled::Pending) | None => Outcome::Pending,
        }
    }

    /// The handle that an item asked, if it asked one.
    pub fn handle(&self, index: usize) -> Option<&Handle> {
        match &self.room.items.get(index)?.ask {
            Ask::Check { request, .. } | Ask::Amend { request, .. } => {
                self.loaded.policy.handle(request.handle)
            }
            Ask::Together { parts, .. } => {
                let part = self.room.parts.get(parts.start)?;
                self.loaded.policy.handle(part.request.handle)
            }
            _ => None,
        }
    }

    /// Writes the answer to a check of a handle in HTTP's terms. `None`: the item is no such check,
    /// or is not decided.
    pub fn render(&self, index: usize, out: &mut Rendered) -> Option<()> {
        let outcome = &self.room.items.get(index)?.outcome;
        let binding = match outcome {
            Settled::Decided { decision, .. } => decision.binding,
            _ => None,
        };
        let (request, _) = self.shown(index, binding)?;
        let handle = self.loaded.policy.handle(request.handle)?;
        match outcome {
            Settled::Decided { resolved: Some(resolved), decision, limits, readings } => {
                let limits = self.room.limits.get(*limits..limits + readings.len())?;
                let readings = &self.room.readings[readings.clone()];
                self.with_request(request, |request| {
                    handle.render(resolved, limits, request, decision, readings, out);
                });
            }
            Settled::FailedOpen(_) => handle.render_unavailable(Unavailable::Allow, out),
            Settled::Failed(_) => handle.render_unavailable(Unavailable::Deny, out),
            _ => return None,
        }
        Some(())
    }
    /// The request that an item's answer shows: of several the one whose charge binds, by its place
    /// among those of the check.
    pub(super) fn shown(&self, index: usize, binding: Option<usize>) -> Option<(&Asked, Intent)> {
        match &self.room.items.get(index)?.ask {
            Ask::Check { request, intent } => Some((request, *intent)),
            Ask::Together { parts, intent } => {
                let parts = &self.room.parts[parts.clone()];
                let binds = |part: &&AskedPart| match (&part.resolved, binding) {
                    (Some(Ok((resolved, from))), Some(binding)) => {
                        (*from..from + resolved.charges().len()).contains(&binding)
                    }
                    _ => false,
                };
                let part = parts.iter().find(binds).or(parts.first())?;
                Some((&part.request, *intent))
            }
            _ => None,
        }
    }

    pub(super) fn with_request<R>(&self, asked: &Asked, with: impl FnOnce(&Request<'_>) -> R) -> R {
        let values = self.room.values[asked.values.clone()].iter();
        let values: Vec<Option<&[u8]>> =
            values.map(|place| place.clone().map(|place| &self.room.bytes[place])).collect();
        with(&Request { values: &values, costs: &self.room.costs[asked.costs.clone()] })
    }
}
