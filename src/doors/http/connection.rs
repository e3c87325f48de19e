//! One connection, in whichever version of HTTP it speaks, and its deadlines.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::time::{sleep, timeout};

use crate::doors::SharedDesk;
use crate::doors::socket::Socket;
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
    // The library waits for a greeting without end.
    let greeted = Rc::new(Cell::new(0));
    let io = Socket::new(stream, STALL_TIME_MAX, {
        let greeted = Rc::clone(&greeted);
        move |bytes: &[u8]| greeted.set(bytes.len().saturating_add(greeted.get()))
    });
    let unheard = async {
        sleep(GREETING_TIME_MAX).await;
        if greeted.get() >= GREETING_BYTES {
            std::future::pending().await
        }
    };
    let mut served = pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        served = served.as_mut() => {
            if served.is_err() {
                desk.count_dropped();
            }
            return;
        }
        () = unheard => return desk.count_dropped(),
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
