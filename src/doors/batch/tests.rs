//! A batch decides as the desk does, and keeps what came of it.

use super::*;
use crate::clock::Clock;
use crate::doors::{Desk, Instance, Problem};
use crate::engine::command::{CHARGES_MAX, LimitId};
use crate::engine::decision::{Refusal, Verdict};
use crate::engine::key::Seed;
use crate::engine::quota::Quota;
use crate::engine::table::Stamp;
use crate::engine::time::{Now, UtcTime};
use crate::metrics::cells::{self, Protocol};
use crate::policy::{Policy, Rendered, Source};

const POLICY: &str = "schema = 1
[api.a]
class.all = ['GET *']
[api.a.limit]
team = { on = 'all', per = ['team'], bucket = '3/min' }
slots = { on = 'all', per = ['user'], concurrent = 2, lease = '1min', missing = 'skip' }
";

fn instance() -> Arc<Instance> {
    let seed = Seed::new([7; 16]);
    let policy = Policy::compile(&[Source { name: "p", text: POLICY }], &seed).unwrap();
    let loaded = Loaded::new(policy, "a test".to_owned(), UtcTime::from_nanos(0));
    Instance::new(1000, 10, [9; 16], &seed, Clock::start(), loaded).unwrap()
}

fn desk(instance: &Arc<Instance>) -> Arc<SharedDesk> {
    SharedDesk::new(Protocol::Admin, instance)
}

fn decide(batch: &mut Batch, nanos: u64) {
    let now = Now {
        time: Timestamp::from_nanos(nanos),
        utc: UtcTime::from_nanos(1_714_752_900_000_000_000 + nanos),
    };
    batch.decide_at(&mut Stamp::new(|| now));
}

fn check(batch: &mut Batch, team: &[u8], user: Option<&[u8]>, intent: Intent) -> usize {
    let loaded = Arc::clone(batch.loaded());
    let handle = loaded.policy.handle_of("a", Some("all")).unwrap();
    let mut values = vec![None; handle.slots().len()];
    values[handle.slot("team").unwrap()] = Some(team);
    values[handle.slot("user").unwrap()] = user;
    batch.check(handle, &Request { values: &values, costs: &[] }, intent)
}

fn verdict(batch: &Batch, index: usize) -> Verdict {
    match batch.outcome(index) {
        Outcome::Decided { decision, .. } => decision.verdict,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_decided_stays_while_others_ask() {
    let instance = instance();
    let desk = desk(&instance);
    let (mut one, mut two) = (Batch::new(&desk), Batch::new(&desk));
    let first: Vec<usize> = (0..5).map(|_| check(&mut one, b"t", None, Intent::Charge)).collect();
    let peeked = check(&mut two, b"t", None, Intent::Peek);
    decide(&mut one, 1_000_000_000);
    decide(&mut two, 1_000_000_000);
    let verdicts: Vec<Verdict> = first.iter().map(|index| verdict(&one, *index)).collect();
    use Verdict::{Allow, Deny};
    assert_eq!(verdicts, [Allow, Allow, Allow, Deny, Deny]);
    assert_eq!(verdict(&two, peeked), Deny);
    let left = |index| match one.outcome(index) {
        Outcome::Decided { readings: [reading], limits: [_], .. } => reading.remaining(),
        other => panic!("{other:?}"),
    };
    assert_eq!(first.iter().map(|index| left(*index)).collect::<Vec<_>>(), [2, 1, 0, 0, 0]);
    let mut rendered = Rendered::default();
    one.render(first[4], &mut rendered).unwrap();
    assert_eq!(rendered.status(), 429);
    one.render(first[0], &mut rendered).unwrap();
    assert_eq!(rendered.status(), 200);
}

#[test]
fn every_kind_of_item_has_its_outcome() {
    let instance = instance();
    let desk = desk(&instance);
    let mut batch = Batch::new(&desk);
    let held = check(&mut batch, b"t", Some(b"u"), Intent::Charge);
    let quota = Quota::bucket(1, Nanos::from_secs(60), 5).unwrap();
    let charge = Charge::new(instance.inline.bucket.key_of_one(b"k"), quota, 2, LimitId::INLINE);
    let inline = batch.inline(&[charge], Intent::Charge);
    let given = batch.amend_inline(charge, Amend::GiveBack(1));
    let loaded = Arc::clone(batch.loaded());
    let handle = loaded.policy.handle_of("a", Some("all")).unwrap();
    let missing = batch.check(handle, &Request::default(), Intent::Charge);
    let nobody = batch.amend(handle, &Request::default(), None, Amend::Add(1));
    assert!(matches!(batch.outcome(held), Outcome::Pending));
    decide(&mut batch, 1_000_000_000);

    let Outcome::Decided { decision, .. } = batch.outcome(held) else { panic!() };
    let permit = decision.permit.unwrap().id;
    let Outcome::Decided { readings: [reading], limits: [], .. } = batch.outcome(inline) else {
        panic!()
    };
    assert_eq!(reading.remaining(), 3);
    let Outcome::Amended(1, [reading]) = batch.outcome(given) else { panic!() };
    assert_eq!(reading.remaining(), 4);
    assert!(matches!(batch.outcome(missing), Outcome::FailedOpen(Problem::Resolve(_))));
    assert!(matches!(batch.outcome(nobody), Outcome::Failed(Problem::Resolve(_))));
    assert!(batch.render(inline, &mut Rendered::default()).is_none());

    let mut batch = Batch::new(&desk);
    let renewed = batch.renew(permit, Some(Nanos::from_secs(5)));
    let wrong = batch.renew(permit, Some(Nanos::new(1)));
    let (released, again) = (batch.release(permit), batch.release(permit));
    decide(&mut batch, 2_000_000_000);
    assert!(
        matches!(batch.outcome(renewed), Outcome::Renewed(Some(span)) if span.get() == 5_000_000_000)
    );
    assert!(matches!(batch.outcome(wrong), Outcome::BadLease(_)));
    assert!(matches!(batch.outcome(released), Outcome::Released(1)));
    assert!(matches!(batch.outcome(again), Outcome::Released(0)));
    assert_eq!(instance.cells.checks(0, cells::Outcome::Unavailable), 1);
}

/// A call of 32 descriptors with eight limits each once made a log entry that no node could apply.
#[test]
fn more_charges_than_a_check_may_have_are_refused_before_a_cluster_is_asked() {
    let instance = instance();
    let desk = desk(&instance);
    let mut batch = Batch::new(&desk);
    let loaded = Arc::clone(batch.loaded());
    let handle = loaded.policy.handle_of("a", Some("all")).unwrap();
    let values = vec![Some(&b"x"[..]); handle.slots().len()];
    let request = Request { values: &values, costs: &[] };
    let parts = vec![Part { request, limits: None }; CHARGES_MAX / 2 + 1];
    let index = batch.check_together(handle, &parts, Intent::Charge);
    desk.with(Desk::begin_collecting);
    decide(&mut batch, 1);
    let mut docket = desk.with(Desk::end_collecting);
    assert!(docket.group().is_none());
    docket.hear(None);
    desk.with(|desk| desk.begin_hearing(docket));
    decide(&mut batch, 1);
    desk.with(Desk::end_hearing);
    let (Outcome::FailedOpen(problem) | Outcome::Failed(problem)) = batch.outcome(index) else {
        panic!()
    };
    let Problem::Refused(Refusal::TooManyCharges { found }) = problem else {
        panic!("{problem:?}")
    };
    assert_eq!(*found, CHARGES_MAX + 2);
}
