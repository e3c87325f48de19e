//! One limit, each of its windows by itself.

use crate::engine::command::LimitId;
use crate::engine::key::LimitSpace;
use crate::engine::kinds::{Period, UNLIMITED};
use crate::engine::quota::{Align, Kind, Quota};

use super::super::calendar::{CalendarWindow, Said};
use super::super::code::ErrorCode;
use super::super::error::did_you_mean;
use super::super::fingerprint::Fingerprint;
use super::super::handle::Limit;
use super::super::key::{NamedSets, Part};
use super::super::matcher::Matcher;
use super::super::maxima::LIMITS_MAX;
use super::super::moment::{Anchor, Zone};
use super::super::parse::{LimitText, MatchText};
use super::super::quota_text::{QuotaText, WindowKind, period_name};
use super::super::resolve::REQUESTS;
use super::super::route::{Route, SetId};
use super::super::template::is_name;
use super::super::tree::Text;
use super::super::values::{OTHERS, Selector, Values};
use super::super::{LimitInfo, Policy};
use super::values::Resolved;
use super::{ApiLimit, Compiler, TIER};

/// The zone in which calendars count if nothing is said.
const ZONE_DEFAULT: &str = "UTC";

/// What begins a value that requests say.
const OF_ATTRIBUTE: &str = "attr.";

/// One window of a limit, with what it holds by the limit's tables.
struct Sub {
    kind: WindowKind,
    name: String,
    quotas: Values<Option<Quota>>,
}

impl<'a> Compiler<'a> {
    pub(super) fn read_limit(&mut self, text: &'a LimitText, policy: &mut Policy) {
        let name = text.name.value.as_str();
        let on = text.on.as_ref().map(|on| self.read_matches(on));
        let except = self.read_matches(&text.except);
        self.check_reach(text, on.as_ref(), &except);
        let what = format!("limit `{name}`");
        let quotas = self.read_tree(&text.quotas, &what);
        let costs = self.read_tree(&text.costs, &format!("the cost of {what}"));
        let (Some(quotas), Some(costs)) = (quotas, costs) else { return };
        let per: Vec<Part> = text.per.iter().filter_map(|part| self.part(part, text)).collect();
        self.check_cost(text, &quotas, &costs);
        let costs = costs.values(&mut |cost| *cost);
        let tier_slot = if text.quotas.branches().iter().any(|branch| branch.by == Selector::Tier)
            || text.costs.branches().iter().any(|branch| branch.by == Selector::Tier)
        {
            self.attribute(TIER)
        } else {
            0
        };
        let subs = subs(text, &quotas);
        let anchor = self.anchor(text, &subs);
        for sub in subs {
            if policy.limits.len() >= LIMITS_MAX {
                let message = format!("more than {LIMITS_MAX} limits in the policy");
                self.errors.push(ErrorCode::Maximum, text.name.span, message);
                return;
            }
            let calendar = self.calendar(text, sub.kind, anchor.as_deref());
            let quota = sub.quotas.all().iter().flatten().next().copied();
            let quota = quota.unwrap_or(Quota::Unlimited(text.kind));
            let id = LimitId(policy.limits.len() as u16 + 1);
            let api = self.text.name.value.as_str();
            policy.limits.push(LimitInfo {
                id,
                api: api.into(),
                name: name.into(),
                window: sub.name.as_str().into(),
                kind: text.kind,
                mode: text.mode,
                keys_max: text.keys_max,
            });
            let identity = window_identity(text, sub.kind);
            let fixed = ["policy", api, name, &identity, text.kind.name()];
            let names = text.per.iter().map(|name| name.value.as_str());
            let space =
                LimitSpace::derive(self.seed, fixed.into_iter().chain(names).map(str::as_bytes));
            let limit = Limit {
                name: name.into(),
                window: sub.name.as_str().into(),
                quota,
                id,
                mode: text.mode,
                status: text.status,
                when_unavailable: text.when_unavailable,
                meter: 0,
                of_requests: text.meter.as_ref().is_none_or(|meter| meter.value == REQUESTS),
                costs: costs.clone(),
                quotas: sub.quotas,
                tier_slot,
                calendar,
                charge_on: text.charge,
                retry_after: text.retry_after,
                per: per.clone().into(),
                subject: 0,
                per_names: text.per.iter().map(|name| name.value.as_str().into()).collect(),
                window_kind: sub.kind,
                identity: identity.into(),
                terms: text.terms,
                skip_missing: text.skip_missing,
                space,
                on: on.clone(),
                except: except.clone(),
            };
            let meter = text.meter.as_ref().map_or(REQUESTS, |meter| &meter.value).to_owned();
            self.limits.push(ApiLimit { limit, meter });
        }
    }

