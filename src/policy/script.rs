//! `[[test]]` blocks: steps sent to a policy on simulated time, against the real engine.

use core::fmt::Write;

use std::collections::HashMap;

use crate::engine::command::{Amend, Charge};
use crate::engine::decision::{Decision, Reading, Verdict};
use crate::engine::key::Seed;
use crate::engine::permit::PermitId;
use crate::engine::quota::UNITS_MAX;
use crate::engine::table::{Pinned, Stamp, Table};
use crate::engine::time::{Nanos, Now, Timestamp, UtcTime};

use super::answer::Rendered;
use super::code::ErrorCode;
use super::error::{Errors, did_you_mean, line_and_column};
use super::handle::{Handle, RuleEffect, SlotUse};
use super::parse::{ActionText, StepText, TestText};
use super::quota_text::{self, Measure};
use super::resolve::{Context, REQUESTS, Request, Resolved, Scratch};
use super::subject::{Account, Identities};
use super::tree::{Node, Text, Value};
use super::{Policy, Source};

/// Counters that the table of one test may hold.
const KEYS_MAX: u64 = 1 << 20;

/// Tests run on tables of their own; nobody has to guess permits of them.
const SEED: Seed = Seed::new([0; 16]);

/// One `[[test]]`.
#[derive(Clone, Debug)]
pub struct Test {
    name: Option<String>,
    source: String,
    line: usize,
    api: String,
    start: UtcTime,
    identities: Identities,
    steps: Vec<Step>,
}

impl Test {
    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The API that it tests.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// The line on which it begins, from 1.
    pub fn line(&self) -> usize {
        self.line
    }
}

/// One request, sent so many times, and what must come of it; or a change of what an earlier one
/// took.
#[derive(Clone, Debug)]
struct Step {
    line: usize,
    at: Nanos,
    action: Action,
    /// The step in a few words.
    said: String,
    values: Vec<Option<Vec<u8>>>,
    costs: Vec<u64>,
    times: u64,
    expect: Option<Expected>,
    status: Option<u16>,
    /// Index among the handle's headers; no value: left out.
    headers: Vec<(usize, Option<String>)>,
    /// Units that are left of a limit, or of one of its windows.
    remaining: Vec<((String, Option<String>), u64)>,
    /// No text: no body.
    body: Option<Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// Sends the request; what it is given of concurrency limits gets this name.
    Send { permit: Option<String> },
    /// Gives back the permit of this name.
    Release(String),
    /// Moves the counter that the request has in a limit, or in one window of it.
    Adjust { limit: String, window: Option<String>, amend: Amend },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    Allow,
    /// By anything, by a limit or rule, by one of its windows.
    Deny(Option<(String, Option<String>)>),
    /// By a rule that lets pass.
    Bypass,
}

/// What came of all tests of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestReport {
    /// One for each test, in their order.
    pub tests: Vec<TestOutcome>,
}

impl TestReport {
    /// Values that were as expected. Each compared value counts as one: of a step sent many
    /// times, the decision is compared each time, all else after the last.
    pub fn passed(&self) -> u64 {
        self.tests.iter().map(|test| test.passed).sum()
    }

    /// Values that were not.
    pub fn failed(&self) -> u64 {
        self.tests.iter().map(|test| test.failures.len() as u64).sum()
    }
}

/// What came of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestOutcome {
    /// Its name, or its API's if it has none.
    pub name: String,
    /// Name of its source.
    pub source: String,
    /// Its line, from 1.
    pub line: usize,
    /// Values that were as expected.
    pub passed: u64,
    /// Values that were not. After the first step with one, the test ends.
    pub failures: Vec<Failure>,
}

/// One value that was not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Line of the step, from 1.
    pub line: usize,
    /// What was sent.
    pub send: String,
    /// Which of how many times.
    pub time: (u64, u64),
    /// What was compared: `decision`, `status`, `body` or the name of a header.
    pub what: String,
    /// What came.
    pub found: String,
    /// What should have come.
    pub expected: String,
}

