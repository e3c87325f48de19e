//! One connection's side of the protocol, without its socket. Pure: bytes in, engine calls, bytes
//! out; time comes in as a stamp.
//!
//! Frames are taken from what one read delivered and answered in order. Checks go over the desk
//! twice: as they are met they are resolved and their counters fetched; when another kind of frame
//! comes, or the bytes end, all of them are decided and answered.

mod acts;

use std::sync::Arc;

use tollkeeper_protocol::codec::Sparse;
use tollkeeper_protocol::limits::{
    FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, IN_FLIGHT_MAX, MESSAGE_BYTES_MAX, METERS_MAX,
    PROTOCOL_ERRORS_MAX, SLOTS_MAX, TIED_PERMITS_MAX, VERSION_MAX, VERSION_MIN,
    WRITE_BUFFER_BYTES_MAX,
};
use tollkeeper_protocol::request::{self, Batch, Check, Form, Hello, Request, decode_item};
use tollkeeper_protocol::response::{
    Answer, BatchResponse, Detail, ErrorAnswer, GoAway, HelloAnswer, LimitNumbers, Maxima, Numbers,
    PingAnswer, Rendered as WireRendered, Terse,
};
use tollkeeper_protocol::status::{Code, Decision as WireDecision, Retry as WireRetry};
use tollkeeper_protocol::{
    Capabilities, DecodeError, Envelope, Flags, Frame, Header, Message, Op, RequestId, next_frame,
};

use crate::doors::{Answered, Desk, Docket, Full, Intent, Kept, Loaded, Problem};
use crate::engine::command::Charge;
use crate::engine::decision::{Decision, Reading, Refusal};
use crate::engine::group::{Command, Group};
use crate::engine::key::Key;
use crate::engine::permit::PermitId;
use crate::engine::quota::QuotaError;
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::{Now, Timestamp};
use crate::policy::{self, Found, Handle, Rendered, Resolved};

use super::convert;

use acts::{Done, is_act};

/// The name of the one principal there is.
const PRINCIPAL: &str = "default";

/// The code of the maximum of connections in the answer to HELLO.
const CONNECTIONS_CODE: usize = 7;

/// Checks that are decided together, but for the plain ones of one limit. Their answers may be
/// long, and with more of them one read's would go far beyond the write buffer's maximum.
const ORDERS_MAX: usize = 16;

/// Said with the protocol error that closes.
const TOO_MANY_ERRORS: &str = "too many protocol errors";

/// What the server calls itself.
const SERVER: &str = concat!("tollkeeper/", env!("CARGO_PKG_VERSION"));

/// One connection's state.
pub struct Session {
    stage: Stage,
    protocol_errors: usize,
    /// Permits that are given back when the connection closes.
    tied: Vec<PermitId>,
    /// Tells when the answers may go out: what they say was set must be on disk first.
    kept: Option<Kept>,
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
    /// Frames that were whole.
    pub frames: usize,
    /// Those of them that are answered.
    pub answers: usize,
    /// Whether the connection is to be closed once the answers are written.
    pub closes: bool,
    /// Whether whole frames may be left in the bytes, because answers are to be written first.
    pub more: bool,
}

/// Buffers that one thread reuses for all its sessions.
#[derive(Default)]
pub struct SessionBuffers {
    asked: Vec<Asked>,
    orders: Vec<Order>,
    acts: Vec<Act>,
    wrongs: Vec<Wrong>,
    numbers: Vec<LimitNumbers>,
    rendered: Rendered,
    /// Answers of passes that only collect.
    unsaid: Vec<u8>,
}

/// A check or peek that waits to be decided. Kept small: a read brings many.
struct Asked {
    /// Where its answer goes; of no meaning for an item of a batch.
    call: u64,
    what: What,
    op: Op,
}

enum What {
    /// Of a class that comes down to one limit: the counter's key. Terse, at the usual cost.
    One { number: u32, key: Key },
    /// Anything else that can be decided: its place in [`SessionBuffers::orders`].
    Order(usize),
    /// An item of a batch that decides nothing: its place in [`SessionBuffers::acts`].
    Act(usize),
    /// Nothing that can be decided: the place of the reason in [`SessionBuffers::wrongs`].
    Wrong(usize),
}

/// An item of a batch that decides nothing: where its body is in the input, to be done in its turn.
#[derive(Clone, Copy)]
struct Act {
    flags: Flags,
    body_at: u32,
    body_bytes: u32,
    offset: u32,
}

/// A check or peek with everything that it may ask for.
#[derive(Clone, Copy)]
struct Order {
    form: Form,
    intent: Intent,
    deadline_nanos: Option<u64>,
    /// Whether permits that it is given go back when the connection closes.
    tied: bool,
    of: Of,
}

