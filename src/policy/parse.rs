//! The tree of a text to typed policy: every key known, every value in its range, nothing resolved.

use crate::engine::quota::{Align, UNITS_MAX};
use crate::engine::time::{Nanos, UtcTime};

use super::error::{Errors, Span, did_you_mean};
use super::field::Field;
use super::handle::{Mode, Unavailable};
use super::maxima::{
    HEADERS_MAX, KEY_ATTRIBUTES_MAX, LIST_ENTRIES_MAX, NAME_BYTES_MAX, TEST_CHECKS_MAX,
};
use super::presets::{self, PresetHeader};
use super::quota_text::{self, QuotaTextError, Window};
use super::route::Route;
use super::template::is_name;
use super::tree::{Entry, Node, Table, Text, Value};
use super::{moment, tree};

/// What one source says.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) apis: Vec<ApiText>,
    pub(super) tests: Vec<TestText>,
}

/// `[api.NAME]`.
#[derive(Debug)]
pub(super) struct ApiText {
    pub(super) name: Text,
    pub(super) classes: Vec<ClassText>,
    pub(super) limits: Vec<LimitText>,
    /// Whether a limit could not be read and is left out of `limits`.
    pub(super) incomplete: bool,
    pub(super) headers: HeadersText,
    pub(super) body: Option<Text>,
}

/// `class.NAME = [...]`.
#[derive(Debug)]
pub(super) struct ClassText {
    pub(super) name: Text,
    pub(super) routes: Vec<RouteText>,
}

/// A route and where it stands.
#[derive(Debug)]
pub(super) struct RouteText {
    pub(super) text: Text,
    pub(super) route: Route,
}

/// One entry of `on` or `except`.
#[derive(Debug)]
pub(super) enum MatchText {
    Class(Text),
    Route(RouteText),
}

/// One limit.
#[derive(Debug)]
pub(super) struct LimitText {
    pub(super) name: Text,
    /// `None` is every request.
    pub(super) on: Option<Vec<MatchText>>,
    pub(super) except: Vec<MatchText>,
    pub(super) per: Vec<Text>,
    /// Not empty.
    pub(super) windows: Vec<Window>,
    pub(super) quota_span: Span,
    pub(super) meter: Option<Text>,
    pub(super) cost: u64,
    pub(super) mode: Mode,
    pub(super) status: u16,
    pub(super) keys_max: Option<u64>,
    pub(super) when_unavailable: Unavailable,
    pub(super) skip_missing: bool,
}

/// `[api.NAME.headers]`.
#[derive(Default)]
pub(super) struct HeadersText {
    pub(super) preset: &'static [PresetHeader],
    /// Empty is the binding limit.
    pub(super) from: Vec<Text>,
    pub(super) reset: Option<Field>,
    pub(super) always: Vec<HeaderText>,
    pub(super) denied: Vec<HeaderText>,
}

impl core::fmt::Debug for HeadersText {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HeadersText").field("from", &self.from).finish_non_exhaustive()
    }
}

/// One header that a policy spells out.
#[derive(Debug)]
pub(super) struct HeaderText {
    pub(super) name: Text,
    pub(super) value: Text,
}

/// `[[test]]`.
#[derive(Debug)]
pub(super) struct TestText {
    pub(super) span: Span,
    pub(super) name: Option<String>,
    pub(super) api: Text,
    pub(super) start: UtcTime,
    pub(super) steps: Vec<StepText>,
}

/// One step of a test.
#[derive(Debug)]
pub(super) struct StepText {
    pub(super) span: Span,
    /// Time since the test's start.
    pub(super) at: Nanos,
    pub(super) send: Text,
    pub(super) costs: Vec<(Option<Text>, u64)>,
    pub(super) times: u64,
    pub(super) expect: Option<Text>,
    pub(super) status: Option<u16>,
    /// `None`: the header is left out.
    pub(super) headers: Vec<(Text, Option<String>)>,
    pub(super) body: Option<String>,
}

/// When a test starts that does not say: 2000-01-01T00:00:00Z.
const TEST_START: UtcTime = UtcTime::from_nanos(946_684_800 * crate::engine::time::SECOND);

/// Kinds of the language that are still to come.
const KINDS_NOT_YET: [&str; 5] = ["sliding", "calendar", "concurrent", "level", "cap"];

