//! What compiled policies mean: conditions, tables, keys, costs and answers, checked by the tests
//! that policies hold themselves.

use super::super::render_report;
use super::*;

const SEED: Seed = Seed::new([7; 16]);

/// Runs the tests of a policy; each must pass.
fn passes(text: &str) {
    let source = Source { name: "p.toml", text };
    let policy = compile(&[source], &SEED).unwrap_or_else(|errors| panic!("{errors}"));
    let report = policy.run_tests();
    assert!(report.failed() == 0 && report.passed() > 0, "{}", render_report(&report));
}

#[test]
fn the_most_specific_value_counts_whatever_the_order_of_tables() {
    let test = r#"
[[test]]
api = "a"
steps = [
  { send = "GET /x tier=free", expect = "allow", remaining = { l = 0 } },
  { send = "GET /y tier=free", expect = "allow", remaining = { l = 9 } },
  { send = "GET /y tier=pro", expect = "allow", remaining = { l = 29 } },
  { send = "GET /x/a tier=pro region=eu", expect = "allow", remaining = { l = 39 } },
  { send = "GET /x/a tier=pro region=us", expect = "allow", remaining = { l = 49 } },
  { send = "GET /x/a tier=pro", expect = "allow", remaining = { l = 49 } },
  { send = "GET /x/a/b tier=pro", expect = "allow", remaining = { l = 19 } },
]
"#;
    for tables in [
        r#"fixed.tier.free.route = { "/x" = "1/min", "*" = "10/min" }
fixed.tier.pro.route = { "/x/*" = "20/min", "/x/:id".attr.region = { eu = "40/min", "*" = "50/min" }, "*" = "30/min" }"#,
        r#"fixed.route."/x".tier = { free = "1/min", "*" = "20/min" }
fixed.route."/x/:id".attr.region.eu.tier = { pro = "40/min", free = "10/min" }
fixed.route."/x/:id".attr.region."*".tier = { pro = "50/min", "*" = "10/min" }
fixed.route."/x/*".tier = { pro = "20/min", free = "10/min" }
fixed.route."*".tier = { pro = "30/min", free = "10/min" }"#,
    ] {
        passes(&format!(
            "schema = 1\n[api.a]\ntiers = ['free', 'pro']\n[api.a.limit.l]\nper = ['tier', 'path', 'region']\nmissing = 'skip'\n{tables}\n{}",
            test.replace("tier=pro\"", "tier=pro region=no\"")
                .replace("tier=free\"", "tier=free region=no\""),
        ));
    }
}

#[test]
fn a_request_that_tables_leave_out_is_not_limited_and_a_tier_that_is_missing_is_wrong() {
    passes(
        r#"schema = 1
[api.a]
tiers = ["free", "pro"]
tier_default = "free"
class.x = ["/x"]
[api.a.limit]
l = { fixed.tier = { free = "1/min", pro = "2/min, 3/day" } }
m = { fixed.class = { x = "1/min" } }
n = { fixed.tier = { free = "unlimited", pro = "9/day" } }
[[test]]
api = "a"
steps = [
  { send = "GET /y", expect = "allow", remaining = { l = 0 } },
  { send = "GET /y", expect = "deny l.minute" },
  { send = "GET /y tier=pro", expect = "allow", remaining = { "l.day" = 2, n = 7 } },
  { send = "GET /x tier=pro", expect = "deny l.minute" },
  { at = "60s", send = "GET /x tier=pro", expect = "allow", remaining = { m = 0, "l.day" = 1 } },
]
"#,
    );
}

