//! What the JSON doors do with a body: the same for each of them.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::engine::command::Amend;
use crate::engine::permit::PermitId;
use crate::engine::quota::UNITS_MAX;

use super::answer;
use super::asked::{Asked, Bad, object, shown, text};
use super::report::{Report, version_text};
use super::{Batch, Intent, Outcome, Problem, SharedDesk};

/// The most checks, or permits, of one body.
pub(super) const ITEMS_MAX: usize = 64;

/// Decides one check.
pub(super) async fn check(
    desk: &Arc<SharedDesk>,
    body: &[u8],
    intent: Intent,
) -> Result<Report, Bad> {
    let asked = Asked::parse(body)?;
    let mut batch = Batch::new(desk);
    let index = ask(&mut batch, &asked, intent)?;
    batch.decide().await;
    answer::report(&batch, index)
}

fn ask(batch: &mut Batch, asked: &Asked, intent: Intent) -> Result<usize, Bad> {
    let loaded = Arc::clone(batch.loaded());
    let placed = asked.place(&loaded.policy)?;
    Ok(batch.check(placed.handle, &placed.request(), intent))
}

/// Decides `checks`, each by itself and all at one moment: `{"checks": [{...}, ...]}`, where one
/// with `"peek": true` is not charged.
pub(super) async fn batch(desk: &Arc<SharedDesk>, body: &[u8]) -> Result<Value, Bad> {
    let mut fields = object(body)?;
    let checks = fields.remove("checks");
    only(&fields, "checks")?;
    let checks = match checks {
        Some(Value::Array(checks)) if (1..=ITEMS_MAX).contains(&checks.len()) => checks,
        Some(Value::Array(checks)) => {
            let found = checks.len();
            let message = format!("there are {found} checks, allowed are 1 to {ITEMS_MAX}");
            return Err(Bad::new("TOO_MANY_ITEMS", message));
        }
        other => return Err(Bad::field("checks", &other.unwrap_or_default(), "an array")),
    };
    let mut batch = Batch::new(desk);
    let asked: Vec<Result<usize, Bad>> = checks
        .into_iter()
        .map(|check| {
            let Value::Object(mut fields) = check else {
                return Err(Bad::field("checks", &check, "an array of objects"));
            };
            let intent = match fields.remove("peek") {
                None | Some(Value::Bool(false)) => Intent::Charge,
                Some(Value::Bool(true)) => Intent::Peek,
                Some(other) => return Err(Bad::field("peek", &other, "true or false")),
            };
            ask(&mut batch, &Asked::of(fields)?, intent)
        })
        .collect();
    batch.decide().await;
    let report = |asked: Result<usize, Bad>| match asked.and_then(|at| answer::report(&batch, at)) {
        Ok(report) => json!(report),
        Err(Bad(error)) => json!({ "error": error }),
    };
    Ok(json!({ "reports": asked.into_iter().map(report).collect::<Vec<_>>() }))
}

