//! Figures to Prometheus' text format. Pure: plain values in, text out; alone knows Prometheus.
//!
//! The page is written from the figures at each scrape, in an order that never changes, with the
//! exporter crate's own writers of lines. A recorder of that crate would keep a copy of every
//! count, could not hold our histogram (it takes buckets only as single samples and keeps each one
//! until the next scrape: gigabytes between two of them under load), and would shuffle the page.
//!
//! No label ever holds a key or a part of one: what labels hold is what the policy and the build
//! name, so their number is bounded.

use metrics::{Key, Label};
use metrics_exporter_prometheus::LabelSet;
use metrics_exporter_prometheus::formatting::{
    write_help_line, write_metric_line, write_type_line,
};

use super::cells::ClusterFigures;
use super::cells::DURATION_BOUNDS;
use super::process::Process;

/// What HTTP calls the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels of what belongs to no API: the checks that bring their limits along, which are counted
/// as one API with one limit.
pub const INLINE: &str = "inline";

/// All that is exported.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Of each API, inline checks included.
    pub apis: Vec<ApiFigures>,
    /// Of each limit, each window by itself, inline ones included as one.
    pub limits: Vec<LimitFigures>,
    /// Of each rule.
    pub rules: Vec<RuleFigures>,
    /// Of each protocol.
    pub protocols: Vec<ProtocolFigures>,
    /// The most counters.
    pub keys_max: u64,
    /// Bytes of the counters' table.
    pub table_bytes: u64,
    /// Connections closed for breaking a protocol or a deadline.
    pub connections_dropped: u64,
    /// Version of the policy in force.
    pub policy_version: String,
    /// Where it came from.
    pub policy_origin: String,
    /// How often a policy was read anew: those that came into force, and those that did not.
    pub policy_reloads: [u64; 2],
    /// When it came into force, in seconds since the epoch.
    pub policy_loaded_at_seconds: f64,
    /// Version of this program.
    pub build_version: &'static str,
    /// Since the start.
    pub uptime_seconds: f64,
    /// How far the system's wall clock is ahead of ours.
    pub wall_offset_seconds: f64,
    /// Of snapshots, where there is a data directory.
    pub snapshots: Option<SnapshotFigures>,
    /// Of the cluster, where there is one.
    pub cluster: Option<ClusterFigures>,
    /// What the kernel says.
    pub process: Process,
}

/// Counts of snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SnapshotFigures {
    /// Snapshots written.
    pub written: u64,
    /// Snapshots that came to nothing.
    pub failed: u64,
    /// Time since the last one's moment; absent if there was none.
    pub age_seconds: Option<f64>,
    /// What the last one took.
    pub duration_seconds: f64,
    /// Bytes of the last one.
    pub bytes: u64,
    /// Counters noted while the last one was taken.
    pub noted: u64,
}

/// Counts of one API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiFigures {
    /// Its name.
    pub api: String,
    /// Checks that passed on a decision, those that no limit applied to included.
    pub allow: u64,
    /// Checks that were refused on a decision.
    pub deny: u64,
    /// Checks that `when_unavailable` answered.
    pub unavailable: u64,
    /// Checks that were answered with an error.
    pub error: u64,
    /// Of those that passed, the ones that no limit applied to.
    pub unmatched: u64,
}

/// Counts of one limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitFigures {
    /// Name of its API.
    pub api: String,
    /// Its name, with `.window` if it has several windows.
    pub limit: String,
    /// Checks that fitted it.
    pub allow: u64,
    /// Checks that it refused.
    pub deny: u64,
    /// Checks that it would have refused, were it not in shadow mode.
    pub shadow_deny: u64,
    /// Units charged.
    pub units: u64,
    /// Counters.
    pub keys: u64,
}

/// Counts of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleFigures {
    /// Name of its API.
    pub api: String,
    /// `deny` or `bypass`.
    pub effect: &'static str,
    /// Its code, or its place in the list if it has none.
    pub rule: String,
    /// Checks that it answered.
    pub checks: u64,
}

