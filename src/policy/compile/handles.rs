//! Handles: what a caller prepares, with the numbers of its own slots.

use std::sync::Arc;

use crate::engine::command::CHARGES_MAX;
use crate::engine::quota::Kind;

use super::super::answer::{Answers, Header};
use super::super::code::ErrorCode;
use super::super::fingerprint::Fingerprint;
use super::super::handle::{AccountSlots, Handle, Limit, One, Slot, SlotUse, Unavailable};
use super::super::matcher::Matcher;
use super::super::maxima::{METERS_MAX, SLOTS_MAX};
use super::super::reach::Reach;
use super::super::ready::Ready;
use super::super::resolve::REQUESTS;
use super::super::route::{Router, SetId, Sets};
use super::routes::Lies;
use super::{ACCOUNT, ApiLimit, Compiler, TIER};

/// What is known of the requests of a class before they are routed.
struct Known {
    /// Sets that every one of them is in.
    sets: Vec<SetId>,
    /// Whether that is all there is to know of the sets that anything looks at.
    suffices: bool,
}

impl Compiler<'_> {
    /// The handle of a class, or of the API itself. It gets its number later.
    pub(super) fn handle(&mut self, class: Option<SetId>, answers: &Arc<Answers>) -> Handle {
        let text = self.text;
        let limits: Vec<&ApiLimit> = match class {
            None => self.limits.iter().collect(),
            Some(class) => self.limits.iter().filter(|of| self.may_apply(of, class)).collect(),
        };
        let known = match class {
            None => Known { sets: Vec::new(), suffices: false },
            Some(class) => self.known(class, &limits),
        };
        let routes = !known.suffices;
        let known = Sets::new(known.sets);
        let (slots, attribute_slots) = self.slots(routes, &limits, answers);
        let meters = meters(&limits);
        let deciding = || limits.iter().filter(|of| of.decides());
        let unavailable = deciding().map(|of| of.limit.when_unavailable).max();
        let mut statuses = deciding().map(|of| of.limit.status);
        let status = statuses.next().filter(|first| statuses.all(|other| other == *first));
        // Of others nobody can tell how many apply at once before a request is there.
        let at_once = deciding()
            .filter(|of| of.limit.quotas.same().is_some())
            .filter(|of| {
                of.limit.on.as_ref().is_none_or(|on| !routes && on.sets.meet(known.bits()))
            })
            .count();
        let problems = [
            ("attributes", slots.len(), SLOTS_MAX),
            ("meters", meters.len(), METERS_MAX),
            ("limits that apply at once", at_once, CHARGES_MAX),
        ];
        for (what, found, max) in problems {
            if found > max {
                let message = format!("{found} {what}, allowed are {max}");
                self.errors.push(ErrorCode::Maximum, text.name.span, message);
            }
        }
        let place = |all: &[ApiLimit], of: &ApiLimit| {
            let id = of.limit.id;
            all.iter().position(|known| known.limit.id == id)
        };
        let slot_of = |attribute: u16| -> Option<u16> {
            attribute_slots.get(usize::from(attribute)).copied().flatten()
        };
        let mut limit_indexes = vec![None; self.limits.len()];
        let mut flat = Vec::with_capacity(limits.len());
        for (index, of) in limits.iter().enumerate() {
            if let Some(place) = place(&self.limits, of) {
                limit_indexes[place] = Some(index as u16);
            }
            let mut limit = with_slots(&of.limit, slot_of);
            let meter = meters.iter().position(|meter| **meter == *of.meter);
            limit.meter = meter.unwrap_or_default() as u16;
            if !routes {
                settle(&mut limit, &known);
            }
            let like = flat.iter().position(|other: &Limit| other.per == limit.per);
            limit.subject = like.unwrap_or(index) as u16;
            flat.push(limit);
        }
        let rule_matchers = self
            .rule_matchers
            .iter()
            .map(|(when, unless)| {
                (when.as_ref().map(|when| when.with_slots(slot_of)), unless.with_slots(slot_of))
            })
            .collect();
        let constant = |header: &Header| {
            let value = header.constant_on_denial()?;
            Some((header.name.clone(), Box::from(value)))
        };
        let attribute = |name: &str| {
            let index = self.attributes.iter().position(|known| known == name)?;
            slot_of(index as u16)
        };
        let account = attribute(ACCOUNT).filter(|_| !text.identities.is_empty());
        let account = account.map(|account| AccountSlots {
            account,
            identities: text
                .identities
                .iter()
                .filter_map(|name| Some((attribute(&name.value)?, name.value.as_str().into())))
                .collect(),
        });
        let tier_slot = attribute(TIER);
        let ruled = !self.rule_matchers.is_empty();
        let one = class.filter(|_| !routes && !ruled).and_then(|_| One::of(&flat));
        let router = routes.then(|| Router::new(self.routes.len(), self.routes.routes()));
        let one = one.filter(|one| account.as_ref().is_none_or(|of| of.account != one.slot));
        let logged: Box<[u16]> =
            text.log_attributes.iter().filter_map(|name| attribute(&name.value)).collect();
        // What is logged of a denied request is in its frame, which such a check leaves behind.
        let one = one.filter(|_| logged.is_empty());
        let follows_calendar = flat.iter().any(|limit| limit.calendar.is_some());
        let mut handle = Handle {
            number: 0,
            api_number: 0,
            layout: 0,
            api: text.name.value.as_str().into(),
            class: class.map(|class| self.classes[usize::from(class)].into()),
            slots: slots.into(),
            meters: meters.into(),
            reach: Reach::new(&flat),
            ready: Ready::new(&flat, self.tiers.len()),
            limits: flat.into(),
            when_unavailable: unavailable.unwrap_or(Unavailable::Allow),
            denial_status: status.unwrap_or(429),
            denial_headers: answers.headers.iter().filter_map(constant).collect(),
            router,
            known,
            rules: self.rules.clone(),
            rule_matchers,
            tiers: self.tiers.clone(),
            tier_slot,
            tier_default: self.tier_default,
            account,
            follows_calendar,
            logged,
            one,
            answers: answers.clone(),
            attribute_slots: attribute_slots.into(),
            limit_indexes: limit_indexes.into(),
        };
        handle.layout = layout(&handle);
        handle
    }

    /// Whether a limit may apply to requests of a class.
    fn may_apply(&self, of: &ApiLimit, class: SetId) -> bool {
        let meets = |set: SetId| self.routes.lies(set, class) != Lies::Apart;
        let covers = |set: SetId| self.routes.lies(set, class) == Lies::Around;
        let on = of.limit.on.as_ref().is_none_or(|on| {
            let condition = |condition: &super::super::matcher::Condition| {
                condition.sets().all(|sets| sets.ids().any(meets))
            };
            on.sets.ids().any(meets) || on.conditions.iter().any(condition)
        });
        on && !of.limit.except.sets.ids().any(covers)
    }

    /// What a caller of a class need not route to find out.
    fn known(&self, class: SetId, limits: &[&ApiLimit]) -> Known {
        let limits = limits.iter().map(|of| &of.limit);
        let rules = self
            .rule_matchers
            .iter()
            .flat_map(|(when, unless)| when.iter().chain(core::iter::once(unless)));
        let matchers: Vec<&Matcher> = limits
            .clone()
            .flat_map(|limit| limit.on.iter().chain(core::iter::once(&limit.except)))
            .chain(rules)
            .collect();
        let mut looked_at: Vec<SetId> = vec![class];
        looked_at.extend(matchers.iter().flat_map(|matcher| matcher.all_sets()));
        let mut suffices = !matchers.iter().any(|matcher| matcher.by_path());
        for limit in limits {
            looked_at.extend(limit.quotas.sets().chain(limit.costs.sets()));
            looked_at.extend(limit.per.iter().flat_map(|part| part.sets()));
            suffices &= !limit.per.iter().any(|part| part.by_path());
        }
        looked_at.sort_unstable();
        looked_at.dedup();
        let mut sets = Vec::new();
        for set in looked_at {
            match self.routes.lies(set, class) {
                Lies::Around => sets.push(set),
                Lies::Apart => {}
                Lies::Across(_) => suffices = false,
            }
        }
        Known { sets, suffices }
    }

    /// The slots of a handle with these limits, and for each attribute of the API its slot.
    fn slots(
        &self,
        routes: bool,
        limits: &[&ApiLimit],
        answers: &Answers,
    ) -> (Vec<Slot>, Vec<Option<u16>>) {
        let mut slots = Vec::new();
        if routes {
            for name in ["method", "path"] {
                slots.push(Slot { name: name.into(), slot_use: SlotUse::Route, required: true });
            }
        }
        let logged = self.text.log_attributes.iter().filter_map(|name| {
            let place = self.attributes.iter().position(|known| *known == name.value)?;
            Some(place as u16)
        });
        let shown: Vec<u16> = answers.attributes().chain(logged).collect();
        let selects: Vec<u16> = limits
            .iter()
            .flat_map(|of| selecting(&of.limit))
            .chain(self.rule_matchers.iter().flat_map(|(when, unless)| {
                when.iter().chain(core::iter::once(unless)).flat_map(|m| m.attributes())
            }))
            .collect();
        let keys: Vec<u16> = limits
            .iter()
            .flat_map(|of| of.limit.per.iter().filter_map(|part| part.slot()))
            .collect();
        let reads_tier = limits.iter().any(|of| by_tier(&of.limit))
            || answers.shows_tier
            || self.rule_matchers.iter().any(|(when, unless)| {
                when.as_ref().is_some_and(Matcher::by_tier) || unless.by_tier()
            });
        let identities = &self.text.identities;
        let is_identity = |name: &str| identities.iter().any(|known| known.value == name);
        let account = self.attributes.iter().position(|name| name == ACCOUNT);
        let whose = account.is_some_and(|account| {
            let account = account as u16;
            keys.contains(&account) || selects.contains(&account) || shown.contains(&account)
        });
        let mut attribute_slots = vec![None; self.attributes.len()];
        for (index, name) in self.attributes.iter().enumerate() {
            let index = index as u16;
            let slot_use = if keys.contains(&index) {
                SlotUse::Key
            } else if selects.contains(&index)
                || (name == TIER && reads_tier)
                || (is_identity(name) && (whose || reads_tier))
            {
                SlotUse::Select
            } else if shown.contains(&index) {
                SlotUse::Text
            } else {
                continue;
            };
            let needs = |of: &&&ApiLimit| {
                of.limit.per.iter().any(|part| part.slot() == Some(index))
                    || of.limit.calendar.as_ref().is_some_and(|calendar| {
                        [calendar.zone.slot(), calendar.anchor.slot()].contains(&Some(index))
                    })
                    || (name == TIER && needs_tier(&of.limit))
            };
            let said_otherwise = !identities.is_empty() && (name == ACCOUNT || name == TIER)
                || (name == TIER && self.tier_default.is_some());
            let required = !said_otherwise
                && limits.iter().filter(needs).any(|of| of.decides() && !of.limit.skip_missing);
            attribute_slots[usize::from(index)] = Some(slots.len() as u16);
            slots.push(Slot { name: name.as_str().into(), slot_use, required });
        }
        (slots, attribute_slots)
    }
}

