//! `tollkeeper policy`: what can be said of a policy without a server.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::doors::report::version_text;
use crate::engine::key::Seed;
use crate::node;
use crate::policy::{self, Failure, Fate, LoadErrors, Policy, Source, TestOutcome, TestReport};

use super::http::{Key, Node};
use super::{FAILED, fail};

/// Exit code if any test failed.
const TESTS_FAILED: u8 = 1;

/// Checks and tests policy files, without a server.
#[derive(Args)]
pub(super) struct PolicyCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Compile a policy and say what is in it, or where it is wrong
    ///
    /// Prints one line for each API. Errors are shown with file, line and column, the line and a
    /// caret. Exits 0 if all is well, else 2.
    #[command(after_help = "Examples:
  tollkeeper policy check
  tollkeeper policy check media.toml
  tollkeeper policy check policies/ --json")]
    Check(Sources),
    /// Run the [[test]] blocks of a policy
    ///
    /// Each test runs on simulated time, against the engine that the server runs, from an empty
    /// table. The numbers in the last line count compared values. Exits 0 if all are as expected,
    /// 1 if some are not, 2 if a policy has errors.
    #[command(after_help = "Examples:
  tollkeeper policy test
  tollkeeper policy test media.toml
  tollkeeper policy test policies/ --json")]
    Test(Sources),
    /// Say what a policy resolved to: tiers, rules, limits with their numbers, handles
    #[command(after_help = "Examples:
  tollkeeper policy show
  tollkeeper policy show policies/")]
    Show {
        /// A policy, a file or a directory [default: the built-in example]
        #[arg(value_name = "FILE|DIR")]
        path: Option<PathBuf>,
    },
    /// Say which counters keep their usage if one policy takes the place of another
    ///
    /// Prints one line for each limit and window: whether its counters survive, and what else
    /// changes about it, or why they restart. Exits 0, or 2 if a policy has errors.
    #[command(after_help = "Examples:
  tollkeeper policy diff old.toml new.toml
  tollkeeper policy diff old/ new/ --json")]
    Diff {
        /// The policy in force, a file or a directory
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// The one that is to take its place
        #[arg(value_name = "NEW")]
        new: PathBuf,
        /// JSON instead of text: one object a line
        #[arg(long)]
        json: bool,
    },
    /// Turn the rules of another rate limiter into a policy
    Import {
        #[command(subcommand)]
        from: From,
    },
    /// Put a policy in force at all nodes of a cluster, at one moment
    ///
    /// Compiles it here first. (A node that decides by itself reads its policy anew when the files
    /// change, or on SIGHUP.) Exits 0 once it is in force, else 2.
    #[command(after_help = "Examples:
  tollkeeper policy apply media.toml --admin 127.0.0.1:7442")]
    Apply {
        /// The policy, a file or a directory
        #[arg(value_name = "FILE|DIR")]
        path: PathBuf,
        #[command(flatten)]
        node: Node,
        #[command(flatten)]
        key: Key,
    },
}

#[derive(Subcommand)]
enum From {
    /// Of envoyproxy/ratelimit, from the YAML of one domain
    ///
    /// Prints the policy, and on stderr what of the file has no equal or means something else,
    /// line by line. Exits 0, or 2 if the file is wrong.
    #[command(after_help = "Examples:
  tollkeeper policy import envoy ratelimit.yaml > policy.toml")]
    Envoy {
        /// The rules
        #[arg(value_name = "FILE")]
        path: PathBuf,
    },
}

#[derive(Args)]
struct Sources {
    /// Policies, each a file or a directory whose *.toml files make one policy [default: the
    /// built-in example]
    #[arg(value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// JSON instead of text: `check` one object a policy and line, `test` one object in all
    #[arg(long)]
    json: bool,
}

impl PolicyCommand {
    pub(super) fn run(self) -> ExitCode {
        match self.action {
            Action::Check(sources) => sources.check(),
            Action::Test(sources) => sources.test(),
            Action::Show { path } => show(path),
            Action::Diff { old, new, json } => diff(&old, &new, json),
            Action::Import { from: From::Envoy { path } } => import_envoy(&path),
            Action::Apply { path, node, key } => apply(&path, &node, &key),
        }
    }
}

/// Why there is no policy.
enum Unloaded {
    Unread(String),
    Wrong(LoadErrors),
}

