//! The built-in example against the page that it is made from: 120 at once, then one a second.
//!
//! The daemon refills in real time. A whole second may pass within a run on a slow machine, and
//! then one check more is allowed, rightly; so such a run is told by its own numbers and made
//! anew for another team.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Daemon, Output};

const IMAGES: &str = "POST /v1/images";

fn check(daemon: &Daemon, request: &str, team: &str, more: &[&str]) -> Output {
    let team = format!("team={team}");
    daemon.ask(&[&["check", "media", request, &team, "--json"], more].concat())
}

fn epoch_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Takes what a team has, with 121 checks on one connection, and gives `proves` the answers. Does
/// so for team after team until `proves` says that less than a second went by.
fn exhaust(daemon: &Daemon, mut proves: impl FnMut(&str, &Output) -> bool) {
    for attempt in 0..50 {
        let team = format!("t{attempt}");
        let output = check(daemon, IMAGES, &team, &["--count", "121", "request_id=req_1"]);
        assert_eq!(output.decisions().len(), 121, "{output:?}");
        if proves(&team, &output) {
            return;
        }
    }
    panic!("each of 50 runs took a second");
}

#[test]
fn the_hundred_and_twenty_first_image_is_denied_as_the_page_says() {
    let daemon = Daemon::start();
    exhaust(&daemon, |_, output| {
        let reports = output.json();
        let denied = &reports[120];
        for report in &reports[..120] {
            assert_eq!(
                (&report["decision"], &report["status"], &report["error"]),
                (&json!("allow"), &json!(200), &Value::Null)
            );
        }
        if denied["decision"] == "allow" {
            assert_eq!(output.code, 0);
            return false;
        }
        assert_eq!(output.code, 1);
        assert_eq!(reports[0]["limits"][0]["remaining"], 119);
        assert_eq!(reports[0]["headers"]["X-RateLimit-Remaining"], "119");
        assert_eq!(denied["status"], 429);
        assert_eq!(denied["binding"], json!({ "name": "images_post", "window": null }));
        let header = |name: &str| denied["headers"][name].as_str().unwrap().to_owned();
        assert_eq!(header("X-RateLimit-Limit"), "120");
        assert_eq!(header("X-RateLimit-Remaining"), "0");
        assert_eq!(header("Retry-After"), "1");
        assert_eq!(header("Cache-Control"), "no-store");
        assert_eq!(denied["content_type"], "application/json");
        assert_eq!(
            denied["body"],
            r#"{
  "error": {
    "type": "rate_limit",
    "code": "too_many_requests",
    "message": "Rate limit exceeded for images_post. Retry after 1s.",
    "request_id": "req_1",
    "doc_url": "https://docs.aurous-labs.com/errors/too_many_requests"
  }
}"#
        );
        let limit = &denied["limits"][0];
        assert_eq!((&limit["kind"], &limit["limit"]), (&json!("bucket"), &json!(120)));
        let nanos = |name: &str| limit[name].as_u64().unwrap();
        assert!((1..=1_000_000_000).contains(&nanos("retry_after_ns")), "{limit}");
        assert!((119_000_000_001..=120_000_000_000).contains(&nanos("full_ns")), "{limit}");
        true
    });
}

#[test]
fn the_fields_of_an_answer_come_in_their_order() {
    let daemon = Daemon::start();
    let output = check(&daemon, IMAGES, "t", &[]);
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let report = &output.json()[0];
    assert_eq!(
        keys(report).join(" "),
        "decision status binding limits permit headers content_type body policy_version error"
    );
    assert_eq!(
        keys(&report["limits"][0]).join(" "),
        "name window kind limit remaining retry_after_ns next_ns full_ns mode retry"
    );
    assert!(!output.stdout.contains(": ") && !output.stdout.contains(", "), "{output:?}");
    assert_eq!(report["body"], Value::Null);
    assert_eq!(report["policy_version"].as_str().unwrap().len(), 16);
}

#[test]
fn reset_is_the_epoch_second_at_which_the_bucket_is_full() {
    let daemon = Daemon::start();
    let before = epoch_seconds();
    let report = check(&daemon, IMAGES, "t", &["--cost", "60"]).json().remove(0);
    let after = epoch_seconds();
    let reset: u64 = report["headers"]["X-RateLimit-Reset"].as_str().unwrap().parse().unwrap();
    // Rounded up, so one second more than the moment 60 seconds from now.
    assert!((before + 60..=after + 61).contains(&reset), "{reset} not from {before} to {after}");
}

#[test]
fn what_an_exhausted_team_and_others_may_still_do() {
    let daemon = Daemon::start();
    exhaust(&daemon, |team, output| {
        // Within a second of the denial, or the whole run is made anew.
        let denied = output.decisions()[120] == "deny";
        let cancel = check(&daemon, "POST /v1/images/x/cancel", team, &[]).json().remove(0);
        if !denied || cancel["decision"] == "allow" {
            return false;
        }
        assert_eq!(
            (&cancel["binding"]["name"], &cancel["status"]),
            (&json!("images_post"), &json!(429))
        );
        for (request, team, limit, remaining) in [
            ("POST /v1/videos", team, "videos_post", 119),
            ("GET /v1/images", team, "read", 1199),
            (IMAGES, "another", "images_post", 119),
        ] {
            let report = check(&daemon, request, team, &[]).json().remove(0);
            assert_eq!(report["decision"], "allow", "{request}");
            assert_eq!(report["binding"]["name"], limit, "{request}");
            assert_eq!(report["limits"][0]["remaining"], remaining, "{request}");
        }
        true
    });
}

#[test]
fn a_path_is_matched_as_the_language_says() {
    let daemon = Daemon::start();
    let same = [
        "POST /v1/images?size=large",
        "POST /v1/images/",
        "POST /v1//images",
        "POST /v1/videos/../%69mages",
        "post /v1/images/img_1/cancel/",
    ];
    for (index, request) in same.into_iter().enumerate() {
        // A cost so high that what refills meanwhile does not show in who draws from whom.
        let report = check(&daemon, request, "t", &["--cost", "20"]).json().remove(0);
        assert_eq!(report["binding"]["name"], "images_post", "{request}");
        let remaining = report["limits"][0]["remaining"].as_u64().unwrap();
        let spent = 20 * (index as u64 + 1);
        assert!((120 - spent..=119).contains(&remaining), "{request}: {remaining} left");
    }
    for other in ["POST /v1/Images", "POST /v1/images/a/b/cancel", "DELETE /v1/images"] {
        let report = check(&daemon, other, "t", &[]).json().remove(0);
        assert_eq!((&report["decision"], &report["binding"]), (&json!("allow"), &Value::Null));
        assert_eq!(report["limits"], json!([]));
    }
    let read = check(&daemon, "HEAD /v1/images/", "t", &[]).json().remove(0);
    assert_eq!(read["binding"]["name"], "read");
}

#[test]
fn the_ready_line_says_which_policy_is_served() {
    let daemon = Daemon::start();
    assert!(daemon.ready.contains("policy: built-in example \"media\""), "{}", daemon.ready);
}
