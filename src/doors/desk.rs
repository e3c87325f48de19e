//! Where all doors ask: a request of a handle in, a decision out.
//!
//! A batch goes over the desk twice: first every request is resolved and its counters' cache
//! lines are fetched, then every request is decided.

mod passes;

mod acts;

use std::sync::{Arc, PoisonError};

use crate::engine::command::{Charge, Effect, LimitId};
use crate::engine::decision::{Decision, Reading, Refusal, Verdict};
use crate::engine::group::{NotOnce, Once, Undecided, check_once};
use crate::engine::session::{RequestId, SessionError};
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::{Now, UtcTime};
use crate::metrics::cells::{self, Protocol, Worker};
use crate::policy::{Handle, Request, ResolveError, Resolved, Scratch, Unavailable};

use super::docket::Docket;
use super::journal::{Cause, Due};
use super::{Instance, Loaded};

/// Whether a request is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// It is, if it is allowed.
    Charge,
    /// It is, if it is allowed and was not before under this id.
    ChargeOnce(RequestId),
    /// It only wants to know.
    Peek,
}

impl Intent {
    /// Whether the request is charged if it is allowed.
    pub fn charges(self) -> bool {
        self != Self::Peek
    }

    /// By which it is known if it is sent again.
    pub fn id(self) -> Option<RequestId> {
        match self {
            Self::ChargeOnce(id) => Some(id),
            Self::Charge | Self::Peek => None,
        }
    }
}

/// One thread's buffers for the requests that it resolves and decides.
pub struct Desk {
    /// What all doors share.
    pub instance: Arc<Instance>,
    /// This thread's counts.
    pub cells: Arc<Worker>,
    /// Charges of the batch's requests, one after the other.
    pub charges: Vec<Charge>,
    /// For each charge of a handle the index of its limit there.
    pub limits: Vec<u16>,
    /// Readings of the request decided last.
    pub readings: Vec<Reading>,
    /// What a cluster is asked, and what came of it; `None` where the table here decides.
    pub(super) docket: Option<Docket>,
    /// Whether a limit in shadow mode would have denied the request decided last.
    would_deny: bool,
    /// Counts that nobody sees, of passes that only collect.
    unseen: Option<Arc<Worker>>,
    scratch: Scratch,
    /// By which moment the batch's calendar windows are found, once one was needed.
    moment: Option<UtcTime>,
}

/// How a request of a handle was answered.
#[derive(Clone, Copy, Debug)]
pub enum Answered {
    /// By a decision; the desk has its readings.
    Decided(Decision),
    /// By the limits' `when_unavailable`, which let it pass: no decision could be had.
    FailedOpen(Problem),
}

/// Why a request got no decision. Nothing was charged.
#[derive(Clone, Copy, Debug)]
pub enum Problem {
    /// What it said of itself does not fit the policy.
    Resolve(ResolveError),
    /// The engine refused.
    Refused(Refusal),
    /// The cluster did not decide.
    Undecided(Undecided),
    /// Its request id cannot be judged.
    BadId(SessionError),
}

impl From<NotOnce> for Problem {
    fn from(not: NotOnce) -> Self {
        match not {
            NotOnce::Refused(refusal) => Self::Refused(refusal),
            NotOnce::BadId(error) => Self::BadId(error),
        }
    }
}

impl Desk {
    /// An empty desk for one thread of the binary door.
    pub fn new(instance: Arc<Instance>) -> Self {
        Self::of(Protocol::Binary, instance)
    }

    /// An empty desk for one thread of the door that speaks `protocol`.
    pub fn of(protocol: Protocol, instance: Arc<Instance>) -> Self {
        let cells = instance.cells.worker(protocol);
        Self {
            instance,
            cells,
            charges: Vec::new(),
            limits: Vec::new(),
            readings: Vec::new(),
            docket: None,
            would_deny: false,
            unseen: None,
            scratch: Scratch::default(),
            moment: None,
        }
    }

    /// Forgets the last batch.
    pub fn clear(&mut self) {
        self.charges.clear();
        self.limits.clear();
        self.moment = self.docket.as_ref().and_then(|docket| docket.moment);
    }

    /// Resolves a request into the batch's charges, and begins to fetch their counters.
    ///
    /// # Errors
    /// See [`ResolveError`].
    #[inline]
    pub fn resolve(
        &mut self,
        loaded: &Loaded,
        pinned: &Pinned<'_>,
        handle: &Handle,
        request: &Request<'_>,
    ) -> Result<Resolved, ResolveError> {
        let context = loaded.context(self.moment(loaded, handle));
        let Self { scratch, charges, limits, .. } = self;
        let resolved = handle.resolve(request, &context, scratch, charges, limits)?;
        for charge in &self.charges[resolved.charges()] {
            pinned.prefetch(charge.key);
        }
        Ok(resolved)
    }

