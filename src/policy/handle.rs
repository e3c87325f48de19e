//! What a caller prepares: an API or one of its classes, as flat tables with everything resolved.
//!
//! A handle says by name what a check brings (slots, meters) and what it gets back (limits,
//! headers), so that checks themselves carry positions only.

use std::sync::Arc;

use crate::engine::command::{ChargeOn, Effect, LimitId};
use crate::engine::key::{Key, LimitSpace};
use crate::engine::quota::{Kind, Quota};
use crate::engine::time::Nanos;

use super::answer::Answers;
use super::calendar::CalendarWindow;
use super::facts::Facts;
use super::key::{self, Part};
use super::matcher::Matcher;
use super::quota_text::{QuotaTerms, WindowKind};
use super::reach::Reach;
use super::ready::Ready;
use super::route::{Router, Sets};
use super::values::Values;

/// An API or a class, prepared.
#[derive(Clone)]
pub struct Handle {
    pub(super) number: u32,
    /// The API's number in counts, from 0.
    pub(super) api_number: u16,
    pub(super) layout: u64,
    pub(super) api: Box<str>,
    pub(super) class: Option<Box<str>>,
    pub(super) slots: Box<[Slot]>,
    pub(super) meters: Box<[Box<str>]>,
    pub(super) limits: Box<[Limit]>,
    /// Which of them a request is for by its routes.
    pub(super) reach: Reach,
    /// What they take of most requests.
    pub(super) ready: Ready,
    pub(super) when_unavailable: Unavailable,
    pub(super) denial_status: u16,
    pub(super) denial_headers: Box<[(Box<str>, Box<str>)]>,
    /// `None` for most classes: their callers have routed already.
    pub(super) router: Option<Router>,
    /// Sets of routes that every request of a handle without a router is in.
    pub(super) known: Sets,
    /// What comes before all limits, in the order in which it does.
    pub(super) rules: Arc<[Rule]>,
    /// The rules with this handle's slots.
    pub(super) rule_matchers: Box<[(Option<Matcher>, Matcher)]>,
    pub(super) tiers: Arc<[Tier]>,
    /// Slot of the customer's tier, if anything looks at it.
    pub(super) tier_slot: Option<u16>,
    pub(super) tier_default: Option<u16>,
    pub(super) account: Option<AccountSlots>,
    pub(super) follows_calendar: bool,
    /// Slots of what may be logged of a denied request.
    pub(super) logged: Box<[u16]>,
    pub(super) answers: Arc<Answers>,
    /// What most classes come down to.
    pub(super) one: Option<One>,
    /// For each attribute of the API its slot here.
    pub(super) attribute_slots: Box<[Option<u16>]>,
    /// For each limit of the API its index here.
    pub(super) limit_indexes: Box<[Option<u16>]>,
}

/// A customer's tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tier {
    pub(super) name: Box<str>,
    /// What people call it.
    pub(super) display: Box<str>,
}

/// Where a request says whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AccountSlots {
    /// Of the account itself.
    pub(super) account: u16,
    /// Of the attributes that stand for accounts, with their names.
    pub(super) identities: Box<[(u16, Box<str>)]>,
}

/// A rule that comes before all limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it denies or lets pass.
    pub effect: RuleEffect,
    /// HTTP status of its denials.
    pub status: u16,
    /// What bodies, metrics and people call it; empty if it has no name.
    pub code: Box<str>,
    /// Its place among the API's rules of its effect, from 1.
    pub place: u16,
    /// Its number in counts: see [`RuleNumbers`](super::RuleNumbers).
    pub number: u16,
}

impl Rule {
    /// What people call it: its code, or its place in its list, `#2`, if it has none.
    pub fn title(&self) -> String {
        if self.code.is_empty() { format!("#{}", self.place) } else { self.code.to_string() }
    }
}

/// What a rule does with the requests that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleEffect {
    /// Denies them.
    Deny,
    /// Lets them pass by all limits.
    Bypass,
}

impl RuleEffect {
    /// The word a policy uses for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Bypass => "bypass",
        }
    }
}

/// The limit of a class whose checks are charged on one limit, keyed by one attribute: resolving
/// such a check is no more than hashing one value.
#[derive(Clone, Copy)]
pub struct One {
    /// Index in [`Handle::slots`] of the attribute.
    pub slot: u16,
    /// Index in [`Handle::limits`].
    pub limit_index: u16,
    /// Whose counters the table counts together.
    pub limit: LimitId,
    /// Units charged by a check that names no cost.
    pub cost: u64,
    /// The limit's numbers.
    pub quota: Quota,
    space: LimitSpace,
}