/// Resolves the names in a test; `None` if it has problems.
pub(super) fn compile(
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
        let amount = signed(amount, measure_of(limit, handle), errors);
        remaining.extend(named.zip(amount.map(|(amount, _)| amount)));
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
    if let Some((amount, false)) = signed(amount, Measure::of(name), errors) {
        costs[index] = amount;
    }
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

impl Policy {
    /// Runs every test, each on a table of its own.
    pub fn run_tests(&self) -> TestReport {
        TestReport { tests: self.tests().iter().map(|test| self.run_test(test)).collect() }
    }

    fn run_test(&self, test: &Test) -> TestOutcome {
        let mut outcome = TestOutcome {
            name: test.name.clone().unwrap_or_else(|| test.api.clone()),
            source: test.source.clone(),
            line: test.line,
            passed: 0,
            failures: Vec::new(),
        };
        let Some(handle) = self.handle_of(&test.api, None) else { return outcome };
        let table = Table::new(KEYS_MAX, &SEED);
        for limit in self.limits() {
            if let Some(keys_max) = limit.keys_max {
                table.limit_cap(limit.id, keys_max);
            }
        }
        let mut run =
            Run { handle, table: &table, buffers: Buffers::default(), permits: HashMap::new() };
        for step in &test.steps {
            run.step(step, test, &mut outcome);
            if !outcome.failures.is_empty() {
                break;
            }
        }
        outcome
    }
}

/// A test while it runs.
struct Run<'a> {
    handle: &'a Handle,
    table: &'a Table,
    buffers: Buffers,
    permits: HashMap<String, PermitId>,
}

#[derive(Default)]
struct Buffers {
    scratch: Scratch,
    charges: Vec<Charge>,
    limits: Vec<u16>,
    readings: Vec<Reading>,
    rendered: Rendered,
}

/// When a request is sent, and what is on record then.
struct Moment<'a> {
    context: &'a Context<'a>,
    now: Now,
}

/// What came of a request.
struct Answered {
    resolved: Resolved,
    decision: Decision,
}

impl Run<'_> {
    fn step(&mut self, step: &Step, test: &Test, outcome: &mut TestOutcome) {
        let utc = test.start.after(step.at);
        let now = Now { time: Timestamp::from_nanos(step.at.get()), utc };
        let context = Context { now: utc, identities: Some(&test.identities), overrides: None };
        let moment = Moment { context: &context, now };
        let values: Vec<Option<&[u8]>> = step.values.iter().map(Option::as_deref).collect();
        let request = Request { values: &values, costs: &step.costs };
        let pinned = self.table.pin();
        let mut compare = Compare { step, time: 1, outcome };
        let permit_name = match &step.action {
            Action::Send { permit } => permit.as_ref(),
            Action::Release(name) => {
                let released = self.permits.get(name).map(|permit| {
                    let mut stamp = Stamp::new(|| now);
                    pinned.release(*permit, &mut stamp)
                });
                if released.is_none_or(|units| units == 0) {
                    compare.differs("permit", "nothing held".to_owned(), "a permit".to_owned());
                }
                return;
            }
            Action::Adjust { limit, window, amend } => {
                let of = (limit.as_str(), window.as_deref());
                let adjusted =
                    self.buffers.adjust(self.handle, &request, &moment, &pinned, of, *amend);
                if let Err(found) = adjusted {
                    compare.differs("adjustment", found, "an adjusted counter".to_owned());
                }
                return;
            }
        };
        for time in 1..=step.times {
            compare.time = time;
            let answered = match self.buffers.decide(self.handle, &request, &moment, &pinned) {
                Ok(answered) => answered,
                Err(found) => return compare.differs("decision", found, step.expected()),
            };
            if let Some(name) = permit_name {
                match answered.decision.permit {
                    Some(permit) => drop(self.permits.insert(name.clone(), permit.id)),
                    None => {
                        let expected = format!("a permit called {name}");
                        return compare.differs("permit", "none".to_owned(), expected);
                    }
                }
            }
            if let Some(expected) = &step.expect {
                let found = self.found(&answered);
                if expected.is(&found) {
                    compare.outcome.passed += 1;
                } else {
                    return compare.differs("decision", found.to_string(), step.expected());
                }
            }
            if time == step.times {
                self.buffers.render(self.handle, &request, &answered);
                compare.answer(self.handle, &self.buffers.rendered);
                for ((name, window), expected) in &step.remaining {
                    let of = (name.as_str(), window.as_deref());
                    let found = self.buffers.remaining(self.handle, of);
                    let found = found.map_or("(none)".to_owned(), |found| found.to_string());
                    compare.value(&format!("remaining of {name}"), &found, &expected.to_string());
                }
            }
        }
    }

    fn found(&self, answered: &Answered) -> FoundDecision<'_> {
        let Answered { resolved, decision } = answered;
        let verdict = decision.verdict;
        if let Some(rule) = resolved.rule {
            let rule = self.handle.rules().get(usize::from(rule));
            let bypassed = rule.is_some_and(|rule| rule.effect == RuleEffect::Bypass);
            let code = rule.map_or("", |rule| &*rule.code);
            return FoundDecision { verdict, bypassed, limit: (code, "") };
        }
        let binding = decision.binding.and_then(|place| self.buffers.limits.get(place));
        let limit = binding.map(|index| &self.handle.limits()[usize::from(*index)]);
        FoundDecision {
            verdict,
            bypassed: false,
            limit: limit.map_or(("", ""), |limit| (&*limit.name, &*limit.window)),
        }
    }
}

