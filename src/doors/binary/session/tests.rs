//! Laws of a session, on generated input: what holds whatever a client sends.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use tollkeeper_protocol::codec::{List, Sparse};
use tollkeeper_protocol::limits::{ANSWER_BYTES_MAX, HEADER_BYTES, TERSE_BYTES, TIED_PERMITS_MAX};
use tollkeeper_protocol::request::{
    Adjust, AdjustInline, BatchRequest, Check, CheckInline, Form, Hello, InlineLimit, InlineQuota,
    Intent, Ping, Prepare, Release, Renew, Reply, Set,
};
use tollkeeper_protocol::status::Align;
use tollkeeper_protocol::{Decision, Flags, PermitId, RequestId, Response};

use super::*;
use crate::clock::Clock;
use crate::doors::Instance;
use crate::engine::command::{Charge, LimitId};
use crate::engine::group::{Outcome, Outcomes, Performed};
use crate::engine::key::Seed;
use crate::engine::quota::Quota;
use crate::engine::time::{Nanos, Timestamp, UtcTime};
use crate::policy::{Policy, Source};

/// What one call may append. Each answer keeps to the protocol's maximum, and no more long ones
/// are made together than this.
const OUT_BYTES_MAX: usize = WRITE_BUFFER_BYTES_MAX
    + ORDERS_MAX * ANSWER_BYTES_MAX
    + IN_FLIGHT_MAX * (HEADER_BYTES + TERSE_BYTES);

/// Bytes of the body of the API `wide`'s denials.
const BODY_BYTES: usize = 60_000;

fn instance() -> Arc<Instance> {
    instance_for(1000)
}

fn instance_for(keys_max: u64) -> Arc<Instance> {
    let seed = Seed::new([7; 16]);
    let body = "x".repeat(BODY_BYTES);
    let text = format!(
        "schema = 1\n[api.narrow]\nclass.all = ['GET *']\n[api.narrow.limit]\n\
         team = {{ on = 'all', per = ['team'], bucket = '3/min' }}\n\
         [api.wide]\nclass.all = ['GET *']\n[api.wide.limit]\n\
         team = {{ on = 'all', per = ['team'], bucket = '3/min' }}\n\
         user = {{ on = 'all', per = ['user'], fixed = '5/day' }}\n\
         [api.wide.denied]\nbody = '\"{body}\"'\n"
    );
    let policy = Policy::compile(&[Source { name: "laws", text: &text }], &seed).unwrap();
    let loaded = Loaded::new(policy, "a test".to_owned(), UtcTime::from_nanos(0));
    Instance::new(keys_max, 10, [9; 16], &seed, Clock::start(), loaded).unwrap()
}

/// A session with what a worker lends it, at a moment that does not pass.
struct Side {
    session: Session,
    desk: Desk,
    buffers: SessionBuffers,
    unread: Vec<u8>,
    out: Vec<u8>,
    frames: usize,
    closed: bool,
}

impl Side {
    fn new(instance: &Arc<Instance>) -> Self {
        Self {
            session: Session::default(),
            desk: Desk::new(Arc::clone(instance)),
            buffers: SessionBuffers::default(),
            unread: Vec::new(),
            out: Vec::new(),
            frames: 0,
            closed: false,
        }
    }

    /// What a connection does with the bytes of one read.
    fn receive(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        let mut more = !self.closed;
        while more {
            let now = Now {
                time: Timestamp::from_nanos(5_000_000_000),
                utc: UtcTime::from_nanos(1_714_752_900_000_000_000),
            };
            let mut out = Vec::new();
            let progress = self.session.handle_bytes(
                &mut self.desk,
                &mut self.buffers,
                &mut Stamp::new(|| now),
                &self.unread,
                &mut out,
            );
            assert!(progress.consumed <= self.unread.len());
            assert!(progress.answers <= IN_FLIGHT_MAX);
            assert!(out.len() <= OUT_BYTES_MAX, "{} bytes", out.len());
            assert!(!progress.more || progress.consumed > 0, "no progress");
            self.unread.drain(..progress.consumed);
            self.out.append(&mut out);
            self.frames += progress.answers;
            self.closed |= progress.closes;
            more = progress.more && !self.closed;
        }
    }