#[test]
fn conditions_hold_all_at_once_and_lists_for_any_of_their_entries() {
    passes(
        r#"schema = 1
[api.a]
tiers = ["free", "pro"]
class.write = ["POST *", "PUT *"]
class.x = ["/x/*"]
[api.a.limit]
both  = { on = { class = "write", tier = ["pro"], auth = ["key", "app-*"] }, cost = 2, bucket = "9/min" }
net   = { on = { ip = ["10.0.0.0/8", "2001:db8::/32"] }, except = { method = "GET" }, bucket = "9/min" }
paths = { on = [{ path = "/x/*", route = ["/x/:id", "/y"] }, "/z"], bucket = "9/min" }
rest  = { except = ["write", { class = "x" }, "/z", { auth = "*" }, { ip = "*" }], bucket = "9/min" }
[[test]]
api = "a"
steps = [
  { send = "POST /a tier=pro auth=key", expect = "allow", remaining = { both = 7 } },
  { send = "PUT /a tier=pro auth=app-1", expect = "allow", remaining = { both = 5 } },
  { send = "GET /a tier=pro auth=key", expect = "allow" },
  { send = "POST /a tier=free auth=key", expect = "allow" },
  { send = "POST /a auth=key", expect = "allow" },
  { send = "POST /a tier=pro auth=apps", expect = "allow" },
  { send = "POST /a tier=pro", expect = "allow" },
  { send = "POST /a tier=pro auth=key", expect = "allow", remaining = { both = 3 } },
  { send = "DELETE /a ip=10.1.1.1", expect = "allow", remaining = { net = 8 } },
  { send = "HEAD /a ip=10.1.1.1", expect = "allow" },
  { send = "DELETE /a ip=2001:db8::7", expect = "allow", remaining = { net = 7 } },
  { send = "DELETE /a ip=11.1.1.1", expect = "allow" },
  { send = "GET /x/1", expect = "allow", remaining = { paths = 8 } },
  { send = "GET /x", expect = "allow" },
  { send = "GET /y", expect = "allow", remaining = { rest = 8 } },
  { send = "GET /z", expect = "allow", remaining = { paths = 7 } },
  { send = "GET /a", expect = "allow", remaining = { rest = 7 } },
]
"#,
    );
}

#[test]
fn rules_come_before_limits_and_deny_before_bypass() {
    passes(
        r#"schema = 1
[api.a]
deny = [
  { when = { auth = "none" }, status = 401, code = "no_key" },
  { when = "/admin/*", unless = [{ role = "admin" }, { ip = "10.0.0.0/8" }] },
]
bypass = [{ when = { role = ["admin", "probe"] }, code = "staff" }]
[api.a.limit]
l = { bucket = "1/min" }
[api.a.headers]
preset = "x-ratelimit"
denied.X-Why = "{binding.name}"
[api.a.denied.body]
no_key = '{"code":"{binding.name}","wait":{retry_after}}'
l = '{"wait":{retry_after}}'
"*" = '{"code":"other"}'
[[test]]
api = "a"
steps = [
  { send = "GET /a auth=none role=admin", expect = "deny no_key", status = 401, headers = { X-Why = "no_key", X-RateLimit-Limit = false, Cache-Control = "no-store" }, body = '{"code":"no_key","wait":null}' },
  { send = "GET /admin/x", expect = "deny", status = 403, headers = { X-Why = false }, body = '{"code":"other"}' },
  { send = "GET /admin/x ip=10.2.3.4", expect = "allow", headers = { X-RateLimit-Remaining = "0" } },
  { send = "GET /admin/x role=admin", expect = "bypass", status = 200, headers = { X-RateLimit-Remaining = false } },
  { send = "GET /a role=probe", times = 5, expect = "bypass" },
  { send = "GET /a", expect = "deny l", status = 429, body = '{"wait":60}' },
]
"#,
    );
}

