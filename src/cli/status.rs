//! `tollkeeper status`: a node at a glance.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use crate::doors::admin::{LimitStatus, Rate, Status as Glance, Used};

use super::fail;
use super::http::Node;
use super::text::{count, table};

/// Asks a running node for its policy and that one's age, keys against their cap for each limit,
/// rates over the last ten seconds, denials and connections.
///
/// Exits 0 if it was told, else 2.
#[derive(Args)]
pub(super) struct Status {
    #[command(flatten)]
    node: Node,
}

impl Status {
    pub(super) fn run(self) -> ExitCode {
        let answer = match self.node.get("/v1/status") {
            Ok(answer) => answer,
            Err(error) => return error.tell(&self.node),
        };
        let status: Glance = match serde_json::from_str(&answer) {
            Ok(status) => status,
            Err(error) => {
                return fail(&format!("{}: its answer is no status: {error}", self.node.admin));
            }
        };
        let text = if self.node.json { answer.trim_end().to_owned() } else { as_text(&status) };
        // Whoever closed the pipe does not want to know.
        let _ = writeln!(io::stdout().lock(), "{text}");
        ExitCode::SUCCESS
    }
}

fn as_text(status: &Glance) -> String {
    let Glance { policy, keys, connections, .. } = status;
    let mut text = format!(
        "tollkeeper {} · up {} · {}\n\
         policy       {} · version {} · {} old\n\
         {}\
         changes      {} · {} failed · {} · {}\n\
         keys         {} · table {}\n\
         checks       {}\n\
         denials      {}\n\
         connections  {}\n",
        status.version,
        span(status.uptime_seconds),
        if status.draining { "draining" } else { "serving" },
        policy.origin,
        policy.version,
        span(policy.age_seconds),
        match &policy.last_error {
            None => String::new(),
            Some(error) => format!(
                "             not in force for {}: {}\n",
                span(error.age_seconds),
                error.message
            ),
        },
        count(policy.reloads, "reload"),
        policy.failed_reloads,
        count(policy.overrides, "override"),
        match policy.identities {
            1 => "1 identity".to_owned(),
            many => format!("{many} identities"),
        },
        used(keys),
        bytes(status.table_bytes),
        rate(&status.checks),
        rate(&status.denials),
        used(connections),
    );
    let mut rows =
        vec![["api", "limit", "kind", "mode", "keys", "most", "denials"].map(str::to_owned)];
    rows.extend(status.limits.iter().map(row));
    let Used { now, max } = status.inline_keys;
    if now > 0 {
        let dash = || "-".to_owned();
        rows.push([
            "inline".into(),
            dash(),
            dash(),
            dash(),
            now.to_string(),
            max.to_string(),
            dash(),
        ]);
    }
    text.push('\n');
    text.push_str(&table(&rows, &[4, 5, 6]));
    text.truncate(text.trim_end().len());
    text
}

fn row(limit: &LimitStatus) -> [String; 7] {
    let name = match &limit.window {
        None => limit.name.clone(),
        Some(window) => format!("{}.{window}", limit.name),
    };
    [
        limit.api.clone(),
        name,
        limit.kind.clone(),
        limit.mode.clone(),
        limit.keys.to_string(),
        limit.keys_max.to_string(),
        limit.denials.to_string(),
    ]
}

fn used(used: &Used) -> String {
    format!("{} of {}", used.now, used.max)
}

fn rate(rate: &Rate) -> String {
    let per_second = rate.per_second;
    let decimals = if per_second < 100.0 { 1 } else { 0 };
    format!("{} · {per_second:.decimals$} a second", rate.total)
}

fn bytes(bytes: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.into_iter().find(|(_, size)| bytes as f64 >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / size),
        None => format!("{bytes} B"),
    }
}

/// A span in its two largest units.
fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use crate::doors::admin::{PolicyStatus, ReloadFailure};

    use super::*;

    #[test]
    fn a_status_reads_like_this() {
        let limit = |name: &str, window: Option<&str>, keys, denials| LimitStatus {
            api: "media".into(),
            name: name.into(),
            window: window.map(str::to_owned),
            kind: "bucket".into(),
            mode: "enforce".into(),
            keys,
            keys_max: 800,
            denials,
        };
        let status = Glance {
            version: "0.1.0".into(),
            uptime_seconds: 192.7,
            draining: false,
            policy: PolicyStatus {
                origin: "built-in example \"media\"".into(),
                version: "00000000000000ab".into(),
                age_seconds: 90_061.0,
                reloads: 1,
                failed_reloads: 1,
                last_error: Some(ReloadFailure {
                    message: "media.toml:7:3: unknown key `brust`".into(),
                    age_seconds: 65.0,
                }),
                overrides: 2,
                identities: 3,
            },
            apis: vec!["media".into()],
            limits: vec![limit("images_post", None, 12, 1), limit("read", Some("day"), 1, 120)],
            inline_keys: Used { now: 0, max: 800 },
            keys: Used { now: 13, max: 1000 },
            table_bytes: 1_250_000,
            checks: Rate { total: 121, per_second: 12.1 },
            denials: Rate { total: 1, per_second: 0.1 },
            connections: Used { now: 1, max: 10_000 },
        };
        let expected = "\
tollkeeper 0.1.0 · up 3 min 12 s · serving
policy       built-in example \"media\" · version 00000000000000ab · 1 d 1 h old
             not in force for 1 min 5 s: media.toml:7:3: unknown key `brust`
changes      1 reload · 1 failed · 2 overrides · 3 identities
keys         13 of 1000 · table 1.2 MB
checks       121 · 12.1 a second
denials      1 · 0.1 a second
connections  1 of 10000

api    limit        kind    mode     keys  most  denials
media  images_post  bucket  enforce    12   800        1
media  read.day     bucket  enforce     1   800      120";
        assert_eq!(as_text(&status), expected);
    }

    #[test]
    fn spans_and_sizes_show_two_units_at_most() {
        assert_eq!([span(0.9), span(59.0), span(3600.0)], ["0 s", "59 s", "1 h 0 min"]);
        assert_eq!([bytes(999), bytes(1000), bytes(2_500_000_000)], ["999 B", "1.0 kB", "2.5 GB"]);
    }
}
