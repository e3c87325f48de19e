//! Charges made ready at load. What a limit takes of a request hangs on its customer's tier and on
//! nothing else, mostly: for each tier the charge stands here whole, but for its key, its cost and
//! where its calendar window lies. [`Limit::terms`] says the same of any limit.

use crate::engine::command::Charge;
use crate::engine::key::{Key, Own};
use crate::engine::quota::Quota;

use super::facts::Facts;
use super::handle::{Limit, Mode};
use super::resolve::{Context, Memo, cost_of};

/// The most charges that a handle has ready. Where there would be more, each is made when it is
/// needed.
const READY_MAX: usize = 1024;

/// The charges that a handle has ready.
#[derive(Clone, Default)]
pub(super) struct Ready {
    /// One of each limit for the first tier, for the second and so on, and for none. Empty if they
    /// were more than [`READY_MAX`].
    charges: Box<[ReadyCharge]>,
    limits: usize,
}

/// What is ready of one limit for one tier.
#[derive(Clone)]
pub(super) struct ReadyCharge {
    /// Its cost is that of one unit of the meter.
    charge: Charge,
    how: How,
    own: Own,
    /// [`Limit::subject`].
    subject: u16,
    /// [`Limit::meter`].
    meter: u16,
    /// What a request takes that says nothing of the meter.
    unasked: u64,
}

/// What is left to do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// All of it.
    ByTerms,
    /// There is no counter.
    Keyless,
    Keyed,
    /// Its window lies where the calendar with this [`spec`](super::calendar::CalendarWindow::spec) says.
    InCalendar(u64),
}

impl Ready {
    /// What is ready of a handle's limits, for so many tiers.
    pub(super) fn new(limits: &[Limit], tiers: usize) -> Self {
        if limits.len().saturating_mul(tiers + 1) > READY_MAX {
            return Self::default();
        }
        let tiers = (0..tiers).map(|tier| Some(tier as u16)).chain([None]);
        let of_tier = |tier| limits.iter().map(move |limit| ReadyCharge::new(limit, tier));
        Self { charges: tiers.flat_map(of_tier).collect(), limits: limits.len() }
    }

    /// What is ready for a tier, or for none, by the index of the limit.
    #[inline]
    pub(super) fn of_tier(&self, tier: Option<u16>) -> &[ReadyCharge] {
        let end = match tier {
            Some(tier) => (usize::from(tier) + 1) * self.limits,
            None => self.charges.len(),
        };
        self.charges.get(end.wrapping_sub(self.limits)..end).unwrap_or(&[])
    }
}

impl ReadyCharge {
    fn new(limit: &Limit, tier: Option<u16>) -> Self {
        let facts = Facts::of_tier(tier);
        let by_tier_alone = limit.quotas.hang_on_tier_alone() && limit.costs.hang_on_tier_alone();
        let quota = limit.quotas.find(&facts).ok().flatten().copied().flatten();
        let each = limit.costs.find(&facts).ok().map(|each| each.copied().unwrap_or(1));
        let how = match (&quota, &limit.calendar) {
            _ if !by_tier_alone || limit.mode == Mode::Off || each.is_none() => How::ByTerms,
            (None, _) => How::ByTerms,
            (Some(Quota::Cap(_)), _) if limit.per.is_empty() => How::Keyless,
            (Some(Quota::Calendar(_)), Some(calendar)) => How::InCalendar(calendar.spec),
            (Some(_), _) => How::Keyed,
        };
        let cost = each.unwrap_or(1);
        Self {
            charge: Charge {
                key: Key::NONE,
                quota: quota.unwrap_or(limit.quota),
                cost,
                limit: limit.id,
                effect: limit.effect(),
                on: limit.charge_on,
            },
            how,
            own: limit.space.own(),
            subject: limit.subject,
            meter: limit.meter,
            unasked: limit.unasked_cost(cost),
        }
    }

