//! Tests of tests: what passes, what fails, and what is said of it.

use super::*;
use crate::engine::key::Seed;
use crate::policy::{BUILT_IN, Policy, Source};

fn run(text: &str) -> TestReport {
    let source = Source { name: "p.toml", text };
    match Policy::compile(&[source], &Seed::new([7; 16])) {
        Ok(policy) => policy.run_tests(),
        Err(errors) => panic!("{errors}"),
    }
}

fn problems(text: &str) -> Vec<String> {
    let source = Source { name: "p.toml", text };
    match Policy::compile(&[source], &Seed::new([7; 16])) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

const POLICY: &str = r#"schema = 1
[api.a]
class.x = ["POST /x"]
[api.a.limit]
calls = { on = "x", per = ["user"], fixed = "2/min, 3/hour", status = 418 }
bytes = { on = "x", meter = "up", bucket = "100/s burst 100" }
[api.a.headers]
preset = "x-ratelimit"
from = ["calls.minute"]
denied.X-Type = "{binding.window}"
[api.a.denied]
body = '{"w":"{binding.window}","r":{retry_after},"u":{calls.hour.used},"d":"{day.limit}"}'
"#;

#[test]
fn the_built_in_example_passes_all_its_tests() {
    let report = run(BUILT_IN.text);
    let shown = render_report(&report);
    assert_eq!(report.failed(), 0, "{shown}");
    assert!(report.passed() > 4500, "{shown}");
    assert_eq!(report.tests.len(), 9);
}

#[test]
fn windows_and_meters_are_tested_too() {
    let policy = POLICY.replace("{day.limit}", "{minute.reset_s}");
    let report = run(&format!(
        r#"{policy}
[[test]]
api = "a"
start = 2024-05-03T15:28:20Z
steps = [
  {{ send = "POST /x user=u", times = 2, expect = "allow", headers = {{ X-RateLimit-Remaining = "0", X-RateLimit-Reset = "1714750140", X-Type = false }} }},
  {{ send = "POST /x user=u", expect = "deny calls.minute", status = 418, headers = {{ x-type = "minute", Retry-After = "40" }}, body = '{{"w":"minute","r":40,"u":2,"d":"40"}}' }},
  {{ at = "40s", send = "POST /x user=u", expect = "allow" }},
  {{ send = "POST /x user=u", expect = "deny calls.hour", headers = {{ X-Type = "hour", Retry-After = "1860" }} }},
  {{ send = "POST /x user=v", cost = {{ up = 100 }}, expect = "allow" }},
  {{ send = "POST /x user=v", cost = {{ up = 50 }}, expect = "deny bytes", status = 429, headers = {{ X-Type = false, Retry-After = "1" }} }},
  {{ send = "POST /x user=w", cost = {{ up = 101 }}, expect = "deny", headers = {{ Retry-After = false }}, body = '{{"w":"","r":null,"u":0,"d":"60"}}' }},
]
"#
    ));
    assert_eq!(report.failed(), 0, "{}", render_report(&report));
}

#[test]
fn a_failure_tells_its_line_and_both_values() {
    let policy = POLICY.replace("{day.limit}", "");
    let report = run(&format!(
        r#"{policy}
[[test]]
name = "wrong"
api = "a"
steps = [
  {{ send = "POST /x user=u", times = 3, expect = "allow" }},
  {{ send = "POST /x user=u", expect = "allow" }},
]
[[test]]
api = "a"
steps = [
  {{ send = "POST /x user=u", expect = "allow", status = 204, headers = {{ X-RateLimit-Limit = "3", Retry-After = "1" }} }},
]
[[test]]
api = "a"
steps = [{{ send = "POST /x", expect = "allow" }}]
"#
    ));
    assert_eq!((report.passed(), report.failed()), (3, 5));
    assert_eq!(
        render_report(&report),
        r#"FAIL  wrong (p.toml:14), 2 passed, 1 failed
      p.toml:18: POST /x user=u (3 of 3)
        decision
          found     deny calls.minute
          expected  allow
FAIL  a (p.toml:21), 1 passed, 3 failed
      p.toml:24: POST /x user=u
        status
          found     200
          expected  204
      p.toml:24: POST /x user=u
        X-RateLimit-Limit
          found     "2"
          expected  "3"
      p.toml:24: POST /x user=u
        Retry-After
          found     (none)
          expected  "1"
FAIL  a (p.toml:26), 0 passed, 1 failed
      p.toml:28: POST /x
        decision
          found     no decision: attribute `user` is missing; limit `calls` needs it
          expected  allow

3 passed, 5 failed
"#
    );
}

#[test]
fn what_a_test_names_must_exist() {
    let policy = POLICY.replace("{day.limit}", "");
    let found = problems(&format!(
        r#"{policy}
[[test]]
api = "b"
steps = [{{ send = "POST /x" }}]
[[test]]
api = "a"
steps = [
  {{ send = "POST /x usr=1", expect = "deny cals", headers = {{ X-RateLimit-Limt = "1" }} }},
  {{ send = "POST", expect = "maybe", cost = {{ upp = 1 }} }},
  {{ send = "POST /x method=1 user=1 user=2 user", cost = 2 }},
]
"#
    ));
    assert_eq!(
        found,
        [
            "p.toml:15:7: unknown API `b`",
            "p.toml:20:21: no limit reads the attribute `usr`",
            "p.toml:20:38: unknown limit `cals`",
            "p.toml:20:63: the API never sends the header `X-RateLimit-Limt`",
            "p.toml:21:12: no request",
            "p.toml:21:29: `maybe` is no decision",
            "p.toml:21:47: no limit reads the meter `upp`",
            "p.toml:22:21: no limit reads the attribute `method`",
            "p.toml:22:37: `user` stands here twice",
            "p.toml:22:44: `user` is no attribute",
        ]
    );
}

/// What a step could not mean was once left out of it, and the test passed by less than it says.
#[test]
fn a_test_says_nothing_that_is_not_looked_at() {
    let policy = POLICY.replace("{day.limit}", "");
    let found = problems(&format!(
        r#"{policy}
[[test]]
api = "a"
steps = [
  {{ send = "POST /x user=1", cost = -5 }},
  {{ send = "POST /x user=1", remaining = {{ calls = "-5" }} }},
  {{ release = "p", cost = 2 }},
  {{ send = "POST /x user=1", adjust = "calls", by = 1, permit = "p" }},
]
"#
    ));
    assert_eq!(
        found,
        [
            "p.toml:19:3: `cost` goes with a request that is sent",
            "p.toml:20:3: `permit` goes with a request that is sent",
        ],
        "what is misplaced ends the reading"
    );
    let found = problems(&format!(
        r#"{policy}
[[test]]
api = "a"
steps = [
  {{ send = "POST /x user=1", cost = -5 }},
  {{ send = "POST /x user=1", remaining = {{ calls = "-5" }} }},
]
"#
    ));
    assert_eq!(
        found,
        [
            "p.toml:17:37: found -5, allowed is an amount from 0 to 2^53",
            "p.toml:18:52: found -5, allowed is an amount from 0 to 2^53",
        ]
    );
}
