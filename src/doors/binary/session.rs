//! One connection's side of the protocol, without its socket. Pure: bytes in, engine calls, bytes
//! out; time comes in as a stamp.
//!
//! Frames are taken from what one read delivered and answered in order. Checks go over the desk
//! twice: as they are met they are resolved and their counters fetched; when another kind of frame
//! comes, or the bytes end, all of them are decided and answered.

use std::sync::Arc;

use tollkeeper_protocol::codec::Sparse;
use tollkeeper_protocol::limits::{
    FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, IN_FLIGHT_MAX, MESSAGE_BYTES_MAX,
    PROTOCOL_ERRORS_MAX, SLOTS_MAX, VERSION_MAX, VERSION_MIN, WRITE_BUFFER_BYTES_MAX,
};
use tollkeeper_protocol::request::{self, Batch, Check, CheckInline, Form, Hello, Request};
use tollkeeper_protocol::response::{
    Answer, BatchResponse, Detail, ErrorAnswer, GoAway, HelloAnswer, LimitNumbers, Maxima, Numbers,
    PingAnswer, Rendered as WireRendered, SetAnswer, Terse,
};
use tollkeeper_protocol::status::{Code, Decision as WireDecision, Retry as WireRetry};
use tollkeeper_protocol::{
    Capabilities, DecodeError, Envelope, Frame, Header, Message, Op, next_frame,
};

use crate::doors::{Answered, Desk, Intent, Loaded, Problem};
use crate::engine::command::Charge;
use crate::engine::decision::{Decision, Reading, Refusal};
use crate::engine::table::{Pinned, Stamp, Table};
use crate::engine::time::{Now, Timestamp};
use crate::policy::{self, Found, Handle, Rendered, Resolved};

use super::convert;

/// The name of the one principal there is.
const PRINCIPAL: &str = "default";

/// The code of the maximum of connections in the answer to HELLO.
const CONNECTIONS_CODE: usize = 7;

/// What the server calls itself.
const SERVER: &str = concat!("tollkeeper/", env!("CARGO_PKG_VERSION"));

/// One connection's state.
pub struct Session {
    stage: Stage,
    protocol_errors: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// HELLO has not come.
    Greeting,
    /// Requests are answered.
    Open,
    /// GOAWAY was sent: requests are refused.
    Leaving,
    /// The last byte has been written.
    Closed,
}

/// What came of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that belonged to whole frames and are done with.
    pub consumed: usize,
    /// Frames answered.
    pub frames: usize,
    /// Whether the connection is to be closed once the answers are written.
    pub closes: bool,
    /// Whether whole frames may be left in the bytes, because answers are to be written first.
    pub more: bool,
}

/// Buffers that one thread reuses for all its sessions.
#[derive(Default)]
pub struct SessionBuffers {
    asked: Vec<Asked>,
    numbers: Vec<LimitNumbers>,
    rendered: Rendered,
}

/// A check or peek that waits to be decided.
struct Asked {
    /// Where its answer goes; `None` is an item of a batch.
    call: Option<u64>,
    op: Op,
    form: Form,
    intent: Intent,
    deadline_nanos: Option<u64>,
    what: What,
}

enum What {
    /// Of a handle. The body, from here in the input, has the values for a rendered answer.
    Handle { number: u32, resolved: Resolved, body: (usize, usize) },
    /// Of inline limits: its charges, from here and so many.
    Inline { charges_at: usize, count: usize },
    /// Nothing that can be decided.
    Wrong(Wrong),
}

/// Why a request gets an error.
#[derive(Clone, Copy)]
enum Wrong {
    Decode(DecodeError),
    UnknownHandle(u32),
    StaleHandle(u32),
    TooManyCosts { found: usize, max: usize },
    Problem(u32, Problem),
    Inline(Refusal),
    Forbidden(Capabilities),
    DeadlineExceeded,
}

