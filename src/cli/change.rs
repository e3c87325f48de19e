//! `tollkeeper override` and `identity`: what differs from the policy, over the admin door.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::doors::admin::{IdentityReport, OverrideReport};

use super::asked::Attribute;
use super::fail;
use super::http::{Key, Node};
use super::text::table;

/// Limits that differ from the policy for some keys, or for all, until a date.
#[derive(Args)]
pub(super) struct OverrideCommand {
    #[command(subcommand)]
    action: OverrideAction,
}

#[derive(Subcommand)]
enum OverrideAction {
    /// Give a key other numbers, or take a limit out of force
    ///
    /// The next check goes by it. It takes the place of what was set for the same limit and key.
    /// Kept in memory: a node that starts anew has none. Exits 0 if set, else 2.
    #[command(after_help = "Examples:
  tollkeeper override set media.images_post team=t9 \"600/min burst 1200\" --until 2027-01-01
  tollkeeper override set media.read team=t9 shadow --for 1h --reason \"a loop on their side\"
  tollkeeper override set media.images_post '*' off --for 1h --reason \"incident 7\"
  tollkeeper override set 'media.*' '*' off --for 10min")]
    Set(Set),
    /// List overrides: for whom, what, until when, by whom and why
    List(Node),
    /// Clear an override: the policy's numbers hold again at the next check
    #[command(after_help = "Examples:
  tollkeeper override clear media.images_post team=t9
  tollkeeper override clear media.images_post '*'")]
    Clear(Clear),
}

#[derive(Args)]
struct Set {
    /// A limit or one window of it, as API.LIMIT or API.LIMIT.WINDOW; API.* is all of the API
    limit: String,
    /// For whom, a value for each part of the limit's `per`, or '*' for everybody; then its quota
    /// as a policy writes it, or one of off, shadow, enforce, unlimited
    #[arg(value_name = "NAME=VALUE|'*' ... QUOTA|MODE", required = true, num_args = 2..)]
    words: Vec<String>,
    /// When it ends: a day or a moment, as in 2027-01-01 or 2027-01-01T12:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "span")]
    until: Option<String>,
    /// How long it holds, as in 90s, 1h or 2day
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<String>,
    /// Why, for whoever lists it
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    node: Node,
}

#[derive(Args)]
struct Clear {
    /// The limit, as it was set
    limit: String,
    /// For whom, as it was set
    #[arg(value_name = "NAME=VALUE|'*'", required = true)]
    words: Vec<String>,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    node: Node,
}

#[derive(Args)]
struct By {
    /// Who you are, for whoever lists it
    #[arg(
        long = "by",
        value_name = "NAME",
        env = "USER",
        default_value = "",
        hide_env_values = true
    )]
    who: String,
}

/// Whose the API keys and sessions are that requests bring, and their tier.
#[derive(Args)]
pub(super) struct IdentityCommand {
    #[command(subcommand)]
    action: IdentityAction,
}

#[derive(Subcommand)]
enum IdentityAction {
    /// Note whose an identity is, and of which tier; the next check goes by it
    ///
    /// Kept in memory: a node that starts anew has none. Exits 0 if noted, else 2.
    #[command(after_help = "Examples:
  tollkeeper identity put api_key=k1 account=a7 tier=pro
  tollkeeper identity put studio session=s1 account=a7")]
    Put(Identity),
    /// Say whose an identity is; exits 1 if it is not on record
    Get(Identity),
    /// List identities
    List(List),
    /// Forget an identity; exits 1 if it was not on record
    Remove(Identity),
}

#[derive(Args)]
struct Identity {
    /// The API, where several take the attribute for accounts; then the identity as name=value, and
    /// for `put` account=… and perhaps tier=…
    #[arg(value_name = "[API] NAME=VALUE", required = true)]
    words: Vec<String>,
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    node: Node,
}

#[derive(Args)]
struct List {
    /// Only those of this API
    api: Option<String>,
    #[command(flatten)]
    node: Node,
}

/// Exit code if there is nothing.
const ABSENT: u8 = 1;

/// Words that say whether a limit is in force.
const MODES: [&str; 3] = ["off", "shadow", "enforce"];

impl OverrideCommand {
    pub(super) fn run(self) -> ExitCode {
        match self.action {
            OverrideAction::Set(set) => set.run(),
            OverrideAction::List(node) => list_overrides(&node),
            OverrideAction::Clear(clear) => clear.run(),
        }
    }
}

