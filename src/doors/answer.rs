//! An outcome to its report: what a batch says of a check, in JSON's terms.

use crate::engine::decision::{Decision, Reading, Refusal, Retry, Verdict};
use crate::engine::group::Undecided;
use crate::engine::kinds::NextUnit;
use crate::engine::time::Nanos;
use crate::policy::{Handle, Limit, Rendered, ResolveError, Unavailable};

use super::asked::Bad;
use super::report::{Binding, ErrorReport, LimitReport, Report, finite, version_text};
use super::{Batch, Outcome, Problem};

/// What became of the check at `index`, and what to tell its caller.
pub(super) fn report(batch: &Batch, index: usize) -> Result<Report, Bad> {
    let pending = || Bad::new("INTERNAL", "the check was not decided");
    let handle = batch.handle(index).ok_or_else(pending)?;
    let version = batch.loaded().policy.version();
    let mut rendered = Rendered::default();
    let (answer, error) = match batch.outcome(index) {
        Outcome::Failed(Problem::Resolve(
            error @ (ResolveError::CostTooLarge { .. } | ResolveError::TooManyLimits { .. }),
        )) => return Err(wrong(error, handle)),
        Outcome::FailedOpen(problem) => (Unavailable::Allow, problem_report(problem, handle)),
        Outcome::Failed(problem) => (Unavailable::Deny, problem_report(problem, handle)),
        Outcome::Decided { decision, readings, limits } => {
            batch.render(index, &mut rendered).ok_or_else(pending)?;
            return Ok(decided(handle, limits, readings, decision, &rendered, version));
        }
        _ => return Err(pending()),
    };
    batch.render(index, &mut rendered).ok_or_else(pending)?;
    Ok(Report { decision: answer.name(), error: Some(error), ..base(handle, &rendered, version) })
}

/// Why a request is none that a policy could decide.
fn wrong(error: &ResolveError, handle: &Handle) -> Bad {
    Bad::new(resolve_code(error), error.describe(handle).to_string())
}

fn resolve_code(error: &ResolveError) -> &'static str {
    match error {
        ResolveError::BadAttribute { .. } => "BAD_ATTRIBUTE",
        ResolveError::CostTooLarge { .. } => "BAD_COST",
        ResolveError::TooManyLimits { .. } => "TOO_MANY_ITEMS",
    }
}

/// Why there was no decision, in words.
pub(super) fn problem_report(problem: &Problem, handle: &Handle) -> ErrorReport {
    let (code, message) = match problem {
        Problem::Resolve(error) => (resolve_code(error), error.describe(handle).to_string()),
        Problem::Refused(refusal) => (refusal_code(*refusal), refusal.to_string()),
        Problem::Undecided(undecided) => {
            (undecided_code(*undecided), undecided.describe().to_owned())
        }
    };
    ErrorReport { code: code.to_owned(), message }
}

/// The protocol's name for what a cluster did not decide.
pub(super) fn undecided_code(undecided: Undecided) -> &'static str {
    match undecided {
        Undecided::NoQuorum => "NO_QUORUM",
        Undecided::Unknown => "UNKNOWN_OUTCOME",
        Undecided::Stale | Undecided::Overloaded => "OVERLOADED",
        Undecided::Late => "DEADLINE_EXCEEDED",
        Undecided::Stopping => "SHUTTING_DOWN",
    }
}

/// The protocol's name for it.
pub(super) fn refusal_code(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::TableFull { .. } => "TABLE_FULL",
        Refusal::TooManyCharges { .. } => "TOO_MANY_ITEMS",
        Refusal::UnlikeQuotas => "BAD_LIMIT",
        Refusal::PermitsCannotBeSet { .. } => "BAD_COST",
        Refusal::HorizonPassed | Refusal::WindowPassed => "INTERNAL",
    }
}

fn decided(
    handle: &Handle,
    limits: &[u16],
    readings: &[Reading],
    decision: &Decision,
    rendered: &Rendered,
    version: u64,
) -> Report {
    let limit_of = |index: u16| handle.limits().get(usize::from(index));
    let binding = decision.binding.and_then(|place| limits.get(place).copied()).and_then(limit_of);
    let reports = limits.iter().zip(readings);
    let reports =
        reports.filter_map(|(index, reading)| Some(limit_report(limit_of(*index)?, reading)));
    Report {
        decision: match decision.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        },
        binding: binding
            .map(|limit| Binding { name: limit.name.to_string(), window: window(limit) }),
        limits: reports.collect(),
        permit: decision.permit.map(|permit| permit.id.to_string()),
        ..base(handle, rendered, version)
    }
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

fn limit_report(limit: &Limit, reading: &Reading) -> LimitReport {
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
