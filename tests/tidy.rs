//! Tests about the source itself: who may import whom, which file knows which foreign crate, where
//! time is read and `unsafe` stands, that no file is dead, and that code and `SPEC.md` print the
//! same numbers.
//!
//! They read the text and nothing else, so they also see what the compiler skips for this target
//! or feature. A finding is `file:line`, what stands there, and what to do instead. The rules are
//! the tables at the top; changing one is changing the architecture. What each check can find is
//! shown at the end, on text that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// Who may import whom. The longest place that a file lies in counts. Unit tests keep to it too;
/// `tests/` and `benches/` do not.
const ARROWS: &[Arrow] = &[
    Arrow {
        of: "src/engine",
        may: &["engine"],
        instead: "the engine decides and imports nothing of ours: hand the value in",
    },
    Arrow {
        of: "src/policy",
        may: &["policy", "engine"],
        instead: "policy is pure and imports the engine only: text and requests are handed in",
    },
    Arrow {
        of: "src/clock",
        may: &["clock", "engine", "policy"],
        instead: "a clock knows moments, which are the engine's",
    },
    Arrow {
        of: "src/config",
        may: &["config", "engine", "policy"],
        instead: "settings are values: let `node` hand them on",
    },
    Arrow {
        of: "src/metrics",
        may: &["metrics"],
        instead: "metrics gets plain values: whoever has them copies them out",
    },
    Arrow {
        of: "src/metrics/cells.rs",
        may: &["metrics::cells"],
        instead: "cells are a leaf that every shell imports: they import nothing of ours",
    },
    Arrow {
        of: "src/doors",
        may: &["doors", "engine", "policy", "clock", "metrics::cells"],
        instead: "a door asks the desk; what it needs of others is a handle that `node` gives it",
    },
    Arrow {
        // The metrics endpoint is a page of this door, so it turns counts into plain values.
        of: "src/doors/admin",
        may: &["doors", "engine", "policy", "clock", "metrics"],
        instead: "a door asks the desk; what it needs of others is a handle that `node` gives it",
    },
    Arrow {
        of: "src/disk",
        may: &["disk", "engine", "policy", "clock", "metrics::cells"],
        instead: "disk knows files: let `node` or `cluster` call it",
    },
    Arrow {
        of: "src/cluster",
        may: &["cluster", "disk", "engine", "policy", "clock", "metrics::cells"],
        instead: "what a door needs of the cluster is a handle that `node` gives it",
    },
    Arrow {
        // Commands print what the doors' JSON says, so they share its types, and no more.
        of: "src/cli",
        may: &[
            "cli",
            "node",
            "config",
            "policy",
            "engine",
            "clock",
            "doors::report",
            "doors::admin",
            // A file is inspected without a server.
            "disk",
        ],
        instead: "commands ask a server over its wire, or `node`; of the doors they know what \
                  these answer",
    },
    Arrow {
        of: "src/node.rs",
        may: &[
            "node", "config", "policy", "engine", "clock", "doors", "metrics", "disk", "cluster",
        ],
        instead: "node wires everything but the command line, which calls it",
    },
    Arrow {
        of: "src/node",
        may: &[
            "node",
            "config",
            "policy",
            "engine",
            "clock",
            "doors",
            "metrics::cells",
            "disk",
            "cluster",
        ],
        instead: "what runs beside the doors is handed to them by `node`",
    },
    Arrow {
        of: "src/main.rs",
        may: &["cli", "node"],
        instead: "main hands the arguments to `cli` and returns its exit code",
    },
    Arrow { of: "src/lib.rs", may: &[], instead: "lib.rs only declares the modules" },
    Arrow {
        of: "protocol/src",
        may: &[
            "limits", "status", "header", "framing", "permit", "request", "response", "error",
            "codec",
        ],
        instead: "the codec is bytes and values; only the client knows the client",
    },
    Arrow {
        of: "protocol/src/client",
        may: &[
            "client", "limits", "status", "header", "framing", "permit", "request", "response",
            "error", "codec",
        ],
        instead: "the client knows this crate's modules",
    },
    Arrow {
        of: "protocol/src/lib.rs",
        may: &[
            "limits", "status", "header", "framing", "permit", "request", "response", "error",
            "codec",
        ],
        instead: "lib.rs declares the modules and names the codec's main types",
    },
];

/// Folders whose sub-folders never import each other.
const APART: &[&str] = &["src/doors"];

/// Where each foreign crate is named: a foreign vocabulary has one room, and is converted by hand
/// at its door. Where it has two, the comment says why.
const CRATES: &[(&str, &[&str])] = &[
    ("annotate_snippets", &["src/policy/error.rs"]),
    ("arc_swap", &["src/doors/mod.rs"]),
    ("axum", &["src/doors/admin"]),
    // Unmaintained, so that one file is all there is to change.
    ("bincode", &["src/cluster/wire/values.rs"]),
    // Payloads that several hold at once.
    (
        "bytes",
        &[
            "protocol/src/client",
            "src/cluster",
            "src/disk/log",
            "src/node/cluster.rs",
            "src/node/cluster",
            "src/doors/envoy",
        ],
    ),
    ("clap", &["src/cli"]),
    ("crc32c", &["src/disk", "src/cluster"]),
    ("crossbeam_epoch", &["src/engine/sync.rs"]),
    // Streams, as Raft takes and gives them.
    ("futures_util", &["src/cluster"]),
    // Below a server of HTTP, which would hide what becomes of streams.
    ("h2", &["src/doors/envoy"]),
    ("hdrhistogram", &["src/cli", "src/cluster/counts.rs"]),
    // Two doors speak HTTP: one for operators, which is a web service, one for checks, which is bare.
    // The one for Envoy takes the types of heads.
    ("http_body_util", &["src/doors/http"]),
    ("hyper", &["src/doors/admin", "src/doors/http", "src/doors/envoy"]),
    ("hyper_util", &["src/doors/admin", "src/doors/http"]),
    ("indicatif", &["src/cli"]),
    ("jiff", &["src/policy/moment.rs"]),
    // The seam, and the models, which start its threads.
    ("loom", &["src/engine/sync.rs", "src/engine/table/loom.rs"]),
    ("memmap2", &["src/disk/files.rs"]),
    ("metrics", &["src/metrics/export.rs"]),
    ("metrics_exporter_prometheus", &["src/metrics/export.rs"]),
    ("openraft", &["src/cluster"]),
    ("prost", &["src/doors/envoy"]),
    // The kernel's clocks, and its random numbers and priorities, which only who wires a node asks for.
    // And files in ways that `std` does not know, and a hint about the pages of the table's memory.
    (
        "rustix",
        &[
            "src/clock/os.rs",
            "src/disk/files.rs",
            "src/engine/table/pool.rs",
            "src/node.rs",
            "src/node",
        ],
    ),
    ("saphyr_parser", &["src/policy/import/yaml.rs"]),
    // Three texts that others write or read: the config file, the doors' JSON, and body templates,
    // which must be JSON and are only looked at. And what peers say to each other.
    ("serde", &["src/config/raw.rs", "src/doors", "src/policy/template.rs", "src/cluster"]),
    // The doors' JSON, that of the commands' `--json`, and body templates as above.
    ("serde_json", &["src/doors", "src/cli", "src/policy/template.rs", "src/node/cluster"]),
    ("thiserror", &["src/node.rs", "src/cluster/entry.rs"]),
    // Whoever waits for sockets: servers, the node that starts them, and clients.
    (
        "tokio",
        &["src/doors", "src/node.rs", "src/node", "src/cli", "protocol/src/client", "src/cluster"],
    ),
    // The door that speaks it, the commands that are its clients, and the node, which asserts that
    // its defaults are the protocol's.
    ("tollkeeper_protocol", &["src/doors/binary", "src/cli", "src/node.rs"]),
    // Two texts in this format: policies, with places, and the config file, without.
    ("toml", &["src/policy/tree.rs", "src/config/raw.rs"]),
    ("tracing", &["src/node.rs", "src/node", "src/cluster"]),
    ("tracing_subscriber", &["src/cli/serve.rs"]),
    ("ureq", &["src/cli"]),
];

