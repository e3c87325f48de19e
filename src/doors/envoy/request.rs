//! Descriptors to requests of a policy. Pure: a message and a policy in, what is asked or what is
//! wrong with it out.
//!
//! A domain is an API, and a descriptor a request of it. Its entries are attributes, but for those
//! that this door keeps for itself: `method` and `path` route it, `limit` names the limits that it
//! is for, `@cost` and `@cost.METER` are amounts, and `settle` and `permit` come after the fact.

use std::borrow::Cow;

use crate::engine::command::Amend;
use crate::engine::permit::PermitId;
use crate::engine::quota::UNITS_MAX;
use crate::policy::import::attribute_name;
use crate::policy::{Handle, Part, Policy, Request};

use super::grpc::{Fault, shown};
use super::proto::{RateLimitDescriptor, RateLimitRequest};
use super::{DESCRIPTORS_MAX, ENTRIES_MAX, KEY_BYTES_MAX};

/// The meter that hits are counted by where a descriptor names no limit.
const REQUESTS: &str = "requests";

/// The attribute that a policy may read to tell descriptors apart by their keys: all of them, in
/// their order, with a comma between.
pub(super) const DESCRIPTOR: &str = "descriptor";

const LIMIT: &str = "limit";
const PERMIT: &str = "permit";
const SETTLE: &str = "settle";
const COST: &str = "@cost";

/// What a call asks.
pub(super) struct Call<'a> {
    pub(super) handle: &'a Handle,
    pub(super) descriptors: Vec<Descriptor<'a>>,
}

/// What one descriptor asks.
#[derive(Debug, PartialEq)]
pub(super) struct Descriptor<'a> {
    pub(super) act: Act,
    values: Vec<Option<Cow<'a, [u8]>>>,
    costs: Vec<u64>,
    limits: Option<Vec<u16>>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Whether it may pass; it is charged if all of the call may.
    Check,
    /// What was used is more or less than was charged.
    Amend(Amend),
    /// A permit is given back.
    Release(PermitId),
}

impl Descriptor<'_> {
    /// The values as the desk takes them.
    pub(super) fn values(&self) -> Vec<Option<&[u8]>> {
        self.values.iter().map(Option::as_deref).collect()
    }

    /// The request with these values.
    pub(super) fn part<'r>(&'r self, values: &'r [Option<&'r [u8]>]) -> Part<'r> {
        Part { request: Request { values, costs: &self.costs }, limits: self.limits.as_deref() }
    }
}

/// Reads a call.
pub(super) fn read<'a>(
    message: &'a RateLimitRequest,
    policy: &'a Policy,
) -> Result<Call<'a>, Fault> {
    let domain = &message.domain;
    let Some(handle) = policy.handle_of(domain, None) else {
        let known: Vec<&str> = policy.apis().collect();
        let (found, known) = (shown(domain), known.join(", "));
        let message = format!("domain `{found}` is no API of the policy, allowed are {known}");
        return Err(Fault::invalid(message));
    };
    let found = message.descriptors.len();
    if !(1..=DESCRIPTORS_MAX).contains(&found) {
        let message = format!("there are {found} descriptors, allowed are 1 to {DESCRIPTORS_MAX}");
        return Err(Fault::invalid(message));
    }
    let descriptors = message.descriptors.iter().enumerate();
    let descriptors = descriptors.map(|(index, descriptor)| {
        descriptor_of(descriptor, message.hits_addend, handle)
            .map_err(|what| Fault::invalid(format!("descriptors[{index}]: {what}")))
    });
    Ok(Call { handle, descriptors: descriptors.collect::<Result<_, _>>()? })
}

