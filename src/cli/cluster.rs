//! `tollkeeper cluster`: how the nodes of a cluster stand, who belongs to it, who leads it.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::fail;
use super::http::{Key, Node, Unanswered};

/// For what waits for a majority, and for a node to say that it joins.
const TIME_MAX: Duration = Duration::from_secs(30);

/// How often a node that catches up is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Begins a cluster, shows it, changes who belongs to it.
#[derive(Args)]
pub(super) struct ClusterCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Begin a cluster of nodes that wait to join
    ///
    /// Asked of one of its members. Each is started before with `serve --cluster NAME --node-id N
    /// --data DIR` and an empty DIR. The policy is that of the node that is asked, or of the one
    /// that leads first.
    #[command(after_help = "Examples:
  tollkeeper cluster init --admin 127.0.0.1:7442 \\
      --member 1=127.0.0.1:7441 --member 2=127.0.0.1:7541 --member 3=127.0.0.1:7641")]
    Init(Init),
    /// Show how the nodes stand
    Status(Ask),
    /// Add a node that waits to join: it learns first, and votes once it has caught up
    ///
    /// Asked of the leader. Until the node has applied all but the last 64 entries it has no vote, so
    /// no majority waits for it. If that takes longer than --timeout, or this command is ended, the
    /// node goes on learning without a vote: the same command again goes on from there, and `cluster
    /// remove` takes it back. Exits 0 once the node votes, else 2.
    #[command(after_help = "Examples:
  tollkeeper cluster add 4=127.0.0.1:7741
  tollkeeper cluster add 4=10.0.0.4:7441 --timeout 3600 --json")]
    Add(Add),
    /// Remove a node, whether it votes or learns. Its number is never used again
    Remove(Remove),
    /// Hand leadership to another node
    Transfer(Transfer),
    /// Have the node take a snapshot, after which it lets go of the log before it
    Snapshot(Ask),
}

#[derive(Args)]
struct Ask {
    #[command(flatten)]
    node: Node,
    #[command(flatten)]
    key: Key,
}

#[derive(Args)]
struct Init {
    /// A member: its node id, and the address at which it listens for the others
    #[arg(long = "member", value_name = "N=HOST:PORT", required = true, value_parser = member)]
    members: Vec<(u64, String)>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Args)]
struct Add {
    /// The node to add: its node id, and the address at which it listens for the others
    #[arg(value_name = "N=HOST:PORT", value_parser = member)]
    member: (u64, String),
    /// How long to wait until it has caught up, in seconds
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout: u64,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Args)]
struct Remove {
    /// The node's id
    #[arg(value_name = "N")]
    node: u64,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Args)]
struct Transfer {
    /// The node to lead; without one, whichever has caught up
    #[arg(value_name = "N")]
    node: Option<u64>,
    #[command(flatten)]
    ask: Ask,
}

fn member(text: &str) -> Result<(u64, String), String> {
    let wrong = || format!("`{text}` is no member, allowed is N=HOST:PORT, as in 1=10.0.0.1:7441");
    let (node, peer) = text.split_once('=').ok_or_else(wrong)?;
    let node = node.parse().map_err(|_| wrong())?;
    if peer.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(wrong());
    }
    Ok((node, peer.to_owned()))
}

impl ClusterCommand {
    pub(super) fn run(self) -> ExitCode {
        match self.action {
            Action::Init(Init { members, ask }) => {
                let members: Map<String, Value> = members
                    .into_iter()
                    .map(|(node, peer)| (node.to_string(), Value::String(peer)))
                    .collect();
                ask.post("/v1/cluster/init", &json!({ "members": members }), |answer| {
                    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
                    format!("cluster {} has begun, id {}", text("cluster"), text("id"))
                })
            }
            Action::Status(Ask { node, .. }) => status(&node),
            Action::Add(add) => add.run(),
            Action::Remove(Remove { node, ask }) => {
                ask.post("/v1/cluster/remove", &json!({ "node": node }), |_| {
                    format!(
                        "node {node} is no member any more; stop it, and never use its number again"
                    )
                })
            }
            Action::Transfer(Transfer { node, ask }) => {
                ask.post("/v1/cluster/transfer", &json!({ "node": node }), |answer| {
                    format!("the leader is node {}", answer["leader"])
                })
            }
            Action::Snapshot(ask) => {
                ask.post("/v1/cluster/snapshot", &json!({}), |_| "a snapshot is taken".to_owned())
            }
        }
    }
}

