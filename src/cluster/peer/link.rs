//! Links: opaque frames from this node to another, in order, over a connection of their own. A
//! link that breaks loses what it had; whoever sends is told, and sends again in order.

use core::fmt;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::cluster::types::NodeId;
use crate::cluster::wire::{self, Kind, LINK_BYTES_MAX, Purpose};

use super::connection::{Connection, Pulse, SILENT_MAX_DIALED, Turn};
use super::handshake::dial;
use super::seam::Backoff;
use super::{Environment, Inbox, Peer};

/// Frames that wait for one link.
pub const LINK_QUEUE_FRAMES_MAX: usize = 4_096;
/// Their bytes.
pub const LINK_QUEUE_BYTES_MAX: usize = 8 << 20;

/// Why a frame was not taken. It was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// As much waits for the link as may.
    Full,
    /// There is no such connection, now or any more.
    Down,
    /// The frame has more than 1 MiB.
    TooLong,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(
                f,
                "{LINK_QUEUE_FRAMES_MAX} frames or {LINK_QUEUE_BYTES_MAX} bytes wait for the link"
            ),
            Self::Down => f.write_str("the link is down"),
            Self::TooLong => write!(f, "the frame has more than {LINK_BYTES_MAX} bytes"),
        }
    }
}

impl core::error::Error for LinkError {}

/// Which of the two links between this node and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Ours to them.
    Out,
    /// Theirs to us.
    In,
}

/// Frames that wait for one link.
#[derive(Default)]
pub(super) struct Outgoing {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Default)]
struct Queue {
    connection: Option<u64>,
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Outgoing {
    pub(super) fn send(&self, connection: u64, frame: Bytes) -> Result<(), LinkError> {
        if frame.len() > LINK_BYTES_MAX {
            return Err(LinkError::TooLong);
        }
        let mut queue = self.lock();
        if queue.connection != Some(connection) {
            return Err(LinkError::Down);
        }
        let bytes = queue.bytes + frame.len();
        if queue.frames.len() >= LINK_QUEUE_FRAMES_MAX || bytes > LINK_QUEUE_BYTES_MAX {
            return Err(LinkError::Full);
        }
        queue.bytes = bytes;
        queue.frames.push_back(frame);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset(&self, connection: Option<u64>) {
        *self.lock() = Queue { connection, ..Queue::default() };
    }

    /// Moves frames to the connection until it has enough; whether some are left.
    fn fill(&self, connection: &mut Connection) -> io::Result<bool> {
        let mut queue = self.lock();
        while !connection.is_full() {
            let Some(frame) = queue.frames.pop_front() else { return Ok(false) };
            queue.bytes -= frame.len();
            connection.put(|out| wire::put_link(&frame, out))?;
        }
        Ok(!queue.frames.is_empty())
    }
}

/// A connection of a link, told of when it begins and, however it ends, when it ends.
pub(super) struct Known {
    inbox: Arc<dyn Inbox>,
    peer: NodeId,
    way: Way,
    /// Its number.
    pub(super) connection: u64,
}

impl Known {
    pub(super) fn new(environment: &Environment, peer: NodeId, way: Way) -> Self {
        let connection = environment.connections.fetch_add(1, Relaxed);
        let inbox = Arc::clone(&environment.inbox);
        Self { inbox, peer, way, connection }
    }

    pub(super) fn begins(&self) {
        tracing::debug!(peer = self.peer, way = ?self.way, connection = self.connection, "link up");
        self.inbox.connected(self.peer, self.way, self.connection);
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        tracing::debug!(peer = self.peer, way = ?self.way, connection = self.connection, "link down");
        self.inbox.disconnected(self.peer, self.way, self.connection);
    }
}

/// Keeps the link to `peer` up.
pub(super) async fn run(environment: Arc<Environment>, peer: Arc<Peer>) {
    let mut backoff = Backoff::new();
    loop {
        let (local, net) = (&environment.local, &*environment.net);
        let (address, counters) = (peer.address(), &environment.counters);
        match dial(net, local, counters, peer.node, &address, Purpose::Link).await {
            Ok(mut connection) => {
                connection.expect(&[Kind::Ping]);
                let known = Known::new(&environment, peer.node, Way::Out);
                let down = Down(&peer.link);
                peer.link.reset(Some(known.connection));
                known.begins();
                if let Err(error) = carry(&mut connection, &peer.link, &mut backoff).await {
                    tracing::debug!(peer = peer.node, %error, "the link is gone");
                }
                drop(down);
            }
            Err(error) => {
                tracing::debug!(peer = peer.node, address, %error, "cannot be reached");
            }
        }
        backoff.wait().await;
    }
}

/// Takes the link down, also if its task is ended.
struct Down<'a>(&'a Outgoing);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.0.reset(None);
    }
}

/// Carries frames until the connection breaks. One that lasted resets the backoff.
async fn carry(
    connection: &mut Connection,
    link: &Outgoing,
    backoff: &mut Backoff,
) -> io::Result<()> {
    let mut pulse = Pulse::new();
    loop {
        let is_more = link.fill(connection)?;
        select! {
            // Room for more, or a sign of life.
            turn = connection.turn(is_more) => match turn? {
                Turn::Room | Turn::Frame(_) => {}
            },
            () = link.wake.notified(), if !is_more => {}
            () = pulse.due() => {
                pulse.beat(connection, SILENT_MAX_DIALED)?;
                backoff.reset();
            }
        }
    }
}
