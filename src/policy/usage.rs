//! What one subject can have used of every limit of an API: which counters are its own, as far as
//! what it says of itself tells.
//!
//! The table knows keys as hashes only. Counters that routes and classes tell apart can all be
//! named, since the policy names these; those that the method, the path or a part of it tells apart
//! only if the caller says which.

use crate::engine::command::Charge;

use super::explain::text;
use super::facts::Facts;
use super::handle::{Handle, Limit};
use super::key::Part;
use super::maxima::OVERRIDE_COUNTERS_MAX;
use super::overrides::Override;
use super::resolve::{Context, Found, Memo, Request, Scratch, Wrong};
use super::route::{self, Router, SetId};

/// What one subject can have used of a limit.
#[derive(Clone, Debug)]
pub struct Use {
    /// Index in [`Handle::limits`].
    pub limit: u16,
    /// The route or class whose counter it is, where there are several.
    pub place: Option<String>,
    /// What makes its key, by the names in `per`; `?` where that is not known.
    pub key: Vec<(String, String)>,
    /// What it would be charged, with a cost of 0; else why that cannot be told.
    pub charge: Result<Charge, Unknown>,
    /// What overrides it for this key.
    pub overridden: Option<Override>,
}

/// Why a subject's counter cannot be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// In words.
    pub why: String,
    /// The values that would tell it: attributes, `method`, `path`.
    pub needs: Vec<String>,
}

impl Unknown {
    fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), needs: Vec::new() }
    }
}

/// What one subject can have used of an API's limits.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Name of the customer's tier, if it was looked at.
    pub tier: Option<String>,
    /// Whose it is, where identities stand for accounts.
    pub account: Option<String>,
    /// One for each of its counters, by limit; one without a counter for a limit of which it
    /// cannot be told.
    pub uses: Vec<Use>,
}

/// What the caller says of the requests' route.
struct Routed<'a> {
    /// Empty if it says none.
    method: &'a [u8],
    /// In normal form; empty if it says none.
    path: &'a [u8],
    /// The sets of routes that such requests can be in, one for each method that tells them apart.
    matched: Vec<Vec<u64>>,
}

impl Handle {
    /// What the subject of these values can have used of every limit of an API's own handle.
    /// `method` and `path` may both be missing.
    pub fn usage(
        &self,
        request: &Request<'_>,
        context: &Context<'_>,
        scratch: &mut Scratch,
    ) -> Usage {
        let costs = vec![0; self.meters.len()];
        let request = Request { values: request.values, costs: &costs };
        let subject = self.subject_facts(&request, context);
        let mut path = Vec::new();
        let routed = self.routed(&request, &mut path);
        let mut uses = Vec::new();
        for (index, limit) in self.limits.iter().enumerate() {
            let more = self.uses_of(index, limit, &subject, &routed, context, scratch);
            uses.extend(more);
            uses.truncate(OVERRIDE_COUNTERS_MAX);
        }
        Usage { tier: subject.tier_name.map(text), account: subject.account.map(text), uses }
    }

    /// Where requests of this method and path are, as far as it says.
    fn routed<'a>(&self, request: &Request<'a>, scratch: &'a mut Vec<u8>) -> Routed<'a> {
        let method = match request.value(0).unwrap_or_default() {
            b"HEAD" => b"GET",
            method => method,
        };
        let path = match request.value(1) {
            Some(path) => route::normalize(path, scratch),
            None => &[],
        };
        let matched = match &self.router {
            Some(router) if !path.is_empty() => router.matches_of(method, path),
            _ => Vec::new(),
        };
        Routed { method, path, matched }
    }