    /// Every answer is a frame that a client understands, and nothing follows one that closes.
    fn assert_answers(&self) {
        let (mut rest, mut answers, mut closes) = (&self.out[..], 0, false);
        while let Some((frame, bytes)) = next_frame(rest, ANSWER_BYTES_MAX).unwrap() {
            assert!(!closes, "an answer follows the error that closes");
            let response = Response::decode(&frame.message()).unwrap();
            if let Response::Error(error) = response {
                closes = error.closes;
            }
            answers += 1;
            rest = &rest[bytes..];
        }
        assert!(rest.is_empty());
        assert_eq!(closes, self.closed);
        match closes {
            false => assert_eq!(answers, self.frames),
            // One more, about the connection itself, is the most.
            true => assert!(answers <= self.frames + 1),
        }
    }
}

fn encode(request: &Request<'_>, call: u64, out: &mut Vec<u8>) {
    request.encode(Envelope::Call(call), out).unwrap();
}

fn hello() -> Vec<u8> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        client: "laws",
        credential_scheme: 0,
        credential: b"",
    };
    let mut out = Vec::new();
    encode(&Request::Hello(hello), 1, &mut out);
    out
}

/// A valid request, whose names and keys are few so that counters are met again.
#[derive(Clone, Debug)]
enum Ask {
    Ping(Vec<u8>),
    Prepare(bool),
    Check(Intent, Form, usize, Option<u64>, Option<u64>, Vec<Option<Vec<u8>>>),
    Set(usize, u64, Vec<Option<Vec<u8>>>),
    Adjust(usize, i64, bool, Vec<Option<Vec<u8>>>),
    AdjustInline(i64, u8, u8),
    /// Of a permit that nobody has; to be answered or not.
    Release(bool),
    Renew(bool),
    Session,
    Inline(Intent, bool, Vec<(u64, u8, u8)>),
    Batch(Vec<Ask>),
}

/// API and class of the handles: one comes down to a single counter, the other finds its class.
const HANDLES: [(&str, Option<&str>); 2] = [("narrow", Some("all")), ("wide", None)];

