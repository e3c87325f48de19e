//! The driver: the one task that touches the socket.
//!
//! It takes requests from the queue while there is room in flight, writes what has gathered in
//! one go, hands each answer to who waits for it, and makes the connection anew when it is lost.
//! While there is none, requests fail at once, so that callers are not kept. A permit whose caller
//! has given up waiting is given back.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::sync::{PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::copy_io;
use super::error::{ClientError, ServerError};
use super::options::{Counters, Event, Options, ServerInfo};
use crate::framing::next_frame;
use crate::header::{Envelope, Flags, Op};
use crate::limits::{ANSWER_BYTES_MAX, IN_FLIGHT_MAX, VERSION_MAX, VERSION_MIN};
use crate::permit::Permit;
use crate::request::{Hello, Ping, Release, Reply};
use crate::response::Response;

/// Bytes of requests that wait for the socket before no more are taken from the queue.
const WRITE_BYTES_MAX: usize = 128 * 1024;
/// Room made for each read.
const READ_BYTES: usize = 16 * 1024;
/// The call id of a PING that only keeps the connection; its answer is for nobody.
const KEEP_ALIVE_CALL: u64 = u64::MAX;
/// The call id of requests that want no answer. An error to one of them closes the connection, and
/// is told as one about it, which has this id too.
const UNANSWERED_CALL: u64 = 0;

/// A frame without its call id, and who waits for the answer; nobody if the frame asks for none.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) frame: Bytes,
    pub(super) reply: Option<oneshot::Sender<Result<Bytes, ClientError>>>,
}

/// What the driver shares with the callers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) addr: String,
    pub(super) options: Options,
    server: RwLock<Option<Arc<ServerInfo>>>,
    failed_open: AtomicU64,
    failed_closed: AtomicU64,
    reconnects: AtomicU64,
}

impl Shared {
    pub(super) fn new(addr: String, options: Options) -> Self {
        Self {
            addr,
            options,
            server: RwLock::new(None),
            failed_open: AtomicU64::new(0),
            failed_closed: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
        }
    }

    pub(super) fn server(&self) -> Arc<ServerInfo> {
        let server = self.server.read().unwrap_or_else(PoisonError::into_inner);
        server.clone().expect("a client exists only after its first handshake")
    }

    fn instance(&self) -> Option<[u8; 16]> {
        let server = self.server.read().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().map(|server| server.instance)
    }

    // The counters are read alone, so no ordering is asked of them.
    pub(super) fn counters(&self) -> Counters {
        Counters {
            failed_open: self.failed_open.load(Ordering::Relaxed),
            failed_closed: self.failed_closed.load(Ordering::Relaxed),
            reconnects: self.reconnects.load(Ordering::Relaxed),
        }
    }

    pub(super) fn tell(&self, event: &Event) {
        if let Some(on_event) = &self.options.on_event {
            on_event(event);
        }
    }

    pub(super) fn failed_open_by_server(&self) {
        self.failed_open.fetch_add(1, Ordering::Relaxed);
        self.tell(&Event::FailedOpen { reason: "the server had no decision".into() });
    }

    pub(super) fn unavailable(&self, allow: bool, error: &ClientError) {
        let reason = error.to_string();
        if allow {
            self.failed_open.fetch_add(1, Ordering::Relaxed);
            self.tell(&Event::FailedOpen { reason });
        } else {
            self.failed_closed.fetch_add(1, Ordering::Relaxed);
            self.tell(&Event::FailedClosed { reason });
        }
    }

    fn unreachable(&self, source: &Error) -> ClientError {
        ClientError::Unreachable { addr: self.addr.clone(), source: copy_io(source) }
    }
}

/// A connection after its handshake, and what arrived behind the answer to HELLO.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    input: BytesMut,
    in_flight_max: usize,
}

