//! The async client against a scripted server on the loopback.
#![cfg(feature = "client")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use tollkeeper_protocol::client::{
    BatchItem, CheckArgs, Client, ClientError, Cluster, Event, OnEvent, OnUnavailable, Options,
};
use tollkeeper_protocol::codec::{List, Sparse};
use tollkeeper_protocol::limits::FRAME_BYTES_MAX;
use tollkeeper_protocol::request::{InlineLimit, InlineQuota, Release, Renew, decode_item};
use tollkeeper_protocol::response::{
    Answer, BatchResponse, Detail, ErrorAnswer, GoAway, HelloAnswer, LimitInfo, Maxima, PingAnswer,
    Prepared, ReleaseAnswer, Rendered, RenewAnswer, SessionAnswer, SetAnswer, Slot, StaticHeader,
    Terse, Witness,
};
use tollkeeper_protocol::status::{Kind, Mode, SlotUse, WhenUnavailable};
use tollkeeper_protocol::{
    Assembler, Capabilities, Code, Decision, Envelope, Form, Intent, Op, Permit, PermitId, Reply,
    Request, RequestId, Response, Retry,
};

const ALLOW: Terse = Terse {
    decision: Decision::Allow,
    unmatched: false,
    failed_open: false,
    binding: Some(0),
    retry: Retry::None,
    witness: Witness { policy_version: 7, log_index: 0, position: 0, cluster_nanos: 1 },
};

fn terse(policy_version: u64) -> Response<'static> {
    let witness = Witness { policy_version, ..ALLOW.witness };
    Response::Check(Terse { witness, ..ALLOW }.into())
}

/// A handle whose slots are named as given; the number of the layout is theirs too.
fn prepared(layout: u64, names: &[&str], when_unavailable: WhenUnavailable, out: &mut Vec<u8>) {
    let slots: Vec<_> =
        names.iter().map(|name| Slot { usage: SlotUse::Key, required: true, name }).collect();
    let limits =
        [LimitInfo { kind: Kind::Bucket, mode: Mode::Enforce, limit: 120, name: "a", window: "" }];
    let fixed = [StaticHeader { name: "Cache-Control", value: b"no-store" }];
    let prepared = Prepared {
        handle: 1,
        when_unavailable,
        denied_status: 429,
        layout,
        policy_version: 7,
        api: "media",
        class: "",
        slots: List::from(&slots[..]),
        meters: List::from(&["requests"]),
        limits: List::from(&limits),
        headers: List::from(&["X-RateLimit-Limit"]),
        static_headers: List::from(&fixed),
    };
    prepared.encode_body(out).unwrap();
}

/// The server's end of one connection.
struct Peer {
    stream: TcpStream,
    assembler: Assembler,
}

struct Asked {
    op: Op,
    call: u64,
    bytes: Vec<u8>,
}

impl Asked {
    fn request<T>(&self, read: impl FnOnce(Request<'_>) -> T) -> T {
        let (frame, _) =
            tollkeeper_protocol::next_frame(&self.bytes, FRAME_BYTES_MAX).unwrap().unwrap();
        read(Request::decode(&frame.message()).unwrap())
    }
}

impl Peer {
    /// Accepts and answers HELLO.
    async fn accept(listener: &TcpListener, in_flight: u64, instance: u8) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let mut peer = Self { stream, assembler: Assembler::new(FRAME_BYTES_MAX) };
        let hello = peer.next().await.unwrap();
        let answer = Response::Hello(HelloAnswer {
            version: 1,
            capabilities: Capabilities::ALL,
            features: 0,
            instance: [instance; 16],
            principal: "default",
            server: "scripted/1",
            maxima: Maxima::default().with(5, in_flight),
        });
        peer.answer(&hello, &answer).await;
        peer
    }