fn single() -> impl Strategy<Value = Ask> {
    let intent = || prop_oneof![Just(Intent::Charge), Just(Intent::Peek)];
    let form = any::<(bool, bool)>().prop_map(|(numbers, rendered)| Form { numbers, rendered });
    let value = prop_oneof![
        Just(b"GET".to_vec()),
        Just(b"POST".to_vec()),
        Just(b"/v1/images".to_vec()),
        vec(any::<u8>(), 0..4),
    ];
    let values = vec(option::weighted(0.9, value), 4);
    let deadline = option::weighted(0.1, prop_oneof![Just(0), Just(u64::MAX)]);
    prop_oneof![
        (intent(), form, 0..2usize, option::weighted(0.2, 0..4u64), deadline, values).prop_map(
            |(intent, form, api, cost, deadline, values)| {
                Ask::Check(intent, form, api, cost, deadline, values)
            }
        ),
        (intent(), any::<bool>(), vec((0..4u64, 0..7u8, 0..3u8), 1..4))
            .prop_map(|(intent, numbers, limits)| Ask::Inline(intent, numbers, limits)),
        (-4..4i64, 0..7u8, 0..3u8)
            .prop_map(|(units, kind, key)| Ask::AdjustInline(units, kind, key)),
        Just(Ask::Release(true)),
        Just(Ask::Renew(true)),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let values = vec(option::weighted(0.9, vec(any::<u8>(), 0..4)), 4);
    prop_oneof![
        1 => vec(any::<u8>(), 0..64).prop_map(Ask::Ping),
        1 => any::<bool>().prop_map(Ask::Prepare),
        1 => (0..2usize, 0..6u64, values.clone())
            .prop_map(|(api, used, values)| Ask::Set(api, used, values)),
        1 => (0..2usize, -6..6i64, any::<bool>(), values)
            .prop_map(|(api, units, reply, values)| Ask::Adjust(api, units, reply, values)),
        1 => any::<bool>().prop_map(Ask::Release),
        1 => any::<bool>().prop_map(Ask::Renew),
        1 => Just(Ask::Session),
        1 => vec(single(), 1..6).prop_map(Ask::Batch),
        6 => single(),
    ]
}

/// Gives the request to `take`, for the handles of this instance.
fn with_request(instance: &Instance, ask: &Ask, take: impl FnOnce(&Request<'_>)) {
    let loaded = instance.policy.load();
    let handle = |api: usize| loaded.policy.handle_of(HANDLES[api].0, HANDLES[api].1).unwrap();
    let borrow = |values: &'_ [Option<Vec<u8>>], api: usize| -> Vec<Option<Vec<u8>>> {
        values[..handle(api).slots().len().min(values.len())].to_vec()
    };
    match ask {
        Ask::Ping(payload) => take(&Request::Ping(Ping { payload })),
        Ask::Prepare(known) => {
            let api = if *known { "narrow" } else { "none" };
            take(&Request::Prepare(Prepare { api, class: None }));
        }
        Ask::Check(intent, form, api, cost, deadline_nanos, values) => {
            let (handle, values) = (handle(*api), borrow(values, *api));
            let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            let costs: Vec<u64> = cost.iter().copied().collect();
            take(&Request::Check(Check {
                intent: *intent,
                form: *form,
                tied: false,
                no_forward: false,
                handle: handle.number(),
                layout: handle.layout(),
                id: None,
                deadline_nanos: *deadline_nanos,
                costs: List::from(&costs[..]),
                values: Sparse::from(&values[..]),
            }));
        }
        Ask::Set(api, used, values) => {
            let (handle, values) = (handle(*api), borrow(values, *api));
            let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            take(&Request::Set(Set {
                handle: handle.number(),
                layout: handle.layout(),
                used: *used,
                limit: None,
                id: None,
                reply: Reply::Wanted,
                values: Sparse::from(&values[..]),
            }));
        }
        Ask::Adjust(api, units, wanted, values) => {
            let (handle, values) = (handle(*api), borrow(values, *api));
            let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            take(&Request::Adjust(Adjust {
                handle: handle.number(),
                layout: handle.layout(),
                units: *units,
                limit: None,
                id: None,
                reply: reply(*wanted),
                values: Sparse::from(&values[..]),
            }));
        }
        Ask::AdjustInline(units, kind, key) => {
            let key = [*key];
            let limit = InlineLimit { cost: 0, quota: inline_quota(*kind), key: &key };
            take(&Request::AdjustInline(AdjustInline {
                units: *units,
                id: None,
                reply: Reply::Wanted,
                limit,
            }));
        }
        Ask::Release(wanted) => {
            let permit = PermitId([7; 16]);
            take(&Request::Release(Release { permit, reply: reply(*wanted) }));
        }
        Ask::Renew(wanted) => {
            let permit = PermitId([7; 16]);
            take(&Request::Renew(Renew { permit, lease_nanos: None, reply: reply(*wanted) }));
        }
        Ask::Session => take(&Request::Session),
        Ask::Inline(intent, numbers, limits) => {
            let keys: Vec<[u8; 1]> = limits.iter().map(|(_, _, key)| [*key]).collect();
            let limits: Vec<_> = limits
                .iter()
                .zip(&keys)
                .map(|((cost, kind, _), key)| InlineLimit {
                    cost: *cost,
                    quota: inline_quota(*kind),
                    key,
                })
                .collect();
            take(&Request::CheckInline(CheckInline {
                intent: *intent,
                form: Form { numbers: *numbers, rendered: false },
                tied: false,
                no_forward: false,
                id: None,
                deadline_nanos: None,
                limits: List::from(&limits[..]),
            }));
        }
        Ask::Batch(_) => {}
    }
}

fn inline_quota(kind: u8) -> InlineQuota {
    let (units, window_nanos) = (3, 60_000_000_000);
    match kind {
        0 => InlineQuota::Bucket { units, window_nanos, burst: 5 },
        1 => InlineQuota::Fixed { units, window_nanos, align: Align::Clock },
        2 => InlineQuota::Fixed { units, window_nanos, align: Align::First },
        3 => InlineQuota::Sliding { units, window_nanos },
        4 => InlineQuota::Concurrent { units, lease_nanos: window_nanos },
        5 => InlineQuota::Level { units },
        _ => InlineQuota::Cap { units },
    }
}

fn reply(wanted: bool) -> Reply {
    if wanted { Reply::Wanted } else { Reply::None }
}

/// A stream of valid frames, HELLO first.
fn stream(instance: &Instance, asks: &[Ask]) -> Vec<u8> {
    let mut stream = hello();
    for (call, ask) in (2..).zip(asks) {
        if let Ask::Batch(items) = ask {
            let mut batch = BatchRequest::begin(call, &mut stream);
            for item in items {
                with_request(instance, item, |request| batch.push(request).unwrap());
            }
            batch.finish();
        } else {
            with_request(instance, ask, |request| encode(request, call, &mut stream));
        }
    }
    stream
}

/// Frames whose length is right and whose op is mostly known; flags and bodies are anything.
fn odd_frame() -> impl Strategy<Value = Vec<u8>> {
    let op = prop_oneof![4 => 0u16..0x30, 1 => any::<u16>()];
    let flags = prop_oneof![3 => Just(0u16), 2 => 0u16..16, 1 => any::<u16>()];
    let body = vec(prop_oneof![Just(0u8), 0u8..4, any::<u8>()], 0..120);
    (op, flags, any::<u64>(), body).prop_map(|(op, flags, call, body)| {
        let mut frame = ((HEADER_BYTES + body.len()) as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&op.to_le_bytes());
        frame.extend_from_slice(&flags.to_le_bytes());
        frame.extend_from_slice(&call.to_le_bytes());
        frame.extend_from_slice(&body);
        frame
    })
}

/// The pieces of `bytes` between the cuts, which are fractions of 65,536.
fn cut_at<'a>(bytes: &'a [u8], cuts: &[u16]) -> Vec<&'a [u8]> {
    let place = |cut: &u16| bytes.len() * usize::from(*cut) / 65_536;
    let mut cuts: Vec<usize> = cuts.iter().map(place).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_get_frames_or_an_end(
        greets: bool,
        bytes in vec(any::<u8>(), 0..600),
        cuts in vec(any::<u16>(), 0..4),
    ) {
        let mut side = Side::new(&instance());
        let mut input = if greets { hello() } else { Vec::new() };
        input.extend_from_slice(&bytes);
        cut_at(&input, &cuts).into_iter().for_each(|piece| side.receive(piece));
        side.assert_answers();
    }

    #[test]
    fn odd_frames_get_an_answer_each_or_an_end(
        frames in vec(odd_frame(), 0..40),
        cuts in vec(any::<u16>(), 0..4),
    ) {
        let mut side = Side::new(&instance());
        let input = [hello(), frames.concat()].concat();
        cut_at(&input, &cuts).into_iter().for_each(|piece| side.receive(piece));
        side.assert_answers();
    }

    #[test]
    fn spoiled_frames_get_an_answer_each_or_an_end(
        asks in vec(ask(), 1..20),
        spoiled in vec((any::<u16>(), any::<u8>()), 1..8),
    ) {
        let instance = instance();
        let mut input = stream(&instance, &asks);
        for (place, byte) in spoiled {
            let place = input.len() * usize::from(place) / 65_536;
            input[place] = byte;
        }
        let mut side = Side::new(&instance);
        side.receive(&input);
        side.assert_answers();
    }

    #[test]
    fn a_stream_in_pieces_is_answered_like_the_whole(
        asks in vec(ask(), 1..60),
        cuts in vec(any::<u16>(), 0..12),
    ) {
        let (one, other) = (instance(), instance());
        let input = stream(&one, &asks);
        let (mut whole, mut pieces) = (Side::new(&one), Side::new(&other));
        whole.receive(&input);
        cut_at(&input, &cuts).into_iter().for_each(|piece| pieces.receive(piece));
        whole.assert_answers();
        prop_assert!(!whole.closed && whole.unread.is_empty());
        let quiet = |ask: &&Ask| {
            matches!(ask, Ask::Adjust(_, _, false, _) | Ask::Release(false) | Ask::Renew(false))
        };
        prop_assert_eq!(whole.frames, asks.len() + 1 - asks.iter().filter(quiet).count());
        prop_assert!(whole.out == pieces.out, "the answers differ");
    }
}

