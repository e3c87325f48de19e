//! Every golden frame, both ways, and the laws of the codec.

use std::fs;
use std::path::Path;

use tollkeeper_protocol::codec::{List, Sparse};
use tollkeeper_protocol::limits::{ANSWER_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use tollkeeper_protocol::request::{
    Adjust, AdjustInline, Batch, Check, CheckInline, Hello, InlineLimit, InlineQuota, Prepare,
    Release, Renew, Set, SetInline, decode_item,
};
use tollkeeper_protocol::response::{
    Answer, Detail, ErrorAnswer, GoAway, HelloAnswer, Maxima, NO_TIME, Numbers, Prepared,
    ReleaseAnswer, Rendered, RenewAnswer, SessionAnswer, SetAnswer, Terse, UNLIMITED, Witness,
};
use tollkeeper_protocol::status::Align;
use tollkeeper_protocol::{
    Capabilities, Code, Decision, DecodeError, Envelope, Form, Intent, Op, Permit, PermitId, Reply,
    Request, RequestId, Response, Retry, next_frame,
};

struct Vector {
    name: String,
    text: String,
    bytes: Vec<u8>,
}

impl Vector {
    fn word(&self, word: &str) -> Option<&str> {
        let prefix = format!("# {word}: ");
        self.text.lines().find_map(|line| line.strip_prefix(&prefix))
    }

    fn is_request(&self) -> bool {
        self.word("direction") == Some("request")
    }

    fn frame_bytes_max(&self) -> usize {
        match (self.is_request(), self.word("stage")) {
            (_, Some("handshake")) => HANDSHAKE_FRAME_BYTES_MAX,
            (true, _) => FRAME_BYTES_MAX,
            (false, _) => ANSWER_BYTES_MAX,
        }
    }
}

fn load(path: &Path) -> Vector {
    let text = fs::read_to_string(path).unwrap();
    let bytes = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    Vector { name: path.file_stem().unwrap().to_str().unwrap().to_owned(), text, bytes }
}

fn vectors(folder: &str) -> Vec<Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(folder);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| load(path)).collect()
}

fn valid(name: &str) -> Vector {
    vectors("valid").into_iter().find(|vector| vector.name == name).unwrap()
}

/// Encoders never set ignorable bits, so this one does not come back as it was.
const ONE_WAY: &str = "check_ignorable_flag";

#[test]
fn valid_frames_come_back_as_they_were() {
    for vector in vectors("valid") {
        let name = &vector.name;
        let (frame, consumed) =
            next_frame(&vector.bytes, vector.frame_bytes_max()).unwrap().expect(name);
        assert_eq!(consumed, vector.bytes.len(), "{name}");
        let envelope = Envelope::Call(frame.header.call);
        let mut out = Vec::new();
        if vector.is_request() {
            let request =
                Request::decode(&frame.message()).unwrap_or_else(|error| panic!("{name}: {error}"));
            if let Request::Batch(batch) = request {
                assert!(batch.items.iter().all(|item| decode_item(&item).is_ok()), "{name}");
            }
            request.encode(envelope, &mut out).unwrap();
        } else {
            let response = Response::decode(&frame.message())
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let op = Op(frame.header.op.0 & 0x7FFF);
            response.encode(op, envelope, &mut out).unwrap();
        }
        if name != ONE_WAY {
            assert_eq!(out, vector.bytes, "{name}");
        }
    }
}

fn decode_all(vector: &Vector) -> Result<(), DecodeError> {
    let frame = next_frame(&vector.bytes, vector.frame_bytes_max())
        .map_err(|error| error.to_decode_error())?;
    let (frame, _) = frame.unwrap_or_else(|| panic!("{}: frame is not whole", vector.name));
    if vector.is_request() {
        match Request::decode(&frame.message())? {
            Request::Batch(batch) => batch.items.iter().try_for_each(|item| {
                let decoded = decode_item(&item);
                decoded.map(drop)
            }),
            _ => Ok(()),
        }
    } else {
        Response::decode(&frame.message()).map(drop)
    }
}

#[test]
fn invalid_frames_fail_as_stated() {
    for vector in vectors("invalid") {
        let name = &vector.name;
        let error = decode_all(&vector).expect_err(name);
        assert_eq!(Some(error.code.name()), vector.word("error"), "{name}: {error}");
        assert_eq!(Some(error.field), vector.word("field"), "{name}: {error}");
        assert!(error.offset as usize <= vector.bytes.len(), "{name}: {error}");
    }
}

