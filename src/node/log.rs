//! What the doors hand over to be logged, as lines.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::doors::report::version_text;
use crate::doors::{Denial, Event, Instance};
use crate::engine::command::LimitId;

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

/// One line for all denials of a limit since its last line.
fn tell_denial(instance: &Instance, denial: &Denial, told: &mut HashMap<LimitId, u64>) {
    let all = instance.cells.sum(|worker| &worker.limit(denial.id.0).deny);
    let before = told.insert(denial.id, all).unwrap_or_default();
    let mut attributes = String::new();
    for (name, value) in &denial.attributes {
        let gap = if attributes.is_empty() { "" } else { " " };
        // A `String` takes all that is written.
        let _ = write!(attributes, "{gap}{name}={value:?}");
    }
    tracing::info!(
        api = denial.api,
        limit = denial.limit,
        policy = version_text(denial.policy_version),
        denials = all.wrapping_sub(before).max(1),
        attributes,
        "denied"
    );
}