/// What of `std` is pure, by folder; `core` and `alloc` are, but for what [`ATOMICS`] says.
const PURE: &[(&str, &[&str])] = &[
    ("src/engine", &["std::collections"]),
    // Waiting for another thread, which a model replaces by its own.
    ("src/engine/sync.rs", &["std::collections", "std::thread::yield_now"]),
    ("src/policy", &["std::collections", "std::sync::Arc"]),
];

/// Paths of atomics: in the engine they come from `sync.rs`, so that models can replace them.
const ATOMICS: &[&str] = &["core::sync", "std::sync"];

/// Words that read a clock, and where they may stand.
const TIME: &[(&str, &[&str])] = &[
    // `cli` measures round trips for people; no decision depends on it. The client runs in other
    // programs, where it keeps its own deadlines.
    // Raft says by a clock of its own how long ago a majority answered.
    // In the simulation it names the type that Raft's runtime has of its own, whose time stands still.
    (
        "Instant",
        &[
            "src/clock/os.rs",
            "src/cli",
            "protocol/src/client",
            "src/cluster/types.rs",
            "src/cluster/sim/runtime.rs",
        ],
    ),
    ("SystemTime", &["src/clock/os.rs"]),
    ("UNIX_EPOCH", &["src/clock/os.rs"]),
    ("Zoned", &["src/clock/os.rs"]),
    ("clock_gettime", &["src/clock/os.rs"]),
];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &["src/engine/table", "src/disk"];

/// Macros that are never committed.
const BANNED_MACROS: &[&str] = &["dbg", "todo", "unimplemented"];

struct Arrow {
    of: &'static str,
    may: &'static [&'static str],
    instead: &'static str,
}

#[test]
fn imports_follow_the_arrows() {
    report(arrows(&Tree::of_the_repository()));
}

#[test]
fn engine_and_policy_touch_nothing() {
    report(pure(&Tree::of_the_repository()));
}

#[test]
fn only_one_file_reads_the_clock() {
    report(time(&Tree::of_the_repository()));
}

#[test]
fn unsafe_stands_only_where_it_may() {
    report(unsafe_code(&Tree::of_the_repository()));
}

#[test]
fn each_foreign_crate_has_its_room() {
    let manifests = [("Cargo.toml", read("Cargo.toml")), manifest("protocol/Cargo.toml")];
    report(crates(&Tree::of_the_repository(), &manifests));
}

#[test]
fn no_file_is_dead() {
    report(dead_files(&Tree::of_the_repository(), &read("Cargo.toml")));
}

#[test]
fn every_file_says_what_it_owns() {
    report(module_docs(&Tree::of_the_repository()));
}

#[test]
fn nothing_is_left_to_do() {
    report(banned_macros(&Tree::of_the_repository()));
}

#[test]
fn the_specification_prints_every_error_code() {
    report(codes(&read("protocol/src/status.rs"), &read("protocol/SPEC.md")));
}

#[test]
fn the_specification_prints_every_maximum() {
    report(maxima(&read("protocol/src/limits.rs"), &read("protocol/SPEC.md")));
}

// The checks.

fn arrows(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, named) in tree.named() {
        let Some(ours) = named.ours() else { continue };
        let folder = |arrow: &&Arrow| lies_in(&file.path, arrow.of);
        let Some(arrow) = ARROWS.iter().filter(folder).max_by_key(|arrow| arrow.of.len()) else {
            if file.is_shipped() {
                let instead = "give its folder a row in ARROWS of tests/tidy.rs";
                findings.push(file.finding(named.line, "a folder without arrows", instead));
            }
            continue;
        };
        if !arrow.may.iter().any(|may| begins_with(ours, may)) {
            let what = format!("{} names `{}`", arrow.of, ours.join("::"));
            findings.push(file.finding(named.line, what, arrow.instead));
        }
        for &apart in APART {
            let [module, room, ..] = ours else { continue };
            let rooms: BTreeSet<_> = tree.rooms(apart);
            if format!("src/{module}") != apart || !rooms.contains(room.as_str()) {
                continue;
            }
            let own_room = lies_in(&file.path, &format!("{apart}/{room}"));
            let is_inside = lies_in(&file.path, apart) && file.path != format!("{apart}/mod.rs");
            if is_inside && !own_room {
                let what = format!("a neighbour names `{}`", ours.join("::"));
                let instead = format!("move what both need up into {apart}");
                findings.push(file.finding(named.line, what, &instead));
            }
        }
    }
    findings
}

fn pure(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, named) in tree.named().filter(|(_, named)| !named.is_test) {
        let folder = |(of, _): &&(&str, _)| lies_in(&file.path, of);
        let Some((_, may)) = PURE.iter().filter(folder).max_by_key(|(of, _)| of.len()) else {
            continue;
        };
        let path = &named.path;
        let is_atomic = ATOMICS.iter().any(|atomics| begins_with(path, atomics));
        let is_allowed = may.iter().any(|may| begins_with(path, may));
        if path[0] == "std" && !is_allowed {
            let what = format!("pure code names `{}`", path.join("::"));
            let instead = "hand the value in; for the rest `core` and `alloc` suffice";
            findings.push(file.finding(named.line, what, instead));
        } else if is_atomic
            && lies_in(&file.path, "src/engine")
            && file.path != "src/engine/sync.rs"
        {
            let what = format!("the engine names `{}`", path.join("::"));
            findings.push(file.finding(named.line, what, "import it from `engine::sync`"));
        }
    }
    for file in tree.files.iter().filter(|file| PURE.iter().any(|(of, _)| lies_in(&file.path, of)))
    {
        for (place, token) in file.tokens.iter().enumerate() {
            let is_macro = file.tokens.get(place + 1).is_some_and(|next| next.text == "!");
            let prints = ["print", "println", "eprint", "eprintln"].contains(&token.text.as_str());
            let awaits = ["async", "await"].contains(&token.text.as_str());
            if token.kind == Kind::Word && !token.is_test && (awaits || (prints && is_macro)) {
                let what = format!("pure code says `{}`", token.text);
                findings.push(file.finding(token.line, what, "return a value to the shell"));
            }
        }
    }
    findings
}

fn time(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, token) in tree.words().filter(|(file, _)| file.is_shipped()) {
        let Some((word, may)) = TIME.iter().find(|(word, _)| *word == token.text) else { continue };
        if !may.iter().any(|of| lies_in(&file.path, of)) {
            let instead = "take the moment as an argument; shells ask `clock::LocalClock`";
            findings.push(file.finding(token.line, format!("`{word}` reads OS time"), instead));
        }
    }
    findings
}

fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter() {
        if UNSAFE.iter().any(|of| lies_in(&file.path, of)) {
            continue;
        }
        for (place, token) in file.tokens.iter().enumerate() {
            let lint = |token: &&Token| {
                ["allow", "expect", "warn", "deny", "forbid"].contains(&token.text.as_str())
            };
            let lint = file.tokens[..place].iter().rev().take(16).find(lint);
            let permits = lint.is_some_and(|lint| !["deny", "forbid"].contains(&&*lint.text));
            let what = match token.text.as_str() {
                "unsafe" if token.kind == Kind::Word => "`unsafe`",
                "unsafe_code" if permits => "`unsafe_code` is let in",
                _ => continue,
            };
            let instead = format!("safe code, or a safe function in {}", UNSAFE.join(" or "));
            findings.push(file.finding(token.line, what, &instead));
        }
    }
    findings
}

fn crates(tree: &Tree, manifests: &[(&str, String)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut unused: BTreeSet<(&str, &str)> =
        CRATES.iter().flat_map(|(name, of)| of.iter().map(move |of| (*name, *of))).collect();
    let mut named_in: BTreeSet<(&str, String)> = BTreeSet::new();
    for (file, named) in tree.named() {
        let (package, _) = file.path.split_once('/').unwrap_or_default();
        let manifest = if package == "protocol" { "protocol/Cargo.toml" } else { "Cargo.toml" };
        let section = if file.is_shipped() && !named.is_test { "" } else { "dev-" };
        named_in.insert((manifest, format!("{section}{}", named.path[0])));
        let Some((name, may)) = CRATES.iter().find(|(name, _)| *name == named.path[0]) else {
            continue;
        };
        if !file.is_shipped() {
            continue;
        }
        match may.iter().find(|of| lies_in(&file.path, of)) {
            Some(of) => _ = unused.remove(&(*name, *of)),
            None => {
                let what = format!("crate `{name}` is named outside its room");
                let instead = format!("convert at the door of {}", may.join(" or "));
                findings.push(file.finding(named.line, what, &instead));
            }
        }
    }
    for (name, of) in unused {
        let what = format!("CRATES lets {of} name `{name}`, which it does not");
        findings.push(Finding::new("tests/tidy.rs", 1, what, "remove the place from the row"));
    }
    for (path, text) in manifests {
        for Dependency { line, name, is_dev } in dependencies(text) {
            let dev = format!("dev-{name}");
            let is_named = named_in.contains(&(*path, name.clone()))
                || (is_dev && named_in.contains(&(*path, dev)));
            if !is_named {
                let what = format!("nothing names the dependency `{name}`");
                findings.push(Finding::new(path, line, what, "remove it"));
            }
            if !is_dev && !CRATES.iter().any(|(row, _)| *row == name) {
                let what = format!("dependency `{name}` has no room");
                let instead = "give it a row in CRATES of tests/tidy.rs";
                findings.push(Finding::new(path, line, what, instead));
            }
        }
    }
    findings
}

fn dead_files(tree: &Tree, manifest: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| !file.is_reached) {
        let instead = "declare it with `mod` where it belongs, or delete it";
        findings.push(file.finding(1, "no `mod` leads here", instead));
    }
    for file in &tree.files {
        for line in file.tokens.windows(3).filter_map(|window| {
            let [hash, bracket, word] = window else { return None };
            let is_path = hash.text == "#" && bracket.text == "[" && word.text == "path";
            is_path.then_some(word.line)
        }) {
            let instead = "name the file as its module";
            findings.push(file.finding(line, "`#[path]` hides where a module is", instead));
        }
        let bench = file.path.strip_prefix("benches/").and_then(|name| name.strip_suffix(".rs"));
        if let Some(bench) = bench
            && !bench.contains('/')
            && !manifest.lines().any(|line| line.trim() == format!("name = \"{bench}\""))
        {
            let instead = format!("add `[[bench]] name = \"{bench}\"`, or delete it");
            findings.push(file.finding(1, "Cargo.toml has no such bench", &instead));
        }
    }
    findings
}

fn module_docs(tree: &Tree) -> Vec<Finding> {
    let opens = |text: &str| text.starts_with("//! ") || text.starts_with("#![doc = include_str!(");
    let bare = tree.files.iter().filter(|file| !opens(&file.text));
    let instead = "open with `//!`: what it owns, and what it never does";
    bare.map(|file| file.finding(1, "a file without a module doc", instead)).collect()
}

fn banned_macros(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        for window in file.tokens.windows(2) {
            let [word, mark] = window else { continue };
            if mark.text == "!" && BANNED_MACROS.contains(&word.text.as_str()) {
                let what = format!("`{}!`", word.text);
                findings.push(file.finding(word.line, what, "do it, or take it out"));
            }
        }
    }
    findings
}

fn codes(status: &str, spec: &str) -> Vec<Finding> {
    const STATUS: &str = "protocol/src/status.rs";
    let mut findings = Vec::new();
    let mut printed: BTreeMap<String, (u32, String)> = rows(spec, "| code | name | sentence |")
        .filter(|(_, row)| !row[1].is_empty() && !row[0].is_empty())
        .map(|(line, row)| (row[1].clone(), (line, row[0].clone())))
        .collect();
    let tokens = tokens(status);
    let opens = tokens.windows(4).position(|window| {
        let texts: Vec<&str> = window.iter().map(|token| token.text.as_str()).collect();
        texts == ["Code", ":", "u16", "{"]
    });
    let Some(opens) = opens else {
        let instead = "keep `Code: u16 { … }` a table, or teach tests/tidy.rs its new form";
        return vec![Finding::new(STATUS, 1, "no table of error codes", instead)];
    };
    let table = tokens[opens + 4..].iter().take_while(|token| token.text != "}");
    for window in table.collect::<Vec<_>>().windows(3) {
        let [name, equals, number] = window else { continue };
        if equals.text != "=" || number.kind != Kind::Number {
            continue;
        }
        let upper = upper_snake(&name.text);
        match printed.remove(&upper) {
            Some((_, printed)) if printed == number.text => {}
            Some((line, printed)) => {
                let what = format!("{upper} is printed as {printed} and is {}", number.text);
                let instead = "print the code's number; numbers never change once released";
                findings.push(Finding::new("protocol/SPEC.md", line, what, instead));
            }
            None => {
                let what = format!("{upper} = {} is not in section 7 of SPEC.md", number.text);
                let instead = "add its row there, with a sentence";
                findings.push(Finding::new(STATUS, name.line, what, instead));
            }
        }
    }
    for (name, (line, _)) in printed {
        let what = format!("{name} is no row of `Code`");
        findings.push(Finding::new("protocol/SPEC.md", line, what, "add the code, or strike it"));
    }
    findings
}

