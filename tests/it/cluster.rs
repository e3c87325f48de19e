//! Three real nodes, and what is promised of them together.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tollkeeper_protocol::client::{Answer, CheckArgs, Client, ClientError, Handle};
use tollkeeper_protocol::request::Form;
use tollkeeper_protocol::status::{Code, Decision};

use crate::fleet::{Fleet, code, connect};
use crate::support::PATIENCE;

/// Refills are so slow that no test sees one.
const POLICY: &str = r#"
schema = 1
[api.shop]
subject.account = ["token", "key"]
[api.shop.limit]
buy    = { on = "/buy", per = ["user"], bucket = "60/day burst 60", when_unavailable = "deny" }
own    = { on = "/own", per = ["account"], bucket = "60/day burst 60", when_unavailable = "deny" }
three  = { on = "/three", per = ["user"], bucket = "30/day burst 30", when_unavailable = "deny" }
region = { on = "/three", per = ["region"], sliding = "80/hour", when_unavailable = "deny" }
day    = { on = "/three", per = ["team"], fixed = "50/day", align = "first", when_unavailable = "deny" }
job    = { on = "/job", per = ["user"], concurrent = 1, lease = "10min", when_unavailable = "deny" }
open   = { on = "/open", per = ["user"], bucket = "60/day burst 60", when_unavailable = "allow" }
"#;

/// Longer than any answer may take while the cluster can answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.unwrap() });
}

fn post(path: &str, user: &str) -> CheckArgs {
    let args = CheckArgs::new().value("method", "POST").value("path", path.to_owned());
    args.value("user", user).value("region", "r").value("team", "t")
}

async fn prepared(fleet: &Fleet, node: usize) -> (Client, Handle) {
    let client = fleet.client(node).await;
    let handle = client.prepare("shop", None).await.unwrap();
    (client, handle)
}

/// What is left of each limit that a request meets, by name.
fn left(handle: &Handle, answer: &Answer) -> HashMap<String, u64> {
    let description = handle.description();
    let limits = &answer.numbers.as_ref().unwrap().limits;
    let named = limits
        .iter()
        .map(|it| (description.limits[usize::from(it.index)].name.clone(), it.remaining));
    named.collect()
}

