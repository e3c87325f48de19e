//! Explanations and usage, as JSON: what `tollkeeper explain` and `usage` print. Nothing is
//! charged and nothing counted.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::doors::asked::{Bad, Placed};
use crate::doors::report::{finite, version_text};
use crate::doors::{Desk, Loaded};
use crate::engine::command::{CHARGES_MAX, Charge};
use crate::engine::decision::{Reading, Retry, Verdict};
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::{Nanos, Now};
use crate::policy::{Explained, Limit, Override, RuleEffect, Scratch, Taken};

/// A request, explained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainReport {
    /// Name of the API.
    pub api: String,
    /// `allow` or `deny`; absent if no decision could be had.
    pub decision: Option<String>,
    /// The rule that answers it before any limit: `deny` or `bypass`, and its code, or its place
    /// in that list (`deny #2`) if it has none.
    pub rule: Option<String>,
    /// The customer's tier.
    pub tier: Option<String>,
    /// Whose it is, where identities stand for accounts.
    pub account: Option<String>,
    /// The policy's version, 16 hexadecimal digits.
    pub policy_version: String,
    /// Every limit of the API or class, by name.
    pub limits: Vec<LimitState>,
}

/// What one subject has used of the limits of an API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsageReport {
    /// Name of the API.
    pub api: String,
    /// The customer's tier.
    pub tier: Option<String>,
    /// Whose it is, where identities stand for accounts.
    pub account: Option<String>,
    /// The policy's version, 16 hexadecimal digits.
    pub policy_version: String,
    /// Every limit that may apply to the subject, by name.
    pub limits: Vec<LimitState>,
}

/// How one limit stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitState {
    /// Its name, with that of its window.
    pub limit: String,
    /// Its kind.
    pub kind: String,
    /// `enforce`, `shadow` or `off`, an override heeded.
    pub mode: String,
    /// Whether it is charged.
    pub applies: bool,
    /// Whether it binds: the one that denies, or the one with the least left.
    pub binds: bool,
    /// Why it is charged, or why not.
    pub why: String,
    /// What else would have to be said for a subject's counter to be told: attributes, `method`,
    /// `path`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// The route or class whose counter it is, where a subject has several.
    pub place: Option<String>,
    /// What makes its key.
    pub key: Map<String, Value>,
    /// What it would be charged.
    pub cost: Option<u64>,
    /// A bucket's burst, else the units; absent if there is no limit.
    pub of: Option<u64>,
    /// Units used or held.
    pub used: Option<u64>,
    /// Units left, before the request.
    pub remaining: Option<u64>,
    /// Whether the request fits it.
    pub fits: Option<bool>,
    /// `now`, `after`, `never` or `on_others`.
    pub retry: Option<String>,
    /// How long until it fits.
    pub retry_after_ns: Option<u64>,
    /// How long until all units are left, or the window ends.
    pub full_ns: Option<u64>,
    /// What an override says of it.
    pub overridden: Option<String>,
}

/// A look at counters by what was asked, at one moment.
pub(super) struct Look<'a> {
    pub(super) desk: &'a mut Desk,
    pub(super) loaded: &'a Loaded,
    pub(super) pinned: &'a Pinned<'a>,
    pub(super) placed: &'a Placed<'a>,
    pub(super) now: Now,
}