/// API and limit of `API.LIMIT`.
fn split(limit: &str) -> Result<(&str, &str), String> {
    let parts = limit.split_once('.').filter(|(api, limit)| !api.is_empty() && !limit.is_empty());
    parts.ok_or_else(|| format!("`{limit}` names no limit; write API.LIMIT, as in media.read"))
}

/// A key as JSON: `"*"`, or an object.
fn key_of(words: &[String]) -> Result<Value, String> {
    if words.len() == 1 && words[0] == "*" {
        return Ok(json!("*"));
    }
    let mut key = Map::new();
    for word in words {
        let Attribute { name, value } =
            word.parse().map_err(|error| format!("`{word}`: {error}, or '*' alone"))?;
        if key.insert(name.clone(), Value::String(value)).is_some() {
            return Err(format!("`{name}` is given twice"));
        }
    }
    if key.is_empty() { Err("for whom? name=value, or '*'".to_owned()) } else { Ok(key.into()) }
}

impl Set {
    fn body(&self) -> Result<Value, String> {
        let (api, limit) = split(&self.limit)?;
        let Some((what, whom)) = self.words.split_last() else { return Err("no quota".into()) };
        let is_mode = MODES.contains(&what.as_str());
        Ok(json!({
            "api": api,
            "limit": limit,
            "key": key_of(whom)?,
            "quota": (!is_mode).then_some(what),
            "mode": is_mode.then_some(what),
            "until": self.until,
            "for": self.span,
            "who": self.by.who,
            "reason": self.reason,
        }))
    }

    fn run(self) -> ExitCode {
        let body = match self.body() {
            Ok(body) => body,
            Err(error) => return fail(&error),
        };
        match self.node.post("/v1/overrides", &body, Some(&self.key)) {
            Ok(answer) if self.node.json => say(&answer),
            Ok(_) => say("set"),
            Err(error) => error.tell(&self.node),
        }
    }
}

impl Clear {
    fn run(self) -> ExitCode {
        let body = split(&self.limit).and_then(|(api, limit)| {
            let key = key_of(&self.words)?;
            Ok(json!({ "api": api, "limit": limit, "key": key, "who": self.by.who }))
        });
        let body = match body {
            Ok(body) => body,
            Err(error) => return fail(&error),
        };
        let answer = match self.node.post("/v1/overrides/clear", &body, Some(&self.key)) {
            Ok(answer) => answer,
            Err(error) => return error.tell(&self.node),
        };
        let cleared = read(&answer)["cleared"] == json!(true);
        let told = if cleared { "cleared" } else { "there is no such override" };
        say(if self.node.json { &answer } else { told });
        if cleared { ExitCode::SUCCESS } else { ExitCode::from(ABSENT) }
    }
}

fn list_overrides(node: &Node) -> ExitCode {
    let answer = match node.get("/v1/overrides") {
        Ok(answer) => answer,
        Err(error) => return error.tell(node),
    };
    if node.json {
        return say(&answer);
    }
    let list = read(&answer)["overrides"].take();
    let Ok(list) = serde_json::from_value::<Vec<OverrideReport>>(list) else {
        return fail(&format!("{}: its answer is no list of overrides", node.admin));
    };
    if list.is_empty() {
        return say("no overrides");
    }
    let mut rows = vec![["limit", "for", "is", "until", "set", "by", "why"].map(str::to_owned)];
    rows.extend(list.iter().map(override_row));
    say(&table(&rows, &[]))
}

fn override_row(of: &OverrideReport) -> [String; 7] {
    let key = of.key.as_ref().map_or("*".to_owned(), pairs);
    let is: Vec<&str> = of.quota.iter().chain(&of.mode).map(String::as_str).collect();
    let mut why = of.reason.clone();
    if let Some(problem) = &of.problem {
        why = format!("{why} (not in force: {problem})");
    }
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        format!("{}.{}", of.api, of.limit),
        key,
        is.join(" "),
        of.until.clone().unwrap_or_else(|| "cleared".to_owned()),
        of.set_at.clone(),
        dash(&of.who),
        dash(why.trim()),
    ]
}

/// `name=value` for each.
pub(super) fn pairs(key: &Map<String, Value>) -> String {
    let pair =
        |(name, value): (&String, &Value)| format!("{name}={}", value.as_str().unwrap_or("?"));
    key.iter().map(pair).collect::<Vec<_>>().join(" ")
}

impl IdentityCommand {
    pub(super) fn run(self) -> ExitCode {
        match self.action {
            IdentityAction::Put(identity) => identity.put(),
            IdentityAction::Get(identity) => identity.get(),
            IdentityAction::List(list) => list.run(),
            IdentityAction::Remove(identity) => identity.remove(),
        }
    }
}