#[derive(Clone, Copy)]
enum Of {
    /// Of a handle. The body, there in the input, has the values for a rendered answer.
    Handle { number: u32, body_at: u32, body_bytes: u32, resolved: Resolved },
    /// Of inline limits: its charges, from here and so many.
    Inline { charges_at: usize, count: usize },
}

/// Why a request gets an error.
#[derive(Clone, Copy)]
enum Wrong {
    Decode(DecodeError),
    UnknownHandle(u32),
    StaleHandle(u32),
    UnknownSlot {
        presence: u64,
        slots: usize,
    },
    TooManyCosts {
        found: usize,
        max: usize,
    },
    Problem(u32, Problem),
    Inline(Refusal),
    /// Numbers that the codec lets through and the engine does not: their ranges are asserted to
    /// be the same, and a limit that is left out would let too much pass.
    Quota(QuotaError),
    Forbidden(Capabilities),
    DeadlineExceeded,
    /// Another node leads, this one.
    NotLeader(u64),
    TooManySessions,
    TooManyTied,
    TooManyChanges(Full),
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
    /// The session's tied permits, and how many checks that may tie more wait for their decision.
    tied: Vec<PermitId>,
    tying: usize,
    /// Tells when the last change by hand is on disk, and with it those before it.
    kept: Option<Kept>,
}

/// What a request is answered.
enum Reply<'a> {
    Decided(&'a Answer<'a>),
    Done(&'a Done),
    Error(&'a ErrorAnswer<'a>),
}

impl Default for Session {
    fn default() -> Self {
        Self { stage: Stage::Greeting, protocol_errors: 0, tied: Vec::new(), kept: None }
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
        self.handle(desk, buffers, &loaded, stamp, input, out)
    }

    /// Collects what the whole frames at the front of `input` want a cluster to perform. Nothing
    /// is answered, nothing changes. Returns how far the frames go, and the docket.
    pub(super) fn collect<F: FnMut() -> Now>(
        &self,
        desk: &mut Desk,
        buffers: &mut SessionBuffers,
        loaded: &Loaded,
        stamp: &mut Stamp<F>,
        input: &[u8],
    ) -> (Progress, Docket) {
        let mut unsaid = core::mem::take(&mut buffers.unsaid);
        desk.begin_collecting();
        let progress = self.copy().handle(desk, buffers, loaded, stamp, input, &mut unsaid);
        unsaid.clear();
        buffers.unsaid = unsaid;
        (progress, desk.end_collecting())
    }

