//! A request to charges: which limits apply, which counter of each, how many units.
//!
//! This runs for every check. It allocates nothing once its buffers have grown, and hashes nothing
//! but key values.

use core::fmt;
use core::ops::Range;

use crate::engine::command::{CHARGES_MAX, Charge};
use crate::engine::key::Key;
use crate::engine::quota::UNITS_MAX;

use super::handle::{Handle, Limit, Mode, Unavailable};
use super::maxima::{PATH_BYTES_MAX, VALUE_BYTES_MAX};
use super::route;

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

/// Buffers that one thread reuses for all its requests.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    path: Vec<u8>,
    matched: Vec<u64>,
}

/// Where a request's charges and limits were appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    charges_at: usize,
    limits_at: usize,
    count: usize,
    /// Whether no limit of the policy knows the request, not even one that is off. It is allowed.
    pub unmatched: bool,
}

impl Resolved {
    /// One charge at these places.
    pub fn one(charges_at: usize, limits_at: usize) -> Self {
        Self { charges_at, limits_at, count: 1, unmatched: false }
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
    /// index of its limit in [`Handle::limits`] to `limits`.
    ///
    /// # Errors
    /// See [`ResolveError`]; nothing is appended then.
    #[inline]
    pub fn resolve(
        &self,
        request: &Request<'_>,
        scratch: &mut Scratch,
        charges: &mut Vec<Charge>,
        limits: &mut Vec<u16>,
    ) -> Result<Resolved, ResolveError> {
        let (charges_at, limits_at) = (charges.len(), limits.len());
        match self.append(request, scratch, charges, limits) {
            Ok(unmatched) if charges.len() - charges_at <= CHARGES_MAX => {
                let count = charges.len() - charges_at;
                Ok(Resolved { charges_at, limits_at, count, unmatched })
            }
            result => {
                let found = charges.len() - charges_at;
                charges.truncate(charges_at);
                limits.truncate(limits_at);
                Err(result.err().unwrap_or(ResolveError::TooManyLimits { found }))
            }
        }
    }

    /// Says whether no limit knew the request.
    #[inline]
    fn append(
        &self,
        request: &Request<'_>,
        scratch: &mut Scratch,
        charges: &mut Vec<Charge>,
        limits: &mut Vec<u16>,
    ) -> Result<bool, ResolveError> {
        let routed = match &self.router {
            None => None,
            Some(router) => Some(self.route(router, request, scratch)?),
        };
        let mut unmatched = true;
        for (index, limit) in self.limits.iter().enumerate() {
            if routed.is_some_and(|matched| !limit.applies(matched)) {
                continue;
            }
            unmatched = false;
            if limit.mode == Mode::Off {
                continue;
            }
            let Some(key) = limit.key(request) else {
                self.without_key(routed, limit, request)?;
                continue;
            };
            let cost = match request.costs.get(usize::from(limit.meter)) {
                None => limit.unasked_cost,
                Some(amount) => amount
                    .checked_mul(limit.cost)
                    .filter(|cost| *cost <= UNITS_MAX)
                    .ok_or(ResolveError::CostTooLarge { limit: index as u16, found: *amount })?,
            };
            charges.push(Charge::new(key, limit.quota, cost, limit.id));
            limits.push(index as u16);
        }
        Ok(unmatched)
    }

    /// What to make of a limit whose key is not in the request: nothing if it lets such requests
    /// opt out, else the error, of all limits whose key is not there the one that says `deny`.
    #[cold]
    fn without_key(
        &self,
        routed: Option<&[u64]>,
        limit: &Limit,
        request: &Request<'_>,
    ) -> Result<(), ResolveError> {
        if limit.opted_out(request) {
            return Ok(());
        }
        let mut bad = None;
        for (index, limit) in self.limits.iter().enumerate() {
            let concerned = routed.is_none_or(|matched| limit.applies(matched))
                && limit.mode != Mode::Off
                && !limit.opted_out(request);
            let Some((slot, found)) = limit.bad_value(request).filter(|_| concerned) else {
                continue;
            };
            let when_unavailable = limit.when_unavailable;
            if bad.as_ref().is_none_or(|&(_, _, _, known)| when_unavailable > known) {
                bad = Some((index as u16, slot, found, when_unavailable));
            }
        }
        let Some((limit, slot, found, when_unavailable)) = bad else { return Ok(()) };
        Err(ResolveError::BadAttribute { limit: Some(limit), slot, found, when_unavailable })
    }

    /// The sets of routes that the request is in.
    fn route<'s>(
        &self,
        router: &super::route::Router,
        request: &Request<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u64], ResolveError> {
        let method = self.route_value(request, 0, VALUE_BYTES_MAX)?;
        let path = self.route_value(request, 1, PATH_BYTES_MAX)?;
        let path = route::normalize(path, &mut scratch.path);
        router.matches(method, path, &mut scratch.matched);
        Ok(&scratch.matched)
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

impl Limit {
    #[inline]
    fn applies(&self, matched: &[u64]) -> bool {
        self.on.as_ref().is_none_or(|on| on.meet(matched)) && !self.except.meet(matched)
    }

    /// The key of the request's counter, if the request has all its values.
    #[inline]
    fn key(&self, request: &Request<'_>) -> Option<Key> {
        // One value makes most keys; a loop over one costs more than the hash.
        if let [slot] = *self.per {
            let value = request.value(slot).filter(|value| value.len() <= VALUE_BYTES_MAX)?;
            return Some(self.space.key_of_one(value));
        }
        if self.bad_value(request).is_some() {
            return None;
        }
        let values = self.per.iter().map(|slot| request.value(*slot).unwrap_or_default());
        Some(self.space.key(values))
    }

    /// Whether the limit lets a request without its attributes pass by.
    fn opted_out(&self, request: &Request<'_>) -> bool {
        self.skip_missing && matches!(self.bad_value(request), Some((_, Found::Missing)))
    }

    /// The first value of the key that cannot be one.
    #[inline]
    fn bad_value(&self, request: &Request<'_>) -> Option<(u16, Found)> {
        self.per.iter().find_map(|slot| match request.value(*slot) {
            None => Some((*slot, Found::Missing)),
            Some(value) if value.len() > VALUE_BYTES_MAX => {
                let found = Found::TooLong { bytes: value.len(), bytes_max: VALUE_BYTES_MAX };
                Some((*slot, found))
            }
            Some(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{BUILT_IN, Policy, Source};
    use super::*;
    use crate::engine::key::Seed;

    fn policy(text: &str) -> Policy {
        match Policy::compile(&[Source { name: "p.toml", text }], &Seed::new([7; 16])) {
            Ok(policy) => policy,
            Err(errors) => panic!("{errors}"),
        }
    }

    type Outcome = Result<(Vec<Charge>, Vec<u16>, bool), ResolveError>;

    fn resolve(handle: &Handle, values: &[Option<&[u8]>], costs: &[u64]) -> Outcome {
        let (mut charges, mut limits) = (Vec::new(), Vec::new());
        let request = Request { values, costs };
        let resolved =
            handle.resolve(&request, &mut Scratch::default(), &mut charges, &mut limits)?;
        assert_eq!(charges[resolved.charges()].len(), charges.len());
        Ok((charges, limits, resolved.unmatched))
    }

    const POLICY: &str = r#"schema = 1
[api.a]
class.x = ["POST /x", "/y/*"]
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
        assert_eq!(at("PUT", "/y/1"), ["b.minute", "b.day", "c.", "d.", "z."]);
        assert_eq!(at("PUT", "/y/free"), ["b.minute", "b.day", "d.", "z."]);
        assert_eq!(at("PUT", "/y/1/2"), ["b.minute", "b.day", "z."]);
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
        assert_eq!(of("y"), ("user plan".into(), "c. d. z.".into()));
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
        assert_eq!(names(api, &limits), ["b.minute", "b.day", "c.", "z."]);
    }

    #[test]
    fn costs_are_per_meter_and_multiply() {
        let policy = policy(POLICY);
        let handle = policy.handle_of("a", Some("y")).unwrap();
        let costs_of = |costs: &[u64]| {
            let outcome = resolve(handle, &[Some(b"u"), Some(b"p")], costs);
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
            let result = handle.resolve(&request, &mut scratch, &mut charges, &mut limits);
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

        #[test]
        fn a_class_charges_what_its_api_does(team in prop::collection::vec(any::<u8>(), 0..40)) {
            let policy = policy(BUILT_IN.text);
            let api = policy.handle_of("media", None).unwrap();
            for (class, method, path) in [
                ("images_post", "POST", "/v1/images/7/cancel"),
                ("videos_post", "POST", "/v1/videos"),
                ("read", "GET", "/v1/usage"),
                ("files_post", "POST", "/v1/files"),
            ] {
                let handle = policy.handle_of("media", Some(class)).unwrap();
                let by_class = resolve(handle, &[Some(&team)], &[]).unwrap().0;
                let values = [Some(method.as_bytes()), Some(path.as_bytes()), Some(&team)];
                let by_api = resolve(api, &values, &[]).unwrap().0;
                let keys = |charges: &[Charge]| -> Vec<_> {
                    charges.iter().map(|charge| (charge.key, charge.limit, charge.cost)).collect()
                };
                prop_assert_eq!(keys(&by_class), keys(&by_api));
            }
        }
    }
}