/// What a batch of frames is answered with: the thread's desk and buffers, the policy and the
/// table as they are now, the moment.
struct Work<'w, 't, F> {
    desk: &'w mut Desk,
    buffers: &'w mut SessionBuffers,
    loaded: &'w Loaded,
    pinned: &'w Pinned<'t>,
    stamp: &'w mut Stamp<F>,
    arrived: Timestamp,
    input: &'w [u8],
}

impl Default for Session {
    fn default() -> Self {
        Self { stage: Stage::Greeting, protocol_errors: 0 }
    }
}

impl Session {
    /// Whether HELLO has been answered.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Leaving)
    }

    /// The longest frame that may come next.
    pub fn frame_bytes_max(&self) -> usize {
        if self.is_open() { FRAME_BYTES_MAX } else { HANDSHAKE_FRAME_BYTES_MAX }
    }

    /// Answers whole frames at the front of `input`, appending to `out`. Stops at the in-flight
    /// and write-buffer maxima: the caller writes `out` and calls again with the rest.
    pub fn handle_bytes<F: FnMut() -> Now>(
        &mut self,
        desk: &mut Desk,
        buffers: &mut SessionBuffers,
        stamp: &mut Stamp<F>,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Progress {
        let instance = Arc::clone(&desk.instance);
        let loaded = instance.policy.load();
        let pinned = Table::pin(&instance.table);
        let arrived = stamp.now().time;
        desk.clear();
        let mut work =
            Work { desk, buffers, loaded: &loaded, pinned: &pinned, stamp, arrived, input };
        let mut progress = Progress { consumed: 0, frames: 0, closes: false, more: false };
        while self.stage != Stage::Closed {
            if progress.frames >= IN_FLIGHT_MAX || out.len() >= WRITE_BUFFER_BYTES_MAX {
                progress.more = true;
                break;
            }
            match next_frame(&input[progress.consumed..], self.frame_bytes_max()) {
                Ok(None) => break,
                Ok(Some((frame, bytes))) => {
                    progress.consumed += bytes;
                    progress.frames += 1;
                    self.handle_frame(&mut work, &frame, out);
                }
                Err(error) => {
                    self.flush(&mut work, out);
                    let error = error.to_decode_error();
                    self.close_with(&error_of(&error, &error.to_string()), out);
                }
            }
        }
        self.flush(&mut work, out);
        progress.closes = self.stage == Stage::Closed;
        let cells = &desk.cells;
        cells.requests.add(progress.frames as u64);
        progress
    }

    /// Tells the client to go; what it sends from now on is refused.
    pub fn leave(&mut self, grace_millis: u32, out: &mut Vec<u8>) {
        match self.stage {
            Stage::Open => {
                self.stage = Stage::Leaving;
                let message = "the server is stopping";
                let goaway = GoAway { code: Code::ShuttingDown, grace_millis, message };
                // A fixed message always fits.
                let _ = goaway.encode(out);
            }
            Stage::Greeting => self.close(Code::ShuttingDown, "the server is stopping", out),
            Stage::Leaving | Stage::Closed => {}
        }
    }

    /// Closes the connection with an error that concerns no request.
    pub fn close(&mut self, code: Code, message: &str, out: &mut Vec<u8>) {
        self.close_with(&ErrorAnswer::new(code, message), out);
    }

    fn close_with(&mut self, error: &ErrorAnswer<'_>, out: &mut Vec<u8>) {
        if self.stage != Stage::Closed {
            self.stage = Stage::Closed;
            encode_error(&error.closing(), Envelope::Call(0), out);
        }
    }

    #[inline]
    fn handle_frame<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) {
        let message = frame.message();
        if self.stage != Stage::Open {
            return self.handle_unopened(work, frame, out);
        }
        let call = frame.header.call;
        match Request::decode(&message) {
            Ok(Request::Check(check)) => {
                let asked = work.ask(Some(call), &message, &check);
                work.buffers.asked.push(asked);
            }
            Ok(Request::CheckInline(check)) => {
                let asked = work.ask_inline(Some(call), &message, &check);
                work.buffers.asked.push(asked);
            }
            other => {
                self.flush(work, out);
                self.handle_control(work, &frame.header, other, out);
            }
        }
    }

    /// All frames but single checks and peeks.
    fn handle_control<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        header: &Header,
        request: Result<Request<'_>, DecodeError>,
        out: &mut Vec<u8>,
    ) {
        let envelope = Envelope::Call(header.call);
        match request {
            Ok(Request::Ping(ping)) => {
                let now = work.stamp.now();
                let answer = PingAnswer {
                    cluster_nanos: now.time.as_nanos(),
                    wall_nanos: now.utc.as_nanos(),
                    payload: ping.payload,
                };
                // What came in a frame goes out in one.
                let _ = answer.encode(envelope, out);
            }
            Ok(Request::Prepare(prepare)) => work.prepare(&prepare, envelope, out),
            Ok(Request::Set(set)) => {
                if let Err(wrong) = work.set(header.op, &set, envelope, out) {
                    self.wrong(work, wrong, envelope, out);
                }
            }
            Ok(Request::SetInline(set)) => {
                if let Err(wrong) = work.set_inline(header.op, &set, envelope, out) {
                    self.wrong(work, wrong, envelope, out);
                }
            }
            Ok(Request::Batch(batch)) => self.handle_batch(work, header.call, &batch, out),
            Ok(Request::Hello(_)) => {
                let error = ErrorAnswer::new(Code::BadFrame, "HELLO comes once, first");
                self.error(work, &error, envelope, out);
            }
            Ok(Request::Check(_) | Request::CheckInline(_)) => {}
            Err(error) => self.wrong(work, Wrong::Decode(error), envelope, out),
        }
    }

    /// A frame before HELLO was answered, or after GOAWAY.
    #[cold]
    fn handle_unopened<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) {
        let envelope = Envelope::Call(frame.header.call);
        if self.stage == Stage::Leaving {
            let error = ErrorAnswer::new(Code::ShuttingDown, "the server is stopping");
            return self.error(work, &error, envelope, out);
        }
        let message = frame.message();
        let decoded = match frame.header.op {
            Op::HELLO => Request::decode(&message),
            _ => {
                self.stage = Stage::Closed;
                let error = ErrorAnswer::new(Code::Unauthenticated, "HELLO comes first");
                return encode_error(&error.closing(), envelope, out);
            }
        };
        let refused = match decoded {
            Ok(Request::Hello(hello)) => match self.greet(work, &hello, envelope, out) {
                Ok(()) => return,
                Err(error) => error,
            },
            Ok(_) => ErrorAnswer::new(Code::Internal, "HELLO was read as another request"),
            Err(error) => {
                self.stage = Stage::Closed;
                let text = error.to_string();
                return encode_error(&error_of(&error, &text).closing(), envelope, out);
            }
        };
        self.stage = Stage::Closed;
        encode_error(&refused.closing(), envelope, out);
    }

    fn greet<F>(
        &mut self,
        work: &Work<'_, '_, F>,
        hello: &Hello<'_>,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorAnswer<'static>> {
        if hello.version_min > VERSION_MAX || hello.version_max < VERSION_MIN {
            let detail = Detail::Versions { min: VERSION_MIN, max: VERSION_MAX };
            let message = "no version in common";
            return Err(ErrorAnswer::new(Code::UnsupportedVersion, message).with_detail(detail));
        }
        if hello.credential_scheme != 0 || !hello.credential.is_empty() {
            let message = "credentials are not taken here; use scheme 0 and none";
            return Err(ErrorAnswer::new(Code::Unauthenticated, message));
        }
        let instance = &work.desk.instance;
        let answer = HelloAnswer {
            version: hello.version_max.min(VERSION_MAX),
            capabilities: convert::CAPABILITIES,
            features: 0,
            instance: instance.id,
            principal: PRINCIPAL,
            server: SERVER,
            maxima: Maxima::default().with(CONNECTIONS_CODE, instance.connections.max),
        };
        // Names of ours, which are short.
        let _ = answer.encode(envelope, out);
        self.stage = Stage::Open;
        Ok(())
    }

    fn handle_batch<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        call: u64,
        batch: &Batch<'_>,
        out: &mut Vec<u8>,
    ) {
        for item in batch.items {
            let asked = match request::decode_item(&item) {
                Ok(Request::Check(check)) => work.ask(None, &item, &check),
                Ok(Request::CheckInline(check)) => work.ask_inline(None, &item, &check),
                Ok(_) => Asked::wrong(None, item.op, Wrong::Decode(item.unsupported_op())),
                Err(error) => Asked::wrong(None, item.op, Wrong::Decode(error)),
            };
            work.buffers.asked.push(asked);
        }
        let mut response = BatchResponse::begin(call, batch.items.len(), out);
        let asked = core::mem::take(&mut work.buffers.asked);
        for asked in &asked {
            work.answer(
                asked,
                &mut response,
                |response, answer| response.answer(asked.op, answer),
                |response, error| {
                    self.count_error(error);
                    response.error(error);
                },
            );
        }
        response.finish();
        work.reuse(asked);
        if self.protocol_errors >= PROTOCOL_ERRORS_MAX {
            self.close(Code::BadFrame, "too many protocol errors", out);
        }
    }

    /// Decides and answers the checks that wait.
    #[inline]
    fn flush<F: FnMut() -> Now>(&mut self, work: &mut Work<'_, '_, F>, out: &mut Vec<u8>) {
        if work.buffers.asked.is_empty() {
            return;
        }
        let asked = core::mem::take(&mut work.buffers.asked);
        for asked in &asked {
            let envelope = Envelope::Call(asked.call.unwrap_or_default());
            work.answer(
                asked,
                out,
                |out, answer| {
                    // The codec's maxima hold for a single answer by the policy's own.
                    if answer.encode(asked.op, envelope, out).is_err() {
                        let message = "the answer exceeds the protocol's maxima";
                        encode_error(&ErrorAnswer::new(Code::Internal, message), envelope, out);
                    }
                },
                |out, error| {
                    self.count_error(error);
                    let closes = self.protocol_errors >= PROTOCOL_ERRORS_MAX;
                    let error = if closes { error.closing() } else { *error };
                    if closes {
                        self.stage = Stage::Closed;
                    }
                    encode_error(&error, envelope, out);
                },
            );
        }
        work.reuse(asked);
    }

    fn wrong<F>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        wrong: Wrong,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) {
        let loaded = work.loaded;
        wrong.with_error(loaded, |error| self.error(work, error, envelope, out));
    }

    fn error<F>(
        &mut self,
        work: &Work<'_, '_, F>,
        error: &ErrorAnswer<'_>,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) {
        work.desk.cells.errors.add(1);
        self.count_error(error);
        let closes = self.protocol_errors >= PROTOCOL_ERRORS_MAX;
        if closes {
            self.stage = Stage::Closed;
        }
        encode_error(&if closes { error.closing() } else { *error }, envelope, out);
    }

    fn count_error(&mut self, error: &ErrorAnswer<'_>) {
        self.protocol_errors += usize::from(error.code.is_protocol_error());
    }
}