impl Identity {
    fn body(&self, with_account: bool) -> Result<Map<String, Value>, String> {
        let mut body = Map::new();
        let mut words = self.words.as_slice();
        if let [api, rest @ ..] = words
            && !api.contains('=')
        {
            body.insert("api".into(), json!(api));
            words = rest;
        }
        for word in words {
            let Attribute { name, value } =
                word.parse().map_err(|error| format!("`{word}`: {error}"))?;
            if with_account && (name == "account" || name == "tier") {
                body.insert(name, Value::String(value));
            } else if body.contains_key("attribute") {
                return Err(format!("`{word}` is one identity more; they come one by one"));
            } else {
                body.insert("attribute".into(), Value::String(name));
                body.insert("value".into(), Value::String(value));
            }
        }
        match body.contains_key("attribute") {
            true => Ok(body),
            false => Err("which identity? name=value, as in api_key=k1".to_owned()),
        }
    }

    fn send(&self, path: &str, with_account: bool) -> Result<(String, Value), ExitCode> {
        let body = self.body(with_account).map_err(|error| fail(&error))?;
        let answer = self.node.post(path, &body.into(), Some(&self.key));
        let answer = answer.map_err(|error| error.tell(&self.node))?;
        let value = read(&answer);
        Ok((answer, value))
    }

    fn put(self) -> ExitCode {
        let (answer, value) = match self.send("/v1/identities", true) {
            Ok(answer) => answer,
            Err(code) => return code,
        };
        let api = value["api"].as_str().unwrap_or("?");
        let told = match value["before"].get("account").and_then(Value::as_str) {
            Some(before) => format!("noted in {api}, in place of account {before}"),
            None => format!("noted in {api}"),
        };
        say(if self.node.json { &answer } else { &told })
    }

    fn remove(self) -> ExitCode {
        let (answer, value) = match self.send("/v1/identities/remove", false) {
            Ok(answer) => answer,
            Err(code) => return code,
        };
        let removed = !value["removed"].is_null();
        let told = if removed { "removed" } else { "it was not on record" };
        say(if self.node.json { &answer } else { told });
        if removed { ExitCode::SUCCESS } else { ExitCode::from(ABSENT) }
    }

    fn get(self) -> ExitCode {
        let body = match self.body(false) {
            Ok(body) => body,
            Err(error) => return fail(&error),
        };
        let query = body
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", escaped(value.as_str()?))));
        let query = query.collect::<Vec<_>>().join("&");
        list_identities(&self.node, &format!("/v1/identities?{query}"))
    }
}

impl List {
    fn run(self) -> ExitCode {
        let query = self.api.map_or(String::new(), |api| format!("?api={}", escaped(&api)));
        match list_identities(&self.node, &format!("/v1/identities{query}")) {
            // A list that is empty is a list.
            code if code == ExitCode::from(ABSENT) => ExitCode::SUCCESS,
            code => code,
        }
    }
}

fn list_identities(node: &Node, path: &str) -> ExitCode {
    let answer = match node.get(path) {
        Ok(answer) => answer,
        Err(error) => return error.tell(node),
    };
    let mut value = read(&answer);
    let Ok(list) = serde_json::from_value::<Vec<IdentityReport>>(value["identities"].take()) else {
        return fail(&format!("{}: its answer is no list of identities", node.admin));
    };
    let code = if list.is_empty() { ExitCode::from(ABSENT) } else { ExitCode::SUCCESS };
    if node.json {
        say(&answer);
        return code;
    }
    if list.is_empty() {
        say("none on record");
        return code;
    }
    let mut rows = vec![["api", "identity", "account", "tier"].map(str::to_owned)];
    rows.extend(list.iter().map(|of| {
        let identity = format!("{}={}", of.attribute, of.value);
        let tier = of.tier.clone().unwrap_or_else(|| "-".to_owned());
        [of.api.clone(), identity, of.account.clone(), tier]
    }));
    let mut text = table(&rows, &[]);
    let all = value["all"].as_u64().unwrap_or_default();
    if all > list.len() as u64 {
        text.push_str(&format!("… {all} in all"));
    }
    say(&text);
    code
}

/// As a query's value: what is not plain is written `%XX`.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

fn read(answer: &str) -> Value {
    serde_json::from_str(answer).unwrap_or_default()
}

fn say(text: &str) -> ExitCode {
    // Whoever closed the pipe does not want to know.
    let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
    ExitCode::SUCCESS
}