/// Counts of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtocolFigures {
    /// Its name.
    pub protocol: &'static str,
    /// Requests answered.
    pub requests: u64,
    /// Of those, with an error.
    pub errors: u64,
    /// Open connections.
    pub connections: u64,
    /// The most of them.
    pub connections_max: u64,
    /// Requests by duration: one count for each of [`DURATION_BOUNDS`], one for what is longer.
    pub durations: [u64; DURATION_BOUNDS.len() + 1],
    /// Sum of the durations.
    pub duration_nanos: u64,
}

/// What all lines of a metric have in common.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "counter", help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "gauge", help }
}

const CHECKS: Metric = counter(
    "tollkeeper_checks_total",
    "Checks, each once, by decision: allow, deny, unavailable (answered by when_unavailable), error.",
);
const UNMATCHED: Metric = counter(
    "tollkeeper_unmatched_total",
    "Checks that passed because no limit applied; part of decision=\"allow\".",
);
const UNAVAILABLE: Metric = counter(
    "tollkeeper_unavailable_total",
    "Checks answered by when_unavailable, because no decision could be had.",
);
const DECISIONS: Metric = counter(
    "tollkeeper_decisions_total",
    "Checks of each limit that applied, by whether they fitted it.",
);
const RULES: Metric = counter(
    "tollkeeper_rules_total",
    "Checks that a rule answered before any limit, by what it does: deny, bypass.",
);
const UNITS: Metric = counter("tollkeeper_units_total", "Units charged on each limit.");
const KEYS: Metric =
    gauge("tollkeeper_keys", "Counters that differ from fresh ones, as last swept.");
const KEYS_MAX: Metric = gauge("tollkeeper_keys_max", "The most counters of all limits together.");
const TABLE_BYTES: Metric = gauge("tollkeeper_table_bytes", "Bytes of the counters' table.");
const REQUESTS: Metric = counter("tollkeeper_requests_total", "Requests answered.");
const REQUEST_ERRORS: Metric =
    counter("tollkeeper_request_errors_total", "Requests answered with an error.");
const CONNECTIONS: Metric = gauge("tollkeeper_connections", "Open connections.");
const CONNECTIONS_MAX: Metric =
    gauge("tollkeeper_connections_max", "The most connections that are open at one time.");
const CONNECTIONS_DROPPED: Metric = counter(
    "tollkeeper_connections_dropped_total",
    "Connections closed for breaking the protocol or a deadline.",
);
const DURATION: Metric = Metric {
    name: "tollkeeper_decision_duration_seconds",
    kind: "histogram",
    help: "From reading a batch of requests to its last answer, once for each request.",
};
const POLICY_INFO: Metric = gauge("tollkeeper_policy_info", "The policy in force; always 1.");
const POLICY_LOADED: Metric = gauge(
    "tollkeeper_policy_loaded_timestamp_seconds",
    "When the policy in force was loaded, since the epoch.",
);
const POLICY_RELOADS: Metric = counter(
    "tollkeeper_policy_reload_total",
    "Policies read while running, by result: success, or failure, which left the one in force.",
);
const BUILD_INFO: Metric = gauge("tollkeeper_build_info", "This program; always 1.");
const UPTIME: Metric = gauge("tollkeeper_uptime_seconds", "Time since the start.");
const WALL_OFFSET: Metric = gauge(
    "tollkeeper_clock_wall_offset_seconds",
    "How far the system's wall clock is ahead of the node's, which follows it by at most 0.1 %.",
);
const CLUSTER_LEADS: Metric =
    gauge("tollkeeper_cluster_leader", "1 if this node leads its cluster.");
const CLUSTER_TERM: Metric = gauge("tollkeeper_cluster_term", "Term that this node knows of.");
const CLUSTER_APPLIED: Metric =
    gauge("tollkeeper_cluster_applied_index", "Index of the last log entry applied.");
const CLUSTER_CONTACT: Metric = gauge(
    "tollkeeper_cluster_in_contact",
    "1 if a leader with a majority was heard of within an election timeout.",
);
const CLUSTER_DIVERGED: Metric =
    gauge("tollkeeper_cluster_diverged", "1 if nodes were found to differ at one index: alarm.");
