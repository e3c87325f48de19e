//! Envoy's rate limit service v3 over gRPC, for Envoy, Istio and whoever else speaks it. A domain
//! is an API, a descriptor one of its requests, and all descriptors of a call are one check.
//! `MIGRATE.md` beside this file is for those who come from another rate limit service.
//!
//! | method | answers |
//! | --- | --- |
//! | `RateLimitService/ShouldRateLimit` | statuses in the descriptors' order, the policy's headers and body |
//! | `grpc.health.v1.Health/Check` | whether this node serves |
//! | `grpc.health.v1.Health/Watch` | the same, and again whenever it changes |
//!
//! Alone knows Protobuf, and HTTP/2 without a server around it: the number of a stream and its
//! reset decide what becomes of a permit. `request`, `answer`, `grpc` and `resets` are pure.

mod proto;

mod grpc;

mod request;

mod answer;

mod service;

mod health;

mod resets;

mod connection;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::cells::Protocol;

use super::Instance;
use super::threads::{Door, Listener};

/// The most bytes of a message. All headers that Envoy takes from a client, 60 KiB, fit four times.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// The most descriptors of a call.
pub const DESCRIPTORS_MAX: usize = 32;

/// The most entries of a descriptor.
pub const ENTRIES_MAX: usize = 64;

/// The most bytes of an entry's key.
pub const KEY_BYTES_MAX: usize = 256;

/// The most bytes of a call's head.
pub const HEAD_BYTES_MAX: u32 = 16 * 1024;

/// The most bytes of bodies that wait on one connection.
pub const BUFFERED_BYTES_MAX: u32 = 1024 * 1024;

/// The most calls at one time on one connection, as its client is told.
pub const STREAMS_MAX: u32 = 1024;

/// The most calls in progress on one connection, those that its client gave up included.
pub const CALLS_MAX: usize = 2 * STREAMS_MAX as usize;

/// The most calls of one connection that watch this node's health: each waits for as long as its
/// client likes.
pub const WATCHES_MAX: usize = 16;

/// How often a call that watches looks for a change.
pub const WATCH_EVERY: Duration = Duration::from_millis(250);

/// The most bytes of what a caller is told that is wrong.
pub const MESSAGE_TEXT_BYTES_MAX: usize = 1024;

/// The most characters of a found value that an error repeats.
const FOUND_CHARS_MAX: usize = 64;

/// How long the first bytes of a connection may take.
pub const GREETING_TIME_MAX: Duration = Duration::from_secs(10);

/// How long the body of a call may take.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a client may take no byte of what it is sent.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a connection lives, and a tenth more or less: proxies keep theirs for good, and would
/// never find a node that was added.
pub const CONNECTION_TIME: Duration = Duration::from_secs(30 * 60);

/// How long calls in progress have when their connection is to end.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// How often a client is asked whether it is there, and how long it has to say so.
pub const PING_EVERY: Duration = Duration::from_secs(30);
/// See [`PING_EVERY`].
pub const PING_TIME_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(MESSAGE_BYTES_MAX < BUFFERED_BYTES_MAX as usize);

/// What HTTP/2 says to a connection that is one too many: empty settings, then GOAWAY with
/// ENHANCE_YOUR_CALM.
const REFUSAL: &[u8] = &[
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11, // GOAWAY
];

/// Takes the address and starts `count` threads. `grace` is how long connections have to end
/// once the door closes.
///
/// # Errors
/// The operating system's: mostly that the address is taken.
pub fn open(
    address: SocketAddr,
    count: NonZeroUsize,
    grace: Duration,
    instance: &Arc<Instance>,
) -> io::Result<Listener> {
    let serve = |desk| connection::serve(desk, CONNECTION_TIME);
    let door = Door { protocol: Protocol::Envoy, refusal: REFUSAL, serve: Arc::new(serve) };
    let connections = &instance.envoy_connections;
    Listener::open(&door, address, count, grace, instance, connections)
}