impl Unloaded {
    /// Shows it to people.
    fn tell(&self) {
        match self {
            Self::Unread(message) => {
                fail(message);
            }
            Self::Wrong(errors) => {
                let mut stderr = io::stderr().lock();
                let shown = match stderr.is_terminal() {
                    true => errors.render_colored(),
                    false => errors.render_plain(),
                };
                let _ = write!(stderr, "{shown}");
            }
        }
    }

    fn as_json(&self) -> Vec<Value> {
        match self {
            Self::Unread(message) => vec![json!({
                "file": null, "line": null, "column": null, "code": null, "message": message,
                "help": null,
            })],
            Self::Wrong(errors) => errors
                .iter()
                .map(|error| {
                    json!({
                        "file": error.source,
                        "line": error.line,
                        "column": error.column,
                        "code": error.code.name(),
                        "message": error.message,
                        "help": error.help,
                    })
                })
                .collect(),
        }
    }
}

impl Sources {
    /// Each policy with what it is called.
    fn load(&self) -> Vec<(String, Result<Policy, Unloaded>)> {
        if self.paths.is_empty() {
            let policy = compile(&[policy::BUILT_IN]);
            return vec![(format!("built-in example \"{}\"", policy::BUILT_IN.name), policy)];
        }
        self.paths.iter().map(|path| (path.display().to_string(), load(path))).collect()
    }

    fn check(&self) -> ExitCode {
        let mut code = ExitCode::SUCCESS;
        for (name, policy) in self.load() {
            let line = match (&policy, self.json) {
                (Ok(policy), true) => format!("{}\n", describe(&name, policy)),
                (Err(unloaded), true) => {
                    let errors = unloaded.as_json();
                    let wrong =
                        json!({ "policy": name, "version": null, "apis": [], "errors": errors });
                    format!("{wrong}\n")
                }
                (Ok(policy), false) if self.paths.len() > 1 => {
                    let summary = policy.summary();
                    summary.lines().map(|line| format!("{name}: {line}\n")).collect()
                }
                (Ok(policy), false) => policy.summary(),
                (Err(unloaded), false) => {
                    unloaded.tell();
                    String::new()
                }
            };
            if policy.is_err() {
                code = ExitCode::from(FAILED);
            }
            print(&line);
        }
        code
    }

    fn test(&self) -> ExitCode {
        let mut report = TestReport::default();
        let mut errors = Vec::new();
        for (_, policy) in self.load() {
            match policy {
                Ok(policy) => report.tests.extend(policy.run_tests().tests),
                Err(unloaded) => {
                    if !self.json {
                        unloaded.tell();
                    }
                    errors.extend(unloaded.as_json());
                }
            }
        }
        let (passed, failed) = (report.passed(), report.failed());
        if self.json {
            let tests: Vec<Value> = report.tests.iter().map(outcome_as_json).collect();
            let all =
                json!({ "passed": passed, "failed": failed, "tests": tests, "errors": errors });
            print(&format!("{all}\n"));
        } else {
            print(&policy::render_report(&report));
        }
        match (errors.is_empty(), failed) {
            (false, _) => ExitCode::from(FAILED),
            (true, 0) => ExitCode::SUCCESS,
            (true, _) => ExitCode::from(TESTS_FAILED),
        }
    }
}

fn show(path: Option<PathBuf>) -> ExitCode {
    let policy = match path {
        Some(path) => load(&path),
        None => compile(&[policy::BUILT_IN]),
    };
    match policy {
        Ok(policy) => {
            print(&policy.show());
            ExitCode::SUCCESS
        }
        Err(unloaded) => {
            unloaded.tell();
            ExitCode::from(FAILED)
        }
    }
}

fn diff(old: &Path, new: &Path, json: bool) -> ExitCode {
    let (old, new) = match (load(old), load(new)) {
        (Ok(old), Ok(new)) => (old, new),
        (old, new) => {
            for unloaded in [old.err(), new.err()].into_iter().flatten() {
                unloaded.tell();
            }
            return ExitCode::from(FAILED);
        }
    };
    for change in policy::diff(&old, &new) {
        let line = if json { change_as_json(&change).to_string() } else { change.to_string() };
        print(&format!("{line}\n"));
    }
    ExitCode::SUCCESS
}

