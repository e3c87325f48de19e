//! What became of a call in the service's words: statuses, headers, body, metadata.

use crate::doors::{Batch, Outcome, PartOutcome, Problem};
use crate::engine::decision::{Decision, Reading, Retry, Verdict, binding};
use crate::engine::group::Undecided;
use crate::engine::kinds::UNLIMITED;
use crate::engine::permit::PermitId;
use crate::engine::quota::Quota;
use crate::engine::time::Nanos;
use crate::policy::{Handle, Rendered, ResolveError, RuleEffect, Unavailable, window_secs};

use super::grpc::{Code as Status, Fault};
use super::proto::{
    Code, DescriptorStatus, Duration, HeaderValue, RateLimit, RateLimitResponse, Texts, Unit,
};

/// Units by their seconds. A month has 30 days here, and a year 365.
const UNITS: [(u64, Unit); 7] = [
    (1, Unit::Second),
    (60, Unit::Minute),
    (3600, Unit::Hour),
    (86_400, Unit::Day),
    (7 * 86_400, Unit::Week),
    (30 * 86_400, Unit::Month),
    (365 * 86_400, Unit::Year),
];

/// What is behind one descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// So many descriptors before it are checked with it.
    Part(usize),
    /// An item that came after the fact.
    Item(usize),
}

/// An answer, and what it holds of concurrency limits.
#[derive(Debug, PartialEq)]
pub(super) struct Answered {
    pub(super) response: RateLimitResponse,
    pub(super) permit: Option<PermitId>,
}

/// Answers a call: `check` is the item of those of its descriptors that ask whether they may pass.
pub(super) fn answer(
    batch: &Batch,
    handle: &Handle,
    check: Option<usize>,
    places: &[Place],
) -> Result<Answered, Fault> {
    let mut answered = Answered { response: RateLimitResponse::default(), permit: None };
    let response = &mut answered.response;
    response.overall_code = Code::Ok as i32;
    if let Some(index) = check {
        let (verdict, decision) = match batch.outcome(index) {
            Outcome::Decided { decision, .. } => (decision.verdict, Some(decision)),
            Outcome::FailedOpen(Problem::Undecided(Undecided::Late))
            | Outcome::Failed(Problem::Undecided(Undecided::Late)) => return Err(Fault::late()),
            Outcome::FailedOpen(_) => (Verdict::Allow, None),
            Outcome::Failed(problem) => {
                if let Some(fault) = wrong(problem, handle) {
                    return Err(fault);
                }
                (Verdict::Deny, None)
            }
            _ => return Err(undecided()),
        };
        if verdict == Verdict::Deny {
            response.overall_code = Code::OverLimit as i32;
        }
        let mut rendered = Rendered::default();
        batch.render(index, &mut rendered).ok_or_else(undecided)?;
        response.response_headers_to_add = headers(handle, &rendered);
        response.raw_body = rendered.body().unwrap_or_default().as_bytes().to_vec();
        answered.permit = decision.and_then(|decision| decision.permit).map(|permit| permit.id);
        let metadata = metadata(batch, index, handle, verdict, decision, &rendered);
        response.dynamic_metadata = Some(metadata.into_bytes());
    }
    for place in places {
        response.statuses.push(match *place {
            Place::Part(part) => {
                // A call that has a part has an item for it.
                let index = check.ok_or_else(undecided)?;
                part_status(batch, index, part, handle)
            }
            Place::Item(index) => match batch.outcome(index) {
                Outcome::Amended(..) | Outcome::Released(_) => passed(),
                Outcome::Failed(problem) => {
                    return Err(wrong(problem, handle).unwrap_or_else(|| {
                        Fault::new(Status::Unavailable, describe(problem, handle))
                    }));
                }
                _ => return Err(undecided()),
            },
        });
    }
    Ok(answered)
}

fn undecided() -> Fault {
    Fault::new(Status::Unavailable, "the call was not decided")
}

