//! Answers of the binary protocol in the shape that all doors tell people.

use tollkeeper_protocol::client::{Answer, Description, ServerError};
use tollkeeper_protocol::response::{LimitNumbers, NO_TIME};
use tollkeeper_protocol::status::{Decision, Retry, WhenUnavailable};

use crate::doors::report::{Binding, ErrorReport, LimitReport, Report, finite, version_text};

/// An answer in the shape that all doors tell people.
pub(super) fn report(answer: &Answer, description: &Description) -> Report {
    let named = |index: u16| description.limits.get(usize::from(index));
    let window = |window: &str| Some(window.to_owned()).filter(|window| !window.is_empty());
    let known = |nanos: u64| (nanos != NO_TIME).then_some(nanos);
    let limit = |numbers: &LimitNumbers| {
        let limit = named(numbers.index)?;
        Some(LimitReport {
            name: limit.name.clone(),
            window: window(&limit.window),
            kind: limit.kind.name(),
            limit: finite(numbers.limit),
            remaining: finite(numbers.remaining),
            retry: match numbers.retry {
                Retry::None => "now",
                Retry::After(_) => "after",
                Retry::Never => "never",
                Retry::OnOthers(_) => "on_others",
            },
            retry_after_ns: match numbers.retry {
                Retry::After(nanos) => Some(nanos),
                Retry::OnOthers(nanos) => nanos,
                Retry::None | Retry::Never => None,
            },
            next_ns: known(numbers.next_nanos),
            full_ns: known(numbers.full_nanos),
            mode: limit.mode.name(),
        })
    };
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let numbers = answer.numbers.iter().flat_map(|numbers| &numbers.limits);
    let mut limits: Vec<LimitReport> = numbers.filter_map(limit).collect();
    limits.sort_by(|a, b| (&a.name, &a.window).cmp(&(&b.name, &b.window)));
    let rendered = answer.rendered.as_ref();
    Report {
        decision: word(answer.decision),
        status: rendered.map_or(200, |rendered| rendered.status),
        binding: answer
            .binding
            .and_then(named)
            .map(|limit| Binding { name: limit.name.clone(), window: window(&limit.window) }),
        limits,
        permit: answer.permit.map(|permit| permit.id.to_string()),
        headers: rendered
            .iter()
            .flat_map(|rendered| &rendered.headers)
            .map(|(name, value)| (name.clone(), lossy(value)))
            .collect(),
        content_type: rendered
            .map(|rendered| rendered.content_type.clone())
            .filter(|content_type| !content_type.is_empty()),
        body: rendered.and_then(|rendered| rendered.body.as_deref()).map(lossy),
        policy_version: version_text(answer.witness.policy_version),
        error: answer.failed_open.then(|| ErrorReport {
            code: "FAILED_OPEN".into(),
            message: "the limits' `when_unavailable` let the request pass".into(),
        }),
    }
}

/// What a gateway does with a request that the server has no decision for.
pub(super) fn undecided(error: &ServerError, description: &Description) -> Report {
    let (decision, status) = match description.when_unavailable {
        WhenUnavailable::Allow => (Decision::Allow, 200),
        WhenUnavailable::Deny => (Decision::Deny, description.denied_status),
    };
    let headers = match decision {
        Decision::Allow => &[][..],
        Decision::Deny => &description.static_headers[..],
    };
    Report {
        decision: word(decision),
        status,
        binding: None,
        limits: Vec::new(),
        permit: None,
        headers: headers
            .iter()
            .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()))
            .collect(),
        content_type: None,
        body: None,
        policy_version: version_text(description.policy_version),
        error: Some(ErrorReport { code: error.code.name().into(), message: error.message.clone() }),
    }
}

fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
    }
}
