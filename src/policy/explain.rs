//! Why a request is charged as it is: each limit of a handle, whether it applies, and by which key
//! and numbers. It reads what resolving reads.

use core::fmt;

use crate::engine::command::Charge;
use crate::engine::time::UtcTime;

use super::facts::Facts;
use super::handle::{Handle, Limit, Mode};
use super::overrides::Override;
use super::resolve::{Context, Found, Memo, Request, ResolveError, Scratch, Wrong};

/// A request, explained.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Index in [`Handle::rules`] of the rule that answers it before any limit.
    pub rule: Option<u16>,
    /// Name of the customer's tier, if it was looked at.
    pub tier: Option<String>,
    /// Whose it is, where identities stand for accounts.
    pub account: Option<String>,
    /// Every limit, in the order of [`Handle::limits`].
    pub limits: Vec<Explained>,
}

/// One limit's part in a request.
#[derive(Clone, Debug)]
pub struct Explained {
    /// Index in [`Handle::limits`].
    pub limit: u16,
    /// Whether it applies, or why it does not.
    pub part: Taken,
    /// What makes its key, by the names in `per`.
    pub key: Vec<(String, String)>,
    /// What overrides it for this key.
    pub overridden: Option<Override>,
}

/// Which part a limit takes in a request.
#[derive(Clone, Debug)]
pub enum Taken {
    /// It is charged.
    Charged(Charge),
    /// It is for other requests.
    OtherRequests,
    /// Its `except` names the request.
    Excepted,
    /// It is off.
    Off,
    /// Its tables have no value for the request.
    NoValue,
    /// The request lacks an attribute, and the limit lets such requests pass.
    Skipped(String),
    /// The request lacks an attribute, and so gets no decision.
    Lacks(String),
    /// The cost is more than can be charged.
    TooCostly,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Charged(_) => f.write_str("applies"),
            Self::OtherRequests => f.write_str("is for other requests"),
            Self::Excepted => f.write_str("`except` leaves the request out"),
            Self::Off => f.write_str("is off"),
            Self::NoValue => f.write_str("its tables have no value for the request"),
            Self::Skipped(what) => write!(f, "is skipped: {what}"),
            Self::Lacks(what) => write!(f, "cannot be decided: {what}"),
            Self::TooCostly => f.write_str("the cost is more than can be charged"),
        }
    }
}

impl Handle {
    /// Explains a request.
    ///
    /// # Errors
    /// If it cannot even be routed.
    pub fn explain(
        &self,
        request: &Request<'_>,
        context: &Context<'_>,
        scratch: &mut Scratch,
    ) -> Result<Explanation, ResolveError> {
        let Scratch { path, matched, calendars } = scratch;
        let facts = self.facts(request, context, path, matched)?;
        let mut memo = Memo::new(calendars);
        let mut limits = Vec::new();
        for (index, limit) in self.limits.iter().enumerate() {
            let part = match () {
                () if limit.on.as_ref().is_some_and(|on| !on.holds(&facts)) => Taken::OtherRequests,
                () if limit.except.holds(&facts) => Taken::Excepted,
                () => match limit.charge(&facts, context, &mut memo) {
                    Ok(Some(charge)) => Taken::Charged(charge),
                    Ok(None) if limit.is_off(&facts, context) => Taken::Off,
                    Ok(None) => Taken::NoValue,
                    Err(Wrong::Cost(_)) => Taken::TooCostly,
                    Err(Wrong::Value((slot, found))) => {
                        let what = self.lack(slot, found);
                        match limit.lets_pass(found) {
                            true => Taken::Skipped(what),
                            false => Taken::Lacks(what),
                        }
                    }
                },
            };
            limits.push(Explained {
                limit: index as u16,
                part,
                key: limit.key_parts(&facts),
                overridden: limit.overridden(&facts, context),
            });
        }
        Ok(Explanation {
            rule: self.rule_for(&facts),
            tier: facts.tier_name.map(text),
            account: facts.account.map(text),
            limits,
        })
    }

    /// What is wrong with the value in a slot, in words.
    pub(super) fn lack(&self, slot: u16, found: Found) -> String {
        let name = self.slots.get(usize::from(slot)).map_or("?", |slot| &*slot.name);
        match found {
            Found::Missing => format!("attribute `{name}` is missing"),
            Found::Unfit => format!("attribute `{name}` has a value that is not allowed"),
            Found::TooLong { bytes, bytes_max } => {
                format!("attribute `{name}` has {bytes} bytes, allowed are {bytes_max}")
            }
        }
    }
}