fn descriptor_of<'a>(
    descriptor: &'a RateLimitDescriptor,
    hits_of_all: u32,
    handle: &Handle,
) -> Result<Descriptor<'a>, String> {
    let entries = Entries::read(descriptor)?;
    let limits = entries.limits(handle)?;
    let hits = match (descriptor.hits_addend, hits_of_all) {
        (Some(hits), _) => Some(hits.value),
        (None, 0) => None,
        (None, hits) => Some(u64::from(hits)),
    };
    if let Some(found) = hits.filter(|hits| *hits > UNITS_MAX) {
        return Err(format!("hits_addend is {found}, allowed is 0 to {UNITS_MAX}"));
    }
    let units = hits.unwrap_or(1);
    let is_negative = descriptor.is_negative_hits;
    let act = match (entries.permit()?, entries.reserved(SETTLE).is_some(), is_negative) {
        (Some(permit), ..) => Act::Release(permit),
        (None, _, true) => Act::Amend(Amend::GiveBack(units)),
        (None, true, false) => Act::Amend(Amend::Add(units)),
        (None, false, false) => Act::Check,
    };
    let costs = match act {
        Act::Check => entries.costs(handle, limits.as_deref(), hits)?,
        Act::Amend(_) | Act::Release(_) => Vec::new(),
    };
    let is_unrouted = limits.is_none() && !entries.is_routed();
    let values = handle.slots().iter().map(|slot| match (&*slot.name, entries.value(&slot.name)) {
        (_, Some(value)) => Some(Cow::Borrowed(value)),
        // It takes no route, as a descriptor may that is about an address only.
        ("method" | "path", None) if is_unrouted => Some(Cow::Borrowed(&[][..])),
        (DESCRIPTOR, None) => Some(Cow::Owned(entries.joined_keys().into_bytes())),
        (_, None) => None,
    });
    Ok(Descriptor { act, values: values.collect(), costs, limits })
}

/// The entries of a descriptor, by the names that a policy may have for them.
struct Entries<'a> {
    list: Vec<(Cow<'a, str>, &'a str, &'a [u8])>,
}

impl<'a> Entries<'a> {
    fn read(descriptor: &'a RateLimitDescriptor) -> Result<Self, String> {
        let found = descriptor.entries.len();
        if !(1..=ENTRIES_MAX).contains(&found) {
            return Err(format!("there are {found} entries, allowed are 1 to {ENTRIES_MAX}"));
        }
        if descriptor.limit.is_some() {
            return Err("it brings a limit of its own, allowed are those of the policy: send an \
                        entry `limit` with the name of one"
                .to_owned());
        }
        let mut list: Vec<(Cow<'a, str>, &str, &[u8])> = Vec::with_capacity(found);
        for entry in &descriptor.entries {
            let found = entry.key.len();
            if !(1..=KEY_BYTES_MAX).contains(&found) {
                return Err(format!("a key has {found} bytes, allowed are 1 to {KEY_BYTES_MAX}"));
            }
            let earlier = list.iter().filter(|(_, key, _)| *key == entry.key).count();
            list.push((attribute_name(&entry.key, earlier), &entry.key, &entry.value));
        }
        Ok(Self { list })
    }

    fn value(&self, name: &str) -> Option<&'a [u8]> {
        let entry = self.list.iter().find(|(known, ..)| known == name);
        entry.filter(|(_, key, _)| !is_reserved(key)).map(|(.., value)| *value)
    }