    fn uses_of(
        &self,
        index: usize,
        limit: &Limit,
        subject: &Facts<'_>,
        routed: &Routed<'_>,
        context: &Context<'_>,
        scratch: &mut Scratch,
    ) -> Vec<Use> {
        let words = self.router.as_ref().map_or(0, Router::words);
        if !limit.may_be_for(subject, words) {
            return Vec::new();
        }
        let mut uses: Vec<Use> = Vec::new();
        let mut add = |uses: &mut Vec<Use>, facts: &Facts<'_>, place: Option<String>| {
            let charge = match limit.charge(facts, context, &mut Memo::new(&mut scratch.calendars))
            {
                Ok(Some(charge)) => Ok(charge),
                Ok(None) if limit.is_off(facts, context) => Err(Unknown::because("off")),
                Ok(None) => return,
                Err(Wrong::Value((slot, found))) => Err(Unknown {
                    why: self.lack(slot, found),
                    needs: self.lacks(limit, facts, (slot, found)),
                }),
                Err(Wrong::Cost(_)) => Err(Unknown::because("the cost is too high")),
            };
            let key = limit.key_parts(facts);
            let quota = |of: &Result<Charge, Unknown>| of.as_ref().ok().map(|of| of.quota);
            match uses.iter_mut().find(|of| of.place == place && of.key == key) {
                // Methods that nobody said differ in the numbers.
                Some(known) if quota(&known.charge) != quota(&charge) => {
                    known.charge = Err(self.depends(limit, subject, vec!["method"]));
                }
                Some(_) => {}
                None => {
                    let overridden = limit.overridden(facts, context);
                    uses.push(Use { limit: index as u16, place, key, charge, overridden });
                }
            }
        };
        let exact: Vec<Facts<'_>> = routed
            .matched
            .iter()
            .map(|matched| {
                let Routed { method, path, .. } = *routed;
                Facts { matched, method, path, ..*subject }
            })
            .filter(|facts| limit.applies(facts))
            .collect();
        let mut elsewhere = false;
        if limit.per.iter().any(Part::by_path) {
            let unsaid = limit.unsaid(routed);
            if !unsaid.is_empty() {
                let unknown = self.depends(limit, subject, unsaid);
                let said = Facts { method: routed.method, ..*subject };
                return vec![limit.unknown(index, None, &said, unknown)];
            }
            match routed.path.is_empty() {
                // Of the route only the method is in the key.
                true => {
                    for (sets, place) in limit.places(words) {
                        let method = routed.method;
                        let facts = Facts { matched: &sets, method, ..*subject };
                        if limit.numbers_are_known(place.as_deref(), &facts, words) {
                            add(&mut uses, &facts, place);
                        } else {
                            let unknown = self.depends(limit, subject, vec!["path"]);
                            uses.push(limit.unknown(index, place, &facts, unknown));
                        }
                    }
                }
                false => {
                    for facts in &exact {
                        add(&mut uses, facts, limit.place_of(facts.matched));
                    }
                    elsewhere = exact.is_empty();
                }
            }
        } else {
            for (sets, place) in limit.places(words) {
                let facts = Facts { matched: &sets, ..*subject };
                let of_place = exact.iter().filter(|of| limit.place_of(of.matched) == place);
                let before = uses.len();
                of_place.for_each(|facts| add(&mut uses, facts, place.clone()));
                if uses.len() > before {
                    continue;
                }
                if place.as_deref() == Some(NO_ROUTE) && !limit.applies_anywhere(&facts) {
                    continue;
                }
                if limit.numbers_are_known(place.as_deref(), &facts, words) {
                    add(&mut uses, &facts, place);
                } else if routed.path.is_empty() {
                    let unsaid = if routed.method.is_empty() {
                        vec!["method", "path"]
                    } else {
                        vec!["path"]
                    };
                    let unknown = self.depends(limit, subject, unsaid);
                    uses.push(limit.unknown(index, place, &facts, unknown));
                } else {
                    elsewhere = true;
                }
            }
        }
        if elsewhere && uses.is_empty() {
            uses.push(limit.unknown(index, None, subject, Unknown::because(ELSEWHERE)));
        }
        uses
    }

    /// Why a limit's counter is not told without these and the attributes that are missing.
    fn depends(&self, limit: &Limit, subject: &Facts<'_>, unsaid: Vec<&'static str>) -> Unknown {
        let mut needs: Vec<String> = unsaid.iter().map(|name| (*name).to_owned()).collect();
        needs.extend(limit.per.iter().filter_map(|part| self.missing(part, subject)));
        let values: Vec<String> = needs.iter().map(|name| format!("{name}=…")).collect();
        let why = format!("depends on {}: add {}", unsaid.join(" and "), values.join(" "));
        Unknown { why, needs }
    }

    /// The attribute that a part of a key reads and the request does not bring.
    fn missing(&self, part: &Part, facts: &Facts<'_>) -> Option<String> {
        let slot = part.slot()?;
        let is_there = match part {
            Part::Tier { .. } => facts.tier_name.is_some() || facts.says_tier,
            _ => facts.value(slot).is_some(),
        };
        let name = self.slots.get(usize::from(slot)).map(|slot| slot.name.to_string());
        name.filter(|_| !is_there)
    }

    /// Every attribute without which a limit has no counter, where one is missing.
    fn lacks(&self, limit: &Limit, facts: &Facts<'_>, first: (u16, Found)) -> Vec<String> {
        let (slot, found) = first;
        if found != Found::Missing {
            return Vec::new();
        }
        let parts = limit.per.iter().filter_map(|part| self.missing(part, facts));
        let mut needs: Vec<String> = parts.collect();
        if let Some(slot) = self.slots.get(usize::from(slot))
            && !needs.contains(&slot.name.to_string())
        {
            needs.push(slot.name.to_string());
        }
        needs
    }
}