fn maxima(limits: &str, spec: &str) -> Vec<Finding> {
    const LIMITS: &str = "protocol/src/limits.rs";
    const SPEC: &str = "protocol/SPEC.md";
    let mut findings = Vec::new();
    let mut printed: BTreeMap<String, (u32, Option<u64>)> =
        rows(spec, "| code | name | number | of |")
            .map(|(line, row)| (row[1].clone(), (line, printed_number(&row[2]))))
            .collect();
    let constants = constants(limits);
    if constants.is_empty() {
        let instead = "keep them constants, or teach tests/tidy.rs their new form";
        findings.push(Finding::new(LIMITS, 1, "no maxima", instead));
    }
    for Constant { name, line, number } in &constants {
        // Versions are the specification's title; the least units are part of the row of the most.
        if !(name.ends_with("_MAX") || name == "WINDOW_NANOS_MIN") || name == "VERSION_MAX" {
            continue;
        }
        let Some(number) = *number else {
            let instead = "write it as a product or shift of numbers";
            findings.push(Finding::new(LIMITS, *line, format!("{name} is no number"), instead));
            continue;
        };
        let row = name.strip_suffix("_MAX").unwrap_or(name).to_lowercase();
        match printed.remove(&row) {
            Some((_, Some(printed))) if printed == number => {}
            Some((line, found)) => {
                let found = found.map_or("no number".to_owned(), |found| found.to_string());
                let what = format!("{row} is printed as {found} and {name} is {number}");
                findings.push(Finding::new(SPEC, line, what, "print the constant's number"));
            }
            None => {
                let what = format!("{name} = {number} is not in section 8 of SPEC.md");
                let instead = format!("add a row named {row} there");
                findings.push(Finding::new(LIMITS, *line, what, &instead));
            }
        }
    }
    for (name, (line, _)) in printed {
        let what = format!("{name} is no constant of limits.rs");
        findings.push(Finding::new(SPEC, line, what, "add the constant, or strike the row"));
    }
    let is = |name: &str| constants.iter().find(|constant| constant.name == name)?.number;
    let version = is("VERSION_MAX").unwrap_or_default();
    let title = format!("# The Tollkeeper protocol, version {version}");
    if spec.lines().next() != Some(title.as_str()) {
        let instead = format!("`{title}`, after VERSION_MAX of limits.rs");
        findings.push(Finding::new(SPEC, 1, "the title says another version", &instead));
    }
    findings
}

// What is found, and how it is told.

struct Finding {
    path: String,
    line: u32,
    what: String,
    instead: String,
}

impl Finding {
    fn new(path: &str, line: u32, what: impl Into<String>, instead: &str) -> Self {
        Self { path: path.to_owned(), line, what: what.into(), instead: instead.to_owned() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, what, instead } = self;
        write!(f, "{path}:{line}: {what}\n    instead: {instead}")
    }
}

#[track_caller]
fn report(findings: Vec<Finding>) {
    let told: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(told.is_empty(), "{} findings\n{}\n", told.len(), told.join("\n"));
}

/// Whether a file is the place or lies in it.
fn lies_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path is `prefix`, written with `::`, or goes on from it.
fn begins_with(path: &[String], prefix: &str) -> bool {
    let mut path = path.iter();
    prefix.split("::").all(|segment| path.next().is_some_and(|found| found == segment))
}

// The source as files, tokens and paths.

struct Tree {
    files: Vec<File>,
}

struct File {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
    tokens: Vec<Token>,
    /// As a module of its crate, such as `doors`, `admin`.
    module: Vec<String>,
    /// Some `mod` leads here from a crate's root.
    is_reached: bool,
    named: Vec<Named>,
}

/// A path of two segments or more, or one that is imported.
struct Named {
    line: u32,
    /// From `crate`, from a foreign crate, or from a local name.
    path: Vec<String>,
    /// It stands in code for tests only.
    is_test: bool,
}

impl Named {
    /// The modules and items of ours that it names, if it does.
    fn ours(&self) -> Option<&[String]> {
        let (first, rest) = self.path.split_first()?;
        (first == "crate" && !rest.is_empty()).then_some(rest)
    }
}

impl File {
    /// Whether it is part of what users get, not of tests or benches.
    fn is_shipped(&self) -> bool {
        self.path.starts_with("src/") || self.path.starts_with("protocol/src/")
    }

    fn finding(&self, line: u32, what: impl Into<String>, instead: &str) -> Finding {
        Finding::new(&self.path, line, what, instead)
    }
}

impl Tree {
    fn of_the_repository() -> Self {
        let mut paths = Vec::new();
        for folder in ["src", "tests", "benches", "protocol/src", "protocol/tests"] {
            walk(&root().join(folder), &mut paths);
        }
        let mut sources: Vec<(String, String)> =
            paths.into_iter().map(|path| (path.clone(), read(&path))).collect();
        sources.sort();
        assert!(sources.len() > 50, "the source was not found: {} files", sources.len());
        Self::new(sources)
    }

    fn new(sources: Vec<(String, String)>) -> Self {
        let file = |(path, text): (String, String)| {
            let tokens = tokens(&text);
            let module = module_of(&path);
            File { path, text, tokens, module, is_reached: false, named: Vec::new() }
        };
        let mut tree = Self { files: sources.into_iter().map(file).collect() };
        tree.reach();
        for file in &mut tree.files {
            file.named = named(file);
        }
        tree
    }

    /// Follows `mod` from the crates' roots, and marks the files that it finds.
    fn reach(&mut self) {
        let mut ways: Vec<(String, bool)> =
            self.files.iter().filter_map(|file| Some((root_of(&file.path)?, false))).collect();
        while let Some((path, is_test)) = ways.pop() {
            let Some(file) = self.files.iter_mut().find(|file| file.path == path) else { continue };
            if file.is_reached {
                continue;
            }
            file.is_reached = true;
            for token in file.tokens.iter_mut().filter(|_| is_test) {
                token.is_test = true;
            }
            let folder = match path.rsplit_once('/') {
                Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder.to_owned(),
                Some((folder, _)) if root_of(&path).is_some() => folder.to_owned(),
                _ => path.trim_end_matches(".rs").to_owned(),
            };
            for (child, is_test) in declared(&file.tokens) {
                let child = format!("{folder}/{}", child.join("/"));
                ways.push((format!("{child}.rs"), is_test));
                ways.push((format!("{child}/mod.rs"), is_test));
            }
        }
    }

    fn named(&self) -> impl Iterator<Item = (&File, &Named)> {
        self.files.iter().flat_map(|file| file.named.iter().map(move |named| (file, named)))
    }

    fn words(&self) -> impl Iterator<Item = (&File, &Token)> {
        let words = |file: &'_ File| -> Vec<usize> {
            let is_word = |place: &usize| file.tokens[*place].kind == Kind::Word;
            (0..file.tokens.len()).filter(is_word).collect()
        };
        self.files.iter().flat_map(move |file| {
            words(file).into_iter().map(move |place| (file, &file.tokens[place]))
        })
    }

    /// Names of the folders in a folder.
    fn rooms(&self, folder: &str) -> BTreeSet<&str> {
        let room = |file: &'_ File| -> Option<(usize, usize)> {
            let rest = file.path.strip_prefix(folder)?.strip_prefix('/')?;
            let (room, _) = rest.split_once('/')?;
            Some((folder.len() + 1, room.len()))
        };
        let rooms = self.files.iter().filter_map(|file| {
            let (from, len) = room(file)?;
            Some(&file.path[from..from + len])
        });
        rooms.collect()
    }
}

