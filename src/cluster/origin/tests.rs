//! What waits is handed over once for each term, and every wait ends.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Reading;
use crate::cluster::entry::decode_group;
use crate::engine::command::{Charge, LimitId};
use crate::engine::key::Key;
use crate::engine::permit::PermitId;
use crate::engine::quota::Quota;
use crate::engine::time::{Nanos, Timestamp, UtcTime};

use super::*;

/// A clock that stands where it is put.
#[derive(Default)]
struct Hand(AtomicU64);

impl Readings for Hand {
    fn read(&self) -> Reading {
        Reading { raw: self.0.load(Ordering::Relaxed), wall: 0 }
    }
}

fn origin() -> (Origin, Arc<Hand>) {
    let hand: Arc<Hand> = Arc::default();
    (Origin::new(7, 1, Arc::clone(&hand) as Arc<dyn Readings>), hand)
}

fn group() -> Group {
    Group { commands: vec![Command::Open], charges: Vec::new() }
}

fn charge() -> Charge {
    let quota = Quota::bucket(1, Nanos::from_secs(60), 5).unwrap();
    Charge::new(Key::from_words([1, 2]), quota, 1, LimitId::INLINE)
}

fn entry(term: u64, index: u64) -> LogId {
    LogId { leader_id: openraft::impls::leader_id_adv::LeaderId { term, node_id: 9 }, index }
}

fn now(nanos: u64) -> Option<Now> {
    Some(Now { time: Timestamp::from_nanos(nanos), utc: UtcTime::from_nanos(nanos) })
}

fn handed_over(origin: &Origin, term: u64) -> Vec<u64> {
    core::iter::from_fn(|| origin.hand_over(term, |_| true)).map(|(tag, _)| tag.sequence).collect()
}

#[test]
fn what_was_handed_over_is_handed_over_again_only_once_it_is_known_to_be_lost() {
    let (origin, _) = origin();
    let answers: Vec<_> = (0..3).map(|_| origin.perform(&group(), 5, None)).collect();
    assert_eq!(handed_over(&origin, 1), [1, 2, 3]);
    // There is a leader of term 2, but entries of term 1 may still come: nothing goes to it.
    origin.hand_over_again(2);
    assert_eq!(handed_over(&origin, 2), [0_u64; 0]);
    // One of them does.
    origin.applied_to(entry(1, 10), now(1));
    let tag = Tag { origin: 7, incarnation: 1, sequence: 2 };
    assert!(origin.awaits(&tag));
    origin.performed(&tag, Ok(Performed::default()));
    assert_eq!(handed_over(&origin, 2), [0_u64; 0]);
    // The first entry of term 2: the others were lost.
    origin.applied_to(entry(2, 11), None);
    assert_eq!(handed_over(&origin, 2), [1, 3]);
    // The link to the same leader was broken: it knows what it has.
    origin.hand_over_again(2);
    assert_eq!(handed_over(&origin, 2), [1, 3]);
    drop(answers);
}

/// Five batches of 1,024 releases, which one read of a client may bring, once made an entry that no
/// node could apply.
#[test]
fn a_group_that_could_not_be_applied_is_refused() {
    let (origin, _) = origin();
    let releases = |count: usize| {
        let release = |number: usize| Command::Release(PermitId((number as u128).to_le_bytes()));
        Group { commands: (0..count).map(release).collect(), charges: Vec::new() }
    };
    let mut refused = origin.perform(&releases(COMMANDS_MAX + 1), 5, None);
    assert_eq!(refused.try_recv().unwrap().unwrap_err(), Undecided::Overloaded);
    origin.perform_unheard(&releases(COMMANDS_MAX + 1), 5);
    assert_eq!(origin.waiting(), 0);
    let charges = vec![charge(); 256];
    let commands = vec![Command::Check { charges: 256, id: None }];
    origin.perform_unheard(&Group { commands, charges }, 5);
    assert_eq!(origin.waiting(), 0);
    let most = releases(COMMANDS_MAX);
    let _answer = origin.perform(&most, 5, None);
    let Some((_, Asked::Group { body, .. })) = origin.hand_over(1, |_| true) else {
        panic!("it is not handed over");
    };
    let mut read = Group::default();
    decode_group(body, &mut read).unwrap();
    assert_eq!(read.commands.len(), COMMANDS_MAX);
}

