//! A daemon that changes while it runs: its policy, overrides, identities; and what it tells of
//! requests and denials.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::{Daemon, Directory, Output, command, run};

/// Numbers that no test is slow enough to see move.
const BEFORE: &str = "schema = 1
[api.shop]
tiers = [\"free\", \"pro\"]
class.orders = [\"POST /orders\"]
class.old = [\"GET /old\"]
[api.shop.limit]
size = { on = \"/size\", per = [\"user\"], bucket = \"10/day burst 10\" }
plan = { on = \"/plan\", per = [\"user\"], calendar.tier = { free = \"10/month\", pro = \"20/month\" } }
class = { on = \"orders\", per = [\"user\"], calendar = \"10/month\" }
name = { on = \"/name\", per = [\"user\"], bucket = \"10/day burst 10\" }
";

/// An edit of size, tier, class and name, one each.
fn after() -> String {
    BEFORE
        .replace(
            "size = { on = \"/size\", per = [\"user\"], bucket = \"10/day burst 10\"",
            "size = { on = \"/size\", per = [\"user\"], bucket = \"10/day burst 8\"",
        )
        .replace("pro = \"20/month\"", "pro = \"30/month\"")
        .replace(
            "class.orders = [\"POST /orders\"]",
            "class.orders = [\"POST /orders\", \"POST /carts\"]",
        )
        .replace("name = { on", "renamed = { on")
}

fn serve(name: &str, text: &str) -> (Directory, String, Daemon) {
    let directory = Directory::new(name);
    let path = directory.write("shop.toml", text);
    let daemon = Daemon::start_with(&["--policy", &path]);
    (directory, path, daemon)
}

/// What is left of the one limit that a request meets.
fn left(daemon: &Daemon, api: &str, words: &[&str]) -> u64 {
    let peeked = daemon.ask(&[&["peek", api], words, &["--json"]].concat());
    peeked.json()[0]["limits"][0]["remaining"].as_u64().unwrap_or_else(|| panic!("{peeked:?}"))
}

fn reload(daemon: &Daemon) {
    daemon.signal("HUP");
    daemon.wait_for_log("policy reloaded");
}

/// Every counter half used, under load: what survives and what begins anew is what `policy diff`
/// says, and no check in flight gets an error.
#[test]
fn a_reload_under_load_keeps_what_policy_diff_said() {
    let (directory, path, daemon) = serve("reload", BEFORE);
    let requests: [(&str, &[&str]); 4] = [
        ("size", &["GET /size", "user=u"]),
        ("plan", &["GET /plan", "user=u", "tier=pro"]),
        ("class", &["POST /orders", "user=u"]),
        ("name", &["GET /name", "user=u"]),
    ];
    for (_, words) in &requests {
        let half = [&["check", "shop"], *words, &["--count", "5"]].concat();
        assert_eq!(daemon.ask(&half).code, 0);
    }
    let new = directory.write("after.txt", &after());
    let told = run(command(["policy", "diff"]).args([&path, &new]));
    for line in [
        "shop.size: counters survive; 10 becomes 8\n",
        "shop.plan.month: counters survive; 10 | 20 becomes 10 | 30\n",
        "shop.class.month: counters survive\n",
        "shop.renamed: new, counters begin empty\n",
        "shop.name: gone, counters end\n",
    ] {
        assert!(told.stdout.contains(line), "{line:?} is not in {}", told.stdout);
    }
    let (stop, address) = (Arc::new(AtomicBool::new(false)), daemon.address.to_string());
    let load = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) || rounds == 0 {
                let load = ["check", "shop", "GET /size", "user=other", "--count", "500"];
                let output = run(command(load).args(["--server", &address]));
                // Allowed or denied, but decided.
                assert!(output.code <= 1 && output.stderr.is_empty(), "{output:?}");
                rounds += 1;
            }
        }
    });
    std::fs::write(&path, after()).unwrap();
    reload(&daemon);
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    // A bucket keeps the time at which it is full: 5 of 10 used are 5 of 8 used at the same rate.
    assert_eq!(left(&daemon, "shop", requests[0].1), 3);
    assert_eq!(left(&daemon, "shop", requests[1].1), 25);
    assert_eq!(left(&daemon, "shop", requests[2].1), 5);
    assert_eq!(left(&daemon, "shop", &["POST /carts", "user=u"]), 5);
    assert_eq!(left(&daemon, "shop", requests[3].1), 10);
    // Counts stay with their names: `size` was asked and `renamed` never charged.
    let status = daemon.tell(&["status", "--json"]).json().remove(0);
    let keys = |name: &str| {
        let limits = status["limits"].as_array().unwrap();
        limits.iter().find(|limit| limit["name"] == name).unwrap()["keys"].as_u64().unwrap()
    };
    assert_eq!((keys("size"), keys("plan"), keys("renamed")), (2, 1, 0));
    assert_eq!(status["policy"]["reloads"], 1);
}

#[test]
fn a_prepared_class_stays_itself_when_others_come_before_it() {
    let (_directory, path, daemon) = serve("numbers", BEFORE);
    let class = ["orders", "user=u"];
    assert_eq!(daemon.ask(&["check", "shop", class[0], class[1]]).code, 0);
    let more =
        "[api.aaa]\nclass.a = [\"/a\"]\n[api.aaa.limit]\na = { on = \"a\", bucket = \"1/s\" }\n";
    std::fs::write(&path, BEFORE.to_owned() + more).unwrap();
    reload(&daemon);
    assert_eq!(left(&daemon, "shop", &class), 9);
}

#[test]
fn a_change_of_the_files_is_seen_also_behind_a_symbolic_link() {
    let directory = Directory::new("symlinks");
    for (name, text) in [("one", BEFORE.to_owned()), ("two", after())] {
        std::fs::create_dir_all(directory.0.join(name)).unwrap();
        directory.write(&format!("{name}/shop.toml"), &text);
    }
    // As Kubernetes mounts a config map: the files are links through a link that is swapped.
    let (data, policy) = (directory.0.join("..data"), directory.0.join("policy"));
    std::os::unix::fs::symlink("one", &data).unwrap();
    std::fs::create_dir_all(&policy).unwrap();
    std::os::unix::fs::symlink("../..data/shop.toml", policy.join("shop.toml")).unwrap();
    let daemon = Daemon::start_with(&["--policy", policy.to_str().unwrap()]);
    assert_eq!(left(&daemon, "shop", &["GET /size", "user=u"]), 10);
    let next = directory.0.join("..next");
    std::os::unix::fs::symlink("two", &next).unwrap();
    std::fs::rename(&next, &data).unwrap();
    daemon.wait_for_log("policy reloaded");
    assert_eq!(left(&daemon, "shop", &["GET /size", "user=u"]), 8);
}

#[test]
fn what_does_not_load_leaves_the_policy_in_force_and_says_where() {
    let (_directory, path, daemon) = serve("bad-reload", BEFORE);
    std::fs::write(&path, after().replace("burst 8", "brust 8")).unwrap();
    daemon.signal("HUP");
    let line = daemon.wait_for_log("the policy in force stays");
    assert!(line.contains(&format!("{path}:7:")) && line.contains("brust"), "{line}");
    assert_eq!(left(&daemon, "shop", &["GET /size", "user=u"]), 10);
    let status = daemon.tell(&["status", "--json"]).json().remove(0);
    let error = status["policy"]["last_error"]["message"].as_str().unwrap();
    assert!(error.starts_with(&format!("{path}:7:")), "{error}");
    let metrics = get(&daemon, "/metrics");
    assert!(metrics.contains("tollkeeper_policy_reload_total{result=\"failure\"} 1\n"));
    assert!(daemon.tell(&["status"]).stdout.contains("not in force for "));
    std::fs::write(&path, after()).unwrap();
    reload(&daemon);
    let status = daemon.tell(&["status", "--json"]).json().remove(0);
    assert_eq!(
        (&status["policy"]["last_error"], left(&daemon, "shop", &["GET /size", "user=u"])),
        (&Value::Null, 8)
    );
}

fn get(daemon: &Daemon, path: &str) -> String {
    send(daemon, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
}

fn send(daemon: &Daemon, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.admin.port())).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn an_override_holds_from_the_next_check_until_it_is_cleared() {
    let (_directory, path, daemon) = serve("overrides", BEFORE);
    let ok = |output: Output| assert_eq!(output.code, 0, "{output:?}");
    let size = ["GET /size", "user=u"];
    assert_eq!(daemon.ask(&["check", "shop", size[0], size[1], "--count", "11"]).code, 1);
    ok(daemon.tell(&[
        "override",
        "set",
        "shop.size",
        "user=u",
        "10/day burst 20",
        "--for",
        "1h",
        "--by",
        "ann",
        "--reason",
        "ticket 7",
    ]));
    assert_eq!(left(&daemon, "shop", &size), 10);
    assert_eq!(left(&daemon, "shop", &["GET /size", "user=v"]), 10);
    let list = daemon.tell(&["override", "list", "--json"]).json().remove(0);
    let of = &list["overrides"][0];
    assert_eq!(
        (&of["who"], &of["reason"], &of["key"]),
        (&json!("ann"), &json!("ticket 7"), &json!({"user": "u"}))
    );
    assert!(daemon.wait_for_log("override of").contains("ann"));
    // A class that comes down to one limit goes the same way.
    ok(daemon.tell(&["override", "set", "shop.class", "user=u", "1/month"]));
    let class = |user: &str| daemon.ask(&["check", "shop", "orders", user, "--count", "2"]).code;
    assert_eq!((class("user=u"), class("user=v")), (1, 0));
    // The kill switch; then back. An override outlives a reload, by name.
    std::fs::write(&path, after()).unwrap();
    reload(&daemon);
    assert_eq!(class("user=u"), 1);
    ok(daemon.tell(&["override", "set", "shop.*", "*", "off", "--for", "1h"]));
    assert_eq!(class("user=v"), 0);
    assert_eq!(daemon.ask(&["check", "shop", "orders", "user=w", "--count", "50"]).code, 0);
    ok(daemon.tell(&["override", "clear", "shop.*", "*"]));
    assert_eq!(daemon.ask(&["check", "shop", "orders", "user=w", "--count", "11"]).code, 1);
    ok(daemon.tell(&["override", "clear", "shop.class", "user=u"]));
    assert_eq!(daemon.tell(&["override", "clear", "shop.class", "user=u"]).code, 1);
    for (words, told) in [
        (&["shop.sise", "user=u", "1/day"][..], "did you mean `size`?"),
        (&["shop.size", "team=u", "1/day"], "limit `size` is per user, not per team"),
        (&["shop.size", "1/day"], "--help"),
        (&["size", "user=u", "1/day"], "write API.LIMIT"),
        (&["shop.size", "user=u", "1/day", "--until", "soon"], "`soon` is no moment"),
        (&["shop.size", "user=u", "1/day", "--until", "2001-01-01"], "in the past"),
    ] {
        let output = daemon.tell(&[&["override", "set"], words].concat());
        assert!(output.code == 2 && output.stderr.contains(told), "{told:?} is not in {output:?}");
    }
}

#[test]
fn an_override_ends_by_itself() {
    let (_directory, _path, daemon) = serve("override-ends", BEFORE);
    let set = daemon.tell(&["override", "set", "shop.size", "*", "1/day", "--for", "1s"]);
    assert_eq!(set.code, 0, "{set:?}");
    let began = std::time::Instant::now();
    while left(&daemon, "shop", &["GET /size", "user=u"]) == 1 {
        assert!(began.elapsed() < crate::support::PATIENCE);
    }
    assert_eq!(left(&daemon, "shop", &["GET /size", "user=u"]), 10);
    let list = daemon.tell(&["override", "list"]);
    assert_eq!(list.stdout, "no overrides\n");
}

/// Page 004: whichever door was used, the account's two windows are charged; and a change of tier
/// acts at the next check.
#[test]
fn two_identities_share_both_windows_and_a_tier_acts_at_the_next_check() {
    let studio = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/policies/studio.toml");
    let daemon = Daemon::start_with(&["--policy", studio]);
    for identity in ["api_key=k1", "session=s1"] {
        let put = daemon.tell(&["identity", "put", identity, "account=a7", "tier=basic"]);
        assert_eq!(put.code, 0, "{put:?}");
    }
    let ask = |identity: &str| {
        let request = ["check", "studio", "POST /v1/generate", identity, "--json"];
        daemon.ask(&request).json().remove(0)
    };
    let windows = |report: &Value| {
        let limits = report["limits"].as_array().unwrap().iter();
        let one = |limit: &Value| (limit["limit"].as_u64(), limit["remaining"].as_u64().unwrap());
        limits.filter(|limit| limit["name"] == "plan").map(one).collect::<Vec<_>>()
    };
    let (first, second) = (windows(&ask("api_key=k1")), windows(&ask("session=s1")));
    assert_eq!(first.len(), 2, "{first:?}");
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(second.1 + 1, first.1);
    }
    daemon.tell(&["identity", "put", "api_key=k1", "account=a7", "tier=pro"]);
    let third = windows(&ask("api_key=k1"));
    assert!(third[0].0 > first[0].0, "{third:?}");
    let used = |windows: &[(Option<u64>, u64)]| windows[0].0.unwrap() - windows[0].1;
    assert_eq!(used(&third), 3);
    let usage = daemon.tell(&["usage", "studio", "session=s1", "--json"]).json().remove(0);
    assert_eq!((&usage["account"], &usage["tier"]), (&json!("a7"), &json!("basic")));
    let plan = usage["limits"].as_array().unwrap().iter();
    let plan: Vec<_> =
        plan.filter(|limit| limit["limit"].as_str().unwrap().starts_with("plan.")).collect();
    assert!(plan.len() == 2 && plan.iter().all(|limit| limit["used"] == 3), "{usage}");
    assert_eq!(daemon.tell(&["identity", "get", "api_key=k1"]).code, 0);
    assert_eq!(daemon.tell(&["identity", "remove", "api_key=k1"]).code, 0);
    assert_eq!(daemon.tell(&["identity", "get", "api_key=k1"]).code, 1);
    let wrong = daemon.tell(&["identity", "put", "team=k1", "account=a7"]);
    assert!(wrong.stderr.contains("`team` stands for accounts in no API"), "{wrong:?}");
    let wrong = daemon.tell(&["identity", "put", "api_key=k1", "account=a7", "tier=gold"]);
    assert!(wrong.stderr.contains("has no tier `gold`"), "{wrong:?}");
}

#[test]
fn the_free_tier_with_an_api_key_gets_403_and_explain_says_which_rule() {
    let vault = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/policies/vault.toml");
    let daemon = Daemon::start_with(&["--policy", vault]);
    let words = ["vault", "GET /files", "tier=free", "account=a", "auth=api_key"];
    let denied = daemon.ask(&[&["check"], &words[..], &["--json"]].concat());
    assert_eq!((denied.code, &denied.json()[0]["status"]), (1, &json!(403)));
    let explained = daemon.tell(&[&["explain"], &words[..]].concat());
    assert_eq!(explained.code, 1);
    assert!(
        explained.stdout.starts_with("deny by rule deny api_not_in_plan · tier free\n"),
        "{explained:?}"
    );
    let session = ["vault", "GET /files", "tier=free", "account=a", "auth=session"];
    assert_eq!(daemon.ask(&[&["check"], &session[..]].concat()).code, 0);
}

#[test]
fn explain_and_usage_charge_nothing() {
    let (_directory, _path, daemon) = serve("explain", BEFORE);
    let size = ["shop", "GET /size", "user=u"];
    daemon.ask(&[&["check"], &size[..], &["--count", "10"]].concat());
    for _ in 0..3 {
        let explained = daemon.tell(&[&["explain"], &size[..], &["--json"]].concat());
        assert_eq!(explained.code, 1, "{explained:?}");
        let report = explained.json().remove(0);
        let of = |name: &str| {
            let limits = report["limits"].as_array().unwrap();
            limits.iter().find(|limit| limit["limit"] == name).unwrap().clone()
        };
        let size = of("size");
        assert_eq!(
            (&size["binds"], &size["used"], &size["key"]),
            (&json!(true), &json!(10), &json!({"user": "u"}))
        );
        assert!(size["retry_after_ns"].as_u64().unwrap() > 0);
        assert_eq!(of("name")["why"], "is for other requests");
    }
    let usage = daemon.tell(&["usage", "shop", "user=v", "tier=free", "--json"]).json().remove(0);
    for limit in usage["limits"].as_array().unwrap() {
        assert_eq!(
            (&limit["used"], limit["remaining"].as_u64().unwrap_or(0) > 0),
            (&json!(0), true)
        );
    }
    let wrong = daemon.tell(&["usage", "shop", "usr=v"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("did you mean `user`?"), "{wrong:?}");
    let missing = daemon.tell(&["explain", "shop", "GET /size", "--json"]);
    assert_eq!(missing.code, 2);
    assert!(
        missing.stdout.contains("cannot be decided: attribute `user` is missing"),
        "{missing:?}"
    );
}

/// A counter by path is found where the path is said; where not, the limit says what it needs.
#[test]
fn usage_shows_counters_by_path_or_says_what_they_need() {
    let text = "schema = 1
[api.shop.limit]
item = { on = \"/orders/:id\", per = [\"user\", \":id\"], fixed = \"10/day\" }
verb = { per = [\"user\", \"method\"], fixed = \"20/day\" }
";
    let (_directory, _path, daemon) = serve("usage-by-path", text);
    assert_eq!(daemon.ask(&["check", "shop", "POST /orders/7", "user=u", "--count", "3"]).code, 0);
    let usage = |words: &[&str]| {
        let told = daemon.tell(&[&["usage", "shop", "user=u"], words, &["--json"]].concat());
        assert_eq!(told.code, 0, "{told:?}");
        told.json().remove(0)
    };
    let of = |report: &Value, name: &str| {
        let limits = report["limits"].as_array().unwrap();
        limits.iter().find(|limit| limit["limit"] == name).unwrap().clone()
    };
    let all = usage(&[]);
    let (item, verb) = (of(&all, "item.day"), of(&all, "verb.day"));
    assert_eq!((&item["applies"], &item["needs"]), (&json!(false), &json!(["path"])));
    assert_eq!((&verb["used"], &verb["needs"]), (&Value::Null, &json!(["method"])));
    let seven = usage(&["method=POST", "path=/orders/7/"]);
    let (item, verb) = (of(&seven, "item.day"), of(&seven, "verb.day"));
    assert_eq!(
        (&item["used"], &item["key"], &item["needs"]),
        (&json!(3), &json!({"user": "u", ":id": "7"}), &Value::Null)
    );
    assert_eq!((&verb["used"], &verb["remaining"]), (&json!(3), &json!(17)));
    assert_eq!(of(&usage(&["method=GET", "path=/orders/8"]), "item.day")["used"], 0);
    let words = daemon.tell(&["usage", "shop", "user=u"]);
    assert!(words.stdout.contains("depends on path: add path=…"), "{words:?}");
    let wrong = daemon.tell(&["usage", "shop", "user=u", "paht=/x"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("no limit reads"), "{wrong:?}");
}

/// Page 001: ten at once; the eleventh is told when to try again, and passes once another
/// connection has given one back.
#[test]
fn the_eleventh_concurrent_chat_is_denied_and_freed_by_another_connection() {
    let chat = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/policies/chat.toml");
    let daemon = Daemon::start_with(&["--policy", chat]);
    let ask = || {
        let words = ["check", "chat", "POST /mave/chat", "api_key=k", "tier=enterprise", "--json"];
        daemon.ask(&words).json().remove(0)
    };
    let permits: Vec<Value> = (0..10).map(|_| ask()["permit"].clone()).collect();
    assert!(permits.iter().all(Value::is_string), "{permits:?}");
    let denied = ask();
    assert_eq!((&denied["decision"], &denied["status"]), (&json!("deny"), &json!(429)), "{denied}");
    assert!(denied["headers"]["Retry-After"].is_string(), "{denied}");
    let released = daemon.ask(&["release", permits[3].as_str().unwrap()]);
    assert_eq!(released.code, 0, "{released:?}");
    assert_eq!(ask()["decision"], "allow");
    assert_eq!(ask()["decision"], "deny");
}

#[test]
fn a_denial_is_logged_once_a_second_with_what_the_policy_lets_be_logged() {
    let text = BEFORE.replace("class.old", "log_attrs = [\"tier\"]\nclass.old");
    let (_directory, _path, daemon) = serve("denials", &text);
    daemon.ask(&["check", "shop", "GET /plan", "user=secret", "tier=free", "--count", "500"]);
    let line: Value = serde_json::from_str(&daemon.wait_for_log("\"denied\"")).unwrap();
    let fields = &line["fields"];
    assert_eq!(
        (&fields["api"], &fields["limit"], &fields["attributes"]),
        (&json!("shop"), &json!("plan.month"), &json!("tier=\"free\""))
    );
    let version = daemon.tell(&["status", "--json"]).json()[0]["policy"]["version"].clone();
    assert_eq!(fields["policy"], version);
    daemon.terminate();
    let (_, log) = daemon.wait();
    assert!(!log.contains("secret"), "{log}");
    assert!(log.matches("\"denied\"").count() <= 2, "{log}");
}

/// A rule's line names the rule, a shadow's says that nothing was denied, an inline limit's what
/// there is; and metrics count rules apart.
#[test]
fn rules_shadows_and_inline_limits_are_logged_too() {
    let text = "schema = 1
[api.shop]
log_attrs = [\"tier\"]
tiers = [\"free\", \"pro\"]
deny = [{ when = { tier = \"free\" }, code = \"no_free\" }, { when = \"/closed\" }]
[api.shop.limit]
trial = { on = \"/trial\", per = [\"user\"], fixed = \"5/day\", mode = \"shadow\" }
";
    let directory = Directory::new("denials-of-all");
    let path = directory.write("shop.toml", text);
    let daemon = Daemon::start_with(&["--policy", &path, "--resp", "127.0.0.1:0"]);
    let line = |needle: &str| -> Value {
        let line = daemon.wait_for_log(needle);
        serde_json::from_str::<Value>(&line).unwrap()["fields"].clone()
    };
    let ask = |words: &[&str]| daemon.ask(&[&["check", "shop"], words].concat()).code;
    let version = daemon.tell(&["status", "--json"]).json()[0]["policy"]["version"].clone();

    assert_eq!(ask(&["GET /trial", "user=secret", "tier=free", "--count", "100"]), 1);
    let of = line("no_free");
    assert_eq!(
        (&of["message"], &of["api"], &of["rule"]),
        (&json!("denied"), &json!("shop"), &json!("no_free"))
    );
    assert_eq!((&of["attributes"], &of["policy"]), (&json!("tier=\"free\""), &version));
    assert_eq!(ask(&["GET /closed", "user=secret", "tier=pro"]), 1);
    let of = line("\"rule\":\"#2\"");
    assert_eq!((&of["message"], &of["denials"]), (&json!("denied"), &json!(1)));

    assert_eq!(ask(&["GET /trial", "user=secret", "tier=pro", "--count", "5"]), 0);
    assert_eq!(ask(&["GET /trial", "user=secret", "tier=pro"]), 0);
    let of = line("trial.day");
    let message = of["message"].as_str().unwrap();
    assert!(message.starts_with("not denied: "), "{of}");
    assert_eq!((&of["would_deny"], &of["denials"]), (&json!(1), &Value::Null));
    assert_eq!(of["attributes"], "tier=\"pro\"");

    let (_, resp) = daemon.ready.split_once(" · resp ").unwrap();
    let mut redis = TcpStream::connect(resp.split_whitespace().next().unwrap()).unwrap();
    redis.write_all(b"CL.THROTTLE secret 1 3 60\r\n".repeat(3).as_slice()).unwrap();
    let of = line("\"quota\"");
    assert_eq!(
        (&of["message"], &of["limit"], &of["kind"], &of["quota"], &of["cost"]),
        (&json!("denied"), &json!("inline"), &json!("bucket"), &json!("1/20s burst 2"), &json!(1))
    );
    assert!(of["policy"].is_null(), "{of}");

    let metrics = get(&daemon, "/metrics");
    for (rule, checks) in [("no_free", 100), ("#2", 1)] {
        let line = format!(
            "tollkeeper_rules_total{{api=\"shop\",effect=\"deny\",rule=\"{rule}\"}} {checks}\n"
        );
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    daemon.terminate();
    let (_, log) = daemon.wait();
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn the_world_may_read_and_needs_a_token_to_change() {
    let directory = Directory::new("token");
    let policy = directory.write("shop.toml", BEFORE);
    let token = directory.write("token", "0123456789abcdef\n");
    let open = Daemon::start_with(&["--policy", &policy, "--admin", "0.0.0.0:0"]);
    let set = |daemon: &Daemon, more: &[&str]| {
        let admin = format!("127.0.0.1:{}", daemon.admin.port());
        let words = ["override", "set", "shop.size", "*", "1/day", "--admin", &admin];
        run(command(words).args(more))
    };
    let refused = set(&open, &[]);
    assert!(refused.code == 2 && refused.stderr.contains("--admin-token-file"), "{refused:?}");
    assert!(get(&open, "/v1/overrides").starts_with("HTTP/1.1 200"));
    let body = "{}";
    let post = send(
        &open,
        &format!(
            "POST /v1/identities HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\r\n{body}",
            body.len()
        ),
    );
    assert!(post.starts_with("HTTP/1.1 403"), "{post}");
    // A check charges, a peek looks.
    let ask = |daemon: &Daemon, path: &str, header: &str| {
        let body =
            r#"{"api": "shop", "method": "GET", "path": "/size", "attributes": {"user": "u"}}"#;
        let length = body.len();
        send(
            daemon,
            &format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\ncontent-type: application/json\r\n{header}\r\n{body}"
            ),
        )
    };
    let bearer = "authorization: Bearer 0123456789abcdef\r\n";
    let refused = ask(&open, "/v1/check", bearer);
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let seen = ask(&open, "/v1/peek", "");
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    let locked = Daemon::start_with(&[
        "--policy",
        &policy,
        "--admin",
        "0.0.0.0:0",
        "--admin-token-file",
        &token,
    ]);
    assert!(ask(&locked, "/v1/check", "").starts_with("HTTP/1.1 401"));
    let allowed = ask(&locked, "/v1/check", bearer);
    assert!(allowed.starts_with("HTTP/1.1 200"), "{allowed}");
    let refused = set(&locked, &[]);
    assert!(refused.code == 2 && refused.stderr.contains("Bearer"), "{refused:?}");
    assert_eq!(set(&locked, &["--admin-token-file", &token]).code, 0);
    let short = directory.write("short", "abc");
    let never = run(&mut command([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--admin-token-file",
        &short,
    ]));
    assert!(never.code == 2 && never.stderr.contains("16 and more"), "{never:?}");
}