/// What is the caller's to put right; `None`: the policy has an answer for it.
fn wrong(problem: &Problem, handle: &Handle) -> Option<Fault> {
    match problem {
        Problem::Resolve(
            error @ (ResolveError::CostTooLarge { .. } | ResolveError::TooManyLimits { .. }),
        ) => Some(Fault::invalid(error.describe(handle).to_string())),
        _ => None,
    }
}

fn describe(problem: &Problem, handle: &Handle) -> String {
    match problem {
        Problem::Resolve(error) => error.describe(handle).to_string(),
        Problem::Refused(refusal) => refusal.to_string(),
        Problem::Undecided(undecided) => undecided.describe().to_owned(),
        Problem::BadId(error) => error.to_string(),
    }
}

fn headers(handle: &Handle, rendered: &Rendered) -> Vec<HeaderValue> {
    let headers = handle.header_names().zip(rendered.headers());
    let headers = headers.filter_map(|(name, value)| Some((name, value?)));
    let content_type = rendered.content_type().map(|content_type| ("Content-Type", content_type));
    headers
        .chain(content_type)
        // The proxy's names are lower case.
        .map(|(name, value)| HeaderValue {
            key: name.to_ascii_lowercase(),
            value: value.to_owned(),
        })
        .collect()
}

/// What the proxy may log, and bring again when the request is done: `admitted` and `permit` are
/// only there for who was admitted.
fn metadata(
    batch: &Batch,
    index: usize,
    handle: &Handle,
    verdict: Verdict,
    decision: Option<&Decision>,
    rendered: &Rendered,
) -> Texts {
    let mut texts = Texts::default();
    texts.put("decision", if verdict == Verdict::Allow { "allow" } else { "deny" });
    texts.put("status", &rendered.status().to_string());
    if verdict == Verdict::Allow {
        texts.put("admitted", "true");
    }
    if let Some(limit) = decision.and_then(|decision| binding_limit(batch, index, handle, decision))
    {
        texts.put("limit", &limit);
    }
    if let Some(permit) = decision.and_then(|decision| decision.permit) {
        texts.put("permit", &permit.id.to_string());
    }
    texts
}

fn binding_limit(
    batch: &Batch,
    index: usize,
    handle: &Handle,
    decision: &Decision,
) -> Option<String> {
    let Outcome::Decided { limits, .. } = batch.outcome(index) else { return None };
    let limit = *limits.get(decision.binding?)?;
    handle.limits().get(usize::from(limit)).map(|limit| limit.full_name())
}

/// A descriptor that nothing is known of, or that nothing holds back.
fn passed() -> DescriptorStatus {
    DescriptorStatus { code: Code::Ok as i32, ..DescriptorStatus::default() }
}

fn over() -> DescriptorStatus {
    DescriptorStatus { code: Code::OverLimit as i32, ..DescriptorStatus::default() }
}

fn part_status(batch: &Batch, index: usize, part: usize, handle: &Handle) -> DescriptorStatus {
    match batch.part(index, part) {
        PartOutcome::Decided { rule: Some(RuleEffect::Deny), .. } => over(),
        PartOutcome::Decided { rule: Some(RuleEffect::Bypass), .. } => {
            DescriptorStatus { limit_remaining: u32::MAX, ..passed() }
        }
        PartOutcome::Decided { readings, limits, rule: None } => status(handle, limits, readings),
        PartOutcome::Unresolved(ResolveError::BadAttribute { when_unavailable, .. }) => {
            match when_unavailable {
                Unavailable::Allow => passed(),
                Unavailable::Deny => over(),
            }
        }
        PartOutcome::Unresolved(_) => over(),
        PartOutcome::Undecided => match batch.outcome(index) {
            Outcome::FailedOpen(_) => passed(),
            _ => over(),
        },
    }
}