impl Asked {
    #[cold]
    fn wrong(call: Option<u64>, op: Op, wrong: Wrong) -> Self {
        let (form, intent) = (Form::TERSE, Intent::Peek);
        Self { call, op, form, intent, deadline_nanos: None, what: What::Wrong(wrong) }
    }
}

/// Values by slot, as the policy takes them.
type Values<'a> = [Option<&'a [u8]>; SLOTS_MAX];

fn values<'a>(sparse: &Sparse<'a>, handle: &Handle) -> (Values<'a>, usize) {
    let mut values = [None; SLOTS_MAX];
    for (slot, value) in sparse.iter() {
        values[slot] = Some(value);
    }
    (values, handle.slots().len().min(SLOTS_MAX))
}

impl<F: FnMut() -> Now> Work<'_, '_, F> {
    fn reuse(&mut self, mut asked: Vec<Asked>) {
        asked.clear();
        self.buffers.asked = asked;
        self.desk.clear();
    }

    /// Resolves a check or peek by handle.
    #[inline]
    fn ask(&mut self, call: Option<u64>, message: &Message<'_>, check: &Check<'_>) -> Asked {
        let what = self.resolve(message, check).unwrap_or_else(What::Wrong);
        Asked {
            call,
            op: message.op,
            form: check.form,
            intent: intent(check.intent),
            deadline_nanos: check.deadline_nanos,
            what,
        }
    }