impl Buffers {
    fn resolve(
        &mut self,
        handle: &Handle,
        request: &Request<'_>,
        context: &Context<'_>,
    ) -> Result<Resolved, String> {
        self.charges.clear();
        self.limits.clear();
        handle
            .resolve(request, context, &mut self.scratch, &mut self.charges, &mut self.limits)
            .map_err(|error| format!("no decision: {}", error.describe(handle)))
    }

    fn decide(
        &mut self,
        handle: &Handle,
        request: &Request<'_>,
        moment: &Moment<'_>,
        table: &Pinned<'_>,
    ) -> Result<Answered, String> {
        let resolved = self.resolve(handle, request, moment.context)?;
        self.readings.clear();
        let decision = match handle.ruled(&resolved, moment.now) {
            Some(decision) => decision,
            None => table
                .check(&self.charges, &mut Stamp::new(|| moment.now), &mut self.readings)
                .map_err(|refusal| format!("no decision: {refusal}"))?,
        };
        Ok(Answered { resolved, decision })
    }

    /// Moves the counters that a request has in a limit.
    fn adjust(
        &mut self,
        handle: &Handle,
        request: &Request<'_>,
        moment: &Moment<'_>,
        table: &Pinned<'_>,
        (name, window): (&str, Option<&str>),
        amend: Amend,
    ) -> Result<(), String> {
        self.resolve(handle, request, moment.context)?;
        let of_limit = |index: &u16| is_of(handle, *index, (name, window));
        let charges: Vec<Charge> = self
            .charges
            .iter()
            .zip(&self.limits)
            .filter(|(_, index)| of_limit(index))
            .map(|(charge, _)| *charge)
            .collect();
        let (amended, _) = table
            .amend(&charges, amend, &mut Stamp::new(|| moment.now), &mut self.readings)
            .map_err(|refusal| refusal.to_string())?;
        if amended == 0 { Err("the request has no counter there".to_owned()) } else { Ok(()) }
    }

    /// Units that are left of a limit that the last request met.
    fn remaining(&self, handle: &Handle, of: (&str, Option<&str>)) -> Option<u64> {
        let place = self.limits.iter().position(|index| is_of(handle, *index, of))?;
        self.readings.get(place).map(Reading::remaining)
    }

    fn render(&mut self, handle: &Handle, request: &Request<'_>, answered: &Answered) {
        let Answered { resolved, decision } = answered;
        let (limits, readings) = (&self.limits, &self.readings);
        handle.render(resolved, limits, request, decision, readings, &mut self.rendered);
    }
}

/// Whether the limit of this index is the one meant, or a window of it.
fn is_of(handle: &Handle, index: u16, (name, window): (&str, Option<&str>)) -> bool {
    handle.limits().get(usize::from(index)).is_some_and(|limit| {
        *limit.name == *name && window.is_none_or(|window| *limit.window == *window)
    })
}

struct FoundDecision<'a> {
    verdict: Verdict,
    bypassed: bool,
    limit: (&'a str, &'a str),
}

impl core::fmt::Display for FoundDecision<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.verdict, self.limit) {
            (Verdict::Allow, _) if self.bypassed => f.write_str("bypass"),
            (Verdict::Allow, _) => f.write_str("allow"),
            (Verdict::Deny, ("", "")) => f.write_str("deny"),
            (Verdict::Deny, (name, "")) => write!(f, "deny {name}"),
            (Verdict::Deny, (name, window)) => write!(f, "deny {name}.{window}"),
        }
    }
}

impl Expected {
    fn is(&self, found: &FoundDecision<'_>) -> bool {
        match (self, found.verdict) {
            (Self::Bypass, Verdict::Allow) => found.bypassed,
            (Self::Allow, Verdict::Allow) | (Self::Deny(None), Verdict::Deny) => true,
            (Self::Deny(Some((name, window))), Verdict::Deny) => {
                name == found.limit.0
                    && window.as_ref().is_none_or(|window| window == found.limit.1)
            }
            _ => false,
        }
    }
}

