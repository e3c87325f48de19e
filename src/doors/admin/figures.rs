//! The instance's counts as the figures that are exported.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::doors::report::version_text;
use crate::doors::{Instance, Loaded};
use crate::engine::command::LimitId;
use crate::engine::time::UtcTime;
use crate::metrics::cells::{Outcome, Protocol};
use crate::metrics::export::{
    ApiFigures, Figures, INLINE, LimitFigures, ProtocolFigures, RuleFigures, SnapshotFigures,
};
use crate::metrics::process::Process;

use super::CONNECTIONS_MAX;
use super::vitals::Vitals;

/// All figures, now.
pub(super) fn figures(instance: &Instance, vitals: &Vitals) -> Figures {
    let loaded = instance.policy.load();
    let usage = instance.table.load().usage();
    let reloads = &instance.control.reloads;
    let limits = loaded.policy.limits().iter().map(|limit| {
        let name = match &*limit.window {
            "" => limit.name.to_string(),
            window => format!("{}.{window}", limit.name),
        };
        of_limit(instance, &limit.api, name, limit.id)
    });
    let inline = of_limit(instance, INLINE, INLINE.to_owned(), LimitId::INLINE);
    // A check of inline limits is counted once, with its outcome, on the limit of all of them.
    let inline_api = ApiFigures {
        api: INLINE.to_owned(),
        allow: inline.allow,
        deny: inline.deny,
        ..ApiFigures::default()
    };
    let apis = loaded.apis().map(|(name, number)| of_api(instance, number, name));
    Figures {
        apis: apis.chain([inline_api]).collect(),
        limits: limits.chain([inline]).collect(),
        rules: rules(instance, &loaded),
        protocols: Protocol::ALL
            .into_iter()
            .map(|protocol| of_protocol(instance, vitals, protocol))
            .collect(),
        keys_max: usage.keys_max,
        table_bytes: usage.bytes,
        connections_dropped: instance.cells.sum(|worker| &worker.connections_dropped),
        policy_version: version_text(loaded.policy.version()),
        policy_origin: loaded.origin.clone(),
        policy_reloads: [reloads.succeeded(), reloads.failed()],
        policy_loaded_at_seconds: loaded.loaded_at.as_nanos() as f64 / 1e9,
        build_version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: vitals.uptime(instance.clock.now().time).get() as f64 / 1e9,
        wall_offset_seconds: vitals.wall_offset_nanos() as f64 / 1e9,
        snapshots: instance.snapshots.get().map(|_| of_snapshots(instance)),
        cluster: instance.steering.get().map(|steering| steering.figures()),
        process: Process::observe(),
    }
}

/// Rules that share a name share a count, and so are told once.
fn rules(instance: &Instance, loaded: &Loaded) -> Vec<RuleFigures> {
    let (mut figures, mut told) = (Vec::new(), HashSet::new());
    let apis = loaded.policy.handles().iter().filter(|handle| handle.class().is_none());
    for (handle, rule) in apis.flat_map(|handle| handle.rules().iter().map(move |of| (handle, of)))
    {
        let (api, effect, title) = (handle.api(), rule.effect.name(), rule.title());
        if told.insert((api, effect, title.clone())) {
            let checks = instance.cells.sum(|worker| worker.rule(rule.number));
            figures.push(RuleFigures { api: api.to_owned(), effect, rule: title, checks });
        }
    }
    figures
}

fn of_snapshots(instance: &Instance) -> SnapshotFigures {
    let cells = &instance.cells.snapshots;
    let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
    let taken_at = Some(load(&cells.taken_at)).filter(|taken_at| *taken_at > 0);
    let age = taken_at.map(|at| instance.clock.now().utc - UtcTime::from_nanos(at));
    SnapshotFigures {
        written: load(&cells.written),
        failed: load(&cells.failed),
        age_seconds: age.map(|age| age.get() as f64 / 1e9),
        duration_seconds: load(&cells.duration) as f64 / 1e9,
        bytes: load(&cells.bytes),
        noted: load(&cells.noted),
    }
}

fn of_api(instance: &Instance, number: usize, name: &str) -> ApiFigures {
    let checks = |outcome| instance.cells.checks(number, outcome);
    let unmatched = checks(Outcome::Unmatched);
    ApiFigures {
        api: name.to_owned(),
        allow: checks(Outcome::Allow) + unmatched,
        deny: checks(Outcome::Deny),
        unavailable: checks(Outcome::Unavailable),
        error: checks(Outcome::Error),
        unmatched,
    }
}

fn of_limit(instance: &Instance, api: &str, limit: String, id: LimitId) -> LimitFigures {
    let cells = &instance.cells;
    LimitFigures {
        api: api.to_owned(),
        limit,
        allow: cells.sum(|worker| &worker.limit(id.0).allow),
        deny: cells.sum(|worker| &worker.limit(id.0).deny),
        shadow_deny: cells.sum(|worker| &worker.limit(id.0).shadow_deny),
        units: cells.sum(|worker| &worker.limit(id.0).units),
        keys: instance.table.load().keys_of(id),
    }
}

fn of_protocol(instance: &Instance, vitals: &Vitals, protocol: Protocol) -> ProtocolFigures {
    let cells = &instance.cells;
    let (connections, connections_max) = match protocol {
        Protocol::Binary => (instance.connections(), instance.connections.max),
        Protocol::Admin => (vitals.connections.load(Ordering::Relaxed), CONNECTIONS_MAX as u64),
        Protocol::Resp => (instance.resp_connections.open(), instance.resp_connections.max),
        Protocol::Http => (instance.http_connections.open(), instance.http_connections.max),
        Protocol::Envoy => (instance.envoy_connections.open(), instance.envoy_connections.max),
    };
    ProtocolFigures {
        protocol: protocol.name(),
        requests: cells.sum_of(protocol, |worker| &worker.requests),
        errors: cells.sum_of(protocol, |worker| &worker.errors),
        connections,
        connections_max,
        durations: cells.durations(protocol),
        duration_nanos: cells.sum_of(protocol, |worker| &worker.duration_sum),
    }
}
