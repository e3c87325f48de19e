//! `limit.NAME`: its kind, its numbers and what else is said of it.

use crate::engine::command::ChargeOn;
use crate::engine::quota::{Align, Kind, UNITS_MAX, check_lease};
use crate::engine::time::Nanos;

use super::super::code::ErrorCode;
use super::super::error::Errors;
use super::super::handle::{Mode, Unavailable};
use super::super::maxima::{KEY_ATTRIBUTES_MAX, LIST_ENTRIES_MAX, NESTED_TABLES_MAX};
use super::super::quota_text::{self, Measure, QuotaTerms, QuotaText, QuotaTextError, WindowKind};
use super::super::tree::{Entry, Node, Table, Text, Value};
use super::super::values::{Branch, Selector, Tree};
use super::keys::{
    Keys, check_name, choice, entries, expected, integer, table, text, texts, too_many, unknown,
};
use super::{LimitText, NOT_FOR_LIMITS, matches};

/// Every kind, as it is written, with an example.
const KINDS: [(Kind, &str); 7] = [
    (Kind::Bucket, "bucket"),
    (Kind::Sliding, "sliding"),
    (Kind::Fixed, "fixed"),
    (Kind::Calendar, "calendar"),
    (Kind::Concurrent, "concurrent"),
    (Kind::Level, "level"),
    (Kind::Cap, "cap"),
];

pub(super) fn limit(entry: &Entry, errors: &mut Errors) -> Option<LimitText> {
    let name = &entry.key;
    check_name("limit", name, errors);
    if NOT_FOR_LIMITS.contains(&name.value.as_str()) {
        let message = format!("`{}` cannot name a limit: templates use it", name.value);
        errors.push(ErrorCode::ReservedName, name.span, message);
    }
    let mut keys = Keys::new(table(&entry.node, errors)?);
    let on = keys.take("on").map(|entry| matches(&entry.node, errors));
    let except = keys.take("except").map_or_else(Vec::new, |e| matches(&e.node, errors));
    let per_entry = keys.take("per");
    let per = per_entry.map_or_else(Vec::new, |entry| per(&entry.node, errors));
    let meter = keys.take("meter").and_then(|entry| text(&entry.node, errors)).cloned();
    if let Some(meter) = &meter {
        check_name("meter", meter, errors);
    }
    let costs = keys.take("cost").and_then(|entry| {
        let mut leaf = |node: &Node, errors: &mut Errors| integer(node, 1, UNITS_MAX, errors);
        tree(&entry.node, NESTED_TABLES_MAX, &mut leaf, errors)
    });
    let mode_entry = keys.take("mode");
    let mode = mode_entry.and_then(|entry| {
        let known = [("enforce", Mode::Enforce), ("shadow", Mode::Shadow), ("off", Mode::Off)];
        choice(&entry.node, &known, errors)
    });
    let charge_entry = keys.take("charge");
    let charge = charge_entry.and_then(|entry| {
        let known = [("allowed", ChargeOn::Allow), ("always", ChargeOn::Always)];
        choice(&entry.node, &known, errors)
    });
    let status = keys.take("status").and_then(|entry| integer(&entry.node, 400, 599, errors));
    let keys_max =
        keys.take("max_keys").and_then(|entry| integer(&entry.node, 1, UNITS_MAX, errors));
    let when_unavailable = keys.take("when_unavailable").and_then(|entry| {
        let known = [("allow", Unavailable::Allow), ("deny", Unavailable::Deny)];
        choice(&entry.node, &known, errors)
    });
    let skip_missing =
        keys.take("missing").and_then(|entry| choice(&entry.node, &[("skip", ())], errors));
    let kind = kind(name, &mut keys, errors);
    let align_entry = keys.take("align");
    let align = align_entry.and_then(|entry| {
        let known = [("clock", Align::Clock), ("first", Align::First)];
        choice(&entry.node, &known, errors)
    });
    let tz_entry = keys.take("tz");
    let tz = tz_entry.and_then(|entry| text(&entry.node, errors)).cloned();
    let anchor_entry = keys.take("anchor");
    let anchor = anchor_entry.and_then(|entry| anchor(&entry.node, errors));
    let lease_entry = keys.take("lease");
    let lease = lease_entry.and_then(|entry| span(&entry.node, errors));
    let retry_entry = keys.take("retry_after");
    let retry_after = retry_entry.and_then(|entry| span(&entry.node, errors));
    keys.finish(errors);
    let (kind, quota_entry) = kind?;
    let mut only_for = |entry: Option<&Entry>, fits: bool, message: &str| {
        if let Some(entry) = entry.filter(|_| !fits) {
            errors.push(ErrorCode::Misplaced, entry.key.span, message);
        }
    };
    only_for(
        align_entry,
        kind == Kind::Fixed,
        match kind {
            Kind::Bucket => "a bucket has no windows to align",
            _ => "`align` goes with `fixed`",
        },
    );
    only_for(tz_entry, kind == Kind::Calendar, "`tz` goes with `calendar`");
    only_for(anchor_entry, kind == Kind::Calendar, "`anchor` goes with `calendar`");
    only_for(lease_entry, kind == Kind::Concurrent, "`lease` goes with `concurrent`");
    let waits_on_others = matches!(kind, Kind::Concurrent | Kind::Level);
    only_for(retry_entry, waits_on_others, "`retry_after` goes with `concurrent` and `level`");
    only_for(
        per_entry.filter(|_| !per.is_empty()),
        kind != Kind::Cap,
        "a cap looks at one request alone, and has no `per`",
    );
    let charges = !matches!(kind, Kind::Concurrent | Kind::Cap) || charge != Some(ChargeOn::Always);
    only_for(
        charge_entry,
        charges,
        match kind {
            Kind::Concurrent => "permits are only given to requests that are allowed",
            _ => "a cap charges nothing",
        },
    );
    if kind == Kind::Concurrent && lease_entry.is_none() {
        let help =
            "a permit whose release is lost frees itself after the lease: `lease = \"2min\"`";
        errors.push_with_help(ErrorCode::MissingLease, quota_entry.key.span, "missing lease", help);
    }
    if let (Some(lease), Some(entry)) = (lease, lease_entry)
        && let Err(error) = check_lease(lease)
    {
        errors.push(ErrorCode::Range, entry.node.span, error.to_string());
    }
    let measure = meter.as_ref().map_or(Measure::Count, |meter| Measure::of(&meter.value));
    let terms = QuotaTerms {
        kind,
        measure,
        align: align.unwrap_or(Align::Clock),
        // Any lease will do to find the other errors.
        lease: lease.filter(|lease| check_lease(*lease).is_ok()).unwrap_or(Nanos::from_secs(60)),
    };
    let mut leaf = |node: &Node, errors: &mut Errors| quota(node, &terms, errors);
    let quotas = tree(&quota_entry.node, NESTED_TABLES_MAX, &mut leaf, errors)?;
    check_unlimited(&quotas, &terms, quota_entry, errors);
    Some(LimitText {
        name: name.clone(),
        on,
        except,
        per,
        kind,
        quotas,
        quota_span: quota_entry.node.span,
        terms,
        tz,
        anchor,
        meter,
        costs: costs.unwrap_or(Tree::Leaf(1)),
        mode: mode.unwrap_or(Mode::Enforce),
        charge: charge.unwrap_or_default(),
        retry_after,
        status: status.unwrap_or(429) as u16,
        keys_max,
        when_unavailable: when_unavailable.unwrap_or(Unavailable::Allow),
        skip_missing: skip_missing.is_some(),
    })
}

