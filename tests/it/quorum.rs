//! How long an answer takes once there is no majority.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tollkeeper_protocol::client::CheckArgs;
use tollkeeper_protocol::request::Form;
use tollkeeper_protocol::status::Code;

use crate::fleet::{Fleet, code};

const UNITS: u64 = 1_000_000;

/// What README promises for what was handed to a leader and not heard of: an election timeout until
/// it is handed over, and three seconds.
const UNKNOWN_WITHIN: Duration = Duration::from_millis(300 + 3000);

/// And for what was not: an election timeout.
const REFUSED_WITHIN: Duration = Duration::from_millis(300);

/// Two processors are shared by three nodes and others.
const SLACK: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heard {
    Allowed,
    Unknown,
    NoQuorum,
}

#[allow(clippy::print_stdout, reason = "its figures are worth reading")]
fn loses_its_majority(name: &str, survivor_leads: bool) {
    let policy = format!(
        "schema = 1\n[api.shop]\n[api.shop.limit]\n\
         day = {{ on = '/day', per = ['user'], fixed = '{UNITS}/day', align = 'first', \
         when_unavailable = 'deny' }}\n"
    );
    let fleet = Fleet::begin(name, &policy, 3, 0);
    let args = CheckArgs::new().value("method", "POST").value("path", "/day").value("user", "u");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap();
    let leader = fleet.leader();
    let survivor = if survivor_leads { leader } else { (leader + 1) % 3 };
    let began = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let client = runtime.block_on(fleet.client(survivor));
            let (args, stop) = (args.clone(), Arc::clone(&stop));
            runtime.spawn(async move {
                let handle = client.prepare("shop", None).await.unwrap();
                let mut told = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let called = began.elapsed();
                    let heard = match client.check(&handle, &args).await {
                        Ok(answer) => {
                            assert!(answer.is_allowed() && !answer.failed_open, "{answer:?}");
                            Heard::Allowed
                        }
                        Err(error) => match code(&error) {
                            Some(Code::UnknownOutcome) => Heard::Unknown,
                            Some(Code::NoQuorum) => Heard::NoQuorum,
                            _ => panic!("{error:?}"),
                        },
                    };
                    told.push((called, began.elapsed() - called, heard));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                told
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let others: Vec<usize> = (0..3).filter(|&node| node != survivor).collect();
    others.iter().for_each(|&node| fleet.node(node).signal("STOP"));
    let lost = began.elapsed();
    std::thread::sleep(UNKNOWN_WITHIN + Duration::from_secs(1));
    others.iter().for_each(|&node| fleet.node(node).signal("CONT"));
    let back = began.elapsed();
    fleet.await_ready();
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    let told: Vec<(Duration, Duration, Heard)> =
        asking.into_iter().flat_map(|asked| runtime.block_on(asked).unwrap()).collect();

    let of = |heard: Heard| told.iter().filter(move |(_, _, it)| *it == heard);
    let slowest = |heard: Heard| of(heard).map(|(_, took, _)| *took).max().unwrap_or_default();
    let count = |heard: Heard| of(heard).count() as u64;
    let (allowed, unknown) = (count(Heard::Allowed), count(Heard::Unknown));
    println!(
        "survivor leads: {survivor_leads}; {allowed} allowed, slowest {:?}; {unknown} of unknown \
         outcome, slowest {:?}; {} without a majority, slowest {:?}",
        slowest(Heard::Allowed),
        slowest(Heard::Unknown),
        count(Heard::NoQuorum),
        slowest(Heard::NoQuorum),
    );
    assert!(allowed > 0 && unknown > 0 && count(Heard::NoQuorum) > 0);
    assert!(slowest(Heard::Unknown) <= UNKNOWN_WITHIN + SLACK);
    assert!(slowest(Heard::NoQuorum) <= REFUSED_WITHIN + SLACK);
    // What is asked once the loss is known is refused, and never of unknown outcome.
    let known = lost + REFUSED_WITHIN + SLACK;
    let late = told.iter().filter(|(called, _, _)| *called > known && *called < back - SLACK);
    let late: Vec<_> = late.filter(|(_, _, heard)| *heard != Heard::NoQuorum).collect();
    assert!(late.is_empty(), "lost at {lost:?}, back at {back:?}: {late:?}");

    let left = runtime.block_on(async {
        let client = fleet.client(survivor).await;
        let handle = client.prepare("shop", None).await.unwrap();
        let peeked = client.peek(&handle, &args.form(Form::NUMBERS)).await.unwrap();
        peeked.numbers.unwrap().limits[0].remaining
    });
    let used = UNITS - left;
    assert!((allowed..=allowed + unknown).contains(&used), "{used}, {allowed} + {unknown}");
}

#[test]
fn a_leader_that_loses_its_majority_says_so_in_time() {
    loses_its_majority("quorum-leader", true);
}

#[test]
fn a_follower_that_loses_all_others_says_so_in_time() {
    loses_its_majority("quorum-follower", false);
}
