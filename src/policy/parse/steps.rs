//! `[[test]]`: steps and what must come of them.

use crate::engine::time::{Nanos, UtcTime};

use super::super::code::ErrorCode;
use super::super::error::Errors;
use super::super::maxima::{LIST_ENTRIES_MAX, TEST_CHECKS_MAX};
use super::super::tree::{Node, Value};
use super::super::{moment, quota_text};
use super::keys::{Keys, entries, integer, table, text, too_many};
use super::limit::push_quota_error;
use super::{ActionText, IdentityText, StepText, TestText};

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
            errors.push_with_help(
                ErrorCode::Moment,
                entry.node.span,
                format!("`{written}` is no moment"),
                help,
            );
        }
        start
    });
    let identities =
        keys.take("identities").map_or_else(Vec::new, |entry| identities(&entry.node, errors));
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
                errors.push(ErrorCode::Maximum, node.span, message);
            }
        }
        Some((node, _)) => {
            errors.push(ErrorCode::Type, node.span, "`steps` is a list of at least one table")
        }
        None => errors.push(ErrorCode::Missing, node.span, "the test has no `steps`"),
    }
    let Some(api) = api else {
        errors.push(ErrorCode::Missing, node.span, "the test has no `api`");
        return None;
    };
    Some(TestText {
        span: node.span,
        name: name.map(|text| text.value.clone()),
        api: text(&api.node, errors)?.clone(),
        start: start.unwrap_or(TEST_START),
        identities,
        steps: list,
    })
}

/// What is on record of the requests' identities while the test runs.
fn identities(node: &Node, errors: &mut Errors) -> Vec<IdentityText> {
    let Value::List(nodes) = &node.value else {
        errors.push(ErrorCode::Type, node.span, "`identities` is a list of tables");
        return Vec::new();
    };
    too_many("identities", nodes.len(), LIST_ENTRIES_MAX, node.span, errors);
    let read = |node: &Node, errors: &mut Errors| {
        let table = table(node, errors)?;
        let mut found = (None, None, None);
        for entry in &table.entries {
            let value = text(&entry.node, errors)?.value.clone();
            match entry.key.value.as_str() {
                "account" => found.0 = Some(value),
                "tier" => found.1 = Some(value),
                _ if found.2.is_none() => found.2 = Some((entry.key.clone(), value)),
                _ => {
                    errors.push(ErrorCode::Identity, entry.key.span, "an identity is one attribute")
                }
            }
        }
        let (Some(account), tier, Some((attribute, value))) = found else {
            let help = "as in `{ api_key = \"k1\", account = \"a1\", tier = \"pro\" }`";
            errors.push_with_help(
                ErrorCode::Identity,
                node.span,
                "an identity is an attribute and its `account`",
                help,
            );
            return None;
        };
        Some(IdentityText { attribute, value, account, tier })
    };
    nodes.iter().take(LIST_ENTRIES_MAX).filter_map(|node| read(node, errors)).collect()
}

fn step(node: &Node, before: Nanos, errors: &mut Errors) -> Option<StepText> {
    let mut keys = Keys::new(table(node, errors)?);
    let mut at = before;
    if let Some(text) = keys.take("at").and_then(|entry| text(&entry.node, errors)) {
        match quota_text::span(&text.value) {
            Ok(span) if span < before => {
                errors.push(ErrorCode::StepOrder, text.span, "a step before the one above it");
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
    let mut remaining = Vec::new();
    if let Some(entry) = keys.take("remaining") {
        let list = entries(&entry.node, errors);
        remaining.extend(list.iter().map(|e| (e.key.clone(), e.node.clone())));
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
        ("headers", !headers.is_empty()),
        ("remaining", !remaining.is_empty()),
        ("times", times.is_some()),
    ] {
        if given && !sends && action.is_some() {
            errors.push(
                ErrorCode::Misplaced,
                node.span,
                format!("`{key}` goes with a request that is sent"),
            );
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
        remaining,
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
    let asks_more = [("cost", cost.is_some()), ("permit", permit.is_some())];
    for (key, _) in asks_more.into_iter().filter(|(_, given)| *given) {
        if release.is_some() || adjust.is_some() {
            let message = format!("`{key}` goes with a request that is sent");
            errors.push(ErrorCode::Misplaced, node.span, message);
        }
    }
    if let Some(release) = release {
        if send.is_some() || adjust.is_some() {
            errors.push(
                ErrorCode::Misplaced,
                release.span,
                "a step either sends, releases or adjusts",
            );
        }
        return Some(ActionText::Release(release));
    }
    let Some(send) = send.and_then(|entry| text(&entry.node, errors)).cloned() else {
        let help = "as in `{ send = \"POST /v1/images team=t1\", expect = \"allow\" }`";
        errors.push_with_help(ErrorCode::Missing, node.span, "the step has no `send`", help);
        return None;
    };
    if let Some(limit) = adjust {
        let Some(by) = by else {
            let help = "`by = -5` gives back five units, `by = 5` takes five more";
            errors.push_with_help(
                ErrorCode::Missing,
                limit.span,
                "the step does not say by how much",
                help,
            );
            return None;
        };
        return Some(ActionText::Adjust { limit, send, by: by.node.clone() });
    }
    if let Some(by) = by {
        errors.push(ErrorCode::Misplaced, by.key.span, "`by` goes with `adjust`");
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