impl Limit {
    pub(super) fn is_off(&self, facts: &Facts<'_>, context: &Context<'_>) -> bool {
        match self.overridden(facts, context).and_then(|found| found.mode) {
            Some(mode) => mode == Mode::Off,
            None => self.mode == Mode::Off,
        }
    }

    pub(super) fn overridden(&self, facts: &Facts<'_>, context: &Context<'_>) -> Option<Override> {
        let key = self.key(facts)?;
        context.overrides?.find(self.id, key, context.now).copied()
    }

    pub(super) fn key_parts(&self, facts: &Facts<'_>) -> Vec<(String, String)> {
        let parts = self.per.iter().zip(&self.per_names);
        let shown = parts.map(|(part, name)| {
            let value = part.value(facts).map_or_else(|_| "?".to_owned(), text);
            (name.to_string(), value)
        });
        shown.collect()
    }
}

impl Override {
    /// What it says, for people.
    pub fn describe(&self) -> String {
        let numbers = self.quota.map(|quota| match quota.limit() {
            crate::engine::kinds::UNLIMITED => "unlimited".to_owned(),
            units => units.to_string(),
        });
        let mut said: Vec<String> = numbers.into_iter().collect();
        said.extend(self.mode.map(|mode| mode.name().to_owned()));
        if let Some(until) = self.until {
            said.push(format!("until {}", moment_text(until)));
        }
        said.join(" ")
    }
}

/// A moment as people read it, in UTC.
pub fn moment_text(at: UtcTime) -> String {
    let mut out = String::new();
    // A `String` takes all that is written.
    let _ = super::moment::write_rfc3339(at.as_nanos() / 1_000_000_000, &mut out);
    out
}

/// A moment as people write it: RFC 3339, or a day, which is its first moment in UTC.
pub fn moment_of(text: &str) -> Option<UtcTime> {
    let midnight = format!("{text}T00:00:00Z");
    super::moment::parse_rfc3339(text).or_else(|| super::moment::parse_rfc3339(&midnight))
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Policy;
    use super::super::examples::EXAMPLES;
    use super::*;
    use crate::engine::key::Seed;

    /// What is explained is what is charged.
    #[test]
    fn an_explanation_charges_what_resolving_does() {
        const PATHS: [(&str, &str, &str); 8] = [
            ("media", "POST", "/v1/images/7/cancel"),
            ("media", "POST", "/v1/files"),
            ("chat", "GET", "/mave/chat"),
            ("generate", "POST", "/aud2video"),
            ("vault", "POST", "/upload/stream-batch"),
            ("studio", "POST", "/auth/login"),
            ("llm", "POST", "/v1/responses"),
            ("github", "GET", "/search/code"),
        ];
        const VALUES: [&str; 9] =
            ["", "free", "pro", "premium", "enterprise", "session", "192.0.2.1", "token", "x"];
        let policy = Policy::compile(&EXAMPLES, &Seed::new([7; 16])).unwrap();
        let value = prop::option::of(prop::sample::select(&VALUES[..]));
        proptest!(|(values in prop::collection::vec(value, 24))| {
            for (api, method, path) in PATHS {
                let handle = policy.handle_of(api, None).unwrap();
                let mut found: Vec<Option<&[u8]>> =
                    values.iter().map(|value| value.map(str::as_bytes)).collect();
                (found[0], found[1]) = (Some(method.as_bytes()), Some(path.as_bytes()));
                found.truncate(handle.slots().len());
                let request = Request { values: &found, costs: &[] };
                let context = Context::default();
                let scratch = &mut Scratch::default();
                let explained = handle.explain(&request, &context, scratch).unwrap();
                let (mut charges, mut limits) = (Vec::new(), Vec::new());
                let resolved =
                    handle.resolve(&request, &context, scratch, &mut charges, &mut limits);
                let charged: Vec<(u16, Charge)> = explained.limits.iter().filter_map(|limit| {
                    let Taken::Charged(charge) = limit.part else { return None };
                    Some((limit.limit, charge))
                }).collect();
                let lacks = |limit: &Explained| {
                    matches!(limit.part, Taken::Lacks(_) | Taken::TooCostly)
                };
                match resolved {
                    Ok(resolved) if resolved.rule.is_some() => {
                        prop_assert_eq!(resolved.rule, explained.rule);
                    }
                    Ok(_) => {
                        let resolved: Vec<_> = limits.into_iter().zip(charges).collect();
                        prop_assert_eq!(format!("{charged:?}"), format!("{resolved:?}"));
                    }
                    Err(_) => prop_assert!(explained.limits.iter().any(lacks)),
                }
            }
        });
    }
}
