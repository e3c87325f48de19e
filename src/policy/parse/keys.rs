//! Tables whose keys are all known, and values of the kind that is expected.

use super::super::code::ErrorCode;
use super::super::error::{Errors, Span, did_you_mean};
use super::super::route::Route;
use super::super::template::is_name;
use super::super::tree::{Entry, Node, Table, Text, Value};
use super::RouteText;

/// The keys of a table, of which each is asked for once.
pub(super) struct Keys<'t> {
    table: &'t Table,
    known: Vec<&'static str>,
}

impl<'t> Keys<'t> {
    pub(super) fn new(table: &'t Table) -> Self {
        Self { table, known: Vec::new() }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<&'t Entry> {
        self.known.push(key);
        self.table.find(key)
    }

    /// Notes all keys that nobody asked for.
    pub(super) fn finish(self, errors: &mut Errors) {
        for entry in &self.table.entries {
            let key = entry.key.value.as_str();
            if self.known.contains(&key) {
                continue;
            }
            unknown("key", &entry.key, &self.known, errors);
        }
    }
}

pub(super) fn unknown(what: &str, text: &Text, known: &[&str], errors: &mut Errors) {
    let code = if what == "key" { ErrorCode::UnknownKey } else { ErrorCode::UnknownName };
    let help = did_you_mean(&text.value, known.iter().copied())
        .unwrap_or_else(|| format!("known are {}", known.join(", ")));
    errors.push_with_help(code, text.span, format!("unknown {what} `{}`", text.value), help);
}

pub(super) fn too_many(what: &str, found: usize, max: usize, span: Span, errors: &mut Errors) {
    if found > max {
        errors.push(ErrorCode::Maximum, span, format!("{found} {what}, allowed are {max}"));
    }
}

pub(super) fn check_name(what: &str, name: &Text, errors: &mut Errors) {
    if !is_name(&name.value) {
        let message = format!("`{}` is no name for {} {what}", name.value, article(what));
        let help = "a name is up to 64 letters, digits, `_` and `-`, and begins with a letter";
        errors.push_with_help(ErrorCode::Name, name.span, message, help);
    }
}

pub(super) fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'A']) { "an" } else { "a" }
}

pub(super) fn expected(node: &Node, what: &str, errors: &mut Errors) {
    errors.push(
        ErrorCode::Type,
        node.span,
        format!("found {}, allowed is {what}", node.value.kind()),
    );
}

pub(super) fn table<'t>(node: &'t Node, errors: &mut Errors) -> Option<&'t Table> {
    if let Value::Table(table) = &node.value {
        return Some(table);
    }
    expected(node, "a table", errors);
    None
}

pub(super) fn entries<'t>(node: &'t Node, errors: &mut Errors) -> &'t [Entry] {
    table(node, errors).map_or(&[], |table| &table.entries)
}

pub(super) fn text<'t>(node: &'t Node, errors: &mut Errors) -> Option<&'t Text> {
    if let Value::Text(text) = &node.value {
        return Some(text);
    }
    if let Value::List(_) | Value::Table(_) = node.value {
        expected(node, "a string", errors);
    } else {
        expected(node, "a string, in quotes", errors);
    }
    None
}

/// A string, or a list of them.
pub(super) fn texts<'t>(node: &'t Node, errors: &mut Errors) -> Vec<&'t Text> {
    match &node.value {
        Value::List(list) => list.iter().filter_map(|node| text(node, errors)).collect(),
        _ => text(node, errors).into_iter().collect(),
    }
}

pub(super) fn integer(node: &Node, min: u64, max: u64, errors: &mut Errors) -> Option<u64> {
    let Value::Integer(integer) = node.value else {
        expected(node, "an integer", errors);
        return None;
    };
    let in_range = integer
        .and_then(|integer| u64::try_from(integer).ok())
        .filter(|integer| (min..=max).contains(integer));
    if in_range.is_none() {
        let found = integer.map_or_else(|| "too large".to_owned(), |integer| integer.to_string());
        let allowed = if min == max { min.to_string() } else { format!("{min} to {max}") };
        errors.push(
            ErrorCode::Range,
            node.span,
            format!("the number is {found}, allowed is {allowed}"),
        );
    }
    in_range
}

/// One of a few words.
pub(super) fn choice<T: Copy>(node: &Node, known: &[(&str, T)], errors: &mut Errors) -> Option<T> {
    let text = text(node, errors)?;
    let found = known.iter().find(|(word, _)| *word == text.value);
    if found.is_none() {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        unknown("value", text, &words, errors);
    }
    found.map(|(_, value)| *value)
}

pub(in crate::policy) fn route(text: &Text, errors: &mut Errors) -> Option<RouteText> {
    match Route::parse(&text.value) {
        Ok(route) => Some(RouteText { text: text.clone(), route }),
        Err(error) => {
            match error.help {
                Some(help) => {
                    errors.push_with_help(ErrorCode::Route, text.span, error.message, help)
                }
                None => errors.push(ErrorCode::Route, text.span, error.message),
            }
            None
        }
    }
}
