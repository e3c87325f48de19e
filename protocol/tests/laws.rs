//! Laws of the codec, on generated input.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use tollkeeper_protocol::codec::{List, Sparse};
use tollkeeper_protocol::limits::{ANSWER_BYTES_MAX, COST_MAX, FRAME_BYTES_MAX};
use tollkeeper_protocol::request::{
    Adjust, AdjustInline, Batch, BatchRequest, Check, CheckInline, InlineLimit, InlineQuota,
    Release, Renew, Set, SetInline, decode_item,
};
use tollkeeper_protocol::response::{
    Answer, BatchResponse, LimitInfo, LimitNumbers, Numbers, Prepared, ReleaseAnswer, Rendered,
    RenewAnswer, SessionAnswer, SetAnswer, Slot, StaticHeader, Terse, Witness,
};
use tollkeeper_protocol::status::{Align, Kind, Mode, SlotUse, WhenUnavailable};
use tollkeeper_protocol::{
    Assembler, Decision, Envelope, Flags, Form, Intent, Op, Permit, PermitId, Reply, Request,
    RequestId, Response, Retry, next_frame,
};

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

fn values() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
    vec(option::of(bytes(40)), 0..32)
}

fn borrowed(values: &[Option<Vec<u8>>]) -> Vec<Option<&[u8]>> {
    values.iter().map(Option::as_deref).collect()
}

fn intent() -> impl Strategy<Value = Intent> {
    prop_oneof![Just(Intent::Charge), Just(Intent::Peek)]
}

fn form() -> impl Strategy<Value = Form> {
    any::<(bool, bool)>().prop_map(|(numbers, rendered)| Form { numbers, rendered })
}

fn quota() -> impl Strategy<Value = InlineQuota> {
    let units = 1..=1u64 << 53;
    let window = 1_000_000..=366 * 86_400_000_000_000u64;
    prop_oneof![
        (units.clone(), window.clone(), units.clone()).prop_map(|(units, window_nanos, burst)| {
            InlineQuota::Bucket { units, window_nanos, burst }
        }),
        (units.clone(), window.clone(), any::<bool>()).prop_map(|(units, window_nanos, first)| {
            let align = if first { Align::First } else { Align::Clock };
            InlineQuota::Fixed { units, window_nanos, align }
        }),
        (units.clone(), window.clone())
            .prop_map(|(units, window_nanos)| InlineQuota::Sliding { units, window_nanos }),
        (units.clone(), window)
            .prop_map(|(units, lease_nanos)| InlineQuota::Concurrent { units, lease_nanos }),
        units.clone().prop_map(|units| InlineQuota::Level { units }),
        units.prop_map(|units| InlineQuota::Cap { units }),
    ]
}

fn request_id() -> impl Strategy<Value = Option<RequestId>> {
    let id = (any::<u64>(), 1..=u64::MAX);
    option::of(id.prop_map(|(session, sequence)| RequestId { session, sequence }))
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![Just(Reply::Wanted), Just(Reply::None)]
}

fn amount() -> impl Strategy<Value = i64> {
    let max = COST_MAX as i64;
    -max..=max
}

fn lease() -> impl Strategy<Value = Option<u64>> {
    option::of(1_000_000..=366 * 86_400_000_000_000u64)
}

fn permit() -> impl Strategy<Value = Option<Permit>> {
    let permit = (any::<[u8; 16]>(), any::<u64>());
    option::of(permit.prop_map(|(id, expires_nanos)| Permit { id: PermitId(id), expires_nanos }))
}

fn retry() -> impl Strategy<Value = Retry> {
    prop_oneof![
        Just(Retry::None),
        (1..u64::MAX).prop_map(Retry::After),
        Just(Retry::Never),
        option::of(1..u64::MAX).prop_map(Retry::OnOthers),
    ]
}

fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![Just(Decision::Allow), Just(Decision::Deny)]
}

prop_compose! {
    fn witness()(
        policy_version: u64,
        log_index: u64,
        position: u32,
        cluster_nanos: u64,
    ) -> Witness {
        Witness { policy_version, log_index, position, cluster_nanos }
    }
}

prop_compose! {
    fn terse()(
        decision in decision(),
        unmatched: bool,
        failed_open: bool,
        binding in option::of(0..0xFFFFu16),
        retry in retry(),
        witness in witness(),
    ) -> Terse {
        Terse { decision, unmatched, failed_open, binding, retry, witness }
    }
}

