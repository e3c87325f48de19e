//! One connection of HTTP/2: its streams, its deadlines, and what becomes of answers that nobody
//! hears.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::doors::SharedDesk;
use crate::doors::socket::Socket;
use crate::doors::threads::{Accepted, Serve};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::time::Nanos;

use super::grpc::{self, Code, Fault, PREFIX_BYTES};
use super::health;
use super::resets::{Frames, Grants};
use super::service::{self, Reply};
use super::{
    BODY_TIME_MAX, BUFFERED_BYTES_MAX, CALLS_MAX, CLOSE_TIME_MAX, GREETING_TIME_MAX,
    HEAD_BYTES_MAX, MESSAGE_BYTES_MAX, PING_EVERY, PING_TIME_MAX, STALL_TIME_MAX, STREAMS_MAX,
    WATCHES_MAX,
};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Numbers the connections of a process.
static IDS: AtomicU64 = AtomicU64::new(1);

/// How a thread serves its connections, each for `age` and a tenth of it more or less.
pub(super) fn serve(desk: Arc<SharedDesk>, age: Duration) -> Serve {
    let spread = RandomState::new();
    Box::new(move |accepted| {
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        let age = aged(age, spread.hash_one(id));
        Box::pin(connection(accepted, Arc::clone(&desk), age))
    })
}

/// `age`, and up to a tenth of it more or less, so that connections that came together do not come
/// again together.
fn aged(age: Duration, random: u64) -> Duration {
    let spread = age / 5;
    let part = (random >> 32) as u32;
    let nanos = (spread.as_nanos() * u128::from(part)) >> 32;
    age - spread / 2 + Duration::from_nanos(nanos as u64)
}

/// What the calls of a connection share.
struct Shared {
    desk: Arc<SharedDesk>,
    grants: RefCell<Grants>,
    calls: Cell<usize>,
    /// Calls that watch this node's health.
    watches: Cell<usize>,
    /// Becomes true when the connection is to end.
    closing: watch::Sender<bool>,
}

async fn connection(accepted: Accepted, desk: Arc<SharedDesk>, age: Duration) {
    let Accepted { stream, mut stopped, .. } = accepted;
    let shared = Rc::new(Shared {
        desk,
        grants: RefCell::default(),
        calls: Cell::new(0),
        watches: Cell::new(0),
        closing: watch::Sender::new(false),
    });
    let io = shown(stream, &shared);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_window_size((MESSAGE_BYTES_MAX + PREFIX_BYTES) as u32)
        .initial_connection_window_size(BUFFERED_BYTES_MAX)
        .max_concurrent_reset_streams(STREAMS_MAX as usize)
        .max_pending_accept_reset_streams(STREAMS_MAX as usize);
    let Ok(Ok(mut connection)) = timeout(GREETING_TIME_MAX, builder.handshake(io)).await else {
        return shared.desk.count_dropped();
    };
    let stopped = async { drop(stopped.wait_for(|stopped| *stopped).await) };
    if converse(&shared, &mut connection, age, stopped).await {
        connection.graceful_shutdown();
        shared.closing.send_replace(true);
        let rest = async {
            while let Some(Ok((request, respond))) = connection.accept().await {
                begin(&shared, request, respond);
            }
        };
        let _ = timeout(CLOSE_TIME_MAX, rest).await;
    }
    shared.closing.send_replace(true);
}

/// Begins calls as they come. Whether the connection is still there when they may come no more.
async fn converse<S>(
    shared: &Rc<Shared>,
    connection: &mut Connection<Socket<S>, Bytes>,
    age: Duration,
    stopped: impl Future<Output = ()>,
) -> bool
where
    S: FnMut(&[u8]) + Unpin,
{
    let pings = connection.ping_pong();
    let mut away = pin!(away(pings));
    let mut aged = pin!(sleep(age));
    let mut stopped = pin!(stopped);
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => begin(shared, request, respond),
                Some(Err(_)) => break,
                None => return false,
            },
            () = &mut away => break,
            () = &mut aged => return true,
            () = &mut stopped => return true,
        }
    }
    shared.desk.count_dropped();
    false
}