/// The file itself, if a crate begins there.
fn root_of(path: &str) -> Option<String> {
    let is_root = match path.split('/').collect::<Vec<_>>()[..] {
        ["src", file] | ["protocol", "src", file] => ["lib.rs", "main.rs"].contains(&file),
        ["tests" | "benches", _] | ["protocol", "tests", _] => true,
        ["tests" | "benches", _, file] | ["protocol", "tests", _, file] => file == "main.rs",
        _ => false,
    };
    is_root.then(|| path.to_owned())
}

fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("protocol/").trim_start_matches("src/");
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    let module = path.split('/').map(str::to_owned).collect::<Vec<_>>();
    if ["lib", "main"].contains(&path) { Vec::new() } else { module }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Word,
    Number,
    Mark,
    /// A string or character; its text is not kept.
    Quoted,
}

#[derive(Debug)]
struct Token {
    line: u32,
    kind: Kind,
    text: String,
    /// It stands in code for tests only.
    is_test: bool,
}

/// The tokens of a Rust text, without comments; what stands in quotes is forgotten.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    while at < chars.len() {
        let from = at;
        let rest = &chars[at..];
        let kind = match rest {
            ['/', '/', ..] => {
                at += rest.iter().take_while(|c| **c != '\n').count();
                None
            }
            ['/', '*', ..] => {
                at += comment_len(rest);
                None
            }
            [c, ..] if c.is_whitespace() => {
                at += 1;
                None
            }
            ['"', ..] => {
                at += quoted_len(rest, '"');
                Some(Kind::Quoted)
            }
            ['b' | 'c', '"', ..] => {
                at += 1 + quoted_len(&rest[1..], '"');
                Some(Kind::Quoted)
            }
            ['b', '\'', ..] => {
                at += 1 + quoted_len(&rest[1..], '\'');
                Some(Kind::Quoted)
            }
            ['r', ..] | ['b' | 'c', 'r', ..] if raw_len(rest).is_some() => {
                at += raw_len(rest).unwrap_or(1);
                Some(Kind::Quoted)
            }
            ['\'', '\\', ..] | ['\'', _, '\'', ..] => {
                at += quoted_len(rest, '\'');
                Some(Kind::Quoted)
            }
            // A lifetime; its name is nobody's.
            ['\'', ..] => {
                at += 1 + rest[1..].iter().take_while(|c| is_word(c)).count();
                Some(Kind::Quoted)
            }
            ['r', '#', c, ..] if is_word(c) => {
                at += 2;
                None
            }
            [c, ..] if is_word(c) => {
                at += rest.iter().take_while(|c| is_word(c)).count();
                Some(if c.is_numeric() { Kind::Number } else { Kind::Word })
            }
            [':', ':', ..] => {
                at += 2;
                Some(Kind::Mark)
            }
            _ => {
                at += 1;
                Some(Kind::Mark)
            }
        };
        let taken = &chars[from..at];
        if let Some(kind) = kind {
            let text = if kind == Kind::Quoted { String::new() } else { taken.iter().collect() };
            tokens.push(Token { line, kind, text, is_test: false });
        }
        line += taken.iter().filter(|c| **c == '\n').count() as u32;
    }
    mark_tests(&mut tokens);
    tokens
}

