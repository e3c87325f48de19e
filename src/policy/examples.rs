//! The examples, each with its own tests: that these pass, and that no number of an example can
//! change without one of them failing.

use crate::engine::key::Seed;

use super::{Policy, Source, TestReport, render_report};

pub(super) const EXAMPLES: [Source<'static>; 7] = [
    Source { name: "media", text: include_str!("../../examples/policies/media.toml") },
    Source { name: "chat", text: include_str!("../../examples/policies/chat.toml") },
    Source { name: "generate", text: include_str!("../../examples/policies/generate.toml") },
    Source { name: "vault", text: include_str!("../../examples/policies/vault.toml") },
    Source { name: "studio", text: include_str!("../../examples/policies/studio.toml") },
    Source { name: "llm", text: include_str!("../../examples/policies/llm.toml") },
    Source { name: "github", text: include_str!("../../examples/policies/github.toml") },
];

fn run(name: &str, text: &str) -> Result<TestReport, String> {
    let policy = Policy::compile(&[Source { name, text }], &Seed::new([7; 16]));
    policy.map(|policy| policy.run_tests()).map_err(|errors| errors.to_string())
}

#[test]
fn every_example_passes_its_tests_and_all_of_them_make_one_policy() {
    for Source { name, text } in EXAMPLES {
        let report = run(name, text).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(report.failed(), 0, "{}", render_report(&report));
        assert!(report.passed() > 100, "{name}: {}", report.passed());
    }
    let all = Policy::compile(&EXAMPLES, &Seed::new([7; 16])).unwrap();
    assert_eq!(all.apis().count(), EXAMPLES.len());
}

/// Spans of the cookbook that are no policy: words of a page, a command, a row of a table.
const NO_POLICY: [&str; 4] =
    ["override set", "X-RateLimit-Type: minute", "daily", "enterprise = \"unlimited\""];

/// Whether these lines make a policy: each either of its API or of its limit, and with a kind or
/// tiers added where none of them says which.
fn makes_a_policy(lines: &[&str]) -> bool {
    let compiles = |api: &str, limit: &[&str]| {
        let limit: Vec<&str> = limit.iter().copied().filter(|part| !part.is_empty()).collect();
        let text = format!(
            "schema = 1\n[api.a]\nclass.c = ['POST /a', 'POST /b']\n{api}\n\
             [api.a.limit]\nl = {{ on = 'c', {} }}\n",
            limit.join(", ")
        );
        Policy::compile(&[Source { name: "row", text: &text }], &Seed::new([7; 16])).is_ok()
    };
    let has = |what: &str| lines.iter().any(|line| line.split(", ").any(|it| it.starts_with(what)));
    // A cap has no key.
    let per = if has("per") || has("cap") { "" } else { "per = ['user']" };
    (0..1_u32 << lines.len()).any(|places| {
        let of = |side| {
            let is = move |(place, _): &(usize, &&str)| places >> place & 1 == side;
            lines.iter().enumerate().filter(is).map(|(_, line)| *line).collect::<Vec<_>>()
        };
        ["", "tiers = ['free', 'pro']"].iter().any(|tiers| {
            ["", "bucket = '9/min'", "fixed = '9/min, 99/day'"].iter().any(|kind| {
                let api = format!("{tiers}\n{}", of(1).join("\n"));
                compiles(&api, &[&[per, kind][..], &of(0)].concat())
            })
        })
    })
}

#[test]
fn every_row_of_the_cookbook_compiles() {
    let reference = include_str!("LANGUAGE.md");
    let (_, cookbook) = reference.split_once("## Cookbook").unwrap();
    let rows = cookbook.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let (mut compiled, mut wrong) = (0, Vec::new());
    for row in rows.take_while(|line| line.starts_with('|')) {
        let (_, write) = row.trim_matches('|').split_once('|').unwrap();
        let spans: Vec<&str> = write.split('`').skip(1).step_by(2).collect();
        let lines: Vec<&str> = spans.into_iter().filter(|span| !NO_POLICY.contains(span)).collect();
        // Of a row that offers several, each has to do.
        let each = || lines.iter().all(|line| makes_a_policy(&[line]));
        if !makes_a_policy(&lines) && !each() {
            wrong.push(row);
        }
        compiled += lines.len();
    }
    assert!(wrong.is_empty() && compiled > 25, "{compiled} lines, of these rows none: {wrong:#?}");
    assert!(!makes_a_policy(&["bucket = \"60\""]) && !makes_a_policy(&["unknown = 1"]));
}

/// Where the whole numbers of a policy stand, its comments left out: not those within names.
fn numbers(text: &str) -> Vec<core::ops::Range<usize>> {
    let bytes = text.as_bytes();
    let within_name = |at: usize| {
        let before = at.checked_sub(1).map(|before| bytes[before]);
        before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let (mut found, mut comment, mut at) = (Vec::new(), false, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\n' => comment = false,
            b'#' if at == 0 || bytes[at - 1].is_ascii_whitespace() => comment = true,
            b'0'..=b'9' if !comment && !within_name(at) => {
                let length = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                found.push(at..at + length);
                at += length;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

#[test]
fn every_number_of_an_example_is_pinned_by_its_tests() {
    for Source { name, text } in EXAMPLES {
        let tests_at = text.find("[[test]]").unwrap();
        for range in numbers(&text[..tests_at]) {
            let number: u64 = text[range.clone()].parse().unwrap();
            // The page has no numbers of what is yet to come that anybody could meet.
            let line = &text[..text[range.end..].find('\n').unwrap() + range.end];
            if line.ends_with("mode = \"off\" }") {
                continue;
            }
            for other in [number + 1, number.saturating_sub(1)] {
                let changed = format!("{}{other}{}", &text[..range.start], &text[range.end..]);
                let noticed = run(name, &changed).map_or(true, |report| report.failed() > 0);
                let line = text[..range.start].lines().count();
                assert!(noticed, "{name}:{line}: {number} may be {other} and no test fails");
            }
        }
    }
}
