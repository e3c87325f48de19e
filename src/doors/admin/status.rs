//! What an operator wants to know at a glance, as JSON: `GET /v1/status`.

use serde::{Deserialize, Serialize};

use crate::doors::report::version_text;
use crate::doors::{Instance, keys_share};
use crate::engine::command::LimitId;

use super::vitals::{Sample, Vitals};

/// A node at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Since the start.
    pub uptime_seconds: f64,
    /// Whether it takes no new work.
    pub draining: bool,
    /// The policy in force.
    pub policy: PolicyStatus,
    /// Names of its APIs.
    pub apis: Vec<String>,
    /// Its limits, each window by itself.
    pub limits: Vec<LimitStatus>,
    /// Counters of inline limits.
    pub inline_keys: Used,
    /// Counters of all limits.
    pub keys: Used,
    /// Bytes of the counters' table.
    pub table_bytes: u64,
    /// Checks, inline ones included.
    pub checks: Rate,
    /// Of those, denials.
    pub denials: Rate,
    /// Connections of the binary protocol.
    pub connections: Used,
}

/// The policy in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// A file, a directory, or the built-in example.
    pub origin: String,
    /// 16 hexadecimal digits.
    pub version: String,
    /// Since it was loaded.
    pub age_seconds: f64,
    /// Policies that took the place of another since the start.
    pub reloads: u64,
    /// Policies that did not, because something was wrong with them.
    pub failed_reloads: u64,
    /// Why the last policy that was read is not in force.
    pub last_error: Option<ReloadFailure>,
    /// Overrides that have not ended.
    pub overrides: u64,
    /// Identities on record.
    pub identities: u64,
}

/// A policy that was read and is not in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReloadFailure {
    /// What is wrong with it: `file:line:column: message`.
    pub message: String,
    /// Since it was found so.
    pub age_seconds: f64,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStatus {
    /// Name of its API.
    pub api: String,
    /// Its name.
    pub name: String,
    /// Its window, if it has several.
    pub window: Option<String>,
    /// Its kind.
    pub kind: String,
    /// `enforce` or `off`.
    pub mode: String,
    /// Counters that differ from fresh ones, as last swept.
    pub keys: u64,
    /// The most of them.
    pub keys_max: u64,
    /// Checks that it refused.
    pub denials: u64,
}

/// How much there is of something, against its maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// So many now.
    pub now: u64,
    /// At most so many.
    pub max: u64,
}

/// A count, and how fast it grew over the last ten seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Since the start.
    pub total: u64,
    /// Each second.
    pub per_second: f64,
}

impl Status {
    pub(super) fn of(instance: &Instance, vitals: &Vitals) -> Self {
        let loaded = instance.policy.load();
        let usage = instance.table.load().usage();
        let reloads = &instance.control.reloads;
        let now = instance.clock.now();
        let share = keys_share(usage.keys_max);
        let [checks, denials] = vitals.rates(Sample::take(instance));
        let limits = loaded.policy.limits().iter().map(|limit| LimitStatus {
            api: limit.api.to_string(),
            name: limit.name.to_string(),
            window: (!limit.window.is_empty()).then(|| limit.window.to_string()),
            kind: limit.kind.name().to_owned(),
            mode: limit.mode.name().to_owned(),
            keys: instance.table.load().keys_of(limit.id),
            keys_max: limit.keys_max.unwrap_or(share),
            denials: instance.cells.sum(|worker| &worker.limit(limit.id.0).deny),
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: vitals.uptime(now.time).get() as f64 / 1e9,
            draining: instance.is_draining(),
            policy: PolicyStatus {
                origin: loaded.origin.clone(),
                version: version_text(loaded.policy.version()),
                age_seconds: (now.utc - loaded.loaded_at).get() as f64 / 1e9,
                reloads: reloads.succeeded(),
                failed_reloads: reloads.failed(),
                last_error: reloads.last_failure().map(|(message, at)| ReloadFailure {
                    message,
                    age_seconds: (now.utc - at).get() as f64 / 1e9,
                }),
                overrides: instance.overrides().len() as u64,
                identities: loaded.identities.count() as u64,
            },
            apis: loaded.policy.apis().map(str::to_owned).collect(),
            limits: limits.collect(),
            inline_keys: Used { now: instance.table.load().keys_of(LimitId::INLINE), max: share },
            keys: Used { now: usage.keys, max: usage.keys_max },
            table_bytes: usage.bytes,
            checks,
            denials,
            connections: Used { now: instance.connections(), max: instance.connections.max },
        }
    }
}