fn change_as_json(change: &policy::Change) -> Value {
    let policy::Change { api, limit, window, fate } = change;
    let (what, changed, why) = match fate {
        Fate::Survive { changed } => ("survive", changed.clone(), None),
        Fate::Restart { why } => ("restart", Vec::new(), Some(why)),
        Fate::Begin => ("begin", Vec::new(), None),
        Fate::End => ("end", Vec::new(), None),
    };
    let window = Some(window).filter(|window| !window.is_empty());
    json!({
        "api": api, "limit": limit, "window": window, "counters": what,
        "changed": changed, "why": why,
    })
}

fn load(path: &Path) -> Result<Policy, Unloaded> {
    let files = node::read_policy(path).map_err(|error| {
        Unloaded::Unread(format!("cannot read policy {}: {error}", path.display()))
    })?;
    let sources: Vec<Source<'_>> = files.iter().map(|(name, text)| Source { name, text }).collect();
    compile(&sources)
}

fn import_envoy(path: &Path) -> ExitCode {
    let name = path.display();
    let text = match node::read_text(path) {
        Ok(text) => text,
        Err(error) => return fail(&format!("cannot read {name}: {error}")),
    };
    let imported = match policy::import::envoy(&text) {
        Ok(imported) => imported,
        Err(error) => return fail(&format!("{name}:{error}")),
    };
    let mut stderr = io::stderr().lock();
    for note in &imported.notes {
        let _ = writeln!(stderr, "{name}:{note}");
    }
    print(&imported.policy);
    // Names too long or too many, and the like: the policy's own errors say it best.
    match compile(&[Source { name: "the imported policy", text: &imported.policy }]) {
        Ok(_) => ExitCode::SUCCESS,
        Err(unloaded) => {
            drop(stderr);
            unloaded.tell();
            ExitCode::from(FAILED)
        }
    }
}

fn apply(path: &Path, node: &Node, key: &Key) -> ExitCode {
    if let Err(unloaded) = load(path) {
        unloaded.tell();
        return ExitCode::from(FAILED);
    }
    let files = match node::read_policy(path) {
        Ok(files) => files,
        Err(error) => return fail(&format!("cannot read policy {}: {error}", path.display())),
    };
    let files: Vec<Value> =
        files.iter().map(|(name, text)| json!({ "name": name, "text": text })).collect();
    let body = json!({ "origin": path.display().to_string(), "files": files });
    let answer = match node.post("/v1/policy", &body, Some(key)) {
        Ok(answer) => answer,
        Err(unanswered) => return unanswered.tell(node),
    };
    let version = serde_json::from_str::<Value>(&answer).unwrap_or(Value::Null);
    let text = match (node.json, version["version"].as_str()) {
        (false, Some(version)) => format!("policy {version} is in force at all nodes"),
        _ => answer,
    };
    // A closed pipe is no failure of ours.
    let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
    ExitCode::SUCCESS
}

fn compile(sources: &[Source<'_>]) -> Result<Policy, Unloaded> {
    // What a policy says and what its tests find does not depend on where keys lie.
    Policy::compile(sources, &Seed::new([0; 16])).map_err(Unloaded::Wrong)
}

fn describe(name: &str, policy: &Policy) -> Value {
    let api = |api: &str| {
        let limits = policy.limits().iter().filter(|limit| *limit.api == *api);
        let limits: Vec<Value> = limits
            .map(|limit| {
                json!({
                    "name": limit.name,
                    "window": Some(&*limit.window).filter(|window| !window.is_empty()),
                    "kind": limit.kind.name(),
                    "mode": limit.mode.name(),
                })
            })
            .collect();
        json!({
            "name": api,
            "classes": policy.classes(api).collect::<Vec<_>>(),
            "limits": limits,
            "tests": policy.tests().iter().filter(|test| test.api() == api).count(),
        })
    };
    json!({
        "policy": name,
        "version": version_text(policy.version()),
        "apis": policy.apis().map(api).collect::<Vec<_>>(),
        "errors": [],
    })
}

fn outcome_as_json(outcome: &TestOutcome) -> Value {
    let TestOutcome { name, source, line, passed, failures } = outcome;
    let failures: Vec<Value> = failures
        .iter()
        .map(|failure| {
            let Failure { line, send, time: (time, times), what, found, expected } = failure;
            json!({
                "line": line, "send": send, "time": time, "times": times, "what": what,
                "found": found, "expected": expected,
            })
        })
        .collect();
    json!({ "name": name, "file": source, "line": line, "passed": passed, "failures": failures })
}

fn print(text: &str) {
    // Whoever closed the pipe does not want to know.
    let _ = write!(io::stdout().lock(), "{text}");
}