impl Step {
    fn expected(&self) -> String {
        match &self.expect {
            None => "a decision".to_owned(),
            Some(Expected::Allow) => "allow".to_owned(),
            Some(Expected::Bypass) => "bypass".to_owned(),
            Some(Expected::Deny(None)) => "deny".to_owned(),
            Some(Expected::Deny(Some((name, None)))) => format!("deny {name}"),
            Some(Expected::Deny(Some((name, Some(window))))) => format!("deny {name}.{window}"),
        }
    }
}

/// Compares what came of a step with what should have.
struct Compare<'a> {
    step: &'a Step,
    time: u64,
    outcome: &'a mut TestOutcome,
}

impl Compare<'_> {
    fn answer(&mut self, handle: &Handle, rendered: &Rendered) {
        if let Some(expected) = self.step.status {
            self.value("status", &rendered.status().to_string(), &expected.to_string());
        }
        for (index, expected) in &self.step.headers {
            let found = rendered.headers().nth(*index).flatten();
            let name = handle.header_names().nth(*index).unwrap_or_default();
            self.value(name, &shown(found), &shown(expected.as_deref()));
        }
        if let Some(expected) = &self.step.body {
            self.value("body", &shown(rendered.body()), &shown(expected.as_deref()));
        }
    }

    fn value(&mut self, what: &str, found: &str, expected: &str) {
        if found == expected {
            self.outcome.passed += 1;
        } else {
            self.differs(what, found.to_owned(), expected.to_owned());
        }
    }

    fn differs(&mut self, what: &str, found: String, expected: String) {
        self.outcome.failures.push(Failure {
            line: self.step.line,
            send: self.step.said.clone(),
            time: (self.time, self.step.times),
            what: what.to_owned(),
            found,
            expected,
        });
    }
}

fn shown(value: Option<&str>) -> String {
    value.map_or_else(|| "(none)".to_owned(), |value| format!("{value:?}"))
}

/// A report as lines for people: each test, each failure with its line, and a summary.
pub fn render_report(report: &TestReport) -> String {
    let mut out = String::new();
    for test in &report.tests {
        // A `String` takes all that is written.
        let _ = render_test(test, &mut out);
    }
    if report.failed() > 0 {
        out.push('\n');
    }
    let _ = writeln!(out, "{} passed, {} failed", report.passed(), report.failed());
    out
}

