//! What compiles, what does not and why, and that nothing panics.

use proptest::prelude::*;

use super::super::examples::EXAMPLES;
use super::super::handle::{Handle, SlotUse};
use super::super::resolve::{Context, Request, Scratch};
use super::super::{BUILT_IN, render_report};
use super::*;
use crate::engine::command::{Charge, LimitId};
use crate::engine::time::UtcTime;

const SEED: Seed = Seed::new([7; 16]);

fn compiled(text: &str) -> Policy {
    match compile(&[Source { name: "p.toml", text }], &SEED) {
        Ok(policy) => policy,
        Err(errors) => panic!("{errors}"),
    }
}

fn problems(text: &str) -> Vec<String> {
    match compile(&[Source { name: "p.toml", text }], &SEED) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(|error| error.message.clone()).collect(),
    }
}

/// Problems of a policy with these lines under `[api.a]` and these under `[api.a.limit]`.
fn problems_of(api: &str, limits: &str) -> Vec<String> {
    problems(&format!("schema = 1\n[api.a]\n{api}\n[api.a.limit]\n{limits}\n"))
}

#[test]
fn the_built_in_example_compiles_to_what_it_says() {
    let policy = compiled(BUILT_IN.text);
    assert_eq!(policy.apis().collect::<Vec<_>>(), ["media"]);
    let classes: Vec<_> = policy.classes("media").collect();
    let expected = ["files_post", "images_post", "read", "videos_post"];
    assert_eq!(classes, [&expected[..], &["webhook_endpoints_post"]].concat());
    let api = policy.handle_of("media", None).unwrap();
    let slots: Vec<_> = api.slots().iter().map(|slot| (&*slot.name, slot.slot_use)).collect();
    assert_eq!(
        slots,
        [
            ("method", SlotUse::Route),
            ("path", SlotUse::Route),
            ("team", SlotUse::Key),
            ("request_id", SlotUse::Text),
        ]
    );
    assert!(api.slots()[2].required && !api.slots()[3].required);
    let headers: Vec<_> = api.header_names().collect();
    let preset = ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"];
    assert_eq!(headers, [&preset[..], &["Retry-After", "Cache-Control"]].concat());
    let constant = [(Box::from("Cache-Control"), Box::from("no-store"))];
    assert_eq!(api.denial_headers(), constant);
    assert_eq!(api.denial_status(), 429);
    let class = policy.handle_of("media", Some("images_post")).unwrap();
    let slots: Vec<_> = class.slots().iter().map(|slot| &*slot.name).collect();
    assert_eq!(slots, ["team", "request_id"]);
    let limits: Vec<_> = class.limits().iter().map(|limit| &*limit.name).collect();
    assert_eq!(limits, ["images_post"]);
    for handle in policy.handles() {
        assert_eq!(policy.handle(handle.number()).unwrap().layout(), handle.layout());
        for limit in handle.limits() {
            assert_eq!(policy.limit(limit.id).unwrap().name, limit.name);
        }
    }
    assert!(policy.handle(0).is_none() && policy.limit(LimitId::INLINE).is_none());
    assert_eq!(policy.summary(), "media: 5 classes, 5 limits (2 off), 9 tests\n");
}

#[test]
fn layouts_differ_where_positions_mean_something_else() {
    let policy = compiled(BUILT_IN.text);
    let mut layouts: Vec<u64> = policy.handles().iter().map(Handle::layout).collect();
    layouts.sort_unstable();
    layouts.dedup();
    assert_eq!(layouts.len(), policy.handles().len());
    let numbers = compiled(&BUILT_IN.text.replace("60/min burst 120", "60/min burst 119"));
    let names = compiled(
        &BUILT_IN.text.replace("attr.request_id", "attr.rid").replace("request_id=req", "rid=req"),
    );
    let layout = |policy: &Policy| policy.handle_of("media", None).unwrap().layout();
    assert_eq!(layout(&policy), layout(&numbers));
    assert_ne!(layout(&policy), layout(&names));
    assert_ne!(policy.version(), numbers.version());
    assert_eq!(policy.version(), compiled(BUILT_IN.text).version());
}

