//! Runs tests: each on a table of its own, at the moments that its steps name, up to its first step
//! that does not come out as expected.

use std::collections::HashMap;

use crate::engine::command::{Amend, Charge};
use crate::engine::decision::{Decision, Reading, Verdict};
use crate::engine::key::Seed;
use crate::engine::permit::PermitId;
use crate::engine::table::{Pinned, Stamp, Table};
use crate::engine::time::{Now, Timestamp};
use crate::policy::Policy;
use crate::policy::answer::Rendered;
use crate::policy::handle::{Handle, RuleEffect};
use crate::policy::resolve::{Context, Request, Resolved, Scratch};

use super::report::{Failure, TestOutcome, TestReport};
use super::{Action, Expected, Step, Test};

/// Counters that the table of one test may hold.
const KEYS_MAX: u64 = 1 << 20;

/// Tests run on tables of their own; nobody has to guess permits of them.
const SEED: Seed = Seed::new([0; 16]);

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