/// Characters of a comment that may hold others.
fn comment_len(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let step = match rest[at..] {
            ['/', '*', ..] => {
                depth += 1;
                2
            }
            ['*', '/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Characters from one quote to the other.
fn quoted_len(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Characters of a raw string, if it is one.
fn raw_len(rest: &[char]) -> Option<usize> {
    let r = rest.iter().take(2).position(|c| *c == 'r')?;
    let hashes = rest[r + 1..].iter().take_while(|c| **c == '#').count();
    let opens = r + 1 + hashes;
    if rest.get(opens) != Some(&'"') {
        return None;
    }
    let closes = |at: &usize| {
        rest[*at] == '"' && rest[*at + 1..].iter().take_while(|c| **c == '#').count() >= hashes
    };
    let at = (opens + 1..rest.len()).find(closes)?;
    Some(at + 1 + hashes)
}

/// Marks the items that only tests have: those under `#[test]` or a `cfg` that asks for `test`.
fn mark_tests(tokens: &mut [Token]) {
    let mut at = 0;
    while at < tokens.len() {
        let Some(end) = attribute_end(tokens, at) else {
            at += 1;
            continue;
        };
        if !is_for_tests(&tokens[at..end]) {
            at = end;
            continue;
        }
        let mut depth = 0;
        let mut last = end;
        while last < tokens.len() {
            match tokens[last].text.as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            if depth == 0 && [";", "}"].contains(&tokens[last].text.as_str()) {
                break;
            }
            last += 1;
        }
        let last = last.min(tokens.len() - 1);
        for token in &mut tokens[at..=last] {
            token.is_test = true;
        }
        at = last + 1;
    }
}

/// Where the attribute that begins at `at` ends, if one does.
fn attribute_end(tokens: &[Token], at: usize) -> Option<usize> {
    if tokens[at].text != "#" || tokens.get(at + 1)?.text != "[" {
        return None;
    }
    let mut depth = 0;
    for (place, token) in tokens.iter().enumerate().skip(at + 1) {
        match token.text.as_str() {
            "[" => depth += 1,
            "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(place + 1);
        }
    }
    None
}

fn is_for_tests(attribute: &[Token]) -> bool {
    let texts: Vec<&str> = attribute.iter().map(|token| token.text.as_str()).collect();
    let asks = |place: usize| texts[place] == "test" && !texts[..place].ends_with(&["not", "("]);
    match texts[2] {
        "cfg" => (3..texts.len()).any(asks),
        "test" => true,
        _ => false,
    }
}

/// Modules that are declared to be files of their own, from this file's module on, and whether
/// only tests have them.
fn declared(tokens: &[Token]) -> Vec<(Vec<String>, bool)> {
    let mut declared = Vec::new();
    let mut scopes = Scopes::default();
    for place in 0..tokens.len() {
        scopes.step(tokens, place);
        let [keyword, name, end, ..] = &tokens[place..] else { break };
        if keyword.text == "mod" && name.kind == Kind::Word && end.text == ";" {
            let mut path = scopes.modules();
            path.push(name.text.clone());
            declared.push((path, keyword.is_test));
        }
    }
    declared
}

/// The inline modules that stand open.
#[derive(Default)]
struct Scopes {
    depth: usize,
    /// With the depth of their braces.
    open: Vec<(String, usize)>,
}

impl Scopes {
    fn step(&mut self, tokens: &[Token], place: usize) {
        match tokens[place].text.as_str() {
            "{" => {
                self.depth += 1;
                if place >= 2 && tokens[place - 2].text == "mod" {
                    self.open.push((tokens[place - 1].text.clone(), self.depth));
                }
            }
            "}" => {
                if self.open.last().is_some_and(|(_, depth)| *depth == self.depth) {
                    self.open.pop();
                }
                self.depth = self.depth.saturating_sub(1);
            }
            _ => {}
        }
    }

    fn modules(&self) -> Vec<String> {
        self.open.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// All paths that a file names.
fn named(file: &File) -> Vec<Named> {
    let tokens = &file.tokens;
    let mut named = Vec::new();
    // What a first segment stands for that an import or a `mod` made.
    let mut means: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let in_crate = |mut path: Vec<String>| {
        path.insert(0, "crate".to_owned());
        path
    };
    for (child, _) in declared(tokens) {
        if let [name] = &child[..] {
            means.insert(name.clone(), in_crate([&file.module[..], &child].concat()));
        }
    }
    let mut scopes = Scopes::default();
    let mut paths = Vec::new();
    let mut use_end = 0;
    for place in 0..tokens.len() {
        scopes.step(tokens, place);
        let module = [&file.module[..], &scopes.modules()].concat();
        let token = &tokens[place];
        let before = place.checked_sub(1).map(|before| &tokens[before]);
        if token.text == "use" && tokens.get(place + 1).is_some_and(|next| next.text != "<") {
            let mut imports = Vec::new();
            use_end = imported(tokens, place + 1, &[], &mut imports);
            for Import { place, path, name } in imports {
                let path = absolute(path, &module, file);
                if path[0] != name && path.len() > 1 {
                    means.insert(name, path.clone());
                }
                named.push(Named { line: tokens[place].line, path, is_test: token.is_test });
            }
            continue;
        }
        let begins = token.kind == Kind::Word
            && before.is_none_or(|before| {
                let starts_at_root = || {
                    let ahead = place.checked_sub(2).map(|ahead| &tokens[ahead]);
                    ahead.is_none_or(|ahead| ahead.kind != Kind::Word && ahead.text != ">")
                };
                before.text != "." && (before.text != "::" || starts_at_root())
            });
        if place < use_end || !begins {
            continue;
        }
        let mut path = vec![token.text.clone()];
        let mut at = place + 1;
        while let [colons, segment, ..] = &tokens[at..] {
            if colons.text != "::" || segment.kind != Kind::Word {
                break;
            }
            path.push(segment.text.clone());
            at += 2;
        }
        let is_macro = tokens.get(at).is_some_and(|next| next.text == "::");
        if path.len() > 1 || is_macro {
            paths.push((place, absolute(path, &module, file)));
        }
    }
    for (place, mut path) in paths {
        if let Some(meaning) = means.get(&path[0]) {
            path.splice(..1, meaning.iter().cloned());
        }
        let Token { line, is_test, .. } = tokens[place];
        named.push(Named { line, path, is_test });
    }
    named.sort_by_key(|named| named.line);
    named
}

struct Import {
    place: usize,
    path: Vec<String>,
    /// What it is called from now on.
    name: String,
}

/// Takes in one tree of a `use`, and says where it ends.
fn imported(tokens: &[Token], mut at: usize, to: &[String], imports: &mut Vec<Import>) -> usize {
    let mut path = to.to_vec();
    let place = at;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" => {
                at += 1;
                while at < tokens.len() && tokens[at].text != "}" {
                    at = imported(tokens, at, &path, imports);
                    at += usize::from(tokens.get(at).is_some_and(|next| next.text == ","));
                }
                return at + 1;
            }
            "as" => {
                let name = tokens.get(at + 1).map_or(String::new(), |name| name.text.clone());
                imports.push(Import { place, path, name });
                return at + 2;
            }
            "::" => {}
            "self" if !path.is_empty() => {}
            "," | ";" | "}" => break,
            segment => path.push(segment.to_owned()),
        }
        at += 1;
    }
    if let Some(name) = path.last().cloned() {
        imports.push(Import { place, path, name });
    }
    at
}

/// A path from its crate's root, if it begins with `crate`, `self` or `super`.
fn absolute(mut path: Vec<String>, module: &[String], file: &File) -> Vec<String> {
    let mut module = module.to_vec();
    match path[0].as_str() {
        "tollkeeper" if file.path == "src/main.rs" => path[0] = "crate".to_owned(),
        "self" | "super" => {
            while path.first().is_some_and(|first| ["self", "super"].contains(&first.as_str())) {
                if path.remove(0) == "super" {
                    module.pop();
                }
            }
            path.splice(..0, std::iter::once("crate".to_owned()).chain(module));
        }
        _ => {}
    }
    path
}

// Other texts.

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn manifest(path: &str) -> (&str, String) {
    (path, read(path))
}

fn walk(folder: &Path, paths: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let path = path.strip_prefix(root()).expect("below the root");
            let segments: Vec<_> = path.iter().map(|segment| segment.to_string_lossy()).collect();
            paths.push(segments.join("/"));
        }
    }
}

struct Dependency {
    line: u32,
    name: String,
    is_dev: bool,
}

/// What a manifest depends on, by the names that code uses.
fn dependencies(manifest: &str) -> Vec<Dependency> {
    let mut dependencies = Vec::new();
    let mut section = String::new();
    for (line, text) in (1..).zip(manifest.lines()) {
        let mut name = None;
        if let Some(header) = text.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
            if let Some((table, last)) = section.clone().rsplit_once("dependencies.") {
                section = format!("{table}dependencies.");
                name = Some(last.to_owned());
            }
        } else if section.ends_with("dependencies") && text.contains('=') {
            name = text.split(['=', '.', ' ']).next().map(str::to_owned);
        }
        let is_name = |name: &String| name.starts_with(|c: char| c.is_ascii_alphabetic());
        if let Some(name) = name.filter(is_name) {
            let is_dev = section.contains("dev-dependencies");
            dependencies.push(Dependency { line, name: name.replace('-', "_"), is_dev });
        }
    }
    dependencies
}

/// The rows of the table with this head, with their lines.
fn rows<'t>(text: &'t str, head: &str) -> impl Iterator<Item = (u32, Vec<String>)> + use<'t> {
    let head = head.to_owned();
    let table = (1..).zip(text.lines()).skip_while(move |(_, line)| *line != head).skip(2);
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    table
        .take_while(|(_, line)| line.starts_with('|'))
        .map(move |(number, line)| (number, cells(line)))
}

/// `UnknownApi` as `UNKNOWN_API`.
fn upper_snake(name: &str) -> String {
    let mut upper = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !upper.is_empty() {
            upper.push('_');
        }
        upper.push(c.to_ascii_uppercase());
    }
    upper
}

/// A number as the specification prints it: `4,096`, `2^53`.
fn printed_number(text: &str) -> Option<u64> {
    if let Some(exponent) = text.strip_prefix("2^") {
        return 1_u64.checked_shl(exponent.parse().ok()?);
    }
    text.replace(',', "").parse().ok()
}

struct Constant {
    name: String,
    line: u32,
    number: Option<u64>,
}

/// The constants of a Rust text, with those numbers that are products or shifts of numbers.
fn constants(text: &str) -> Vec<Constant> {
    let tokens = tokens(text);
    let mut constants: Vec<Constant> = Vec::new();
    for (place, name) in tokens.iter().enumerate().skip(1) {
        if tokens[place - 1].text != "const" || name.text == "_" || name.kind != Kind::Word {
            continue;
        }
        let rest = tokens[place..].iter().skip_while(|token| token.text != "=").skip(1);
        let texts: Vec<&str> =
            rest.take_while(|token| token.text != ";").map(|token| token.text.as_str()).collect();
        let value = |text: &&str| -> Option<u64> {
            let known = constants.iter().find(|constant| constant.name == **text);
            let digits = text.replace('_', "");
            known.map_or_else(|| digits.parse().ok(), |known| known.number)
        };
        let number = match texts[..] {
            [base, "<", "<", by] => {
                value(&base).zip(value(&by)).and_then(|(base, by)| base.checked_shl(by as u32))
            }
            _ => texts.split(|text| *text == "*").try_fold(1_u64, |product, factor| match factor {
                [factor] => product.checked_mul(value(factor)?),
                _ => None,
            }),
        };
        constants.push(Constant { name: name.text.clone(), line: name.line, number });
    }
    constants
}