/// A descriptor's status: that of the limit that binds among those that it is for.
fn status(handle: &Handle, limits: &[u16], readings: &[Reading]) -> DescriptorStatus {
    let passes = readings.iter().all(Reading::passes);
    let verdict = if passes { Verdict::Allow } else { Verdict::Deny };
    // Shadows never bind; where there are only shadows, the first is shown.
    let place = binding(verdict, readings).unwrap_or(0);
    let (Some(reading), Some(limit)) = (readings.get(place), limits.get(place)) else {
        return passed();
    };
    let mut status = if passes { passed() } else { over() };
    if reading.remaining() == UNLIMITED {
        status.limit_remaining = u32::MAX;
        return status;
    }
    let limit = handle.limits().get(usize::from(*limit));
    status.limit_remaining = narrow(reading.remaining());
    status.current_limit = Some(RateLimit {
        requests_per_unit: narrow(reading.limit()),
        unit: unit(&reading.quota) as i32,
        name: limit.map(|limit| limit.full_name()).unwrap_or_default(),
    });
    let span = match reading.retry() {
        Retry::Now => reading.full_after(),
        Retry::After(span) => Some(span),
        Retry::OnOthers(lapse) => lapse,
        Retry::Never => None,
    };
    status.duration_until_reset = span.map(whole);
    status
}

/// Whole seconds, rounded up: Envoy cuts fractions off, and a client that came so much too early
/// would be denied again.
fn whole(span: Nanos) -> Duration {
    Duration { seconds: i64::try_from(span.as_secs_ceil()).unwrap_or(i64::MAX) }
}

fn narrow(units: u64) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// The unit in which the whole of a limit returns, if there is one that fits exactly.
fn unit(quota: &Quota) -> Unit {
    let secs = window_secs(quota);
    let unit = UNITS.iter().find(|(unit_secs, _)| Some(*unit_secs) == secs && is_whole(quota));
    unit.map_or(Unit::Unknown, |(_, unit)| *unit)
}

/// Whether what was rounded to seconds lost nothing.
fn is_whole(quota: &Quota) -> bool {
    let nanos = |span: Nanos| span.get().is_multiple_of(1_000_000_000);
    match quota {
        Quota::Bucket(bucket) => {
            let (units, window) = bucket.rate();
            let full = u128::from(bucket.burst()) * u128::from(window.get());
            full.is_multiple_of(u128::from(units) * 1_000_000_000)
        }
        Quota::Sliding(sliding) => nanos(sliding.window()),
        Quota::Fixed(fixed) => nanos(fixed.window()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::quota::Align;

    use super::*;

    #[test]
    fn a_unit_is_told_where_the_whole_limit_returns_in_it() {
        let secs = Nanos::from_secs;
        let bucket = |units, window, burst| Quota::bucket(units, secs(window), burst).unwrap();
        let fixed = |window| Quota::fixed(5, window, Align::Clock).unwrap();
        for (quota, expected) in [
            (bucket(60, 60, 60), Unit::Minute),
            (bucket(1, 1, 60), Unit::Minute),
            (bucket(60, 60, 120), Unit::Unknown),
            (bucket(61, 60, 61), Unit::Minute),
            (bucket(61, 60, 60), Unit::Unknown),
            (fixed(secs(1)), Unit::Second),
            (fixed(secs(3600)), Unit::Hour),
            (fixed(secs(86_400)), Unit::Day),
            (fixed(secs(7 * 86_400)), Unit::Week),
            (fixed(secs(30 * 86_400)), Unit::Month),
            (fixed(secs(365 * 86_400)), Unit::Year),
            (fixed(Nanos::new(59_500_000_000)), Unit::Unknown),
            (fixed(secs(300)), Unit::Unknown),
            (Quota::sliding(5, secs(60)).unwrap(), Unit::Minute),
            (Quota::concurrent(5, secs(60)).unwrap(), Unit::Unknown),
            (Quota::level(5).unwrap(), Unit::Unknown),
        ] {
            assert_eq!(unit(&quota), expected, "{quota:?}");
        }
    }

    #[test]
    fn what_does_not_fit_the_service_is_told_as_the_most_and_never_too_early() {
        assert_eq!((narrow(7), narrow(1 << 40)), (7, u32::MAX));
        assert_eq!(whole(Nanos::new(1)).seconds, 1);
        assert_eq!(whole(Nanos::from_secs(2)).seconds, 2);
        assert_eq!(whole(Nanos::ZERO).seconds, 0);
    }
}
