//! A request to charges: which limits apply, which counter of each, how many units.
//!
//! This runs for every check. It allocates nothing once its buffers have grown, and hashes nothing
//! but key values.

use core::fmt;
use core::ops::Range;

use crate::engine::command::{CHARGES_MAX, Charge, Effect};
use crate::engine::key::{Key, Subject};
use crate::engine::kinds::Boundaries;
use crate::engine::quota::{Quota, UNITS_MAX};
use crate::engine::time::UtcTime;

use super::calendar::{CalendarCache, NoWindow};
use super::facts::Facts;
use super::handle::{Handle, Limit, Mode, RuleEffect, Unavailable};
use super::key::{self, Bad};
use super::maxima::{PATH_BYTES_MAX, VALUE_BYTES_MAX};
use super::overrides::Overrides;
use super::route;
use super::short::is_same;
use super::subject::Identities;

/// A request in the terms of a handle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// A value for each slot, in the order of [`Handle::slots`]; those past the end are missing.
    pub values: &'a [Option<&'a [u8]>],
    /// An amount for each meter, in the order of [`Handle::meters`]; past the end it is 1 for the
    /// meter `requests` and 0 for any other.
    pub costs: &'a [u64],
}

impl<'a> Request<'a> {
    pub(super) fn value(&self, slot: u16) -> Option<&'a [u8]> {
        self.values.get(usize::from(slot)).copied().flatten()
    }
}

/// A request that is checked together with others of its handle.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The request.
    pub request: Request<'a>,
    /// On which limits, by their indexes in [`Handle::limits`], whatever else would apply; `None`:
    /// on all that do.
    pub limits: Option<&'a [u16]>,
}

/// What a request is resolved by beside the policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The moment, for limits that follow a calendar. A charge knows the calendar window of this
    /// moment and the one after it.
    pub now: UtcTime,
    /// Which accounts the identities that requests bring belong to.
    pub identities: Option<&'a Identities>,
    /// Limits that differ from the policy for some keys.
    pub overrides: Option<&'a Overrides>,
}

impl Context<'_> {
    /// A moment, without identities and overrides.
    pub const fn at(now: UtcTime) -> Self {
        Self { now, identities: None, overrides: None }
    }
}

/// Buffers that one thread reuses for all its requests.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    pub(super) path: Vec<u8>,
    pub(super) matched: Vec<u64>,
    pub(super) calendars: CalendarCache,
}

/// Where a request's charges and limits were appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    charges_at: usize,
    limits_at: usize,
    count: usize,
    /// Whether no limit of the policy knows the request, not even one that is off. It is allowed.
    pub unmatched: bool,
    /// Index in [`Handle::rules`] of the rule that answers the request. There are no charges then,
    /// and the engine is not asked: see [`Handle::ruled`].
    pub rule: Option<u16>,
    /// The customer's tier, where it was looked at.
    pub(super) tier: Option<u16>,
}

impl Resolved {
    /// One charge at these places.
    pub fn one(charges_at: usize, limits_at: usize) -> Self {
        Self { charges_at, limits_at, count: 1, unmatched: false, rule: None, tier: None }
    }

    /// The request's part of the charges.
    pub fn charges(&self) -> Range<usize> {
        self.charges_at..self.charges_at + self.count
    }

    /// The request's part of the limit indexes, one for each charge and in the same order.
    pub fn limits(&self) -> Range<usize> {
        self.limits_at..self.limits_at + self.count
    }
}

/// Why a request has no charges. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// Caller: a value that is missing or too long.
    BadAttribute {
        /// Index in [`Handle::limits`] of the limit that needs it; `None`: routing does.
        limit: Option<u16>,
        /// Index in [`Handle::slots`].
        slot: u16,
        /// What was found instead.
        found: Found,
        /// What to answer; `deny` if any of the limits concerned says so.
        when_unavailable: Unavailable,
    },
    /// Caller: a cost above [`UNITS_MAX`].
    CostTooLarge {
        /// Index in [`Handle::limits`].
        limit: u16,
        /// The amount that was given for its meter.
        found: u64,
    },
    /// Operator: more limits apply to one request than the engine decides at once.
    TooManyLimits {
        /// How many.
        found: usize,
    },
}

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is not there.
    Missing,
    /// It is there and cannot be: no tier of the API, no address, no time zone.
    Unfit,
    /// It is too long.
    TooLong {
        /// Its length.
        bytes: usize,
        /// The longest allowed.
        bytes_max: usize,
    },
}

impl ResolveError {
    /// The error in words, with the names that `handle` gives to its numbers.
    pub fn describe<'a>(&'a self, handle: &'a Handle) -> impl fmt::Display + 'a {
        Described { error: self, handle }
    }
}