    fn reserved(&self, key: &str) -> Option<&'a [u8]> {
        self.list.iter().find(|(_, known, _)| *known == key).map(|(.., value)| *value)
    }

    fn is_routed(&self) -> bool {
        ["method", "path"].iter().any(|key| self.value(key).is_some())
    }

    fn joined_keys(&self) -> String {
        let keys = self.list.iter().map(|(_, key, _)| *key).filter(|key| !is_reserved(key));
        keys.collect::<Vec<&str>>().join(",")
    }

    fn permit(&self) -> Result<Option<PermitId>, String> {
        let Some(value) = self.reserved(PERMIT) else { return Ok(None) };
        let digits = core::str::from_utf8(value).ok().filter(|text| text.len() == 32);
        let number = digits.and_then(|text| u128::from_str_radix(text, 16).ok());
        let permit = number.map(|number| PermitId(number.to_be_bytes()));
        permit.map(Some).ok_or_else(|| {
            let found = shown(&String::from_utf8_lossy(value));
            format!("entry `permit` is `{found}`, allowed are 32 hexadecimal digits")
        })
    }

    /// The limits that are named, each window of them; `None` if none is.
    fn limits(&self, handle: &Handle) -> Result<Option<Vec<u16>>, String> {
        let mut all: Option<Vec<u16>> = None;
        for (_, _, value) in self.list.iter().filter(|(_, key, _)| *key == LIMIT) {
            let name = String::from_utf8_lossy(value);
            let limits = handle.limits().iter().enumerate();
            let named = limits
                .filter(|(_, limit)| *limit.name == *name || limit.full_name() == *name)
                .filter_map(|(index, _)| u16::try_from(index).ok());
            let all = all.get_or_insert_default();
            let before = all.len();
            all.extend(named);
            if all.len() == before {
                let known: Vec<String> = handle.limits().iter().map(|it| it.full_name()).collect();
                let (found, known) = (shown(&name), known.join(", "));
                return Err(format!("there is no limit `{found}`, allowed are {known}"));
            }
        }
        if let Some(all) = &mut all {
            all.sort_unstable();
            all.dedup();
        }
        Ok(all)
    }

    /// An amount for each meter; none where nothing is said.
    fn costs(
        &self,
        handle: &Handle,
        limits: Option<&[u16]>,
        hits: Option<u64>,
    ) -> Result<Vec<u64>, String> {
        let amounts: Vec<(&str, &[u8])> = self
            .list
            .iter()
            .filter_map(|(_, key, value)| Some((cost_meter(key)?, *value)))
            .collect();
        if amounts.is_empty() && hits.is_none() && limits.is_none() {
            return Ok(Vec::new());
        }
        let meters = handle.meters();
        let requests = meters.iter().map(|meter| u64::from(&**meter == REQUESTS));
        let mut costs: Vec<u64> = requests.collect();
        match (limits, hits) {
            (Some(limits), hits) => {
                for limit in limits.iter().filter_map(|at| handle.limits().get(usize::from(*at))) {
                    costs[usize::from(limit.meter)] = hits.unwrap_or(1);
                }
            }
            (None, Some(hits)) => match handle.meter(REQUESTS) {
                Some(meter) => costs[meter] = hits,
                None => {
                    let known = meters.join(", ");
                    return Err(format!(
                        "hits_addend is {hits}, and no limit counts requests: send an entry \
                         `@cost.METER`, allowed are {known}"
                    ));
                }
            },
            (None, None) => {}
        }
        for (meter, value) in amounts {
            let Some(index) = handle.meter(meter) else {
                let (found, known) = (shown(meter), meters.join(", "));
                return Err(format!("no limit reads the meter `{found}`, allowed are {known}"));
            };
            let amount = core::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            costs[index] = amount.filter(|amount| *amount <= UNITS_MAX).ok_or_else(|| {
                let found = shown(&String::from_utf8_lossy(value));
                let allowed = format!("allowed is a whole number from 0 to {UNITS_MAX}");
                format!("the amount of `{meter}` is `{found}`, {allowed}")
            })?;
        }
        Ok(costs)
    }
}

/// Whether a key says something to this door, and is no attribute.
fn is_reserved(key: &str) -> bool {
    [LIMIT, PERMIT, SETTLE].contains(&key) || cost_meter(key).is_some()
}

/// The meter that a key has an amount of.
fn cost_meter(key: &str) -> Option<&str> {
    match key.strip_prefix(COST)? {
        "" => Some(REQUESTS),
        rest => rest.strip_prefix('.'),
    }
}