    /// Whether any request at all is left to the limit.
    fn check_reach(&mut self, text: &LimitText, on: Option<&Matcher>, except: &Matcher) {
        let Some(on) = on else { return };
        let mut classes = on.sets.ids().peekable();
        let only_classes = on.conditions.is_empty()
            && classes.peek().is_some()
            && on.sets.ids().all(|set| usize::from(set) < self.classes.len());
        if only_classes && on.sets.ids().all(|set| except.sets.has(set)) {
            let message = format!("no request can reach limit `{}`", text.name.value);
            let help = "`except` takes away all that `on` gives";
            self.errors.push_with_help(ErrorCode::UnreachableLimit, text.name.span, message, help);
        }
    }

    /// A cost that no value of the limit holds would deny for ever.
    fn check_cost(
        &mut self,
        text: &LimitText,
        quotas: &Resolved<QuotaText>,
        costs: &Resolved<u64>,
    ) {
        let largest = costs.leaves().into_iter().copied().max().unwrap_or(1);
        let windows = quotas.leaves().into_iter().flat_map(|leaf| match leaf {
            QuotaText::Unlimited => &[][..],
            QuotaText::Windows(windows) => windows,
        });
        let held = windows.map(|window| window.quota.limit()).min().unwrap_or(UNLIMITED);
        if largest > held {
            let name = &text.name.value;
            let message = format!("a cost of {largest} never fits: limit `{name}` holds {held}");
            self.errors.push(ErrorCode::Cost, text.quota_span, message);
        }
    }

    /// One part of a limit's key, with attributes by their indexes among the API's.
    fn part(&mut self, part: &Text, text: &LimitText) -> Option<Part> {
        let name = part.value.as_str();
        if let Some((name, prefix)) = name.split_once('/') {
            let prefix = prefix.parse().ok().filter(|prefix| (1..=128).contains(prefix));
            if prefix.is_none() {
                let help = "as in \"ip/64\": of IPv6 the first 64 bits, IPv4 whole";
                let message = format!("`{}` is no key of addresses", part.value);
                self.errors.push_with_help(ErrorCode::AddressKey, part.span, message, help);
            }
            return Some(Part::Address { slot: self.attribute(name), prefix: prefix? });
        }
        if let Some(segment) = name.strip_prefix(':') {
            return self.segment(part, segment, text);
        }
        Some(match name {
            "method" => Part::Method,
            "path" => Part::Path,
            TIER => {
                if self.tiers.is_empty() {
                    let help = "name them: `tiers = [\"free\", …]`";
                    self.errors.push_with_help(
                        ErrorCode::UnknownTier,
                        part.span,
                        "the API has no tiers",
                        help,
                    );
                }
                Part::Tier { slot: self.attribute(TIER) }
            }
            "class" => {
                let sets = self.classes_of(text);
                Part::Set(self.told_apart(part, sets)?)
            }
            "route" => {
                let sets = self.routes_of(text);
                Part::Set(self.told_apart(part, sets)?)
            }
            name => Part::Slot(self.attribute(name)),
        })
    }

    fn told_apart(&mut self, part: &Text, sets: Vec<(SetId, String)>) -> Option<NamedSets> {
        if sets.is_empty() {
            let name = &part.value;
            let message = format!("`{name}` in `per`, and there is no {name} to tell apart");
            self.errors.push(ErrorCode::Key, part.span, message);
            return None;
        }
        let with_spans: Vec<_> =
            sets.iter().map(|(set, name)| (*set, part.span, name.clone())).collect();
        let order = self.routes.narrowest_first(&with_spans, self.errors);
        let named = order.into_iter().map(|index| {
            let (set, name) = &sets[index];
            (*set, name.as_bytes().into())
        });
        Some(named.collect())
    }