struct Described<'a> {
    error: &'a ResolveError,
    handle: &'a Handle,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit_name = |index: u16| {
            self.handle.limits.get(usize::from(index)).map_or("?", |limit| &*limit.name)
        };
        match *self.error {
            ResolveError::BadAttribute { limit, slot, found, .. } => {
                let name = self.handle.slots.get(usize::from(slot)).map_or("?", |slot| &*slot.name);
                match found {
                    Found::Missing => write!(f, "attribute `{name}` is missing")?,
                    Found::Unfit => {
                        write!(f, "attribute `{name}` has a value that is not allowed")?
                    }
                    Found::TooLong { bytes, bytes_max } => {
                        write!(f, "attribute `{name}` has {bytes} bytes, allowed are {bytes_max}")?;
                    }
                }
                match limit {
                    Some(limit) => write!(f, "; limit `{}` needs it", limit_name(limit)),
                    None => write!(f, "; routing needs it"),
                }
            }
            ResolveError::CostTooLarge { limit, found } => write!(
                f,
                "an amount of {found} costs more than {UNITS_MAX} units of limit `{}`",
                limit_name(limit)
            ),
            ResolveError::TooManyLimits { found } => {
                write!(f, "{found} limits apply to the request, allowed are {CHARGES_MAX}")
            }
        }
    }
}

impl Handle {
    /// Appends the charges of a request to `charges`, ordered by limit name, and for each the
    /// index of its limit in [`Handle::limits`] to `limits`. A rule may answer the request
    /// instead: see [`Resolved::rule`].
    ///
    /// # Errors
    /// See [`ResolveError`]; nothing is appended then.
    #[inline]
    pub fn resolve(
        &self,
        request: &Request<'_>,
        context: &Context<'_>,
        scratch: &mut Scratch,
        charges: &mut Vec<Charge>,
        limits: &mut Vec<u16>,
    ) -> Result<Resolved, ResolveError> {
        let (charges_at, limits_at) = (charges.len(), limits.len());
        let mut resolved =
            Resolved { charges_at, limits_at, count: 0, unmatched: true, rule: None, tier: None };
        match self.append(request, context, scratch, charges, limits, &mut resolved) {
            Ok(()) if charges.len() - charges_at <= CHARGES_MAX => {
                resolved.count = charges.len() - charges_at;
                Ok(resolved)
            }
            result => {
                let found = charges.len() - charges_at;
                charges.truncate(charges_at);
                limits.truncate(limits_at);
                Err(result.err().unwrap_or(ResolveError::TooManyLimits { found }))
            }
        }
    }

    #[inline]
    fn append(
        &self,
        request: &Request<'_>,
        context: &Context<'_>,
        scratch: &mut Scratch,
        charges: &mut Vec<Charge>,
        limits: &mut Vec<u16>,
        resolved: &mut Resolved,
    ) -> Result<(), ResolveError> {
        let Scratch { path, matched, calendars } = scratch;
        let facts = self.facts(request, context, path, matched)?;
        resolved.tier = facts.tier;
        resolved.rule = self.rule_for(&facts);
        if resolved.rule.is_some() {
            resolved.unmatched = false;
            return Ok(());
        }
        let mut memo = Memo::new(calendars);
        let row = self.ready.of_tier(facts.tier);
        for (index, asks) in self.reach.limits(facts.matched) {
            let Some(limit) = self.limits.get(index) else { break };
            if asks && !limit.applies(&facts) {
                continue;
            }
            if let Some(ready) = row.get(index)
                && ready.append_to(charges, limit, &facts, context, &mut memo)
            {
                resolved.unmatched = false;
                limits.push(index as u16);
                continue;
            }
            match limit.terms(&facts, context, &mut memo) {
                Ok(Some(terms)) => charges.push(terms.charge(limit)),
                // Tables leave out this request, which nobody else may know then.
                Ok(None) if limit.mode != Mode::Off => continue,
                Ok(None) => {
                    resolved.unmatched = false;
                    continue;
                }
                Err(Wrong::Value(_)) => {
                    resolved.unmatched = false;
                    self.without_value(limit, &facts, context, memo.calendars)?;
                    continue;
                }
                Err(Wrong::Cost(found)) => {
                    return Err(ResolveError::CostTooLarge { limit: index as u16, found });
                }
            }
            resolved.unmatched = false;
            limits.push(index as u16);
        }
        Ok(())
    }