#[test]
fn a_problem_of_each_sort_is_told() {
    let class = r#"class.x = ["/x"]"#;
    let cases: &[(&str, &str, &str)] = &[
        ("klass.x = ['/x']", "", "unknown key `klass`"),
        ("tiers = ['a']", "", ""),
        ("tiers = ['a', 'a']", "", "tier `a` stands here twice"),
        ("tiers = []", "", "an API with tiers has at least one"),
        ("tiers = ['a']\ntier_default = 'b'", "", "unknown tier `b`"),
        ("deny = [{ status = 403 }]", "", "a rule has `when`, `unless` or both"),
        ("deny = [{ when = { tier = 'a' } }]", "", "unknown tier `a`"),
        ("deny = [{ when = { class = 'a' } }]", "", "unknown class `a`"),
        ("deny = [{ when = { auth = [] } }]", "", "a condition without a value never holds"),
        ("deny = [{ when = '/x', status = 200 }]", "", "the number is 200, allowed is 400 to 599"),
        ("bypass = [{ when = '/x', status = 403 }]", "", "unknown key `status`"),
        ("subject.acount = ['key']", "", "unknown key `acount`"),
        (
            "subject.account = ['tier']",
            "",
            "an account has at least one identity|`tier` cannot be one of the identities",
        ),
        ("class.x = []", "", "class `x` is empty"),
        ("class.x = ['x']", "", "`x` is no path pattern"),
        ("class.'a b' = ['/x']", "", "`a b` is no name for a class"),
        ("class.x = ['GET *', 'GET /a']", "", "unreachable route `GET /a`"),
        ("class.x = ['/a/:x', '/a/*']", "", "unreachable route `/a/:x`"),
        ("class.x = ['/a/:x', '/:y/b']", "", "routes `/a/:x` and `/:y/b` overlap"),
        ("class.x = ['POST /a/:x', 'GET /:y/b']", "", ""),
        ("class.x = ['/a']\nclass.y = ['/a', '/b']", "", ""),
        ("", "l = { bucket = '1/s', on = 'x' }", "unknown class `x`"),
        (class, "l = { bucket = '1/s', on = ['x', 'x'] }", "class `x` stands here twice"),
        (
            class,
            "l = { bucket = '1/s', on = 'x', except = ['x'] }",
            "no request can reach limit `l`",
        ),
        (class, "l = { bucket = '1/s', on = { class = 'x', auth = 'key' } }", ""),
        (class, "l = { bucket = '1/s', on = { } }", "a table without conditions"),
        ("", "l = { bucket = '1/s', on = { method = 'HEAD' } }", "`HEAD` counts as `GET`"),
        ("", "l = { bucket = '1/s', on = [] }", "an empty list matches nothing"),
        ("", "l = { }", "limit `l` has no kind"),
        ("", "l = { bucket = '1/s', fixed = '1/s' }", "limit `l` has a second kind"),
        ("", "l = { sliding = '1/s, 5/min' }", ""),
        ("", "l = { concurrent = 3, lease = '1min' }", ""),
        ("", "l = { concurrent = 3 }", "missing lease"),
        (
            "",
            "l = { concurrent = 3, lease = '1us' }",
            "lease_ns is 1000, allowed is 1000000 to 31622400000000000",
        ),
        (
            "",
            "l = { concurrent = 3, lease = '1min', charge = 'always' }",
            "permits are only given to requests that are allowed",
        ),
        ("", "l = { bucket = '1/s', lease = '1min' }", "`lease` goes with `concurrent`"),
        (
            "",
            "l = { bucket = '1/s', retry_after = '1min' }",
            "`retry_after` goes with `concurrent` and `level`",
        ),
        ("", "l = { bucket = '1/s', tz = 'UTC' }", "`tz` goes with `calendar`"),
        ("", "l = { calendar = '5/month', tz = 'UCT+1' }", "unknown time zone `UCT+1`"),
        ("", "l = { calendar = '5/month', anchor = 31 }", ""),
        ("", "l = { calendar = '5/month', anchor = 0 }", "`0` is no anchor of these windows"),
        ("", "l = { calendar = '5/week', anchor = 'friday' }", ""),
        (
            "",
            "l = { calendar = '5/month', anchor = 'friday' }",
            "`friday` is no anchor of these windows",
        ),
        (
            "",
            "l = { calendar = '5/day, 9/month', anchor = 'attr.x' }",
            "an anchor that requests say, and several periods",
        ),
        ("", "l = { calendar = '5/hour' }", "`hour` is no period of the calendar"),
        ("", "l = { cap = 20, meter = 'files' }", ""),
        (
            "",
            "l = { cap = '20MB', meter = 'files' }",
            "`MB` is a unit, and what is counted has none",
        ),
        ("", "l = { cap = '20MB', meter = 'file_bytes' }", ""),
        ("", "l = { cap = 20, per = ['a'] }", "a cap looks at one request alone, and has no `per`"),
        (
            "",
            "l = { level = 1.5 }",
            "found a float, allowed is an integer, or a string with a unit",
        ),
        ("", "l = { fixed = 'unlimited' }", "unlimited in no window"),
        ("", "l = { fixed = 'unlimited/day' }", ""),
        ("", "l = { bucket.tier = { a = '1/s' } }", "unknown tier `a`"),
        (
            "tiers = ['a', 'b']",
            "l = { bucket.tier = { a = '1/s' } }",
            "tier `b` has no value in limit `l`",
        ),
        ("tiers = ['a', 'b']", "l = { bucket.tier = { a = '1/s', '*' = '2/s' } }", ""),
        (
            "tiers = ['a', 'b']\ndeny = [{ when = { tier = 'b' } }]",
            "l = { bucket.tier = { a = '1/s' } }",
            "",
        ),
        (
            "tiers = ['a', 'b']\ndeny = [{ when = { tier = 'b' }, unless = { auth = 'session' } }]",
            "l = { bucket.tier = { a = '1/s' } }",
            "tier `b` has no value in limit `l`",
        ),
        ("", "l = { bucket.teir = { a = '1/s' } }", "unknown key `teir`"),
        ("", "l = { bucket.class = { a = '1/s' } }", "unknown class `a`"),
        (
            class,
            "l = { bucket = { class.x = '1/s', route.'/y' = '1/s' } }",
            "values by `class` beside values by `route`",
        ),
        (
            "",
            "l = { bucket.route = { '/a/:x' = '1/s', '/:y/b' = '2/s' } }",
            "`/a/:x` and `/:y/b` overlap",
        ),
        ("", "l = { bucket.route = { '/a/*' = '1/s', '/a/b' = '2/s', '*' = '3/s' } }", ""),
        (
            "",
            "l = { bucket.attr.region = { eu = '1/s' } }",
            "values by the attribute `region` lack `\"*\"`",
        ),
        ("", "l = { bucket.attr.region = { eu = '1/s', '*' = '2/s' } }", ""),
        (
            "",
            "l = { bucket.attr.tier = { eu = '1/s', '*' = '2/s' } }",
            "values by the attribute `tier`",
        ),
        ("", "l = { bucket.attr = { } }", "`attr` names one attribute"),
        ("", "l = { bucket.route = { } }", "the table by route is empty"),
        ("", "l = { bucket = 5 }", "found an integer, allowed is a string, in quotes"),
        ("", "l = { bucket = '60/m' }", "`m` is no unit of time"),
        (
            "",
            "l = { fixed = '50/min, 5/day' }",
            "the longer window allows less: `5/day` beside `50/min`",
        ),
        ("", "l = { bucket = '1/s', align = 'clock' }", "a bucket has no windows to align"),
        ("", "l = { fixed = '1/s', align = 'clok' }", "unknown value `clok`"),
        (
            "",
            "l = { bucket = '9/s burst 3', cost = 5 }",
            "a cost of 5 never fits: limit `l` holds 3",
        ),
        (
            "",
            "l = { bucket = '9/s', cost = 0 }",
            "the number is 0, allowed is 1 to 9007199254740992",
        ),
        ("", "l = { bucket = '9/s', cost = 1.5 }", "found a float, allowed is an integer"),
        (
            "",
            "l = { bucket = '9/s', cost.route = { 'GET *' = 1, '*' = 10 } }",
            "a cost of 10 never fits: limit `l` holds 9",
        ),
        ("", "l = { bucket = '9/s', mode = 'shadow' }", ""),
        ("", "l = { bucket = '9/s', mode = 'of' }", "unknown value `of`"),
        ("", "l = { bucket = '9/s', status = 200 }", "the number is 200, allowed is 400 to 599"),
        (
            "",
            "l = { bucket = '9/s', per = ['route'] }",
            "`route` in `per`, and there is no route to tell apart",
        ),
        (class, "l = { bucket = '9/s', per = ['route', 'class', 'method', 'path'] }", ""),
        ("", "l = { bucket = '9/s', per = ['tier'] }", "the API has no tiers"),
        ("", "l = { bucket = '9/s', on = '/x/:id', per = [':id'] }", ""),
        (
            "",
            "l = { bucket = '9/s', on = '/x/:id', per = [':i'] }",
            "route `/x/:id` has no segment `:i`",
        ),
        ("", "l = { bucket = '9/s', per = ['ip/64'] }", ""),
        ("", "l = { bucket = '9/s', per = ['ip/129'] }", "`ip/129` is no key of addresses"),
        ("", "l = { bucket = '9/s', per = ['a', 'a'] }", "`a` stands in `per` twice"),
        ("", "l = { bucket = '9/s', per = ['é'] }", "`é` is no name for an attribute"),
        ("", "l = { bucket = '9/s', missing = 'deny' }", "unknown value `deny`"),
        ("", "l = { bucket = '9/s', charge = 'always' }", ""),
        ("", "binding = { bucket = '9/s' }", "`binding` cannot name a limit: templates use it"),
        ("headers.preset = 'github'", "", ""),
        ("headers.preset = 'openai'", "", "the preset `openai` needs `from` by role"),
        (
            "headers = { preset = 'openai', from = { requests = 'l', token = 'l' } }",
            "l = { bucket = '9/s' }",
            "unknown role `token`",
        ),
        (
            "headers = { preset = 'github', from = { requests = 'l' } }",
            "l = { bucket = '9/s' }",
            "unknown role `requests`",
        ),
        ("headers.preset = 'x-rate'", "", "unknown preset `x-rate`"),
        ("headers.reset = 'full_epoch'", "", "`reset` needs a preset that shows it"),
        ("headers = { preset = 'x-ratelimit', reset = 'full' }", "", "unknown field `full`"),
        (
            "headers = { preset = 'x-ratelimit', from = 'm' }",
            "l = { bucket = '9/s' }",
            "unknown limit `m`",
        ),
        (
            "headers = { preset = 'x-ratelimit', from = 'l' }",
            "l = { fixed = '9/s, 9/min' }",
            "limit `l` has several windows",
        ),
        ("headers.always = { 'X Y' = 'a' }", "", "`X Y` is no name of a header"),
        ("headers.denied = { X = 'a', x = 'b' }", "", "header `x` stands here twice"),
        (
            "headers.denied = { X = \"a\\nb\" }",
            "",
            "a header value holds visible ASCII characters and spaces only",
        ),
        ("headers.denied = { X = '{text.type}' }", "", "unknown text `type`"),
        ("text.type = 'x'\nheaders.denied = { X = '{text.type}' }", "", ""),
        ("text.type = '{text.type}'", "", "unknown text `type`"),
        ("text.type = { day = 'x' }", "", "nothing is called `day` that denies"),
        (
            "text.type = { day = 'x', 'l.day' = 'y', l = 'z', '*' = '', no = 'n' }\ndeny = [{ when = '/x', code = 'no' }]",
            "l = { fixed = '9/day' }",
            "",
        ),
        ("headers.denied = { X = '{tier}' }", "", "the API has no tiers"),
        ("denied.body = '{ \"a\": }'", "", "not JSON: expected value"),
        ("denied.body = { day = '1' }", "", "nothing is called `day` that denies"),
        ("denied.body = { day = '1', '*' = '{}' }", "l = { fixed = '9/day' }", ""),
    ];
    let differ: Vec<_> = cases
        .iter()
        .map(|(api, limits, expected)| (problems_of(api, limits).join("|"), expected, api, limits))
        .filter(|(found, expected, ..)| found != *expected)
        .collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

#[test]
fn all_problems_of_all_sources_are_told_at_once() {
    let first = "schema = 1\n[api.a]\nclas.x = 1\nlimit.l = { bucket = '1/m' }\n";
    let second = "[api.a]\nheaders.preset = 'nonne'\n[[tests]]\n";
    let sources = [Source { name: "1", text: first }, Source { name: "2", text: second }];
    let errors = compile(&sources, &SEED).unwrap_err();
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "1:3:1: unknown key `clas`",
            "1:4:25: `m` is no unit of time",
            "2:1:1: `schema` is missing",
            "2:1:6: API `a` is defined twice",
            "2:2:18: unknown preset `nonne`",
            "2:3:3: unknown key `tests`",
        ]
    );
    let helps: Vec<&str> = errors.iter().filter_map(|error| error.help.as_deref()).collect();
    assert!(helps.contains(&"did you mean `class`?") && helps.contains(&"min or month?"));
}

