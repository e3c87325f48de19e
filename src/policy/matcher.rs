//! Which requests a limit or a rule is for: classes, routes, and tables of conditions that all
//! hold. A list is any of its entries.

use super::address::Net;
use super::facts::Facts;
use super::route::{SetId, Sets};
use super::short::is_same;

/// Any of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Matcher {
    /// Sets of routes.
    pub(super) sets: Sets,
    pub(super) conditions: Box<[Condition]>,
}

/// All of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) tests: Box<[Test]>,
}

/// One entry of a condition: any of its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// The request is in one of these sets of routes.
    Sets(Sets),
    /// The customer has one of these tiers.
    Tier(Sets),
    Method(Box<[Pattern]>),
    Path(Box<[Pattern]>),
    /// The attribute in this slot.
    Attribute(u16, Box<[Pattern]>),
}

/// What a value is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Equal(Box<[u8]>),
    /// Pieces of text with anything between them.
    Glob(Box<[Box<[u8]>]>),
    /// An address within a network.
    Net(Net),
}

impl Pattern {
    /// Reads a value of a condition: `a*z` is a glob, `10.0.0.0/8` a network.
    pub(super) fn parse(text: &str) -> Self {
        if text.contains('*') {
            return Self::Glob(text.split('*').map(|piece| piece.as_bytes().into()).collect());
        }
        match Net::parse(text) {
            Some(net) => Self::Net(net),
            None => Self::Equal(text.as_bytes().into()),
        }
    }

    #[inline]
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Equal(known) => is_same(known, value),
            Self::Glob(pieces) => glob(pieces, value),
            Self::Net(net) => is_within(net, value),
        }
    }
}

/// Whether `value` is these pieces in their order: the first at its beginning, the last at its
/// end, the others wherever they come first. Takes time of their lengths' product at most.
#[cold]
fn glob(pieces: &[Box<[u8]>], value: &[u8]) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| **only == *value);
    };
    let Some(mut rest) = value.strip_prefix(&**first) else { return false };
    for piece in middle.iter().filter(|piece| !piece.is_empty()) {
        match rest.windows(piece.len()).position(|window| *window == **piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cold]
fn is_within(net: &Net, value: &[u8]) -> bool {
    net.holds(value)
}

impl Condition {
    /// Sets of routes, of each of which a request must be in one.
    pub(super) fn sets(&self) -> impl Iterator<Item = &Sets> {
        self.tests.iter().filter_map(|test| match test {
            Test::Sets(sets) => Some(sets),
            _ => None,
        })
    }
}

impl Test {
    /// Its callers are inlined and it is not: what some kinds of test look at would be read for all.
    #[inline(never)]
    fn holds(&self, facts: &Facts<'_>) -> bool {
        let any = |patterns: &[Pattern], value| patterns.iter().any(|p| p.holds(value));
        match self {
            Self::Sets(sets) => facts.is_in(sets),
            Self::Tier(tiers) => facts.has_tier_of(tiers),
            Self::Method(patterns) => any(patterns, facts.method),
            Self::Path(patterns) => any(patterns, facts.path),
            Self::Attribute(slot, patterns) => {
                facts.value(*slot).is_some_and(|value| any(patterns, value))
            }
        }
    }
}

impl Matcher {
    /// Whether the request is one of those meant.
    #[inline]
    pub(super) fn holds(&self, facts: &Facts<'_>) -> bool {
        facts.is_in(&self.sets)
            || self.conditions.iter().any(|all| all.tests.iter().all(|test| test.holds(facts)))
    }

    /// Whether it means no request at all.
    pub(super) fn is_empty(&self) -> bool {
        self.conditions.is_empty() && self.sets.is_empty()
    }

    fn tests(&self) -> impl Iterator<Item = &Test> {
        self.conditions.iter().flat_map(|all| &all.tests)
    }

    /// Attributes that it looks at, by their indexes.
    pub(super) fn attributes(&self) -> impl Iterator<Item = u16> {
        self.tests().filter_map(|test| match test {
            Test::Attribute(slot, _) => Some(*slot),
            _ => None,
        })
    }

    /// Whether it looks at the customer's tier.
    pub(super) fn by_tier(&self) -> bool {
        self.tests().any(|test| matches!(test, Test::Tier(_)))
    }

    /// Whether it looks at the method or the path itself.
    pub(super) fn by_path(&self) -> bool {
        self.tests().any(|test| matches!(test, Test::Method(_) | Test::Path(_)))
    }

    /// Sets of routes that it looks at.
    pub(super) fn all_sets(&self) -> impl Iterator<Item = SetId> {
        let within = self.tests().filter_map(|test| match test {
            Test::Sets(sets) => Some(sets),
            _ => None,
        });
        core::iter::once(&self.sets).chain(within).flat_map(Sets::ids)
    }

    /// The same where attributes have other slots.
    pub(super) fn with_slots(&self, slot_of: impl Fn(u16) -> Option<u16>) -> Self {
        let mut moved = self.clone();
        for condition in &mut moved.conditions {
            for test in &mut condition.tests {
                if let Test::Attribute(slot, _) = test {
                    *slot = slot_of(*slot).unwrap_or(u16::MAX);
                }
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_equality_a_glob_or_a_network() {
        for (pattern, holds, fails) in [
            ("session", &["session"][..], &["", "sessions", "Session"][..]),
            ("v*", &["v", "v1", "vv"], &["", "1v"]),
            ("*", &["", "x"], &[]),
            ("a*b*c", &["abc", "a--b--c", "abbc", "abcbc"], &["ab", "abcd", "xabc", "acb"]),
            ("*ab", &["ab", "xab", "abab"], &["abx", "a"]),
            ("aa*aa", &["aaaa", "aaxaa"], &["aaa", "aa"]),
            ("10.0.0.0/8", &["10.1.2.3", "::ffff:10.9.9.9"], &["11.0.0.1", "10", ""]),
            ("2001:db8::/32", &["2001:db8:1::7"], &["2001:db9::", "10.0.0.1"]),
        ] {
            let parsed = Pattern::parse(pattern);
            for value in holds {
                assert!(parsed.holds(value.as_bytes()), "{pattern} {value}");
            }
            for value in fails {
                assert!(!parsed.holds(value.as_bytes()), "{pattern} {value}");
            }
        }
    }
}