/// What the checks find in text that breaks the rules.
mod planted {
    use super::*;

    fn tree(sources: &[(&str, &str)]) -> Tree {
        let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        Tree::new(sources.iter().map(owned).collect())
    }

    /// Places and a part of what is said there, in order.
    #[track_caller]
    fn found(findings: &[Finding], expected: &[(&str, &str)]) {
        let told: Vec<String> = findings.iter().map(Finding::to_string).collect();
        let matches = told.len() == expected.len()
            && told.iter().zip(expected).all(|(told, (place, part))| {
                told.starts_with(&format!("{place}: ")) && told.contains(part)
            });
        assert!(matches, "expected {expected:#?}, found\n{}", told.join("\n"));
    }

    #[test]
    fn an_import_against_the_arrows() {
        let cases = [
            ("src/engine/key.rs", "use crate::policy::Policy;", "names `policy::Policy`"),
            ("src/policy/parse.rs", "fn f() { crate::node::run(); }", "names `node::run`"),
            ("src/clock/mod.rs", "use super::doors::Desk;", "names `doors::Desk`"),
            ("src/metrics/export.rs", "use crate::{engine::key::Key};", "names `engine::key::Key`"),
            ("src/metrics/cells.rs", "use super::export::X;", "names `metrics::export::X`"),
            ("src/doors/desk.rs", "use crate::metrics::export::X;", "names `metrics::export::X`"),
            ("src/doors/desk.rs", "use crate::config;", "names `config`"),
            ("src/disk/log.rs", "use crate::cluster::Peer;", "names `cluster::Peer`"),
            ("src/cli/check.rs", "use crate::doors::Desk;", "names `doors::Desk`"),
            ("src/main.rs", "fn main() { tollkeeper::policy::x(); }", "names `policy::x`"),
            ("src/other/mod.rs", "use crate::engine::X;", "without arrows"),
            ("protocol/src/codec.rs", "use crate::client::Client;", "names `client::Client`"),
            // Unit tests keep to the arrows too, and their `super` is one module further down.
            (
                "src/policy/tree.rs",
                "mod tests { use super::super::super::cli::run; }",
                "names `cli::run`",
            ),
        ];
        for (path, text, part) in cases {
            found(&arrows(&tree(&[(path, text)])), &[(&format!("{path}:1"), part)]);
        }
    }

    #[test]
    fn an_import_along_the_arrows() {
        let text = "//! `crate::node`\nuse super::tree::{self, Tree};\n/* crate::node */\n\
                    const S: &str = \"crate::node::run\";\nfn f() { tree::g(); crate::engine::h(); }";
        found(&arrows(&tree(&[("src/policy/parse.rs", text)])), &[]);
        let text = "use crate::doors::{admin, binary};\nfn f() { admin::g(); }";
        found(&arrows(&tree(&[("src/node.rs", text)])), &[]);
    }

    #[test]
    fn a_door_that_knows_its_neighbour() {
        let sources = [
            ("src/doors/mod.rs", "pub use self::binary::Listener;"),
            ("src/doors/admin/mod.rs", "use crate::doors::desk::Desk;"),
            ("src/doors/admin/routes.rs", "\nuse super::super::binary::Session;"),
            ("src/doors/binary/mod.rs", "pub use super::binary::session::Session;"),
            ("src/doors/desk.rs", "use super::admin::Vitals;"),
        ];
        found(
            &arrows(&tree(&sources)),
            &[
                ("src/doors/admin/routes.rs:2", "a neighbour names `doors::binary::Session`"),
                ("src/doors/desk.rs:1", "a neighbour names `doors::admin::Vitals`"),
            ],
        );
    }

    #[test]
    fn an_engine_that_touches_something() {
        let text = "use std::{collections::HashMap, net::TcpStream};\n\
                    use core::sync::atomic::AtomicU64;\n\
                    fn f() { std::thread::sleep(d) }\n\
                    async fn g() {}\n\
                    fn h() { println!(\"x\") }\n\
                    #[cfg(test)]\nmod tests { fn t() { std::thread::scope(f); println!() } }\n\
                    fn after() { ::std::fs::read(p); }\n\
                    #[cfg(not(test))]\nfn real() { std::env::var(v); }";
        found(
            &pure(&tree(&[("src/engine/key.rs", text)])),
            &[
                ("src/engine/key.rs:1", "`std::net::TcpStream`"),
                ("src/engine/key.rs:2", "import it from `engine::sync`"),
                ("src/engine/key.rs:3", "`std::thread::sleep`"),
                ("src/engine/key.rs:8", "`std::fs::read`"),
                ("src/engine/key.rs:10", "`std::env::var`"),
                ("src/engine/key.rs:4", "`async`"),
                ("src/engine/key.rs:5", "`println`"),
            ],
        );
        let text = "use std::sync::{Arc, Mutex};\nfn f() { let a = Arc::new(1); }";
        let policy = tree(&[("src/policy/handle.rs", text)]);
        found(&pure(&policy), &[("src/policy/handle.rs:1", "`std::sync::Mutex`")]);
        let seam = "use core::sync::atomic::AtomicU64; fn f() { std::thread::yield_now() }";
        found(&pure(&tree(&[("src/engine/sync.rs", seam)])), &[]);
    }

    #[test]
    fn a_clock_read_elsewhere() {
        let text = "// Instant\nuse std::time::Instant as I;\nlet s = \"SystemTime\";";
        let sources = [
            ("src/cli/load.rs", text),
            ("src/clock/os.rs", "use rustix::time::clock_gettime;"),
            ("src/doors/desk.rs", text),
            ("src/cli/check.rs", "let now = std::time::SystemTime::now();"),
            ("tests/it/main.rs", text),
        ];
        found(
            &time(&tree(&sources)),
            &[
                ("src/doors/desk.rs:2", "`Instant` reads OS time"),
                ("src/cli/check.rs:1", "`SystemTime` reads OS time"),
            ],
        );
    }

    #[test]
    fn unsafe_elsewhere() {
        let sources = [
            ("src/engine/table/array.rs", "unsafe { f() }"),
            ("src/engine/key.rs", "// unsafe\n#![allow(dead_code, unsafe_code)]\nunsafe { f() }"),
            ("protocol/src/lib.rs", "#![forbid(unsafe_code)]"),
        ];
        found(
            &unsafe_code(&tree(&sources)),
            &[
                ("src/engine/key.rs:2", "`unsafe_code` is let in"),
                ("src/engine/key.rs:3", "`unsafe`"),
            ],
        );
    }

