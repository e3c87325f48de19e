//! The tree of a text to typed policy: every key known, every value in its range, nothing resolved.

mod answers;
pub(super) mod keys;
mod limit;
mod steps;

use crate::engine::command::ChargeOn;
use crate::engine::quota::Kind;
use crate::engine::time::{Nanos, UtcTime};

use super::code::ErrorCode;
use super::error::{Errors, Span};
use super::field::Field;
use super::handle::{Mode, Unavailable};
use super::maxima::{LIST_ENTRIES_MAX, SLOTS_MAX};
use super::presets::Preset;
use super::quota_text::{QuotaTerms, QuotaText};
use super::route::Route;
use super::tree::{self, Entry, Node, Text, Value};
use super::values::Tree;
pub(super) use keys::route;
use keys::{Keys, check_name, entries, integer, table, text, texts, too_many};

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
    pub(super) tiers: Vec<TierText>,
    pub(super) tier_default: Option<Text>,
    /// Attributes of which any one stands for an account.
    pub(super) identities: Vec<Text>,
    /// Attributes that may be logged of a denied request.
    pub(super) log_attributes: Vec<Text>,
    pub(super) classes: Vec<ClassText>,
    /// Those that deny, then those that let pass.
    pub(super) rules: Vec<RuleText>,
    pub(super) limits: Vec<LimitText>,
    /// Whether a limit could not be read and is left out of `limits`.
    pub(super) incomplete: bool,
    pub(super) headers: HeadersText,
    pub(super) texts: Vec<(Text, KeyedText)>,
    pub(super) body: KeyedText,
}