/// Connects and shakes hands within the time that the options allow.
pub(super) async fn open(shared: &Shared) -> Result<Link, ClientError> {
    match timeout(shared.options.connect_within, shake_hands(shared)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(shared.unreachable(&Error::from(ErrorKind::TimedOut))),
    }
}

async fn shake_hands(shared: &Shared) -> Result<Link, ClientError> {
    let hello = Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        client: &shared.options.client,
        credential_scheme: 0,
        credential: &[],
    };
    let mut output = Vec::new();
    hello.encode(Envelope::Call(0), &mut output)?;
    let io = |error: Error| shared.unreachable(&error);
    let mut stream = TcpStream::connect(&shared.addr).await.map_err(io)?;
    stream.set_nodelay(true).map_err(io)?;
    stream.write_all(&output).await.map_err(io)?;
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let frame = loop {
        match next_frame(&input, ANSWER_BYTES_MAX) {
            Ok(Some((_, consumed))) => break input.split_to(consumed).freeze(),
            Ok(None) => {}
            Err(error) => return Err(ClientError::BadAnswer(error.to_decode_error())),
        }
        input.reserve(READ_BYTES);
        if stream.read_buf(&mut input).await.map_err(io)? == 0 {
            return Err(shared.unreachable(&Error::from(ErrorKind::UnexpectedEof)));
        }
    };
    let hello = match super::response(&frame)? {
        Response::Hello(hello) => hello,
        Response::Error(error) => {
            return Err(ClientError::refused(&error));
        }
        _ => return Err(ClientError::WrongAnswer),
    };
    let in_flight = usize::try_from(hello.maxima.in_flight()).unwrap_or(IN_FLIGHT_MAX);
    let info = ServerInfo {
        version: hello.version,
        capabilities: hello.capabilities,
        features: hello.features,
        instance: hello.instance,
        principal: hello.principal.to_string(),
        server: hello.server.to_string(),
        maxima: hello.maxima,
    };
    *shared.server.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(info));
    Ok(Link { stream, input, in_flight_max: in_flight.clamp(1, IN_FLIGHT_MAX) })
}

/// Why a session ended.
enum End {
    /// All clients are gone.
    Dropped,
    /// The connection is of no more use; the reason is for people.
    Lost(String),
    /// The server left, and everything was answered.
    WentAway,
}

/// Serves the queue until all clients are gone. Without a link it begins by making one.
pub(super) async fn drive(
    shared: Arc<Shared>,
    link: Option<Link>,
    mut queue: mpsc::Receiver<Command>,
) {
    let mut link = match link {
        Some(link) => link,
        None => match reconnect(&shared, &mut queue).await {
            Some(link) => link,
            None => return,
        },
    };
    loop {
        let mut session = Session::new(&shared, link);
        let end = session.run(&mut queue).await;
        for (_, waiting) in session.waiting.drain() {
            let _ = waiting.reply.send(Err(ClientError::Lost { addr: shared.addr.clone() }));
        }
        drop(session);
        match end {
            End::Dropped => return,
            End::Lost(reason) => shared.tell(&Event::Disconnected { reason }),
            End::WentAway => {
                shared.tell(&Event::Disconnected { reason: "the server left".into() });
            }
        }
        let before = shared.instance();
        let Some(fresh) = reconnect(&shared, &mut queue).await else { return };
        link = fresh;
        shared.reconnects.fetch_add(1, Ordering::Relaxed);
        let instance_changed = shared.instance() != before;
        shared.tell(&Event::Reconnected { instance_changed });
    }
}

/// Tries until it succeeds, with growing pauses in which requests fail at once. `None` if all
/// clients are gone.
async fn reconnect(shared: &Shared, queue: &mut mpsc::Receiver<Command>) -> Option<Link> {
    let mut pause = shared.options.backoff_min;
    loop {
        let error = match open(shared).await {
            Ok(link) => return Some(link),
            Err(error) => error,
        };
        let until = Instant::now() + jittered(pause);
        pause = (pause * 2).min(shared.options.backoff_max);
        loop {
            tokio::select! {
                command = queue.recv() => {
                    if let Some(reply) = command?.reply {
                        let _ = reply.send(Err(error.copy()));
                    }
                }
                () = sleep_until(until) => break,
            }
        }
    }
}

