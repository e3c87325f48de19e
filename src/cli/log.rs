//! `tollkeeper log`: what the log of a node of a cluster has, read while the node is down.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::node::{self, Inspected, Inspection, Line};

use super::fail;

/// Looks into the log of a node of a cluster.
#[derive(Args)]
pub(super) struct LogCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Replay a node's log by the engine that nodes run, and say what came of it
    ///
    /// The node must be down: its directory is locked meanwhile. Nothing in it is changed, but that
    /// leftovers of snapshots that were never finished go, as at a start. The log is replayed from its first
    /// entry, or, where snapshots have taken its place, from the oldest one from which it goes on, up
    /// to the last entry that the node noted as committed. Totals are of what was replayed: `serve
    /// --keep-log` keeps all of it. Hashes are those that nodes compare (`cluster status`). Exits 0,
    /// or 2 if the log or a snapshot is damaged, or does not replay.
    #[command(after_help = "Examples:
  tollkeeper log inspect --data n1
  tollkeeper log inspect --data n1 --json
  tollkeeper log inspect --data n1 --commands | grep '\"index\":1204,'")]
    Inspect(Inspect),
}

#[derive(Args)]
struct Inspect {
    /// The node's data directory
    #[arg(long, value_name = "DIR", env = "TOLLKEEPER_DATA")]
    data: PathBuf,
    /// Replay up to this entry, committed or not [default: the last one noted as committed]
    #[arg(long, value_name = "INDEX")]
    to: Option<u64>,
    /// One JSON object for each command first, in the order of the log: the entry's index and the
    /// command's position in it, which answers carry, what was asked, what came of it
    #[arg(long)]
    commands: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl LogCommand {
    pub(super) fn run(self) -> ExitCode {
        match self.action {
            Action::Inspect(inspect) => inspect.run(),
        }
    }
}

impl Inspect {
    fn run(self) -> ExitCode {
        let mut out = BufWriter::new(io::stdout());
        let each = move |line| {
            // Whoever closed the pipe does not want to know.
            let _ = writeln!(out, "{}", as_line(&line));
        };
        let each: Option<node::EachLine> = if self.commands { Some(Box::new(each)) } else { None };
        let inspected = match node::inspect(&self.data, Inspection { to: self.to, each }) {
            Ok(inspected) => inspected,
            Err(error) => return fail(&error.to_string()),
        };
        let report = report(&inspected);
        let text = if self.json || self.commands { report.to_string() } else { as_text(&report) };
        let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
        ExitCode::SUCCESS
    }
}

fn as_line(line: &Line) -> Value {
    let charges: serde_json::Map<String, Value> =
        line.charges.iter().map(|(limit, units)| (limit.clone(), (*units).into())).collect();
    json!({
        "index": line.index,
        "position": line.position,
        "command": line.command,
        "outcome": line.outcome,
        "limits": charges,
    })
}

fn report(inspected: &Inspected) -> Value {
    let replayed = &inspected.replayed;
    let position = |position: &Option<crate::disk::log::Position>| {
        position.map(|it| json!({ "index": it.index, "term": it.term, "leader": it.node }))
    };
    let terms: Vec<Value> = replayed
        .terms
        .iter()
        .map(|(of, first, last)| {
            json!({ "term": of.term, "leader": of.leader, "first": first, "last": last })
        })
        .collect();
    let members: Vec<Value> = replayed
        .members
        .iter()
        .map(|(node, peer, votes)| {
            json!({ "node": node, "peer": peer, "role": if *votes { "voter" } else { "learner" } })
        })
        .collect();
    let limits: Vec<Value> = inspected
        .limits
        .iter()
        .map(|limit| {
            json!({
                "limit": limit.name,
                "kind": limit.kind,
                "asked": limit.asked,
                "allowed": limit.allowed,
                "units": limit.units,
            })
        })
        .collect();
    let hex = |hash: u64| format!("{hash:016x}");
    let hashes: Vec<Value> = replayed
        .hashes
        .iter()
        .map(|(index, hash)| json!({ "index": index, "state_hash": hex(*hash) }))
        .collect();
    let commands = inspected.commands;
    let kinds = replayed.kinds;
    json!({
        "node": inspected.node,
        "cluster": inspected.cluster,
        "id": inspected.id,
        "log": {
            "segments": inspected.segments.0,
            "bytes": inspected.segments.1,
            "records": inspected.records,
            "first": inspected.first,
            "last": position(&inspected.last),
            "purged": position(&inspected.purged),
            "committed": position(&inspected.committed),
            "vote": inspected.vote.map(|vote| {
                json!({ "term": vote.term, "node": vote.node, "granted": vote.is_committed })
            }),
            "to_be_cut_off": inspected.cut.as_ref().map(|(file, offset, what)| {
                json!({ "file": file, "offset": offset, "what": what })
            }),
            "may_be_short": inspected.may_be_short,
        },
        "from_snapshot": replayed.from.map(|(number, index)| {
            json!({ "number": number, "index": index })
        }),
        "replayed_to": replayed.to,
        "not_replayed": replayed.not_applied,
        "entries": {
            "groups": kinds.groups,
            "changes": kinds.change,
            "fences": kinds.fence,
            "checksums": kinds.checksum,
            "membership": kinds.membership,
            "blank": kinds.blank,
        },
        "terms": terms,
        "members": members,
        "commands": {
            "allowed": commands.allowed,
            "denied": commands.denied,
            "repeated": commands.repeated,
            "refused": commands.refused,
            "amended": commands.amended,
            "released": commands.released,
            "renewed": commands.renewed,
            "sessions": commands.opened,
        },
        "limits": limits,
        "cluster_time_ns": replayed.now.time.as_nanos(),
        "policy": hex(inspected.policy),
        "keys": inspected.keys,
        "state_hash": hex(replayed.hash),
        "hashes": hashes,
    })
}

fn as_text(report: &Value) -> String {
    let text = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let at = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        value => format!("{} of term {}", value["index"], value["term"]),
    };
    let log = &report["log"];
    let mut out = String::new();
    let _ = writeln!(
        out,
        "node {} of {} · {} segments, {} bytes · entries {} to {} · purged {} · committed {}",
        report["node"],
        text(&report["cluster"]),
        log["segments"],
        log["bytes"],
        text(&log["first"]),
        at(&log["last"]),
        at(&log["purged"]),
        at(&log["committed"]),
    );
    if let Some(vote) = log["vote"].as_object() {
        let _ = writeln!(out, "voted for node {} in term {}", vote["node"], vote["term"]);
    }
    if let Some(cut) = log["to_be_cut_off"].as_object() {
        let _ = writeln!(
            out,
            "the next start cuts {} off behind byte {}: {}",
            text(&cut["file"]),
            cut["offset"],
            text(&cut["what"])
        );
    }
    if log["may_be_short"] == true {
        out.push_str(
            "power was lost in a weak --fsync mode: its end may be gone, so it does not start\n",
        );
    }
    let from = match &report["from_snapshot"] {
        Value::Null => "the first entry".to_owned(),
        from => format!("snapshot {}, which reaches entry {}", from["number"], from["index"]),
    };
    let _ = writeln!(
        out,
        "replayed from {from} to entry {}; {} behind it are not known to be committed",
        text(&report["replayed_to"]),
        report["not_replayed"]
    );
    let counts = |of: &str| {
        let all = report[of].as_object().into_iter().flatten();
        let some = all.filter(|(_, count)| **count != 0);
        some.map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(" · ")
    };
    let _ = writeln!(out, "entries: {}\ncommands: {}", counts("entries"), counts("commands"));
    for term in report["terms"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "term {}: node {} led entries {} to {}",
            term["term"], term["leader"], term["first"], term["last"]
        );
    }
    for member in report["members"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "member {} at {}, {}",
            member["node"],
            text(&member["peer"]),
            text(&member["role"])
        );
    }
    let limits = report["limits"].as_array().into_iter().flatten();
    for (place, limit) in limits.enumerate() {
        if place == 0 {
            let _ = writeln!(
                out,
                "{:<32} {:<10} {:>12} {:>12} {:>14}",
                "limit", "kind", "asked", "allowed", "units"
            );
        }
        let _ = writeln!(
            out,
            "{:<32} {:<10} {:>12} {:>12} {:>14}",
            text(&limit["limit"]),
            text(&limit["kind"]),
            text(&limit["asked"]),
            text(&limit["allowed"]),
            text(&limit["units"])
        );
    }
    if let Some(last) = report["hashes"].as_array().and_then(|hashes| hashes.last()) {
        let _ = writeln!(
            out,
            "nodes compared tables last at entry {}: {}",
            last["index"],
            text(&last["state_hash"])
        );
    }
    let _ = writeln!(
        out,
        "policy {} · {} counters · state hash {}",
        text(&report["policy"]),
        report["keys"],
        text(&report["state_hash"])
    );
    out
}
