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