    /// Appends the charges of a request on some limits only, by their indexes in
    /// [`Handle::limits`], whatever else would apply and whichever requests these are for: the
    /// caller has picked them. The rules still come first. Method and path may both be missing.
    ///
    /// # Errors
    /// See [`ResolveError`]; nothing is appended then.
    pub fn resolve_named(
        &self,
        named: &[u16],
        request: &Request<'_>,
        context: &Context<'_>,
        scratch: &mut Scratch,
        charges: &mut Vec<Charge>,
        limits: &mut Vec<u16>,
    ) -> Result<Resolved, ResolveError> {
        let (charges_at, limits_at) = (charges.len(), limits.len());
        let Scratch { path, matched, calendars } = scratch;
        let is_routed = (0..2).any(|slot| request.value(slot).is_some());
        let facts = match is_routed {
            true => self.facts(request, context, path, matched)?,
            false => self.subject_facts(request, context),
        };
        let rule = self.rule_for(&facts);
        let of = if rule.is_some() { &[] } else { named };
        let mut memo = Memo::new(calendars);
        for (index, limit) in of.iter().filter_map(|at| Some((at, self.limits.get(*at as usize)?)))
        {
            let error = match limit.terms(&facts, context, &mut memo) {
                Ok(Some(terms)) => {
                    charges.push(terms.charge(limit));
                    limits.push(*index);
                    continue;
                }
                Ok(None) => continue,
                Err(Wrong::Value(bad)) if limit.lets_pass(bad.1) => continue,
                Err(Wrong::Value((slot, found))) => {
                    let when_unavailable = limit.when_unavailable;
                    ResolveError::BadAttribute {
                        limit: Some(*index),
                        slot,
                        found,
                        when_unavailable,
                    }
                }
                Err(Wrong::Cost(found)) => ResolveError::CostTooLarge { limit: *index, found },
            };
            charges.truncate(charges_at);
            limits.truncate(limits_at);
            return Err(error);
        }
        let count = charges.len() - charges_at;
        Ok(Resolved { charges_at, limits_at, count, unmatched: false, rule, tier: facts.tier })
    }

    /// Several requests of this handle as one check, whose charges were appended one after the
    /// other. A rule that denies any of them answers for all; one that lets a request pass takes
    /// nothing from the others.
    pub fn join(&self, parts: impl IntoIterator<Item = Resolved>) -> Option<Resolved> {
        let denies = |rule: u16| {
            let rule = self.rules.get(usize::from(rule));
            rule.is_some_and(|rule| rule.effect == RuleEffect::Deny)
        };
        parts.into_iter().reduce(|all, part| Resolved {
            charges_at: all.charges_at,
            limits_at: all.limits_at,
            count: all.count + part.count,
            unmatched: all.unmatched && part.unmatched,
            rule: match (all.rule, part.rule) {
                (Some(rule), _) | (_, Some(rule)) if denies(rule) => Some(rule),
                (Some(rule), Some(_)) => Some(rule),
                _ => None,
            },
            tier: all.tier.or(part.tier),
        })
    }

    /// What to make of a limit that lacks a value of the request: nothing if it lets such requests
    /// opt out, else the error, of all limits that lack one the one that says `deny`.
    #[cold]
    fn without_value(
        &self,
        limit: &Limit,
        facts: &Facts<'_>,
        context: &Context<'_>,
        calendars: &mut CalendarCache,
    ) -> Result<(), ResolveError> {
        let mut memo = Memo::new(calendars);
        let mut lacks = |limit: &Limit| match limit.charge(facts, context, &mut memo) {
            Err(Wrong::Value(bad)) if !limit.lets_pass(bad.1) => Some(bad),
            _ => None,
        };
        if lacks(limit).is_none() {
            return Ok(());
        }
        let mut worst = None;
        for (index, limit) in self.limits.iter().enumerate() {
            let Some((slot, found)) = lacks(limit).filter(|_| limit.applies(facts)) else {
                continue;
            };
            let when_unavailable = limit.when_unavailable;
            if worst.as_ref().is_none_or(|&(_, _, _, known)| when_unavailable > known) {
                worst = Some((index as u16, slot, found, when_unavailable));
            }
        }
        let Some((limit, slot, found, when_unavailable)) = worst else { return Ok(()) };
        Err(ResolveError::BadAttribute { limit: Some(limit), slot, found, when_unavailable })
    }

