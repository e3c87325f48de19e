//! What the doors hand over to be logged, as lines.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::doors::report::version_text;
use crate::doors::{By, Cause, Denial, Event, Instance};
use crate::policy::quota_written;

/// What API and limit of inline limits are called, here as in metrics.
const INLINE: &str = "inline";

/// Logs what comes until the instance is gone.
pub(super) async fn run(instance: Arc<Instance>) {
    let Some(mut events) = instance.journal.take() else { return };
    let mut told = HashMap::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Denied(denial) => tell_denial(&instance, &denial, &mut told),
            Event::Changed(change) => tracing::info!("{change}"),
        }
    }
}

/// One line for all denials of a cause since its last line.
fn tell_denial(instance: &Instance, denial: &Denial, told: &mut HashMap<Cause, u64>) {
    let Denial { cause, by } = denial;
    let all = instance.cells.sum(|worker| match cause {
        Cause::Limit(limit) => &worker.limit(limit.0).deny,
        Cause::Shadow(limit) => &worker.limit(limit.0).shadow_deny,
        Cause::Rule(rule) => worker.rule(*rule),
    });
    let before = told.insert(*cause, all).unwrap_or_default();
    let denials = all.wrapping_sub(before).max(1);
    let (api, name, version, attributes) = match by {
        By::Policy { api, name, version, attributes } => (api, name, version, attributes),
        By::Inline(reading) => {
            let kind = reading.quota.kind().name();
            let (quota, cost) = (quota_written(&reading.quota), reading.cost);
            tracing::info!(api = INLINE, limit = INLINE, kind, quota, cost, denials, "denied");
            return;
        }
    };
    let mut said = String::new();
    for (name, value) in attributes {
        let gap = if said.is_empty() { "" } else { " " };
        // A `String` takes all that is written.
        let _ = write!(said, "{gap}{name}={value:?}");
    }
    let (attributes, policy) = (said, version_text(*version));
    match cause {
        Cause::Limit(_) => {
            tracing::info!(api, limit = name, policy, denials, attributes, "denied");
        }
        Cause::Shadow(_) => {
            let would_deny = denials;
            tracing::info!(
                api,
                limit = name,
                policy,
                would_deny,
                attributes,
                "not denied: the limit is in shadow mode and would have"
            );
        }
        Cause::Rule(_) => {
            tracing::info!(api, rule = name, policy, denials, attributes, "denied");
        }
    }
}
