//! TRANSPORT. Between this node and its peers: what Raft sends, links, and questions.
//!
//! Each purpose has a connection of its own, so that nothing long delays what is urgent: appends,
//! heartbeats, snapshots, control (votes, transfers, questions) and a link each way. Who needs a
//! connection dials; a new one for the same purpose replaces the old. Bytes are `wire`'s; whoever
//! wants to send knows nothing of connections but, for links, their numbers.
//!
//! Nothing here decides. No byte of a peer panics or sizes a buffer beyond the maxima of `wire`,
//! and everything that waits has a maximum and a time.

mod connection;
mod control;
mod counters;
mod handshake;
mod link;
mod network;
mod seam;
mod server;
mod snapshots;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;

use super::types::{Member, NodeId};
use super::wire::{ASK_BYTES_MAX, numbered};

pub use counters::Counters;
pub use handshake::{Local, NO_CLUSTER};
pub use link::{LINK_QUEUE_BYTES_MAX, LINK_QUEUE_FRAMES_MAX, LinkError, Way};
pub use network::{Network, Networks};
pub use seam::{BoxFuture, Listen, Net, Stream, Tcp, Wire};
pub use snapshots::{Reading, Receiving, Snapshots};

use control::{Call, Control};
use link::Outgoing;

/// Most peers that are known at a time.
pub const PEERS_MAX: usize = 32;
/// Time in which a question is answered, or not.
pub const ASK_TIME_MAX: Duration = Duration::from_millis(200);

/// What peers send, handed to whoever it is for. Calls come from the event loop and must not wait.
pub trait Inbox: Send + Sync + 'static {
    /// A frame came from `from`, over its link's connection of that number: in the order in which it
    /// was sent, each at most once. Until the future that it may return is done, no more is read.
    fn received(
        &self,
        from: NodeId,
        connection: u64,
        frame: Bytes,
    ) -> Option<BoxFuture<'static, ()>>;

    /// A link is up. With [`Way::Out`], `connection` is what [`Peers::send`] wants from now on; what was
    /// sent over an earlier one may not have arrived. Numbers grow.
    fn connected(&self, peer: NodeId, way: Way, connection: u64);

    /// That connection of a link is down, and nothing comes or goes over it any more.
    fn disconnected(&self, peer: NodeId, way: Way, connection: u64);

    /// A peer asks; the reply has at most 16 KiB.
    fn asked(&self, from: NodeId, question: Bytes) -> Bytes;

    /// A leader's heartbeat was accepted. It has committed its log up to this index.
    fn heard(&self, _committed: u64) {}

    /// A node of that cluster greets this node, which belongs to none: it joins. Notes it on disk; may
    /// wait, and is called from a thread where it may.
    ///
    /// # Errors
    /// If it cannot be noted: the node then does not join.
    fn joined(&self, cluster: [u8; 16], from: NodeId) -> io::Result<()>;
}

/// The transport of one node. Clones are the same one; with the last, all that it dialed is closed.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

struct Shared {
    environment: Arc<Environment>,
    known: RwLock<BTreeMap<NodeId, Known>>,
}

/// What all parts need.
struct Environment {
    net: Arc<dyn Net>,
    local: Local,
    snapshots: Arc<dyn Snapshots>,
    inbox: Arc<dyn Inbox>,
    counters: Arc<Counters>,
    /// Next number of a link's connection.
    connections: AtomicU64,
}

/// A peer.
struct Peer {
    node: NodeId,
    address: RwLock<String>,
    control: Control,
    link: Outgoing,
}