const LAYOUT: u64 = 0x1122_3344_5566_7788;
const WALL: u64 = 1_714_750_100_000_000_000;
const MINUTE: u64 = 60_000_000_000;

fn assert_request(name: &str, expected: Request<'_>) {
    let vector = valid(name);
    let (frame, _) = next_frame(&vector.bytes, FRAME_BYTES_MAX).unwrap().unwrap();
    assert_eq!(Request::decode(&frame.message()), Ok(expected), "{name}");
    let mut out = Vec::new();
    expected.encode(Envelope::Call(frame.header.call), &mut out).unwrap();
    assert_eq!(out, vector.bytes, "{name}");
}

fn assert_response(name: &str, request: Op, expected: Response<'_>) {
    let vector = valid(name);
    let (frame, _) = next_frame(&vector.bytes, ANSWER_BYTES_MAX).unwrap().unwrap();
    assert_eq!(Response::decode(&frame.message()), Ok(expected), "{name}");
    let mut out = Vec::new();
    expected.encode(request, Envelope::Call(frame.header.call), &mut out).unwrap();
    assert_eq!(out, vector.bytes, "{name}");
}

#[test]
fn requests_mean_what_their_files_say() {
    let client = "myproxy/1.4";
    assert_request(
        "hello",
        Request::Hello(Hello {
            version_min: 1,
            version_max: 1,
            client,
            credential_scheme: 0,
            credential: &[],
        }),
    );
    assert_request("prepare_api", Request::Prepare(Prepare { api: "media", class: None }));
    let class = Some("images_post");
    assert_request("prepare_class", Request::Prepare(Prepare { api: "media", class }));
    let values: [Option<&[u8]>; 4] =
        [Some(b"POST"), Some(b"/v1/images"), Some(b"t1"), Some(b"req_1")];
    let check = Check {
        intent: Intent::Charge,
        form: Form::TERSE,
        tied: false,
        no_forward: false,
        handle: 3,
        layout: LAYOUT,
        id: None,
        deadline_nanos: None,
        costs: List::EMPTY,
        values: Sparse::from(&values[..3]),
    };
    assert_request("check", Request::Check(check));
    let peek = Check { intent: Intent::Peek, form: Form::NUMBERS, ..check };
    assert_request("peek", Request::Check(peek));
    let full = Check {
        form: Form::FULL,
        deadline_nanos: Some(50_000_000),
        costs: List::from(&[5]),
        values: Sparse::from(&values[..]),
        ..check
    };
    assert_request("check_full", Request::Check(full));
    let id = |sequence| Some(RequestId { session: SESSION, sequence });
    let once = Check { id: id(12), deadline_nanos: Some(50_000_000), ..check };
    assert_request("check_once", Request::Check(once));
    let limits = [
        InlineLimit {
            cost: 1,
            quota: InlineQuota::Bucket { units: 60, window_nanos: MINUTE, burst: 120 },
            key: b"team=t1",
        },
        InlineLimit {
            cost: 1,
            quota: InlineQuota::Fixed {
                units: 5,
                window_nanos: 1440 * MINUTE,
                align: Align::First,
            },
            key: b"ip=192.0.2.1",
        },
    ];
    assert_request(
        "check_inline",
        Request::CheckInline(CheckInline {
            intent: Intent::Charge,
            form: Form::NUMBERS,
            tied: false,
            no_forward: false,
            id: None,
            deadline_nanos: None,
            limits: List::from(&limits),
        }),
    );
    assert_request(
        "check_inline_once",
        Request::CheckInline(CheckInline {
            intent: Intent::Charge,
            form: Form::TERSE,
            tied: false,
            no_forward: false,
            id: id(13),
            deadline_nanos: None,
            limits: List::from(&limits[..1]),
        }),
    );
}

const PERMIT: PermitId = PermitId(*b"\x01\0\0\0\0\0\0\x01\xc4\xe1\xf2\x6b\xa8\xd0\x93\x7a");
const SESSION: u64 = 1_582_633_024;