    /// What is known of the request before any limit is looked at.
    #[inline]
    pub(super) fn facts<'f>(
        &'f self,
        request: &Request<'f>,
        context: &Context<'f>,
        path: &'f mut Vec<u8>,
        matched: &'f mut Vec<u64>,
    ) -> Result<Facts<'f>, ResolveError> {
        let mut facts = self.unrouted(request);
        if let Some(router) = &self.router {
            let method = self.route_value(request, 0, VALUE_BYTES_MAX)?;
            facts.method = if method == b"HEAD" { b"GET" } else { method };
            facts.path = route::normalize(self.route_value(request, 1, PATH_BYTES_MAX)?, path);
            router.matches(method, facts.path, matched);
            facts.matched = matched;
        }
        if self.tier_slot.is_some() || self.account.is_some() {
            self.find_subject(request, context, &mut facts);
        }
        Ok(facts)
    }

    /// What is known of the subject of a request, without its route.
    pub(super) fn subject_facts<'f>(
        &'f self,
        request: &Request<'f>,
        context: &Context<'f>,
    ) -> Facts<'f> {
        let mut facts = self.unrouted(request);
        self.find_subject(request, context, &mut facts);
        facts
    }

    #[inline]
    pub(super) fn unrouted<'f>(&'f self, request: &Request<'f>) -> Facts<'f> {
        Facts {
            request: *request,
            matched: self.known.bits(),
            method: &[],
            path: &[],
            tier: None,
            tier_name: None,
            says_tier: false,
            account_slot: None,
            account: None,
        }
    }

    /// Whose request it is: an account, by itself or by one of its identities, and its tier.
    fn find_subject<'f>(
        &'f self,
        request: &Request<'f>,
        context: &Context<'f>,
        facts: &mut Facts<'f>,
    ) {
        let mut tier = self.tier_slot.and_then(|slot| request.value(slot));
        if let Some(slots) = &self.account {
            facts.account_slot = Some(slots.account);
            facts.account = request.value(slots.account);
            let identity = context.identities.filter(|_| facts.account.is_none() || tier.is_none());
            let found = identity.and_then(|identities| {
                slots.identities.iter().find_map(|(slot, name)| {
                    identities.find(&self.api, name, request.value(*slot)?)
                })
            });
            if let Some(found) = found {
                // What the gateway says of the subject counts before what is on record.
                if facts.account.is_none() {
                    facts.account = Some(found.account.as_bytes());
                }
                if facts.account == Some(found.account.as_bytes()) {
                    tier = tier.or(found.tier.as_deref().map(str::as_bytes));
                }
            }
        }
        facts.says_tier = tier.is_some();
        facts.tier = match tier {
            Some(name) => self.tier_named(name),
            None => self.tier_default,
        };
        let tier = facts.tier.and_then(|tier| self.tiers.get(usize::from(tier)));
        facts.tier_name = tier.map(|tier| tier.name.as_bytes());
    }

    fn tier_named(&self, name: &[u8]) -> Option<u16> {
        let place = self.tiers.iter().position(|tier| is_same(tier.name.as_bytes(), name));
        place.map(|place| place as u16)
    }

    /// The tier that a request says, or the one that counts for those that say none.
    pub(super) fn tier_of(&self, request: &Request<'_>) -> Option<u16> {
        match request.value(self.tier_slot?) {
            Some(name) => self.tier_named(name),
            None => self.tier_default,
        }
    }

    /// The rule that answers the request, if one does.
    #[inline]
    pub(super) fn rule_for(&self, facts: &Facts<'_>) -> Option<u16> {
        let fits = |(when, unless): &(Option<super::matcher::Matcher>, super::matcher::Matcher)| {
            when.as_ref().is_none_or(|when| when.holds(facts)) && !unless.holds(facts)
        };
        self.rule_matchers.iter().position(fits).map(|index| index as u16)
    }

    fn route_value<'r>(
        &self,
        request: &Request<'r>,
        slot: u16,
        bytes_max: usize,
    ) -> Result<&'r [u8], ResolveError> {
        let found = match request.value(slot) {
            Some(value) if value.len() <= bytes_max => return Ok(value),
            Some(value) => Found::TooLong { bytes: value.len(), bytes_max },
            None => Found::Missing,
        };
        let when_unavailable = self.when_unavailable;
        Err(ResolveError::BadAttribute { limit: None, slot, found, when_unavailable })
    }
}

/// The meter that a check charges if it does not say: 1 a check.
pub(super) const REQUESTS: &str = "requests";

/// What limits find out of one request that others of them ask again.
pub(super) struct Memo<'c> {
    calendars: &'c mut CalendarCache,
    /// The subject last hashed, with the number of those that count by the same values.
    subject: Option<(u16, Subject)>,
    /// The calendar window last found, with what tells it from others.
    window: Option<(u64, Boundaries)>,
}

impl<'c> Memo<'c> {
    pub(super) fn new(calendars: &'c mut CalendarCache) -> Self {
        Self { calendars, subject: None, window: None }
    }

    /// Whom a limit counts; `None` if a value is wrong. `number` is its [`Limit::subject`], which comes
    /// beside it so that what is known needs no look at the limit.
    #[inline]
    pub(super) fn subject(
        &mut self,
        number: u16,
        limit: &Limit,
        facts: &Facts<'_>,
    ) -> Option<Subject> {
        if let Some((known, subject)) = self.subject
            && known == number
        {
            return Some(subject);
        }
        self.hash_subject(number, limit, facts)
    }