/// One entry of `tiers`.
#[derive(Debug)]
pub(super) struct TierText {
    pub(super) name: Text,
    /// What people call it, if that differs.
    pub(super) display: Option<String>,
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

/// One entry of `on` or `except`, of `when` or `unless`.
#[derive(Debug)]
pub(super) enum MatchText {
    Class(Text),
    Route(RouteText),
    /// All of these hold, each for any of its values.
    All(Vec<(Text, Vec<Text>)>),
}

/// One entry of `deny` or `bypass`.
#[derive(Debug)]
pub(super) struct RuleText {
    pub(super) denies: bool,
    pub(super) when: Vec<MatchText>,
    pub(super) unless: Vec<MatchText>,
    pub(super) status: u16,
    pub(super) code: Option<Text>,
}

/// One limit.
#[derive(Debug)]
pub(super) struct LimitText {
    pub(super) name: Text,
    /// `None` is every request.
    pub(super) on: Option<Vec<MatchText>>,
    pub(super) except: Vec<MatchText>,
    pub(super) per: Vec<Text>,
    pub(super) kind: Kind,
    pub(super) quotas: Tree<QuotaText>,
    pub(super) quota_span: Span,
    pub(super) terms: QuotaTerms,
    pub(super) tz: Option<Text>,
    pub(super) anchor: Option<Text>,
    pub(super) meter: Option<Text>,
    pub(super) costs: Tree<u64>,
    pub(super) mode: Mode,
    pub(super) charge: ChargeOn,
    pub(super) retry_after: Option<Nanos>,
    pub(super) status: u16,
    pub(super) keys_max: Option<u64>,
    pub(super) when_unavailable: Unavailable,
    pub(super) skip_missing: bool,
}

/// `[api.NAME.headers]`.
#[derive(Debug, Default)]
pub(super) struct HeadersText {
    pub(super) preset: Option<Preset>,
    /// Empty is the binding limit. With the role that each list is for; none for a list alone.
    pub(super) from: Vec<(Option<Text>, Vec<Text>)>,
    pub(super) reset: Option<Field>,
    pub(super) always: Vec<HeaderText>,
    pub(super) denied: Vec<HeaderText>,
}

/// One header that a policy spells out.
#[derive(Debug)]
pub(super) struct HeaderText {
    pub(super) name: Text,
    pub(super) value: Text,
}

/// Texts by what denied; without a key for all.
pub(super) type KeyedText = Vec<(Option<Text>, Text)>;

/// `[[test]]`.
#[derive(Debug)]
pub(super) struct TestText {
    pub(super) span: Span,
    pub(super) name: Option<String>,
    pub(super) api: Text,
    pub(super) start: UtcTime,
    pub(super) identities: Vec<IdentityText>,
    pub(super) steps: Vec<StepText>,
}

/// An identity that is on record while a test runs.
#[derive(Debug)]
pub(super) struct IdentityText {
    pub(super) attribute: Text,
    pub(super) value: String,
    pub(super) account: String,
    pub(super) tier: Option<String>,
}

/// One step of a test.
#[derive(Debug)]
pub(super) struct StepText {
    pub(super) span: Span,
    /// Time since the test's start.
    pub(super) at: Nanos,
    pub(super) action: ActionText,
    pub(super) times: u64,
    pub(super) expect: Option<Text>,
    pub(super) status: Option<u16>,
    /// `None`: the header is left out.
    pub(super) headers: Vec<(Text, Option<String>)>,
    /// Units that are left of limits.
    pub(super) remaining: Vec<(Text, Node)>,
    /// `None`: no body.
    pub(super) body: Option<Option<String>>,
}

/// What a step does.
#[derive(Debug)]
pub(super) enum ActionText {
    /// Sends a request; what it is given of concurrency limits is called `permit`.
    Send { send: Text, costs: Vec<(Option<Text>, Node)>, permit: Option<Text> },
    /// Gives back the permit of that name.
    Release(Text),
    /// Moves a counter that the request has in this limit, after the fact.
    Adjust { limit: Text, send: Text, by: Node },
}

/// Words that placeholders and tests use for something else than a limit.
const NOT_FOR_LIMITS: [&str; 5] = ["binding", "attr", "text", "tier", "retry_after"];

/// The API under which inline limits are counted; no policy may have it.
const INLINE: &str = "inline";

/// Reads `text`, the source of that number.
pub(super) fn parse(source: usize, text: &str, errors: &mut Errors) -> Document {
    let mut document = Document::default();
    let Some(root) = tree::read(source, text, errors) else { return document };
    let mut keys = Keys::new(&root);
    let top = Span::new(source, 0..0);
    match keys.take("schema") {
        None => errors.push_with_help(
            ErrorCode::Schema,
            top,
            "`schema` is missing",
            "begin the policy with `schema = 1`",
        ),
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
                document.tests.extend(list.iter().filter_map(|node| steps::test(node, errors)));
            }
            other => {
                let message = format!("found {}, allowed is `[[test]]`", other.kind());
                errors.push(ErrorCode::Type, entry.key.span, message);
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
        errors.push(ErrorCode::ReservedName, entry.key.span, message);
    }
    let mut keys = Keys::new(table(&entry.node, errors)?);
    let mut api = ApiText {
        name: entry.key.clone(),
        tiers: Vec::new(),
        tier_default: None,
        identities: Vec::new(),
        log_attributes: Vec::new(),
        classes: Vec::new(),
        rules: Vec::new(),
        limits: Vec::new(),
        incomplete: false,
        headers: HeadersText::default(),
        texts: Vec::new(),
        body: KeyedText::new(),
    };
    if let Some(entry) = keys.take("tiers") {
        api.tiers = tiers(&entry.node, errors);
    }
    if let Some(entry) = keys.take("tier_default") {
        api.tier_default = text(&entry.node, errors).cloned();
    }
    if let Some(entry) = keys.take("subject") {
        api.identities = identities(&entry.node, errors);
    }
    if let Some(entry) = keys.take("log_attrs") {
        api.log_attributes = logged(&entry.node, errors);
    }
    if let Some(entry) = keys.take("class") {
        for entry in entries(&entry.node, errors) {
            api.classes.push(class(entry, errors));
        }
    }
    for (key, denies) in [("deny", true), ("bypass", false)] {
        if let Some(entry) = keys.take(key) {
            api.rules.extend(rules(&entry.node, denies, errors));
        }
    }
    if let Some(entry) = keys.take("limit") {
        for entry in entries(&entry.node, errors) {
            match limit::limit(entry, errors) {
                Some(limit) => api.limits.push(limit),
                None => api.incomplete = true,
            }
        }
    }
    if let Some(entry) = keys.take("headers") {
        api.headers = answers::headers(&entry.node, errors);
    }
    if let Some(entry) = keys.take("text") {
        for entry in entries(&entry.node, errors) {
            check_name("text", &entry.key, errors);
            api.texts.push((entry.key.clone(), answers::keyed(&entry.node, errors)));
        }
    }
    if let Some(entry) = keys.take("denied")
        && let Some(denied) = table(&entry.node, errors)
    {
        let mut keys = Keys::new(denied);
        if let Some(entry) = keys.take("body") {
            api.body = answers::keyed(&entry.node, errors);
        }
        keys.finish(errors);
    }
    keys.finish(errors);
    Some(api)
}

/// Names of attributes, each once.
fn logged(node: &Node, errors: &mut Errors) -> Vec<Text> {
    let names = texts(node, errors);
    too_many("attributes", names.len(), SLOTS_MAX, node.span, errors);
    let mut known: Vec<Text> = Vec::new();
    for name in names.iter().take(SLOTS_MAX) {
        check_name("attribute", name, errors);
        if known.iter().any(|before| before.value == name.value) {
            let message = format!("attribute `{}` stands here twice", name.value);
            errors.push(ErrorCode::Duplicate, name.span, message);
        } else {
            known.push((*name).clone());
        }
    }
    known
}

/// A list of names, or a table of names with what people call them.
fn tiers(node: &Node, errors: &mut Errors) -> Vec<TierText> {
    let mut tiers: Vec<TierText> = Vec::new();
    let mut add = |name: &Text, display: Option<String>, errors: &mut Errors| {
        check_name("tier", name, errors);
        if tiers.iter().any(|known| known.name.value == name.value) {
            errors.push(
                ErrorCode::Duplicate,
                name.span,
                format!("tier `{}` stands here twice", name.value),
            );
        }
        tiers.push(TierText { name: name.clone(), display });
    };
    let count = match &node.value {
        Value::Table(table) => {
            for entry in table.entries.iter().take(LIST_ENTRIES_MAX) {
                let display = text(&entry.node, errors).map(|text| text.value.clone());
                add(&entry.key, display, errors);
            }
            table.entries.len()
        }
        _ => {
            let list = texts(node, errors);
            for name in list.iter().take(LIST_ENTRIES_MAX) {
                add(name, None, errors);
            }
            list.len()
        }
    };
    too_many("tiers", count, LIST_ENTRIES_MAX, node.span, errors);
    if count == 0 {
        errors.push(ErrorCode::Empty, node.span, "an API with tiers has at least one");
    }
    tiers
}

fn identities(node: &Node, errors: &mut Errors) -> Vec<Text> {
    let Some(subject) = table(node, errors) else { return Vec::new() };
    let mut keys = Keys::new(subject);
    let mut found: Vec<Text> = Vec::new();
    if let Some(entry) = keys.take("account") {
        for name in texts(&entry.node, errors) {
            check_name("attribute", name, errors);
            let again = found.iter().any(|known| known.value == name.value);
            if again || matches!(name.value.as_str(), "account" | "tier" | "method" | "path") {
                let message = format!("`{}` cannot be one of the identities", name.value);
                errors.push(ErrorCode::Misplaced, name.span, message);
            } else {
                found.push(name.clone());
            }
        }
        if found.is_empty() {
            errors.push(
                ErrorCode::Missing,
                entry.node.span,
                "an account has at least one identity",
            );
        }
    }
    keys.finish(errors);
    found
}

fn class(entry: &Entry, errors: &mut Errors) -> ClassText {
    check_name("class", &entry.key, errors);
    let routes = texts(&entry.node, errors);
    if routes.is_empty() {
        errors.push(
            ErrorCode::Empty,
            entry.key.span,
            format!("class `{}` is empty", entry.key.value),
        );
    }
    too_many("entries", routes.len(), LIST_ENTRIES_MAX, entry.key.span, errors);
    let routes =
        routes.into_iter().take(LIST_ENTRIES_MAX).filter_map(|text| route(text, errors)).collect();
    ClassText { name: entry.key.clone(), routes }
}

fn rules(node: &Node, denies: bool, errors: &mut Errors) -> Vec<RuleText> {
    let nodes = match &node.value {
        Value::List(list) => list.as_slice(),
        _ => core::slice::from_ref(node),
    };
    too_many("rules", nodes.len(), LIST_ENTRIES_MAX, node.span, errors);
    nodes
        .iter()
        .take(LIST_ENTRIES_MAX)
        .filter_map(|node| {
            let mut keys = Keys::new(table(node, errors)?);
            let when = keys.take("when").map(|entry| matches(&entry.node, errors));
            let unless = keys.take("unless").map_or_else(Vec::new, |e| matches(&e.node, errors));
            let status = match denies {
                true => keys.take("status").and_then(|e| integer(&e.node, 400, 599, errors)),
                false => None,
            };
            let code = keys.take("code").and_then(|entry| text(&entry.node, errors)).cloned();
            if let Some(code) = &code {
                check_name("code", code, errors);
            }
            keys.finish(errors);
            if when.is_none() && unless.is_empty() {
                let help = "`when = { tier = \"free\" }` says which requests it is for";
                errors.push_with_help(
                    ErrorCode::Missing,
                    node.span,
                    "a rule has `when`, `unless` or both",
                    help,
                );
            }
            Some(RuleText {
                denies,
                when: when.unwrap_or_default(),
                unless,
                status: status.unwrap_or(403) as u16,
                code,
            })
        })
        .collect()
}

/// An entry, or a list of them.
fn matches(node: &Node, errors: &mut Errors) -> Vec<MatchText> {
    let nodes = match &node.value {
        Value::List(list) => list.as_slice(),
        _ => core::slice::from_ref(node),
    };
    if nodes.is_empty() {
        errors.push(ErrorCode::Empty, node.span, "an empty list matches nothing");
    }
    too_many("entries", nodes.len(), LIST_ENTRIES_MAX, node.span, errors);
    let mut found = Vec::new();
    for node in nodes.iter().take(LIST_ENTRIES_MAX) {
        if let Value::Table(table) = &node.value {
            found.push(condition(node, table, errors));
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

fn condition(node: &Node, table: &tree::Table, errors: &mut Errors) -> MatchText {
    if table.entries.is_empty() {
        errors.push(ErrorCode::Empty, node.span, "a table without conditions");
    }
    too_many("conditions", table.entries.len(), LIST_ENTRIES_MAX, node.span, errors);
    let mut all = Vec::new();
    for entry in table.entries.iter().take(LIST_ENTRIES_MAX) {
        check_name("attribute", &entry.key, errors);
        let values: Vec<Text> = texts(&entry.node, errors).into_iter().cloned().collect();
        if values.is_empty() {
            errors.push(
                ErrorCode::Missing,
                entry.key.span,
                "a condition without a value never holds",
            );
        }
        too_many("values", values.len(), LIST_ENTRIES_MAX, entry.key.span, errors);
        all.push((entry.key.clone(), values));
    }
    MatchText::All(all)
}