#[test]
fn changes_mean_what_their_files_say() {
    let values: [Option<&[u8]>; 3] = [Some(b"POST"), Some(b"/v1/images"), Some(b"t1")];
    let values = Sparse::from(&values[..]);
    let id = |sequence| Some(RequestId { session: SESSION, sequence });
    let reply = Reply::Wanted;
    let set = Set { handle: 3, layout: LAYOUT, used: 0, limit: Some(0), id: None, reply, values };
    assert_request("set", Request::Set(set));
    assert_request("set_no_reply", Request::Set(Set { reply: Reply::None, ..set }));
    assert_request("set_once", Request::Set(Set { used: 5, limit: None, id: id(9), ..set }));
    let adjust =
        Adjust { handle: 3, layout: LAYOUT, units: 250, limit: None, id: None, reply, values };
    assert_request("adjust", Request::Adjust(adjust));
    let (limit, quiet) = (Some(0), Reply::None);
    let once = Adjust { units: -1_000, limit, id: id(9), reply: quiet, ..adjust };
    assert_request("adjust_once", Request::Adjust(once));
    let quota = InlineQuota::Concurrent { units: 5, lease_nanos: 2 * MINUTE };
    let uploads = InlineLimit { cost: 0, quota, key: b"uploads:t1" };
    let set = SetInline { id: id(10), reply, limit: uploads };
    assert_request("set_inline_once", Request::SetInline(set));
    let quota = InlineQuota::Level { units: 25_000_000_000 };
    let stored = InlineLimit { cost: 0, quota, key: b"bytes:t1" };
    let adjust = AdjustInline { units: -1_048_576, id: None, reply, limit: stored };
    assert_request("adjust_inline", Request::AdjustInline(adjust));
    let quota = InlineQuota::Bucket { units: 60, window_nanos: MINUTE, burst: 120 };
    let limit = InlineLimit { cost: 0, quota, key: b"team=t1" };
    let adjust = AdjustInline { units: -(1 << 53), id: id(11), reply, limit };
    assert_request("adjust_inline_once", Request::AdjustInline(adjust));
    let limits = [
        InlineLimit {
            cost: 1,
            quota: InlineQuota::Sliding { units: 300, window_nanos: MINUTE },
            key: b"team=t1",
        },
        InlineLimit { cost: 1, ..uploads },
        InlineLimit { cost: 1_048_576, ..stored },
        InlineLimit { cost: 1_048_576, quota: InlineQuota::Cap { units: 100_000_000 }, key: b"" },
    ];
    assert_request(
        "check_inline_kinds",
        Request::CheckInline(CheckInline {
            intent: Intent::Charge,
            form: Form::TERSE,
            tied: true,
            no_forward: false,
            id: None,
            deadline_nanos: None,
            limits: List::from(&limits),
        }),
    );
    let check = Check {
        intent: Intent::Charge,
        form: Form::TERSE,
        tied: true,
        no_forward: false,
        handle: 3,
        layout: LAYOUT,
        id: None,
        deadline_nanos: None,
        costs: List::EMPTY,
        values,
    };
    assert_request("check_tied", Request::Check(check));
    let check = Check { tied: false, no_forward: true, ..check };
    assert_request("check_no_forward", Request::Check(check));
    let release = Release { permit: PERMIT, reply };
    assert_request("release", Request::Release(release));
    let release = Release { reply: Reply::None, ..release };
    assert_request("release_no_reply", Request::Release(release));
    let renew = Renew { permit: PERMIT, lease_nanos: None, reply };
    assert_request("renew", Request::Renew(renew));
    let renew = Renew { lease_nanos: Some(5 * MINUTE), reply: Reply::None, ..renew };
    assert_request("renew_lease", Request::Renew(renew));
    assert_request("session", Request::Session);
}

#[test]
fn answers_to_changes_mean_what_their_files_say() {
    let witness =
        Witness { policy_version: 7, log_index: 0, position: 0, cluster_nanos: 5_000_000_000 };
    let one = Response::Set(SetAnswer { counters: 1, witness });
    assert_response("set_answer", Op::SET, one);
    assert_response("adjust_answer", Op::ADJUST, one);
    for (name, units) in [("release_answer", 1), ("release_answer_not_held", 0)] {
        let answer = ReleaseAnswer { units, witness };
        assert_response(name, Op::RELEASE, Response::Release(answer));
    }
    for (name, expires_nanos) in
        [("renew_answer", Some(2 * MINUTE)), ("renew_answer_not_held", None)]
    {
        let answer = RenewAnswer { expires_nanos, witness };
        assert_response(name, Op::RENEW, Response::Renew(answer));
    }
    let answer = SessionAnswer { session: SESSION, window: 1_024, idle_nanos: 60 * MINUTE };
    assert_response("session_answer", Op::SESSION, Response::Session(answer));
    let terse = Terse {
        decision: Decision::Allow,
        unmatched: false,
        failed_open: false,
        binding: Some(1),
        retry: Retry::None,
        witness,
    };
    let permit = Some(Permit { id: PERMIT, expires_nanos: 30_000_000_000 });
    let answer = Answer { permit, ..terse.into() };
    assert_response("answer_permit", Op::CHECK, Response::Check(answer));
    let unknown = ErrorAnswer::new(Code::UnknownSession, "no session has this number");
    assert_response("error_unknown_session", Op::ADJUST, Response::Error(unknown));
}