/// Between half of `pause` and all of it, so that clients of a lost server do not return as one.
fn jittered(pause: Duration) -> Duration {
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    pause / 2 + (pause / 2).mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// Who waits for an answer.
struct Waiting {
    reply: oneshot::Sender<Result<Bytes, ClientError>>,
    /// The request may be sent again under its id, and then has the same permit.
    has_id: bool,
}

/// Whether an encoded request has a request id.
fn has_request_id(frame: &[u8]) -> bool {
    let flags = frame.get(6..8).and_then(|flags| flags.first_chunk().copied());
    flags.is_some_and(|flags| Flags(u16::from_le_bytes(flags)).contains(Flags::REQUEST_ID))
}

struct Session<'s> {
    shared: &'s Shared,
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
    waiting: HashMap<u64, Waiting>,
    next_call: u64,
    in_flight_max: usize,
    going_away: bool,
    last_read_at: Instant,
    last_write_at: Instant,
}

impl<'s> Session<'s> {
    fn new(shared: &'s Shared, link: Link) -> Self {
        let Link { stream, input, in_flight_max } = link;
        let now = Instant::now();
        Self {
            shared,
            stream,
            input,
            output: BytesMut::with_capacity(READ_BYTES),
            waiting: HashMap::new(),
            next_call: 1,
            in_flight_max,
            going_away: false,
            last_read_at: now,
            last_write_at: now,
        }
    }

    async fn run(&mut self, queue: &mut mpsc::Receiver<Command>) -> End {
        // What came behind the answer to HELLO.
        if let Some(end) = self.take_answers() {
            return end;
        }
        loop {
            if self.going_away && self.waiting.is_empty() {
                return End::WentAway;
            }
            let has_room = !self.going_away
                && self.waiting.len() < self.in_flight_max
                && self.output.len() < WRITE_BYTES_MAX;
            self.input.reserve(READ_BYTES);
            let wake_at = self.wake_at();
            let (mut reader, mut writer) = self.stream.split();
            tokio::select! {
                command = queue.recv(), if has_room => {
                    let Some(command) = command else {
                        // What nobody waits for is to be sent all the same.
                        let rest = self.stream.write_all_buf(&mut self.output);
                        let _ = timeout(self.shared.options.stalled_after, rest).await;
                        return End::Dropped;
                    };
                    self.send(command);
                    while self.waiting.len() < self.in_flight_max
                        && self.output.len() < WRITE_BYTES_MAX
                        && let Ok(command) = queue.try_recv()
                    {
                        self.send(command);
                    }
                }
                read = reader.read_buf(&mut self.input) => match read {
                    Ok(0) if self.going_away && self.waiting.is_empty() => return End::WentAway,
                    Ok(0) => return End::Lost("the server closed the connection".into()),
                    Ok(_) => {
                        self.last_read_at = Instant::now();
                        if let Some(end) = self.take_answers() {
                            return end;
                        }
                    }
                    Err(error) => return End::Lost(error.to_string()),
                },
                written = writer.write_buf(&mut self.output), if !self.output.is_empty() => {
                    self.last_write_at = Instant::now();
                    if let Err(error) = written {
                        return End::Lost(error.to_string());
                    }
                }
                () = sleep_until(wake_at) => {
                    if let Some(end) = self.wake() {
                        return end;
                    }
                }
            }
        }
    }