const CLUSTER_CLOCK_HANDOVERS: Metric = counter(
    "tollkeeper_cluster_clock_handovers_total",
    "Times that this node gave up the lead because most nodes found its clock to run fast: alarm.",
);
const CLUSTER_ENTRIES: Metric =
    counter("tollkeeper_cluster_entries_total", "Log entries proposed by this node.");
const CLUSTER_GROUPS: Metric =
    counter("tollkeeper_cluster_groups_total", "Groups of requests in the entries proposed.");
const CLUSTER_ENTRY_BYTES: Metric =
    counter("tollkeeper_cluster_entry_bytes_total", "Bytes of the entries proposed.");
const CLUSTER_COMMANDS: Metric =
    counter("tollkeeper_cluster_commands_total", "Requests applied from the log.");
const CLUSTER_FORWARDED: Metric =
    counter("tollkeeper_cluster_forwarded_total", "Groups handed to the leader by this node.");
const CLUSTER_RESUBMITTED: Metric =
    counter("tollkeeper_cluster_resubmitted_total", "Entries that were proposed anew.");
const CLUSTER_SHORTCUTS: Metric = counter(
    "tollkeeper_cluster_shortcut_denials_total",
    "Denials by this node's applied table, without a log entry.",
);
const CLUSTER_WAITING: Metric =
    gauge("tollkeeper_cluster_waiting", "Groups asked here that wait for their entry.");
const CLUSTER_COMMIT: Metric = gauge(
    "tollkeeper_cluster_commit_seconds",
    "Time from proposing an entry to applying it here, since the start, by quantile.",
);
const CLUSTER_COMMITS: Metric =
    counter("tollkeeper_cluster_commits_total", "Entries proposed by this node that were applied.");
const CLUSTER_LAG: Metric =
    gauge("tollkeeper_cluster_peer_lag_entries", "Entries by which a node is behind this one.");
const CLUSTER_OFFSET: Metric = gauge(
    "tollkeeper_cluster_peer_clock_offset_seconds",
    "By how much a node's wall clock is ahead of this one's.",
);
const CLUSTER_SNAPSHOT: Metric =
    gauge("tollkeeper_cluster_snapshot_index", "Index of the last snapshot of the log.");

const SNAPSHOTS: Metric = counter("tollkeeper_snapshots_total", "Snapshots, by outcome.");
const SNAPSHOT_AGE: Metric = gauge(
    "tollkeeper_snapshot_age_seconds",
    "Time since the last snapshot's moment: what a crash now would forget.",
);
const SNAPSHOT_DURATION: Metric =
    gauge("tollkeeper_snapshot_duration_seconds", "Time that the last snapshot took.");
const SNAPSHOT_BYTES: Metric = gauge("tollkeeper_snapshot_bytes", "Size of the last snapshot.");
const SNAPSHOT_NOTED: Metric = gauge(
    "tollkeeper_snapshot_overlay_slots",
    "Counters that changed while the last snapshot was taken before it had come to them.",
);
const RESIDENT: Metric = gauge("process_resident_memory_bytes", "Resident memory size in bytes.");
const CPU: Metric =
    counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.");
const OPEN_FDS: Metric = gauge("process_open_fds", "Number of open file descriptors.");
const MAX_FDS: Metric = gauge("process_max_fds", "Maximum number of open file descriptors.");
const START_TIME: Metric =
    gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.");