    #[inline(never)]
    fn hash_subject(&mut self, number: u16, limit: &Limit, facts: &Facts<'_>) -> Option<Subject> {
        let subject = key::subject(&limit.space, &limit.per, facts)?;
        self.subject = Some((number, subject));
        Some(subject)
    }

    /// Where a limit's window lies at `now`, which is the same for all limits of a request; `None` if
    /// it follows no calendar. `spec` is [`CalendarWindow::spec`], beside the limit for the same reason.
    ///
    /// [`CalendarWindow::spec`]: super::calendar::CalendarWindow::spec
    #[inline]
    pub(super) fn window(
        &mut self,
        spec: u64,
        limit: &Limit,
        facts: &Facts<'_>,
        now: UtcTime,
    ) -> Option<Result<Boundaries, NoWindow>> {
        if let Some((known, window)) = self.window
            && known == spec
        {
            return Some(Ok(window));
        }
        self.find_window(spec, limit, facts, now)
    }

    #[inline(never)]
    fn find_window(
        &mut self,
        spec: u64,
        limit: &Limit,
        facts: &Facts<'_>,
        now: UtcTime,
    ) -> Option<Result<Boundaries, NoWindow>> {
        let window = limit.calendar.as_ref()?.at(facts, now, self.calendars);
        self.window = window.ok().map(|window| (spec, window));
        Some(window)
    }
}

/// Why a limit has no charge for a request.
pub(super) enum Wrong {
    Value(Bad),
    Cost(u64),
}

/// Units that a request takes for an amount of the meter, of which one costs `each`; `unasked` if it
/// says none. Fails with the amount that costs more than may be.
#[inline]
pub(super) fn cost_of(amount: Option<&u64>, each: u64, unasked: u64) -> Result<u64, u64> {
    let Some(amount) = amount else { return Ok(unasked) };
    amount.checked_mul(each).filter(|cost| *cost <= UNITS_MAX).ok_or(*amount)
}

/// What a limit takes of one request.
struct Terms {
    key: Key,
    quota: Quota,
    /// Where the window lies, of a quota that follows a calendar.
    window: Option<Boundaries>,
    cost: u64,
    effect: Effect,
}

impl Terms {
    /// The charge, in its window.
    fn charge(&self, limit: &Limit) -> Charge {
        let Self { key, mut quota, cost, effect, window } = *self;
        if let (Some(window), Quota::Calendar(calendar)) = (window, &mut quota) {
            calendar.move_to(window);
        }
        Charge { key, quota, cost, limit: limit.id, effect, on: limit.charge_on }
    }
}

impl Limit {
    #[inline]
    pub(super) fn applies(&self, facts: &Facts<'_>) -> bool {
        self.on.as_ref().is_none_or(|on| on.holds(facts)) && !self.except.holds(facts)
    }

    /// The charge for a request to which the limit applies, by its [`Limit::terms`].
    pub(super) fn charge(
        &self,
        facts: &Facts<'_>,
        context: &Context<'_>,
        memo: &mut Memo<'_>,
    ) -> Result<Option<Charge>, Wrong> {
        Ok(self.terms(facts, context, memo)?.map(|terms| terms.charge(self)))
    }