/// Attributes by whose values a limit is picked, or its numbers.
fn selecting(limit: &Limit) -> Vec<u16> {
    let mut found: Vec<u16> = limit.quotas.attributes().chain(limit.costs.attributes()).collect();
    for matcher in limit.on.iter().chain([&limit.except]) {
        found.extend(matcher.attributes());
    }
    if let Some(calendar) = &limit.calendar {
        found.extend(calendar.zone.slot().into_iter().chain(calendar.anchor.slot()));
    }
    found
}

fn by_tier(limit: &Limit) -> bool {
    limit.quotas.by_tier()
        || limit.costs.by_tier()
        || limit.on.as_ref().is_some_and(Matcher::by_tier)
        || limit.except.by_tier()
}

fn needs_tier(limit: &Limit) -> bool {
    limit.quotas.needs_tier() || limit.costs.needs_tier()
}

fn with_slots(limit: &Limit, slot_of: impl Fn(u16) -> Option<u16> + Copy) -> Limit {
    let mut moved = limit.clone();
    moved.per = limit.per.iter().map(|part| part.with_slots(slot_of)).collect();
    moved.quotas = limit.quotas.with_slots(slot_of);
    moved.costs = limit.costs.with_slots(slot_of);
    moved.on = limit.on.as_ref().map(|on| on.with_slots(slot_of));
    moved.except = limit.except.with_slots(slot_of);
    moved.tier_slot = slot_of(limit.tier_slot).unwrap_or_default();
    if let Some(calendar) = &mut moved.calendar {
        calendar.move_slots(slot_of);
    }
    moved
}