/// Words that placeholders and tests use for something else than a limit.
const NOT_FOR_LIMITS: [&str; 5] = ["binding", "attr", "text", "tier", "retry_after"];

/// Reads `text`, the source of that number.
pub(super) fn parse(source: usize, text: &str, errors: &mut Errors) -> Document {
    let mut document = Document::default();
    let Some(root) = tree::read(source, text, errors) else { return document };
    let mut keys = Keys::new(&root);
    let top = Span::new(source, 0..0);
    match keys.take("schema") {
        None => {
            errors.push_with_help(top, "`schema` is missing", "begin the policy with `schema = 1`")
        }
        Some(entry) => {
            integer(&entry.node, 1, 1, errors);
        }
    }
    if let Some(entry) = keys.take("api") {
        for entry in entries(&entry.node, errors) {
            document.apis.extend(api(entry, errors));
        }
    }
    if let Some(entry) = keys.take("test") {
        match &entry.node.value {
            Value::List(list) => {
                document.tests.extend(list.iter().filter_map(|node| test(node, errors)));
            }
            other => {
                let message = format!("found {}, allowed is `[[test]]`", other.kind());
                errors.push(entry.key.span, message);
            }
        }
    }
    keys.finish(errors);
    document
}

fn api(entry: &Entry, errors: &mut Errors) -> Option<ApiText> {
    check_name("API", &entry.key, errors);
    if entry.key.value == INLINE {
        let message = format!("`{INLINE}` is the name of limits that callers bring themselves");
        errors.push(entry.key.span, message);
    }
    let mut keys = Keys::new(table(&entry.node, errors)?);
    for key in ["tiers", "tier_default", "deny", "bypass", "subject", "text"] {
        keys.not_yet(key, errors);
    }
    let mut api = ApiText {
        name: entry.key.clone(),
        classes: Vec::new(),
        limits: Vec::new(),
        incomplete: false,
        headers: HeadersText::default(),
        body: None,
    };
    if let Some(entry) = keys.take("class") {
        for entry in entries(&entry.node, errors) {
            check_name("class", &entry.key, errors);
            let routes = texts(&entry.node, errors);
            if routes.is_empty() {
                errors.push(entry.key.span, format!("class `{}` is empty", entry.key.value));
            }
            too_many("entries", routes.len(), LIST_ENTRIES_MAX, entry.key.span, errors);
            let routes = routes
                .into_iter()
                .take(LIST_ENTRIES_MAX)
                .filter_map(|text| route(text, errors))
                .collect();
            api.classes.push(ClassText { name: entry.key.clone(), routes });
        }
    }
    if let Some(entry) = keys.take("limit") {
        for entry in entries(&entry.node, errors) {
            match limit(entry, errors) {
                Some(limit) => api.limits.push(limit),
                None => api.incomplete = true,
            }
        }
    }
    if let Some(entry) = keys.take("headers") {
        api.headers = headers(&entry.node, errors);
    }
    if let Some(entry) = keys.take("denied")
        && let Some(denied) = table(&entry.node, errors)
    {
        let mut keys = Keys::new(denied);
        if let Some(entry) = keys.take("body") {
            match &entry.node.value {
                Value::Table(_) => errors.not_yet(entry.key.span, "a table of bodies"),
                _ => api.body = text(&entry.node, errors).cloned(),
            }
        }
        keys.finish(errors);
    }
    keys.finish(errors);
    Some(api)
}