    async fn next(&mut self) -> Option<Asked> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.assembler.next_frame().unwrap() {
                let (op, call) = (frame.header.op, frame.header.call);
                let mut whole = frame.header.length.to_le_bytes().to_vec();
                whole.extend_from_slice(&op.0.to_le_bytes());
                whole.extend_from_slice(&frame.header.flags.0.to_le_bytes());
                whole.extend_from_slice(&call.to_le_bytes());
                whole.extend_from_slice(frame.body);
                return Some(Asked { op, call, bytes: whole });
            }
            match self.stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.assembler.extend(&bytes[..count]),
            }
        }
    }

    async fn answer(&mut self, asked: &Asked, response: &Response<'_>) {
        let mut out = Vec::new();
        response.encode(asked.op, Envelope::Call(asked.call), &mut out).unwrap();
        self.write(&out).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn prepare(&mut self, layout: u64, names: &[&str], unavailable: WhenUnavailable) {
        let asked = self.next().await.unwrap();
        assert_eq!(asked.op, Op::PREPARE);
        let mut body = Vec::new();
        prepared(layout, names, unavailable, &mut body);
        let answer = Response::Prepare(Prepared::decode_body(&body).unwrap());
        self.answer(&asked, &answer).await;
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

fn listening() -> (Options, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let on_event: Arc<OnEvent> = Arc::new(move |event| sink.lock().unwrap().push(event.clone()));
    (Options { on_event: Some(on_event), ..Options::default() }, events)
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order_and_within_the_cap() {
    let (listener, addr) = listen().await;
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener, 4, 1).await;
        peer.prepare(1, &["team"], WhenUnavailable::Allow).await;
        // Sixteen checks come, never more than four unanswered, and are answered backwards.
        for _ in 0..4 {
            let mut asked = Vec::new();
            for _ in 0..4 {
                asked.push(peer.next().await.unwrap());
            }
            let mut byte = [0; 1];
            let more = tokio::time::timeout(Duration::from_millis(30), peer.stream.peek(&mut byte));
            assert!(more.await.is_err(), "a fifth request came while four were in flight");
            for asked in asked.iter().rev() {
                let team = asked.request(|request| match request {
                    Request::Check(check) => {
                        String::from_utf8(check.values.value(0).unwrap().to_vec()).unwrap()
                    }
                    other => panic!("{other:?}"),
                });
                peer.answer(asked, &terse(team.parse().unwrap())).await;
            }
        }
    });
    let client = Client::connect(addr, Options::default()).await.unwrap();
    assert_eq!(client.server().principal, "default");
    let handle = client.prepare("media", None).await.unwrap();
    assert_eq!(handle.description().limits[0].name, "a");
    let mut tasks = Vec::new();
    for team in 0..16u64 {
        let (client, handle) = (client.clone(), handle.clone());
        tasks.push(tokio::spawn(async move {
            let args = CheckArgs::new().value("team", team.to_string());
            let answer = client.check(&handle, &args).await.unwrap();
            assert!(answer.is_allowed());
            assert_eq!(answer.witness.policy_version, team);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    server.await.unwrap();
}

#[tokio::test]
async fn a_stale_handle_is_prepared_anew_and_checked_once_more() {
    let (listener, addr) = listen().await;
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener, 256, 1).await;
        peer.prepare(1, &["team", "ip"], WhenUnavailable::Allow).await;
        let asked = peer.next().await.unwrap();
        let mut body = Vec::new();
        prepared(2, &["ip", "zone", "team"], WhenUnavailable::Allow, &mut body);
        let stale = ErrorAnswer::new(Code::StaleHandle, "").with_detail(Detail::Layout(&body));
        peer.answer(&asked, &Response::Error(stale)).await;
        let asked = peer.next().await.unwrap();
        asked.request(|request| match request {
            Request::Check(check) => {
                assert_eq!(check.layout, 2);
                let values: Vec<_> = check.values.iter().collect();
                assert_eq!(values, [(0, &b"::1"[..]), (2, b"t1")]);
            }
            other => panic!("{other:?}"),
        });
        peer.answer(&asked, &terse(8)).await;
        // Without its description inside, PREPARE comes first.
        let asked = peer.next().await.unwrap();
        let gone = ErrorAnswer::new(Code::UnknownHandle, "");
        peer.answer(&asked, &Response::Error(gone)).await;
        peer.prepare(3, &["team", "ip"], WhenUnavailable::Allow).await;
        let asked = peer.next().await.unwrap();
        peer.answer(&asked, &terse(9)).await;
    });
    let (options, events) = listening();
    let client = Client::connect(addr, options).await.unwrap();
    let handle = client.prepare("media", None).await.unwrap();
    let args = CheckArgs::new().value_at(0, "t1").value("ip", "::1");
    let answer = client.check(&handle, &args).await.unwrap();
    assert_eq!(answer.witness.policy_version, 8);
    let args = CheckArgs::new().value("team", "t1");
    let answer = client.check(&handle, &args).await.unwrap();
    assert_eq!(answer.witness.policy_version, 9);
    assert_eq!(handle.description().layout, 3);
    let changed = Event::HandleChanged { api: "media".into() };
    let times = events.lock().unwrap().iter().filter(|event| **event == changed).count();
    assert_eq!(times, 2);
    server.await.unwrap();
}

#[tokio::test]
async fn nobody_there_is_told_apart() {
    let (listener, addr) = listen().await;
    drop(listener);
    match Client::connect(addr.clone(), Options::default()).await {
        Err(ClientError::Unreachable { addr: told, .. }) => assert_eq!(told, addr),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_lost_server_fails_open_or_closed_as_the_handle_says_and_loudly() {
    for (rule, allowed) in [(WhenUnavailable::Allow, true), (WhenUnavailable::Deny, false)] {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let mut peer = Peer::accept(&listener, 256, 1).await;
            peer.prepare(1, &["team"], rule).await;
            // The check is read, never answered, and the server dies.
            peer.next().await.unwrap();
        });
        let (options, events) = listening();
        let client = Client::connect(addr, options).await.unwrap();
        let handle = client.prepare("media", None).await.unwrap();
        let args = CheckArgs::new().value("team", "t1");
        let answer = client.check(&handle, &args).await.unwrap();
        assert_eq!((answer.is_allowed(), answer.failed_open), (allowed, allowed));
        assert!(matches!(*answer.unavailable.unwrap(), ClientError::Lost { .. }));
        server.await.unwrap();
        // Now nothing listens.
        let answer = client.check(&handle, &args).await.unwrap();
        assert_eq!(answer.is_allowed(), allowed);
        if !allowed {
            let rendered = answer.rendered.unwrap();
            assert_eq!(rendered.status, 429);
            assert_eq!(rendered.headers, [("Cache-Control".into(), b"no-store".to_vec())]);
        }
        let counters = client.counters();
        let (open, closed) = if allowed { (2, 0) } else { (0, 2) };
        assert_eq!((counters.failed_open, counters.failed_closed), (open, closed));
        let is_loud =
            |event: &&Event| matches!(event, Event::FailedOpen { .. } | Event::FailedClosed { .. });
        let loud = events.lock().unwrap().iter().filter(is_loud).count();
        assert_eq!(loud, 2);
        // What no rule can answer stays an error.
        assert!(matches!(client.ping().await, Err(ClientError::Unreachable { .. })));
    }
}

#[tokio::test]
async fn after_a_goaway_requests_go_to_the_next_connection() {
    let (listener, addr) = listen().await;
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener, 256, 1).await;
        peer.prepare(1, &["team"], WhenUnavailable::Allow).await;
        let first = peer.next().await.unwrap();
        let mut out = Vec::new();
        let code = Code::ShuttingDown;
        GoAway { code, grace_millis: 1_000, message: "bye" }.encode(&mut out).unwrap();
        peer.write(&out).await;
        // What was in flight is answered.
        peer.answer(&first, &terse(1)).await;
        // A new connection follows; a request that crossed a GOAWAY comes again.
        let mut peer = Peer::accept(&listener, 256, 2).await;
        let crossed = peer.next().await.unwrap();
        let mut out = Vec::new();
        GoAway { code, grace_millis: 1_000, message: "bye" }.encode(&mut out).unwrap();
        peer.write(&out).await;
        let refused = ErrorAnswer::new(code, "");
        peer.answer(&crossed, &Response::Error(refused)).await;
        let mut peer = Peer::accept(&listener, 256, 2).await;
        let again = peer.next().await.unwrap();
        peer.answer(&again, &terse(2)).await;
    });
    let (options, events) = listening();
    let client = Client::connect(addr, options).await.unwrap();
    let handle = client.prepare("media", None).await.unwrap();
    let args = CheckArgs::new().value("team", "t1");
    assert_eq!(client.check(&handle, &args).await.unwrap().witness.policy_version, 1);
    assert_eq!(client.check(&handle, &args).await.unwrap().witness.policy_version, 2);
    server.await.unwrap();
    assert_eq!(client.counters().reconnects, 2);
    assert_eq!(client.counters().failed_open, 0);
    let events = events.lock().unwrap();
    assert!(events.contains(&Event::GoAway { message: "bye".into() }));
    assert!(events.contains(&Event::Reconnected { instance_changed: true }));
}