/// Writes the page.
pub fn render(figures: &Figures) -> String {
    let mut page = Page::default();
    let Figures { apis, limits, protocols, process, .. } = figures;

    page.begin(&CHECKS);
    for ApiFigures { api, allow, deny, unavailable, error, .. } in apis {
        let decisions =
            [("allow", allow), ("deny", deny), ("unavailable", unavailable), ("error", error)];
        for (decision, count) in decisions {
            page.line(&CHECKS, &[("api", api), ("decision", decision)], count);
        }
    }
    page.each(&UNMATCHED, apis, |row| ([("api", row.api.as_str())], row.unmatched));
    page.each(&UNAVAILABLE, apis, |row| ([("api", row.api.as_str())], row.unavailable));

    page.begin(&DECISIONS);
    for LimitFigures { api, limit, allow, deny, shadow_deny, .. } in limits {
        for (outcome, count) in [("allow", allow), ("deny", deny), ("shadow_deny", shadow_deny)] {
            page.line(&DECISIONS, &[("api", api), ("limit", limit), ("outcome", outcome)], count);
        }
    }
    page.each(&UNITS, limits, |row| (row.labels(), row.units));
    page.begin(&RULES);
    for RuleFigures { api, effect, rule, checks } in &figures.rules {
        page.line(&RULES, &[("api", api), ("effect", effect), ("rule", rule)], checks);
    }
    page.each(&KEYS, limits, |row| (row.labels(), row.keys));
    page.single(&KEYS_MAX, figures.keys_max);
    page.single(&TABLE_BYTES, figures.table_bytes);

    let of = |row: &ProtocolFigures, value: u64| ([("protocol", row.protocol)], value);
    page.each(&REQUESTS, protocols, |row| of(row, row.requests));
    page.each(&REQUEST_ERRORS, protocols, |row| of(row, row.errors));
    page.each(&CONNECTIONS, protocols, |row| of(row, row.connections));
    page.each(&CONNECTIONS_MAX, protocols, |row| of(row, row.connections_max));
    page.single(&CONNECTIONS_DROPPED, figures.connections_dropped);
    page.begin(&DURATION);
    for row in protocols {
        page.histogram(&DURATION, ("protocol", row.protocol), &row.durations, row.duration_nanos);
    }

    page.begin(&POLICY_INFO);
    let policy = [("version", &*figures.policy_version), ("origin", &*figures.policy_origin)];
    page.line(&POLICY_INFO, &policy, 1);
    page.begin(&POLICY_RELOADS);
    for (result, count) in ["success", "failure"].into_iter().zip(figures.policy_reloads) {
        page.line(&POLICY_RELOADS, &[("result", result)], count);
    }
    page.single(&POLICY_LOADED, figures.policy_loaded_at_seconds);
    page.begin(&BUILD_INFO);
    page.line(&BUILD_INFO, &[("version", figures.build_version)], 1);
    page.single(&UPTIME, figures.uptime_seconds);
    page.single(&WALL_OFFSET, figures.wall_offset_seconds);

    if let Some(cluster) = &figures.cluster {
        put_cluster(&mut page, cluster);
    }
    if let Some(snapshots) = figures.snapshots {
        page.begin(&SNAPSHOTS);
        for (outcome, count) in [("written", snapshots.written), ("failed", snapshots.failed)] {
            page.line(&SNAPSHOTS, &[("outcome", outcome)], count);
        }
        if let Some(age) = snapshots.age_seconds {
            page.single(&SNAPSHOT_AGE, age);
        }
        page.single(&SNAPSHOT_DURATION, snapshots.duration_seconds);
        page.single(&SNAPSHOT_BYTES, snapshots.bytes);
        page.single(&SNAPSHOT_NOTED, snapshots.noted);
    }

    page.single(&RESIDENT, process.resident_bytes);
    page.single(&CPU, process.cpu_seconds);
    page.single(&OPEN_FDS, process.open_fds);
    page.single(&MAX_FDS, process.max_fds);
    page.single(&START_TIME, process.start_time_seconds);
    page.text
}

impl LimitFigures {
    fn labels(&self) -> [(&'static str, &str); 2] {
        [("api", &self.api), ("limit", &self.limit)]
    }
}

/// The text so far.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// Begins a metric: what it means and of which type it is.
    fn begin(&mut self, metric: &Metric) {
        write_help_line(&mut self.text, metric.name, None, None, metric.help);
        write_type_line(&mut self.text, metric.name, None, None, metric.kind);
    }