#[test]
fn answers_mean_what_their_files_say() {
    use tollkeeper_protocol::response::LimitNumbers;

    assert_response(
        "hello_answer",
        Op::HELLO,
        Response::Hello(HelloAnswer {
            version: 1,
            capabilities: Capabilities(0x1F),
            features: 0,
            instance: core::array::from_fn(|index| index as u8),
            principal: "default",
            server: "tollkeeper/0.1.0",
            maxima: Maxima::default(),
        }),
    );
    let witness =
        Witness { policy_version: 7, log_index: 0, position: 0, cluster_nanos: 5_000_000_000 };
    let allow = Terse {
        decision: Decision::Allow,
        unmatched: false,
        failed_open: false,
        binding: Some(0),
        retry: Retry::None,
        witness,
    };
    let retry = Retry::After(1_000_000_000);
    let deny = Terse { decision: Decision::Deny, retry, ..allow };
    assert_response("answer_terse_allow", Op::CHECK, Response::Check(allow.into()));
    assert_response("answer_terse_deny", Op::CHECK, Response::Check(deny.into()));
    let unmatched = Terse { unmatched: true, binding: None, ..allow };
    assert_response("answer_unmatched", Op::CHECK, Response::Check(unmatched.into()));
    let numbers = [
        LimitNumbers {
            index: 0,
            verdict: Decision::Allow,
            shadow: false,
            retry: Retry::None,
            limit: 120,
            remaining: 119,
            next_nanos: 1_000_000_000,
            full_nanos: 1_000_000_000,
        },
        LimitNumbers {
            index: 1,
            verdict: Decision::Allow,
            shadow: true,
            retry: Retry::None,
            limit: UNLIMITED,
            remaining: UNLIMITED,
            next_nanos: NO_TIME,
            full_nanos: NO_TIME,
        },
    ];
    let numbers = Some(Numbers { wall_nanos: WALL, limits: List::from(&numbers) });
    let answer = Answer { numbers, ..allow.into() };
    assert_response("answer_numbers", Op::CHECK, Response::Check(answer));
    let headers: [Option<&[u8]>; 2] = [Some(b"120"), Some(b"1")];
    let rendered = Some(Rendered {
        status: 429,
        headers: Sparse::from(&headers[..]),
        content_type: "application/json",
        body: Some(br#"{"error":"too many"}"#),
    });
    let answer = Answer { rendered, ..deny.into() };
    assert_response("answer_rendered", Op::CHECK, Response::Check(answer));
    assert_response(
        "goaway",
        Op::GOAWAY,
        Response::GoAway(GoAway {
            code: Code::ShuttingDown,
            grace_millis: 10_000,
            message: "server is stopping",
        }),
    );
    let missing = Detail::Attribute { limit: "images_post", attribute: "team", found: None };
    assert_response(
        "error_attribute",
        Op::CHECK,
        Response::Error(
            ErrorAnswer::new(Code::BadAttribute, "limit images_post needs team")
                .with_detail(missing),
        ),
    );
}

#[test]
fn a_stale_handle_brings_its_new_description() {
    let vector = valid("error_stale_handle");
    let (frame, _) = next_frame(&vector.bytes, ANSWER_BYTES_MAX).unwrap().unwrap();
    let Ok(Response::Error(ErrorAnswer { detail: Detail::Layout(body), .. })) =
        Response::decode(&frame.message())
    else {
        panic!("not a stale handle")
    };
    let prepared = Prepared::decode_body(body).unwrap();
    assert_eq!((prepared.handle, prepared.layout), (4, 0x99));
    let names: Vec<_> = prepared.slots.iter().map(|slot| slot.name).collect();
    assert_eq!(names, ["method", "path", "team", "request_id"]);
}

#[test]
fn every_maximum_is_in_the_specification() {
    let spec = include_str!("../SPEC.md");
    for (index, name) in Maxima::NAMES.iter().enumerate() {
        let (code, number) = (index + 1, Maxima::default().0[index]);
        let row = format!("| {code} | {name} |");
        let row = spec.lines().find(|line| line.starts_with(&row)).expect(name);
        let written = row.split('|').nth(3).unwrap().trim().replace(',', "");
        let written = written.strip_prefix("2^").map_or_else(
            || written.parse().unwrap(),
            |power| 1u64 << power.parse::<u32>().unwrap(),
        );
        assert_eq!(written, number, "{name}");
    }
}

#[test]
fn every_code_and_op_is_in_the_specification() {
    let spec = include_str!("../SPEC.md");
    for code in Code::ALL {
        let row = format!("| {:#06X} | {} |", code.to_wire(), code.name()).replace("0X", "0x");
        assert!(spec.contains(&row), "{row}");
    }
    for op in (0..0x7000).map(Op).filter(|op| !op.name().is_empty()) {
        let row = format!("| {:#06X} | {} |", op.0, op.name()).replace("0X", "0x");
        assert!(spec.contains(&row), "{row}");
    }
}

/// What the specification prints is what a file holds, line by line. Of the long answer to HELLO
/// the end is left out.
#[test]
fn every_example_of_the_specification_is_a_file() {
    let spec = include_str!("../SPEC.md");
    let frames: Vec<String> = vectors("valid")
        .into_iter()
        .map(|vector| {
            let lines = vector.text.lines().filter(|line| !line.starts_with('#'));
            lines.flat_map(|line| [line, "\n"]).collect()
        })
        .collect();
    let mut blocks = 0;
    for block in spec.split("```text\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        let whole = block.split('(').next().filter(|_| block.ends_with(" more maxima)\n"));
        let found = match whole {
            Some(begin) => frames.iter().any(|frame| frame.starts_with(begin)),
            None => frames.iter().any(|frame| frame == block),
        };
        assert!(found, "no file holds\n{block}");
        blocks += 1;
    }
    assert!(blocks > 10, "found {blocks} examples");
}

