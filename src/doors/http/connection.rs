//! One connection, in whichever version of HTTP it speaks, and its deadlines.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

use crate::doors::SharedDesk;
use crate::doors::threads::{Accepted, Serve};

use super::{
    CLOSE_TIME_MAX, CONNECTION_TIME_MAX, Forwarded, GREETING_TIME_MAX, HEAD_BYTES_MAX,
    HEAD_TIME_MAX, HEADERS_MAX, STALL_TIME_MAX, STREAMS_MAX, routes,
};

/// What HTTP/2 begins with; who has sent as much has said which version it speaks.
const GREETING_BYTES: usize = 24;

/// How often HTTP/2 asks a quiet client whether it is there, and how long it has to say so.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIME_MAX: Duration = Duration::from_secs(10);

/// How a thread serves its connections.
pub(super) fn serve(desk: Arc<SharedDesk>, forwarded: Arc<Forwarded>) -> Serve {
    Box::new(move |accepted| {
        Box::pin(connection(accepted, Arc::clone(&desk), Arc::clone(&forwarded)))
    })
}

async fn connection(accepted: Accepted, desk: Arc<SharedDesk>, forwarded: Arc<Forwarded>) {
    let Accepted { stream, peer, mut stopped } = accepted;
    let mut builder = auto::Builder::new(OnThisThread);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIME_MAX);
    let service = service_fn(|request| {
        let (desk, forwarded) = (Arc::clone(&desk), Arc::clone(&forwarded));
        async move { Ok::<_, Infallible>(routes::answer(&desk, &forwarded, peer, request).await) }
    });
    let mut served = pin!(builder.serve_connection(Io::new(stream), service));
    tokio::select! {
        served = served.as_mut() => {
            if served.is_err() {
                desk.count_dropped();
            }
            return;
        }
        () = sleep(CONNECTION_TIME_MAX) => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = timeout(CLOSE_TIME_MAX, served).await;
}

/// Requests of HTTP/2 run beside one another on their connection's thread.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future<Output = ()> + 'static> Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A socket whose other end must greet and must take what it is sent; the library waits for both
/// without end.
struct Io {
    stream: TokioIo<TcpStream>,
    /// Bytes of the greeting that have come.
    greeted: usize,
    greeting: Option<Pin<Box<Sleep>>>,
    stall: Option<Pin<Box<Sleep>>>,
}

impl Io {
    fn new(stream: TcpStream) -> Self {
        let stream = TokioIo::new(stream);
        Self { stream, greeted: 0, greeting: None, stall: None }
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

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let io = &mut *self;
        if io.greeted >= GREETING_BYTES {
            return Pin::new(&mut io.stream).poll_read(context, buffer);
        }
        let mut bytes = [0; GREETING_BYTES];
        let room = buffer.remaining().min(bytes.len());
        let mut greeting = tokio::io::ReadBuf::new(&mut bytes[..room]);
        let stream = Pin::new(io.stream.inner_mut());
        match tokio::io::AsyncRead::poll_read(stream, context, &mut greeting) {
            Poll::Ready(read) => {
                read?;
                io.greeted += greeting.filled().len();
                if io.greeted >= GREETING_BYTES {
                    io.greeting = None;
                }
                buffer.put_slice(greeting.filled());
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                let wait = io.greeting.get_or_insert_with(|| Box::pin(sleep(GREETING_TIME_MAX)));
                wait.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl Write for Io {
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

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(polled, context)
    }
}