/// The one kind of a limit, and the entry with its numbers.
fn kind<'t>(name: &Text, keys: &mut Keys<'t>, errors: &mut Errors) -> Option<(Kind, &'t Entry)> {
    let found: Vec<(Kind, &Entry)> =
        KINDS.iter().filter_map(|(kind, key)| keys.take(key).map(|entry| (*kind, entry))).collect();
    match found.as_slice() {
        [one] => Some(*one),
        [] => {
            let message = format!("limit `{}` has no kind", name.value);
            let help = "give it one, as in `bucket = \"60/min burst 120\"` or `fixed = \"5/min\"`";
            errors.push_with_help(ErrorCode::Kind, name.span, message, help);
            None
        }
        [_, (_, second), ..] => {
            let message = format!("limit `{}` has a second kind", name.value);
            errors.push_with_help(
                ErrorCode::SecondKind,
                second.key.span,
                message,
                "a limit is of exactly one kind",
            );
            None
        }
    }
}

/// One value of a limit: text, or a number where the kind has no windows.
fn quota(node: &Node, terms: &QuotaTerms, errors: &mut Errors) -> Option<QuotaText> {
    let amounts = matches!(terms.kind, Kind::Concurrent | Kind::Level | Kind::Cap);
    if amounts && let Value::Integer(_) = node.value {
        let units = integer(node, 1, UNITS_MAX, errors)?;
        return match terms.of_number(units) {
            Ok(quota) => Some(quota),
            Err(error) => {
                errors.push(ErrorCode::Range, node.span, error.to_string());
                None
            }
        };
    }
    if amounts && !matches!(node.value, Value::Text(_)) {
        expected(node, "an integer, or a string with a unit", errors);
        return None;
    }
    let written = text(node, errors)?;
    match terms.read(&written.value) {
        Ok(quota) => Some(quota),
        Err(error) => {
            push_quota_error(written, error, errors);
            None
        }
    }
}

/// Limits with windows have at least one somewhere, which says what is unlimited.
fn check_unlimited(
    quotas: &Tree<QuotaText>,
    terms: &QuotaTerms,
    entry: &Entry,
    errors: &mut Errors,
) {
    let windowed = matches!(terms.kind, Kind::Fixed | Kind::Calendar);
    let all = quotas.leaves().iter().all(|leaf| matches!(leaf, QuotaText::Unlimited));
    if windowed && all {
        let help = "say in which windows it counts, as in \"unlimited/day\"";
        errors.push_with_help(
            ErrorCode::Unlimited,
            entry.node.span,
            "unlimited in no window",
            help,
        );
    }
    debug_assert!(terms.unlimited(WindowKind::None).kind() == terms.kind);
}