    #[inline]
    fn resolve(&mut self, message: &Message<'_>, check: &Check<'_>) -> Result<What, Wrong> {
        allowed(message.op)?;
        let handle = handle_of(self.loaded, check.handle, check.layout)?;
        let (found, max) = (check.costs.len(), handle.meters().len());
        if found > max {
            return Err(Wrong::TooManyCosts { found, max });
        }
        let mut costs = [0; tollkeeper_protocol::limits::METERS_MAX];
        for (cost, to) in check.costs.iter().zip(&mut costs) {
            *to = cost;
        }
        // One cost that is there puts those that are not at zero; none at all is one request.
        let costs = if found == 0 { &[][..] } else { &costs[..max] };
        let (values, slots) = values(&check.values, handle);
        let request = policy::Request { values: &values[..slots], costs };
        match self.desk.resolve(self.pinned, handle, &request) {
            Ok(resolved) => {
                let body = self.place_of(message.body);
                Ok(What::Handle { number: check.handle, resolved, body })
            }
            Err(error) => {
                self.desk.count_error(self.loaded.api_of_handle(check.handle));
                Err(Wrong::Problem(check.handle, Problem::Resolve(error)))
            }
        }
    }

    /// Where a slice of the input lies in it.
    fn place_of(&self, slice: &[u8]) -> (usize, usize) {
        let at = slice.as_ptr() as usize - self.input.as_ptr() as usize;
        (at, at + slice.len())
    }

