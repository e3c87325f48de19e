//! What commands say and how they exit.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::support::{Daemon, Directory, command, run};

const IMAGES: &str = "POST /v1/images";

/// Two units a day, so that no test is slow enough to see one come back.
const SLOW: &str = "schema = 1
[api.slow]
class.x = [\"POST /x\"]
class.y = [\"POST /y\"]
[api.slow.limit]
x = { on = \"x\", per = [\"user\"], bucket = \"2/day burst 2\" }
y = { on = \"y\", per = [\"user\"], fixed = \"3/min, 5/day\", align = \"first\", when_unavailable = \"deny\" }
";

fn slow(name: &str) -> (Directory, Daemon) {
    let directory = Directory::new(name);
    let policy = directory.write("slow.toml", SLOW);
    let daemon = Daemon::start_with(&["--policy", &policy]);
    (directory, daemon)
}

#[test]
fn the_exit_code_tells_allowed_denied_and_error() {
    let (_directory, daemon) = slow("exit-codes");
    let check =
        |more: &[&str]| daemon.ask(&[&["check", "slow", "POST /x", "user=u"], more].concat());
    let allowed = check(&[]);
    assert_eq!(allowed.code, 0);
    assert_eq!(allowed.stdout, "allow x · 1 of 2 left · full in 12 h\n");
    assert_eq!(check(&[]).code, 0);
    let denied = check(&[]);
    assert_eq!(denied.code, 1);
    assert_eq!(denied.stdout, "deny x · 0 of 2 left · retry in 12 h · full in 24 h\n");
    let never = check(&["--cost", "3"]);
    assert_eq!(never.code, 1);
    assert_eq!(never.stdout, "deny x · 0 of 2 left · never passes at this cost · full in 24 h\n");
    assert_eq!(daemon.ask(&["check", "slow", "GET /x"]).stdout, "allow · no limit applies\n");
}

#[test]
fn many_checks_are_decided_in_order_and_summed_up() {
    let (_directory, daemon) = slow("many");
    let check = |user: &str, more: &[&str]| {
        daemon.ask(&[&["check", "slow", "POST /x", user], more].concat())
    };
    let some = check("user=a", &["--count", "2"]);
    assert_eq!(some.code, 0);
    assert_eq!(some.stdout.lines().next().unwrap(), "2 checks · 2 allowed · 0 denied");
    let all = check("user=b", &["--count", "90"]);
    assert_eq!(all.code, 1);
    assert_eq!(
        all.stdout,
        "90 checks · 2 allowed · 88 denied, the first was number 3\n\
         deny x · 0 of 2 left · retry in 12 h · full in 24 h\n"
    );
    let lines = check("user=c", &["--count", "90", "--json"]);
    let decisions = lines.decisions();
    assert_eq!(decisions[..2], ["allow", "allow"]);
    assert!(decisions[2..].iter().all(|decision| decision == "deny"));
    assert_eq!((decisions.len(), lines.code, lines.stderr.as_str()), (90, 1, ""));
}

#[test]
fn peek_charges_nothing() {
    let (_directory, daemon) = slow("peek");
    let ask = |command: &str| daemon.ask(&[command, "slow", "POST /x", "user=u"]);
    for _ in 0..5 {
        let peeked = ask("peek");
        assert_eq!((peeked.code, peeked.stdout.as_str()), (0, "allow x · 2 of 2 left\n"));
    }
    assert_eq!(ask("check").stdout, "allow x · 1 of 2 left · full in 12 h\n");
    assert_eq!(ask("check").code, 0);
    assert_eq!(ask("peek").code, 1);
}

#[test]
fn reset_gives_everything_back_to_one_key() {
    let (_directory, daemon) = slow("reset");
    let ask = |command: &str, user: &str| daemon.ask(&[command, "slow", "POST /x", user]);
    for user in ["user=a", "user=b"] {
        ask("check", user);
        ask("check", user);
    }
    let reset = ask("reset", "user=a");
    assert_eq!((reset.code, reset.stdout.as_str()), (0, "reset 1 counter\n"));
    assert_eq!(ask("peek", "user=a").stdout, "allow x · 2 of 2 left\n");
    assert_eq!(ask("peek", "user=b").code, 1);
    let other = daemon.ask(&["reset", "slow", "GET /z"]);
    assert_eq!((other.code, other.stdout.as_str()), (0, "nothing to reset · no limit applies\n"));
    let json = daemon.ask(&["reset", "slow", "POST /y", "user=a", "--json"]).json();
    assert_eq!(json[0]["counters"], 2);
}

#[test]
fn a_class_is_checked_without_method_and_path() {
    let daemon = Daemon::start();
    let output = daemon.ask(&["check", "media", "videos_post", "team=t", "--json"]);
    assert_eq!((output.code, &output.json()[0]["binding"]["name"]), (0, &json!("videos_post")));
}

#[test]
fn nobody_at_the_address_is_said_with_what_to_do() {
    // A port that was free a moment ago, and is not listened on now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for name in ["check", "peek", "reset"] {
        let output = run(&mut command([name, "media", IMAGES, "--server", &address]));
        assert_eq!(output.code, 2);
        assert_eq!(
            output.stderr,
            format!("tollkeeper: cannot reach {address}; is `tollkeeper serve` running?\n")
        );
        assert_eq!(output.stdout, "");
    }
}

#[test]
fn what_was_mistyped_is_named() {
    let daemon = Daemon::start();
    for (arguments, words) in [
        (
            &["check", "media", IMAGES, "taem=t1"][..],
            &["attribute `taem`", "did you mean `team`?", "request_id"][..],
        ),
        (&["peek", "media", "read", "method=GET"], &["attribute `method`", "team"]),
        (&["check", "medai", IMAGES, "team=t1"], &["UNKNOWN_API", "`medai`"]),
        (&["check", "media", "raed", "team=t1"], &["UNKNOWN_CLASS", "`raed`"]),
        (&["check", "media", IMAGES, "team=t", "--cost", "up=1"], &["meter `up`", "requests"]),
        (&["check", "media", IMAGES, "team=a", "team=b"], &["`team` is given twice"]),
        (&["check", "media", "POST v1/images"], &["`v1/images` is no path"]),
        (&["check", "media", IMAGES, "team"], &["name=value"]),
        (&["check", "media", IMAGES, "--cost", "-1"], &["--cost"]),
        (&["check", "media", IMAGES, "--count", "0"], &["--count"]),
    ] {
        let output = daemon.ask(arguments);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{arguments:?}");
        for word in words {
            assert!(output.stderr.contains(word), "{word:?} is not in {output:?}");
        }
    }
    let after = daemon.ask(&["peek", "media", IMAGES, "team=t1"]);
    assert_eq!(after.stdout, "allow images_post · 120 of 120 left\n");
}

#[test]
fn without_a_decision_the_handles_rule_is_told_as_an_error() {
    let daemon = Daemon::start();
    let output = daemon.ask(&["check", "media", IMAGES]);
    assert_eq!(output.code, 2);
    assert!(output.stdout.starts_with("allow · no decision · BAD_ATTRIBUTE: "), "{output:?}");
    assert!(output.stdout.contains("`team` is missing"), "{output:?}");

    let (_directory, daemon) = slow("no-decision");
    let output = daemon.ask(&["check", "slow", "POST /y", "--json"]);
    assert_eq!(output.code, 2);
    let report = output.json().remove(0);
    assert_eq!((&report["decision"], &report["status"]), (&json!("deny"), &json!(429)));
    assert_eq!(report["error"]["code"], "BAD_ATTRIBUTE");
    assert_eq!(report["binding"], Value::Null);
}

#[test]
fn a_full_table_denies_no_one_it_knows() {
    let daemon = Daemon::start_with(&["--max-keys", "1"]);
    let check = |team: &str| daemon.ask(&["check", "media", IMAGES, team]);
    assert_eq!(check("team=a").code, 0);
    let full = check("team=b");
    assert_eq!(full.code, 2);
    assert!(full.stdout.starts_with("allow · no decision · "), "{full:?}");
    assert_eq!(check("team=a").code, 0);
}

#[test]
fn help_shows_examples() {
    for name in ["check", "peek", "reset"] {
        let output = run(&mut command([name, "--help"]));
        assert_eq!(output.code, 0);
        assert!(output.stdout.contains("Examples:") && output.stdout.contains("Exits 0"));
    }
    assert!(
        run(&mut command(["serve", "--help"])).stdout.contains("A second signal exits at once")
    );
}