#[tokio::test]
async fn errors_deadlines_and_mistakes_reach_the_caller() {
    let (listener, addr) = listen().await;
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener, 256, 1).await;
        peer.prepare(1, &["team"], WhenUnavailable::Allow).await;
        let asked = peer.next().await.unwrap();
        let detail = Detail::Attribute { limit: "a", attribute: "team", found: Some(b"?") };
        let error = ErrorAnswer::new(Code::BadAttribute, "no such team").with_detail(detail);
        peer.answer(&asked, &Response::Error(error)).await;
        let silent = peer.next().await.unwrap();
        silent.request(|request| match request {
            Request::Check(check) => assert_eq!(check.deadline_nanos, Some(20_000_000)),
            other => panic!("{other:?}"),
        });
        // A late answer is for nobody, and harms nobody.
        let asked = peer.next().await.unwrap();
        peer.answer(&silent, &terse(1)).await;
        let ping = PingAnswer { cluster_nanos: 1, wall_nanos: 2, payload: &[] };
        peer.answer(&asked, &Response::Ping(ping)).await;
    });
    let options = Options { on_unavailable: OnUnavailable::Report, ..Options::default() };
    let client = Client::connect(addr, options).await.unwrap();
    let handle = client.prepare("media", None).await.unwrap();
    let args = CheckArgs::new().value("team", "?");
    match client.check(&handle, &args).await {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error.code, Code::BadAttribute);
            assert_eq!(error.attribute.unwrap().2, Some(b"?".to_vec()));
        }
        other => panic!("{other:?}"),
    }
    let args = args.deadline(Duration::from_millis(20));
    let late = client.check(&handle, &args).await;
    assert!(matches!(late, Err(ClientError::TimedOut { .. })), "{late:?}");
    let unknown = client.check(&handle, &CheckArgs::new().value("tame", "t1")).await;
    assert!(matches!(unknown, Err(ClientError::UnknownSlot { .. })), "{unknown:?}");
    let long = client.check(&handle, &CheckArgs::new().value("team", vec![0; 1025])).await;
    assert!(matches!(long, Err(ClientError::BadArgument(_))), "{long:?}");
    client.ping().await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn batches_inline_limits_and_sets_are_answered() {
    let (listener, addr) = listen().await;
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener, 256, 1).await;
        peer.prepare(1, &["team"], WhenUnavailable::Deny).await;
        let asked = peer.next().await.unwrap();
        let mut out = Vec::new();
        asked.request(|request| {
            let Request::Batch(batch) = request else { panic!("{request:?}") };
            let ops: Vec<_> = batch.items.iter().map(|item| item.op).collect();
            assert_eq!(ops, [Op::PEEK, Op::CHECK_INLINE, Op::CHECK]);
            assert!(batch.items.iter().all(|item| decode_item(&item).is_ok()));
            let mut answers = BatchResponse::begin(asked.call, 3, &mut out);
            let headers: [Option<&[u8]>; 1] = [Some(b"120")];
            let rendered = Rendered {
                status: 200,
                headers: Sparse::from(&headers[..]),
                content_type: "",
                body: None,
            };
            let mut answer: Answer<'_> = ALLOW.into();
            answer.rendered = Some(rendered);
            answers.answer(Op::PEEK, &answer);
            answers.error(&ErrorAnswer::new(Code::Forbidden, "no"));
            answers.error(&ErrorAnswer::new(Code::TableFull, "full"));
            answers.finish();
        });
        peer.write(&out).await;
        let asked = peer.next().await.unwrap();
        assert_eq!(asked.op, Op::CHECK_INLINE);
        peer.answer(&asked, &terse(3)).await;
        for op in [Op::SET, Op::SET_INLINE] {
            let asked = peer.next().await.unwrap();
            assert_eq!(asked.op, op);
            let set = SetAnswer { counters: 1, witness: ALLOW.witness };
            peer.answer(&asked, &Response::Set(set)).await;
        }
    });
    let client = Client::connect(addr, Options::default()).await.unwrap();
    let handle = &client.prepare("media", None).await.unwrap();
    let args = &CheckArgs::new().value("team", "t1").form(Form::RENDERED);
    let quota = InlineQuota::Bucket { units: 1, window_nanos: 1_000_000_000, burst: 1 };
    let limits = [InlineLimit { cost: 1, quota, key: b"k" }];
    let items = [
        BatchItem::Handle { handle, intent: Intent::Peek, args },
        BatchItem::Inline { intent: Intent::Charge, form: Form::TERSE, limits: &limits },
        BatchItem::Handle { handle, intent: Intent::Charge, args },
    ];
    let answers = client.batch(&items).await.unwrap();
    let rendered = answers[0].as_ref().unwrap().rendered.as_ref().unwrap();
    assert_eq!(rendered.headers, [("X-RateLimit-Limit".into(), b"120".to_vec())]);
    assert!(matches!(&answers[1], Err(ClientError::Refused(e)) if e.code == Code::Forbidden));
    // TABLE_FULL is no decision, and this handle says to refuse.
    let full = answers[2].as_ref().unwrap();
    assert!(!full.is_allowed() && full.unavailable.is_some());
    assert_eq!(client.counters().failed_closed, 1);
    let answer = client.check_inline(&limits, Form::TERSE).await.unwrap();
    assert_eq!(answer.witness.policy_version, 3);
    assert_eq!(client.set(handle, args, None, 0, None).await.unwrap().counters, 1);
    assert_eq!(client.set_inline(limits[0], None).await.unwrap().counters, 1);
    server.await.unwrap();
}