fn render_test(test: &TestOutcome, out: &mut String) -> core::fmt::Result {
    let TestOutcome { name, source, line, passed, failures } = test;
    if failures.is_empty() {
        return writeln!(out, "ok    {name} ({source}:{line}), {passed} passed");
    }
    writeln!(out, "FAIL  {name} ({source}:{line}), {passed} passed, {} failed", failures.len())?;
    for failure in failures {
        let Failure { line, send, time: (time, times), what, found, expected } = failure;
        write!(out, "      {source}:{line}: {send}")?;
        if *times > 1 {
            write!(out, " ({time} of {times})")?;
        }
        writeln!(out)?;
        writeln!(out, "        {what}")?;
        writeln!(out, "          found     {found}")?;
        writeln!(out, "          expected  {expected}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::engine::key::Seed;

    use super::super::BUILT_IN;
    use super::*;

    fn run(text: &str) -> TestReport {
        let source = Source { name: "p.toml", text };
        match Policy::compile(&[source], &Seed::new([7; 16])) {
            Ok(policy) => policy.run_tests(),
            Err(errors) => panic!("{errors}"),
        }
    }

    fn problems(text: &str) -> Vec<String> {
        let source = Source { name: "p.toml", text };
        match Policy::compile(&[source], &Seed::new([7; 16])) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    const POLICY: &str = r#"schema = 1
[api.a]
class.x = ["POST /x"]
[api.a.limit]
calls = { on = "x", per = ["user"], fixed = "2/min, 3/hour", status = 418 }
bytes = { on = "x", meter = "up", bucket = "100/s burst 100" }
[api.a.headers]
preset = "x-ratelimit"
from = ["calls.minute"]
denied.X-Type = "{binding.window}"
[api.a.denied]
body = '{"w":"{binding.window}","r":{retry_after},"u":{calls.hour.used},"d":"{day.limit}"}'
"#;

    #[test]
    fn the_built_in_example_passes_all_its_tests() {
        let report = run(BUILT_IN.text);
        let shown = render_report(&report);
        assert_eq!(report.failed(), 0, "{shown}");
        assert!(report.passed() > 4500, "{shown}");
        assert_eq!(report.tests.len(), 9);
    }

    #[test]
    fn windows_and_meters_are_tested_too() {
        let policy = POLICY.replace("{day.limit}", "{minute.reset_s}");
        let report = run(&format!(
            r#"{policy}
[[test]]
api = "a"
start = 2024-05-03T15:28:20Z
steps = [
  {{ send = "POST /x user=u", times = 2, expect = "allow", headers = {{ X-RateLimit-Remaining = "0", X-RateLimit-Reset = "1714750140", X-Type = false }} }},
  {{ send = "POST /x user=u", expect = "deny calls.minute", status = 418, headers = {{ x-type = "minute", Retry-After = "40" }}, body = '{{"w":"minute","r":40,"u":2,"d":"40"}}' }},
  {{ at = "40s", send = "POST /x user=u", expect = "allow" }},
  {{ send = "POST /x user=u", expect = "deny calls.hour", headers = {{ X-Type = "hour", Retry-After = "1860" }} }},
  {{ send = "POST /x user=v", cost = {{ up = 100 }}, expect = "allow" }},
  {{ send = "POST /x user=v", cost = {{ up = 50 }}, expect = "deny bytes", status = 429, headers = {{ X-Type = false, Retry-After = "1" }} }},
  {{ send = "POST /x user=w", cost = {{ up = 101 }}, expect = "deny", headers = {{ Retry-After = false }}, body = '{{"w":"","r":null,"u":0,"d":"60"}}' }},
]
"#
        ));
        assert_eq!(report.failed(), 0, "{}", render_report(&report));
    }

    #[test]
    fn a_failure_tells_its_line_and_both_values() {
        let policy = POLICY.replace("{day.limit}", "");
        let report = run(&format!(
            r#"{policy}
[[test]]
name = "wrong"
api = "a"
steps = [
  {{ send = "POST /x user=u", times = 3, expect = "allow" }},
  {{ send = "POST /x user=u", expect = "allow" }},
]
[[test]]
api = "a"
steps = [
  {{ send = "POST /x user=u", expect = "allow", status = 204, headers = {{ X-RateLimit-Limit = "3", Retry-After = "1" }} }},
]
[[test]]
api = "a"
steps = [{{ send = "POST /x", expect = "allow" }}]
"#
        ));
        assert_eq!((report.passed(), report.failed()), (3, 5));
        assert_eq!(
            render_report(&report),
            r#"FAIL  wrong (p.toml:14), 2 passed, 1 failed
      p.toml:18: POST /x user=u (3 of 3)
        decision
          found     deny calls.minute
          expected  allow
FAIL  a (p.toml:21), 1 passed, 3 failed
      p.toml:24: POST /x user=u
        status
          found     200
          expected  204
      p.toml:24: POST /x user=u
        X-RateLimit-Limit
          found     "2"
          expected  "3"
      p.toml:24: POST /x user=u
        Retry-After
          found     (none)
          expected  "1"
FAIL  a (p.toml:26), 0 passed, 1 failed
      p.toml:28: POST /x
        decision
          found     no decision: attribute `user` is missing; limit `calls` needs it
          expected  allow

3 passed, 5 failed
"#
        );
    }

    #[test]
    fn what_a_test_names_must_exist() {
        let policy = POLICY.replace("{day.limit}", "");
        let found = problems(&format!(
            r#"{policy}
[[test]]
api = "b"
steps = [{{ send = "POST /x" }}]
[[test]]
api = "a"
steps = [
  {{ send = "POST /x usr=1", expect = "deny cals", headers = {{ X-RateLimit-Limt = "1" }} }},
  {{ send = "POST", expect = "maybe", cost = {{ upp = 1 }} }},
  {{ send = "POST /x method=1 user=1 user=2 user", cost = 2 }},
]
"#
        ));
        assert_eq!(
            found,
            [
                "p.toml:15:7: unknown API `b`",
                "p.toml:20:21: no limit reads the attribute `usr`",
                "p.toml:20:38: unknown limit `cals`",
                "p.toml:20:63: the API never sends the header `X-RateLimit-Limt`",
                "p.toml:21:12: no request",
                "p.toml:21:29: `maybe` is no decision",
                "p.toml:21:47: no limit reads the meter `upp`",
                "p.toml:22:21: no limit reads the attribute `method`",
                "p.toml:22:37: `user` stands here twice",
                "p.toml:22:44: `user` is no attribute",
            ]
        );
    }
}
