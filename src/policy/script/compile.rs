//! A test's text with its names resolved: requests as values of slots, limits, headers and meters
//! that there are.

use crate::engine::command::Amend;
use crate::engine::quota::UNITS_MAX;
use crate::policy::code::ErrorCode;
use crate::policy::error::{Errors, did_you_mean, line_and_column};
use crate::policy::handle::{Handle, SlotUse};
use crate::policy::parse::{ActionText, StepText, TestText};
use crate::policy::quota_text::{self, Measure};
use crate::policy::resolve::REQUESTS;
use crate::policy::subject::{Account, Identities};
use crate::policy::tree::{Node, Text, Value};
use crate::policy::{Policy, Source};

use super::{Action, Expected, Step, Test};

/// Resolves the names in a test; `None` if it has problems.
pub(in crate::policy) fn compile(
    text: &TestText,
    policy: &Policy,
    sources: &[Source<'_>],
    errors: &mut Errors,
) -> Option<Test> {
    let Some(handle) = policy.handle_of(&text.api.value, None) else {
        let help = did_you_mean(&text.api.value, policy.apis()).unwrap_or_else(|| {
            format!("APIs are {}", policy.apis().collect::<Vec<_>>().join(", "))
        });
        let message = format!("unknown API `{}`", text.api.value);
        errors.push_with_help(ErrorCode::UnknownApi, text.api.span, message, help);
        return None;
    };
    let source = sources.get(text.span.source as usize)?;
    let line = |at: u32| line_and_column(source.text, at as usize).0;
    let mut identities = Identities::default();
    for identity in &text.identities {
        let known = || handle.account.iter().flat_map(|slots| &slots.identities);
        if !known().any(|(_, name)| **name == *identity.attribute.value) {
            let message = format!("`{}` stands for no account", identity.attribute.value);
            let names: Vec<&str> = known().map(|(_, name)| &**name).collect();
            let help = match names.as_slice() {
                [] => "the API says which do: `subject.account = [\"api_key\", …]`".to_owned(),
                names => format!("identities are {}", names.join(", ")),
            };
            errors.push_with_help(
                ErrorCode::UnknownAttribute,
                identity.attribute.span,
                message,
                help,
            );
        }
        let account = Account {
            account: identity.account.as_str().into(),
            tier: identity.tier.as_deref().map(Box::from),
        };
        let (api, name) = (&text.api.value, &identity.attribute.value);
        // A text is too short to name too many.
        let _ = identities.put(api, name, identity.value.as_bytes(), account);
    }
    let mut permits: Vec<&str> = Vec::new();
    let mut steps = Vec::new();
    for step in &text.steps {
        match &step.action {
            ActionText::Send { permit: Some(permit), .. } => permits.push(&permit.value),
            ActionText::Release(permit) if !permits.contains(&permit.value.as_str()) => {
                let message = format!("no step above is given a permit called `{}`", permit.value);
                let help = "a step names what it is given: `permit = \"a\"`";
                errors.push_with_help(ErrorCode::UnknownPermit, permit.span, message, help);
            }
            _ => {}
        }
        steps.extend(compile_step(step, handle, line(step.span.start), errors));
    }
    Some(Test {
        name: text.name.clone(),
        source: source.name.to_owned(),
        line: line(text.span.start),
        api: text.api.value.clone(),
        start: text.start,
        identities,
        steps,
    })
}

fn compile_step(
    text: &StepText,
    handle: &Handle,
    line: usize,
    errors: &mut Errors,
) -> Option<Step> {
    let before = errors.len();
    let mut costs = Vec::new();
    let (action, said, values) = match &text.action {
        ActionText::Send { send, costs: amounts, permit } => {
            for (meter, amount) in amounts {
                add_cost(meter.as_ref(), amount, text, handle, &mut costs, errors);
            }
            let permit = permit.as_ref().map(|permit| permit.value.clone());
            (Action::Send { permit }, &send.value, compile_send(send, handle, errors))
        }
        ActionText::Release(permit) => {
            (Action::Release(permit.value.clone()), &permit.value, Some(Vec::new()))
        }
        ActionText::Adjust { limit, send, by } => {
            let amend = amendment(limit, by, handle, errors);
            let named = limit_of(limit, handle, errors);
            let (name, window) = named.unwrap_or_default();
            let action =
                Action::Adjust { limit: name, window, amend: amend.unwrap_or(Amend::Add(0)) };
            (action, &send.value, compile_send(send, handle, errors))
        }
    };
    let said = match &action {
        Action::Send { .. } => said.clone(),
        Action::Release(_) => format!("release {said}"),
        Action::Adjust { limit, .. } => format!("adjust {limit}: {said}"),
    };
    let expect = text.expect.as_ref().and_then(|expect| compile_expect(expect, handle, errors));
    let mut headers = Vec::new();
    for (name, value) in &text.headers {
        let same = |known: &str| known.eq_ignore_ascii_case(&name.value);
        match handle.header_names().position(same) {
            Some(index) => headers.push((index, value.clone())),
            None => {
                let help = did_you_mean(&name.value, handle.header_names()).unwrap_or_else(|| {
                    format!("headers are {}", handle.header_names().collect::<Vec<_>>().join(", "))
                });
                let message = format!("the API never sends the header `{}`", name.value);
                errors.push_with_help(ErrorCode::UnknownName, name.span, message, help);
            }
        }
    }
    let mut remaining = Vec::new();
    for (limit, amount) in &text.remaining {
        let named = limit_of(limit, handle, errors);
        remaining.extend(named.zip(unsigned(amount, measure_of(limit, handle), errors)));
    }
    let values = values?;
    (errors.len() == before).then(|| Step {
        line,
        at: text.at,
        action,
        said,
        values,
        costs,
        times: text.times,
        expect,
        status: text.status,
        headers,
        remaining,
        body: text.body.clone(),
    })
}

/// Notes the amount that a request brings of a meter.
fn add_cost(
    meter: Option<&Text>,
    amount: &Node,
    text: &StepText,
    handle: &Handle,
    costs: &mut Vec<u64>,
    errors: &mut Errors,
) {
    let name = meter.map_or(REQUESTS, |meter| &meter.value);
    let Some(index) = handle.meter(name) else {
        let span = meter.map_or(text.span, |meter| meter.span);
        let help = format!("meters are {}", handle.meters().join(", "));
        errors.push_with_help(
            ErrorCode::UnknownMeter,
            span,
            format!("no limit reads the meter `{name}`"),
            help,
        );
        return;
    };
    let default = |index: usize| u64::from(&*handle.meters()[index] == REQUESTS);
    costs.extend((costs.len()..=index).map(default));
    if let Some(amount) = unsigned(amount, Measure::of(name), errors) {
        costs[index] = amount;
    }
}

/// An amount that is not negative.
fn unsigned(node: &Node, measure: Measure, errors: &mut Errors) -> Option<u64> {
    let (amount, is_negative) = signed(node, measure, errors)?;
    if is_negative {
        let message = format!("found -{amount}, allowed is an amount from 0 to 2^53");
        errors.push(ErrorCode::Type, node.span, message);
        return None;
    }
    Some(amount)
}

/// An amount, which may be negative where that makes sense: its size, and whether it is.
fn signed(node: &Node, measure: Measure, errors: &mut Errors) -> Option<(u64, bool)> {
    let found = match &node.value {
        Value::Integer(Some(number)) => Some((number.unsigned_abs(), *number < 0)),
        Value::Text(text) => {
            let (rest, negative) = match text.value.strip_prefix('-') {
                Some(rest) => (rest, true),
                None => (text.value.as_str(), false),
            };
            match quota_text::amount_alone(rest, measure) {
                Ok(amount) => Some((amount, negative)),
                Err(error) => {
                    errors.push(ErrorCode::Quota, text.span, error.message);
                    return None;
                }
            }
        }
        _ => None,
    };
    let found = found.filter(|(amount, _)| *amount <= UNITS_MAX);
    if found.is_none() {
        let message = format!("found {}, allowed is an amount up to 2^53", node.value.kind());
        errors.push(ErrorCode::Type, node.span, message);
    }
    found
}

/// What the meter of a limit measures.
fn measure_of(limit: &Text, handle: &Handle) -> Measure {
    let name = limit.value.split('.').next().unwrap_or_default();
    let known = handle.limits().iter().find(|known| *known.name == *name);
    let meter = known.and_then(|limit| handle.meters().get(usize::from(limit.meter)));
    meter.map_or(Measure::Count, |meter| Measure::of(meter))
}

fn amendment(limit: &Text, by: &Node, handle: &Handle, errors: &mut Errors) -> Option<Amend> {
    Some(match signed(by, measure_of(limit, handle), errors)? {
        (units, false) => Amend::Add(units),
        (units, true) => Amend::GiveBack(units),
    })
}

/// A limit of the handle, or one window of it.
fn limit_of(text: &Text, handle: &Handle, errors: &mut Errors) -> Option<(String, Option<String>)> {
    let limit = text.value.as_str();
    let (name, window) = match limit.split_once('.') {
        Some((name, window)) => (name, Some(window)),
        None => (limit, None),
    };
    let known = handle
        .limits()
        .iter()
        .any(|limit| *limit.name == *name && window.is_none_or(|window| *limit.window == *window));
    if !known {
        let names = || handle.limits().iter().map(|limit| &*limit.name);
        let mut all: Vec<&str> = names().collect();
        all.dedup();
        let help =
            did_you_mean(name, names()).unwrap_or_else(|| format!("limits are {}", all.join(", ")));
        errors.push_with_help(
            ErrorCode::UnknownLimit,
            text.span,
            format!("unknown limit `{limit}`"),
            help,
        );
        return None;
    }
    Some((name.to_owned(), window.map(str::to_owned)))
}

/// `METHOD PATH name=value ...` as the values of slots.
fn compile_send(text: &Text, handle: &Handle, errors: &mut Errors) -> Option<Vec<Option<Vec<u8>>>> {
    let place = |word: &str| {
        let start = word.as_ptr() as usize - text.value.as_ptr() as usize;
        text.span_of(start..start + word.len())
    };
    let mut words = text.value.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        let help = "a request is written as \"POST /v1/images team=t1\"";
        errors.push_with_help(ErrorCode::Test, text.span, "no request", help);
        return None;
    };
    if !path.starts_with('/') {
        errors.push(ErrorCode::Test, place(path), format!("`{path}` is no path"));
    }
    let mut values: Vec<Option<Vec<u8>>> = vec![None; handle.slots().len()];
    for (slot, value) in values.iter_mut().zip([method, path]) {
        *slot = Some(value.as_bytes().to_vec());
    }
    for word in words {
        let Some((name, value)) = word.split_once('=') else {
            let help = "an attribute is written as `name=value`";
            errors.push_with_help(
                ErrorCode::Test,
                place(word),
                format!("`{word}` is no attribute"),
                help,
            );
            continue;
        };
        let attributes = || handle.slots().iter().filter(|slot| slot.slot_use != SlotUse::Route);
        match attributes().any(|slot| *slot.name == *name).then(|| handle.slot(name)).flatten() {
            Some(slot) if values[slot].is_some() => {
                errors.push(
                    ErrorCode::Duplicate,
                    place(word),
                    format!("`{name}` stands here twice"),
                );
            }
            Some(slot) => values[slot] = Some(value.as_bytes().to_vec()),
            None => {
                let known = || attributes().map(|slot| &*slot.name);
                let help = did_you_mean(name, known()).unwrap_or_else(|| {
                    format!("attributes are {}", known().collect::<Vec<_>>().join(", "))
                });
                let message = format!("no limit reads the attribute `{name}`");
                errors.push_with_help(ErrorCode::UnknownAttribute, place(name), message, help);
            }
        }
    }
    Some(values)
}

fn compile_expect(text: &Text, handle: &Handle, errors: &mut Errors) -> Option<Expected> {
    let mut words = text.value.split_whitespace();
    let expected = match (words.next(), words.next(), words.next()) {
        (Some("allow"), None, None) => Expected::Allow,
        (Some("deny"), None, None) => Expected::Deny(None),
        (Some("bypass"), None, None) => Expected::Bypass,
        (Some("deny"), Some(what), None) => {
            if handle.rules().iter().any(|rule| *rule.code == *what) {
                return Some(Expected::Deny(Some((what.to_owned(), None))));
            }
            Expected::Deny(Some(limit_of(&text.part_named(what), handle, errors)?))
        }
        _ => {
            let message = format!("`{}` is no decision", text.value);
            errors.push_with_help(
                ErrorCode::Test,
                text.span,
                message,
                "write `allow` or `deny LIMIT`",
            );
            return None;
        }
    };
    Some(expected)
}