/// As many rendered denials as may be in flight came to 15 MB for one read when all of them were
/// decided before any was counted as written.
#[test]
fn long_answers_stop_at_the_write_buffer() {
    let instance = instance();
    let values: Vec<_> = [&b"GET"[..], b"/", b"t", b"u"].map(|value| Some(value.to_vec())).into();
    let ask = Ask::Check(Intent::Charge, Form::FULL, 1, None, None, values);
    let input = stream(&instance, &vec![ask; IN_FLIGHT_MAX]);
    let mut side = Side::new(&instance);
    side.receive(&input);
    side.assert_answers();
    assert!(side.out.len() > 250 * BODY_BYTES);
}

/// Checks that came in one read behind the sixteenth protocol error were charged and answered
/// after the error that closes.
#[test]
fn nothing_is_charged_behind_an_error_that_closes() {
    let instance = instance();
    let check = |key| Ask::Inline(Intent::Charge, true, vec![(1, 0, key)]);
    let mut input = stream(&instance, &[check(0)]);
    let mut bad = Vec::new();
    with_request(&instance, &check(1), |request| encode(request, 100, &mut bad));
    // RENDERED means nothing with CHECK_INLINE.
    bad[6] = Flags::RENDERED.0 as u8;
    input.extend_from_slice(&bad.repeat(PROTOCOL_ERRORS_MAX));
    with_request(&instance, &check(1), |request| encode(request, 200, &mut input));
    let mut side = Side::new(&instance);
    side.receive(&input);
    side.assert_answers();
    assert!(side.closed);

    let mut other = Side::new(&instance);
    other.receive(&stream(&instance, &[check(1)]));
    let (_, hello_bytes) = next_frame(&other.out, ANSWER_BYTES_MAX).unwrap().unwrap();
    let (frame, _) = next_frame(&other.out[hello_bytes..], ANSWER_BYTES_MAX).unwrap().unwrap();
    let Ok(Response::Check(answer)) = Response::decode(&frame.message()) else {
        panic!("not an answer to a check")
    };
    assert_eq!(answer.terse.decision, Decision::Allow);
    let numbers = answer.numbers.unwrap();
    assert_eq!(numbers.limits.iter().next().unwrap().remaining, 4);
}

