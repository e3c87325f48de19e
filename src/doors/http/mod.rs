//! The HTTP door: checks as JSON, and forward-auth for proxies that ask before they pass a request
//! on. `openapi.json` beside this file says every path, field and status.
//!
//! | path | answers |
//! | --- | --- |
//! | `POST /v1/check`, `/v1/peek` | a [`Report`](super::report::Report), as the admin door does |
//! | `POST /v1/batch` | the reports of up to 64 checks, decided at one moment |
//! | `POST /v1/adjust` | how many counters were amended |
//! | `POST /v1/release` | the units that permits held |
//! | any `/v1/authorize/API` | 200, or the policy's status, headers and body, to pass on as they are |
//!
//! `forwarded` is pure: headers to a request. Alone knows HTTP, with the admin door.

mod forwarded;

mod networks;

mod routes;

mod connection;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::cells::Protocol;

use super::Instance;
use super::threads::{Door, Listener};

pub use forwarded::Forwarded;

/// The most bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The most bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;

/// The most headers of a request: proxies hand on all that they were given.
pub const HEADERS_MAX: usize = 128;

/// How long a connection may be idle, and how long the head of a request may take.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(120);

/// How long the first bytes of a connection may take.
pub const GREETING_TIME_MAX: Duration = Duration::from_secs(10);

/// How long the body of a request may take.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a client may take no byte of what it is sent.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a connection lives; the request in progress then ends it.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(3600);

/// How long the request in progress has when its connection is to end.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// The most requests at one time on one connection of HTTP/2.
pub const STREAMS_MAX: u32 = 128;

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\
                         connection: close\r\n\r\n";

/// Takes the address and starts `count` threads. `grace` is how long connections have to end
/// once the door closes.
///
/// # Errors
/// The operating system's: mostly that the address is taken.
pub fn open(
    address: SocketAddr,
    count: NonZeroUsize,
    grace: Duration,
    forwarded: Forwarded,
    instance: &Arc<Instance>,
) -> io::Result<Listener> {
    let forwarded = Arc::new(forwarded);
    let serve = move |desk| connection::serve(desk, Arc::clone(&forwarded));
    let door = Door { protocol: Protocol::Http, refusal: REFUSAL, serve: Arc::new(serve) };
    let connections = &instance.http_connections;
    Listener::open(&door, address, count, grace, instance, connections)
}