/// Explains a request.
pub(super) fn explain(look: Look<'_>) -> Result<ExplainReport, Bad> {
    let Look { desk, loaded, pinned, placed, now } = look;
    let (handle, request) = (placed.handle, placed.request());
    let context = loaded.context(now.utc);
    let explained = handle
        .explain(&request, &context, &mut Scratch::default())
        .map_err(|error| Bad::new("BAD_ATTRIBUTE", error.describe(handle).to_string()))?;
    let charges: Vec<Charge> = explained.limits.iter().filter_map(charge_of).collect();
    if charges.len() > CHARGES_MAX {
        let found = charges.len();
        let message = format!("{found} limits apply to the request, allowed are {CHARGES_MAX}");
        return Err(Bad::new("TOO_MANY_ITEMS", message));
    }
    let rule = explained.rule.and_then(|rule| handle.rules().get(usize::from(rule)));
    let undecided = explained
        .limits
        .iter()
        .any(|limit| matches!(limit.part, Taken::Lacks(_) | Taken::TooCostly));
    let peeked = pinned.peek(&charges, &mut Stamp::new(|| now), &mut desk.readings);
    let decision = match (rule.map(|rule| rule.effect), &peeked) {
        (Some(RuleEffect::Deny), _) => Some(Verdict::Deny),
        (Some(RuleEffect::Bypass), _) => Some(Verdict::Allow),
        (None, Ok(decision)) if !undecided => Some(decision.verdict),
        _ => None,
    };
    let binding = peeked.ok().and_then(|decision| decision.binding).filter(|_| rule.is_none());
    let mut readings = desk.readings.iter().enumerate();
    let mut limits = Vec::new();
    for of in explained.limits {
        let limit = &handle.limits()[usize::from(of.limit)];
        let reading = charge_of(&of).and_then(|_| readings.next());
        let state = state(limit, of.key, of.overridden, reading.map(|(_, reading)| reading));
        limits.push(LimitState {
            why: match rule {
                Some(_) => "not asked: a rule answers first".to_owned(),
                None => of.part.to_string(),
            },
            applies: rule.is_none() && reading.is_some(),
            binds: binding.is_some() && reading.map(|(place, _)| place) == binding,
            cost: reading.map(|(_, reading)| reading.cost),
            ..state
        });
    }
    Ok(ExplainReport {
        api: handle.api().to_owned(),
        decision: decision.map(|verdict| match verdict {
            Verdict::Allow => "allow".to_owned(),
            Verdict::Deny => "deny".to_owned(),
        }),
        rule: rule.map(|rule| format!("{} {}", rule.effect.name(), rule.title())),
        tier: explained.tier,
        account: explained.account,
        policy_version: version_text(loaded.policy.version()),
        limits,
    })
}

fn charge_of(of: &Explained) -> Option<Charge> {
    match of.part {
        Taken::Charged(charge) => Some(charge),
        _ => None,
    }
}

/// Says what a subject has used.
pub(super) fn usage(look: Look<'_>) -> Result<UsageReport, Bad> {
    let Look { desk, loaded, pinned, placed, now } = look;
    let handle = placed.handle;
    let context = loaded.context(now.utc);
    let usage = handle.usage(&placed.request(), &context, &mut Scratch::default());
    let mut limits = Vec::new();
    for of in usage.uses {
        let limit = &handle.limits()[usize::from(of.limit)];
        desk.readings.clear();
        if let Ok(charge) = of.charge {
            // A refusal leaves no reading, and the row without numbers.
            let _ = pinned.peek(&[charge], &mut Stamp::new(|| now), &mut desk.readings);
        }
        let state = state(limit, of.key, of.overridden, desk.readings.first());
        let applies = of.charge.is_ok();
        let (why, needs) = match of.charge {
            Ok(_) => ("may apply".to_owned(), Vec::new()),
            Err(unknown) => (unknown.why, unknown.needs),
        };
        limits.push(LimitState { applies, why, needs, place: of.place, ..state });
    }
    Ok(UsageReport {
        api: handle.api().to_owned(),
        tier: usage.tier,
        account: usage.account,
        policy_version: version_text(loaded.policy.version()),
        limits,
    })
}

/// What both tell of a limit.
fn state(
    limit: &Limit,
    key: Vec<(String, String)>,
    overridden: Option<Override>,
    reading: Option<&Reading>,
) -> LimitState {
    let used = |reading: &Reading| {
        reading.fill.used().or_else(|| Some(finite(reading.limit())? - reading.remaining()))
    };
    let retry = reading.map(|reading| match reading.retry() {
        Retry::Now => ("now", None),
        Retry::After(span) => ("after", Some(span)),
        Retry::Never => ("never", None),
        Retry::OnOthers(span) => ("on_others", span),
    });
    LimitState {
        limit: limit.full_name(),
        kind: limit.kind().name().to_owned(),
        mode: overridden.and_then(|of| of.mode).unwrap_or(limit.mode).name().to_owned(),
        applies: false,
        binds: false,
        why: String::new(),
        needs: Vec::new(),
        place: None,
        key: key.into_iter().map(|(name, value)| (name, Value::String(value))).collect(),
        cost: None,
        of: reading.and_then(|reading| finite(reading.limit())),
        used: reading.and_then(used),
        remaining: reading.and_then(|reading| finite(reading.remaining())),
        fits: reading.map(|reading| reading.fits),
        retry: retry.map(|(word, _)| word.to_owned()),
        retry_after_ns: retry.and_then(|(_, span)| span).map(Nanos::get),
        full_ns: reading.and_then(|reading| reading.full_after()).map(Nanos::get),
        overridden: overridden.map(|of| of.describe()),
    }
}
