//! A batch decides as the desk does, and keeps what came of it.

use super::*;
use crate::clock::Clock;
use crate::doors::journal::Cause;
use crate::doors::{By, Denial, Desk, Event, Instance, Problem};
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

const TOLD: &str = "schema = 1
[api.a]
log_attrs = ['team']
deny = [{ when = { team = 'banned' }, code = 'banned' }, { when = { team = 'gone' } }]
bypass = [{ when = { team = 'staff' }, code = 'staff' }]
[api.a.limit]
one = { on = '/one', per = ['team'], bucket = '1/min' }
trial = { on = '/trial', per = ['team'], bucket = '1/min', mode = 'shadow' }
";

/// What was handed over since this was asked last: names, and what is logged of the request.
fn told(events: &mut tokio::sync::mpsc::Receiver<Event>) -> Vec<(Cause, String)> {
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        let Event::Denied(Denial { cause, by }) = event else { panic!("{event:?}") };
        told.push((
            cause,
            match by {
                By::Policy { api, name, attributes, .. } => format!("{api} {name} {attributes:?}"),
                By::Inline(reading) => format!("{:?} {}", reading.quota.kind(), reading.cost),
            },
        ));
    }
    told
}

/// Each cause is told of once a second, whoever else is; peeks and allowed requests never are.
#[test]
fn rules_limits_shadows_and_inline_limits_are_told_of_once_a_second() {
    let seed = Seed::new([7; 16]);
    let policy = Policy::compile(&[Source { name: "p", text: TOLD }], &seed).unwrap();
    let loaded = Loaded::new(policy, "a test".to_owned(), UtcTime::from_nanos(0));
    let instance = Instance::new(1000, 10, [9; 16], &seed, Clock::start(), loaded).unwrap();
    let (desk, mut events) = (desk(&instance), instance.journal.take().unwrap());
    let quota = Quota::bucket(1, Nanos::from_secs(60), 1).unwrap();
    let key = instance.inline.bucket.key_of_one(b"k");
    let charge = Charge::new(key, quota, 2, LimitId::INLINE);
    let ask = |nanos: u64, asked: &[(&str, &str)], intent: Intent| {
        let mut batch = Batch::new(&desk);
        let loaded = Arc::clone(batch.loaded());
        let handle = loaded.policy.handle_of("a", None).unwrap();
        let team = handle.slot("team").unwrap();
        for (path, of) in asked {
            let mut values = vec![None; handle.slots().len()];
            (values[0], values[1]) = (Some(&b"GET"[..]), Some(path.as_bytes()));
            values[team] = Some(of.as_bytes());
            batch.check(handle, &Request { values: &values, costs: &[] }, intent);
        }
        batch.inline(&[charge], intent);
        decide(&mut batch, nanos);
    };
    let limit = |of: &str| {
        let loaded = instance.policy.load();
        loaded.policy.limits().iter().find(|limit| *limit.name == *of).unwrap().id
    };
    let (one, trial) = (Cause::Limit(limit("one")), Cause::Shadow(limit("trial")));
    let inline = Cause::Limit(LimitId::INLINE);
    let all = [
        ("/one", "t"),
        ("/one", "t"),
        ("/trial", "t"),
        ("/trial", "t"),
        ("/one", "banned"),
        ("/one", "gone"),
        ("/one", "staff"),
        ("/one", "banned"),
        ("/trial", "t"),
        ("/one", "u"),
    ];
    let first: Vec<(Cause, String)> = vec![
        (one, "a one [(\"team\", \"t\")]".into()),
        (trial, "a trial [(\"team\", \"t\")]".into()),
        (Cause::Rule(0), "a banned [(\"team\", \"banned\")]".into()),
        (Cause::Rule(1), "a #2 [(\"team\", \"gone\")]".into()),
        (inline, "Bucket 2".into()),
    ];
    ask(1_000_000_000, &all, Intent::Peek);
    assert_eq!(told(&mut events), []);
    ask(1_000_000_000, &all, Intent::Charge);
    assert_eq!(told(&mut events), first);
    ask(1_999_999_999, &all, Intent::Charge);
    assert_eq!(told(&mut events), []);
    ask(2_000_000_000, &all, Intent::Charge);
    assert_eq!(told(&mut events), first);
    // What the lines count from.
    let count = |of: &dyn Fn(&cells::Worker) -> u64| desk.with(|desk| of(&desk.cells));
    assert_eq!(count(&|worker| worker.rule(0).count()), 6);
    assert_eq!(count(&|worker| worker.rule(1).count()), 3);
    assert_eq!(count(&|worker| worker.rule(2).count()), 3);
    assert_eq!(count(&|worker| worker.limit(limit("trial").0).shadow_deny.count()), 8);
    assert_eq!(count(&|worker| worker.limit(limit("trial").0).deny.count()), 0);
}

/// Of requests that are checked together, the line shows the one that was denied.
#[test]
fn a_denial_of_several_requests_shows_the_one_that_it_was_of() {
    let seed = Seed::new([7; 16]);
    let policy = Policy::compile(&[Source { name: "p", text: TOLD }], &seed).unwrap();
    let loaded = Loaded::new(policy, "a test".to_owned(), UtcTime::from_nanos(0));
    let instance = Instance::new(1000, 10, [9; 16], &seed, Clock::start(), loaded).unwrap();
    let (desk, mut events) = (desk(&instance), instance.journal.take().unwrap());
    let ask = |nanos: u64, asked: &[(&str, &str)]| {
        let mut batch = Batch::new(&desk);
        let loaded = Arc::clone(batch.loaded());
        let handle = loaded.policy.handle_of("a", None).unwrap();
        let team = handle.slot("team").unwrap();
        let values: Vec<Vec<Option<&[u8]>>> = asked
            .iter()
            .map(|(path, of)| {
                let mut values = vec![None; handle.slots().len()];
                (values[0], values[1]) = (Some(&b"GET"[..]), Some(path.as_bytes()));
                values[team] = Some(of.as_bytes());
                values
            })
            .collect();
        let parts: Vec<Part<'_>> = values
            .iter()
            .map(|values| Part { request: Request { values, costs: &[] }, limits: None })
            .collect();
        batch.check_together(handle, &parts, Intent::Charge);
        decide(&mut batch, nanos);
    };
    let names = |told: Vec<(Cause, String)>| -> Vec<String> {
        told.into_iter().map(|(_, name)| name).collect()
    };
    ask(1_000_000_000, &[("/one", "t"), ("/trial", "u"), ("/one", "banned")]);
    assert_eq!(names(told(&mut events)), ["a banned [(\"team\", \"banned\")]"]);
    ask(1_000_000_000, &[("/one", "t"), ("/trial", "u")]);
    assert_eq!(names(told(&mut events)), [""; 0]);
    ask(1_000_000_000, &[("/one", "v"), ("/trial", "u")]);
    assert_eq!(names(told(&mut events)), ["a trial [(\"team\", \"u\")]"]);
    ask(3_000_000_000, &[("/one", "w"), ("/one", "t"), ("/trial", "u")]);
    assert_eq!(
        names(told(&mut events)),
        ["a one [(\"team\", \"t\")]", "a trial [(\"team\", \"u\")]"]
    );
}
