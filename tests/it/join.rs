//! A node that is added learns first, and votes once it has caught up.

use serde_json::Value;

use crate::fleet::{Fleet, Seat};

const POLICY: &str = r#"
schema = 1
[api.shop]
[api.shop.limit]
buy = { on = "/buy", per = ["user"], bucket = "60/day burst 60", when_unavailable = "deny" }
"#;

/// Has a node join as one that learns, and does not wait until it votes.
fn learn(at: Seat, node: usize, seat: Seat) {
    let url = format!("http://{}/v1/cluster/add", at.admin);
    let body = serde_json::json!({ "node": node + 1, "peer": seat.advertised });
    let sent = ureq::post(&url)
        .config()
        .http_status_as_error(false)
        .build()
        .header("content-type", "application/json")
        .send(body.to_string());
    let text = sent.unwrap().body_mut().read_to_string().unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer, serde_json::json!({ "node": node + 1, "role": "learner" }));
}

fn role(fleet: &Fleet, at: usize, node: usize) -> Option<String> {
    let nodes = fleet.status(at)?["nodes"].as_array()?.clone();
    let found = nodes.into_iter().find(|it: &Value| it["node"] == node as u64 + 1)?;
    found["role"].as_str().map(str::to_owned)
}

/// `cluster add` gave a node a vote while it was forty thousand entries behind, and a majority then
/// waited for it.
#[test]
fn a_node_votes_only_once_it_has_caught_up() {
    let mut fleet = Fleet::begin("join-late", POLICY, 3, 1);
    let leader = fleet.leader();
    let starting = fleet.start(3);
    learn(fleet.seats[leader], 3, fleet.seats[3]);
    fleet.nodes[3] = Some(starting.ready());
    assert_eq!(role(&fleet, leader, 3).as_deref(), Some("learner"));

    // It stands still, so nobody knows how far it is: it gets no vote, and can be taken back.
    fleet.node(3).signal("STOP");
    let member = fleet.member(3);
    let add = ["cluster", "add", &member, "--timeout", "1"];
    let late = fleet.tell(leader, &add);
    assert_eq!(late.code, 2, "{late:?}");
    for words in ["node 4 learns and has no vote", "the same one again", "cluster remove 4"] {
        assert!(late.stderr.contains(words), "{late:?}");
    }
    assert_eq!(role(&fleet, leader, 3).as_deref(), Some("learner"));
    // Two of three decide: the fourth is not waited for.
    let other = (leader + 1) % 3;
    fleet.kill(other);
    let asked = fleet.node(leader).ask(&["check", "shop", "POST /buy", "user=u"]);
    assert_eq!(asked.code, 0, "{asked:?}");
    fleet.restart(&[other]);
    fleet.await_ready_of(&[0, 1, 2]);

    // The same command goes on where the first one ended.
    fleet.node(3).signal("CONT");
    let leader = fleet.leader();
    let added = fleet.tell(leader, &["cluster", "add", &member, "--json"]);
    assert_eq!(added.code, 0, "{added:?}");
    assert_eq!(added.json(), [serde_json::json!({ "node": 4, "role": "voter" })]);
    assert_eq!(role(&fleet, leader, 3).as_deref(), Some("voter"));
    fleet.await_ready();
    // A peek may be as stale as a voter may be behind; a check is not.
    let asked = fleet.node(3).ask(&["check", "shop", "POST /buy", "user=u", "--json"]);
    assert_eq!(asked.json()[0]["limits"][0]["remaining"], 58, "{asked:?}");
}

/// A node that was not up yet when it was added never joined: it was dialed for a moment only, since
/// it was no member. And one that only learns is removed as well; it was said to be no member.
#[test]
fn a_node_that_learns_can_be_removed() {
    let mut fleet = Fleet::begin("join-back", POLICY, 1, 1);
    let starting = std::thread::scope(|scope| {
        let [at, seat] = [fleet.seats[0], fleet.seats[1]];
        scope.spawn(move || learn(at, 1, seat));
        std::thread::sleep(std::time::Duration::from_millis(500));
        fleet.start(1)
    });
    fleet.nodes[1] = Some(starting.ready());
    assert_eq!(role(&fleet, 0, 1).as_deref(), Some("learner"));
    // Not by another address.
    let other = fleet.tell(0, &["cluster", "add", "2=127.0.0.1:1"]);
    assert!(other.code == 2 && other.stderr.contains("remove it first"), "{other:?}");
    let removed = fleet.tell(0, &["cluster", "remove", "2"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert_eq!(role(&fleet, 0, 1), None);
    let again = fleet.tell(0, &["cluster", "remove", "2"]);
    assert!(again.code == 2 && again.stderr.contains("no member"), "{again:?}");
}