    /// Resolves a check or peek of inline limits.
    fn ask_inline(
        &mut self,
        call: Option<u64>,
        message: &Message<'_>,
        check: &CheckInline<'_>,
    ) -> Asked {
        let charges_at = self.desk.charges.len();
        let what = match allowed(message.op) {
            Err(wrong) => What::Wrong(wrong),
            Ok(()) => {
                for limit in check.limits {
                    if let Ok(charge) = convert::charge(&self.desk.instance.inline, &limit) {
                        self.pinned.prefetch(charge.key);
                        self.desk.charges.push(charge);
                    }
                }
                What::Inline { charges_at, count: self.desk.charges.len() - charges_at }
            }
        };
        Asked {
            call,
            op: message.op,
            form: check.form,
            intent: intent(check.intent),
            deadline_nanos: check.deadline_nanos,
            what,
        }
    }

    /// Decides what waits and gives its answer, or its error, to `sink`.
    #[inline]
    fn answer<S>(
        &mut self,
        asked: &Asked,
        sink: &mut S,
        answer: impl FnOnce(&mut S, &Answer<'_>),
        error: impl FnOnce(&mut S, &ErrorAnswer<'_>),
    ) {
        let wrong = match self.decide(asked) {
            Ok(Decided::Handle { number, resolved, body, answered }) => {
                return self.answer_handle(asked, number, &resolved, body, &answered, |reply| {
                    answer(sink, reply);
                });
            }
            Ok(Decided::Inline(decision)) => {
                return self.answer_inline(asked, &decision, |reply| answer(sink, reply));
            }
            Err(wrong) => wrong,
        };
        self.desk.cells.errors.add(1);
        wrong.with_error(self.loaded, |reply| error(sink, reply));
    }

    #[inline]
    fn decide(&mut self, asked: &Asked) -> Result<Decided, Wrong> {
        if let Some(deadline) = asked.deadline_nanos {
            let elapsed = self.stamp.now().time.since(self.arrived).get();
            if elapsed >= deadline {
                return Err(Wrong::DeadlineExceeded);
            }
        }
        match asked.what {
            What::Handle { number, resolved, body } => {
                let Some(handle) = self.loaded.policy.handle(number) else {
                    return Err(Wrong::UnknownHandle(number));
                };
                let api = self.loaded.api_of_handle(number);
                let (desk, intent) = (&mut *self.desk, asked.intent);
                let answered = desk.decide(self.pinned, api, handle, &resolved, intent, self.stamp);
                match answered {
                    Ok(answered) => Ok(Decided::Handle { number, resolved, body, answered }),
                    Err(problem) => Err(Wrong::Problem(number, problem)),
                }
            }
            What::Inline { charges_at, count } => {
                let charges = charges_at..charges_at + count;
                let decided =
                    self.desk.decide_inline(self.pinned, charges, asked.intent, self.stamp);
                decided.map(Decided::Inline).map_err(Wrong::Inline)
            }
            What::Wrong(wrong) => Err(wrong),
        }
    }

    #[inline]
    fn answer_handle(
        &mut self,
        asked: &Asked,
        number: u32,
        resolved: &Resolved,
        body: (usize, usize),
        answered: &Answered,
        reply: impl FnOnce(&Answer<'_>),
    ) {
        let version = self.loaded.policy.version();
        let now = self.stamp.now();
        let limits = &self.desk.limits[resolved.limits()];
        let terse = match answered {
            Answered::Decided(decision) => {
                let index_of = |place: usize| limits.get(place).copied();
                let terse = convert::terse(decision, &self.desk.readings, index_of, version);
                Terse { unmatched: resolved.unmatched, ..terse }
            }
            Answered::FailedOpen(_) => Terse {
                decision: WireDecision::Allow,
                unmatched: false,
                failed_open: true,
                binding: None,
                retry: WireRetry::None,
                witness: convert::witness(version, now),
            },
        };
        if asked.form == Form::TERSE {
            return reply(&terse.into());
        }
        let readings: &[Reading] = match answered {
            Answered::Decided(_) => &self.desk.readings,
            Answered::FailedOpen(_) => &[],
        };
        self.buffers.numbers.clear();
        let numbers = limits.iter().zip(readings);
        self.buffers.numbers.extend(numbers.map(|(index, read)| convert::numbers(*index, read)));
        let numbers = asked.form.numbers.then(|| Numbers {
            wall_nanos: now.utc.as_nanos(),
            limits: self.buffers.numbers[..].into(),
        });
        let handle = self.loaded.policy.handle(number).filter(|_| asked.form.rendered);
        let Some(handle) = handle else {
            return reply(&Answer { terse, numbers, rendered: None, body_omitted: false });
        };
        let rendered = &mut self.buffers.rendered;
        match answered {
            Answered::Decided(decision) => {
                let message = Message {
                    op: asked.op,
                    flags: asked.form.to_flags().union(
                        tollkeeper_protocol::Flags::DEADLINE
                            .only_if(asked.deadline_nanos.is_some()),
                    ),
                    body: &self.input[body.0..body.1],
                    offset: 0,
                };
                // It was decoded before.
                let Ok(Request::Check(check)) = Request::decode(&message) else { return };
                let (values, slots) = values(&check.values, handle);
                let request = policy::Request { values: &values[..slots], costs: &[] };
                handle.render(limits, &request, decision, readings, rendered);
            }
            Answered::FailedOpen(_) => {
                handle.render_unavailable(policy::Unavailable::Allow, rendered);
            }
        }
        let headers: Vec<Option<&[u8]>> =
            rendered.headers().map(|value| value.map(str::as_bytes)).collect();
        let rendered = WireRendered {
            status: rendered.status(),
            headers: headers[..].into(),
            content_type: rendered.content_type().unwrap_or_default(),
            body: rendered.body().map(str::as_bytes),
        };
        reply(&Answer { terse, numbers, rendered: Some(rendered), body_omitted: false });
    }

    fn answer_inline(
        &mut self,
        asked: &Asked,
        decision: &Decision,
        reply: impl FnOnce(&Answer<'_>),
    ) {
        let readings = &self.desk.readings;
        let index_of = |place: usize| u16::try_from(place).ok();
        let version = self.loaded.policy.version();
        let terse = convert::terse(decision, readings, index_of, version);
        self.buffers.numbers.clear();
        if asked.form.numbers {
            let numbers = readings.iter().enumerate();
            self.buffers.numbers.extend(numbers.filter_map(|(index, read)| {
                u16::try_from(index).ok().map(|index| convert::numbers(index, read))
            }));
        }
        let numbers = asked.form.numbers.then(|| Numbers {
            wall_nanos: decision.now.utc.as_nanos(),
            limits: self.buffers.numbers[..].into(),
        });
        reply(&Answer { terse, numbers, rendered: None, body_omitted: false });
    }

    fn prepare(&mut self, prepare: &request::Prepare<'_>, envelope: Envelope, out: &mut Vec<u8>) {
        let request::Prepare { api, class } = *prepare;
        let policy = &self.loaded.policy;
        let Some(handle) = policy.handle_of(api, class) else {
            self.desk.cells.errors.add(1);
            let (code, message) = if policy.handle_of(api, None).is_none() {
                (Code::UnknownApi, format!("the policy has no API `{api}`"))
            } else {
                let class = class.unwrap_or_default();
                (Code::UnknownClass, format!("API `{api}` has no class `{class}`"))
            };
            return encode_error(&ErrorAnswer::new(code, cut(&message)), envelope, out);
        };
        if convert::encode_prepared(handle, policy.version(), envelope, out).is_err() {
            let message = "the handle exceeds the protocol's maxima";
            encode_error(&ErrorAnswer::new(Code::Internal, message), envelope, out);
        }
    }

    fn set(
        &mut self,
        op: Op,
        set: &request::Set<'_>,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), Wrong> {
        allowed(op)?;
        let loaded = self.loaded;
        let handle = handle_of(loaded, set.handle, set.layout)?;
        let (values, slots) = values(&set.values, handle);
        let request = policy::Request { values: &values[..slots], costs: &[] };
        let resolved = self
            .desk
            .resolve(self.pinned, handle, &request)
            .map_err(|error| Wrong::Problem(set.handle, Problem::Resolve(error)))?;
        let charges: Vec<Charge> = self.desk.charges[resolved.charges()]
            .iter()
            .zip(&self.desk.limits[resolved.limits()])
            .filter(|(_, index)| set.limit.is_none_or(|limit| limit == **index))
            .map(|(charge, _)| Charge { cost: set.used.min(charge.quota.limit()), ..*charge })
            .collect();
        self.desk.clear();
        let problem = |refusal| Wrong::Problem(set.handle, Problem::Refused(refusal));
        self.set_charges(op, &charges, envelope, out).map_err(problem)
    }

    fn set_inline(
        &mut self,
        op: Op,
        set: &request::SetInline<'_>,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), Wrong> {
        allowed(op)?;
        let charge = convert::charge(&self.desk.instance.inline, &set.limit);
        let charges: Vec<Charge> = charge
            .into_iter()
            .map(|charge| Charge { cost: charge.cost.min(charge.quota.limit()), ..charge })
            .collect();
        self.set_charges(op, &charges, envelope, out).map_err(Wrong::Inline)
    }

    fn set_charges(
        &mut self,
        op: Op,
        charges: &[Charge],
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let decision = self.pinned.set(charges, self.stamp, &mut self.desk.readings)?;
        let witness = convert::witness(self.loaded.policy.version(), decision.now);
        SetAnswer { counters: charges.len() as u32, witness }.encode(op, envelope, out);
        Ok(())
    }
}

enum Decided {
    Handle { number: u32, resolved: Resolved, body: (usize, usize), answered: Answered },
    Inline(Decision),
}

impl Wrong {
    /// Makes the error of it, with words, for `encode`.
    #[cold]
    fn with_error<R>(self, loaded: &Loaded, encode: impl FnOnce(&ErrorAnswer<'_>) -> R) -> R {
        let handle_of = |number| loaded.policy.handle(number);
        match self {
            Self::Decode(error) => encode(&error_of(&error, cut(&error.to_string()))),
            Self::UnknownHandle(number) => {
                let message = format!("no handle has the number {number}; PREPARE by name");
                encode(&ErrorAnswer::new(Code::UnknownHandle, &message))
            }
            Self::StaleHandle(number) => {
                let error =
                    ErrorAnswer::new(Code::StaleHandle, "the handle's names changed; see detail");
                let Some(handle) = handle_of(number) else { return encode(&error) };
                let mut body = Vec::new();
                let version = loaded.policy.version();
                let made = convert::with_prepared(handle, version, |prepared| {
                    prepared.encode_body(&mut body)
                });
                match made {
                    Ok(()) => encode(&error.with_detail(Detail::Layout(&body))),
                    Err(_) => encode(&error),
                }
            }
            Self::TooManyCosts { found, max } => {
                let (found, max) = (found as u64, max as u64);
                let message = format!("{found} costs for {max} meters");
                let detail = Detail::Range { field: "count of costs", found, min: 0, max };
                encode(&ErrorAnswer::new(Code::BadCost, &message).with_detail(detail))
            }
            Self::Problem(number, Problem::Refused(refusal)) => {
                let _ = number;
                Self::Inline(refusal).with_error(loaded, encode)
            }
            Self::Problem(number, Problem::Resolve(error)) => {
                let code = convert::resolve_code(&error);
                let Some(handle) = handle_of(number) else {
                    return encode(&ErrorAnswer::new(code, "the handle is gone"));
                };
                let message = error.describe(handle).to_string();
                let answer = ErrorAnswer::new(code, cut(&message));
                let policy::ResolveError::BadAttribute { limit, slot, found, .. } = error else {
                    return encode(&answer);
                };
                let limit = limit.and_then(|limit| handle.limits().get(usize::from(limit)));
                let detail = Detail::Attribute {
                    limit: limit.map(|limit| &*limit.name).unwrap_or_default(),
                    attribute: handle
                        .slots()
                        .get(usize::from(slot))
                        .map(|slot| &*slot.name)
                        .unwrap_or_default(),
                    found: match found {
                        Found::Missing => None,
                        Found::TooLong { .. } => Some(b""),
                    },
                };
                encode(&answer.with_detail(detail))
            }
            Self::Inline(refusal) => {
                let message = refusal.to_string();
                encode(&ErrorAnswer::new(convert::refusal_code(refusal), cut(&message)))
            }
            Self::Forbidden(capability) => {
                let error = ErrorAnswer::new(Code::Forbidden, "the principal may not do this");
                encode(&error.with_detail(Detail::Capability(capability)))
            }
            Self::DeadlineExceeded => {
                let message = "the request's deadline passed before it was decided";
                encode(&ErrorAnswer::new(Code::DeadlineExceeded, message))
            }
        }
    }
}

#[inline]
fn handle_of(loaded: &Loaded, number: u32, layout: u64) -> Result<&Handle, Wrong> {
    let handle = loaded.policy.handle(number).ok_or(Wrong::UnknownHandle(number))?;
    if handle.layout() == layout { Ok(handle) } else { Err(Wrong::StaleHandle(number)) }
}

#[inline]
fn intent(intent: request::Intent) -> Intent {
    match intent {
        request::Intent::Charge => Intent::Charge,
        request::Intent::Peek => Intent::Peek,
    }
}

/// Tests the principal's capabilities, item by item.
#[inline]
fn allowed(op: Op) -> Result<(), Wrong> {
    let needed = convert::capability(op);
    if convert::CAPABILITIES.contains(needed) { Ok(()) } else { Err(Wrong::Forbidden(needed)) }
}

fn error_of<'a>(error: &DecodeError, message: &'a str) -> ErrorAnswer<'a> {
    ErrorAnswer::from_decode(error, message)
}

/// A message at most as long as the protocol allows.
fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

fn encode_error(error: &ErrorAnswer<'_>, envelope: Envelope, out: &mut Vec<u8>) {
    if error.encode(envelope, out).is_err() {
        // Only a message or a name can be too long; the code alone always fits.
        let _ = ErrorAnswer { message: "", detail: Detail::None, ..*error }.encode(envelope, out);
    }
}