    /// Appends the charge of a request to which the limit applies. False if [`Limit::terms`] has to
    /// say what it is, or what is wrong; nothing is appended then.
    #[inline]
    pub(super) fn append_to(
        &self,
        charges: &mut Vec<Charge>,
        limit: &Limit,
        facts: &Facts<'_>,
        context: &Context<'_>,
        memo: &mut Memo<'_>,
    ) -> bool {
        if context.overrides.is_some_and(|overrides| overrides.touches(self.charge.limit)) {
            return false;
        }
        let key = match self.how {
            How::ByTerms => return false,
            How::Keyless => Key::NONE,
            How::Keyed | How::InCalendar(_) => match memo.subject(self.subject, limit, facts) {
                Some(subject) => self.own.key(subject),
                None => return false,
            },
        };
        let window = match self.how {
            How::InCalendar(spec) => match memo.window(spec, limit, facts, context.now) {
                Some(Ok(window)) => Some(window),
                _ => return false,
            },
            _ => None,
        };
        let amount = facts.request.costs.get(usize::from(self.meter));
        let Ok(cost) = cost_of(amount, self.charge.cost, self.unasked) else { return false };
        // Completed where it stays: one put together on the way would be copied once more.
        charges.extend_from_slice(core::slice::from_ref(&self.charge));
        if let Some(charge) = charges.last_mut() {
            (charge.key, charge.cost) = (key, cost);
            if let (Some(window), Quota::Calendar(calendar)) = (window, &mut charge.quota) {
                calendar.move_to(window);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use proptest::prelude::*;

    use super::super::examples::EXAMPLES;
    use super::super::maxima::SLOTS_MAX;
    use super::super::{
        Handle, Numbers, OverrideText, Overrides, Policy, Request, ResolveError, Scratch, Source,
    };
    use super::*;
    use crate::engine::key::Seed;
    use crate::engine::time::{SECOND, UtcTime};

    /// Limits of which the table has all, some or none ready.
    const POLICY: &str = r#"schema = 1
[api.a]
tiers = ["free", "pro"]
[api.a.limit]
all    = { per = ["user"], meter = "tokens", calendar = "9/month", tz = "attr.zone" }
plain  = { per = ["user", "free"], calendar = "5/day, 20/month", tz = "Asia/Kolkata" }
some   = { per = ["user"], bucket.tier = { free = "2/min", pro = "unlimited" } }
other  = { per = ["user"], fixed.tier = { free = "2/min", "*" = "3/min" } }
dear   = { per = ["user"], bucket = "9/s", cost.tier = { free = 3, pro = 1 } }
by     = { per = ["user"], bucket.attr.zone = { UTC = "9/s", "*" = "8/s" } }
off    = { per = ["user"], bucket = "9/s", mode = "off" }
shadow = { per = ["user"], bucket = "9/s", mode = "shadow", charge = "always" }
size   = { meter = "bytes", cap.tier = { free = 10, pro = "unlimited" } }
"#;

    fn resolved(
        handle: &Handle,
        request: &Request<'_>,
        context: &Context<'_>,
    ) -> Result<(String, Vec<u16>, bool), ResolveError> {
        let (mut charges, mut limits) = (Vec::new(), Vec::new());
        let scratch = &mut Scratch::default();
        let resolved = handle.resolve(request, context, scratch, &mut charges, &mut limits)?;
        Ok((format!("{charges:?}"), limits, resolved.unmatched))
    }

    /// A value for each slot of a handle, mostly one that can be.
    fn values<'v>(handle: &'v Handle, picks: &[u8], path: &'v str) -> Vec<Option<&'v [u8]>> {
        let pick = |of: &[&'v str], by: u8| of.get(usize::from(by) % (of.len() + 1)).copied();
        let value = |(slot, by): (&super::super::Slot, &u8)| match &*slot.name {
            "method" => pick(&["GET", "POST", "HEAD"], *by),
            "path" => Some(path),
            "tier" => pick(&handle.tiers().chain(["other"]).collect::<Vec<_>>(), *by),
            "zone" => pick(&["UTC", "America/New_York", "UTC", "Asia/Kolkata", "Mars"], *by),
            _ => pick(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "session"], *by),
        };
        handle.slots().iter().zip(picks).map(|of| value(of).map(str::as_bytes)).collect()
    }

    /// Everybody's override of a limit of the last policy.
    fn everybody<'t>(limit: &'t str, quota: Option<&'t str>) -> OverrideText<'t> {
        let mode = quota.is_none().then_some(Mode::Enforce);
        OverrideText { api: "a", limit, key: None, quota, mode, until: None }
    }

    /// Whatever is asked, a handle says the same with its charges ready as with none, also once its
    /// limits have other numbers than those that they were compiled with.
    #[test]
    fn ready_charges_are_those_by_terms() {
        let own = Source { name: "ready.toml", text: POLICY };
        let sources: Vec<Source<'_>> = EXAMPLES.iter().copied().chain([own]).collect();
        let compile = |sources: &[Source<'_>]| {
            let policy = Policy::compile(sources, &Seed::new([7; 16]));
            policy.unwrap_or_else(|errors| panic!("{errors}"))
        };
        let mut policy = compile(&sources);
        let mut numbers = Numbers::default();
        numbers.assign(&mut compile(&EXAMPLES[1..])).unwrap();
        numbers.assign(&mut policy).unwrap();
        let mut overrides = Overrides::default();
        for text in [everybody("dear", Some("8/s")), everybody("shadow", None)] {
            overrides.add(&policy, &text).unwrap();
        }
        let without = |handle: &Handle| Handle { ready: Ready::default(), ..handle.clone() };
        let handles: Vec<(&Handle, Handle)> =
            policy.handles().iter().map(|handle| (handle, without(handle))).collect();
        let (charged, refused) = (Cell::new(0), Cell::new(0));
        const PATHS: [&str; 6] =
            ["/", "/files", "/upload/stream", "/prompt/a", "/auth/login", "/v1/responses"];
        let costs = prop::collection::vec(prop_oneof![8 => 0..9u64, 1 => Just(u64::MAX)], 0..4);
        proptest!(|(
            picks in prop::collection::vec(any::<u8>(), SLOTS_MAX),
            path in prop::sample::select(&PATHS[..]),
            costs in costs,
            day in 0..800u64,
            overridden in any::<bool>(),
        )| {
            let now = UtcTime::from_nanos((1_700_000_000 + day * 43_200) * SECOND);
            let overrides = overridden.then_some(&overrides);
            let context = Context { overrides, ..Context::at(now) };
            for (handle, without) in &handles {
                let values = values(handle, &picks, path);
                let request = Request { values: &values, costs: &costs };
                let ready = resolved(handle, &request, &context);
                let count = if ready.is_ok() { &charged } else { &refused };
                count.set(count.get() + 1);
                prop_assert_eq!(ready, resolved(without, &request, &context));
            }
        });
        assert!(charged.get() > 1000 && refused.get() > 1000, "{charged:?} {refused:?}");
    }
}
