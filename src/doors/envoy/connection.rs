//! One connection of HTTP/2: its streams, its deadlines, and what becomes of answers that nobody
//! hears.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

use crate::doors::SharedDesk;
use crate::doors::threads::{Accepted, Serve};

use super::grpc::{self, Fault, PREFIX_BYTES};
use super::resets::{Frames, Grants};
use super::service::{self, Reply};
use super::{
    BODY_TIME_MAX, BUFFERED_BYTES_MAX, CALLS_MAX, CLOSE_TIME_MAX, GREETING_TIME_MAX,
    HEAD_BYTES_MAX, MESSAGE_BYTES_MAX, PING_EVERY, PING_TIME_MAX, STALL_TIME_MAX, STREAMS_MAX,
};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

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
}

async fn connection(accepted: Accepted, desk: Arc<SharedDesk>, age: Duration) {
    let Accepted { stream, mut stopped, .. } = accepted;
    let shared = Rc::new(Shared { desk, grants: RefCell::default(), calls: Cell::new(0) });
    let io = Io::new(stream, Rc::clone(&shared));
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_window_size((MESSAGE_BYTES_MAX + PREFIX_BYTES) as u32)
        .initial_connection_window_size(BUFFERED_BYTES_MAX)
        .max_concurrent_reset_streams(STREAMS_MAX as usize)
        .max_pending_accept_reset_streams(STREAMS_MAX as usize);
    let mut connection = match timeout(GREETING_TIME_MAX, builder.handshake(io)).await {
        Ok(Ok(connection)) => connection,
        _ => return shared.desk.count_dropped(),
    };
    let pings = connection.ping_pong();
    let mut away = pin!(away(pings));
    let mut aged = pin!(sleep(age));
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => begin(&shared, request, respond),
                Some(Err(_)) => return shared.desk.count_dropped(),
                None => return,
            },
            () = &mut away => return shared.desk.count_dropped(),
            () = &mut aged => break,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    connection.graceful_shutdown();
    let rest = async {
        while let Some(Ok((request, respond))) = connection.accept().await {
            begin(&shared, request, respond);
        }
    };
    let _ = timeout(CLOSE_TIME_MAX, rest).await;
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
    let answered = match timeout(BODY_TIME_MAX, read_body(body)).await {
        Ok(Ok(body)) => service::answer(&shared.desk, head.uri.path(), &body).await,
        Ok(Err(Unread::Gone)) => return,
        Ok(Err(Unread::TooLong(found))) => {
            shared.desk.count_requests(1, 1);
            Err(grpc::too_long(found))
        }
        Err(_) => {
            shared.desk.count_requests(1, 1);
            Err(Fault::invalid(format!("the message did not come within {BODY_TIME_MAX:?}")))
        }
    };
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
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    match answered {
        Ok(reply) => {
            let mut stream = respond.send_response(response, false)?;
            stream.send_data(Bytes::from(reply.body), false)?;
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
            stream.send_trailers(trailers)
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

/// A socket that sees which streams are reset, and whose other end must take what it is sent; the
/// library waits for that without end.
struct Io {
    stream: TcpStream,
    frames: Frames,
    shared: Rc<Shared>,
    stall: Option<Pin<Box<Sleep>>>,
}

impl Io {
    fn new(stream: TcpStream, shared: Rc<Shared>) -> Self {
        Self { stream, frames: Frames::new(), shared, stall: None }
    }

    fn watch<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stall = None;
            return polled;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(STALL_TIME_MAX)));
        stall.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, frames, shared, .. } = &mut *self;
        let before = buffer.filled().len();
        let polled = Pin::new(stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = polled {
            frames.read(&buffer.filled()[before..], |stream| {
                let Some(permit) = shared.grants.borrow_mut().reset(stream) else { return };
                let shared = Rc::clone(shared);
                tokio::task::spawn_local(async move {
                    service::release(&shared.desk, permit).await;
                });
            });
        }
        polled
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(polled, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
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
