//! `[[test]]`: steps and what must come of them.

use crate::engine::time::{Nanos, UtcTime};

use super::super::error::Errors;
use super::super::maxima::TEST_CHECKS_MAX;
use super::super::tree::{Node, Value};
use super::super::{moment, quota_text};
use super::keys::{Keys, entries, integer, table, text};
use super::limit::push_quota_error;
use super::{ActionText, StepText, TestText};

/// When a test starts that does not say: 2000-01-01T00:00:00Z.
const TEST_START: UtcTime = UtcTime::from_nanos(946_684_800 * crate::engine::time::SECOND);

pub(super) fn test(node: &Node, errors: &mut Errors) -> Option<TestText> {
    let mut keys = Keys::new(table(node, errors)?);
    let name = keys.take("name").and_then(|entry| text(&entry.node, errors));
    let api = keys.take("api");
    let start = keys.take("start").and_then(|entry| {
        let written = match &entry.node.value {
            Value::Datetime(written) => written.as_str(),
            _ => text(&entry.node, errors)?.value.as_str(),
        };
        let start = moment::parse_rfc3339(written);
        if start.is_none() {
            let help = "a moment is written as \"2024-05-03T15:28:20Z\"";
            errors.push_with_help(entry.node.span, format!("`{written}` is no moment"), help);
        }
        start
    });
    let steps = keys.take("steps");
    keys.finish(errors);
    let mut list = Vec::new();
    match steps.map(|entry| (&entry.node, &entry.node.value)) {
        Some((_, Value::List(nodes))) if !nodes.is_empty() => {
            let (mut at, mut checks) = (Nanos::ZERO, 0u64);
            for node in nodes {
                let Some(step) = step(node, at, errors) else { continue };
                at = step.at;
                checks = checks.saturating_add(step.times);
                list.push(step);
            }
            if checks > TEST_CHECKS_MAX {
                let message = format!("{checks} checks in a test, allowed are {TEST_CHECKS_MAX}");
                errors.push(node.span, message);
            }
        }
        Some((node, _)) => errors.push(node.span, "`steps` is a list of at least one table"),
        None => errors.push(node.span, "the test has no `steps`"),
    }
    let Some(api) = api else {
        errors.push(node.span, "the test has no `api`");
        return None;
    };
    Some(TestText {
        span: node.span,
        name: name.map(|text| text.value.clone()),
        api: text(&api.node, errors)?.clone(),
        start: start.unwrap_or(TEST_START),
        steps: list,
    })
}

fn step(node: &Node, before: Nanos, errors: &mut Errors) -> Option<StepText> {
    let mut keys = Keys::new(table(node, errors)?);
    let mut at = before;
    if let Some(text) = keys.take("at").and_then(|entry| text(&entry.node, errors)) {
        match quota_text::span(&text.value) {
            Ok(span) if span < before => {
                errors.push(text.span, "a step before the one above it");
            }
            Ok(span) => at = span,
            Err(error) => push_quota_error(text, error, errors),
        }
    }
    let action = action(node, &mut keys, errors);
    let times = keys.take("times").and_then(|e| integer(&e.node, 1, TEST_CHECKS_MAX, errors));
    let expect = keys.take("expect").and_then(|entry| text(&entry.node, errors)).cloned();
    let status = keys.take("status").and_then(|entry| integer(&entry.node, 100, 599, errors));
    let mut headers = Vec::new();
    if let Some(entry) = keys.take("headers") {
        for entry in entries(&entry.node, errors) {
            match &entry.node.value {
                Value::Boolean(false) => headers.push((entry.key.clone(), None)),
                _ => headers.extend(
                    text(&entry.node, errors)
                        .map(|value| (entry.key.clone(), Some(value.value.clone()))),
                ),
            }
        }
    }
    let body = keys.take("body").and_then(|entry| match &entry.node.value {
        Value::Boolean(false) => Some(None),
        _ => text(&entry.node, errors).map(|text| Some(text.value.clone())),
    });
    keys.finish(errors);
    let sends = matches!(action, Some(ActionText::Send { .. }));
    for (key, given) in [
        ("expect", expect.is_some()),
        ("status", status.is_some()),
        ("body", body.is_some()),
        ("times", times.is_some()),
    ] {
        if given && !sends && action.is_some() {
            errors.push(node.span, format!("`{key}` goes with a request that is sent"));
        }
    }
    Some(StepText {
        span: node.span,
        at,
        action: action?,
        times: times.unwrap_or(1),
        expect,
        status: status.map(|status| status as u16),
        headers,
        body,
    })
}

/// What the step does.
fn action(node: &Node, keys: &mut Keys<'_>, errors: &mut Errors) -> Option<ActionText> {
    let send = keys.take("send");
    let cost = keys.take("cost");
    let permit = keys.take("permit").and_then(|entry| text(&entry.node, errors)).cloned();
    let release = keys.take("release").and_then(|entry| text(&entry.node, errors)).cloned();
    let adjust = keys.take("adjust").and_then(|entry| text(&entry.node, errors)).cloned();
    let by = keys.take("by");
    if let Some(release) = release {
        if send.is_some() || adjust.is_some() {
            errors.push(release.span, "a step either sends, releases or adjusts");
        }
        return Some(ActionText::Release(release));
    }
    let Some(send) = send.and_then(|entry| text(&entry.node, errors)).cloned() else {
        let help = "as in `{ send = \"POST /v1/images team=t1\", expect = \"allow\" }`";
        errors.push_with_help(node.span, "the step has no `send`", help);
        return None;
    };
    if let Some(limit) = adjust {
        let Some(by) = by else {
            let help = "`by = -5` gives back five units, `by = 5` takes five more";
            errors.push_with_help(limit.span, "the step does not say by how much", help);
            return None;
        };
        return Some(ActionText::Adjust { limit, send, by: by.node.clone() });
    }
    if let Some(by) = by {
        errors.push(by.key.span, "`by` goes with `adjust`");
    }
    let mut costs = Vec::new();
    match cost.map(|entry| &entry.node) {
        Some(Node { value: Value::Table(table), .. }) => {
            costs.extend(table.entries.iter().map(|e| (Some(e.key.clone()), e.node.clone())));
        }
        Some(node) => costs.push((None, node.clone())),
        None => {}
    }
    Some(ActionText::Send { send, costs, permit })
}
