//! `tollkeeper snapshot`: what is in a file, and a new one now.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::config;
use crate::disk::{Damage, LimitName, Mapped, SectionKind, VERSION, Verified, name_of};

use super::http::Key;
use super::{FAILED, fail};

/// A large table on a slow disk takes its time, but the node's door gives no answer that takes longer.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Looks into a snapshot, or has one taken.
#[derive(Args)]
pub(super) struct SnapshotCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Say what is in a snapshot, and whether it is whole
    ///
    /// Verifies every byte; needs no server. Exits 0 if the file is whole, else 2, and says where
    /// it is damaged.
    #[command(after_help = "Examples:
  tollkeeper snapshot inspect data/000000000007.snap
  tollkeeper snapshot inspect data/000000000007.snap --json")]
    Inspect(Inspect),
    /// Have a running node take a snapshot
    ///
    /// Returns once it is on disk. Exits 0, or 2 if there is none.
    #[command(after_help = "Examples:
  tollkeeper snapshot now
  tollkeeper snapshot now --admin 127.0.0.1:7442 --json")]
    Now(Now),
}

#[derive(Args)]
struct Inspect {
    /// The snapshot
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Now {
    /// The node's admin address
    #[arg(long, value_name = "ADDR", env = "TOLLKEEPER_ADMIN", default_value_t = config::ADMIN)]
    admin: SocketAddr,
    /// The node's answer, a JSON object, instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: Key,
}

impl SnapshotCommand {
    pub(super) fn run(self) -> ExitCode {
        match self.action {
            Action::Inspect(inspect) => inspect.run(),
            Action::Now(now) => now.run(),
        }
    }
}

impl Inspect {
    fn run(self) -> ExitCode {
        let name = self.file.display();
        let bytes = match Mapped::open(&self.file) {
            Ok(bytes) => bytes,
            Err(error) => return fail(&format!("cannot read {name}: {error}")),
        };
        let verified = Verified::verify(bytes);
        let limits = verified.as_ref().map_err(Clone::clone).and_then(Verified::limits);
        match (verified, limits) {
            (Ok(verified), Ok(limits)) => {
                let report = report(&verified, &limits);
                let text = if self.json { report.to_string() } else { as_text(&report) };
                say(text.trim_end());
                ExitCode::SUCCESS
            }
            (Err(damage), _) | (_, Err(damage)) => {
                if self.json {
                    say(&damaged(&damage).to_string());
                }
                fail(&format!("{name} is damaged: {damage}"))
            }
        }
    }
}

fn say(text: &str) {
    // Whoever closed the pipe does not want to know.
    let _ = writeln!(io::stdout().lock(), "{text}");
}

fn damaged(damage: &Damage) -> Value {
    json!({
        "whole": false,
        "section": damage.section.map(|(number, _)| number),
        "section_kind": damage.section.map(|(_, kind)| kind.name()),
        "offset": damage.offset,
        "what": damage.what,
    })
}

fn report<B: std::ops::Deref<Target = [u8]> + Sync>(
    verified: &Verified<B>,
    limits: &[LimitName],
) -> Value {
    let outline = verified.outline();
    let (header, totals) = (outline.header, outline.totals);
    let sections = |kind| outline.sections.iter().filter(|section| section.kind == kind).count();
    let limits: Vec<Value> = limits
        .iter()
        .map(|limit| {
            json!({
                "number": limit.id.0,
                "kind": limit.kind.name(),
                "api": limit.api,
                "name": limit.name,
                "window": (!limit.window.is_empty()).then_some(&limit.window),
            })
        })
        .collect();
    json!({
        "whole": true,
        "format": VERSION,
        "number": header.number,
        "instance": name_of(header.instance),
        "time_ns": header.time.as_nanos(),
        "utc_ns": header.utc.as_nanos(),
        "wall_ns": header.wall.as_nanos(),
        "policy_version": format!("{:016x}", header.policy),
        "applied_index": header.applied.0,
        "applied_term": header.applied.1,
        "bytes": totals.bytes,
        "sections": totals.sections,
        "counters": {
            "narrow": totals.narrow,
            "wide": totals.cells,
            "sliding": totals.rings,
            "permits": totals.shares,
            "all": totals.counters(),
            "changed_meanwhile": totals.noted,
        },
        "sessions": totals.sessions,
        "windows": sections(SectionKind::Windows),
        "limits": limits,
    })
}

fn as_text(report: &Value) -> String {
    let word = |path: &str| {
        let value = report.pointer(path).unwrap_or(&Value::Null);
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    };
    let limits = report["limits"].as_array().map_or(0, Vec::len);
    let seconds = |path: &str| {
        let nanos = report.pointer(path).and_then(Value::as_u64).unwrap_or_default();
        format!("{:.3} s", nanos as f64 / 1e9)
    };
    format!(
        "snapshot   {} of instance {} · format {} · whole\n\
         taken at   {} of its own time, {} since 1970\n\
         policy     version {} · {limits} limits\n\
         counters   {} narrow, {} wide, {} sliding, {} permits; {} changed meanwhile\n\
         sessions   {}\n\
         file       {} bytes in {} sections\n",
        word("/number"),
        word("/instance"),
        word("/format"),
        seconds("/time_ns"),
        seconds("/wall_ns"),
        word("/policy_version"),
        word("/counters/narrow"),
        word("/counters/wide"),
        word("/counters/sliding"),
        word("/counters/permits"),
        word("/counters/changed_meanwhile"),
        word("/sessions"),
        word("/bytes"),
        word("/sections"),
    )
}

impl Now {
    fn run(self) -> ExitCode {
        let answer = match ask(self.admin, &self.key) {
            Ok(answer) => answer,
            Err(message) => return fail(&message),
        };
        if self.json {
            say(&answer.to_string());
        } else {
            say(&format!(
                "{} · {} counters · {} bytes · {:.2} s",
                answer["file"].as_str().unwrap_or("?"),
                answer["counters"],
                answer["bytes"],
                answer["seconds"].as_f64().unwrap_or_default(),
            ));
        }
        ExitCode::from(if answer["file"].is_string() { 0 } else { FAILED })
    }
}

fn ask(admin: SocketAddr, key: &Key) -> Result<Value, String> {
    // No proxy, whatever the environment says: the node is asked, and nobody else.
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(TIME_MAX))
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent(concat!("tollkeeper/", env!("CARGO_PKG_VERSION")))
        .build();
    let mut request = config.new_agent().post(format!("http://{admin}/v1/snapshot"));
    if let Some(authorization) = key.authorization()? {
        request = request.header("authorization", authorization);
    }
    let answer = request.header("content-type", "application/json").send("{}");
    let unreachable = |error: ureq::Error| {
        format!("cannot have {admin} take a snapshot ({error}); is `tollkeeper serve` running?")
    };
    let mut answer = answer.map_err(unreachable)?;
    let is_success = answer.status().is_success();
    let text = answer.body_mut().with_config().limit(1 << 20).read_to_string();
    let text = text.map_err(unreachable)?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|_| format!("{admin} does not answer as a node; is it the admin address?"))?;
    if is_success {
        return Ok(value);
    }
    Err(value["error"]["message"].as_str().unwrap_or("no snapshot was taken").to_owned())
}