#[test]
fn keys_are_made_of_routes_classes_tiers_segments_and_addresses() {
    passes(
        r#"schema = 1
[api.a]
tiers = ["free", "pro"]
class.x = ["/x/:id", "/x/:id/z"]
class.y = ["GET /y/*"]
class.all = ["*"]
[api.a.limit]
by_route   = { on = ["x", "/y/special"], per = ["route"], fixed = "100/hour" }
by_class   = { on = ["x", "all"], per = ["class"], fixed = "100/hour" }
by_tier    = { on = "y", per = ["tier"], fixed = "100/hour" }
by_segment = { on = "x", per = [":id", "method"], fixed = "100/hour" }
by_ip      = { on = { ip = "*" }, per = ["ip/48", "path"], fixed = "100/hour" }
[[test]]
api = "a"
steps = [
  { send = "GET /x/1 tier=free", expect = "allow", remaining = { by_route = 99, by_class = 99, by_segment = 99 } },
  { send = "GET /x/2 tier=free", expect = "allow", remaining = { by_route = 98, by_class = 98, by_segment = 99 } },
  { send = "GET /x/1/z tier=free", expect = "allow", remaining = { by_route = 99, by_class = 97, by_segment = 98 } },
  { send = "HEAD /x//1/%7a/ tier=free", expect = "allow", remaining = { by_route = 98, by_segment = 97 } },
  { send = "PUT /x/1/z tier=free", expect = "allow", remaining = { by_segment = 99 } },
  { send = "GET /y/special tier=free", expect = "allow", remaining = { by_route = 99, by_class = 99, by_tier = 99 } },
  { send = "GET /y/a tier=pro", expect = "allow", remaining = { by_class = 98, by_tier = 99 } },
  { send = "GET /q tier=pro ip=2001:db8:1:2::3", expect = "allow", remaining = { by_ip = 99 } },
  { send = "GET /q tier=pro ip=2001:db8:1:9::9", expect = "allow", remaining = { by_ip = 98 } },
  { send = "GET /q tier=pro ip=2001:db8:2::", expect = "allow", remaining = { by_ip = 99 } },
  { send = "GET /r tier=pro ip=2001:db8:1:2::3", expect = "allow", remaining = { by_ip = 99 } },
]
"#,
    );
}

#[test]
fn calendar_windows_follow_their_zone_and_the_anchor_that_requests_say() {
    passes(
        r#"schema = 1
[api.a.limit]
day   = { on = "/day", calendar = "1/day", tz = "Europe/Berlin" }
month = { on = "/month", per = ["team"], calendar = "1/month", tz = "attr.zone", anchor = "attr.billing_day" }
both  = { on = "/both", calendar = "5/week, 6/month", anchor = "wednesday" }
[[test]]
api = "a"
start = "2024-01-30T20:00:00Z"
steps = [
  { send = "GET /day", expect = "allow" },
  { at = "10799s", send = "GET /day", expect = "deny day.day", headers = { Retry-After = "1" } },
  { at = "3hour", send = "GET /day", expect = "allow" },
  { send = "GET /month team=t zone=UTC billing_day=31", expect = "allow" },
  { send = "GET /month team=t zone=UTC billing_day=31", expect = "deny month", headers = { Retry-After = "3600" } },
  { at = "4hour", send = "GET /month team=t zone=UTC billing_day=31", expect = "allow" },
  # A short month: the last of February instead.
  { send = "GET /month team=t zone=UTC billing_day=31", expect = "deny month", headers = { Retry-After = "2505600" } },
  { send = "GET /both", times = 5, expect = "allow", remaining = { "both.week" = 0, "both.month" = 1 } },
  { send = "GET /both", expect = "deny both.week", headers = { Retry-After = "604800" } },
]
"#,
    );
}

#[test]
fn charging_always_counts_attempts_that_other_limits_deny() {
    passes(
        r#"schema = 1
[api.a.limit]
attempts = { charge = "always", fixed = "5/hour" }
gate     = { fixed = "1/min" }
[[test]]
api = "a"
start = "2024-01-30T20:00:00Z"
steps = [
  { send = "GET /", expect = "allow", remaining = { attempts = 4 } },
  { send = "GET /", times = 3, expect = "deny gate", remaining = { attempts = 1 } },
  { send = "GET /", times = 9, expect = "deny" },
  { at = "60s", send = "GET /", expect = "deny attempts" },
  { at = "1hour", send = "GET /", expect = "allow" },
]
"#,
    );
}