#[test]
fn another_run_s_requests_are_not_answered() {
    let (origin, _) = origin();
    let mut answer = origin.perform(&group(), 5, None);
    for tag in [
        Tag { origin: 7, incarnation: 2, sequence: 1 },
        Tag { origin: 8, incarnation: 1, sequence: 1 },
    ] {
        origin.performed(&tag, Ok(Performed::default()));
        assert!(answer.try_recv().is_err());
    }
    origin.performed(&Tag { origin: 7, incarnation: 1, sequence: 1 }, Err(Undecided::Stale));
    assert_eq!(answer.try_recv().unwrap().unwrap_err(), Undecided::Stale);
    assert_eq!(origin.waiting(), 0);
}

#[test]
fn each_wait_ends_with_what_is_known_then() {
    let (origin, hand) = origin();
    let mut late = origin.perform(&group(), 5, Some(100));
    let mut leaderless = origin.perform(&group(), 5, None);
    origin.expire(false);
    assert!(late.try_recv().is_err());
    hand.0.store(100, Ordering::Relaxed);
    origin.expire(false);
    assert_eq!(late.try_recv().unwrap().unwrap_err(), Undecided::Late);
    hand.0.store(LEADERLESS_NANOS, Ordering::Relaxed);
    origin.expire(false);
    assert_eq!(leaderless.try_recv().unwrap().unwrap_err(), Undecided::NoQuorum);
    let mut unknown = origin.perform(&group(), 5, Some(1_000));
    assert_eq!(handed_over(&origin, 1), [3]);
    hand.0.store(LEADERLESS_NANOS + UNKNOWN_NANOS - 1, Ordering::Relaxed);
    origin.expire(true);
    assert!(unknown.try_recv().is_err(), "a deadline counts before it is handed over only");
    hand.0.store(LEADERLESS_NANOS + UNKNOWN_NANOS, Ordering::Relaxed);
    origin.expire(true);
    assert_eq!(unknown.try_recv().unwrap().unwrap_err(), Undecided::Unknown);
}

/// A leader that lost its majority had taken requests that got into no entry; they were answered as
/// if they might have been charged, after three seconds.
#[test]
fn what_got_into_no_entry_is_known_not_to_be_charged() {
    let (origin, hand) = origin();
    let mut answers: Vec<_> = (0..4).map(|_| origin.perform(&group(), 5, None)).collect();
    for sequence in 1..=3 {
        assert_eq!(origin.hand_over(1, |_| true).unwrap().0.sequence, sequence);
    }
    // The first is in an entry, the others never got there; the fourth was not handed over yet.
    origin.give_back([3, 2].into_iter());
    assert_eq!(handed_over(&origin, 1), [2, 3, 4]);
    origin.give_back([2, 3, 4].into_iter());
    hand.0.store(LEADERLESS_NANOS, Ordering::Relaxed);
    origin.expire(false);
    for answer in &mut answers[1..] {
        assert_eq!(answer.try_recv().unwrap().unwrap_err(), Undecided::NoQuorum);
    }
    assert!(answers[0].try_recv().is_err());
    hand.0.store(UNKNOWN_NANOS, Ordering::Relaxed);
    origin.expire(false);
    assert_eq!(answers[0].try_recv().unwrap().unwrap_err(), Undecided::Unknown);
    // Those that were answered meanwhile do not come again.
    origin.give_back([1, 2].into_iter());
    assert_eq!(handed_over(&origin, 1), [0_u64; 0]);
}

#[test]
fn a_snapshot_that_skips_entries_leaves_the_outcome_unknown() {
    let (origin, _) = origin();
    let mut sent = origin.perform(&group(), 5, None);
    assert_eq!(handed_over(&origin, 1), [1]);
    let mut kept = origin.perform(&group(), 5, None);
    origin.skipped_to(Some(entry(3, 40)), now(9).unwrap());
    assert_eq!(sent.try_recv().unwrap().unwrap_err(), Undecided::Unknown);
    assert!(kept.try_recv().is_err());
    assert_eq!(handed_over(&origin, 3), [2]);
    origin.stop();
    assert_eq!(kept.try_recv().unwrap().unwrap_err(), Undecided::Unknown);
    let mut refused = origin.perform(&group(), 5, None);
    assert_eq!(refused.try_recv().unwrap().unwrap_err(), Undecided::Stopping);
}

#[test]
fn there_is_room_for_so_many() {
    let (origin, _) = origin();
    let answers: Vec<_> = (0..WAITING_MAX).map(|_| origin.perform(&group(), 5, None)).collect();
    let mut over = origin.perform(&group(), 5, None);
    assert_eq!(over.try_recv().unwrap().unwrap_err(), Undecided::Overloaded);
    drop(answers);
}