fn limit(entry: &Entry, errors: &mut Errors) -> Option<LimitText> {
    let name = &entry.key;
    check_name("limit", name, errors);
    if NOT_FOR_LIMITS.contains(&name.value.as_str()) {
        let message = format!("`{}` cannot name a limit: templates use it", name.value);
        errors.push(name.span, message);
    }
    let mut keys = Keys::new(table(&entry.node, errors)?);
    for key in ["charge", "lease", "retry_after", "tz", "anchor"] {
        keys.not_yet(key, errors);
    }
    let on = keys.take("on").map(|entry| matches(&entry.node, errors));
    let except = keys.take("except").map_or_else(Vec::new, |e| matches(&e.node, errors));
    let per = keys.take("per").map_or_else(Vec::new, |entry| per(&entry.node, errors));
    let meter = keys.take("meter").and_then(|entry| text(&entry.node, errors)).cloned();
    if let Some(meter) = &meter {
        check_name("meter", meter, errors);
    }
    let cost = keys.take("cost").and_then(|entry| match &entry.node.value {
        Value::Table(_) => {
            errors.not_yet(entry.key.span, "a table of costs");
            None
        }
        _ => integer(&entry.node, 1, UNITS_MAX, errors),
    });
    let mode = keys.take("mode").and_then(|entry| {
        let known = [("enforce", Some(Mode::Enforce)), ("off", Some(Mode::Off)), ("shadow", None)];
        choice(&entry.node, &known, errors)
    });
    let status = keys.take("status").and_then(|entry| integer(&entry.node, 400, 599, errors));
    let keys_max =
        keys.take("max_keys").and_then(|entry| integer(&entry.node, 1, UNITS_MAX, errors));
    let when_unavailable = keys.take("when_unavailable").and_then(|entry| {
        let known = [("allow", Some(Unavailable::Allow)), ("deny", Some(Unavailable::Deny))];
        choice(&entry.node, &known, errors)
    });
    let skip_missing = keys
        .take("missing")
        .and_then(|entry| choice(&entry.node, &[("skip", Some(()))], errors))
        .is_some();
    let windows = windows(name, &mut keys, errors);
    keys.finish(errors);
    let (windows, quota_span) = windows?;
    Some(LimitText {
        name: name.clone(),
        on,
        except,
        per,
        windows,
        quota_span,
        meter,
        cost: cost.unwrap_or(1),
        mode: mode.unwrap_or(Mode::Enforce),
        status: status.unwrap_or(429) as u16,
        keys_max,
        when_unavailable: when_unavailable.unwrap_or(Unavailable::Allow),
        skip_missing,
    })
}

/// The one kind of a limit, with its numbers.
fn windows(name: &Text, keys: &mut Keys<'_>, errors: &mut Errors) -> Option<(Vec<Window>, Span)> {
    let align_entry = keys.take("align");
    let align = align_entry.and_then(|entry| {
        let known = [("clock", Some(Align::Clock)), ("first", Some(Align::First))];
        choice(&entry.node, &known, errors)
    });
    let mut kinds: Vec<&Entry> = Vec::new();
    for kind in ["bucket", "fixed"] {
        kinds.extend(keys.take(kind));
    }
    let mut not_yet = false;
    for kind in KINDS_NOT_YET {
        not_yet |= keys.not_yet(kind, errors);
    }
    let entry = match kinds.as_slice() {
        [] if not_yet => return None,
        [] => {
            let message = format!("limit `{}` has no kind", name.value);
            let help = "give it one, as in `bucket = \"60/min burst 120\"` or `fixed = \"5/min\"`";
            errors.push_with_help(name.span, message, help);
            return None;
        }
        [entry] => *entry,
        [_, second, ..] => {
            let message = format!("limit `{}` has a second kind", name.value);
            errors.push_with_help(second.key.span, message, "a limit is of exactly one kind");
            return None;
        }
    };
    let written = match &entry.node.value {
        Value::Table(_) => {
            errors.not_yet(entry.key.span, "a table of quotas");
            return None;
        }
        _ => text(&entry.node, errors)?,
    };
    let result = if entry.key.value == "bucket" {
        if let Some(entry) = align_entry {
            errors.push(entry.key.span, "a bucket has no windows to align");
        }
        quota_text::bucket(&written.value).map(|window| vec![window])
    } else {
        quota_text::fixed(&written.value, align.unwrap_or(Align::Clock))
    };
    match result {
        Ok(windows) => Some((windows, written.span)),
        Err(error) => {
            push_quota_error(written, error, errors);
            None
        }
    }
}

fn push_quota_error(text: &Text, error: QuotaTextError, errors: &mut Errors) {
    let span = text.span_of(error.at);
    match error.help {
        Some(help) => errors.push_with_help(span, error.message, help),
        None => errors.push(span, error.message),
    }
}

