//! `tollkeeper explain` and `usage`: why a request is decided as it is, and what a subject has
//! used. Neither charges anything.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::doors::admin::{ExplainReport, LimitState, UsageReport};

use super::asked::{Attribute, Costs, Target};
use super::change::pairs;
use super::fail;
use super::http::Node;
use super::text::{duration, table};

/// Says of each limit whether it applies to a request and why not, by which key, how it stands,
/// which one binds and when it frees.
///
/// Charges nothing. Exits 0 if the request would be allowed, 1 if denied, 2 on an error or if no
/// decision could be had.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper explain media \"POST /v1/images\" team=t1
  tollkeeper explain vault \"POST /upload/file\" account=a7 tier=free auth=api_key --json")]
pub(super) struct Explain {
    /// API, as the node's policy names it
    api: String,
    /// A request as \"POST /v1/images\" (a path alone is a GET), or the name of a class
    #[arg(value_name = "\"METHOD PATH\"|CLASS")]
    target: Target,
    /// What else the request says of itself
    #[arg(value_name = "NAME=VALUE")]
    attributes: Vec<Attribute>,
    #[command(flatten)]
    costs: Costs,
    #[command(flatten)]
    node: Node,
}

/// Says what one subject has used of every limit of an API: used, left, when it is back, what
/// overrides it.
///
/// A limit whose key holds the request's method, path or a segment of it has as many counters as
/// there are such values, and the table knows keys only as hashes: add `method=GET path=/v1/x` to
/// see the counter of these, else the limit is listed with what it needs. Charges nothing. Exits 0,
/// or 2 on an error.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper usage media team=t1
  tollkeeper usage studio api_key=k1 --json
  tollkeeper usage shop user=u method=GET path=/orders/7")]
pub(super) struct Usage {
    /// API, as the node's policy names it
    api: String,
    /// What its requests say of themselves; also `method` and `path`
    #[arg(value_name = "NAME=VALUE")]
    attributes: Vec<Attribute>,
    #[command(flatten)]
    node: Node,
}

/// Exit code of a request that would be denied.
const DENIED: u8 = 1;

/// Exit code if there is no decision.
const UNDECIDED: u8 = 2;

fn object(attributes: &[Attribute]) -> Result<Map<String, Value>, String> {
    let mut all = Map::new();
    for Attribute { name, value } in attributes {
        if all.insert(name.clone(), json!(value)).is_some() {
            return Err(format!("attribute `{name}` is given twice"));
        }
    }
    Ok(all)
}

/// Asks a node and prints its report, in `words` or as it came.
fn show<R>(
    node: &Node,
    path: &str,
    body: &Value,
    read: impl FnOnce(&str) -> serde_json::Result<R>,
    words: impl FnOnce(&R) -> String,
) -> Result<R, ExitCode> {
    let answer = node.post(path, body, None).map_err(|error| error.tell(node))?;
    let report = read(&answer)
        .map_err(|error| fail(&format!("{}: its answer is none: {error}", node.admin)))?;
    let text = if node.json { answer } else { words(&report) };
    let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
    Ok(report)
}

impl Explain {
    pub(super) fn run(self) -> ExitCode {
        let attributes = match object(&self.attributes) {
            Ok(attributes) => attributes,
            Err(error) => return fail(&error),
        };
        let mut body = json!({ "api": self.api, "attributes": attributes });
        match &self.target {
            Target::Route { method, path } => {
                body["method"] = json!(method);
                body["path"] = json!(path);
            }
            Target::Class(class) => body["class"] = json!(class),
        }
        let costs = self.costs.as_object();
        if !costs.is_empty() {
            body["costs"] = costs.into();
        }
        match show(
            &self.node,
            "/v1/explain",
            &body,
            |answer| serde_json::from_str(answer),
            explained,
        ) {
            Ok(report) => match report.decision.as_deref() {
                Some("allow") => ExitCode::SUCCESS,
                Some(_) => ExitCode::from(DENIED),
                None => ExitCode::from(UNDECIDED),
            },
            Err(code) => code,
        }
    }
}

