//! A disk that is full, and power that is lost, at one node of three: in mount namespaces, where the
//! system permits them.

use std::time::{Duration, Instant};

use crate::fleet::Fleet;
use crate::support::Room;

const UNITS: u64 = 1_000_000;

fn policy(padding: usize) -> String {
    let mut text = format!(
        "schema = 1\n[api.shop]\n[api.shop.limit]\n\
         day = {{ on = '/day', per = ['user'], fixed = '{UNITS}/day', align = 'first', \
         when_unavailable = 'deny' }}\n"
    );
    for _ in 0..padding / 1024 {
        text.push('#');
        text.extend(std::iter::repeat_n('.', 1022));
        text.push('\n');
    }
    text
}

/// Charges one unit at a node, and says how long that took.
fn charge(fleet: &Fleet, node: usize) -> Duration {
    let began = Instant::now();
    let asked = fleet.node(node).ask(&["check", "shop", "POST /day", "user=u"]);
    assert_eq!(asked.code, 0, "{asked:?}");
    began.elapsed()
}

fn used(fleet: &Fleet, node: usize) -> u64 {
    let peeked = fleet.node(node).ask(&["peek", "shop", "POST /day", "user=u", "--json"]);
    UNITS - peeked.json()[0]["limits"][0]["remaining"].as_u64().unwrap()
}

/// The log's segments are 64 MiB each, and there is room for one: when the second is due the node
/// stops, with a code of its own.
#[test]
#[allow(clippy::print_stdout, reason = "its figures are worth reading")]
fn a_node_whose_disk_is_full_stops_and_the_others_go_on() {
    /// So that about a hundred fill a segment.
    const PADDING: usize = 700 << 10;
    let mut fleet = Fleet::plan("power-full", &policy(0), 3);
    let (full, data) = (2, fleet.data(2));
    let mount = format!("mkdir -p {data} && mount -t tmpfs -o size=96m none {data}");
    fleet.rooms[full] = Room::new(&mount);
    if fleet.rooms[full].is_none() {
        return;
    }
    fleet.init(3);
    let leader = fleet.leader();
    if leader == full {
        let handed = fleet.tell(leader, &["cluster", "transfer", "1"]);
        assert_eq!(handed.code, 0, "{handed:?}");
    }
    let mut charged = 0;
    let mut fill = |fleet: &mut Fleet| {
        let text = policy(PADDING);
        let body = serde_json::json!({
            "origin": "padded",
            "files": [{ "name": "padded.toml", "text": text }],
        });
        let (body, began) = (body.to_string(), Instant::now());
        let mut changes = 0;
        while !fleet.nodes[full].as_mut().unwrap().has_ended() {
            changes += 1;
            assert!(changes < 250, "the disk never filled");
            let url = format!("http://{}/v1/policy", fleet.seats[0].admin);
            let sent = ureq::post(&url).header("content-type", "application/json").send(&body);
            // Whoever led may just have gone.
            assert!(sent.is_ok() || changes > 50, "{sent:?}");
            charge(fleet, changes % 2);
            charged += 1;
        }
        let (status, log) = fleet.nodes[full].take().unwrap().wait();
        println!("stopped after {changes} changes, {:?}", began.elapsed());
        assert_eq!(status.code(), Some(3), "{log}");
        assert!(log.contains("the log cannot be written"), "{log}");
        assert!(log.contains("No space left on device"), "{log}");
        // The others decide at once, or once they have another leader.
        for node in [0, 1] {
            let took = charge(fleet, node);
            charged += 1;
            assert!(took < Duration::from_secs(3), "{took:?}");
        }
        charged
    };
    let resized = |fleet: &Fleet, size: &str| {
        let room = fleet.rooms[full].as_ref().unwrap();
        room.run(&format!("mount -o remount,size={size} {data}"));
    };
    let back = |fleet: &mut Fleet, charged: u64| {
        fleet.restart(&[full]);
        fleet.await_ready();
        assert_eq!(used(fleet, full), charged);
        assert_eq!(fleet.status(full).unwrap()["diverged"], false);
    };
    let charged = fill(&mut fleet);
    resized(&fleet, "160m");
    back(&mut fleet, charged);
}

/// With `--fsync os` a node that lost power may have forgotten votes and charges: it does not start
/// under its number, says what to do, and that can be done.
#[test]
fn a_node_that_lost_power_in_a_weak_mode_comes_back_as_another() {
    let mut fleet = Fleet::plan("power-weak", &policy(0), 4);
    fleet.flags = ["--fsync", "os"].map(str::to_owned).to_vec();
    let boot = |fleet: &Fleet, number: u8| {
        let id = format!("0000000{number}-0000-4000-8000-000000000000\n");
        fleet.directory.write("boot-id", &id)
    };
    let file = boot(&fleet, 1);
    let lost = 2;
    fleet.rooms[lost] = Room::new(&format!("mount --bind {file} /proc/sys/kernel/random/boot_id"));
    if fleet.rooms[lost].is_none() {
        return;
    }
    fleet.init(3);
    (0..3).for_each(|node| _ = charge(&fleet, node));
    // Killed: the page cache is there.
    fleet.kill(lost);
    fleet.restart(&[lost]);
    fleet.await_ready();
    assert_eq!(used(&fleet, lost), 3);
    // Left in order it may lose power.
    let daemon = fleet.nodes[lost].take().unwrap();
    daemon.terminate();
    assert!(daemon.wait().0.success());
    boot(&fleet, 2);
    fleet.restart(&[lost]);
    fleet.await_ready();
    // But not in use.
    fleet.kill(lost);
    boot(&fleet, 3);
    for _ in 0..2 {
        let Err(log) = fleet.start(lost).or_ended() else { panic!("it starts under its number") };
        for words in ["must not take part under its number", "cluster remove 3", "cluster add"] {
            assert!(log.contains(words), "{words}: {log}");
        }
    }
    charge(&fleet, 0);
    // As it says.
    let leader = fleet.leader();
    let removed = fleet.tell(leader, &["cluster", "remove", "3"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    let starting = fleet.start(3);
    let added = fleet.tell(fleet.leader(), &["cluster", "add", &fleet.member(3)]);
    assert_eq!(added.code, 0, "{added:?}");
    fleet.nodes[3] = Some(starting.ready());
    fleet.await_ready();
    assert_eq!(used(&fleet, 3), 4);
}
