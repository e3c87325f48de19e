//! One connection's side of the protocol, without its socket. Pure: bytes in, engine calls, bytes
//! out; time comes in as a stamp.
//!
//! Frames are taken from what one read delivered and answered in order. Checks go over the desk
//! twice: as they are met they are resolved and their counters fetched; when another kind of frame
//! comes, or the bytes end, all of them are decided and answered.

mod work;

mod greeting;

mod asking;

mod answering;

mod acts;

mod wrong;

use std::sync::Arc;

use tollkeeper_protocol::limits::{
    FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, IN_FLIGHT_MAX, PROTOCOL_ERRORS_MAX,
    WRITE_BUFFER_BYTES_MAX,
};
use tollkeeper_protocol::request::{Batch, Request};
use tollkeeper_protocol::response::{BatchResponse, ErrorAnswer, PingAnswer};
use tollkeeper_protocol::status::Code;
use tollkeeper_protocol::{Envelope, Frame, Header, Message, Op, next_frame};

use crate::doors::{Desk, Docket, Kept, Loaded};
use crate::engine::group::{Command, Group};
use crate::engine::permit::PermitId;
use crate::engine::table::Stamp;
use crate::engine::time::Now;

use acts::is_act;
use answering::Reply;
use work::Work;
use wrong::{Wrong, encode_error, error_of};

pub use work::SessionBuffers;

/// Checks that are decided together, but for the plain ones of one limit. Their answers may be
/// long, and with more of them one read's would go far beyond the write buffer's maximum.
const ORDERS_MAX: usize = 16;

/// Said with the protocol error that closes.
const TOO_MANY_ERRORS: &str = "too many protocol errors";

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

#[cfg(test)]
mod tests;