    /// What the limit takes of a request to which it applies; `None` if it is off, or if its tables
    /// have no value for the request.
    fn terms(
        &self,
        facts: &Facts<'_>,
        context: &Context<'_>,
        memo: &mut Memo<'_>,
    ) -> Result<Option<Terms>, Wrong> {
        let overrides = context.overrides.filter(|overrides| overrides.touches(self.id));
        if self.mode == Mode::Off {
            let Some(overrides) = overrides else { return Ok(None) };
            if !self.is_turned_on(overrides, facts, context.now) {
                return Ok(None);
            }
        }
        let bad_tier = |_| Wrong::Value(facts.bad_tier(self.tier_slot));
        let Some(Some(quota)) = self.quotas.find(facts).map_err(bad_tier)? else {
            return Ok(None);
        };
        let mut quota = quota;
        let key = match quota {
            // There is no counter and nothing else that asks for its key.
            Quota::Cap(_) if self.per.is_empty() && overrides.is_none() => Key::NONE,
            _ => match memo.subject(self.subject, self, facts) {
                Some(subject) => self.space.key(subject),
                None => {
                    let bad = self.per.iter().find_map(|part| part.bad(facts));
                    return Err(Wrong::Value(bad.unwrap_or((0, Found::Missing))));
                }
            },
        };
        let mut effect = self.effect();
        if let Some(overrides) = overrides
            && let Some(found) = overrides.find(self.id, key, context.now)
        {
            quota = found.quota.as_ref().unwrap_or(quota);
            match found.mode {
                Some(Mode::Off) => return Ok(None),
                Some(Mode::Shadow) => effect = Effect::Shadow,
                Some(Mode::Enforce) => effect = Effect::Enforce,
                None => {}
            }
        }
        let mut window = None;
        if let (Quota::Calendar(_), Some(calendar)) = (quota, &self.calendar) {
            window = match memo.window(calendar.spec, self, facts, context.now) {
                Some(Err(NoWindow::Missing(slot))) => {
                    return Err(Wrong::Value((slot, Found::Missing)));
                }
                Some(Err(NoWindow::Unfit(slot))) => return Err(Wrong::Value((slot, Found::Unfit))),
                // The engine refuses what lies past all windows, and `when_unavailable` answers.
                Some(Err(NoWindow::Past)) | None => None,
                Some(Ok(at)) => Some(at),
            };
        }
        let each = self.costs.find(facts).map_err(bad_tier)?.copied().unwrap_or(1);
        let amount = facts.request.costs.get(usize::from(self.meter));
        let cost = cost_of(amount, each, self.unasked_cost(each)).map_err(Wrong::Cost)?;
        Ok(Some(Terms { key, quota: *quota, window, cost, effect }))
    }

    /// Whether an override has the limit in force for this request, though the policy has it off.
    #[cold]
    fn is_turned_on(&self, overrides: &Overrides, facts: &Facts<'_>, now: UtcTime) -> bool {
        let found = self.key(facts).and_then(|key| overrides.find(self.id, key, now));
        found.is_some_and(|found| matches!(found.mode, Some(Mode::Enforce | Mode::Shadow)))
    }