/// Asks until there is a decision. Returns it, and how many outcomes are not known.
async fn ask(client: &Client, handle: &Handle, args: &CheckArgs) -> (Answer, u64) {
    let mut unknown = 0;
    loop {
        match client.check(handle, args).await {
            Ok(answer) => return (answer, unknown),
            Err(error) => unknown += u64::from(!error.charged_nothing()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Three nodes count as one; what is done at one is so at the others.
#[test]
fn nodes_decide_as_one() {
    let fleet = Fleet::begin("cluster-one", POLICY, 3, 0);
    run(async {
        let mut asking = Vec::new();
        for node in (0..3).cycle().take(12) {
            let (client, handle) = prepared(&fleet, node).await;
            asking.push(tokio::spawn(async move {
                let (mut buys, mut threes) = (0, 0);
                for _ in 0..15 {
                    let bought = client.check(&handle, &post("/buy", "u")).await.unwrap();
                    buys += u64::from(bought.is_allowed());
                    let three = client.check(&handle, &post("/three", "u")).await.unwrap();
                    threes += u64::from(three.is_allowed());
                }
                (buys, threes)
            }));
        }
        let (mut buys, mut threes) = (0, 0);
        for asked in asking {
            let (bought, three) = asked.await.unwrap();
            (buys, threes) = (buys + bought, threes + three);
        }
        assert_eq!((buys, threes), (60, 30));

        // All three or none: the 150 that one limit denied cost the other two nothing.
        let mut all = Vec::new();
        for node in 0..3 {
            all.push(prepared(&fleet, node).await);
        }
        for (client, handle) in &all {
            let args = post("/three", "other").form(Form::NUMBERS);
            let (answer, _) = ask(client, handle, &args).await;
            let left = left(handle, &answer);
            assert_eq!(left["region"] + 30 + (30 - left["three"]), 80, "{left:?}");
            assert_eq!(left["day"] + 30 + (30 - left["three"]), 50, "{left:?}");
        }

        // A permit of one node is given back at another.
        let [(one, at_one), (two, at_two), (three, at_three)] = &all[..] else { unreachable!() };
        let job = post("/job", "u");
        let permit = one.check(at_one, &job).await.unwrap().permit.unwrap();
        assert_eq!(three.check(at_three, &job).await.unwrap().decision, Decision::Deny);
        assert_eq!(two.release(permit.id).await.unwrap().units, 1);
        assert_eq!(one.release(permit.id).await.unwrap().units, 0);
        assert!(three.check(at_three, &job).await.unwrap().is_allowed());
        assert!(!two.check(at_two, &job).await.unwrap().is_allowed());
    });

    // Overrides and identities of one node act at the others.
    let told = fleet.node(0).tell(&["override", "set", "shop.buy", "user=w", "90/day burst 90"]);
    assert_eq!(told.code, 0, "{told:?}");
    let told = fleet.node(1).tell(&["identity", "put", "token=k", "account=v"]);
    assert_eq!(told.code, 0, "{told:?}");
    let told = fleet.node(1).tell(&["identity", "put", "key=k", "account=v"]);
    assert_eq!(told.code, 0, "{told:?}");
    let of = |node: usize, path: &str, word: &str| {
        let output = fleet.node(node).ask(&["check", "shop", path, word, "--json"]);
        output.json().remove(0)["limits"][0]["remaining"].as_u64()
    };
    fleet.until("the override acts at the third node", |_| {
        let list = fleet.node(2).tell(&["override", "list", "--json"]).json().remove(0);
        (list["overrides"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert_eq!(of(2, "POST /buy", "user=w"), Some(89));
    assert_eq!(of(1, "POST /buy", "user=w"), Some(88));
    fleet.until("the identities act at all nodes", |_| {
        let get = |node: usize| fleet.node(node).tell(&["identity", "get", "key=k"]).code == 0;
        (0..3).all(get).then_some(())
    });
    assert_eq!(of(0, "POST /own", "token=k"), Some(59));
    assert_eq!(of(2, "POST /own", "key=k"), Some(58));
    assert_eq!(fleet.status(0).unwrap()["diverged"], false);
}

/// Whatever was acknowledged is there after the leader is killed, and after all are.
#[test]
fn nothing_acknowledged_is_lost() {
    let mut fleet = Fleet::begin("cluster-kill", POLICY, 3, 0);
    let (mut charged, mut unknown) = (0, 0);
    for round in 0..2 {
        let leader = fleet.leader();
        let others: Vec<usize> = (0..3).filter(|&node| node != leader).collect();
        run(async {
            for node in 0..3 {
                let (client, handle) = prepared(&fleet, node).await;
                for _ in 0..4 {
                    assert!(client.check(&handle, &post("/buy", "u")).await.unwrap().is_allowed());
                    charged += 1;
                }
            }
        });
        fleet.kill(leader);
        let killed = Instant::now();
        run(async {
            for &node in &others {
                let (client, handle) = prepared(&fleet, node).await;
                let (answer, unheard) = ask(&client, &handle, &post("/buy", "u")).await;
                assert!(answer.is_allowed());
                (charged, unknown) = (charged + 1, unknown + unheard);
                assert!(killed.elapsed() < ANSWERED_WITHIN, "{:?}", killed.elapsed());
            }
        });
        if round == 1 {
            others.iter().for_each(|&node| fleet.kill(node));
            fleet.restart(&[0, 1, 2]);
        } else {
            fleet.restart(&[leader]);
        }
        fleet.await_ready();
    }
    run(async {
        for node in 0..3 {
            let (client, handle) = prepared(&fleet, node).await;
            let args = post("/buy", "u").form(Form::NUMBERS);
            let (answer, unheard) = ask(&client, &handle, &args).await;
            (charged, unknown) = (charged + 1, unknown + unheard);
            let used = 60 - left(&handle, &answer)["buy"];
            assert!((charged..=charged + unknown).contains(&used), "{used}, {charged} + {unknown}");
        }
    });

    // The last of three: it says at once that it cannot tell, or what the limit says then.
    let survivor = fleet.leader();
    for node in (0..3).filter(|&node| node != survivor) {
        fleet.kill(node);
    }
    run(async {
        let (client, handle) = prepared(&fleet, survivor).await;
        // What it had taken when it lost the others may have been charged; what comes later not.
        tokio::time::sleep(Duration::from_millis(400)).await;
        for _ in 0..5 {
            let asked = Instant::now();
            let refused = client.check(&handle, &post("/buy", "u")).await.unwrap_err();
            assert_eq!(code(&refused), Some(Code::NoQuorum), "{refused}");
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
            let asked = Instant::now();
            let open = client.check(&handle, &post("/open", "u")).await.unwrap();
            assert!(open.is_allowed() && open.failed_open);
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        }
    });
    let others: Vec<usize> = (0..3).filter(|&node| node != survivor).collect();
    fleet.restart(&others[..1]);
    run(async {
        let (client, handle) = prepared(&fleet, survivor).await;
        let args = post("/open", "u").form(Form::NUMBERS);
        let answer = fleet_answers(&client, &handle, &args).await;
        // None of those that passed without a decision was charged.
        assert_eq!(left(&handle, &answer)["open"], 59);
    });
}

/// The first answer that is a decision.
async fn fleet_answers(client: &Client, handle: &Handle, args: &CheckArgs) -> Answer {
    loop {
        let (answer, _) = ask(client, handle, args).await;
        if !answer.failed_open {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A fourth node catches up and decides with the others; the first one goes.
#[test]
fn nodes_come_and_go() {
    let mut fleet = Fleet::begin("cluster-grow", POLICY, 3, 1);
    run(async {
        let (client, handle) = prepared(&fleet, 1).await;
        for _ in 0..10 {
            assert!(client.check(&handle, &post("/buy", "u")).await.unwrap().is_allowed());
        }
    });
    let leader = fleet.leader();
    let starting = fleet.start(3);
    let member = fleet.member(3);
    let added = fleet.tell(leader, &["cluster", "add", &member]);
    assert_eq!(added.code, 0, "{added:?}");
    fleet.nodes[3] = Some(starting.ready());
    fleet.await_ready();
    let voters = |fleet: &Fleet, node: usize| -> Option<Vec<u64>> {
        let nodes = fleet.status(node)?["nodes"].as_array()?.clone();
        let voters = nodes.iter().filter(|node: &&Value| node["role"] == "voter");
        Some(voters.filter_map(|node| node["node"].as_u64()).collect())
    };
    assert_eq!(voters(&fleet, leader), Some(vec![1, 2, 3, 4]));
    run(async {
        let (client, handle) = prepared(&fleet, 3).await;
        let answer = client.check(&handle, &post("/buy", "u").form(Form::NUMBERS)).await.unwrap();
        assert_eq!(left(&handle, &answer)["buy"], 49);
    });
    // Its number is in use.
    assert_eq!(fleet.tell(leader, &["cluster", "add", &member]).code, 2);
    let gone = (leader + 1) % 3;
    let removed = fleet.tell(leader, &["cluster", "remove", &(gone + 1).to_string()]);
    assert_eq!(removed.code, 0, "{removed:?}");
    fleet.kill(gone);
    let mut rest: Vec<u64> = (1..=4).collect();
    rest.retain(|&node| node != gone as u64 + 1);
    assert_eq!(voters(&fleet, leader), Some(rest));
    // The new one counts: with the leader gone as well, two of three decide.
    fleet.kill(leader);
    run(async {
        let (client, handle) = prepared(&fleet, 3).await;
        let args = post("/buy", "u").form(Form::NUMBERS);
        let (answer, unknown) = ask(&client, &handle, &args).await;
        let left = left(&handle, &answer)["buy"];
        assert!((48 - unknown..=48).contains(&left), "{left}, {unknown} not known");
    });
}

/// A cluster of one: what it acknowledged outlives a kill.
#[test]
fn one_node_is_a_cluster_too() {
    let mut fleet = Fleet::begin("cluster-alone", POLICY, 1, 0);
    for left in [40, 20] {
        let many = fleet.node(0).ask(&["check", "shop", "POST /buy", "user=u", "--count", "20"]);
        assert_eq!(many.code, 0, "{many:?}");
        fleet.kill(0);
        fleet.restart(&[0]);
        fleet.await_ready();
        let peeked = fleet.node(0).ask(&["peek", "shop", "POST /buy", "user=u", "--json"]);
        assert_eq!(peeked.json()[0]["limits"][0]["remaining"], left, "{peeked:?}");
    }
    run(async {
        let client = connect(fleet.seats[0].clients, ANSWERED_WITHIN).await;
        let handle = client.prepare("shop", None).await.unwrap();
        // It hears nobody and needs nobody.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let answer: Result<Answer, ClientError> = client.check(&handle, &post("/buy", "u")).await;
        assert!(answer.unwrap().is_allowed());
    });
}