fn matches(node: &Node, errors: &mut Errors) -> Vec<MatchText> {
    let nodes = match &node.value {
        Value::List(list) => list.as_slice(),
        _ => core::slice::from_ref(node),
    };
    if nodes.is_empty() {
        errors.push(node.span, "an empty list matches nothing");
    }
    too_many("entries", nodes.len(), LIST_ENTRIES_MAX, node.span, errors);
    let mut found = Vec::new();
    for node in nodes.iter().take(LIST_ENTRIES_MAX) {
        if let Value::Table(_) = node.value {
            errors.not_yet(node.span, "a match on several conditions");
            continue;
        }
        let Some(text) = text(node, errors) else { continue };
        if Route::is_meant(&text.value) {
            found.extend(route(text, errors).map(MatchText::Route));
        } else {
            found.push(MatchText::Class(text.clone()));
        }
    }
    found
}

fn per(node: &Node, errors: &mut Errors) -> Vec<Text> {
    let mut names: Vec<Text> = Vec::new();
    let list = texts(node, errors);
    too_many("attributes", list.len(), KEY_ATTRIBUTES_MAX, node.span, errors);
    for text in list.into_iter().take(KEY_ATTRIBUTES_MAX) {
        let name = text.value.as_str();
        if name.starts_with(':') || matches!(name, "route" | "class" | "tier" | "method" | "path") {
            errors.not_yet(text.span, format_args!("`{name}` in `per`"));
        } else if name.contains('/') {
            errors.not_yet(text.span, format_args!("a key normaliser, as in `{name}`,"));
        } else if names.iter().any(|known| known.value == name) {
            errors.push(text.span, format!("`{name}` stands in `per` twice"));
        } else {
            check_name("attribute", text, errors);
            names.push(text.clone());
        }
    }
    names
}

fn headers(node: &Node, errors: &mut Errors) -> HeadersText {
    let mut headers = HeadersText::default();
    let Some(table) = table(node, errors) else { return headers };
    let mut keys = Keys::new(table);
    let mut has_preset = false;
    if let Some(text) = keys.take("preset").and_then(|entry| text(&entry.node, errors)) {
        let name = text.value.as_str();
        match presets::preset(name) {
            Some(preset) => {
                headers.preset = preset;
                has_preset = !preset.is_empty();
            }
            None if presets::NOT_YET.contains(&name) => {
                errors.not_yet(text.span, format_args!("the preset `{name}`"));
                has_preset = true;
            }
            None => {
                has_preset = true;
                unknown("preset", text, &presets::NAMES, errors);
            }
        }
    }
    let from = keys.take("from");
    let reset = keys.take("reset");
    if !has_preset {
        for entry in from.iter().chain(&reset) {
            let message = format!("`{}` needs a preset that shows it", entry.key.value);
            errors.push(entry.key.span, message);
        }
    }
    if let Some(entry) = from {
        match &entry.node.value {
            Value::Table(_) => errors.not_yet(entry.key.span, "`from` by role"),
            _ => headers.from = texts(&entry.node, errors).into_iter().cloned().collect(),
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
            errors.push(entry.key.span, format!("`{name}` is no name of a header"));
        }
        if headers.iter().any(|known| known.name.value.eq_ignore_ascii_case(name)) {
            errors.push(entry.key.span, format!("header `{name}` stands here twice"));
        }
        if let Some(value) = text(&entry.node, errors) {
            headers.push(HeaderText { name: entry.key.clone(), value: value.clone() });
        }
    }
    headers
}

fn test(node: &Node, errors: &mut Errors) -> Option<TestText> {
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
    let send = keys.take("send");
    let mut costs = Vec::new();
    if let Some(entry) = keys.take("cost") {
        if let Value::Table(table) = &entry.node.value {
            for entry in &table.entries {
                let cost = integer(&entry.node, 0, UNITS_MAX, errors);
                costs.extend(cost.map(|cost| (Some(entry.key.clone()), cost)));
            }
        } else {
            costs.extend(integer(&entry.node, 0, UNITS_MAX, errors).map(|cost| (None, cost)));
        }
    }
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
    let body = keys.take("body").and_then(|entry| text(&entry.node, errors));
    keys.finish(errors);
    let Some(send) = send else {
        errors.push(node.span, "the step has no `send`");
        return None;
    };
    Some(StepText {
        span: node.span,
        at,
        send: text(&send.node, errors)?.clone(),
        costs,
        times: times.unwrap_or(1),
        expect,
        status: status.map(|status| status as u16),
        headers,
        body: body.map(|text| text.value.clone()),
    })
}