#[test]
fn a_problem_is_shown_with_its_line_and_a_caret() {
    let text = "schema = 1\n[api.a]\nlimit.l = { buckte = \"60/min\" }\n";
    let errors = compile(&[Source { name: "p.toml", text }], &SEED).unwrap_err();
    let expected = "\
error[kind]: limit `l` has no kind
 --> p.toml:3:7
  |
3 | limit.l = { buckte = \"60/min\" }
  |       ^
  |
  = help: give it one, as in `bucket = \"60/min burst 120\"` or `fixed = \"5/min\"`

error[unknown-key]: unknown key `buckte`
 --> p.toml:3:13
  |
3 | limit.l = { buckte = \"60/min\" }
  |             ^^^^^^
  |
  = help: did you mean `bucket`?

2 errors in the policy
";
    assert_eq!(errors.render_plain(), expected);
}

fn charges(policy: &Policy, class: Option<&str>, values: &[Option<&[u8]>]) -> Vec<Charge> {
    let handle = policy.handle_of("a", class).unwrap();
    let (mut charges, mut limits) = (Vec::new(), Vec::new());
    let request = Request { values, costs: &[] };
    let context = Context::at(UtcTime::from_nanos(0));
    handle.resolve(&request, &context, &mut Scratch::default(), &mut charges, &mut limits).unwrap();
    charges
}

#[test]
fn an_edit_of_the_numbers_keeps_counters_and_another_window_does_not() {
    let keys = |kind: &str| {
        let text = format!("schema = 1\n[api.a.limit]\nl = {{ per = ['u'], {kind} }}\n");
        let values = [Some(&b"GET"[..]), Some(b"/"), Some(b"me")];
        let charges = charges(&compiled(&text), None, &values);
        charges.iter().map(|charge| charge.key).collect::<Vec<_>>()
    };
    let bucket = keys("bucket = '60/min burst 120'");
    assert_eq!(bucket, keys("bucket = '10/hour burst 3', on = '/', cost = 2"));
    let fixed = keys("fixed = '5/min'");
    assert_ne!(bucket, fixed);
    assert_eq!(fixed, keys("fixed = '9/60s'"));
    assert_eq!(fixed[0], keys("fixed = '9/min, 10/day'")[0]);
    assert_ne!(fixed, keys("fixed = '5/2min'"));
    assert_ne!(fixed, keys("fixed = '5/min', align = 'first'"));
    let sliding = keys("sliding = '5/min'");
    assert_ne!(sliding, fixed);
    assert_eq!(sliding, keys("sliding = '9/60s'"));
    assert_eq!(sliding, keys("sliding.route = { '/x' = '1/min', '*' = '2/min' }"));
    assert_ne!(sliding, keys("sliding = '5/2min'"));
    let calendar = keys("calendar = '5/month'");
    assert_eq!(calendar[0], keys("calendar = '2/day, 9/month'")[1]);
    assert_ne!(calendar, keys("calendar = '5/week'"));
    assert_ne!(calendar, keys("calendar = '5/month', tz = 'Asia/Tokyo'"));
    assert_ne!(calendar, keys("calendar = '5/month', anchor = 15"));
    let permits = keys("concurrent = 5, lease = '1min'");
    assert_eq!(permits, keys("concurrent = 9, lease = '2min', mode = 'shadow'"));
    assert_eq!(keys("level = 5"), keys("level = 'unlimited'"));
}

fn mutated() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0usize..6, ".{0,3}|[\\[\\]{}='\"\\n*:/0-9]{1,2}");
    let edits = prop::collection::vec(edit, 1..4);
    (prop::sample::select(&EXAMPLES[..]), edits).prop_map(|(example, edits)| {
        // Tests are most of the text, and what they may say is little.
        let end = example.text.find("[[test]]").unwrap_or(example.text.len());
        let end = (end + 1500).min(example.text.len());
        let end = (end..).find(|end| example.text.is_char_boundary(*end)).unwrap_or(0);
        let mut text = example.text[..end].to_owned();
        for (at, remove, insert) in edits {
            let places: Vec<usize> = text.char_indices().map(|(place, _)| place).collect();
            let at = at.index(places.len());
            let end = places.get(at + remove).copied().unwrap_or(text.len());
            text.replace_range(places[at]..end, &insert);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_edit_of_a_policy_panics(text in mutated()) {
        match compile(&[Source { name: "p.toml", text: &text }], &SEED) {
            Ok(policy) => { prop_assert!(!policy.show().is_empty() || policy.apis().count() == 0); }
            Err(errors) => { prop_assert!(!errors.render_colored().is_empty()); }
        }
    }

    #[test]
    fn no_text_panics(text in "(schema = 1\n)?(\\[api\\.a\\]\n)?([a-z.]{1,8} = (1|'[a-z/0-9 ]{0,8}'|\\{ [a-z]{1,6} = '.' \\})\n){0,4}") {
        let _ = compile(&[Source { name: "p.toml", text: &text }], &SEED);
    }
}

#[test]
fn a_text_made_to_be_slow_or_deep_is_refused_soon() {
    let many = |piece: &str| piece.repeat(POLICY_BYTES_MAX / 4 / piece.len());
    let numbered = |before: &str, after: &str, count: usize| -> String {
        (0..count).map(|index| format!("{before}{index}{after}")).collect()
    };
    let api = "schema = 1\n[api.a]\n";
    let texts = [
        format!("{}b = 1", many("a.")),
        format!("a = {}", many("[")),
        format!("a = {}", many("{a=")),
        format!("[{}b]", many("a.")),
        format!("{api}class.x = [{}]", numbered("'/", "', ", 20_000)),
        format!("{api}{}", numbered("class.c", " = ['/']\n", 10_000)),
        format!("{api}limit.l = {{ bucket = '1/s', per = [{}] }}", numbered("'a", "', ", 20_000)),
        format!("{api}limit.l = {{ bucket = '1/s', on = [{}] }}", numbered("'a", "', ", 20_000)),
        format!("{api}limit.l = {{ fixed = '{}' }}", numbered("1/", "s, ", 20_000)),
        format!("{api}{}", numbered("limit.l", " = { bucket = '1/s' }\n", 6_000)),
        format!("{api}denied.body = '\"{}\"'", numbered("{attr.a", "}", 15_000)),
        format!("{api}headers.always = {{ {} }}", numbered("H", " = '', ", 15_000)),
        many("x"),
        format!("#{}", many("xx")) + &many("y"),
    ];
    for text in texts {
        let errors = compile(&[Source { name: "p", text: &text }], &SEED).unwrap_err();
        assert!(errors.render_plain().ends_with("more\n") || errors.iter().count() < 110);
    }
}

#[test]
fn no_cut_of_a_policy_panics() {
    let text = &BUILT_IN.text[..4000];
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)).step_by(7) {
        if let Err(errors) = compile(&[Source { name: "p", text: &text[..end] }], &SEED) {
            errors.render_plain();
        }
    }
    let policy = compiled(BUILT_IN.text);
    assert!(render_report(&policy.run_tests()).ends_with(" passed, 0 failed\n"));
}