/// The first answer that `side` gives to `request`.
fn answered<T>(side: &mut Side, request: &Request<'_>, read: impl FnOnce(Response<'_>) -> T) -> T {
    let (mut input, before) = (Vec::new(), side.out.len());
    encode(request, 9, &mut input);
    side.receive(&input);
    let (frame, _) = next_frame(&side.out[before..], ANSWER_BYTES_MAX).unwrap().unwrap();
    read(Response::decode(&frame.message()).unwrap())
}

fn open_session(side: &mut Side) -> u64 {
    answered(side, &Request::Session, |response| match response {
        Response::Session(answer) => answer.session,
        other => panic!("{other:?}"),
    })
}

/// Checks one inline limit under an id. Returns whether it was allowed, units that remain, and the
/// permit.
fn check_once(
    side: &mut Side,
    quota: InlineQuota,
    id: Option<RequestId>,
) -> (bool, u64, Option<PermitId>) {
    let limits = [InlineLimit { cost: 1, quota, key: b"k" }];
    let check = CheckInline {
        intent: Intent::Charge,
        form: Form::NUMBERS,
        tied: false,
        no_forward: false,
        id,
        deadline_nanos: None,
        limits: List::from(&limits),
    };
    answered(side, &Request::CheckInline(check), |response| match response {
        Response::Check(answer) => {
            let numbers = answer.numbers.unwrap();
            let remaining = numbers.limits.iter().next().unwrap().remaining;
            let allowed = answer.terse.decision == Decision::Allow;
            (allowed, remaining, answer.permit.map(|permit| permit.id))
        }
        other => panic!("{other:?}"),
    })
}

