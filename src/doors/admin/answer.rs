//! A request to its report: asks the desk, and says what it answered in JSON's terms.

use crate::doors::report::{Binding, ErrorReport, LimitReport, Report, finite, version_text};
use crate::doors::{Answered, Desk, Intent, Loaded, Problem};
use crate::engine::decision::{Decision, Reading, Refusal, Retry, Verdict};
use crate::engine::kinds::NextUnit;
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::{Nanos, Now};
use crate::metrics::cells::Outcome;
use crate::policy::{Handle, Limit, Rendered, Request, ResolveError, Resolved, Unavailable};

use super::request::{Bad, Placed};

/// Decides a request and counts it.
pub(super) fn answer<F: FnMut() -> Now>(
    desk: &mut Desk,
    loaded: &Loaded,
    pinned: &Pinned<'_>,
    placed: &Placed<'_>,
    intent: Intent,
    stamp: &mut Stamp<F>,
) -> Result<Report, Bad> {
    let handle = placed.handle;
    let api = handle.api_number();
    let version = loaded.policy.version();
    let request = Request { values: &placed.values, costs: &placed.costs };
    desk.clear();
    let resolved = match desk.resolve(loaded, pinned, handle, &request) {
        Ok(resolved) => resolved,
        Err(error) => {
            let message = error.describe(handle).to_string();
            let (code, outcome) = match error {
                ResolveError::BadAttribute { .. } => ("BAD_ATTRIBUTE", Outcome::Unavailable),
                ResolveError::CostTooLarge { .. } => ("BAD_COST", Outcome::Error),
                ResolveError::TooManyLimits { .. } => ("TOO_MANY_ITEMS", Outcome::Error),
            };
            if intent == Intent::Charge {
                desk.cells.check(api, outcome);
            }
            let ResolveError::BadAttribute { when_unavailable, .. } = error else {
                return Err(Bad::new(code, message));
            };
            let error = ErrorReport { code: code.to_owned(), message };
            return Ok(unavailable(handle, when_unavailable, error, version));
        }
    };
    match desk.decide(pinned, api, handle, &resolved, intent, stamp) {
        Ok(Answered::Decided(decision)) => {
            if intent == Intent::Charge
                && let Some(index) = desk.denial_due(&resolved, &decision)
            {
                desk.instance.journal.denied(handle, index, version, &request);
            }
            let limits = &desk.limits[resolved.limits()];
            let found = Found { resolved: &resolved, limits, readings: &desk.readings };
            Ok(decided(handle, found, &request, &decision, version))
        }
        Ok(Answered::FailedOpen(problem)) => {
            let error = problem_report(&problem, handle);
            Ok(unavailable(handle, Unavailable::Allow, error, version))
        }
        Err(problem) => {
            let error = problem_report(&problem, handle);
            Ok(unavailable(handle, Unavailable::Deny, error, version))
        }
    }
}

fn problem_report(problem: &Problem, handle: &Handle) -> ErrorReport {
    let (code, message) = match problem {
        Problem::Resolve(error) => ("BAD_ATTRIBUTE", error.describe(handle).to_string()),
        Problem::Refused(refusal) => (refusal_code(*refusal), refusal.to_string()),
    };
    ErrorReport { code: code.to_owned(), message }
}

/// The protocol's name for it.
fn refusal_code(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::TableFull { .. } => "TABLE_FULL",
        Refusal::TooManyCharges { .. } => "TOO_MANY_ITEMS",
        Refusal::UnlikeQuotas => "BAD_LIMIT",
        Refusal::PermitsCannotBeSet { .. } => "BAD_COST",
        Refusal::HorizonPassed | Refusal::WindowPassed => "INTERNAL",
    }
}

/// Which limits a request met, and how they stand.
struct Found<'a> {
    resolved: &'a Resolved,
    limits: &'a [u16],
    readings: &'a [Reading],
}

fn decided(
    handle: &Handle,
    found: Found<'_>,
    request: &Request<'_>,
    decision: &Decision,
    version: u64,
) -> Report {
    let Found { resolved, limits, readings } = found;
    let mut rendered = Rendered::default();
    handle.render(resolved, limits, request, decision, readings, &mut rendered);
    let limit_of = |index: u16| handle.limits().get(usize::from(index));
    let binding = decision.binding.and_then(|place| limits.get(place).copied()).and_then(limit_of);
    let reports = limits.iter().zip(readings);
    let reports = reports.filter_map(|(index, reading)| Some(report(limit_of(*index)?, reading)));
    Report {
        decision: match decision.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        },
        binding: binding
            .map(|limit| Binding { name: limit.name.to_string(), window: window(limit) }),
        limits: reports.collect(),
        permit: decision.permit.map(|permit| permit.id.to_string()),
        ..base(handle, &rendered, version)
    }
}

/// The answer of `when_unavailable`.
fn unavailable(handle: &Handle, answer: Unavailable, error: ErrorReport, version: u64) -> Report {
    let mut rendered = Rendered::default();
    handle.render_unavailable(answer, &mut rendered);
    Report { decision: answer.name(), error: Some(error), ..base(handle, &rendered, version) }
}

/// What every report takes from what was rendered.
fn base(handle: &Handle, rendered: &Rendered, version: u64) -> Report {
    let headers = handle.header_names().zip(rendered.headers());
    let headers = headers.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    Report {
        decision: "allow",
        status: rendered.status(),
        binding: None,
        limits: Vec::new(),
        permit: None,
        headers: headers.collect(),
        content_type: rendered.content_type().map(str::to_owned),
        body: rendered.body().map(str::to_owned),
        policy_version: version_text(version),
        error: None,
    }
}

fn report(limit: &Limit, reading: &Reading) -> LimitReport {
    LimitReport {
        name: limit.name.to_string(),
        window: window(limit),
        kind: limit.kind().name(),
        limit: finite(reading.limit()),
        remaining: finite(reading.remaining()),
        retry: match reading.retry() {
            Retry::Now => "now",
            Retry::After(_) => "after",
            Retry::Never => "never",
            Retry::OnOthers(_) => "on_others",
        },
        retry_after_ns: match reading.retry() {
            Retry::After(span) => Some(span.get()),
            Retry::OnOthers(span) => span.map(Nanos::get),
            Retry::Now | Retry::Never => None,
        },
        next_ns: match reading.next_unit() {
            NextUnit::All => Some(0),
            NextUnit::After(span) => Some(span.get()),
            NextUnit::Unknown => None,
        },
        full_ns: reading.full_after().map(Nanos::get),
        mode: limit.mode.name(),
    }
}

fn window(limit: &Limit) -> Option<String> {
    (!limit.window.is_empty()).then(|| limit.window.to_string())
}