impl One {
    /// The key of the counter of a check that brings this value.
    #[inline]
    pub fn key(&self, value: &[u8]) -> Key {
        self.space.key(self.space.subject_of_one(value))
    }

    /// What the limits of a class come down to, if to this.
    pub(super) fn of(limits: &[Limit]) -> Option<Self> {
        let mut charged = limits.iter().enumerate().filter(|(_, limit)| limit.mode != Mode::Off);
        let (Some((index, limit)), None) = (charged.next(), charged.next()) else { return None };
        let plain = limit.mode == Mode::Enforce
            && limit.charge_on == ChargeOn::Allow
            && matches!(limit.kind(), Kind::Bucket | Kind::Fixed | Kind::Sliding)
            && limit.on.is_none()
            && limit.except.is_empty();
        let [Part::Slot(slot)] = *limit.per else { return None };
        let quota = limit.quotas.same().copied().flatten().filter(|_| plain)?;
        if let Quota::Unlimited(_) = quota {
            return None;
        }
        Some(Self {
            slot,
            limit_index: index as u16,
            limit: limit.id,
            cost: limit.unasked_cost(*limit.costs.same()?),
            quota,
            space: limit.space,
        })
    }
}

/// One value that a check brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Name of the attribute.
    pub name: Box<str>,
    /// What it is read for.
    pub slot_use: SlotUse,
    /// Whether some limit cannot be decided without it.
    pub required: bool,
}

/// What an attribute is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotUse {
    /// It picks the limits that apply: `method` and `path`.
    Route,
    /// It is part of a key.
    Key,
    /// It picks a limit, or a number from a table.
    Select,
    /// It is only shown in headers or body.
    Text,
}

impl SlotUse {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Key => "key",
            Self::Select => "select",
            Self::Text => "text",
        }
    }
}

/// Whether a limit is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It is.
    Enforce,
    /// It is charged and told, and decides nothing.
    Shadow,
    /// It is known and explained, but never charged.
    Off,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Enforce, Self::Shadow, Self::Off];

    /// The word a policy uses for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// What to answer for a limit that cannot be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unavailable {
    /// Let the request pass.
    Allow,
    /// Deny it. Among several limits this one wins.
    Deny,
}

impl Unavailable {
    /// The word a policy uses for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// A limit, each window by itself.
#[derive(Clone)]
pub struct Limit {
    /// Name of the limit.
    pub name: Box<str>,
    /// Name of the window; empty for kinds that have none.
    pub window: Box<str>,
    /// Its numbers, if they are the same for all requests; else those of one of them.
    pub quota: Quota,
    /// Whose counters the table counts together.
    pub id: LimitId,
    /// Whether it is in force.
    pub mode: Mode,
    /// HTTP status of a denial on which it binds.
    pub status: u16,
    /// What to answer if it cannot be decided.
    pub when_unavailable: Unavailable,
    /// Index in [`Handle::meters`] of what it charges.
    pub meter: u16,
    /// Whether that is `requests`, of which a check that says nothing brings one.
    pub(super) of_requests: bool,
    /// Units charged for one unit of the meter.
    pub(super) costs: Values<u64>,
    /// Its numbers; `None` where tables leave this window out.
    pub(super) quotas: Values<Option<Quota>>,
    /// Slot of the customer's tier, where values depend on it.
    pub(super) tier_slot: u16,
    /// Where its windows lie, of calendar windows.
    pub(super) calendar: Option<CalendarWindow>,
    /// Which requests it is charged for.
    pub(super) charge_on: ChargeOn,
    /// How long to tell a denied request to wait where that depends on others.
    pub(super) retry_after: Option<Nanos>,
    /// What makes its key.
    pub(super) per: Box<[Part]>,
    /// Limits of a handle with equal numbers here count by the same values.
    pub(super) subject: u16,
    /// What the policy calls the parts of the key.
    pub(super) per_names: Box<[Box<str>]>,
    /// Which of its limit's windows it is.
    pub(super) window_kind: WindowKind,
    /// What makes the window's counters themselves beside kind and key.
    pub(super) identity: Box<str>,
    /// By which terms its numbers are read.
    pub(super) terms: QuotaTerms,
    /// Whether a request without one of the attributes opts out of the limit.
    pub skip_missing: bool,
    pub(super) space: LimitSpace,
    /// Which requests it is for; `None` is any.
    pub(super) on: Option<Matcher>,
    /// Which of them it is not for.
    pub(super) except: Matcher,
}

impl Limit {
    /// Which kind of limit it is.
    pub const fn kind(&self) -> Kind {
        self.quota.kind()
    }