/// Stands for the route of a request that takes none of those that a limit tells apart.
const NO_ROUTE: &str = "*";

/// Why a limit that depends on the route has no counter for the one that was said.
const ELSEWHERE: &str = "is for other methods and paths";

impl Limit {
    /// Sets of routes that its key tells apart, with their names.
    fn named_sets(&self) -> &[(SetId, Box<[u8]>)] {
        let sets = self.per.iter().find_map(|part| match part {
            Part::Set(sets) => Some(&**sets),
            _ => None,
        });
        sets.unwrap_or_default()
    }

    /// Whether its numbers are the same for all requests of a place, whose sets these are: whichever
    /// other sets they are in.
    fn numbers_are_known(&self, place: Option<&str>, facts: &Facts<'_>, words: usize) -> bool {
        let named = self.named_sets();
        // Who is in an earlier one is of that place.
        let is_place =
            |(_, name): &(SetId, Box<[u8]>)| place.is_some_and(|of| **name == *of.as_bytes());
        let earlier = named.iter().position(is_place).unwrap_or(named.len());
        let may_be_in = |set: &SetId| !named[..earlier].iter().any(|(known, _)| known == set);
        let with = |sets: &mut dyn Iterator<Item = SetId>| {
            let mut matched = facts.matched.to_vec();
            matched.resize(words, 0);
            for set in sets {
                if let Some(word) = matched.get_mut(usize::from(set / 64)) {
                    *word |= 1 << (set % 64);
                }
            }
            self.quotas.find(&Facts { matched: &matched, ..*facts }).ok().flatten().copied()
        };
        let alone = with(&mut [].into_iter());
        let sets = || self.quotas.sets().filter(may_be_in);
        let mut each = sets().map(|set| with(&mut [set].into_iter()));
        each.all(|other| other == alone) && with(&mut sets()) == alone
    }

