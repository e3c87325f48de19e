//! `headers`, and texts and bodies by what denied.

use super::super::code::ErrorCode;
use super::super::error::Errors;
use super::super::field::Field;
use super::super::maxima::{HEADERS_MAX, LIST_ENTRIES_MAX, NAME_BYTES_MAX};
use super::super::presets;
use super::super::tree::{Entry, Node, Text, Value};
use super::keys::{Keys, entries, table, text, texts, too_many, unknown};
use super::{HeaderText, HeadersText, KeyedText};

pub(super) fn headers(node: &Node, errors: &mut Errors) -> HeadersText {
    let mut headers = HeadersText::default();
    let Some(table) = table(node, errors) else { return headers };
    let mut keys = Keys::new(table);
    let mut unread = false;
    let preset_text = keys.take("preset").and_then(|entry| text(&entry.node, errors));
    if let Some(text) = preset_text {
        headers.preset = presets::preset(&text.value);
        if headers.preset.is_none() {
            unread = true;
            unknown("preset", text, &presets::NAMES, errors);
        }
    }
    let from = keys.take("from");
    let reset = keys.take("reset");
    let shows = headers.preset.is_some_and(|preset| !preset.headers.is_empty());
    let shows_reset = headers.preset.is_some_and(|preset| preset.shows_reset());
    for (entry, shown) in [(from, shows), (reset, shows_reset)] {
        if let Some(entry) = entry.filter(|_| !shown && !unread) {
            let message = format!("`{}` needs a preset that shows it", entry.key.value);
            errors.push(ErrorCode::Misplaced, entry.key.span, message);
        }
    }
    if let Some(entry) = from {
        headers.from = match &entry.node.value {
            Value::Table(roles) => roles
                .entries
                .iter()
                .map(|role| (Some(role.key.clone()), names(&role.node, errors)))
                .collect(),
            _ => vec![(None, names(&entry.node, errors))],
        };
    }
    if let Some(preset) = headers.preset {
        let help = || match preset.roles {
            [] => "this preset shows one limit: `from = \"LIMIT\"`".to_owned(),
            roles => format!("roles of `{}` are {}", preset.name, roles.join(", ")),
        };
        for (role, _) in &headers.from {
            match role {
                Some(role) if !preset.roles.contains(&role.value.as_str()) => {
                    let message = format!("unknown role `{}`", role.value);
                    errors.push_with_help(ErrorCode::UnknownName, role.span, message, help());
                }
                _ => {}
            }
        }
        let by_role = headers.from.iter().any(|(role, _)| role.is_some());
        if !preset.roles.is_empty()
            && !by_role
            && let Some(text) = preset_text
        {
            let example = "as in `from = { requests = \"LIMIT\", tokens = \"LIMIT\" }`";
            let message = format!("the preset `{}` needs `from` by role", preset.name);
            errors.push_with_help(
                ErrorCode::Misplaced,
                text.span,
                message,
                format!("{}, {example}", help()),
            );
        }
    }
    if let Some(text) = reset.and_then(|entry| text(&entry.node, errors)) {
        headers.reset = Field::named(&text.value);
        if headers.reset.is_none() {
            unknown("field", text, &Field::NAMES, errors);
        }
    }
    headers.always = single_headers(keys.take("always"), errors);
    headers.denied = single_headers(keys.take("denied"), errors);
    keys.finish(errors);
    headers
}

fn names(node: &Node, errors: &mut Errors) -> Vec<Text> {
    let list = texts(node, errors);
    too_many("entries", list.len(), LIST_ENTRIES_MAX, node.span, errors);
    list.into_iter().take(LIST_ENTRIES_MAX).cloned().collect()
}

/// A text, or a table of texts by what denied.
pub(super) fn keyed(node: &Node, errors: &mut Errors) -> KeyedText {
    let Value::Table(table) = &node.value else {
        return text(node, errors).map(|text| (None, text.clone())).into_iter().collect();
    };
    too_many("entries", table.entries.len(), LIST_ENTRIES_MAX, node.span, errors);
    let mut found = KeyedText::new();
    // `"plan.hour" = …` is one key and `plan.hour = …` two: they say the same.
    for entry in table.entries.iter().take(LIST_ENTRIES_MAX) {
        if let Value::Table(windows) = &entry.node.value {
            for window in windows.entries.iter().take(LIST_ENTRIES_MAX) {
                let key = format!("{}.{}", entry.key.value, window.key.value);
                let value = text(&window.node, errors).cloned();
                found.extend(value.map(|text| (Some(Text::made(key, window.key.span)), text)));
            }
            continue;
        }
        let value = text(&entry.node, errors).cloned();
        found.extend(value.map(|text| (Some(entry.key.clone()), text)));
    }
    found
}

fn single_headers(entry: Option<&Entry>, errors: &mut Errors) -> Vec<HeaderText> {
    let Some(entry) = entry else { return Vec::new() };
    let mut headers: Vec<HeaderText> = Vec::new();
    let list = entries(&entry.node, errors);
    too_many("headers", list.len(), HEADERS_MAX, entry.key.span, errors);
    for entry in list.iter().take(HEADERS_MAX) {
        let name = entry.key.value.as_str();
        let of_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(of_token) {
            errors.push(
                ErrorCode::HeaderName,
                entry.key.span,
                format!("`{name}` is no name of a header"),
            );
        }
        if headers.iter().any(|known| known.name.value.eq_ignore_ascii_case(name)) {
            errors.push(
                ErrorCode::Duplicate,
                entry.key.span,
                format!("header `{name}` stands here twice"),
            );
        }
        if let Some(value) = text(&entry.node, errors) {
            headers.push(HeaderText { name: entry.key.clone(), value: value.clone() });
        }
    }
    headers
}