    /// Its name with that of its window, if it has several: `plan.day`.
    pub fn full_name(&self) -> String {
        match &*self.window {
            "" => self.name.to_string(),
            window => format!("{}.{window}", self.name),
        }
    }

    /// The key of the request's counter; `None` if a value that makes it is wrong.
    pub(super) fn key(&self, facts: &Facts<'_>) -> Option<Key> {
        Some(self.space.key(key::subject(&self.space, &self.per, facts)?))
    }

    /// What its verdict does.
    pub(super) fn effect(&self) -> Effect {
        match self.mode {
            Mode::Shadow => Effect::Shadow,
            Mode::Enforce | Mode::Off => Effect::Enforce,
        }
    }

    /// Units charged by a request that names no cost for the meter: one of `requests`, none of
    /// any other.
    #[inline]
    pub(super) fn unasked_cost(&self, cost: u64) -> u64 {
        if self.of_requests { cost } else { 0 }
    }
}

impl core::fmt::Debug for Limit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { name, window, quota, id, mode, .. } = self;
        f.debug_struct("Limit")
            .field("name", name)
            .field("window", window)
            .field("quota", quota)
            .field("id", id)
            .field("mode", mode)
            .finish_non_exhaustive()
    }
}

impl core::fmt::Debug for Handle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Handle")
            .field("number", &self.number)
            .field("api", &self.api)
            .field("class", &self.class)
            .field("slots", &self.slots)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// Its number within the policy, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The number of its API in counts, from 0.
    #[inline]
    pub fn api_number(&self) -> usize {
        usize::from(self.api_number)
    }

    /// A hash of everything that a caller addresses by position: where it is the same, so are
    /// slots, meters, limits and headers.
    pub fn layout(&self) -> u64 {
        self.layout
    }

    /// Name of the API.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// Name of the class; `None` for the API's own handle, which routes.
    pub fn class(&self) -> Option<&str> {
        self.class.as_deref()
    }

    /// What a check brings, in the order in which it does. An API's own handle begins with
    /// `method` and `path`.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The slot of an attribute.
    pub fn slot(&self, attribute: &str) -> Option<usize> {
        self.slots.iter().position(|slot| *slot.name == *attribute)
    }

    /// What the class comes down to, if to one limit keyed by one attribute.
    #[inline]
    pub fn one(&self) -> Option<&One> {
        self.one.as_ref()
    }

    /// What a check may carry costs for.
    pub fn meters(&self) -> &[Box<str>] {
        &self.meters
    }

    /// The index of a meter.
    pub fn meter(&self, name: &str) -> Option<usize> {
        self.meters.iter().position(|meter| **meter == *name)
    }

    /// All limits that may apply, by name and window.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// Names of the headers of an answer, in the order of their values.
    pub fn header_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.answers.header_names()
    }

    /// Whether some limit's windows are the calendar's, so that resolving takes the moment.
    #[inline]
    pub fn follows_calendar(&self) -> bool {
        self.follows_calendar
    }

    /// Slots of the attributes that may be logged of a denied request.
    pub fn logged(&self) -> impl Iterator<Item = usize> {
        self.logged.iter().map(|slot| usize::from(*slot))
    }

    /// The rules that come before all limits.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Attributes that stand for accounts; empty if none do.
    pub fn identities(&self) -> impl Iterator<Item = &str> {
        self.account.iter().flat_map(|slots| slots.identities.iter()).map(|(_, name)| &**name)
    }

    /// Names of the API's tiers.
    pub fn tiers(&self) -> impl Iterator<Item = &str> {
        self.tiers.iter().map(|tier| &*tier.name)
    }

    /// What to answer if nothing can be decided.
    pub fn when_unavailable(&self) -> Unavailable {
        self.when_unavailable
    }

    /// HTTP status of a denial that no limit had a part in.
    pub fn denial_status(&self) -> u16 {
        self.denial_status
    }

    /// Headers of such a denial: those whose values never change.
    pub fn denial_headers(&self) -> &[(Box<str>, Box<str>)] {
        &self.denial_headers
    }
}
