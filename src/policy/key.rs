//! What makes a limit's key: values of attributes, and what is known of the request's route.

use crate::engine::key::{LimitSpace, Subject};

use super::address::{self, KEY_BYTES};
use super::facts::Facts;
use super::maxima::{KEY_ATTRIBUTES_MAX, VALUE_BYTES_MAX};
use super::resolve::Found;
use super::route::{Router, SetId};

/// Sets of routes with their names, the narrowest first.
pub(super) type NamedSets = Box<[(SetId, Box<[u8]>)]>;

/// One part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The value of the attribute in this slot.
    Slot(u16),
    /// An address in this slot, of IPv6 so many bits.
    Address { slot: u16, prefix: u8 },
    /// The name of the customer's tier, which is in this slot.
    Tier { slot: u16 },
    /// The method, in slot 0.
    Method,
    /// The path in normal form, in slot 1.
    Path,
    /// The name of the first of these sets that the request is in: a route's pattern or a class.
    Set(NamedSets),
    /// The segment of the path at the place that the first of these routes says.
    Segment(Box<[(SetId, u16)]>),
}

/// Stands for the route of a request that takes none of those that a limit tells apart.
const NO_ROUTE: &[u8] = b"*";

/// What is wrong with the value in a slot.
pub(super) type Bad = (u16, Found);

/// Why a request that is not in any of the routes with that segment has no key.
const PATH_SLOT: u16 = 1;

impl Part {
    /// The value that this part has in the request; of an address, what it says.
    pub(super) fn value<'a>(&'a self, facts: &Facts<'a>) -> Result<&'a [u8], Bad> {
        let is_in = |set: SetId| Router::is_in(set, facts.matched);
        match self {
            Self::Slot(slot) | Self::Address { slot, .. } => {
                let slot = *slot;
                match facts.value(slot) {
                    None => Err((slot, Found::Missing)),
                    Some(value) if value.len() > VALUE_BYTES_MAX => {
                        let found =
                            Found::TooLong { bytes: value.len(), bytes_max: VALUE_BYTES_MAX };
                        Err((slot, found))
                    }
                    Some(value) => Ok(value),
                }
            }
            Self::Tier { slot } => facts.tier_name.ok_or_else(|| facts.bad_tier(*slot)),
            Self::Method => Ok(facts.method),
            Self::Path if facts.path.len() > VALUE_BYTES_MAX => {
                let found = Found::TooLong { bytes: facts.path.len(), bytes_max: VALUE_BYTES_MAX };
                Err((PATH_SLOT, found))
            }
            Self::Path => Ok(facts.path),
            Self::Set(sets) => {
                let first = sets.iter().find(|(set, _)| is_in(*set));
                Ok(first.map_or(NO_ROUTE, |(_, name)| &**name))
            }
            Self::Segment(sets) => {
                let first = sets.iter().find(|(set, _)| is_in(*set));
                let segment = first.and_then(|(_, place)| {
                    facts.path.split(|byte| *byte == b'/').nth(usize::from(*place) + 1)
                });
                match segment {
                    None => Ok(NO_ROUTE),
                    Some(segment) if segment.len() > VALUE_BYTES_MAX => {
                        let found =
                            Found::TooLong { bytes: segment.len(), bytes_max: VALUE_BYTES_MAX };
                        Err((PATH_SLOT, found))
                    }
                    Some(segment) => Ok(segment),
                }
            }
        }
    }

    /// What is wrong with its value in the request, if anything is.
    pub(super) fn bad(&self, facts: &Facts<'_>) -> Option<Bad> {
        match (self.value(facts), self) {
            (Err(bad), _) => Some(bad),
            (Ok(value), Self::Address { slot, .. }) if address::parse(value).is_none() => {
                Some((*slot, Found::Unfit))
            }
            _ => None,
        }
    }

    /// The slot of the attribute that it reads.
    pub(super) fn slot(&self) -> Option<u16> {
        match self {
            Self::Slot(slot) | Self::Address { slot, .. } | Self::Tier { slot } => Some(*slot),
            _ => None,
        }
    }

    /// Sets of routes that it looks at.
    pub(super) fn sets(&self) -> Vec<SetId> {
        match self {
            Self::Set(sets) => sets.iter().map(|(set, _)| *set).collect(),
            Self::Segment(sets) => sets.iter().map(|(set, _)| *set).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it looks at the method or the path itself.
    pub(super) fn by_path(&self) -> bool {
        matches!(self, Self::Method | Self::Path | Self::Segment(_))
    }

    /// The same with attributes in other slots.
    pub(super) fn with_slots(&self, slot_of: impl Fn(u16) -> Option<u16>) -> Self {
        let mut moved = self.clone();
        if let Self::Slot(slot) | Self::Address { slot, .. } | Self::Tier { slot } = &mut moved {
            *slot = slot_of(*slot).unwrap_or(u16::MAX);
        }
        moved
    }
}

/// The subject that these parts make of a request, for limits of `space`; `None` if a value is
/// wrong.
#[inline]
pub(super) fn subject(space: &LimitSpace, parts: &[Part], facts: &Facts<'_>) -> Option<Subject> {
    // One value makes most keys; a loop over one costs more than the hash.
    if let [Part::Slot(slot)] = *parts {
        let value = facts.value(slot).filter(|value| value.len() <= VALUE_BYTES_MAX)?;
        return Some(space.subject_of_one(value));
    }
    subject_of_parts(space, parts, facts)
}

fn subject_of_parts(space: &LimitSpace, parts: &[Part], facts: &Facts<'_>) -> Option<Subject> {
    let mut values: [&[u8]; KEY_ATTRIBUTES_MAX] = [&[]; KEY_ATTRIBUTES_MAX];
    for (part, place) in parts.iter().zip(&mut values) {
        *place = part.value(facts).ok()?;
    }
    // Few keys have addresses, so that room for their forms is made apart.
    if parts.iter().any(|part| matches!(part, Part::Address { .. })) {
        return subject_of_addresses(space, parts, values);
    }
    Some(subject_of_values(space, values.get(..parts.len())?))
}

/// As [`subject_of_parts`], where some of the values say addresses.
fn subject_of_addresses(
    space: &LimitSpace,
    parts: &[Part],
    found: [&[u8]; KEY_ATTRIBUTES_MAX],
) -> Option<Subject> {
    let mut addresses = [[0; KEY_BYTES]; KEY_ATTRIBUTES_MAX];
    let mut values: [&[u8]; KEY_ATTRIBUTES_MAX] = found;
    for ((part, value), bytes) in parts.iter().zip(&mut values).zip(&mut addresses) {
        if let Part::Address { prefix, .. } = part {
            *value = address::key_form(address::parse(value)?, *prefix, bytes);
        }
    }
    Some(subject_of_values(space, values.get(..parts.len())?))
}

/// The subject of values in the form in which keys have them.
#[inline]
pub(super) fn subject_of_values(space: &LimitSpace, values: &[&[u8]]) -> Subject {
    match values {
        // A space is for one number of attributes, so one value needs no length before it.
        [value] => space.subject_of_one(value),
        values => space.subject(values.iter().copied()),
    }
}
