//! `[[test]]` blocks: steps sent to a policy on simulated time, against the real engine.

mod compile;

mod run;

mod report;

#[cfg(test)]
mod tests;

use crate::engine::command::Amend;
use crate::engine::time::{Nanos, UtcTime};

use super::subject::Identities;

pub(super) use compile::compile;
pub use report::{Failure, TestOutcome, TestReport, render_report};

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