proptest! {
    /// Two connections send checks of one session, some of them again, in any order: each that is
    /// allowed is charged once, is allowed from then on, and has the same permit for ever.
    #[test]
    fn a_check_with_an_id_is_charged_once(
        tries in vec((any::<bool>(), option::weighted(0.9, 1..12u64)), 1..60),
    ) {
        let instance = instance();
        let mut sides = [Side::new(&instance), Side::new(&instance)];
        sides.iter_mut().for_each(|side| side.receive(&hello()));
        let session = open_session(&mut sides[0]);
        let quota = InlineQuota::Concurrent { units: 8, lease_nanos: 60_000_000_000 };
        let (mut charged, mut granted) = (0, BTreeMap::new());
        for (second, sequence) in tries {
            let id = sequence.map(|sequence| RequestId { session, sequence });
            let side = &mut sides[usize::from(second)];
            let (allowed, remaining, permit) = check_once(side, quota, id);
            let known = sequence.and_then(|sequence| granted.get(&sequence).copied());
            let fits = known.is_some() || charged < 8;
            charged += u64::from(fits && known.is_none());
            prop_assert_eq!((allowed, remaining), (fits, 8 - charged));
            prop_assert_eq!(permit.is_some(), fits);
            if let Some(known) = known {
                prop_assert_eq!(permit, Some(known));
            }
            if let (Some(sequence), Some(permit)) = (sequence, permit) {
                granted.insert(sequence, permit);
            }
        }
    }
}

#[test]
fn an_id_that_cannot_be_judged_is_an_error_also_where_limits_fail_open() {
    let instance = instance();
    let mut side = Side::new(&instance);
    side.receive(&hello());
    let values: [Option<&[u8]>; 4] = [Some(b"GET"), Some(b"/"), Some(b"t"), Some(b"u")];
    let loaded = instance.policy.load();
    for (api, class) in HANDLES {
        let handle = loaded.policy.handle_of(api, class).unwrap();
        let slots = handle.slots().len().min(values.len());
        let check = Check {
            intent: Intent::Charge,
            form: Form::FULL,
            tied: false,
            no_forward: false,
            id: Some(RequestId { session: 1, sequence: 1 }),
            handle: handle.number(),
            layout: handle.layout(),
            deadline_nanos: None,
            costs: List::EMPTY,
            values: Sparse::from(&values[..slots]),
        };
        answered(&mut side, &Request::Check(check), |response| match response {
            Response::Error(error) => assert_eq!(error.code, Code::UnknownSession, "{api}"),
            other => panic!("{other:?}"),
        });
        let id = Some(RequestId { session: open_session(&mut side), sequence: 1 });
        let again: Vec<_> = (0..2)
            .map(|_| {
                answered(&mut side, &Request::Check(Check { id, ..check }), |response| {
                    let Response::Check(answer) = response else { panic!("{response:?}") };
                    let numbers = answer.numbers.unwrap();
                    let remaining: Vec<u64> =
                        numbers.limits.iter().map(|limit| limit.remaining).collect();
                    (
                        answer.terse.decision,
                        remaining,
                        answer.rendered.unwrap().body.map(<[u8]>::to_vec),
                    )
                })
            })
            .collect();
        assert_eq!(again[0], again[1], "{api}");
    }
}

/// A session with so many tied permits that are held.
fn with_tied(instance: &Arc<Instance>, permits: usize) -> Side {
    let mut side = Side::new(instance);
    side.receive(&hello());
    side.out.clear();
    let quota = Quota::concurrent(1 << 20, Nanos::from_secs(3600)).unwrap();
    let key = instance.inline.concurrent.key_of_one(b"held");
    let charge = [Charge::new(key, quota, 1, LimitId::INLINE)];
    let (table, mut readings) = (instance.table.load(), Vec::new());
    for _ in 0..permits {
        let decision = table.pin().check(&charge, &mut Stamp::new(moment), &mut readings).unwrap();
        side.session.tied.push(decision.permit.unwrap().id);
    }
    side
}

