//! Permits, levels and amendments over real sockets: what one connection was given another gives
//! back, and what is sent twice is done once.

use std::time::Duration;

use tollkeeper_protocol::client::{CheckArgs, Client, ClientError, OnUnavailable, Options};
use tollkeeper_protocol::request::Form;
use tollkeeper_protocol::status::{Code, Decision, Retry};

use crate::support::{Daemon, Directory, PATIENCE};

const POLICY: &str = r#"
schema = 1
[api.jobs.limit]
running = { per = ["key"], concurrent = 2, lease = "10min", retry_after = "30s" }
[api.files.limit]
stored = { per = ["account"], meter = "stored_bytes", level = "100B" }
size   = { meter = "stored_bytes", cap = "60B", status = 413 }
"#;

fn daemon(directory: &Directory) -> Daemon {
    let policy = directory.write("policy.toml", POLICY);
    Daemon::start_with(&["--policy", &policy])
}

#[test]
fn a_permit_is_given_back_from_another_process() {
    let directory = Directory::new("permits-cli");
    let daemon = daemon(&directory);
    let check = || daemon.ask(&["check", "jobs", "/run", "key=k", "--json"]);
    let permit = check().json()[0]["permit"].as_str().unwrap().to_owned();
    assert_eq!(check().code, 0);
    let denied = check();
    let limit = &denied.json()[0]["limits"][0];
    assert_eq!((denied.code, &limit["retry"]), (1, &"on_others".into()));
    assert!(limit["retry_after_ns"].as_u64().unwrap() <= 600_000_000_000);
    assert_eq!(denied.json()[0]["headers"]["Retry-After"], "30");

    let renewed = daemon.ask(&["renew", &permit, "--lease", "20min"]);
    assert_eq!((renewed.code, &*renewed.stdout), (0, "renewed · lapses in 20 min\n"));
    let released = daemon.ask(&["release", &permit]);
    assert_eq!((released.code, &*released.stdout), (0, "released · 1 unit given back\n"));
    let again = daemon.ask(&["release", &permit]);
    assert_eq!((again.code, &*again.stdout), (0, "nothing to release · the permit is not held\n"));
    let renewed = daemon.ask(&["renew", &permit]);
    assert_eq!(renewed.code, 1, "{renewed:?}");
    assert_eq!(check().code, 0);
    let guessed = daemon.ask(&["release", &"0".repeat(32), "--json"]);
    assert_eq!(guessed.json()[0]["units"], 0);
    assert_eq!(daemon.ask(&["reset", "jobs", "/run", "key=k"]).code, 0);
    assert_eq!(check().json()[0]["limits"][0]["remaining"], 1);
}

#[test]
fn a_level_moves_both_ways_and_a_cap_bounds_one_request() {
    let directory = Directory::new("levels-cli");
    let daemon = daemon(&directory);
    let store = |bytes: &str| {
        let cost = format!("stored_bytes={bytes}");
        daemon.ask(&["check", "files", "PUT /f", "account=a", "--cost", &cost, "--json"])
    };
    let amend = |arguments: &[&str]| {
        let request = ["files", "PUT /f", "account=a", "--limit", "stored"];
        daemon.ask(&[&arguments[..1], &request, &arguments[1..]].concat())
    };
    assert_eq!(store("60").code, 0);
    assert_eq!(store("40").code, 0);
    let full = store("1").json().remove(0);
    assert_eq!(full["binding"]["name"], "stored");
    assert_eq!(full["headers"].get("Retry-After"), None, "waiting does not help");
    assert_eq!(store("61").json()[0]["status"], 413);
    assert_eq!(amend(&["adjust", "--by=-30"]).stdout, "adjusted 1 counter\n");
    assert_eq!(store("30").code, 0);
    assert_eq!(store("1").code, 1);
    // An account over its level may still do what adds nothing.
    assert_eq!(amend(&["set", "--used", "250"]).stdout, "set 1 counter\n");
    assert_eq!((store("0").code, store("1").code), (0, 1));
    assert_eq!(amend(&["adjust", "--by=-9007199254740992"]).code, 0);
    assert_eq!(store("60").code, 0);
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.unwrap() });
}

async fn connect(daemon: &Daemon) -> Client {
    let options = Options {
        deadline: Duration::from_secs(20),
        on_unavailable: OnUnavailable::Report,
        ..Options::default()
    };
    Client::connect(daemon.address.to_string(), options).await.unwrap()
}

fn asked() -> CheckArgs {
    CheckArgs::new().value("method", "POST").value("path", "/run").value("key", "k")
}

#[test]
fn tied_permits_go_with_their_connection() {
    let directory = Directory::new("permits-tied");
    let daemon = daemon(&directory);
    run(async {
        let (one, other) = (connect(&daemon).await, connect(&daemon).await);
        let handle = one.prepare("jobs", None).await.unwrap();
        let tied = one.check(&handle, &asked().tied()).await.unwrap();
        assert!(tied.permit.is_some());
        let kept = one.check(&handle, &asked()).await.unwrap().permit.unwrap();
        let peek = async |client: &Client| client.peek(&handle, &asked()).await.unwrap();
        let denied = peek(&other).await;
        assert_eq!(denied.decision, Decision::Deny);
        assert!(matches!(denied.retry, Retry::OnOthers(Some(1..))));
        drop(one);
        // The daemon sees the end of a connection when it comes.
        while peek(&other).await.decision == Decision::Deny {
            tokio::task::yield_now().await;
        }
        // The other permit is still held, and goes back without a word.
        assert!(other.check(&handle, &asked()).await.unwrap().is_allowed());
        assert!(!other.check(&handle, &asked()).await.unwrap().is_allowed());
        other.release_and_forget(kept.id).unwrap();
        assert!(other.check(&handle, &asked()).await.unwrap().is_allowed());
    });
}

#[test]
fn what_is_sent_twice_is_done_once() {
    let directory = Directory::new("sessions");
    let daemon = daemon(&directory);
    run(async {
        let (one, other) = (connect(&daemon).await, connect(&daemon).await);
        let handle = one.prepare("files", None).await.unwrap();
        let asked =
            CheckArgs::new().value("method", "PUT").value("path", "/f").value("account", "a");
        let session = one.session().await.unwrap();
        let id = session.next_id();
        let stored = handle.description().limits.iter().position(|limit| limit.name == "stored");
        let stored = stored.map(|index| index as u16);
        for client in [&one, &other, &one] {
            let done = client.adjust(&handle, &asked, stored, 40, Some(id)).await.unwrap();
            assert_eq!(done.counters, 1);
        }
        let form = asked.clone().form(Form::NUMBERS);
        let numbers = other.peek(&handle, &form).await.unwrap().numbers.unwrap();
        let left = numbers.limits.iter().find(|limit| Some(limit.index) == stored).unwrap();
        assert_eq!(left.remaining, 60);
        let unknown = tollkeeper_protocol::RequestId { session: 1, sequence: 1 };
        let refused = one.adjust(&handle, &asked, stored, 1, Some(unknown)).await.unwrap_err();
        let ClientError::Refused(refused) = refused else { panic!("{refused:?}") };
        assert_eq!(refused.code, Code::UnknownSession);
    });
}