    /// What the caller would have to say of the route for its key to be told.
    fn unsaid(&self, routed: &Routed<'_>) -> Vec<&'static str> {
        let has = |is: fn(&Part) -> bool| self.per.iter().any(is);
        let method = has(|part| matches!(part, Part::Method)) && routed.method.is_empty();
        let path =
            has(|part| matches!(part, Part::Path | Part::Segment(_))) && routed.path.is_empty();
        method.then_some("method").into_iter().chain(path.then_some("path")).collect()
    }

    /// The routes or classes that its key tells apart, each as a set that its requests are in; one
    /// of no set if it tells none apart.
    fn places(&self, words: usize) -> Vec<(Vec<u64>, Option<String>)> {
        let sets = self.named_sets();
        if sets.is_empty() {
            return vec![(vec![0; words], None)];
        }
        let place = |(set, name): &(SetId, Box<[u8]>)| {
            let mut bits = vec![0; words];
            if let Some(word) = bits.get_mut(usize::from(*set / 64)) {
                *word |= 1 << (*set % 64);
            }
            (bits, Some(text(name)))
        };
        let none = (vec![0; words], Some(NO_ROUTE.to_owned()));
        sets.iter().map(place).chain([none]).collect()
    }

    /// The one of them that requests in these sets are of.
    fn place_of(&self, matched: &[u64]) -> Option<String> {
        let sets = self.named_sets();
        let first = sets.iter().find(|(set, _)| Router::is_in(*set, matched));
        let place = first.map_or(NO_ROUTE.to_owned(), |(_, name)| text(name));
        Some(place).filter(|_| !sets.is_empty())
    }

    /// Whether it is for a request in these sets on some path.
    fn applies_anywhere(&self, facts: &Facts<'_>) -> bool {
        self.on.as_ref().is_none_or(|on| on.holds(facts) || on.by_path())
    }

    /// Whether it may be for a request of the subject, whatever its route.
    fn may_be_for(&self, facts: &Facts<'_>, words: usize) -> bool {
        let (all, none) = (vec![u64::MAX; words], vec![0; words]);
        let anywhere = Facts { matched: &all, ..*facts };
        let nowhere = Facts { matched: &none, ..*facts };
        self.applies_anywhere(&anywhere) && !self.except.holds(&nowhere)
    }

    /// The limit without a counter.
    fn unknown(
        &self,
        index: usize,
        place: Option<String>,
        facts: &Facts<'_>,
        unknown: Unknown,
    ) -> Use {
        let parts = self.per.iter().zip(&self.per_names);
        let shown = parts.map(|(part, name)| {
            let is_known = match part {
                Part::Slot(_) | Part::Address { .. } | Part::Tier { .. } => true,
                Part::Set(_) => place.is_some(),
                Part::Method => !facts.method.is_empty(),
                Part::Path | Part::Segment(_) => !facts.path.is_empty(),
            };
            let value = part.value(facts).ok().filter(|_| is_known).map(text);
            (name.to_string(), value.unwrap_or_else(|| "?".to_owned()))
        });
        let key = shown.collect();
        Use { limit: index as u16, place, key, charge: Err(unknown), overridden: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::examples::EXAMPLES;
    use super::super::{Policy, Source};
    use super::*;
    use crate::engine::key::Seed;

    const SHOP: Source<'static> = Source {
        name: "shop",
        text: "schema = 1
[api.shop]
class.orders = ['POST /orders', 'GET /orders/:id', 'POST /orders/:id/lines']
class.items = ['GET /orders/:id']
class.reads = ['GET *']
[api.shop.limit]
plain = { per = ['user'], bucket = '9/min' }
each = { per = ['user', 'route'], fixed.route = { 'POST /orders' = '5/min', 'GET *' = '7/min' } }
any = { on = ['items', 'reads'], per = ['user', 'class'], fixed.class = { reads = '8/min', '*' = '6/min' } }
item = { on = ['/orders/:id', '/lines/:id'], per = ['user', ':id'], fixed = '3/min' }
line = { on = 'POST /orders/:id/lines', per = ['route', ':id'], fixed = '4/day' }
verb = { per = ['user', 'method'], bucket = '2/min' }
mix = { per = ['user', 'method'], fixed.route = { '/a' = '4/min', '*' = '2/min' } }
spot = { except = '/health', per = ['path'], bucket = '2/min' }
held = { per = ['user'], lease = '1min', concurrent.route = { 'POST /orders' = 2, '*' = 4 } }
gone = { per = ['user', 'path'], bucket = '2/min', mode = 'off' }
",
    };

    fn policy() -> Policy {
        let sources = EXAMPLES.iter().copied().chain([SHOP]).collect::<Vec<_>>();
        Policy::compile(&sources, &Seed::new([7; 16])).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// Each row in a line: limit, place, key, and the limit or why there is none.
    fn told(said: &[(&str, &str)]) -> Vec<String> {
        let policy = policy();
        let handle = policy.handle_of("shop", None).unwrap();
        let mut values = vec![None; handle.slots().len()];
        for (name, value) in said {
            values[handle.slot(name).unwrap()] = Some(value.as_bytes());
        }
        let request = Request { values: &values, costs: &[] };
        let usage = handle.usage(&request, &Context::default(), &mut Scratch::default());
        let row = |of: Use| {
            let name = handle.limits()[usize::from(of.limit)].name.to_string();
            let key: Vec<String> =
                of.key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let what = match of.charge {
                Ok(charge) => charge.quota.limit().to_string(),
                Err(unknown) => format!("{} {:?}", unknown.why, unknown.needs),
            };
            format!("{name} {} {} {what}", of.place.as_deref().unwrap_or("-"), key.join(","))
        };
        usage.uses.into_iter().map(row).collect()
    }

    #[test]
    fn a_counter_by_path_is_shown_where_the_path_is_said_and_asked_for_where_not() {
        let subject = told(&[("user", "u")]);
        assert_eq!(
            subject,
            [
                "any items user=u,class=items depends on method and path: add method=… path=… [\"method\", \"path\"]",
                "any reads user=u,class=reads 8",
                "each POST /orders user=u,route=POST /orders 5",
                "each GET * user=u,route=GET * 7",
                "gone - user=u,path=? depends on path: add path=… [\"path\"]",
                "held - user=u depends on method and path: add method=… path=… [\"method\", \"path\"]",
                "item - user=u,:id=? depends on path: add path=… [\"path\"]",
                "line - route=?,:id=? depends on path: add path=… [\"path\"]",
                "mix - user=u,method=? depends on method: add method=… [\"method\"]",
                "plain - user=u 9",
                "spot - path=? depends on path: add path=… [\"path\"]",
                "verb - user=u,method=? depends on method: add method=… [\"method\"]",
            ]
        );
        let nobody = told(&[]);
        for row in [
            "plain - user=? attribute `user` is missing [\"user\"]",
            "verb - user=?,method=? depends on method: add method=… user=… [\"method\", \"user\"]",
        ] {
            assert!(nobody.contains(&row.to_owned()), "{nobody:#?}");
        }
        let at = told(&[("user", "u"), ("method", "HEAD"), ("path", "//orders/7?x=1")]);
        for row in [
            "any items user=u,class=items 8",
            "each GET * user=u,route=GET * 7",
            "gone - user=u,path=/orders/7 off []",
            "held - user=u 4",
            "item - user=u,:id=7 3",
            "line - route=?,:id=? is for other methods and paths []",
            "spot - path=/orders/7 2",
            "verb - user=u,method=GET 2",
        ] {
            assert!(at.contains(&row.to_owned()), "{row} is not in {at:#?}");
        }
        let verb = told(&[("user", "u"), ("method", "PUT")]);
        assert!(verb.contains(&"verb - user=u,method=PUT 2".to_owned()), "{verb:#?}");
        let ask = "mix - user=u,method=PUT depends on path: add path=… [\"path\"]";
        assert!(verb.contains(&ask.to_owned()), "{verb:#?}");
        let held = told(&[("user", "u"), ("path", "/orders")]);
        let ask = "held - user=u depends on method: add method=… [\"method\"]";
        assert!(held.contains(&ask.to_owned()), "{held:#?}");
        // A path says the counter where no method tells two apart.
        let lines = told(&[("user", "u"), ("path", "/orders/7/lines")]);
        let line = "line POST /orders/:id/lines route=POST /orders/:id/lines,:id=7 4";
        assert!(lines.contains(&line.to_owned()), "{lines:#?}");
        let health = told(&[("path", "/health")]);
        assert!(health.contains(&"spot - path=? is for other methods and paths []".to_owned()));
    }

    /// Whatever a request of the subject is charged on is told: by its counter and numbers if method
    /// and path are said; else by its counter, or by what is needed to know it.
    #[test]
    fn usage_tells_every_counter_that_a_request_is_charged_on() {
        const PATHS: [(&str, &str, &str); 14] = [
            ("media", "POST", "/v1/images/7/cancel"),
            ("media", "POST", "/v1/files"),
            ("chat", "GET", "/mave/chat"),
            ("generate", "POST", "/aud2video"),
            ("vault", "POST", "/upload/stream-batch"),
            ("studio", "POST", "/auth/login"),
            ("llm", "POST", "/v1/responses"),
            ("github", "GET", "/search/code"),
            ("shop", "POST", "/orders"),
            ("shop", "HEAD", "/orders/7"),
            ("shop", "POST", "/orders/7/lines/"),
            ("shop", "PUT", "/lines/8"),
            ("shop", "GET", "/health"),
            ("shop", "DELETE", "/else"),
        ];
        const VALUES: [&str; 9] =
            ["", "free", "pro", "premium", "enterprise", "session", "192.0.2.1", "token", "x"];
        let policy = policy();
        let value = prop::option::of(prop::sample::select(&VALUES[..]));
        proptest!(|(values in prop::collection::vec(value, 24))| {
            for (api, method, path) in PATHS {
                let handle = policy.handle_of(api, None).unwrap();
                let mut found: Vec<Option<&[u8]>> =
                    values.iter().map(|value| value.map(str::as_bytes)).collect();
                found.truncate(handle.slots().len());
                let (context, scratch) = (Context::default(), &mut Scratch::default());
                let (mut charges, mut limits) = (Vec::new(), Vec::new());
                (found[0], found[1]) = (Some(method.as_bytes()), Some(path.as_bytes()));
                let request = Request { values: &found, costs: &[] };
                let _ = handle.resolve(&request, &context, scratch, &mut charges, &mut limits);
                let exact = handle.usage(&request, &context, scratch).uses;
                let mut of_all = found.clone();
                (of_all[0], of_all[1]) = (None, None);
                let request = Request { values: &of_all, costs: &[] };
                let all = handle.usage(&request, &context, scratch).uses;
                for (index, charge) in limits.iter().zip(&charges) {
                    let name = &handle.limits()[usize::from(*index)].name;
                    let has = |of: &&Use| {
                        of.limit == *index && of.charge.as_ref().is_ok_and(|c| c.key == charge.key)
                    };
                    let known = exact.iter().find(has);
                    let quota = known.and_then(|of| Some(of.charge.as_ref().ok()?.quota));
                    prop_assert_eq!(
                        format!("{quota:?}"), format!("{:?}", Some(charge.quota)),
                        "{} {} {} {}", api, method, path, name
                    );
                    let asks = |of: &Use| {
                        of.limit == *index && of.charge.as_ref().is_err_and(|of| !of.needs.is_empty())
                    };
                    prop_assert!(
                        all.iter().any(|of| has(&of) || asks(of)),
                        "{} {} {} {}", api, method, path, name
                    );
                }
            }
        });
    }
}