    #[test]
    fn a_crate_outside_its_room() {
        let sources = [
            ("src/policy/parse.rs", "use toml::de::DeTable;"),
            ("src/doors/mod.rs", "use crate::metrics;\nfn f() { metrics::cells::g(); }"),
            ("src/doors/desk.rs", "#[derive(clap::Args)]\nstruct S;"),
            ("src/clock/mod.rs", "#[tokio::main]\nasync fn f() { r#loom::g() }"),
            ("tests/it/main.rs", "use serde_json::Value;"),
        ];
        let mut findings = crates(&tree(&sources), &[]);
        findings.retain(|finding| finding.path != "tests/tidy.rs");
        found(
            &findings,
            &[
                ("src/policy/parse.rs:1", "crate `toml`"),
                ("src/doors/desk.rs:1", "crate `clap`"),
                ("src/clock/mod.rs:1", "crate `tokio`"),
                ("src/clock/mod.rs:2", "crate `loom`"),
            ],
        );
    }

    #[test]
    fn a_dependency_without_a_use_or_a_room() {
        let manifest = "[dependencies]\ntoml = \"1\"\nnew-thing = { path = \"x\" }\nclap.workspace = true\n\
                        [target.'cfg(x)'.dependencies.axum]\nversion = \"1\"\n\
                        [dev-dependencies]\nproptest = \"1\"\nloom = \"1\"\n[features]\nserde = []";
        let text = "fn f() { toml::g(); new_thing::h() }\n\
                    #[cfg(test)]\nmod tests { use proptest::prelude::*; fn t() { clap::f() } }";
        let manifests = [("Cargo.toml", manifest.to_owned())];
        let mut findings = crates(&tree(&[("src/policy/tree.rs", text)]), &manifests);
        let (rows, mut rest): (Vec<_>, Vec<_>) =
            findings.drain(..).partition(|finding| finding.path == "tests/tidy.rs");
        assert!(!rows.iter().any(|row| row.what.contains("src/policy/tree.rs name `toml`")));
        assert!(rows.iter().any(|row| row.what.contains("src/config/raw.rs name `toml`")));
        rest.retain(|finding| finding.path == "Cargo.toml");
        found(
            &rest,
            &[
                ("Cargo.toml:3", "`new_thing` has no room"),
                ("Cargo.toml:4", "nothing names the dependency `clap`"),
                ("Cargo.toml:5", "nothing names the dependency `axum`"),
                ("Cargo.toml:9", "nothing names the dependency `loom`"),
            ],
        );
    }

    #[test]
    fn a_file_that_nothing_declares() {
        let sources = [
            ("src/lib.rs", "pub mod a;\n// mod dead;\nmod inline { mod deep; }"),
            ("src/a/mod.rs", "#[cfg(other_system)]\nmod b;\n#[path = \"x.rs\"]\nmod y;"),
            ("src/a/b.rs", "#[cfg(all(test, x))]\nmod tests;"),
            ("src/a/b/tests.rs", "fn t() { std::fs::read(p); }"),
            ("src/inline/deep.rs", ""),
            ("src/dead.rs", ""),
            ("benches/known.rs", ""),
            ("benches/unknown.rs", ""),
            ("tests/it/main.rs", "mod one;"),
            ("tests/it/one.rs", ""),
            ("tests/it/two.rs", ""),
        ];
        let tree = tree(&sources);
        found(
            &dead_files(&tree, "[[bench]]\nname = \"known\""),
            &[
                ("src/dead.rs:1", "no `mod` leads here"),
                ("tests/it/two.rs:1", "no `mod` leads here"),
                ("src/a/mod.rs:3", "`#[path]`"),
                ("benches/unknown.rs:1", "no such bench"),
            ],
        );
        let tests = tree.files.iter().find(|file| file.path == "src/a/b/tests.rs");
        assert!(tests.is_some_and(|file| file.named.iter().all(|named| named.is_test)));
    }

    #[test]
    fn a_file_without_a_doc() {
        let sources = [
            ("src/a.rs", "//! A.\n"),
            ("src/b.rs", "use x;\n//! late"),
            ("src/c.rs", "#![doc = include_str!(\"C.md\")]"),
            ("src/d.rs", "/// Of an item.\nfn f() {}"),
        ];
        let bare = module_docs(&tree(&sources));
        found(&bare, &[("src/b.rs:1", "without"), ("src/d.rs:1", "without")]);
    }

    #[test]
    fn something_left_to_do() {
        let text = "// todo!()\nfn f() { let s = r#\"dbg!(\"x\")\"#;\n\n    todo!(\"later\") }\n\
                    fn g<'a>(c: char) -> bool { c == '\"' || dbg!(c) == '\\'' }";
        found(
            &banned_macros(&tree(&[("src/a.rs", text)])),
            &[("src/a.rs:4", "`todo!`"), ("src/a.rs:5", "`dbg!`")],
        );
    }

    #[test]
    fn a_code_that_is_printed_otherwise() {
        let status = "x! { enum Kind: u8 { Bucket = 1, } }\nx! {\n  /// Doc = 3.\n  Code: u16 {\n\
                      /// A.\n BadFrame = 0x0101,\n TooLarge = 0x0105,\n NewOne = 0x0301,\n } }";
        let spec = "x\n| code | name | sentence |\n| --- | --- | --- |\n\
                    | | **heading** | |\n| 0x0101 | BAD_FRAME | a |\n| 0x0106 | TOO_LARGE | b |\n\
                    | 0x0107 | GONE | c |\n\n| 0x0301 | NEW_ONE | elsewhere |";
        found(
            &codes(status, spec),
            &[
                ("protocol/SPEC.md:6", "TOO_LARGE is printed as 0x0106 and is 0x0105"),
                ("protocol/src/status.rs:8", "NEW_ONE = 0x0301 is not in section 7"),
                ("protocol/SPEC.md:7", "GONE is no row of `Code`"),
            ],
        );
        found(&codes("", spec), &[("protocol/src/status.rs:1", "no table of error codes")]);
    }

    #[test]
    fn a_maximum_that_is_printed_otherwise() {
        let limits = "pub const VERSION_MAX: u16 = 1;\npub const HEADER_BYTES: usize = 16;\n\
                      pub const A_MAX: usize = 4 * 1_024;\npub const B_MAX: u64 = 1 << 53;\n\
                      pub const C_MAX: usize = A_MAX;\npub const D_MAX: usize = f();\n\
                      pub const E_MAX: usize = 5;\nconst _: () = { assert!(A_MAX <= B_MAX) };";
        let spec = "# The Tollkeeper protocol, version 2\n| code | name | number | of |\n\
                    | --- | --- | --- | --- |\n| 1 | a | 4,096 | x |\n| 2 | b | 2^53 | x |\n\
                    | 3 | c | 4,097 | x |\n| 4 | d | 1 | x |\n| 5 | gone | 1 | x |";
        found(
            &maxima(limits, spec),
            &[
                ("protocol/SPEC.md:6", "c is printed as 4097 and C_MAX is 4096"),
                ("protocol/src/limits.rs:6", "D_MAX is no number"),
                ("protocol/src/limits.rs:7", "E_MAX = 5 is not in section 8"),
                ("protocol/SPEC.md:7", "d is no constant"),
                ("protocol/SPEC.md:8", "gone is no constant"),
                ("protocol/SPEC.md:1", "the title says another version"),
            ],
        );
    }

    #[test]
    fn a_finding_says_where_and_what_instead() {
        let finding = Finding::new("src/a.rs", 7, "bad", "good");
        assert_eq!(finding.to_string(), "src/a.rs:7: bad\n    instead: good");
    }
}