/// Charges `units` after the fact, or gives them back where they are negative: on all limits of a
/// request, or on the one called `limit`.
pub(super) async fn adjust(desk: &Arc<SharedDesk>, body: &[u8]) -> Result<Value, Bad> {
    let mut fields = object(body)?;
    let name = text(&mut fields, "limit")?;
    let units = fields.remove("units").unwrap_or_default();
    let amend = match units.as_i64().filter(|units| units.unsigned_abs() <= UNITS_MAX) {
        Some(units @ ..0) => Amend::GiveBack(units.unsigned_abs()),
        Some(units) => Amend::Add(units.unsigned_abs()),
        None => {
            let allowed = format!("a whole number from -{UNITS_MAX} to {UNITS_MAX}");
            return Err(Bad::field("units", &units, &allowed));
        }
    };
    if let Some(cost) = ["cost", "costs"].into_iter().find(|name| fields.contains_key(*name)) {
        let message = format!("an adjustment has no field `{cost}`, but `units`");
        return Err(Bad::new("BAD_REQUEST", message));
    }
    let asked = Asked::of(fields)?;
    let mut batch = Batch::new(desk);
    let loaded = Arc::clone(batch.loaded());
    let placed = asked.place(&loaded.policy)?;
    let limits = placed.handle.limits();
    // A limit of several windows is amended on all of them, unless one is named.
    let named: Vec<u16> = match &name {
        None => Vec::new(),
        Some(name) => limits
            .iter()
            .enumerate()
            .filter(|(_, limit)| *limit.name == **name || limit.full_name() == *name)
            .filter_map(|(index, _)| u16::try_from(index).ok())
            .collect(),
    };
    if let Some(name) = name.filter(|_| named.is_empty()) {
        let known: Vec<String> = limits.iter().map(|limit| limit.full_name()).collect();
        let (name, known) = (shown(&name), known.join(", "));
        let message = format!("there is no limit `{name}`, allowed are {known}");
        return Err(Bad::new("BAD_LIMIT", message));
    }
    let request = placed.request();
    let items: Vec<usize> = match named.is_empty() {
        true => vec![batch.amend(placed.handle, &request, None, amend)],
        false => named
            .iter()
            .map(|limit| batch.amend(placed.handle, &request, Some(*limit), amend))
            .collect(),
    };
    batch.decide().await;
    let mut counters = 0;
    for item in items {
        match batch.outcome(item) {
            Outcome::Amended(count, _) => counters += count,
            Outcome::Failed(problem @ (Problem::Resolve(_) | Problem::Refused(_))) => {
                return Err(Bad(answer::problem_report(problem, placed.handle)));
            }
            _ => return Err(Bad::new("INTERNAL", "the adjustment was not made")),
        }
    }
    let version = version_text(loaded.policy.version());
    Ok(json!({ "counters": counters, "policy_version": version }))
}

/// Gives permits back: `{"permit": "…"}` or `{"permits": ["…", …]}`.
pub(super) async fn release(desk: &Arc<SharedDesk>, body: &[u8]) -> Result<Value, Bad> {
    let mut fields = object(body)?;
    let (one, several) = (fields.remove("permit"), fields.remove("permits"));
    only(&fields, "permit, permits")?;
    let permits = match (one, several) {
        (Some(one), None) => vec![one],
        (None, Some(Value::Array(several))) if several.len() <= ITEMS_MAX => several,
        (None, Some(Value::Array(several))) => {
            let found = several.len();
            let message = format!("there are {found} permits, allowed are {ITEMS_MAX}");
            return Err(Bad::new("TOO_MANY_ITEMS", message));
        }
        _ => {
            let message = "allowed are a `permit`, or an array of `permits`";
            return Err(Bad::new("BAD_REQUEST", message));
        }
    };
    let ids: Vec<PermitId> = permits.iter().map(permit).collect::<Result<_, _>>()?;
    let mut batch = Batch::new(desk);
    let items: Vec<usize> = ids.into_iter().map(|id| batch.release(id)).collect();
    batch.decide().await;
    let units = items.into_iter().map(|item| match batch.outcome(item) {
        Outcome::Released(units) => units,
        _ => 0,
    });
    Ok(json!({ "units": units.sum::<u64>() }))
}

fn permit(value: &Value) -> Result<PermitId, Bad> {
    let digits = value.as_str().filter(|text| text.len() == 32);
    let number = digits.and_then(|text| u128::from_str_radix(text, 16).ok());
    let permit = number.map(|number| PermitId(number.to_be_bytes()));
    permit.ok_or_else(|| Bad::field("permit", value, "32 hexadecimal digits"))
}

fn only(rest: &Map<String, Value>, allowed: &str) -> Result<(), Bad> {
    match rest.keys().next() {
        None => Ok(()),
        Some(unknown) => {
            let message = format!("unknown field `{}`, allowed are {allowed}", shown(unknown));
            Err(Bad::new("BAD_REQUEST", message))
        }
    }
}