    /// Gives a request its call id and puts it with what is to be written.
    fn send(&mut self, command: Command) {
        if command.reply.as_ref().is_some_and(oneshot::Sender::is_closed) {
            // Nobody waits any more: its deadline passed in the queue, so it must not be charged.
            return;
        }
        if self.waiting.is_empty() && command.reply.is_some() {
            // Only from here on is the server's silence of any meaning.
            self.last_read_at = Instant::now();
        }
        let call = match command.reply {
            Some(reply) => {
                let call = self.next_call;
                self.next_call += 1;
                let has_id = has_request_id(&command.frame);
                self.waiting.insert(call, Waiting { reply, has_id });
                call
            }
            None => UNANSWERED_CALL,
        };
        let (before, after) = command.frame.split_at(8);
        self.output.extend_from_slice(before);
        self.output.extend_from_slice(&call.to_le_bytes());
        self.output.extend_from_slice(after.get(8..).unwrap_or_default());
    }

    /// Hands out every whole frame that has arrived.
    fn take_answers(&mut self) -> Option<End> {
        loop {
            let (header, consumed) = match next_frame(&self.input, ANSWER_BYTES_MAX) {
                Ok(Some((frame, consumed))) => (frame.header, consumed),
                Ok(None) => return None,
                Err(error) => return Some(End::Lost(error.to_string())),
            };
            let frame = self.input.split_to(consumed).freeze();
            if header.call == KEEP_ALIVE_CALL {
                continue;
            }
            if header.call == 0 {
                if let Some(end) = self.unasked(header.op, &frame) {
                    return Some(end);
                }
            } else if let Some(Waiting { reply, has_id }) = self.waiting.remove(&header.call)
                && let Err(Ok(frame)) = reply.send(Ok(frame))
                && !has_id
            {
                // Who waited has given up, and a permit that came too late is nobody's.
                self.give_back(&frame);
            }
        }
    }

    /// Releases the permits in an answer that nobody takes.
    fn give_back(&mut self, frame: &[u8]) {
        match super::response(frame) {
            Ok(Response::Check(answer)) => self.release(answer.permit),
            Ok(Response::Batch(batch)) => {
                for item in batch.items {
                    if let Ok(Response::Check(answer)) = Response::decode(&item) {
                        self.release(answer.permit);
                    }
                }
            }
            _ => {}
        }
    }

    fn release(&mut self, permit: Option<Permit>) {
        let Some(Permit { id: permit, .. }) = permit else { return };
        let mut frame = Vec::new();
        let release = Release { permit, reply: Reply::None };
        if release.encode(Envelope::Call(UNANSWERED_CALL), &mut frame).is_ok() {
            self.output.extend_from_slice(&frame);
        }
    }

    fn unasked(&mut self, op: Op, frame: &[u8]) -> Option<End> {
        match super::response(frame) {
            Ok(Response::GoAway(goaway)) => {
                self.going_away = true;
                self.shared.tell(&Event::GoAway { message: goaway.message.to_string() });
                None
            }
            Ok(Response::Error(error)) => {
                Some(End::Lost(ServerError::from_wire(&error).to_string()))
            }
            // A frame of a later version that nobody asked for.
            Ok(_) | Err(ClientError::BadAnswer(_)) if op.is_answer() => None,
            _ => Some(End::Lost("the server sent a request".into())),
        }
    }

    fn wake_at(&self) -> Instant {
        let options = &self.shared.options;
        if self.waiting.is_empty() {
            self.last_write_at.max(self.last_read_at) + options.keep_alive
        } else {
            self.last_read_at + options.stalled_after
        }
    }

    fn wake(&mut self) -> Option<End> {
        if Instant::now() < self.wake_at() {
            return None;
        }
        if !self.waiting.is_empty() {
            return Some(End::Lost("the server is silent".into()));
        }
        let ping = Ping { payload: &[] };
        let mut frame = Vec::new();
        if ping.encode(Envelope::Call(KEEP_ALIVE_CALL), &mut frame).is_ok() {
            self.output.extend_from_slice(&frame);
        }
        self.last_write_at = Instant::now();
        None
    }
}