    /// As [`Desk::resolve`], on some limits only: see [`Handle::resolve_named`].
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn resolve_named(
        &mut self,
        loaded: &Loaded,
        pinned: &Pinned<'_>,
        handle: &Handle,
        named: &[u16],
        request: &Request<'_>,
    ) -> Result<Resolved, ResolveError> {
        let context = loaded.context(self.moment(loaded, handle));
        let Self { scratch, charges, limits, .. } = self;
        let resolved = handle.resolve_named(named, request, &context, scratch, charges, limits)?;
        for charge in &self.charges[resolved.charges()] {
            pinned.prefetch(charge.key);
        }
        Ok(resolved)
    }

    /// The moment for limits that follow a calendar, and for overrides that end. A charge knows the
    /// window of this moment and the one after it, so the check itself may come later.
    #[inline]
    fn moment(&mut self, loaded: &Loaded, handle: &Handle) -> UtcTime {
        if !handle.follows_calendar() && !loaded.has_overrides() {
            return UtcTime::default();
        }
        *self.moment.get_or_insert_with(|| self.instance.clock.now().utc)
    }

    /// Whether something denied the request decided last, or would have: then
    /// [`Desk::denials_due`] knows whether to tell of it.
    #[inline]
    pub fn has_denials(&self, decision: &Decision) -> bool {
        decision.verdict == Verdict::Deny || self.would_deny
    }

    /// Of what denied the request decided last, and of the limits in shadow mode that would have,
    /// each of which it is time to tell.
    pub fn denials_due(
        &self,
        handle: &Handle,
        resolved: &Resolved,
        decision: &Decision,
        mut tell: impl FnMut(Due),
    ) {
        let now = decision.now.time;
        let mut tell_if_due = |due: Due| {
            if self.instance.journal.is_due(due.cause, now) {
                tell(due);
            }
        };
        let (charges, limits) =
            (&self.charges[resolved.charges()], &self.limits[resolved.limits()]);
        let at = |place: usize| Some((charges.get(place)?.limit, *limits.get(place)?));
        if decision.verdict == Verdict::Deny {
            match (resolved.rule, decision.binding) {
                // The pass that only collects is not the one that answers.
                (Some(_), _) if self.is_collecting() => {}
                (Some(index), _) => {
                    if let Some(rule) = handle.rules().get(usize::from(index)) {
                        tell_if_due(Due { cause: Cause::Rule(rule.number), index, place: None });
                    }
                }
                (None, place) => {
                    if let Some((limit, index)) = place.and_then(at) {
                        tell_if_due(Due { cause: Cause::Limit(limit), index, place });
                    }
                }
            }
        }
        if self.would_deny {
            let readings = self.readings.iter().enumerate();
            for (place, _) in readings.filter(|(_, of)| !of.fits && of.effect == Effect::Shadow) {
                if let Some((limit, index)) = at(place) {
                    let cause = Cause::Shadow(limit);
                    tell_if_due(Due { cause, index, place: Some(place) });
                }
            }
        }
    }

    /// Takes in a charge that was resolved elsewhere, of the limit with this index in its handle.
    pub fn take(&mut self, charge: Charge, limit_index: u16) -> Resolved {
        let resolved = Resolved::one(self.charges.len(), self.limits.len());
        self.charges.push(charge);
        self.limits.push(limit_index);
        resolved
    }

    /// Decides a resolved request and counts it.
    ///
    /// # Errors
    /// The engine's refusal, if the limits do not say to let such requests pass.
    #[inline]
    pub fn decide<F: FnMut() -> Now>(
        &mut self,
        pinned: &Pinned<'_>,
        api: usize,
        handle: &Handle,
        resolved: &Resolved,
        intent: Intent,
        stamp: &mut Stamp<F>,
    ) -> Result<Answered, Problem> {
        self.would_deny = false;
        if let Some(decision) = handle.ruled(resolved, stamp.now()) {
            self.readings.clear();
            if intent.charges() {
                self.count(api, resolved, &decision);
                let rule = resolved.rule.and_then(|rule| handle.rules().get(usize::from(rule)));
                if let Some(rule) = rule {
                    self.cells.rule(rule.number).add(1);
                }
            }
            return Ok(Answered::Decided(decision));
        }
        match self.judge(pinned, resolved.charges(), intent, stamp) {
            Ok(Once::First(decision)) => {
                if intent.charges() {
                    self.count(api, resolved, &decision);
                }
                Ok(Answered::Decided(decision))
            }
            Ok(Once::Again(decision)) => {
                self.cells.check(api, cells::Outcome::Allow);
                Ok(Answered::Decided(decision))
            }
            Err(problem @ Problem::BadId(_)) => Err(problem),
            Err(problem) => self.refused(api, handle, resolved, intent, problem),
        }
    }

