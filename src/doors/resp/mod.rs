//! The door for Redis clients: `CL.THROTTLE` as redis-cell has it, checks of the policy, and what
//! clients say when they connect. `RESP.md` beside this file is its reference.
//!
//! `parse` and `session` are pure: bytes to commands, commands to items of a batch, outcomes to
//! bytes. `connection` moves the bytes.

mod parse;

mod reply;

mod throttle;

mod command;

mod session;

mod connection;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::cells::Protocol;

use super::Instance;
use super::threads::{Door, Listener};

use session::Ground;

/// The most bytes of one command, and of the words of an inline one.
pub const COMMAND_BYTES_MAX: usize = 32 * 1024;

/// The most bytes of one argument.
pub const ARGUMENT_BYTES_MAX: usize = 16 * 1024;

/// The most arguments of one command, its name among them.
pub const ARGUMENTS_MAX: usize = 256;

/// The most bytes of an inline limit's key; the binary protocol's maximum.
pub const KEY_BYTES_MAX: usize = 512;

/// The most commands that are answered by one write.
pub const COMMANDS_MAX: usize = 1024;

/// The most checks of the policy that are answered by one write: their answers may be long.
pub const CHECKS_MAX: usize = 16;

/// Answers that are made at once come to an end here, and the next commands wait.
pub const REPLY_BYTES_MAX: usize = 64 * 1024;

/// How often a connection looks at what it waits for.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long the rest of a command may take, to within [`LOOK_EVERY`].
pub const COMMAND_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a connection may say nothing, to within [`LOOK_EVERY`].
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(3600);

/// How long a client may take no byte of what it is sent.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(10);

/// What Redis says to a connection that is one too many.
const REFUSAL: &[u8] = b"-ERR max number of clients reached\r\n";

/// Takes the address and starts `count` threads. With a `password`, clients must give it.
/// `grace` is how long connections have to end once the door closes.
///
/// # Errors
/// The operating system's: mostly that the address is taken.
pub fn open(
    address: SocketAddr,
    count: NonZeroUsize,
    grace: Duration,
    password: Option<&str>,
    instance: &Arc<Instance>,
) -> io::Result<Listener> {
    let ground = Arc::new(Ground::new(Arc::clone(instance), password));
    let serve = move |desk| connection::serve(desk, Arc::clone(&ground));
    let door = Door { protocol: Protocol::Resp, refusal: REFUSAL, serve: Arc::new(serve) };
    let connections = &instance.resp_connections;
    Listener::open(&door, address, count, grace, instance, connections)
}