impl Add {
    fn run(self) -> ExitCode {
        let Self { member: (node, peer), timeout, ask } = self;
        let body = json!({ "node": node, "peer": peer });
        if let Err(unanswered) = ask.post_for("/v1/cluster/add", &body) {
            return unanswered.tell(&ask.node);
        }
        let began = Instant::now();
        let bar = (!ask.node.json && std::io::stderr().is_terminal()).then(|| spinner(node));
        let outcome = loop {
            let answer = match ask.post_for("/v1/cluster/promote", &json!({ "node": node })) {
                Ok(answer) => answer,
                Err(unanswered) => {
                    let _ = unanswered.tell(&ask.node);
                    break Err("no answer".to_owned());
                }
            };
            let value: Value = serde_json::from_str(&answer).unwrap_or_default();
            if value["role"] == "voter" {
                break Ok(answer);
            }
            let (lag, lag_max) = (value["lag"].as_u64(), value["lag_max"].as_u64());
            let far = match (lag, lag_max) {
                (Some(lag), Some(max)) => format!("{lag} entries behind, {max} are allowed"),
                _ => "it does not answer".to_owned(),
            };
            if let Some(bar) = &bar {
                bar.set_message(far.clone());
                bar.tick();
            }
            if began.elapsed() >= Duration::from_secs(timeout) {
                break Err(far);
            }
            std::thread::sleep(ASK_EVERY);
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        match outcome {
            Ok(answer) if ask.node.json => say(&answer),
            Ok(_) => say(&format!("node {node} is a member and votes")),
            Err(far) => fail(&format!(
                "node {node} learns and has no vote ({far}); it goes on without this command: the \
                 same one again gives it a vote once it has caught up, `tollkeeper cluster remove \
                 {node}` takes it back"
            )),
        }
    }
}

/// Shows how far a node is, where people look.
fn spinner(node: u64) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} · {elapsed}") {
        bar.set_style(style);
    }
    bar.set_prefix(format!("node {node} catches up (^C leaves it to learn)"));
    bar
}

impl Ask {
    fn post_for(&self, path: &str, body: &Value) -> Result<String, Unanswered> {
        self.node.post_within(path, body, Some(&self.key), TIME_MAX)
    }

    fn post(&self, path: &str, body: &Value, text: impl FnOnce(&Value) -> String) -> ExitCode {
        let answer = match self.post_for(path, body) {
            Ok(answer) => answer,
            Err(unanswered) => return unanswered.tell(&self.node),
        };
        if self.node.json {
            return say(&answer);
        }
        match serde_json::from_str(&answer) {
            Ok(value) => say(&text(&value)),
            Err(_) => fail("the node's answer is no JSON"),
        }
    }
}

fn say(text: &str) -> ExitCode {
    // A closed pipe is no failure of ours.
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    ExitCode::SUCCESS
}

fn status(node: &Node) -> ExitCode {
    let answer = match node.get("/v1/cluster") {
        Ok(answer) => answer,
        Err(unanswered) => return unanswered.tell(node),
    };
    if node.json {
        return say(&answer);
    }
    let Ok(value) = serde_json::from_str::<Value>(&answer) else {
        return fail("the node's answer is no JSON");
    };
    say(&as_text(&value, node.admin))
}

/// The cluster as a table, one node a line.
fn as_text(value: &Value, admin: SocketAddr) -> String {
    if value["state"] == "waiting" {
        return format!("node {} at {admin} waits to join a cluster", value["node"]);
    }
    let mut out = format!(
        "node {} is {} · leader {} · term {} · applied {} · policy {}\n",
        value["node"],
        value["state"].as_str().unwrap_or_default(),
        value["leader"],
        value["term"],
        value["applied"],
        value["policy"].as_str().unwrap_or_default(),
    );
    out.push_str("node  role     peer                   applied       lag  clock ms  state hash\n");
    for node in value["nodes"].as_array().into_iter().flatten() {
        let text = |field: &str| match &node[field] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let hash = match &node["state_hash"] {
            Value::String(hash) => format!("{hash} at {}", node["state_hash_at"]),
            _ => "-".to_owned(),
        };
        let clock =
            node["clock_offset_ms"].as_f64().map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        out.push_str(&format!(
            "{:<5} {:<8} {:<20} {:>9} {:>9} {:>9}  {hash}{}\n",
            text("node"),
            text("role"),
            text("peer"),
            text("applied"),
            text("lag"),
            clock,
            if node["reachable"] == false { "  unreachable" } else { "" },
        ));
    }
    if value["diverged"] == true {
        out.push_str("two nodes have different tables at one index: see their logs\n");
    }
    out
}