/// The headers of each preset, byte for byte, as `LANGUAGE.md` lists them.
#[test]
fn presets_send_their_headers() {
    let policy = |preset: &str, headers: &str| {
        let names: Vec<String> = headers.lines().map(|line| line.trim().to_owned()).collect();
        passes(&format!(
            r#"schema = 1
[api.a.limit]
calls  = {{ fixed = "10/min, 50/hour, 100/day" }}
tokens = {{ meter = "tokens", bucket = "60/min burst 120" }}
slots  = {{ concurrent = 4, lease = "1min" }}
size   = {{ meter = "file_bytes", cap = "1MB" }}
[api.a.headers]
preset = {preset}
[[test]]
api = "a"
start = "2024-05-03T15:28:20Z"
steps = [{{ send = "GET /", cost = {{ requests = 4, tokens = 30 }}, expect = "allow", headers = {{ {} }} }}]
"#,
            names.join(", "),
        ));
    };
    // 40 seconds of the minute are left.
    policy(
        r#""x-ratelimit"
from = "calls.minute""#,
        "X-RateLimit-Limit = '10'
        X-RateLimit-Remaining = '6'
        X-RateLimit-Reset = '1714750140'",
    );
    policy(
        r#""ietf-10"
from = "calls.minute""#,
        r#"RateLimit-Policy = '"calls.minute";q=10;w=60, "calls.hour";q=50;w=3600, "calls.day";q=100;w=86400, "slots";q=4;qu="concurrent-requests", "tokens";q=120;w=120'
        RateLimit = '"calls.minute";r=6;t=40'"#,
    );
    policy(
        r#""ietf-07"
from = "tokens""#,
        r#"RateLimit-Policy = '10;w=60, 50;w=3600, 100;w=86400, 120;w=120'
        RateLimit = 'limit=120, remaining=90, reset=30'"#,
    );
    policy(
        r#""ietf-06"
from = "calls.hour""#,
        "RateLimit-Limit = '50'
        RateLimit-Remaining = '46'
        RateLimit-Reset = '1900'
        RateLimit-Policy = '10;w=60, 50;w=3600, 100;w=86400, 120;w=120'",
    );
    policy(
        r#""polli-03"
from = "calls.minute""#,
        r#"X-RateLimit-Limit = '10, 10;w=60;name="calls.minute", 50;w=3600;name="calls.hour", 100;w=86400;name="calls.day", 120;w=120;name="tokens"'
        X-RateLimit-Remaining = '6'
        X-RateLimit-Reset = '40'"#,
    );
    policy(
        r#""github"
from = "calls.hour""#,
        "x-ratelimit-limit = '50'
        x-ratelimit-remaining = '46'
        x-ratelimit-used = '4'
        x-ratelimit-reset = '1714752000'
        x-ratelimit-resource = 'calls'",
    );
    policy(
        r#""twitter"
from = "calls.day""#,
        "x-rate-limit-limit = '100'
        x-rate-limit-remaining = '96'
        x-rate-limit-reset = '1714780800'",
    );
    policy(
        r#""openai"
from = { requests = "calls.minute", tokens = "tokens" }"#,
        "x-ratelimit-limit-requests = '10'
        x-ratelimit-limit-tokens = '120'
        x-ratelimit-remaining-requests = '6'
        x-ratelimit-remaining-tokens = '90'
        x-ratelimit-reset-requests = '40s'
        x-ratelimit-reset-tokens = '30s'",
    );
    policy(
        r#""anthropic"
from = { requests = "calls.minute", tokens = "tokens" }"#,
        "anthropic-ratelimit-requests-limit = '10'
        anthropic-ratelimit-requests-remaining = '6'
        anthropic-ratelimit-requests-reset = '2024-05-03T15:29:00Z'
        anthropic-ratelimit-tokens-limit = '120'
        anthropic-ratelimit-tokens-remaining = '90'
        anthropic-ratelimit-tokens-reset = '2024-05-03T15:28:50Z'",
    );
    policy(
        r#""kong"
from = ["calls.minute", "calls.hour", "calls.day"]"#,
        "X-RateLimit-Limit-Minute = '10'
        X-RateLimit-Remaining-Minute = '6'
        X-RateLimit-Limit-Hour = '50'
        X-RateLimit-Remaining-Hour = '46'
        X-RateLimit-Limit-Day = '100'
        X-RateLimit-Remaining-Day = '96'
        RateLimit-Limit = '10'
        RateLimit-Remaining = '6'
        RateLimit-Reset = '40'",
    );
}
