//! The answer to a check as JSON for people and programs: what `tollkeeper check --json` prints
//! and what the JSON API answers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::kinds::UNLIMITED;

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `allow` or `deny`. An allow without a decision (`when_unavailable`) has an `error` too.
    pub decision: &'static str,
    /// HTTP status to send: 200 on allow, where the upstream's own is sent.
    pub status: u16,
    /// The limit that binds.
    pub binding: Option<Binding>,
    /// Each limit that applied, by name.
    pub limits: Vec<LimitReport>,
    /// What the request was given of concurrency limits: the id that gives it back.
    pub permit: Option<String>,
    /// Headers to send.
    pub headers: BTreeMap<String, String>,
    /// Content type of the body.
    pub content_type: Option<String>,
    /// Body to send, byte for byte.
    pub body: Option<String>,
    /// The policy's version, 16 hexadecimal digits.
    pub policy_version: String,
    /// Why there was no decision.
    pub error: Option<ErrorReport>,
}

/// A snapshot that was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SnapshotReport {
    /// The file.
    pub file: String,
    /// Counters and shares of permits in it.
    pub counters: u64,
    /// Its size.
    pub bytes: u64,
    /// What it took.
    pub seconds: f64,
}

/// A limit's name and window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The limit.
    pub name: String,
    /// The window, of a limit that has several.
    pub window: Option<String>,
}

/// One limit's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitReport {
    /// The limit.
    pub name: String,
    /// The window, of a limit that has several.
    pub window: Option<String>,
    /// Kind of the limit.
    pub kind: &'static str,
    /// A bucket's burst, else the units; absent if there is no limit.
    pub limit: Option<u64>,
    /// Units left after this answer; absent if there is no limit.
    pub remaining: Option<u64>,
    /// How long until the same request passes this limit; of permits, until the first one lapses.
    pub retry_after_ns: Option<u64>,
    /// How long until one more unit is left; zero if all are, absent if time brings none.
    pub next_ns: Option<u64>,
    /// How long until all units are left, or the window ends; absent of other kinds.
    pub full_ns: Option<u64>,
    /// `enforce` or `shadow`.
    pub mode: &'static str,
    /// Whether waiting helps the same request: `now`, `after`, `never`, or `on_others` who must
    /// give back what they hold.
    pub retry: &'static str,
}

/// A number of units as JSON has it: `None` is no limit.
pub fn finite(units: u64) -> Option<u64> {
    (units != UNLIMITED).then_some(units)
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorReport {
    /// Its code, as the protocol names it.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A policy version as it is shown.
pub fn version_text(version: u64) -> String {
    format!("{version:016x}")
}