/// Comes to its end when the other end is not there any more.
async fn away(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(PING_EVERY).await;
        if !matches!(timeout(PING_TIME_MAX, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// Begins a call, beside the others of its connection and on the same thread.
fn begin(shared: &Rc<Shared>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let calls = shared.calls.get();
    if calls >= CALLS_MAX {
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    }
    shared.calls.set(calls + 1);
    let shared = Rc::clone(shared);
    tokio::task::spawn_local(async move {
        call(&shared, request, respond).await;
        shared.calls.set(shared.calls.get() - 1);
    });
}

/// A call runs to its end whether or not its client waits: what it was given must be given back.
async fn call(shared: &Rc<Shared>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let stream = respond.stream_id().as_u32();
    let (head, body) = request.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let is_grpc = content_type.starts_with(b"application/grpc");
    if head.method != Method::POST || !is_grpc {
        let status = match is_grpc {
            true => StatusCode::METHOD_NOT_ALLOWED,
            false => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        };
        let mut response = Response::new(());
        *response.status_mut() = status;
        shared.desk.count_requests(1, 1);
        let _ = respond.send_response(response, true);
        return;
    }
    if head.uri.path() == health::WATCH {
        // In a box, so that each check does not carry room for it.
        return Box::pin(watch(shared, body, respond)).await;
    }
    let Some(answered) = answer(shared, &head, body).await else { return };
    shared.desk.count_requests(1, answered.is_err().into());
    let permit = answered.as_ref().ok().and_then(|reply| reply.permit);
    let is_heard = match permit {
        Some(permit) => shared.grants.borrow_mut().give(stream, permit),
        None => true,
    };
    if is_heard && send(&mut respond, answered).is_ok() {
        return;
    }
    if let Some(permit) = permit {
        let _ = shared.grants.borrow_mut().reset(stream);
        service::release(&shared.desk, permit).await;
    }
}

/// What a call is answered; `None`: its client has given it up.
async fn answer(
    shared: &Rc<Shared>,
    head: &request::Parts,
    body: RecvStream,
) -> Option<Result<Reply, Fault>> {
    let wait = head.headers.get(GRPC_TIMEOUT).map(|value| grpc::wait(value.as_bytes()));
    let wait = match wait.transpose() {
        Ok(wait) => wait,
        Err(fault) => return Some(Err(fault)),
    };
    let late_at = wait.map(|wait| shared.desk.now().after(wait));
    match body_within(wait, body).await {
        Ok(body) => Some(service::answer(&shared.desk, head.uri.path(), &body, late_at).await),
        Err(fault) => fault.map(Err),
    }
}

/// Tells whether this node serves, and again whenever that changes.
async fn watch(shared: &Rc<Shared>, body: RecvStream, mut respond: SendResponse<Bytes>) {
    let service = match body_within(None, body).await {
        Ok(body) => health::service(&body),
        Err(Some(fault)) => Err(fault),
        Err(None) => return,
    };
    let watches = shared.watches.get();
    let service = service.and_then(|service| match watches < WATCHES_MAX {
        true => Ok(service),
        false => {
            let message =
                format!("the connection has {watches} watches, allowed are {WATCHES_MAX}");
            Err(Fault::new(Code::ResourceExhausted, message))
        }
    });
    shared.desk.count_requests(1, service.is_err().into());
    let service = match service {
        Ok(service) => service,
        Err(fault) => return drop(send(&mut respond, Err(fault))),
    };
    shared.watches.set(watches + 1);
    if let Ok(mut stream) = respond.send_response(grpc_response(), false)
        && health::watch(&shared.desk, &service, &mut stream, shared.closing.subscribe())
            .await
            .is_ok()
    {
        let _ = stream.send_trailers(trailers(HeaderValue::from(Code::Unavailable as u16)));
    }
    shared.watches.set(shared.watches.get() - 1);
}

/// The body of a call whose client waits for so long. No fault: it does not wait any more.
async fn body_within(wait: Option<Nanos>, body: RecvStream) -> Result<Bytes, Option<Fault>> {
    let wait = wait.map(|wait| Duration::from_nanos(wait.get()));
    let time_max = wait.map_or(BODY_TIME_MAX, |wait| wait.min(BODY_TIME_MAX));
    match timeout(time_max, read_body(body)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(Unread::Gone)) => Err(None),
        Ok(Err(Unread::TooLong(found))) => Err(Some(grpc::too_long(found))),
        Err(_) if time_max < BODY_TIME_MAX => Err(Some(Fault::late())),
        Err(_) => {
            let message = format!("the message did not come within {BODY_TIME_MAX:?}");
            Err(Some(Fault::invalid(message)))
        }
    }
}

/// Why there is no body.
enum Unread {
    /// The client has given the call up.
    Gone,
    /// It has more bytes than a message may.
    TooLong(usize),
}

async fn read_body(mut body: RecvStream) -> Result<Bytes, Unread> {
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    while let Some(data) = body.data().await {
        let data = data.map_err(|_| Unread::Gone)?;
        let length = first.len() + more.len() + data.len();
        if length > PREFIX_BYTES + MESSAGE_BYTES_MAX {
            return Err(Unread::TooLong(length - PREFIX_BYTES));
        }
        // Nearly every message comes in one piece.
        if first.is_empty() && more.is_empty() {
            first = data;
            continue;
        }
        more.extend_from_slice(&core::mem::take(&mut first));
        more.extend_from_slice(&data);
    }
    // What was read counts against the connection until here, so that bodies which never end
    // cannot fill the memory.
    let length = first.len() + more.len();
    let _ = body.flow_control().release_capacity(length);
    Ok(if more.is_empty() { first } else { more.freeze() })
}

fn send(
    respond: &mut SendResponse<Bytes>,
    answered: Result<Reply, Fault>,
) -> Result<(), h2::Error> {
    let mut response = grpc_response();
    match answered {
        Ok(reply) => {
            let mut stream = respond.send_response(response, false)?;
            stream.send_data(Bytes::from(reply.body), false)?;
            stream.send_trailers(trailers(HeaderValue::from_static("0")))
        }
        Err(fault) => {
            let headers = response.headers_mut();
            headers.insert(GRPC_STATUS, HeaderValue::from(fault.code as u16));
            // Visible ASCII is what a header may hold.
            if let Ok(message) = HeaderValue::from_str(&fault.header()) {
                headers.insert(GRPC_MESSAGE, message);
            }
            respond.send_response(response, true).map(drop)
        }
    }
}

fn grpc_response() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

fn trailers(status: HeaderValue) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, status);
    trailers
}

/// A connection's socket, of which is seen what streams are reset.
fn shown(stream: TcpStream, shared: &Rc<Shared>) -> Socket<impl FnMut(&[u8]) + Unpin + use<>> {
    let (mut frames, shared) = (Frames::new(), Rc::clone(shared));
    Socket::new(stream, STALL_TIME_MAX, move |bytes| {
        frames.read(bytes, |stream| {
            if planted(Mutant::ResetsUnseen) {
                return;
            }
            let Some(permit) = shared.grants.borrow_mut().reset(stream) else { return };
            let shared = Rc::clone(&shared);
            tokio::task::spawn_local(async move {
                service::release(&shared.desk, permit).await;
            });
        });
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ages_differ_by_a_tenth_at_most(millis in 1_u64..10_000_000, random: u64) {
            let age = Duration::from_millis(millis);
            let found = aged(age, random);
            prop_assert!(age * 9 / 10 <= found && found <= age * 11 / 10, "{found:?}");
        }
    }

    #[test]
    fn ages_are_spread() {
        let age = Duration::from_secs(1800);
        assert_eq!(aged(age, 0), age * 9 / 10);
        assert!(aged(age, u64::MAX) > age * 109 / 100);
    }
}
