//! A request to charges: which limits apply, which counter of each, how many units.
//!
//! This runs for every check. It allocates nothing once its buffers have grown, and hashes nothing
//! but key values.

use core::fmt;
use core::ops::Range;

use crate::engine::command::{CHARGES_MAX, Charge};
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
    pub fn resolve(
        &self,
        request: &Request<'_>,
        scratch: &mut Scratch,
        charges: &mut Vec<Charge>,
        limits: &mut Vec<u16>,
    ) -> Result<Resolved, ResolveError> {
        let (charges_at, limits_at) = (charges.len(), limits.len());
        let result = self.append(request, scratch, charges, limits);
        let count = charges.len() - charges_at;
        let result = match result {
            Ok(_) if count > CHARGES_MAX => Err(ResolveError::TooManyLimits { found: count }),
            result => result,
        };
        match result {
            Ok(unmatched) => Ok(Resolved { charges_at, limits_at, count, unmatched }),
            Err(error) => {
                charges.truncate(charges_at);
                limits.truncate(limits_at);
                Err(error)
            }
        }
    }

    /// Says whether no limit knew the request.
    fn append(
        &self,
        request: &Request<'_>,
        scratch: &mut Scratch,
        charges: &mut Vec<Charge>,
        limits: &mut Vec<u16>,
    ) -> Result<bool, ResolveError> {
        let routed = self.route(request, scratch)?;
        let mut unmatched = true;
        let mut bad: Option<ResolveError> = None;
        for (index, limit) in self.limits.iter().enumerate() {
            if routed.is_some_and(|matched| !limit.applies(matched)) {
                continue;
            }
            unmatched = false;
            if limit.mode == Mode::Off {
                continue;
            }
            let index = index as u16;
            match limit.bad_value(request) {
                None => {}
                Some((_, Found::Missing)) if limit.skip_missing => continue,
                Some((slot, found)) => {
                    let when_unavailable = limit.when_unavailable;
                    let wins = match bad {
                        Some(ResolveError::BadAttribute { when_unavailable: known, .. }) => {
                            when_unavailable > known
                        }
                        _ => true,
                    };
                    if wins {
                        bad = Some(ResolveError::BadAttribute {
                            limit: Some(index),
                            slot,
                            found,
                            when_unavailable,
                        });
                    }
                    continue;
                }
            }
            charges.push(self.charge(index, limit, request)?);
            limits.push(index);
        }
        bad.map_or(Ok(unmatched), Err)
    }

    /// The sets of routes that the request is in; `None` where the caller has routed.
    #[inline]
    fn route<'s>(
        &self,
        request: &Request<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<Option<&'s [u64]>, ResolveError> {
        let Some(router) = &self.router else { return Ok(None) };
        let method = self.route_value(request, 0, VALUE_BYTES_MAX)?;
        let path = self.route_value(request, 1, PATH_BYTES_MAX)?;
        let path = route::normalize(path, &mut scratch.path);
        router.matches(method, path, &mut scratch.matched);
        Ok(Some(&scratch.matched))
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

    #[inline]
    fn charge(
        &self,
        index: u16,
        limit: &Limit,
        request: &Request<'_>,
    ) -> Result<Charge, ResolveError> {
        let amount = match request.costs.get(usize::from(limit.meter)) {
            Some(amount) => *amount,
            None => u64::from(&*self.meters[usize::from(limit.meter)] == REQUESTS),
        };
        let cost = amount
            .checked_mul(limit.cost)
            .filter(|cost| *cost <= UNITS_MAX)
            .ok_or(ResolveError::CostTooLarge { limit: index, found: amount })?;
        let values = limit.per.iter().map(|slot| request.value(*slot).unwrap_or_default());
        Ok(Charge { key: limit.space.key(values), quota: limit.quota, cost, limit: limit.id })
    }
}

/// The meter that a check charges if it does not say: 1 a check.
pub(super) const REQUESTS: &str = "requests";

impl Limit {
    #[inline]
    fn applies(&self, matched: &[u64]) -> bool {
        self.on.as_ref().is_none_or(|on| on.meet(matched)) && !self.except.meet(matched)
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