/// A value, or tables of values nested in any order.
fn tree<T>(
    node: &Node,
    depth: usize,
    leaf: &mut impl FnMut(&Node, &mut Errors) -> Option<T>,
    errors: &mut Errors,
) -> Option<Tree<T>> {
    let Value::Table(table) = &node.value else { return leaf(node, errors).map(Tree::Leaf) };
    if depth == 0 {
        errors.push(
            ErrorCode::Nesting,
            node.span,
            format!("tables are nested at most {NESTED_TABLES_MAX} deep"),
        );
        return None;
    }
    let (by, at, list) = selector(node, table, errors)?;
    if list.is_empty() {
        errors.push(ErrorCode::Empty, at.span, format!("the table by {} is empty", at.value));
        return None;
    }
    too_many("entries", list.len(), LIST_ENTRIES_MAX, at.span, errors);
    let mut found = Vec::new();
    for entry in list.iter().take(LIST_ENTRIES_MAX) {
        if let Some(tree) = tree(&entry.node, depth - 1, leaf, errors) {
            found.push((entry.key.clone(), tree));
        }
    }
    // An entry that could not be read has been told; what it left out must not be told again.
    (found.len() == list.len()).then_some(Tree::Branch(Branch { by, at, entries: found }))
}

/// By what a table picks, the key that says so, and its entries.
fn selector<'t>(
    node: &Node,
    table: &'t Table,
    errors: &mut Errors,
) -> Option<(Selector, Text, &'t [Entry])> {
    const KNOWN: [&str; 4] = ["tier", "class", "route", "attr"];
    let help = "tables of values are by `.tier`, `.class`, `.route` or `.attr.NAME`";
    let entry = match table.entries.as_slice() {
        [entry] => entry,
        [] => {
            errors.push_with_help(ErrorCode::Empty, node.span, "a table without values", help);
            return None;
        }
        [first, second, ..] => {
            let odd = [first, second].into_iter().find(|e| !KNOWN.contains(&e.key.value.as_str()));
            match odd {
                Some(entry) => unknown("key", &entry.key, &KNOWN, errors),
                None => {
                    let (a, b) = (&first.key.value, &second.key.value);
                    let message = format!("values by `{a}` beside values by `{b}`");
                    let help = format!("put one into the other, as in `.{a}.NAME.{b}`");
                    errors.push_with_help(ErrorCode::Tables, second.key.span, message, help);
                }
            }
            return None;
        }
    };
    let by = match entry.key.value.as_str() {
        "tier" => Selector::Tier,
        "class" => Selector::Class,
        "route" => Selector::Route,
        "attr" => {
            let [attribute] = entries(&entry.node, errors) else {
                let help = "as in `.attr.region = { eu = …, \"*\" = … }`";
                errors.push_with_help(
                    ErrorCode::Tables,
                    entry.key.span,
                    "`attr` names one attribute",
                    help,
                );
                return None;
            };
            check_name("attribute", &attribute.key, errors);
            let list = entries(&attribute.node, errors);
            return Some((Selector::Attribute, attribute.key.clone(), list));
        }
        _ => {
            unknown("key", &entry.key, &KNOWN, errors);
            return None;
        }
    };
    Some((by, entry.key.clone(), entries(&entry.node, errors)))
}

/// A day of the month or an hour as a number, a weekday or `attr.NAME` as text.
fn anchor(node: &Node, errors: &mut Errors) -> Option<Text> {
    if let Value::Integer(_) = node.value {
        let number = integer(node, 0, 31, errors)?;
        return Some(Text::made(number.to_string(), node.span));
    }
    text(node, errors).cloned()
}

fn span(node: &Node, errors: &mut Errors) -> Option<Nanos> {
    let text = text(node, errors)?;
    match quota_text::span(&text.value) {
        Ok(span) => Some(span),
        Err(error) => {
            push_quota_error(text, error, errors);
            None
        }
    }
}

pub(super) fn push_quota_error(text: &Text, error: QuotaTextError, errors: &mut Errors) {
    let span = text.span_of(error.at);
    match error.help {
        Some(help) => errors.push_with_help(ErrorCode::Quota, span, error.message, help),
        None => errors.push(ErrorCode::Quota, span, error.message),
    }
}

fn per(node: &Node, errors: &mut Errors) -> Vec<Text> {
    let mut names: Vec<Text> = Vec::new();
    let list = texts(node, errors);
    too_many("attributes", list.len(), KEY_ATTRIBUTES_MAX, node.span, errors);
    for text in list.into_iter().take(KEY_ATTRIBUTES_MAX) {
        let name = text.value.as_str();
        if names.iter().any(|known| known.value == name) {
            errors.push(ErrorCode::Duplicate, text.span, format!("`{name}` stands in `per` twice"));
            continue;
        }
        let plain = name.strip_prefix(':').unwrap_or(name);
        let plain = plain.split_once('/').map_or(plain, |(name, _)| name);
        check_name("attribute", &text.part_named(plain), errors);
        names.push(text.clone());
    }
    names
}