prop_compose! {
    fn limit_numbers()(
        index: u16,
        verdict in decision(),
        shadow: bool,
        retry in retry(),
        limit: u64,
        remaining: u64,
        next_nanos: u64,
        full_nanos: u64,
    ) -> LimitNumbers {
        LimitNumbers { index, verdict, shadow, retry, limit, remaining, next_nanos, full_nanos }
    }
}

/// Decoding what was encoded gives the same values.
fn assert_request_survives(request: Request<'_>) {
    let mut out = Vec::new();
    request.encode(Envelope::Call(42), &mut out).unwrap();
    let (frame, consumed) = next_frame(&out, FRAME_BYTES_MAX).unwrap().unwrap();
    assert_eq!((consumed, frame.header.call), (out.len(), 42));
    assert_eq!(Request::decode(&frame.message()), Ok(request));
}

/// The same of a batch's item, of which the reply is always wanted.
fn assert_item_survives(request: Request<'_>) {
    let mut out = Vec::new();
    let mut batch = BatchRequest::begin(7, &mut out);
    for _ in 0..3 {
        batch.push(&request).unwrap();
    }
    assert_eq!(batch.finish(), 3);
    let (frame, _) = next_frame(&out, FRAME_BYTES_MAX).unwrap().unwrap();
    let Ok(Request::Batch(batch)) = Request::decode(&frame.message()) else {
        panic!("not a batch")
    };
    assert_eq!(batch.reply, Reply::Wanted);
    for item in batch.items {
        assert_eq!(decode_item(&item), Ok(request));
    }
    let items = batch.items;
    assert_request_survives(Request::Batch(Batch { reply: Reply::None, items }));
}

fn assert_response_survives(response: Response<'_>, op: Op) {
    let mut out = Vec::new();
    response.encode(op, Envelope::Call(42), &mut out).unwrap();
    let (frame, _) = next_frame(&out, 1 << 20).unwrap().unwrap();
    assert_eq!(Response::decode(&frame.message()), Ok(response));
}