impl Usage {
    pub(super) fn run(self) -> ExitCode {
        let mut attributes = match object(&self.attributes) {
            Ok(attributes) => attributes,
            Err(error) => return fail(&error),
        };
        let mut body = json!({ "api": self.api });
        for field in ["method", "path"] {
            if let Some(value) = attributes.remove(field) {
                body[field] = value;
            }
        }
        body["attributes"] = attributes.into();
        match show(&self.node, "/v1/usage", &body, |answer| serde_json::from_str(answer), used) {
            Ok(_) => ExitCode::SUCCESS,
            Err(code) => code,
        }
    }
}

/// `tier pro · account a7`, behind what comes first.
fn head(first: String, tier: Option<&str>, account: Option<&str>) -> String {
    let mut line = first;
    for (what, value) in [("account", account), ("tier", tier)] {
        if let Some(value) = value {
            line.push_str(&format!(" · {what} {value}"));
        }
    }
    line
}

fn explained(report: &ExplainReport) -> String {
    let decision = report.decision.as_deref().unwrap_or("no decision");
    let first = match (&report.rule, report.limits.iter().find(|limit| limit.binds)) {
        (Some(rule), _) => format!("{decision} by rule {rule}"),
        (None, Some(binding)) => format!("{decision} {}", binding.limit),
        (None, None) => decision.to_owned(),
    };
    let mut text = head(first, report.tier.as_deref(), report.account.as_deref());
    let mut rows =
        vec![["", "limit", "kind", "key", "used", "of", "left", "frees", "why"].map(str::to_owned)];
    rows.extend(report.limits.iter().map(|limit| {
        let mark = if limit.binds { ">" } else { "" };
        let mut why = limit.why.clone();
        if limit.fits == Some(false) {
            let frees = match (limit.retry.as_deref(), limit.retry_after_ns) {
                (Some("after"), Some(nanos)) => format!("fits in {}", duration(nanos)),
                (Some("on_others"), _) => "when others give back".to_owned(),
                _ => "never fits at this cost".to_owned(),
            };
            why = format!("{why}, denies: {frees}");
        }
        let [name, kind, key, used, of, left, frees] = row(limit, &mut why);
        [mark.to_owned(), name, kind, key, used, of, left, frees, why]
    }));
    text.push('\n');
    text.push_str(&table(&rows, &[4, 5, 6]));
    text
}

fn used(report: &UsageReport) -> String {
    let mut text = head(report.api.clone(), report.tier.as_deref(), report.account.as_deref());
    if report.limits.is_empty() {
        text.push_str(" · no limit applies");
        return text;
    }
    let mut rows =
        vec![["limit", "kind", "key", "used", "of", "left", "resets", ""].map(str::to_owned)];
    rows.extend(report.limits.iter().map(|limit| {
        let mut why = if limit.applies { String::new() } else { limit.why.clone() };
        let [name, kind, key, used, of, left, frees] = row(limit, &mut why);
        [name, kind, key, used, of, left, frees, why]
    }));
    text.push('\n');
    text.push_str(&table(&rows, &[3, 4, 5]));
    text
}

/// What both show of a limit; what is out of the ordinary goes to `why`.
fn row(limit: &LimitState, why: &mut String) -> [String; 7] {
    let mut notes: Vec<String> = Vec::new();
    if limit.mode == "shadow" {
        notes.push("shadow".to_owned());
    }
    notes.extend(limit.overridden.as_ref().map(|of| format!("override: {of}")));
    if !notes.is_empty() {
        let gap = if why.is_empty() { "" } else { " · " };
        why.push_str(&format!("{gap}{}", notes.join(" · ")));
    }
    let number = |units: Option<u64>| units.map_or("-".to_owned(), |units| units.to_string());
    let key = pairs(&limit.key);
    let unlimited = limit.cost.is_some() || limit.used.is_some();
    [
        limit.limit.clone(),
        limit.kind.clone(),
        if key.is_empty() { "-".to_owned() } else { key },
        number(limit.used),
        match limit.of {
            None if unlimited => "unlimited".to_owned(),
            of => number(of),
        },
        number(limit.remaining),
        match limit.full_ns {
            Some(nanos @ 1..) if limit.used != Some(0) => duration(nanos),
            _ => "-".to_owned(),
        },
    ]
}