#[test]
fn a_full_batch_of_rendered_answers_still_fits() {
    use tollkeeper_protocol::response::{BatchAnswer, BatchResponse};

    let body = vec![b'x'; 2_000];
    let terse = Terse {
        decision: Decision::Deny,
        unmatched: false,
        failed_open: false,
        binding: Some(0),
        retry: Retry::Never,
        witness: Witness::default(),
    };
    let rendered =
        Rendered { status: 429, headers: Sparse::EMPTY, content_type: "a/b", body: Some(&body) };
    let answer = Answer { rendered: Some(rendered), ..terse.into() };
    let message = "x".repeat(256);
    let error = ErrorAnswer::new(Code::BadAttribute, &message);
    let mut out = Vec::new();
    let mut batch = BatchResponse::begin(9, 1_024, &mut out);
    for index in 0..1_024 {
        if index % 2 == 0 { batch.answer(Op::CHECK, &answer) } else { batch.error(&error) }
    }
    batch.finish();
    let (frame, _) = next_frame(&out, ANSWER_BYTES_MAX).unwrap().unwrap();
    let Ok(Response::Batch(BatchAnswer { items })) = Response::decode(&frame.message()) else {
        panic!("not the answer to a batch")
    };
    assert_eq!(items.len(), 1_024);
    let answers: Vec<_> = items.iter().map(|item| Response::decode(&item).unwrap()).collect();
    assert_eq!(answers[0], Response::Check(answer));
    assert_eq!(answers[1_022], Response::Check(terse.into()));
    assert!(matches!(answers[1_023], Response::Error(ErrorAnswer { message: "", .. })));
}

#[test]
fn what_does_not_fit_leaves_the_buffer_as_it_was() {
    let key = [0; 513];
    let limits = [InlineLimit {
        cost: 1,
        quota: InlineQuota::Bucket { units: 1, window_nanos: MINUTE, burst: 1 },
        key: &key,
    }];
    let check = CheckInline {
        intent: Intent::Charge,
        form: Form::TERSE,
        tied: false,
        no_forward: false,
        id: None,
        deadline_nanos: None,
        limits: List::from(&limits),
    };
    let mut out = vec![1, 2, 3];
    let error = check.encode(Envelope::Call(1), &mut out).unwrap_err();
    assert_eq!((error.field, error.found, error.max), ("key", 513, 512));
    assert_eq!(out, [1, 2, 3]);
    let empty = Batch { reply: Reply::Wanted, items: List::EMPTY };
    empty.encode(Envelope::Call(1), &mut out).unwrap();
}