    /// The segment of that name in the routes of a limit.
    fn segment(&mut self, part: &Text, segment: &str, text: &LimitText) -> Option<Part> {
        let sets = self.routes_of(text);
        let mut places = Vec::new();
        for (set, name) in &sets {
            let route = self.routes.routes_of(*set).first();
            match route.and_then(|route| route.place_of(segment)) {
                Some(place) => places.push((*set, part.span, name.clone(), place as u16)),
                None => {
                    let message = format!("route `{name}` has no segment `:{segment}`");
                    let help = "`per` takes a segment that every route of the limit has";
                    self.errors.push_with_help(ErrorCode::Segment, part.span, message, help);
                    return None;
                }
            }
        }
        if places.is_empty() {
            let message = format!("`:{segment}` in `per`, and the limit has no routes");
            self.errors.push(ErrorCode::Segment, part.span, message);
            return None;
        }
        let with_spans: Vec<_> =
            places.iter().map(|(set, span, name, _)| (*set, *span, name.clone())).collect();
        let order = self.routes.narrowest_first(&with_spans, self.errors);
        let sets = order.into_iter().map(|index| (places[index].0, places[index].3));
        Some(Part::Segment(sets.collect()))
    }

    /// Classes that a limit names; all of them if it names none.
    fn classes_of(&mut self, text: &LimitText) -> Vec<(SetId, String)> {
        let mut names: Vec<&str> = Vec::new();
        for entry in text.on.iter().flatten() {
            match entry {
                MatchText::Class(name) => names.push(&name.value),
                MatchText::Route(_) => {}
                MatchText::All(all) => names.extend(values_of(all, "class")),
            }
        }
        for branch in text.quotas.branches() {
            if branch.by == Selector::Class {
                names.extend(branch.entries.iter().map(|(key, _)| key.value.as_str()));
            }
        }
        if names.is_empty() {
            names = self.classes.clone();
        }
        names.sort_unstable();
        names.dedup();
        let find = |name: &str| self.classes.binary_search(&name).ok();
        names
            .into_iter()
            .filter_map(|name| find(name).map(|set| (set as SetId, name.to_owned())))
            .collect()
    }

    /// Routes that a limit names, by itself or by classes; those of all classes if it names none.
    fn routes_of(&mut self, text: &LimitText) -> Vec<(SetId, String)> {
        let mut routes: Vec<Route> = Vec::new();
        let mut named = false;
        for entry in text.on.iter().flatten() {
            match entry {
                MatchText::Class(_) => {}
                MatchText::Route(route) => routes.push(route.route.clone()),
                MatchText::All(all) => routes
                    .extend(values_of(all, "route").filter_map(|route| Route::parse(route).ok())),
            }
        }
        for branch in text.quotas.branches() {
            if branch.by == Selector::Route {
                let keys = branch.entries.iter().filter(|(key, _)| key.value != OTHERS);
                routes.extend(keys.filter_map(|(key, _)| Route::parse(&key.value).ok()));
            }
        }
        named |= !routes.is_empty();
        let names_class = text.on.iter().flatten().any(|entry| match entry {
            MatchText::Class(_) => true,
            MatchText::Route(_) => false,
            MatchText::All(all) => values_of(all, "class").next().is_some(),
        }) || text.quotas.branches().iter().any(|b| b.by == Selector::Class);
        if names_class || !named {
            for (class, _) in self.classes_of(text) {
                routes.extend(self.routes.routes_of(class).iter().cloned());
            }
        }
        let mut found: Vec<(SetId, String)> = Vec::new();
        for route in routes {
            let set = self.routes.single(&route, text.name.span, self.errors);
            if found.iter().all(|(known, _)| *known != set) {
                found.push((set, route.text()));
            }
        }
        found
    }

    /// For each of the windows its anchor, if that is said.
    fn anchor(&mut self, text: &LimitText, subs: &[Sub]) -> Option<Box<str>> {
        let anchor = text.anchor.as_ref()?;
        let value = anchor.value.as_str();
        let periods: Vec<Period> = subs.iter().filter_map(|sub| period_of(sub.kind)).collect();
        if let Some(name) = value.strip_prefix(OF_ATTRIBUTE) {
            if periods.len() > 1 {
                let message = "an anchor that requests say, and several periods";
                let help = "give each period a limit of its own";
                self.errors.push_with_help(ErrorCode::Anchor, anchor.span, message, help);
            }
            if !is_name(name) {
                self.errors.push(
                    ErrorCode::Name,
                    anchor.span,
                    format!("`{name}` is no name of an attribute"),
                );
                return None;
            }
        } else if periods.iter().all(|period| Anchor::parse(*period, value).is_none()) {
            let message = format!("`{value}` is no anchor of these windows");
            let help = "a month begins on a day 1 to 31, a week on a weekday such as \"monday\", \
                        a day at an hour 0 to 23";
            self.errors.push_with_help(ErrorCode::Anchor, anchor.span, message, help);
            return None;
        }
        Some(value.into())
    }