proptest! {
    #[test]
    fn checks_survive(
        intent in intent(),
        form in form(),
        handle: u32,
        layout: u64,
        deadline_nanos in option::of(any::<u64>()),
        costs in vec(0..=COST_MAX, 0..=8),
        values in values(),
        tied: bool,
        no_forward: bool,
        id in request_id(),
    ) {
        let values = borrowed(&values);
        let (costs, values) = (List::from(&costs[..]), Sparse::from(&values[..]));
        let charges = intent == Intent::Charge;
        let (tied, id) = (tied && charges, id.filter(|_| charges));
        let no_forward = no_forward && charges;
        let check = Check {
            intent, form, tied, no_forward, handle, layout, id, deadline_nanos, costs, values,
        };
        assert_request_survives(Request::Check(check));
        assert_item_survives(Request::Check(check));
    }

    #[test]
    fn changes_survive(
        handle: u32,
        layout: u64,
        used in 0..=COST_MAX,
        units in amount(),
        limit in option::of(0..0xFFFFu16),
        id in request_id(),
        reply in reply(),
        values in values(),
        (quota, key) in (quota(), bytes(64)),
    ) {
        let values = borrowed(&values);
        let values = Sparse::from(&values[..]);
        let cost = if matches!(quota, InlineQuota::Concurrent { .. }) { 0 } else { used };
        let inline = |cost| InlineLimit { cost, quota, key: &key };
        let changes = |reply| [
            Request::Set(Set { handle, layout, used, limit, id, reply, values }),
            Request::Adjust(Adjust { handle, layout, units, limit, id, reply, values }),
            Request::SetInline(SetInline { id, reply, limit: inline(cost) }),
            Request::AdjustInline(AdjustInline { units, id, reply, limit: inline(0) }),
        ];
        changes(reply).into_iter().for_each(assert_request_survives);
        changes(Reply::Wanted).into_iter().for_each(assert_item_survives);
    }

    #[test]
    fn permits_survive(
        id: [u8; 16],
        lease_nanos in lease(),
        reply in reply(),
        witness in witness(),
        units: u64,
        expires_nanos in option::of(1..=u64::MAX),
    ) {
        let permit = PermitId(id);
        let requests = |reply| [
            Request::Release(Release { permit, reply }),
            Request::Renew(Renew { permit, lease_nanos, reply }),
        ];
        requests(reply).into_iter().for_each(assert_request_survives);
        requests(Reply::Wanted).into_iter().for_each(assert_item_survives);
        assert_request_survives(Request::Session);
        let released = ReleaseAnswer { units, witness };
        assert_response_survives(Response::Release(released), Op::RELEASE);
        let renewed = RenewAnswer { expires_nanos, witness };
        assert_response_survives(Response::Renew(renewed), Op::RENEW);
        let set = SetAnswer { counters: witness.position, witness };
        assert_response_survives(Response::Set(set), Op::ADJUST);
        let session = SessionAnswer { session: units, window: 1_024, idle_nanos: units };
        assert_response_survives(Response::Session(session), Op::SESSION);
    }

    #[test]
    fn inline_checks_survive(
        intent in intent(),
        numbers: bool,
        tied: bool,
        no_forward: bool,
        id in request_id(),
        deadline_nanos in option::of(any::<u64>()),
        limits in vec((0..=COST_MAX, quota(), bytes(64)), 1..=16),
    ) {
        let limits: Vec<_> = limits
            .iter()
            .map(|(cost, quota, key)| InlineLimit { cost: *cost, quota: *quota, key })
            .collect();
        let (form, limits) = (Form { numbers, rendered: false }, List::from(&limits[..]));
        let charges = intent == Intent::Charge;
        let (tied, id) = (tied && charges, id.filter(|_| charges));
        let no_forward = no_forward && charges;
        let check = CheckInline { intent, form, tied, no_forward, id, deadline_nanos, limits };
        assert_request_survives(Request::CheckInline(check));
        assert_item_survives(Request::CheckInline(check));
    }

    #[test]
    fn answers_survive(
        terse in terse(),
        numbers in option::of((any::<u64>(), vec(limit_numbers(), 0..10))),
        rendered in option::of((any::<u16>(), values(), "[ -~]{0,30}", option::of(bytes(300)))),
        permit in permit(),
    ) {
        let headers = rendered.as_ref().map(|(_, headers, _, _)| borrowed(headers));
        let answer = Answer {
            terse,
            numbers: numbers.as_ref().map(|(wall_nanos, limits)| Numbers {
                wall_nanos: *wall_nanos,
                limits: List::from(&limits[..]),
            }),
            rendered: rendered.as_ref().map(|(status, _, content_type, body)| Rendered {
                status: *status,
                headers: Sparse::from(headers.as_deref().unwrap_or_default()),
                content_type,
                body: body.as_deref(),
            }),
            body_omitted: false,
            permit,
        };
        assert_response_survives(Response::Check(answer), Op::CHECK);
    }

    /// However little room a batch's answer has, every item keeps its decision and its permit.
    #[test]
    fn no_batch_drops_a_permit(
        terse in terse(),
        witness in witness(),
        items in vec((permit(), 0..4usize), 1..=1_024),
        body in bytes(2_000),
    ) {
        let rendered = Rendered {
            status: 200,
            headers: Sparse::EMPTY,
            content_type: "a/b",
            body: Some(&body),
        };
        let answer = Answer { rendered: Some(rendered), ..terse.into() };
        let mut out = Vec::new();
        let mut batch = BatchResponse::begin(7, items.len(), &mut out);
        for (permit, what) in &items {
            match what {
                0 => batch.release(&ReleaseAnswer { units: 1, witness }),
                1 => batch.set(Op::ADJUST, &SetAnswer { counters: 1, witness }),
                _ => batch.answer(Op::CHECK, &Answer { permit: *permit, ..answer }),
            }
        }
        batch.finish();
        let (frame, _) = next_frame(&out, ANSWER_BYTES_MAX).unwrap().unwrap();
        let Ok(Response::Batch(batch)) = Response::decode(&frame.message()) else {
            panic!("not the answer to a batch")
        };
        prop_assert_eq!(batch.items.len(), items.len());
        for ((permit, what), item) in items.iter().zip(batch.items) {
            match Response::decode(&item) {
                Ok(Response::Check(answer)) => {
                    prop_assert_eq!((answer.terse, answer.permit), (terse, *permit));
                }
                other => prop_assert!(*what < 2 && other.is_ok()),
            }
        }
    }

    /// In a frame a change may go without its answer; as an item it is refused, and answered.
    #[test]
    fn only_frames_go_unanswered(op in 0..0x30u16, flags in 0..0x1000u16, body in bytes(80)) {
        use tollkeeper_protocol::Message;

        let (op, flags) = (Op(op), Flags(flags));
        let frame = Message { op, flags, body: &body, offset: 16 };
        let quiet = !frame.wants_reply();
        prop_assert!(!quiet || flags.contains(Flags::NO_REPLY));
        if flags.contains(Flags::NO_REPLY) {
            prop_assert!(quiet || Request::decode(&frame).is_err());
            let item = Message { offset: 28, ..frame };
            prop_assert!(decode_item(&item).is_err());
        }
    }

    #[test]
    fn handles_survive(
        handle: u32,
        layout: u64,
        names in vec("[a-z_]{1,64}", 0..8),
        value in bytes(100),
        number: u64,
    ) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let slots: Vec<_> = names
            .iter()
            .map(|name| Slot { usage: SlotUse::Key, required: name.len() > 9, name })
            .collect();
        let limits: Vec<_> = names
            .iter()
            .map(|name| LimitInfo {
                kind: Kind::Fixed,
                mode: Mode::Shadow,
                limit: number,
                name,
                window: "day",
            })
            .collect();
        let fixed: Vec<_> =
            names.iter().map(|name| StaticHeader { name, value: &value }).collect();
        let prepared = Prepared {
            handle,
            when_unavailable: WhenUnavailable::Deny,
            denied_status: 429,
            layout,
            policy_version: number,
            api: "media",
            class: "",
            slots: List::from(&slots[..]),
            meters: List::from(&names[..]),
            limits: List::from(&limits[..]),
            headers: List::from(&names[..]),
            static_headers: List::from(&fixed[..]),
        };
        assert_response_survives(Response::Prepare(prepared), Op::PREPARE);
        let mut body = Vec::new();
        prepared.encode_body(&mut body).unwrap();
        prop_assert_eq!(Prepared::decode_body(&body), Ok(prepared));
    }

    #[test]
    fn no_bytes_panic(bytes in bytes(300)) {
        if let Ok(Some((frame, _))) = next_frame(&bytes, FRAME_BYTES_MAX) {
            let _ = format!("{:?}", Request::decode(&frame.message()));
            let _ = format!("{:?}", Response::decode(&frame.message()));
        }
    }

    /// As above, past the header: most random bytes are no frame.
    #[test]
    fn no_body_panics(op in 0..0x30u16, top: bool, flags in 0..0x1000u16, body in bytes(300)) {
        let mut frame = Vec::new();
        frame.extend_from_slice(&(body.len() as u32 + 16).to_le_bytes());
        let op = if top { op | 0x8000 } else { op };
        frame.extend_from_slice(&op.to_le_bytes());
        frame.extend_from_slice(&flags.to_le_bytes());
        frame.extend_from_slice(&7u64.to_le_bytes());
        frame.extend_from_slice(&body);
        let (frame, _) = next_frame(&frame, FRAME_BYTES_MAX).unwrap().unwrap();
        for op in [frame.header.op, Op::ERROR] {
            let mut message = frame.message();
            message.op = op;
            if let Ok(request) = Request::decode(&message) {
                let mut out = Vec::new();
                request.encode(Envelope::Call(7), &mut out).unwrap();
                if let Request::Batch(batch) = request {
                    for item in batch.items {
                        let _ = decode_item(&item);
                    }
                }
            }
            let _ = format!("{:?}", Response::decode(&message));
        }
    }

    #[test]
    fn cutting_the_stream_anywhere_changes_nothing(
        payloads in vec(bytes(60), 1..10),
        cuts in vec(1..40usize, 1..60),
    ) {
        use tollkeeper_protocol::request::Ping;

        let mut stream = Vec::new();
        for (call, payload) in payloads.iter().enumerate() {
            Ping { payload }.encode(Envelope::Call(call as u64), &mut stream).unwrap();
        }
        let mut assembler = Assembler::new(FRAME_BYTES_MAX);
        let mut seen = Vec::new();
        let mut rest = &stream[..];
        for cut in cuts.into_iter().cycle() {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            assembler.extend(now);
            while let Some(frame) = assembler.next_frame().unwrap() {
                let Ok(Request::Ping(ping)) = Request::decode(&frame.message()) else {
                    panic!("not a ping")
                };
                seen.push(ping.payload.to_vec());
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(seen, payloads);
        prop_assert_eq!(assembler.waiting(), 0);
    }
}
