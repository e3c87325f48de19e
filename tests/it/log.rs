//! What a node's log has, read while the node is down.

use tollkeeper_protocol::client::CheckArgs;

use crate::fleet::Fleet;
use crate::support::{command, run};

const POLICY: &str = r#"
schema = 1
[api.shop]
[api.shop.limit]
buy = { on = "/buy", per = ["user"], bucket = "60/day burst 60", when_unavailable = "deny" }
day = { on = "/buy", per = ["team"], fixed = "50/day", align = "first", when_unavailable = "deny" }
job = { on = "/job", per = ["user"], concurrent = 1, lease = "10min", when_unavailable = "deny" }
"#;

/// The log of each node, replayed, has every check that was answered, by the witness that its answer
/// carried, and comes to the same table.
#[test]
fn a_log_is_replayed() {
    let mut fleet = Fleet::plan("log-replay", POLICY, 3);
    fleet.flags = vec!["--keep-log".to_owned()];
    fleet.init(3);
    let mut places = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for node in 0..3 {
        let answer = runtime.block_on(async {
            let client = fleet.client(node).await;
            let handle = client.prepare("shop", None).await.unwrap();
            let args = CheckArgs::new().value("method", "POST").value("path", "/buy");
            client.check(&handle, &args.value("user", "u").value("team", "t")).await.unwrap()
        });
        assert!(answer.is_allowed());
        places.push((answer.witness.log_index, u64::from(answer.witness.position)));
        let many = fleet.node(node).ask(&[
            "check",
            "shop",
            "POST /buy",
            "user=v",
            "team=t",
            "--count",
            "19",
        ]);
        assert!(many.code <= 1, "{many:?}");
        let job = fleet.node(node).ask(&["check", "shop", "POST /job", "user=u"]);
        assert!(job.code <= 1, "{job:?}");
    }
    let set = fleet.node(0).tell(&["override", "set", "shop.buy", "user=w", "90/day burst 90"]);
    assert_eq!(set.code, 0, "{set:?}");
    for node in 0..3 {
        let taken = fleet.tell(node, &["cluster", "snapshot"]);
        assert_eq!(taken.code, 0, "{taken:?}");
    }
    let inspect = |node: usize, more: &[&str]| {
        run(command(["log", "inspect", "--data", &fleet.data(node)]).args(more))
    };
    let busy = inspect(0, &[]);
    assert!(busy.code == 2 && busy.stderr.contains("another process"), "{busy:?}");

    let leader = fleet.leader();
    let mut nodes: Vec<_> = (0..3).filter(|&node| node != leader).collect();
    nodes.push(leader);
    let daemons: Vec<_> = nodes.iter().map(|&node| fleet.nodes[node].take().unwrap()).collect();
    for daemon in daemons {
        daemon.terminate();
        let (status, log) = daemon.wait();
        assert!(status.success(), "{log}");
    }
    let inspect = |node: usize, more: &[&str]| {
        run(command(["log", "inspect", "--data", &fleet.data(node)]).args(more))
    };
    let committed = |node: usize| {
        let report = inspect(node, &["--json"]).json().remove(0);
        assert_eq!(report["log"]["purged"], serde_json::Value::Null, "{report}");
        assert_eq!(report["from_snapshot"], serde_json::Value::Null, "{report}");
        assert_eq!(report["replayed_to"], report["log"]["committed"]["index"], "{report}");
        report["replayed_to"].as_u64().unwrap()
    };
    let to = (0..3).map(committed).min().unwrap();
    let mut hashes = Vec::new();
    for node in 0..3 {
        let output = inspect(node, &["--commands", "--to", &to.to_string()]);
        assert_eq!(output.code, 0, "{output:?}");
        let mut lines = output.json();
        let report = lines.pop().unwrap();
        let limit = |name: &str| {
            let limits = report["limits"].as_array().unwrap();
            let limit = limits.iter().find(|it| it["limit"] == name);
            let limit = limit.unwrap_or_else(|| panic!("no {name}: {report}"));
            ["asked", "allowed", "units"].map(|of| limit[of].as_u64().unwrap())
        };
        // Denials by a node's own table leave no entry, so not all that was asked is in the log.
        let ([_, bought, units], [_, by_day, _]) = (limit("shop.buy"), limit("shop.day.day"));
        assert_eq!((bought, units, by_day), (50, 50, 50), "{report}");
        assert_eq!(limit("shop.job")[1], 1, "{report}");
        assert_eq!(report["members"].as_array().unwrap().len(), 3, "{report}");
        for &(index, position) in &places {
            let found =
                lines.iter().find(|line| line["index"] == index && line["position"] == position);
            let line = found.unwrap_or_else(|| panic!("{index}, {position} is not in the log"));
            assert_eq!(line["outcome"], "allow", "{line}");
            assert_eq!(line["limits"], serde_json::json!({ "shop.buy": 1, "shop.day.day": 1 }));
        }
        hashes.push(report["state_hash"].clone());
    }
    assert_eq!((&hashes[0], &hashes[0]), (&hashes[1], &hashes[2]));
    let text = inspect(0, &[]);
    assert!(text.code == 0 && text.stdout.contains("shop.buy"), "{text:?}");

    // Nothing was changed: the nodes start again on what they have.
    fleet.restart(&[0, 1, 2]);
    fleet.await_ready();
    let elsewhere = run(&mut command(["log", "inspect", "--data", "/"]));
    assert!(elsewhere.code == 2 && elsewhere.stderr.contains("node"), "{elsewhere:?}");
}