    fn calendar(
        &mut self,
        text: &LimitText,
        kind: WindowKind,
        anchor: Option<&str>,
    ) -> Option<CalendarWindow> {
        let period = period_of(kind)?;
        let zone_name = text.tz.as_ref().map_or(ZONE_DEFAULT, |tz| &tz.value);
        let zone = match (zone_name.strip_prefix(OF_ATTRIBUTE), &text.tz) {
            (Some(name), _) if is_name(name) => Said::Slot(self.attribute(name)),
            (_, tz) => match Zone::named(zone_name) {
                Some(zone) => Said::Fixed(zone),
                None => {
                    let span = tz.as_ref().map_or(text.name.span, |tz| tz.span);
                    let names = Zone::names();
                    let help = did_you_mean(zone_name, names.iter().map(String::as_str));
                    let help = help.unwrap_or_else(|| {
                        "zones are called as in \"Europe/Berlin\" and \"UTC\"; \"attr.NAME\" \
                         takes it from the request"
                            .to_owned()
                    });
                    let message = format!("unknown time zone `{zone_name}`");
                    self.errors.push_with_help(ErrorCode::UnknownZone, span, message, help);
                    return None;
                }
            },
        };
        let fixed = anchor.and_then(|anchor| Anchor::parse(period, anchor));
        let anchor_at = match anchor.and_then(|anchor| anchor.strip_prefix(OF_ATTRIBUTE)) {
            Some(name) => Said::Slot(self.attribute(name)),
            None => Said::Fixed(fixed.unwrap_or(Anchor::default_of(period))),
        };
        let mut spec = Fingerprint::new();
        spec.part(&[period as u8]).part(zone_name.as_bytes());
        spec.part(format!("{anchor_at:?}").as_bytes());
        Some(CalendarWindow { spec: spec.finish(), period, zone, anchor: anchor_at })
    }
}

fn values_of<'t>(all: &'t [(Text, Vec<Text>)], key: &str) -> impl Iterator<Item = &'t str> {
    let of_key = all.iter().filter(move |(known, _)| known.value == key).collect::<Vec<_>>();
    of_key.into_iter().flat_map(|(_, values)| values.iter().map(|value| value.value.as_str()))
}

fn period_of(kind: WindowKind) -> Option<Period> {
    let WindowKind::Period(number) = kind else { return None };
    [Period::Day, Period::Week, Period::Month].into_iter().find(|known| *known as u8 == number)
}

/// All windows that any value of a limit names, the shortest first, each with what it holds.
fn subs(text: &LimitText, quotas: &Resolved<QuotaText>) -> Vec<Sub> {
    let mut kinds: Vec<(WindowKind, String)> = Vec::new();
    for leaf in quotas.leaves() {
        let QuotaText::Windows(windows) = leaf else { continue };
        for window in windows {
            if kinds.iter().all(|(kind, _)| *kind != window.kind) {
                kinds.push((window.kind, window.name.clone()));
            }
        }
    }
    if kinds.is_empty() {
        kinds.push((WindowKind::None, String::new()));
    }
    kinds.sort();
    kinds
        .into_iter()
        .map(|(kind, name)| {
            let mut quota = |leaf: &QuotaText| match leaf {
                QuotaText::Unlimited => Some(text.terms.unlimited(kind)),
                QuotaText::Windows(windows) => {
                    windows.iter().find(|window| window.kind == kind).map(|window| window.quota)
                }
            };
            Sub { kind, name, quotas: quotas.values(&mut quota) }
        })
        .collect()
}

/// What makes a window's counters themselves. The numbers are not part of it, so an edit of them
/// keeps usage, except for a window's length and alignment: another window counts anew. The window
/// counts by its length, not its place among others, so a second window keeps the first.
pub(super) fn window_identity(text: &LimitText, kind: WindowKind) -> String {
    match kind {
        WindowKind::None => String::new(),
        WindowKind::Length(length) if text.kind == Kind::Fixed => {
            let align = match text.terms.align {
                Align::Clock => "clock",
                Align::First => "first",
            };
            format!("{} ns {align}", length.get())
        }
        WindowKind::Length(length) => format!("{} ns", length.get()),
        WindowKind::Period(_) => {
            let period = period_of(kind).map_or("", period_name);
            let zone = text.tz.as_ref().map_or(ZONE_DEFAULT, |tz| &tz.value);
            let anchor = text.anchor.as_ref().map_or("", |anchor| &anchor.value);
            format!("{period} {zone} {anchor}").trim_end().to_owned()
        }
    }
}
