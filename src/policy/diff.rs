//! What an edit of a policy means for its counters: which of them keep their usage and which
//! begin anew, and why.

use core::fmt;

use crate::engine::kinds::UNLIMITED;
use crate::engine::quota::Quota;

use super::Policy;
use super::handle::Limit;

/// What becomes of one limit's counters, each window by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Name of the API.
    pub api: String,
    /// Name of the limit.
    pub limit: String,
    /// Name of the window, as the new policy has it; empty for kinds that have none.
    pub window: String,
    /// What becomes of them.
    pub fate: Fate,
}

/// What becomes of counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They keep their usage.
    Survive {
        /// What else is different about the limit; empty if nothing is.
        changed: Vec<String>,
    },
    /// The limit is still there, and its counters are others: they begin empty.
    Restart {
        /// What makes them others.
        why: String,
    },
    /// The limit is new.
    Begin,
    /// The limit is gone.
    End,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { api, limit, window, fate } = self;
        write!(f, "{api}.{limit}")?;
        if !window.is_empty() {
            write!(f, ".{window}")?;
        }
        match fate {
            Fate::Survive { changed } if changed.is_empty() => write!(f, ": counters survive"),
            Fate::Survive { changed } => {
                write!(f, ": counters survive; {}", changed.join(", "))
            }
            Fate::Restart { why } => write!(f, ": counters restart: {why}"),
            Fate::Begin => write!(f, ": new, counters begin empty"),
            Fate::End => write!(f, ": gone, counters end"),
        }
    }
}

/// What becomes of every limit's counters if `new` takes the place of `old`.
pub fn diff(old: &Policy, new: &Policy) -> Vec<Change> {
    let mut changes = Vec::new();
    for (api, limit) in limits(new) {
        let before: Vec<&Limit> = limits(old)
            .filter(|(known, before)| *known == api && before.name == limit.name)
            .map(|(_, limit)| limit)
            .collect();
        let same = before.iter().find(|before| {
            before.kind() == limit.kind()
                && before.identity == limit.identity
                && before.per_names == limit.per_names
        });
        let fate = match (same, before.first()) {
            (Some(same), _) => Fate::Survive { changed: changed(same, limit) },
            (None, None) => Fate::Begin,
            (None, Some(other)) => match why(&before, other, limit) {
                Some(why) => Fate::Restart { why },
                None => Fate::Begin,
            },
        };
        changes.push(change(api, limit, fate));
    }
    for (api, limit) in limits(old) {
        let mut after = limits(new).filter(|(known, after)| {
            *known == api && after.name == limit.name && after.window == limit.window
        });
        if after.next().is_none() {
            changes.push(change(api, limit, Fate::End));
        }
    }
    changes
}

fn limits(policy: &Policy) -> impl Iterator<Item = (&str, &Limit)> {
    let apis = policy.handles().iter().filter(|handle| handle.class().is_none());
    apis.flat_map(|handle| handle.limits().iter().map(|limit| (handle.api(), limit)))
}

fn change(api: &str, limit: &Limit, fate: Fate) -> Change {
    Change {
        api: api.to_owned(),
        limit: limit.name.to_string(),
        window: limit.window.to_string(),
        fate,
    }
}

/// Why a limit of the same name has other counters; `None` if it only has one window more.
fn why(before: &[&Limit], other: &Limit, limit: &Limit) -> Option<String> {
    if other.kind() != limit.kind() {
        return Some(format!(
            "the kind was {}, and is {}",
            other.kind().name(),
            limit.kind().name()
        ));
    }
    if other.per_names != limit.per_names {
        let names = |limit: &Limit| match limit.per_names.join(", ") {
            names if names.is_empty() => "nothing".to_owned(),
            names => names,
        };
        return Some(format!("it was per {}, and is per {}", names(other), names(limit)));
    }
    let of_window = before.iter().find(|before| before.window == limit.window)?;
    let (was, is) = (&of_window.identity, &limit.identity);
    Some(format!("the window was {was}, and is {is}"))
}

fn changed(old: &Limit, new: &Limit) -> Vec<String> {
    let mut found = Vec::new();
    let (was, is) = (numbers(old), numbers(new));
    if was != is {
        found.push(format!("{was} becomes {is}"));
    } else if old.quotas.all() != new.quotas.all() {
        found.push("the rate is another".to_owned());
    }
    if old.mode != new.mode {
        found.push(format!("{} becomes {}", old.mode.name(), new.mode.name()));
    }
    if old.status != new.status {
        found.push(format!("status {} becomes {}", old.status, new.status));
    }
    found
}

/// The numbers of a limit, those of its tables in their order.
pub(super) fn numbers(limit: &Limit) -> String {
    let number = |quota: &Quota| match quota.limit() {
        UNLIMITED => "unlimited".to_owned(),
        units => units.to_string(),
    };
    let all: Vec<String> = limit.quotas.all().iter().flatten().map(number).collect();
    all.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;
    use crate::engine::key::Seed;

    fn told(old: &str, new: &str) -> Vec<String> {
        let policy = |limits: &str| {
            let text = format!("schema = 1\n[api.a.limit]\n{limits}\n");
            let source = Source { name: "p", text: &text };
            Policy::compile(&[source], &Seed::new([7; 16])).unwrap_or_else(|e| panic!("{e}"))
        };
        diff(&policy(old), &policy(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_edit_says_which_counters_it_keeps_and_why_it_does_not() {
        let bucket = "l = { per = ['u'], bucket = '60/min burst 120' }";
        for (old, new, expected) in [
            (bucket, bucket, &["a.l: counters survive"][..]),
            (
                bucket,
                "l = { per = ['u'], bucket = '60/min burst 90', mode = 'shadow', status = 403 }",
                &["a.l: counters survive; 120 becomes 90, enforce becomes shadow, status 429 \
                   becomes 403"],
            ),
            (
                bucket,
                "l = { per = ['u'], bucket = '61/min burst 120' }",
                &["a.l: counters survive; the rate is another"],
            ),
            (
                bucket,
                "l = { per = ['u', 'v'], bucket = '60/min burst 120' }",
                &["a.l: counters restart: it was per u, and is per u, v"],
            ),
            (
                bucket,
                "l = { per = ['u'], sliding = '60/min' }",
                &[
                    "a.l.minute: counters restart: the kind was bucket, and is sliding",
                    "a.l: gone, counters end",
                ],
            ),
            (
                "l = { fixed = '5/min' }",
                "l = { fixed = '5/min, 9/day' }",
                &["a.l.minute: counters survive", "a.l.day: new, counters begin empty"],
            ),
            (
                "l = { fixed = '5/min' }",
                "l = { fixed = '5/min', align = 'first' }",
                &["a.l.minute: counters restart: the window was 60000000000 ns clock, and is \
                   60000000000 ns first"],
            ),
            (
                "l = { calendar = '5/month' }",
                "l = { calendar = '5/month', tz = 'Asia/Tokyo' }",
                &["a.l.month: counters restart: the window was month UTC, and is month Asia/Tokyo"],
            ),
            (
                bucket,
                "m = { bucket = '1/s' }",
                &["a.m: new, counters begin empty", "a.l: gone, counters end"],
            ),
        ] {
            assert_eq!(told(old, new), expected, "{new}");
        }
    }
}