/// The keys of a table, of which each is asked for once.
struct Keys<'t> {
    table: &'t Table,
    known: Vec<&'static str>,
    not_yet: Vec<&'static str>,
}

impl<'t> Keys<'t> {
    fn new(table: &'t Table) -> Self {
        Self { table, known: Vec::new(), not_yet: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Entry> {
        self.known.push(key);
        self.table.find(key)
    }

    /// Notes a key of the language that this version does not know, if it is there.
    fn not_yet(&mut self, key: &'static str, errors: &mut Errors) -> bool {
        self.not_yet.push(key);
        let found = self.table.find(key);
        if let Some(entry) = found {
            errors.not_yet(entry.key.span, format_args!("`{key}`"));
        }
        found.is_some()
    }

    /// Notes all keys that nobody asked for.
    fn finish(self, errors: &mut Errors) {
        for entry in &self.table.entries {
            let key = entry.key.value.as_str();
            if self.known.contains(&key) || self.not_yet.contains(&key) {
                continue;
            }
            unknown("key", &entry.key, &self.known, errors);
        }
    }
}

fn unknown(what: &str, text: &Text, known: &[&str], errors: &mut Errors) {
    let help = did_you_mean(&text.value, known.iter().copied())
        .unwrap_or_else(|| format!("known are {}", known.join(", ")));
    errors.push_with_help(text.span, format!("unknown {what} `{}`", text.value), help);
}

fn too_many(what: &str, found: usize, max: usize, span: Span, errors: &mut Errors) {
    if found > max {
        errors.push(span, format!("{found} {what}, allowed are {max}"));
    }
}

/// The API under which inline limits are counted; no policy may have it.
const INLINE: &str = "inline";

fn check_name(what: &str, name: &Text, errors: &mut Errors) {
    if !is_name(&name.value) {
        let message = format!("`{}` is no name for {} {what}", name.value, article(what));
        let help = "a name is up to 64 letters, digits, `_` and `-`, and begins with a letter";
        errors.push_with_help(name.span, message, help);
    }
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'A']) { "an" } else { "a" }
}

fn expected(node: &Node, what: &str, errors: &mut Errors) {
    errors.push(node.span, format!("found {}, allowed is {what}", node.value.kind()));
}

fn table<'t>(node: &'t Node, errors: &mut Errors) -> Option<&'t Table> {
    if let Value::Table(table) = &node.value {
        return Some(table);
    }
    expected(node, "a table", errors);
    None
}

fn entries<'t>(node: &'t Node, errors: &mut Errors) -> &'t [Entry] {
    table(node, errors).map_or(&[], |table| &table.entries)
}

fn text<'t>(node: &'t Node, errors: &mut Errors) -> Option<&'t Text> {
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
fn texts<'t>(node: &'t Node, errors: &mut Errors) -> Vec<&'t Text> {
    match &node.value {
        Value::List(list) => list.iter().filter_map(|node| text(node, errors)).collect(),
        _ => text(node, errors).into_iter().collect(),
    }
}

fn integer(node: &Node, min: u64, max: u64, errors: &mut Errors) -> Option<u64> {
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
        errors.push(node.span, format!("the number is {found}, allowed is {allowed}"));
    }
    in_range
}

/// One of a few words; `None` beside a word is one that is still to come.
fn choice<T: Copy>(node: &Node, known: &[(&str, Option<T>)], errors: &mut Errors) -> Option<T> {
    let text = text(node, errors)?;
    match known.iter().find(|(word, _)| *word == text.value) {
        Some((_, Some(value))) => Some(*value),
        Some((word, None)) => {
            errors.not_yet(text.span, format_args!("`{word}`"));
            None
        }
        None => {
            let words: Vec<&str> =
                known.iter().filter(|(_, value)| value.is_some()).map(|(word, _)| *word).collect();
            unknown("value", text, &words, errors);
            None
        }
    }
}

fn route(text: &Text, errors: &mut Errors) -> Option<RouteText> {
    match Route::parse(&text.value) {
        Ok(route) => Some(RouteText { text: text.clone(), route }),
        Err(error) => {
            match error.help {
                Some(help) => errors.push_with_help(text.span, error.message, help),
                None => errors.push(text.span, error.message),
            }
            None
        }
    }
}