/// Leaves out of a limit what is known of all requests of its handle.
fn settle(limit: &mut Limit, known: &Sets) {
    if limit.on.as_ref().is_some_and(|on| on.sets.meet(known.bits())) {
        limit.on = None;
    }
    if !limit.except.sets.meet(known.bits()) && limit.except.conditions.is_empty() {
        limit.except = Matcher::default();
    }
}

/// The meters that these limits charge: `requests` first, others by name.
fn meters(limits: &[&ApiLimit]) -> Vec<Box<str>> {
    let mut meters: Vec<&str> = limits.iter().map(|of| of.meter.as_str()).collect();
    meters.sort_by_key(|meter| (*meter != REQUESTS, *meter));
    meters.dedup();
    meters.into_iter().map(Box::from).collect()
}

fn layout(handle: &Handle) -> u64 {
    let mut hash = Fingerprint::new();
    hash.part(handle.api.as_bytes()).part(handle.class.as_deref().unwrap_or("").as_bytes());
    hash.part(&[u8::from(handle.class.is_some())]);
    hash.part(&(handle.slots.len() as u64).to_le_bytes());
    for slot in &handle.slots {
        hash.part(slot.name.as_bytes()).part(slot.slot_use.name().as_bytes());
        hash.part(&[u8::from(slot.required)]);
    }
    hash.part(&(handle.meters.len() as u64).to_le_bytes());
    for meter in &handle.meters {
        hash.part(meter.as_bytes());
    }
    hash.part(&(handle.limits.len() as u64).to_le_bytes());
    for limit in &handle.limits {
        let kind: Kind = limit.kind();
        hash.part(limit.name.as_bytes()).part(limit.window.as_bytes());
        hash.part(kind.name().as_bytes()).part(limit.mode.name().as_bytes());
    }
    for rule in &*handle.rules {
        hash.part(rule.code.as_bytes()).part(&rule.status.to_le_bytes());
    }
    for name in handle.answers.header_names() {
        hash.part(name.as_bytes());
    }
    hash.finish()
}