    fn line(&mut self, metric: &Metric, labels: &[(&'static str, &str)], value: impl ToString) {
        let (labels, value) = (label_set(metric, labels), value.to_string());
        write_metric_line::<&str, _>(&mut self.text, metric.name, None, &labels, None, value, None);
    }

    fn single(&mut self, metric: &Metric, value: impl ToString) {
        self.begin(metric);
        self.line(metric, &[], value);
    }

    /// One line for each row.
    fn each<'r, R, const N: usize>(
        &mut self,
        metric: &Metric,
        rows: &'r [R],
        of: impl Fn(&'r R) -> ([(&'static str, &'r str); N], u64),
    ) {
        self.begin(metric);
        for row in rows {
            let (labels, value) = of(row);
            self.line(metric, &labels, value);
        }
    }

    /// Buckets are cumulative there; here each counts its own.
    fn histogram(
        &mut self,
        metric: &Metric,
        label: (&'static str, &str),
        counts: &[u64; DURATION_BOUNDS.len() + 1],
        sum_nanos: u64,
    ) {
        let labels = label_set(metric, &[label]);
        let text = &mut self.text;
        let mut cumulative = 0;
        let bounds = DURATION_BOUNDS.iter().map(|&bound| seconds(bound).to_string());
        let bounds = bounds.chain(core::iter::once("+Inf".to_owned()));
        for (bound, count) in bounds.zip(counts) {
            cumulative += count;
            let le = Some(("le", bound));
            write_metric_line(text, metric.name, Some("bucket"), &labels, le, cumulative, None);
        }
        let sum = seconds(sum_nanos);
        write_metric_line::<&str, _>(text, metric.name, Some("sum"), &labels, None, sum, None);
        let count = cumulative;
        write_metric_line::<&str, _>(text, metric.name, Some("count"), &labels, None, count, None);
    }
}

fn put_cluster(page: &mut Page, cluster: &ClusterFigures) {
    page.single(&CLUSTER_LEADS, u64::from(cluster.leads));
    page.single(&CLUSTER_TERM, cluster.term);
    page.single(&CLUSTER_APPLIED, cluster.applied);
    page.single(&CLUSTER_CONTACT, u64::from(cluster.in_contact));
    page.single(&CLUSTER_DIVERGED, u64::from(cluster.diverged));
    page.single(&CLUSTER_CLOCK_HANDOVERS, cluster.clock_handovers);
    let counts = [CLUSTER_ENTRIES, CLUSTER_GROUPS, CLUSTER_ENTRY_BYTES, CLUSTER_COMMANDS];
    for (metric, count) in counts.iter().zip(cluster.entries) {
        page.single(metric, count);
    }
    let counts = [CLUSTER_FORWARDED, CLUSTER_RESUBMITTED, CLUSTER_SHORTCUTS];
    for (metric, count) in counts.iter().zip(cluster.requests) {
        page.single(metric, count);
    }
    page.single(&CLUSTER_WAITING, cluster.waiting);
    page.begin(&CLUSTER_COMMIT);
    let (seconds, commits) = cluster.commit_seconds;
    for (quantile, seconds) in ["0.5", "0.99", "0.999"].into_iter().zip(seconds) {
        page.line(&CLUSTER_COMMIT, &[("quantile", quantile)], seconds);
    }
    page.single(&CLUSTER_COMMITS, commits);
    page.begin(&CLUSTER_LAG);
    for (peer, lag, _) in &cluster.peers {
        page.line(&CLUSTER_LAG, &[("peer", &peer.to_string())], *lag);
    }
    page.begin(&CLUSTER_OFFSET);
    for (peer, _, offset) in &cluster.peers {
        page.line(&CLUSTER_OFFSET, &[("peer", &peer.to_string())], *offset);
    }
    page.single(&CLUSTER_SNAPSHOT, cluster.snapshot_index);
}

fn label_set(metric: &Metric, labels: &[(&'static str, &str)]) -> LabelSet {
    let labels: Vec<Label> =
        labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    LabelSet::from_key_and_global(&Key::from_parts(metric.name, labels), &Default::default())
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let mut durations = [0; DURATION_BOUNDS.len() + 1];
        (durations[0], durations[2], durations[16]) = (3, 2, 1);
        let admin = ProtocolFigures {
            protocol: "admin",
            durations,
            duration_nanos: 2_500_000_000,
            ..ProtocolFigures::default()
        };
        let api = ApiFigures { api: "a".into(), allow: 5, unmatched: 2, ..ApiFigures::default() };
        let limit = "x.minute".into();
        Figures {
            apis: vec![api],
            limits: vec![LimitFigures { api: "a".into(), limit, deny: 7, ..Default::default() }],
            rules: vec![RuleFigures {
                api: "a".into(),
                effect: "deny",
                rule: "#1".into(),
                checks: 4,
            }],
            protocols: vec![admin],
            policy_origin: "odd \"name\"\n\\x".into(),
            build_version: "1.2.3",
            cluster: None,
            snapshots: Some(SnapshotFigures { age_seconds: Some(2.5), ..Default::default() }),
            ..Figures::default()
        }
    }

    #[test]
    fn lines_say_what_was_counted() {
        let page = render(&figures());
        for line in [
            "tollkeeper_checks_total{api=\"a\",decision=\"allow\"} 5",
            "tollkeeper_checks_total{api=\"a\",decision=\"error\"} 0",
            "tollkeeper_unmatched_total{api=\"a\"} 2",
            "tollkeeper_decisions_total{api=\"a\",limit=\"x.minute\",outcome=\"deny\"} 7",
            "tollkeeper_rules_total{api=\"a\",effect=\"deny\",rule=\"#1\"} 4",
            "tollkeeper_keys{api=\"a\",limit=\"x.minute\"} 0",
            "tollkeeper_build_info{version=\"1.2.3\"} 1",
            "tollkeeper_snapshot_age_seconds 2.5",
            "tollkeeper_policy_info{version=\"\",origin=\"odd \\\"name\\\"\\n\\\\x\"} 1",
            "# TYPE tollkeeper_decision_duration_seconds histogram",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }

    /// Prometheus sums buckets up to each bound, and checks that the last is the count.
    #[test]
    fn the_histogram_has_the_buckets_of_the_cells() {
        let page = render(&figures());
        let name = "tollkeeper_decision_duration_seconds";
        let buckets: Vec<(&str, u64)> = page
            .lines()
            .filter_map(|line| {
                line.strip_prefix(name)?.strip_prefix("_bucket{protocol=\"admin\",le=\"")
            })
            .filter_map(|line| line.split_once("\"} "))
            .map(|(bound, count)| (bound, count.parse().unwrap()))
            .collect();
        assert_eq!(buckets.len(), DURATION_BOUNDS.len() + 1);
        assert_eq!(
            &buckets[..4],
            [("0.000001", 3), ("0.0000025", 3), ("0.000005", 5), ("0.00001", 5)]
        );
        assert_eq!(&buckets[15..], [("1", 5), ("+Inf", 6)]);
        assert!(page.contains(&format!("{name}_sum{{protocol=\"admin\"}} 2.5\n")));
        assert!(page.contains(&format!("{name}_count{{protocol=\"admin\"}} 6\n")));
    }

    /// Each metric has its meaning and type before its lines, once; names end in their unit, and
    /// all counters, but nothing else, in `_total`.
    #[test]
    fn names_keep_the_rules() {
        let page = render(&figures());
        let mut known = Vec::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(!known.contains(&name), "{name} twice");
                known.push(name);
                assert!(name.starts_with("tollkeeper_") || name.starts_with("process_"), "{name}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                assert!(!["_ms", "_ns", "_nanos", "_kb"].iter().any(|unit| name.ends_with(unit)));
            } else if !line.starts_with('#') {
                let name = known.last().unwrap();
                assert!(line.starts_with(name), "{line} comes after {name}");
            }
        }
        let helps = page.lines().filter(|line| line.starts_with("# HELP ")).count();
        assert_eq!(helps, known.len());
    }
}