fn moment() -> Now {
    Now {
        time: Timestamp::from_nanos(5_000_000_000),
        utc: UtcTime::from_nanos(1_714_752_900_000_000_000),
    }
}

fn inline_check(quota: InlineQuota, tied: bool, call: u64, out: &mut Vec<u8>) {
    let limits = [InlineLimit { cost: 1, quota, key: b"k" }];
    let check = CheckInline {
        intent: Intent::Charge,
        form: Form::NUMBERS,
        tied,
        no_forward: false,
        id: None,
        deadline_nanos: None,
        limits: List::from(&limits),
    };
    encode(&Request::CheckInline(check), call, out);
}

const CONCURRENT: InlineQuota = InlineQuota::Concurrent { units: 9, lease_nanos: 60_000_000_000 };

/// Answers in the order of the calls: whether each was allowed, or the code of its error.
fn allowed_or_code(out: &[u8]) -> Vec<Result<bool, Code>> {
    let (mut rest, mut answers) = (out, Vec::new());
    while let Some((frame, bytes)) = next_frame(rest, ANSWER_BYTES_MAX).unwrap() {
        answers.push(match Response::decode(&frame.message()).unwrap() {
            Response::Check(answer) => Ok(answer.terse.decision == Decision::Allow),
            Response::Error(error) => Err(error.code),
            other => panic!("{other:?}"),
        });
        rest = &rest[bytes..];
    }
    answers
}

/// A connection with all its tied permits asked for one more, and then for something else. The pass
/// that heard let the first in, which the pass that collected had not, and gave it what came of the
/// second; that one was told that nobody knows, though it was charged.
#[test]
fn what_is_not_collected_is_not_heard() {
    let instance = instance_for(10_000);
    let mut side = with_tied(&instance, TIED_PERMITS_MAX);
    let mut input = Vec::new();
    inline_check(CONCURRENT, true, 1, &mut input);
    inline_check(InlineQuota::Level { units: 9 }, false, 2, &mut input);
    let Side { session, desk, buffers, .. } = &mut side;
    let loaded = instance.policy.load_full();
    let mut stamp = Stamp::new(moment);
    let (progress, mut docket) = session.collect(desk, buffers, &loaded, &mut stamp, &input);
    assert_eq!(progress.consumed, input.len());
    let table = instance.table.load();
    let group = docket.group().expect("the second check");
    assert_eq!(group.commands.len(), 1);
    let mut readings = Vec::new();
    let decision = table.pin().check(&group.charges, &mut stamp, &mut readings).unwrap();
    let decided = Outcome::Decided { decision, readings: 0..readings.len() };
    let outcomes = Outcomes { now: moment(), list: vec![decided], readings };
    docket.hear(Some(Ok(Performed { outcomes, index: 1, position: 0 })));
    // What was held has lapsed meanwhile: there is room now, and it is too late for the first.
    for permit in &session.tied {
        table.pin().release(*permit, &mut stamp);
    }
    let mut out = Vec::new();
    session.hear(desk, buffers, (&loaded, docket), &mut stamp, &input, &mut out);
    assert_eq!(allowed_or_code(&out), [Err(Code::Overloaded), Ok(true)]);
    assert_eq!(session.tied, [], "those that have lapsed are not kept");
}

/// Checks that were wrong in themselves took the room of those behind them.
#[test]
fn what_is_wrong_takes_no_room_of_tied_permits() {
    let instance = instance_for(10_000);
    let mut side = with_tied(&instance, TIED_PERMITS_MAX - 1);
    let mut input = Vec::new();
    let wrong = InlineQuota::Concurrent { units: 9, lease_nanos: 1 };
    inline_check(wrong, true, 1, &mut input);
    inline_check(CONCURRENT, true, 2, &mut input);
    inline_check(CONCURRENT, true, 3, &mut input);
    side.receive(&input);
    let answers = allowed_or_code(&side.out);
    assert!(matches!(answers[..], [Err(_), Ok(true), Err(Code::Overloaded)]), "{answers:?}");
    assert_eq!(side.session.tied.len(), TIED_PERMITS_MAX);
}