const PERMIT: Permit = Permit { id: PermitId([7; 16]), expires_nanos: 30_000_000_000 };

fn granted() -> Response<'static> {
    Response::Check(Answer { permit: Some(PERMIT), ..ALLOW.into() })
}

const PONG: Response<'static> =
    Response::Ping(PingAnswer { cluster_nanos: 1, wall_nanos: 2, payload: &[] });

#[tokio::test]
async fn permits_are_granted_renewed_and_given_back() {
    let (listener, addr) = listen().await;
    let permit = PERMIT.id;
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener, 1, 1).await;
        peer.prepare(1, &["team"], WhenUnavailable::Allow).await;
        let asked = peer.next().await.unwrap();
        asked.request(|request| match request {
            Request::Check(check) => assert!(check.tied),
            other => panic!("{other:?}"),
        });
        peer.answer(&asked, &granted()).await;
        let witness = ALLOW.witness;
        for lease_nanos in [None, Some(60_000_000_000)] {
            let asked = peer.next().await.unwrap();
            let renew = Renew { permit, lease_nanos, reply: Reply::Wanted };
            asked.request(|request| assert_eq!(request, Request::Renew(renew)));
            let answer = RenewAnswer { expires_nanos: lease_nanos, witness };
            peer.answer(&asked, &Response::Renew(answer)).await;
        }
        let asked = peer.next().await.unwrap();
        let release = Release { permit, reply: Reply::Wanted };
        asked.request(|request| assert_eq!(request, Request::Release(release)));
        peer.answer(&asked, &Response::Release(ReleaseAnswer { units: 1, witness })).await;
        // With room for one request in flight, those that want no answer pass all the same.
        for _ in 0..2 {
            let asked = peer.next().await.unwrap();
            let release = Release { permit, reply: Reply::None };
            asked.request(|request| assert_eq!(request, Request::Release(release)));
        }
        let asked = peer.next().await.unwrap();
        peer.answer(&asked, &PONG).await;
        // What was sent and forgotten arrives even if the client is dropped right after it.
        assert_eq!(peer.next().await.unwrap().op, Op::RELEASE);
        assert!(peer.next().await.is_none());
    });
    let client = Client::connect(addr, Options::default()).await.unwrap();
    let handle = client.prepare("media", None).await.unwrap();
    let args = CheckArgs::new().value("team", "t1").tied();
    let answer = client.check(&handle, &args).await.unwrap();
    assert_eq!(answer.permit, Some(PERMIT));
    assert_eq!(client.renew(permit, None).await.unwrap().expires_nanos, None);
    let renewed = client.renew(permit, Some(Duration::from_secs(60))).await.unwrap();
    assert_eq!(renewed.expires_nanos, Some(60_000_000_000));
    assert_eq!(client.release(permit).await.unwrap().units, 1);
    client.release_and_forget(permit).unwrap();
    client.release_and_forget(permit).unwrap();
    client.ping().await.unwrap();
    client.release_and_forget(permit).unwrap();
    drop(client);
    server.await.unwrap();
}