    /// Decides some charges, here or by the cluster.
    #[inline]
    fn judge<F: FnMut() -> Now>(
        &mut self,
        pinned: &Pinned<'_>,
        charges: core::ops::Range<usize>,
        intent: Intent,
        stamp: &mut Stamp<F>,
    ) -> Result<Once, Problem> {
        if self.docket.is_some() && intent.charges() {
            return self.ask_cluster(pinned, charges, intent.id(), stamp);
        }
        let charges = &self.charges[charges];
        match intent {
            Intent::Charge => pinned.check(charges, stamp, &mut self.readings),
            Intent::Peek => pinned.peek(charges, stamp, &mut self.readings),
            Intent::ChargeOnce(id) => {
                // Locked until it is done, so that the same request on another connection waits
                // for this one.
                let sessions = self.instance.sessions.lock();
                let mut sessions = sessions.unwrap_or_else(PoisonError::into_inner);
                let readings = &mut self.readings;
                return Ok(check_once(pinned, &mut sessions, charges, id, stamp, readings)?);
            }
        }
        .map(Once::First)
        .map_err(Problem::Refused)
    }

    /// Decides a check of one charge and counts it. `None` leaves it to [`Desk::decide`]: nothing
    /// has been charged then.
    #[inline]
    pub fn decide_one<F: FnMut() -> Now>(
        &self,
        pinned: &Pinned<'_>,
        api: usize,
        charge: &Charge,
        stamp: &mut Stamp<F>,
    ) -> Option<Reading> {
        let reading = pinned.check_one(charge, stamp).ok()?;
        let cells = self.cells.limit(charge.limit.0);
        if reading.fits {
            self.cells.check(api, cells::Outcome::Allow);
            cells.allow.add(1);
            cells.units.add(charge.cost);
        } else {
            self.cells.check(api, cells::Outcome::Deny);
            cells.deny.add(1);
        }
        Some(reading)
    }

    #[inline]
    fn count(&mut self, api: usize, resolved: &Resolved, decision: &Decision) {
        let outcome = match decision.verdict {
            Verdict::Allow if resolved.unmatched => cells::Outcome::Unmatched,
            Verdict::Allow => cells::Outcome::Allow,
            Verdict::Deny => cells::Outcome::Deny,
        };
        self.cells.check(api, outcome);
        for (charge, reading) in self.charges[resolved.charges()].iter().zip(&self.readings) {
            let cells = self.cells.limit(charge.limit.0);
            match (reading.fits, reading.effect) {
                (true, _) => cells.allow.add(1),
                (false, Effect::Enforce) => cells.deny.add(1),
                (false, Effect::Shadow) => {
                    cells.shadow_deny.add(1);
                    self.would_deny = true;
                }
            }
            if decision.verdict == Verdict::Allow && reading.fits {
                cells.units.add(charge.cost);
            }
        }
    }

    #[cold]
    fn refused(
        &mut self,
        api: usize,
        handle: &Handle,
        resolved: &Resolved,
        intent: Intent,
        problem: Problem,
    ) -> Result<Answered, Problem> {
        if self.is_collecting() {
            return Err(problem);
        }
        let limits = self.limits[resolved.limits()].iter();
        let denies = limits
            .filter_map(|&index| handle.limits().get(usize::from(index)))
            .any(|limit| limit.when_unavailable == Unavailable::Deny);
        if intent.charges() {
            self.cells.check(api, cells::Outcome::Unavailable);
        }
        if denies { Err(problem) } else { Ok(Answered::FailedOpen(problem)) }
    }

    /// Hands over a denial by an inline limit, if it is time to.
    #[inline]
    fn tell_inline(&self, decision: &Decision) {
        let journal = &self.instance.journal;
        if decision.verdict == Verdict::Deny
            && journal.is_due(Cause::Limit(LimitId::INLINE), decision.now.time)
            && let Some(reading) = decision.binding.and_then(|place| self.readings.get(place))
        {
            journal.denied_inline(reading);
        }
    }

    /// Counts a request that was answered with an error.
    #[cold]
    pub fn count_error(&self, api: usize) {
        self.cells.check(api, cells::Outcome::Error);
    }

    /// Decides a request of inline limits, `charges` of the batch, and counts it.
    ///
    /// # Errors
    /// The engine's refusal, or why the cluster did not decide.
    pub fn decide_inline<F: FnMut() -> Now>(
        &mut self,
        pinned: &Pinned<'_>,
        charges: core::ops::Range<usize>,
        intent: Intent,
        stamp: &mut Stamp<F>,
    ) -> Result<Decision, Problem> {
        let decision = match self.judge(pinned, charges.clone(), intent, stamp)? {
            Once::First(decision) => decision,
            Once::Again(decision) => return Ok(decision),
        };
        let charges = &self.charges[charges];
        if intent.charges() {
            let cells = self.cells.limit(LimitId::INLINE.0);
            let count = match decision.verdict {
                Verdict::Allow => &cells.allow,
                Verdict::Deny => &cells.deny,
            };
            count.add(1);
            if decision.verdict == Verdict::Allow {
                cells.units.add(charges.iter().map(|charge| charge.cost).sum());
            }
            self.tell_inline(&decision);
        }
        Ok(decision)
    }
}
