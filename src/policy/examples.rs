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

/// Where the whole numbers of a policy stand, its comments left out: not those within names.
pub(super) fn numbers(text: &str) -> Vec<core::ops::Range<usize>> {
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

/// What became of an example's numbers when each was one more and one less, alone.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// A test failed.
    failed: usize,
    /// It is no policy any more.
    not_loaded: usize,
    /// Of what is yet to come the page has no numbers that anybody could meet: left as they are.
    left: usize,
}

#[test]
fn every_number_of_an_example_is_pinned_by_its_tests() {
    for (Source { name, text }, expected) in EXAMPLES.into_iter().zip(CHANGES) {
        let tests_at = text.find("[[test]]").unwrap();
        let mut changes = Changes::default();
        for range in numbers(&text[..tests_at]) {
            let number: u64 = text[range.clone()].parse().unwrap();
            let line = &text[..text[range.end..].find('\n').unwrap() + range.end];
            if line.ends_with("mode = \"off\" }") {
                changes.left += 1;
                continue;
            }
            for other in [number + 1, number.saturating_sub(1)] {
                let changed = format!("{}{other}{}", &text[..range.start], &text[range.end..]);
                match run(name, &changed) {
                    Ok(report) if report.failed() > 0 => changes.failed += 1,
                    Err(_) => changes.not_loaded += 1,
                    Ok(_) => {
                        let line = text[..range.start].lines().count();
                        panic!("{name}:{line}: {number} may be {other} and no test fails");
                    }
                }
            }
        }
        assert_eq!(changes, expected, "{name}");
    }
}

/// By example, in their order. Each has a `schema`, of which there is one.
const CHANGES: [Changes; 7] = [
    Changes { failed: 12, not_loaded: 2, left: 4 },
    Changes { failed: 18, not_loaded: 10, left: 0 },
    Changes { failed: 39, not_loaded: 3, left: 0 },
    Changes { failed: 70, not_loaded: 4, left: 0 },
    Changes { failed: 28, not_loaded: 2, left: 0 },
    Changes { failed: 31, not_loaded: 3, left: 0 },
    Changes { failed: 30, not_loaded: 4, left: 0 },
];