    /// Whether a request without one of the limit's values passes it by. A limit that decides
    /// nothing cannot make a request wrong.
    pub(super) fn lets_pass(&self, found: Found) -> bool {
        self.mode == Mode::Shadow || (self.skip_missing && found == Found::Missing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::examples::EXAMPLES;
    use super::super::{BUILT_IN, Policy, Source};
    use super::*;
    use crate::engine::key::Seed;

    fn policy(text: &str) -> Policy {
        match Policy::compile(&[Source { name: "p.toml", text }], &Seed::new([7; 16])) {
            Ok(policy) => policy,
            Err(errors) => panic!("{errors}"),
        }
    }

    const NOW: Context<'static> = Context::at(UtcTime::from_nanos(0));

    type Outcome = Result<(Vec<Charge>, Vec<u16>, bool), ResolveError>;

    fn resolve(handle: &Handle, values: &[Option<&[u8]>], costs: &[u64]) -> Outcome {
        let (mut charges, mut limits) = (Vec::new(), Vec::new());
        let request = Request { values, costs };
        let resolved =
            handle.resolve(&request, &NOW, &mut Scratch::default(), &mut charges, &mut limits)?;
        assert_eq!(charges[resolved.charges()].len(), charges.len());
        Ok((charges, limits, resolved.unmatched))
    }

    const POLICY: &str = r#"schema = 1
[api.a]
class.x = ["POST /x", "/w/*"]
class.y = ["/y/:id"]
[api.a.limit]
z = { bucket = "9/s", per = ["user"], when_unavailable = "deny" }
b = { on = ["x", "GET /b"], fixed = "2/day, 1/min", per = ["user", "ip"] }
c = { on = "y", except = "/y/free", bucket = "9/s", meter = "tokens", cost = 3 }
d = { on = "y", bucket = "9/s", per = ["plan"], missing = "skip" }
o = { on = "/off", bucket = "9/s", per = ["other"], mode = "off" }
"#;

    fn names(handle: &Handle, limits: &[u16]) -> Vec<String> {
        let name = |index: &u16| {
            let limit = &handle.limits()[usize::from(*index)];
            format!("{}.{}", limit.name, limit.window)
        };
        limits.iter().map(name).collect()
    }

    #[test]
    fn limits_match_by_themselves_and_come_sorted_by_name() {
        let policy = policy(POLICY);
        let api = policy.handle_of("a", None).unwrap();
        let slots: Vec<&str> = api.slots().iter().map(|slot| &*slot.name).collect();
        assert_eq!(slots, ["method", "path", "user", "ip", "plan", "other"]);
        assert_eq!(api.meters().join(" "), "requests tokens");
        let at = |method: &'static str, path: &'static str| {
            let value = |text: &'static str| Some(text.as_bytes());
            let values = [value(method), value(path), value("u"), value("i"), value("p")];
            names(api, &resolve(api, &values, &[]).unwrap().1)
        };
        assert_eq!(at("POST", "/x/"), ["b.minute", "b.day", "z."]);
        assert_eq!(at("HEAD", "/b"), ["b.minute", "b.day", "z."]);
        assert_eq!(at("PUT", "/y/1"), ["c.", "d.", "z."]);
        assert_eq!(at("PUT", "/y/free"), ["d.", "z."]);
        assert_eq!(at("PUT", "/w/1/2"), ["b.minute", "b.day", "z."]);
        assert_eq!(at("GET", "/off"), ["z."]);
    }

    #[test]
    fn a_class_has_the_limits_on_it_and_those_on_everything() {
        let policy = policy(POLICY);
        let of = |class| {
            let handle = policy.handle_of("a", Some(class)).unwrap();
            let slots: Vec<&str> = handle.slots().iter().map(|slot| &*slot.name).collect();
            let values = vec![Some(&b"v"[..]); slots.len()];
            (slots.join(" "), names(handle, &resolve(handle, &values, &[]).unwrap().1).join(" "))
        };
        assert_eq!(of("x"), ("user ip".into(), "b.minute b.day z.".into()));
        // One limit leaves out some of the class, so that this handle routes.
        let handle = policy.handle_of("a", Some("y")).unwrap();
        let slots: Vec<&str> = handle.slots().iter().map(|slot| &*slot.name).collect();
        assert_eq!(slots, ["method", "path", "user", "plan"]);
        let at = |path: &'static str| {
            let values = [Some(&b"GET"[..]), Some(path.as_bytes()), Some(b"u"), Some(b"p")];
            names(handle, &resolve(handle, &values, &[]).unwrap().1).join(" ")
        };
        assert_eq!(at("/y/1"), "c. d. z.");
        assert_eq!(at("/y/free"), "d. z.");
    }

    #[test]
    fn a_missing_value_is_an_error_and_deny_wins() {
        let policy = policy(POLICY);
        let api = policy.handle_of("a", None).unwrap();
        let (post, x) = (Some(&b"POST"[..]), Some(&b"/x"[..]));
        let bad = |limit, slot, found, when_unavailable| {
            Err(ResolveError::BadAttribute { limit, slot, found, when_unavailable })
        };
        let (allow, deny) = (Unavailable::Allow, Unavailable::Deny);
        let found = resolve(api, &[post, x, Some(b"u")], &[]).map(|_| ());
        assert_eq!(found, bad(Some(0), 3, Found::Missing, allow));
        let found = resolve(api, &[post, x, None, Some(b"i")], &[]).map(|_| ());
        assert_eq!(found, bad(Some(5), 2, Found::Missing, deny));
        assert_eq!(
            found.unwrap_err().describe(api).to_string(),
            "attribute `user` is missing; limit `z` needs it"
        );
        let long = [b'u'; VALUE_BYTES_MAX + 1];
        let found = resolve(api, &[post, x, Some(&long), Some(b"i")], &[]).map(|_| ());
        let too_long = Found::TooLong { bytes: 1025, bytes_max: 1024 };
        assert_eq!(found, bad(Some(5), 2, too_long, deny));
        let found = resolve(api, &[post], &[]).map(|_| ());
        assert_eq!(found, bad(None, 1, Found::Missing, deny));
        // One limit opts out of requests that do not name a plan.
        let y = Some(&b"/y/1"[..]);
        let (_, limits, _) = resolve(api, &[post, y, Some(b"u"), Some(b"i")], &[]).unwrap();
        assert_eq!(names(api, &limits), ["c.", "z."]);
    }

    #[test]
    fn costs_are_per_meter_and_multiply() {
        let policy = policy(POLICY);
        let handle = policy.handle_of("a", Some("y")).unwrap();
        let costs_of = |costs: &[u64]| {
            let values = [Some(&b"GET"[..]), Some(b"/y/1"), Some(b"u"), Some(b"p")];
            let outcome = resolve(handle, &values, costs);
            outcome.map(|(charges, ..)| charges.iter().map(|c| c.cost).collect::<Vec<_>>())
        };
        assert_eq!(costs_of(&[]).unwrap(), [0, 1, 1]);
        assert_eq!(costs_of(&[2, 5]).unwrap(), [15, 2, 2]);
        assert_eq!(
            costs_of(&[1, UNITS_MAX]),
            Err(ResolveError::CostTooLarge { limit: 0, found: UNITS_MAX })
        );
        assert!(costs_of(&[1, u64::MAX]).is_err());
    }

    #[test]
    fn an_error_leaves_the_batch_as_it_was() {
        let policy = policy(POLICY);
        let handle = policy.handle_of("a", Some("x")).unwrap();
        let (mut charges, mut limits, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
        let mut add = |values: &[Option<&[u8]>]| {
            let request = Request { values, costs: &[] };
            let result = handle.resolve(&request, &NOW, &mut scratch, &mut charges, &mut limits);
            (result.map(|resolved| (resolved.charges(), resolved.limits())), charges.len())
        };
        assert_eq!(add(&[Some(b"u"), Some(b"i")]), (Ok((0..3, 0..3)), 3));
        let (result, count) = add(&[Some(b"u")]);
        assert!(result.is_err());
        assert_eq!(count, 3);
        assert_eq!(add(&[Some(b"w"), Some(b"i")]), (Ok((3..6, 3..6)), 6));
    }

    #[test]
    fn only_what_no_limit_knows_is_unmatched() {
        let policy = policy(BUILT_IN.text);
        let api = policy.handle_of("media", None).unwrap();
        let unmatched = |method: &'static [u8], path: &'static [u8]| {
            let (charges, _, unmatched) =
                resolve(api, &[Some(method), Some(path), Some(b"t")], &[]).unwrap();
            (charges.len(), unmatched)
        };
        assert_eq!(unmatched(b"DELETE", b"/v1/images"), (0, true));
        assert_eq!(unmatched(b"POST", b"/v1/files"), (0, false));
        assert_eq!(unmatched(b"GET", b"/v1/files"), (1, false));
    }

    proptest! {
        #[test]
        fn no_request_panics(
            values in prop::collection::vec(
                prop::option::of(prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            path in "/(x|y|b)?(/[a-z%.]{0,3}){0,3}",
            costs in prop::collection::vec(any::<u64>(), 0..4),
        ) {
            let policy = policy(POLICY);
            let mut values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            if let [_, slot, ..] = values.as_mut_slice() {
                *slot = Some(path.as_bytes());
            }
            for handle in policy.handles() {
                match resolve(handle, &values, &costs) {
                    Ok((charges, limits, _)) => prop_assert_eq!(charges.len(), limits.len()),
                    Err(error) => { error.describe(handle).to_string(); }
                }
            }
        }
    }

    /// Whatever an example's class is asked, it charges what the API's own handle would, and
    /// both without panicking.
    #[test]
    fn a_class_charges_what_its_api_does() {
        const WITHIN: [(&str, &str, &str, &str); 12] = [
            ("media", "images_post", "POST", "/v1/images/7/cancel"),
            ("media", "read", "HEAD", "/v1/usage"),
            ("media", "files_post", "POST", "/v1/files"),
            ("chat", "jobs", "GET", "/mave/chat"),
            ("generate", "heavy", "POST", "/aud2video"),
            ("generate", "text", "POST", "/prompt/a/b"),
            ("vault", "upload", "POST", "/upload/stream"),
            ("vault", "batch", "POST", "/upload/stream-batch"),
            ("studio", "auth", "POST", "/auth/login"),
            ("llm", "models", "POST", "/v1/responses"),
            ("github", "search", "GET", "/search/code"),
            ("github", "content", "POST", "/repos/o/r/pulls"),
        ];
        const VALUES: [&str; 14] = [
            "",
            "free",
            "pro",
            "basic",
            "premium",
            "vip",
            "enterprise",
            "session",
            "api_key",
            "192.0.2.1",
            "2001:db8::1",
            "token",
            "image",
            "x",
        ];
        let policy = Policy::compile(&EXAMPLES, &Seed::new([7; 16])).unwrap();
        let value = prop::option::of(prop::sample::select(&VALUES[..]));
        proptest!(|(values in prop::collection::vec(value, 24))| {
        for (api, class, method, path) in WITHIN {
            let of = |handle: &Handle| {
                let value = |slot: &crate::policy::Slot| match &*slot.name {
                    "method" => Some(method.as_bytes()),
                    "path" => Some(path.as_bytes()),
                    name => {
                        let index = name.bytes().map(usize::from).sum::<usize>() % 24;
                        values[index].map(str::as_bytes)
                    }
                };
                let values: Vec<Option<&[u8]>> = handle.slots().iter().map(value).collect();
                let (charges, limits, _) = resolve(handle, &values, &[]).ok()?;
                let names = limits.iter().map(|limit| &handle.limits()[usize::from(*limit)]);
                let charges = names.zip(&charges).map(|(limit, charge)| {
                    (limit.id, charge.key, charge.quota, charge.cost, charge.effect)
                });
                Some(charges.collect::<Vec<_>>())
            };
            let by_class = of(policy.handle_of(api, Some(class)).unwrap());
            prop_assert_eq!(by_class, of(policy.handle_of(api, None).unwrap()), "{}", class);
        }
        });
    }
}