impl Peer {
    fn address(&self) -> String {
        self.address.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A peer and what runs for it.
struct Known {
    peer: Arc<Peer>,
    tasks: [AbortHandle; 2],
}

impl Drop for Known {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Peers {
    /// The transport of the node that `local` says, which so far knows no peer.
    pub fn new(
        net: Arc<dyn Net>,
        local: Local,
        snapshots: Arc<dyn Snapshots>,
        inbox: Arc<dyn Inbox>,
    ) -> Self {
        let (counters, connections) = (Arc::default(), AtomicU64::new(1));
        let environment = Environment { net, local, snapshots, inbox, counters, connections };
        Self(Arc::new(Shared { environment: Arc::new(environment), known: RwLock::default() }))
    }

    /// Who this node is.
    pub fn local(&self) -> &Local {
        &self.0.environment.local
    }

    /// Counts, to be read at any time.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.environment.counters
    }

    /// What Raft makes its connections with.
    pub fn networks(&self) -> Networks {
        Networks(self.clone())
    }

    /// Keeps a link to `node` from here on, and knows where to reach it. If it was known by another
    /// address, the new one counts from the next connection on. This node itself is nobody's peer.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// If [`PEERS_MAX`] others are known.
    pub fn know(&self, node: NodeId, member: &Member) -> io::Result<()> {
        if node == self.local().node {
            return Ok(());
        }
        self.peer(node, member).map(drop)
    }

    /// Closes all that was dialed to nodes that belong to the cluster no more.
    pub fn forget_all_but(&self, mut is_member: impl FnMut(NodeId) -> bool) {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        let all_are_members = known.keys().all(|node| is_member(*node));
        drop(known);
        if !all_are_members {
            let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
            known.retain(|node, _| is_member(*node));
        }
    }

    /// Queues a frame of at most 1 MiB for `node`, over the connection that
    /// [`connected`](Inbox::connected) named. Frames of one connection arrive in the order of these
    /// calls, each at most once, without a gap up to where the connection breaks.
    ///
    /// # Errors
    /// If the frame was not queued.
    pub fn send(&self, node: NodeId, connection: u64, frame: Bytes) -> Result<(), LinkError> {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&node).ok_or(LinkError::Down)?.peer.link.send(connection, frame)
    }

    /// Asks `node` a question of at most 16 KiB, and has its reply within [`ASK_TIME_MAX`].
    ///
    /// # Errors
    /// If there is no reply: the node is not known, cannot be reached, or does not answer in time.
    pub async fn ask(&self, node: NodeId, question: Bytes) -> io::Result<Bytes> {
        if question.len() > ASK_BYTES_MAX {
            let found = question.len();
            let text =
                format!("the question has {found} bytes, at most {ASK_BYTES_MAX} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let peer = {
            let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
            known.get(&node).map(|known| Arc::clone(&known.peer))
        };
        let Some(peer) = peer else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no peer is node {node}")));
        };
        let answer = peer.control.call(Call::Ask(question), ASK_TIME_MAX).await?;
        Ok(numbered(answer.body)?.1)
    }

    /// The peer, which is known from here on.
    fn peer(&self, node: NodeId, member: &Member) -> io::Result<Arc<Peer>> {
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        let count = known.len();
        match known.entry(node) {
            Entry::Occupied(known) => {
                let peer = &known.get().peer;
                let mut address = peer.address.write().unwrap_or_else(PoisonError::into_inner);
                if *address != member.peer {
                    address.clone_from(&member.peer);
                }
                drop(address);
                Ok(Arc::clone(peer))
            }
            Entry::Vacant(_) if count >= PEERS_MAX => {
                let text = format!("{count} peers are known, which is the most allowed");
                Err(io::Error::new(io::ErrorKind::QuotaExceeded, text))
            }
            Entry::Vacant(place) => {
                let (control, calls) = Control::new();
                let address = RwLock::new(member.peer.clone());
                let peer = Arc::new(Peer { node, address, control, link: Outgoing::default() });
                let environment = &self.0.environment;
                let control = control::run(Arc::clone(environment), Arc::clone(&peer), calls);
                let link = link::run(Arc::clone(environment), Arc::clone(&peer));
                let tasks =
                    [tokio::spawn(control), tokio::spawn(link)].map(|task| task.abort_handle());
                place.insert(Known { peer: Arc::clone(&peer), tasks });
                Ok(peer)
            }
        }
    }
}