/// Nobody but the driver knows the id of a permit that came after its caller's deadline: without
/// its care the units would be held for a whole lease.
#[tokio::test]
async fn a_permit_that_comes_too_late_is_given_back() {
    let (listener, addr) = listen().await;
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener, 256, 1).await;
        peer.prepare(1, &["team"], WhenUnavailable::Allow).await;
        let late = peer.next().await.unwrap();
        let after = peer.next().await.unwrap();
        peer.answer(&late, &granted()).await;
        let asked = peer.next().await.unwrap();
        let release = Release { permit: PERMIT.id, reply: Reply::None };
        asked.request(|request| assert_eq!(request, Request::Release(release)));
        peer.answer(&after, &PONG).await;
    });
    let client = Client::connect(addr, Options::default()).await.unwrap();
    let handle = client.prepare("media", None).await.unwrap();
    let args = CheckArgs::new().value("team", "t1").deadline(Duration::from_millis(20));
    let answer = client.check(&handle, &args).await.unwrap();
    assert!(answer.unavailable.is_some() && answer.permit.is_none());
    client.ping().await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn changes_carry_their_ids_also_when_sent_again() {
    let (listener, addr) = listen().await;
    let id = |sequence| Some(RequestId { session: 5, sequence });
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener, 256, 1).await;
        peer.prepare(1, &["team"], WhenUnavailable::Allow).await;
        let asked = peer.next().await.unwrap();
        asked.request(|request| assert_eq!(request, Request::Session));
        let session = SessionAnswer { session: 5, window: 1_024, idle_nanos: 3_600_000_000_000 };
        peer.answer(&asked, &Response::Session(session)).await;
        let done = Response::Set(SetAnswer { counters: 1, witness: ALLOW.witness });
        // A stale handle did nothing, so the second try is the same request.
        for layout in [1, 2] {
            let asked = peer.next().await.unwrap();
            asked.request(|request| match request {
                Request::Adjust(adjust) => {
                    assert_eq!((adjust.layout, adjust.units), (layout, -3));
                    assert_eq!((adjust.id, adjust.limit), (id(1), None));
                    assert_eq!(adjust.values.value(0), Some(&b"t1"[..]));
                }
                other => panic!("{other:?}"),
            });
            if layout == 2 {
                peer.answer(&asked, &done).await;
                break;
            }
            let mut body = Vec::new();
            prepared(2, &["team"], WhenUnavailable::Allow, &mut body);
            let stale = ErrorAnswer::new(Code::StaleHandle, "").with_detail(Detail::Layout(&body));
            peer.answer(&asked, &Response::Error(stale)).await;
        }
        let asked = peer.next().await.unwrap();
        asked.request(|request| match request {
            Request::Set(set) => assert_eq!((set.used, set.id), (9, id(2))),
            other => panic!("{other:?}"),
        });
        peer.answer(&asked, &done).await;
        let asked = peer.next().await.unwrap();
        asked.request(|request| match request {
            Request::AdjustInline(adjust) => assert_eq!((adjust.units, adjust.id), (4, id(3))),
            other => panic!("{other:?}"),
        });
        let forgotten = ErrorAnswer::new(Code::UnknownSession, "forgotten");
        peer.answer(&asked, &Response::Error(forgotten)).await;
    });
    let client = Client::connect(addr, Options::default()).await.unwrap();
    let handle = &client.prepare("media", None).await.unwrap();
    let session = client.session().await.unwrap();
    assert_eq!((session.window(), session.idle()), (1_024, Duration::from_secs(3_600)));
    let args = &CheckArgs::new().value("team", "t1");
    let done = client.adjust(handle, args, None, -3, Some(session.next_id())).await.unwrap();
    assert_eq!(done.counters, 1);
    let done = client.set(handle, args, Some(0), 9, Some(session.next_id())).await.unwrap();
    assert_eq!(done.counters, 1);
    let limit = InlineLimit { cost: 0, quota: InlineQuota::Level { units: 10 }, key: b"k" };
    match client.adjust_inline(limit, 4, Some(session.next_id())).await {
        Err(ClientError::Refused(error)) => assert_eq!(error.code, Code::UnknownSession),
        other => panic!("{other:?}"),
    }
    let far = client.adjust_inline(limit, i64::MIN, None).await;
    assert!(matches!(far, Err(ClientError::BadArgument(_))), "{far:?}");
    server.await.unwrap();
}