    /// Answers the frames from which `docket` was collected by the same policy, as
    /// [`Session::handle_bytes`] does.
    pub(super) fn hear<F: FnMut() -> Now>(
        &mut self,
        desk: &mut Desk,
        buffers: &mut SessionBuffers,
        (loaded, docket): (&Loaded, Docket),
        stamp: &mut Stamp<F>,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Progress {
        let decided_at = docket.now();
        desk.begin_hearing(docket);
        let mut stamp = Stamp::new(|| decided_at.unwrap_or_else(|| stamp.now()));
        let progress = self.handle(desk, buffers, loaded, &mut stamp, input, out);
        desk.end_hearing();
        progress
    }

    /// A session that stands as this one, for a pass that only collects.
    fn copy(&self) -> Self {
        let Self { stage, protocol_errors, ref tied, kept: _ } = *self;
        Self { stage, protocol_errors, tied: tied.clone(), kept: None }
    }

    fn handle<F: FnMut() -> Now>(
        &mut self,
        desk: &mut Desk,
        buffers: &mut SessionBuffers,
        loaded: &Loaded,
        stamp: &mut Stamp<F>,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Progress {
        let instance = Arc::clone(&desk.instance);
        let table = instance.table.load();
        let pinned = table.pin();
        let hears = desk.is_hearing();
        let arrived = stamp.now().time;
        desk.clear();
        let tied = core::mem::take(&mut self.tied);
        let mut work = Work {
            desk,
            buffers,
            loaded,
            pinned: &pinned,
            stamp,
            arrived,
            input,
            tied,
            tying: 0,
            kept: None,
        };
        let mut progress =
            Progress { consumed: 0, frames: 0, answers: 0, closes: false, more: false };
        while self.stage != Stage::Closed {
            // What a cluster has performed is answered, however long the answers are.
            let is_full = out.len() >= WRITE_BUFFER_BYTES_MAX && !hears;
            if progress.answers >= IN_FLIGHT_MAX || is_full {
                progress.more = true;
                break;
            }
            match next_frame(&input[progress.consumed..], self.frame_bytes_max()) {
                Ok(None) => break,
                Ok(Some((frame, bytes))) => {
                    progress.consumed += bytes;
                    progress.frames += 1;
                    let answered = self.handle_frame(&mut work, &frame, out);
                    progress.answers += usize::from(answered);
                }
                Err(error) => {
                    self.flush(&mut work, out);
                    let error = error.to_decode_error();
                    self.close_with(&error_of(&error, &error.to_string()), out);
                }
            }
        }
        self.flush(&mut work, out);
        self.tied = core::mem::take(&mut work.tied);
        self.kept = work.kept.take();
        progress.closes = self.stage == Stage::Closed;
        let cells = &desk.cells;
        cells.requests.add(progress.frames as u64);
        cells.connections_dropped.add(u64::from(progress.closes));
        progress
    }

    /// What must be on disk before the answers of the last [`Session::handle_bytes`] go out; `None`:
    /// they may go at once.
    pub fn take_kept(&mut self) -> Option<Kept> {
        self.kept.take()
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

    /// Gives back the permits that are tied to the connection. To be called once it is closed.
    pub fn end<F: FnMut() -> Now>(&mut self, desk: &Desk, stamp: &mut Stamp<F>) {
        if self.tied.is_empty() {
            return;
        }
        if let Some(consensus) = desk.instance.consensus.get() {
            let commands = self.tied.drain(..).map(Command::Release).collect();
            let group = Group { commands, charges: Vec::new() };
            return consensus.perform_unheard(&group, desk.instance.policy.load().policy.version());
        }
        let table = desk.instance.table.load();
        let pinned = table.pin();
        for permit in self.tied.drain(..) {
            pinned.release(permit, stamp);
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

    /// Returns whether the frame is answered, now or once it is decided.
    #[inline]
    fn handle_frame<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let message = frame.message();
        if self.stage != Stage::Open {
            return self.handle_unopened(work, frame, out);
        }
        match message.op {
            Op::CHECK | Op::PEEK | Op::CHECK_INLINE | Op::PEEK_INLINE => {
                work.ask(frame.header.call, &message);
                if work.buffers.orders.len() + work.buffers.wrongs.len() >= ORDERS_MAX {
                    self.flush(work, out);
                }
            }
            _ => {
                self.flush(work, out);
                if self.stage == Stage::Closed {
                    return true;
                }
                if !message.wants_reply() {
                    self.handle_silently(work, &frame.header, &message, out);
                    return false;
                }
                self.handle_control(work, &frame.header, &message, out);
            }
        }
        true
    }

    /// A frame that wants no answer: only an error that closes the connection gets out.
    fn handle_silently<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        header: &Header,
        message: &Message<'_>,
        out: &mut Vec<u8>,
    ) {
        let before = out.len();
        self.handle_control(work, header, message, out);
        out.truncate(before);
        if self.stage == Stage::Closed {
            let error = ErrorAnswer::new(Code::BadFrame, TOO_MANY_ERRORS);
            encode_error(&error.closing(), Envelope::Call(0), out);
        }
    }

    /// All frames but single checks and peeks.
    fn handle_control<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        header: &Header,
        message: &Message<'_>,
        out: &mut Vec<u8>,
    ) {
        let envelope = Envelope::Call(header.call);
        let request = match Request::decode(message) {
            Ok(request) => request,
            Err(error) => return self.wrong(work, Wrong::Decode(error), envelope, out),
        };
        if is_act(message.op) {
            if let Err(wrong) = work.act_in_frame(message, &request, envelope, out) {
                self.wrong(work, wrong, envelope, out);
            }
            return;
        }
        match request {
            Request::Ping(ping) => {
                let now = work.stamp.now();
                let answer = PingAnswer {
                    cluster_nanos: now.time.as_nanos(),
                    wall_nanos: now.utc.as_nanos(),
                    payload: ping.payload,
                };
                // What came in a frame goes out in one.
                let _ = answer.encode(envelope, out);
            }
            Request::Prepare(prepare) => work.prepare(&prepare, envelope, out),
            Request::Batch(batch) => self.handle_batch(work, header.call, &batch, out),
            Request::Hello(_) => {
                let error = ErrorAnswer::new(Code::BadFrame, "HELLO comes once, first");
                self.error(work, &error, envelope, out);
            }
            _ => self.wrong(work, Wrong::Decode(message.unsupported_op()), envelope, out),
        }
    }

    /// A frame before HELLO was answered, or after GOAWAY.
    #[cold]
    fn handle_unopened<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let envelope = Envelope::Call(frame.header.call);
        if self.stage == Stage::Leaving {
            let wanted = frame.message().wants_reply();
            if wanted {
                let error = ErrorAnswer::new(Code::ShuttingDown, "the server is stopping");
                self.error(work, &error, envelope, out);
            }
            return wanted;
        }
        let message = frame.message();
        let decoded = match frame.header.op {
            Op::HELLO => Request::decode(&message),
            _ => {
                self.stage = Stage::Closed;
                let error = ErrorAnswer::new(Code::Unauthenticated, "HELLO comes first");
                encode_error(&error.closing(), envelope, out);
                return true;
            }
        };
        let refused = match decoded {
            Ok(Request::Hello(hello)) => match self.greet(work, &hello, envelope, out) {
                Ok(()) => return true,
                Err(error) => error,
            },
            Ok(_) => ErrorAnswer::new(Code::Internal, "HELLO was read as another request"),
            Err(error) => {
                self.stage = Stage::Closed;
                let text = error.to_string();
                encode_error(&error_of(&error, &text).closing(), envelope, out);
                return true;
            }
        };
        self.stage = Stage::Closed;
        encode_error(&refused.closing(), envelope, out);
        true
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
            work.ask(call, &item);
        }
        let mut response = BatchResponse::begin(call, batch.items.len(), out);
        let asked = core::mem::take(&mut work.buffers.asked);
        for asked in &asked {
            work.answer(asked, |reply| match reply {
                Reply::Decided(answer) => response.answer(asked.op, answer),
                Reply::Done(done) => done.push(asked.op, &mut response),
                Reply::Error(error) => {
                    self.count_error(error);
                    response.error(error);
                }
            });
        }
        response.finish();
        work.reuse(asked);
        if self.protocol_errors >= PROTOCOL_ERRORS_MAX {
            self.close(Code::BadFrame, TOO_MANY_ERRORS, out);
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
            if self.stage == Stage::Closed {
                // An error that closes is the last word; what came behind it is not charged.
                break;
            }
            if work.answer_one(asked, out) {
                continue;
            }
            let envelope = Envelope::Call(asked.call);
            work.answer(asked, |reply| match reply {
                Reply::Decided(answer) => {
                    // The codec's maxima hold for a single answer by the policy's own; were one to
                    // exceed them, a permit would still have to get out.
                    if answer.encode(asked.op, envelope, out).is_err() {
                        let _ = answer.shortest().encode(asked.op, envelope, out);
                    }
                }
                Reply::Done(done) => done.encode(asked.op, envelope, out),
                Reply::Error(error) => {
                    self.count_error(error);
                    let closes = self.protocol_errors >= PROTOCOL_ERRORS_MAX;
                    let error = if closes { error.closing() } else { *error };
                    if closes {
                        self.stage = Stage::Closed;
                    }
                    encode_error(&error, envelope, out);
                }
            });
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

/// Slots of a handle that has few, as most have.
const FEW_SLOTS: usize = 4;

/// Gives `take` the values by slot, as the policy wants them.
#[inline]
fn with_values<'a, R>(
    sparse: &Sparse<'a>,
    slots: usize,
    take: impl FnOnce(&[Option<&'a [u8]>]) -> R,
) -> R {
    if slots <= FEW_SLOTS {
        let mut values = [None; FEW_SLOTS];
        fill(&mut values, sparse);
        take(&values[..slots])
    } else {
        let mut values = [None; SLOTS_MAX];
        fill(&mut values, sparse);
        take(&values[..slots.min(SLOTS_MAX)])
    }
}

#[inline]
fn fill<'a>(values: &mut [Option<&'a [u8]>], sparse: &Sparse<'a>) {
    for (slot, value) in sparse.iter() {
        if let Some(place) = values.get_mut(slot) {
            *place = Some(value);
        }
    }
}

impl<F: FnMut() -> Now> Work<'_, '_, F> {
    fn reuse(&mut self, mut asked: Vec<Asked>) {
        asked.clear();
        self.buffers.asked = asked;
        self.buffers.orders.clear();
        self.buffers.acts.clear();
        self.buffers.wrongs.clear();
        self.tying = 0;
        self.desk.clear();
    }

    /// Takes in a check or peek, to be decided with the others.
    #[inline]
    fn ask(&mut self, call: u64, message: &Message<'_>) {
        if let Some((number, key)) = self.one_key(message) {
            self.pinned.prefetch(key);
            let what = What::One { number, key };
            return self.buffers.asked.push(Asked { call, what, op: message.op });
        }
        self.ask_anyhow(call, message);
    }

    /// Handle and key of a check that asks tersely, at the usual cost, of a class that comes down
    /// to one limit; `None` for any other.
    #[inline(always)]
    fn one_key(&self, message: &Message<'_>) -> Option<(u32, Key)> {
        if message.op != Op::CHECK || message.flags != Flags::default() {
            return None;
        }
        allowed(Op::CHECK).ok()?;
        let check = Check::plain(message, request::Intent::Charge)?;
        let handle = self.loaded.policy.handle(check.handle)?;
        let one = handle.one().filter(|_| !self.loaded.is_overridden(check.handle))?;
        let known = check.values.presence() >> handle.slots().len() == 0;
        if handle.layout() != check.layout || !known {
            return None;
        }
        let value = check.values.value(usize::from(one.slot))?;
        Some((check.handle, one.key(value)))
    }

    #[cold]
    fn ask_anyhow(&mut self, call: u64, message: &Message<'_>) {
        let taken = match message.op {
            Op::CHECK => self.take(call, message, request::Intent::Charge),
            Op::PEEK => self.take(call, message, request::Intent::Peek),
            _ if is_act(message.op) => self.take_act(call, message),
            _ => self.take_inline(call, message),
        };
        if let Err(wrong) = taken {
            self.take_wrong(call, message.op, wrong);
        }
    }

    #[cold]
    fn take_wrong(&mut self, call: u64, op: Op, wrong: Wrong) {
        let what = What::Wrong(self.buffers.wrongs.len());
        self.buffers.wrongs.push(wrong);
        self.buffers.asked.push(Asked { call, what, op });
    }

    /// Resolves a check or peek by handle.
    #[inline]
    fn take(
        &mut self,
        call: u64,
        message: &Message<'_>,
        wanted: request::Intent,
    ) -> Result<(), Wrong> {
        let check = Check::decode(message, wanted).map_err(Wrong::Decode)?;
        allowed(message.op)?;
        self.stay(check.no_forward)?;
        self.tie(check.tied)?;
        let number = check.handle;
        let handle = handle_of(self.loaded, number, check.layout)?;
        let resolved = self.resolve(handle, &check)?;
        let body_at = self.place_of(message.body);
        let body_bytes = message.body.len() as u32;
        let order = Order {
            form: check.form,
            intent: intent(check.intent, check.id),
            deadline_nanos: check.deadline_nanos,
            tied: check.tied,
            of: Of::Handle { number, body_at, body_bytes, resolved },
        };
        self.order(call, message.op, order);
        Ok(())
    }

    /// Where a body is in the input.
    fn place_of(&self, body: &[u8]) -> u32 {
        (body.as_ptr() as usize - self.input.as_ptr() as usize) as u32
    }

    /// Takes in an item of a batch that decides nothing.
    fn take_act(&mut self, call: u64, message: &Message<'_>) -> Result<(), Wrong> {
        // What it says is wrong is told in its place; what it asks for is done in its turn.
        decode_item(message).map_err(Wrong::Decode)?;
        let (body_at, body_bytes) = (self.place_of(message.body), message.body.len() as u32);
        let what = What::Act(self.buffers.acts.len());
        let Message { flags, offset, .. } = *message;
        self.buffers.acts.push(Act { flags, body_at, body_bytes, offset });
        self.buffers.asked.push(Asked { call, what, op: message.op });
        Ok(())
    }

    /// A check that is not to be handed on is wrong where another node leads.
    fn stay(&self, no_forward: bool) -> Result<(), Wrong> {
        match self.desk.led_by_other() {
            Some(leader) if no_forward => Err(Wrong::NotLeader(leader)),
            _ => Ok(()),
        }
    }

    /// Takes room for one more tied permit. If there is none, those that have lapsed make some.
    fn tie(&mut self, tied: bool) -> Result<(), Wrong> {
        if !tied {
            return Ok(());
        }
        if self.desk.is_hearing() {
            // It was let in when it was collected.
            return Ok(());
        }
        if self.tied.len() + self.tying >= TIED_PERMITS_MAX {
            self.tied.retain(|permit| self.pinned.may_hold(*permit));
            if self.tied.len() + self.tying >= TIED_PERMITS_MAX {
                return Err(Wrong::TooManyTied);
            }
        }
        self.tying += 1;
        Ok(())
    }

    fn order(&mut self, call: u64, op: Op, order: Order) {
        let what = What::Order(self.buffers.orders.len());
        self.buffers.orders.push(order);
        self.buffers.asked.push(Asked { call, what, op });
    }

    #[inline]
    fn resolve(&mut self, handle: &Handle, check: &Check<'_>) -> Result<Resolved, Wrong> {
        let slots = handle.slots().len();
        let (presence, found) = (check.values.presence(), check.costs.len());
        if presence.checked_shr(slots as u32).is_some_and(|beyond| beyond != 0) {
            return Err(Wrong::UnknownSlot { presence, slots });
        }
        let mut costs = [0; METERS_MAX];
        let costs = if found == 0 {
            // No cost at all is one request.
            &[][..]
        } else {
            let max = handle.meters().len();
            if found > max {
                return Err(Wrong::TooManyCosts { found, max });
            }
            for (cost, to) in check.costs.iter().zip(&mut costs) {
                *to = cost;
            }
            // One cost that is there puts those that are not at zero.
            &costs[..max]
        };
        let resolved = with_values(&check.values, slots, |values| {
            self.desk.resolve(self.loaded, self.pinned, handle, &policy::Request { values, costs })
        });
        resolved.map_err(|error| {
            self.desk.count_error(handle.api_number());
            Wrong::Problem(handle.number(), Problem::Resolve(error))
        })
    }

    /// Resolves a check or peek of inline limits.
    fn take_inline(&mut self, call: u64, message: &Message<'_>) -> Result<(), Wrong> {
        let check = match request::decode_item(message).map_err(Wrong::Decode)? {
            Request::CheckInline(check) => check,
            _ => return Err(Wrong::Decode(message.unsupported_op())),
        };
        allowed(message.op)?;
        self.stay(check.no_forward)?;
        self.tie(check.tied)?;
        let charges_at = self.desk.charges.len();
        for limit in check.limits {
            let charge =
                convert::charge(&self.desk.instance.inline, &limit).map_err(Wrong::Quota)?;
            self.pinned.prefetch(charge.key);
            self.desk.charges.push(charge);
        }
        let count = self.desk.charges.len() - charges_at;
        let order = Order {
            form: check.form,
            intent: intent(check.intent, check.id),
            deadline_nanos: check.deadline_nanos,
            tied: check.tied,
            of: Of::Inline { charges_at, count },
        };
        self.order(call, message.op, order);
        Ok(())
    }

    /// Decides and answers the common check. False leaves it to [`Work::answer`].
    #[inline]
    fn answer_one(&mut self, asked: &Asked, out: &mut Vec<u8>) -> bool {
        let What::One { number, key } = asked.what else { return false };
        if self.desk.asks_cluster() {
            return false;
        }
        let Some(handle) = self.loaded.policy.handle(number) else { return false };
        let Some(one) = handle.one() else { return false };
        let charge = Charge::new(key, one.quota, one.cost, one.limit);
        let api = handle.api_number();
        let decided = self.desk.decide_one(self.pinned, api, &charge, self.stamp);
        let Some(reading) = decided else { return false };
        if !reading.fits {
            let journal = &self.desk.instance.journal;
            if journal.is_denial_due(one.limit, self.stamp.now().time) {
                let version = self.loaded.policy.version();
                journal.denied(handle, one.limit_index, version, &policy::Request::default());
            }
        }
        let answer = Terse {
            decision: if reading.fits { WireDecision::Allow } else { WireDecision::Deny },
            unmatched: false,
            failed_open: false,
            binding: Some(one.limit_index),
            retry: convert::retry(reading.retry()),
            witness: self.witness(),
        };
        answer.encode(asked.op, Envelope::Call(asked.call), out);
        true
    }

    /// A common check that the engine refused, to be decided as any other.
    #[cold]
    fn order_of_one(&mut self, number: u32, key: Key) -> Result<Order, Wrong> {
        let one = self.loaded.policy.handle(number).and_then(Handle::one);
        let one = one.ok_or(Wrong::UnknownHandle(number))?;
        let charge = Charge::new(key, one.quota, one.cost, one.limit);
        let resolved = self.desk.take(charge, one.limit_index);
        let of = Of::Handle { number, body_at: 0, body_bytes: 0, resolved };
        let (form, intent) = (Form::TERSE, Intent::Charge);
        Ok(Order { form, intent, deadline_nanos: None, tied: false, of })
    }

    /// Decides or does what waits, and gives `reply` what it is answered.
    #[inline]
    fn answer(&mut self, asked: &Asked, reply: impl FnOnce(Reply<'_>)) {
        let order = match asked.what {
            What::One { number, key } => self.order_of_one(number, key),
            What::Order(place) => Ok(self.buffers.orders[place]),
            What::Act(place) => return self.answer_act(asked.op, place, reply),
            What::Wrong(place) => Err(self.buffers.wrongs[place]),
        };
        let wrong = match order.and_then(|order| Ok((order, self.decide(&order)?))) {
            Ok((order, Decided::Handle(answered))) => {
                return self.answer_handle(asked.op, &order, &answered, |answer| {
                    reply(Reply::Decided(answer));
                });
            }
            Ok((order, Decided::Inline(decision))) => {
                return self.answer_inline(&order, &decision, |answer| {
                    reply(Reply::Decided(answer));
                });
            }
            Err(wrong) => wrong,
        };
        self.desk.cells.errors.add(1);
        wrong.with_error(self.loaded, |error| reply(Reply::Error(error)));
    }

    #[cold]
    fn answer_act(&mut self, op: Op, place: usize, reply: impl FnOnce(Reply<'_>)) {
        let Act { flags, body_at, body_bytes, offset } = self.buffers.acts[place];
        let body = &self.input[body_at as usize..(body_at + body_bytes) as usize];
        let message = Message { op, flags, body, offset };
        let done = decode_item(&message).map_err(Wrong::Decode);
        match done.and_then(|request| self.act(&message, &request)) {
            Ok(done) => reply(Reply::Done(&done)),
            Err(wrong) => {
                self.desk.cells.errors.add(1);
                wrong.with_error(self.loaded, |error| reply(Reply::Error(error)));
            }
        }
    }

    /// What a decision gave of concurrency limits, as it is told; tied, if that was asked for.
    fn permit(
        &mut self,
        order: &Order,
        decision: &Decision,
    ) -> Option<tollkeeper_protocol::Permit> {
        let permit = decision.permit?;
        if order.tied {
            self.tied.push(permit.id);
        }
        Some(convert::permit(permit))
    }

    fn decide(&mut self, order: &Order) -> Result<Decided, Wrong> {
        if let Some(deadline) = order.deadline_nanos
            && !self.desk.leave_deadline(deadline)
        {
            let elapsed = self.stamp.now().time.since(self.arrived).get();
            if elapsed >= deadline {
                return Err(Wrong::DeadlineExceeded);
            }
        }
        match order.of {
            Of::Handle { number, ref resolved, .. } => {
                let Some(handle) = self.loaded.policy.handle(number) else {
                    return Err(Wrong::UnknownHandle(number));
                };
                let api = handle.api_number();
                let (pinned, stamp) = (self.pinned, &mut *self.stamp);
                self.desk
                    .decide(pinned, api, handle, resolved, order.intent, stamp)
                    .map(Decided::Handle)
                    .map_err(|problem| Wrong::Problem(number, problem))
            }
            Of::Inline { charges_at, count } => {
                let charges = charges_at..charges_at + count;
                self.desk
                    .decide_inline(self.pinned, charges, order.intent, self.stamp)
                    .map(Decided::Inline)
                    .map_err(|problem| Wrong::Problem(0, problem))
            }
        }
    }

    fn answer_handle(
        &mut self,
        op: Op,
        order: &Order,
        answered: &Answered,
        reply: impl FnOnce(&Answer<'_>),
    ) {
        let Of::Handle { ref resolved, .. } = order.of else { return };
        let permit = match answered {
            Answered::Decided(decision) => {
                if order.intent.charges()
                    && let Some(index) = self.desk.denial_due(resolved, decision)
                {
                    self.tell_of_denial(op, order, index);
                }
                self.permit(order, decision)
            }
            Answered::FailedOpen(_) => None,
        };
        let version = self.loaded.policy.version();
        let limits = &self.desk.limits[resolved.limits()];
        let terse = match answered {
            Answered::Decided(decision) => {
                let index_of = |place: usize| limits.get(place).copied();
                let terse = convert::terse(
                    decision,
                    &self.desk.readings,
                    index_of,
                    version,
                    self.desk.witness(),
                );
                Terse { unmatched: resolved.unmatched, ..terse }
            }
            Answered::FailedOpen(_) => Terse {
                decision: WireDecision::Allow,
                unmatched: false,
                failed_open: true,
                binding: None,
                retry: WireRetry::None,
                witness: self.witness(),
            },
        };
        if order.form == Form::TERSE {
            return reply(&Answer { permit, ..terse.into() });
        }
        self.answer_at_length(op, order, answered, (terse, permit), reply);
    }

    /// Hands over a denial to be logged, with what the policy lets be logged of the request.
    #[cold]
    fn tell_of_denial(&self, op: Op, order: &Order, index: u16) {
        let Of::Handle { number, body_at, body_bytes, .. } = order.of else { return };
        let Some(handle) = self.loaded.policy.handle(number) else { return };
        let version = self.loaded.policy.version();
        let journal = &self.desk.instance.journal;
        let message = message_of(self.input, op, order, body_at, body_bytes);
        match Check::decode(&message, request::Intent::Peek) {
            Ok(check) => with_values(&check.values, handle.slots().len(), |values| {
                journal.denied(handle, index, version, &policy::Request { values, costs: &[] });
            }),
            // Of one that was resolved in a shorter way, whose handle logs nothing of it.
            Err(_) => journal.denied(handle, index, version, &policy::Request::default()),
        }
    }

    /// An answer with numbers, rendered, or both.
    fn answer_at_length(
        &mut self,
        op: Op,
        order: &Order,
        answered: &Answered,
        (terse, permit): (Terse, Option<tollkeeper_protocol::Permit>),
        reply: impl FnOnce(&Answer<'_>),
    ) {
        let Of::Handle { number, body_at, body_bytes, ref resolved } = order.of else { return };
        let limits = &self.desk.limits[resolved.limits()];
        let now = self.stamp.now();
        let readings: &[Reading] = match answered {
            Answered::Decided(_) => &self.desk.readings,
            Answered::FailedOpen(_) => &[],
        };
        self.buffers.numbers.clear();
        let numbers = limits.iter().zip(readings);
        self.buffers.numbers.extend(numbers.map(|(index, read)| convert::numbers(*index, read)));
        let numbers = order.form.numbers.then(|| Numbers {
            wall_nanos: now.utc.as_nanos(),
            limits: self.buffers.numbers[..].into(),
        });
        let handle = self.loaded.policy.handle(number).filter(|_| order.form.rendered);
        let Some(handle) = handle else {
            return reply(&Answer { terse, numbers, rendered: None, body_omitted: false, permit });
        };
        let rendered = &mut self.buffers.rendered;
        match answered {
            Answered::Decided(decision) => {
                let message = message_of(self.input, op, order, body_at, body_bytes);
                // It was decoded before.
                let Ok(check) = Check::decode(&message, request::Intent::Peek) else { return };
                with_values(&check.values, handle.slots().len(), |values| {
                    let request = policy::Request { values, costs: &[] };
                    handle.render(resolved, limits, &request, decision, readings, rendered);
                });
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
        let rendered = Some(rendered);
        reply(&Answer { terse, numbers, rendered, body_omitted: false, permit });
    }

    fn answer_inline(
        &mut self,
        order: &Order,
        decision: &Decision,
        reply: impl FnOnce(&Answer<'_>),
    ) {
        let permit = self.permit(order, decision);
        let readings = &self.desk.readings;
        let index_of = |place: usize| u16::try_from(place).ok();
        let version = self.loaded.policy.version();
        let terse = convert::terse(decision, readings, index_of, version, self.desk.witness());
        self.buffers.numbers.clear();
        if order.form.numbers {
            let numbers = readings.iter().enumerate();
            self.buffers.numbers.extend(numbers.filter_map(|(index, read)| {
                u16::try_from(index).ok().map(|index| convert::numbers(index, read))
            }));
        }
        let numbers = order.form.numbers.then(|| Numbers {
            wall_nanos: decision.now.utc.as_nanos(),
            limits: self.buffers.numbers[..].into(),
        });
        reply(&Answer { terse, numbers, rendered: None, body_omitted: false, permit });
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
}

enum Decided {
    Handle(Answered),
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
            Self::UnknownSlot { presence, slots } => {
                let message = format!("the handle has {slots} slots, presence is {presence:#b}");
                let max = (1 << slots) - 1;
                let detail = Detail::Range { field: "presence", found: presence, min: 0, max };
                encode(&ErrorAnswer::new(Code::BadFrame, &message).with_detail(detail))
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
            Self::Problem(_, Problem::Undecided(undecided)) => {
                let code = convert::undecided_code(undecided);
                encode(&ErrorAnswer::new(code, undecided.describe()))
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
                        Found::Unfit | Found::TooLong { .. } => Some(b""),
                    },
                };
                encode(&answer.with_detail(detail))
            }
            Self::Inline(refusal) => {
                let message = refusal.to_string();
                encode(&ErrorAnswer::new(convert::refusal_code(refusal), cut(&message)))
            }
            Self::Quota(error) => {
                let message = error.to_string();
                let QuotaError { number, found, min, max } = error;
                let detail = Detail::Range { field: number, found, min, max };
                encode(&ErrorAnswer::new(Code::BadLimit, cut(&message)).with_detail(detail))
            }
            Self::Forbidden(capability) => {
                let error = ErrorAnswer::new(Code::Forbidden, "the principal may not do this");
                encode(&error.with_detail(Detail::Capability(capability)))
            }
            Self::Problem(_, Problem::BadId(error)) => {
                let code = convert::session_code(error);
                encode(&ErrorAnswer::new(code, &error.to_string()))
            }
            Self::NotLeader(leader) => {
                let message = format!("node {leader} leads; this node was told not to hand on");
                encode(&ErrorAnswer::new(Code::NotLeader, &message))
            }
            Self::TooManySessions => {
                let message = "the server has all the sessions it takes, and none is idle";
                encode(&ErrorAnswer::new(Code::Overloaded, message))
            }
            Self::TooManyTied => {
                let message = "the connection has all the tied permits it may have";
                let max = TIED_PERMITS_MAX as u64;
                let detail = Detail::Range { field: "tied_permits", found: max + 1, min: 0, max };
                encode(&ErrorAnswer::new(Code::Overloaded, message).with_detail(detail))
            }
            Self::TooManyChanges(full) => {
                encode(&ErrorAnswer::new(Code::Overloaded, &full.to_string()))
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

/// A check by handle as it came.
fn message_of<'i>(
    input: &'i [u8],
    op: Op,
    order: &Order,
    body_at: u32,
    body_bytes: u32,
) -> Message<'i> {
    let deadline = Flags::DEADLINE.only_if(order.deadline_nanos.is_some());
    let id = Flags::REQUEST_ID.only_if(order.intent.id().is_some());
    let flags = order.form.to_flags().union(deadline).union(id);
    let (from, to) = (body_at as usize, (body_at + body_bytes) as usize);
    Message { op, flags, body: &input[from..to], offset: 0 }
}

#[inline]
fn intent(intent: request::Intent, id: Option<RequestId>) -> Intent {
    match (intent, id) {
        (request::Intent::Charge, None) => Intent::Charge,
        (request::Intent::Charge, Some(id)) => Intent::ChargeOnce(convert::request_id(id)),
        (request::Intent::Peek, _) => Intent::Peek,
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

#[cfg(test)]
mod tests;