/// What a node of a cluster does with the checks that it gets.
#[derive(Clone, Copy, PartialEq)]
enum Node {
    /// Closes the connection instead of an answer.
    Dies,
    /// Says nothing.
    Hangs,
    Answers,
    /// Knows none of the sessions that others opened.
    Forgot,
}

/// A node that prepares, opens sessions numbered from `session`, and notes the ids of checks.
async fn node(listener: TcpListener, acts: Node, session: u64, seen: Arc<Mutex<Vec<RequestId>>>) {
    let mut opened = session;
    loop {
        let mut peer = Peer::accept(&listener, 256, 1).await;
        while let Some(asked) = peer.next().await {
            let id = asked.request(|request| match request {
                Request::Check(check) => check.id,
                _ => None,
            });
            match asked.op {
                Op::PREPARE => {
                    let mut body = Vec::new();
                    prepared(1, &["team"], WhenUnavailable::Deny, &mut body);
                    let answer = Response::Prepare(Prepared::decode_body(&body).unwrap());
                    peer.answer(&asked, &answer).await;
                }
                Op::SESSION => {
                    let answer = SessionAnswer { session: opened, window: 4, idle_nanos: 1 << 40 };
                    opened += 1;
                    peer.answer(&asked, &Response::Session(answer)).await;
                }
                Op::CHECK => {
                    let id = id.unwrap();
                    seen.lock().unwrap().push(id);
                    let forgot = acts == Node::Forgot && id.session == session;
                    match acts {
                        Node::Dies => break,
                        Node::Hangs => {}
                        Node::Forgot if forgot => {
                            let error = ErrorAnswer::new(Code::UnknownSession, "");
                            peer.answer(&asked, &Response::Error(error)).await;
                        }
                        Node::Answers | Node::Forgot => peer.answer(&asked, &terse(7)).await,
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

struct Nodes {
    addrs: Vec<String>,
    seen: Vec<Arc<Mutex<Vec<RequestId>>>>,
}

impl Nodes {
    async fn start(acts: &[Node]) -> Self {
        let mut nodes = Self { addrs: Vec::new(), seen: Vec::new() };
        for (number, acts) in (1..).zip(acts) {
            let (listener, addr) = listen().await;
            let seen = Arc::new(Mutex::new(Vec::new()));
            tokio::spawn(node(listener, *acts, number * 100, seen.clone()));
            nodes.addrs.push(addr);
            nodes.seen.push(seen);
        }
        nodes
    }

    fn seen(&self, node: usize) -> Vec<RequestId> {
        self.seen[node].lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_check_that_gets_no_answer_goes_to_the_next_node_under_its_id() {
    let nodes = Nodes::start(&[Node::Dies, Node::Hangs, Node::Answers]).await;
    let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
    let cluster = Cluster::connect(nodes.addrs.clone(), options).await.unwrap();
    let handle = cluster.prepare("media", None).await.unwrap();
    let args = CheckArgs::new().value("team", "t1");
    let answer = cluster.check(&handle, &args).await.unwrap();
    assert!(answer.unavailable.is_none());
    let id = RequestId { session: 100, sequence: 1 };
    assert_eq!([0, 1, 2].map(|node| nodes.seen(node)), [vec![id], vec![id], vec![id]]);
    // Whoever answered is asked first from now on.
    cluster.check(&handle, &args).await.unwrap();
    assert_eq!([0, 1, 2].map(|node| nodes.seen(node).len()), [1, 1, 2]);
    assert_eq!(nodes.seen(2)[1], RequestId { session: 100, sequence: 2 });
}

#[tokio::test]
async fn without_any_answer_the_handle_decides_in_time() {
    let nodes = Nodes::start(&[Node::Hangs, Node::Dies]).await;
    let deadline = Duration::from_millis(300);
    let options = Options { deadline, ..Options::default() };
    let cluster = Cluster::connect(nodes.addrs.clone(), options).await.unwrap();
    let handle = cluster.prepare("media", None).await.unwrap();
    let began = std::time::Instant::now();
    let answer = cluster.check(&handle, &CheckArgs::new().value("team", "t1")).await.unwrap();
    assert!(answer.unavailable.is_some() && !answer.is_allowed());
    assert!(began.elapsed() < 4 * deadline, "{:?}", began.elapsed());
    assert_eq!(cluster.counters().failed_closed, 1);
}

/// A session that the server has forgotten is no reason to refuse a check that was never charged.
#[tokio::test]
async fn a_forgotten_session_is_opened_anew_and_nobody_notices() {
    let nodes = Nodes::start(&[Node::Forgot]).await;
    let cluster = Cluster::connect(nodes.addrs.clone(), Options::default()).await.unwrap();
    let handle = cluster.prepare("media", None).await.unwrap();
    let answer = cluster.check(&handle, &CheckArgs::new().value("team", "t1")).await.unwrap();
    assert!(answer.unavailable.is_none());
    let ids = [100, 101].map(|session| RequestId { session, sequence: 1 });
    assert_eq!(nodes.seen(0), ids);
}

/// The server tells ids apart only within its window, here 4: more requests at a time take more
/// sessions. And a task of its own may make a check.
#[tokio::test]
async fn requests_under_way_keep_to_the_window_of_their_session() {
    let nodes = Nodes::start(&[Node::Hangs]).await;
    let options = Options { deadline: Duration::from_millis(400), ..Options::default() };
    let cluster = Cluster::connect(nodes.addrs.clone(), options).await.unwrap();
    let handle = cluster.prepare("media", None).await.unwrap();
    let checks: Vec<_> = (0..10)
        .map(|_| {
            let (cluster, handle) = (cluster.clone(), handle.clone());
            tokio::spawn(async move {
                cluster.check(&handle, &CheckArgs::new().value("team", "t1")).await
            })
        })
        .collect();
    for check in checks {
        assert!(check.await.unwrap().unwrap().unavailable.is_some());
    }
    let mut ids: Vec<RequestId> = nodes.seen(0);
    ids.sort_unstable_by_key(|id| (id.session, id.sequence));
    ids.dedup();
    assert_eq!(ids.len(), 10);
    assert!(ids.iter().all(|id| id.sequence <= 4), "{ids:?}");
}
