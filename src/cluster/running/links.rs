//! Between the batcher and the peers: frames and questions in, frames out.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::cluster::batcher::{Inbox, Links};
use crate::cluster::counts::Counts;
use crate::cluster::host::{Host, Readings};
use crate::cluster::origin::Origin;
use crate::cluster::peer::{self, BoxFuture, Peers, Way};
use crate::cluster::types::NodeId;

use super::standing::{ASK_STANDING, Standing, standing};

/// Frames and questions of peers, on their way to the batcher.
pub(super) struct Desk {
    pub(super) inbox: Arc<Inbox>,
    pub(super) origin: Arc<Origin>,
    pub(super) counts: Arc<Counts>,
    pub(super) host: Arc<dyn Host>,
    pub(super) readings: Arc<dyn Readings>,
    pub(super) connections: Arc<Mutex<HashMap<NodeId, u64>>>,
}

impl Desk {
    fn standing(&self) -> Standing {
        standing(&self.origin, &self.counts, &*self.host, &*self.readings)
    }
}

impl peer::Inbox for Desk {
    fn received(
        &self,
        from: NodeId,
        _connection: u64,
        frame: Bytes,
    ) -> Option<BoxFuture<'static, ()>> {
        match self.inbox.take(frame) {
            Ok(has_room) => {
                self.origin.news.notify_one();
                if has_room {
                    return None;
                }
                let inbox = Arc::clone(&self.inbox);
                Some(Box::pin(async move {
                    while !inbox.has_room() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }))
            }
            Err(malformed) => {
                tracing::warn!(peer = from, %malformed, "a frame that no node sends");
                None
            }
        }
    }

    fn connected(&self, peer: NodeId, way: Way, connection: u64) {
        if way == Way::Out {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.insert(peer, connection);
            self.inbox.note_relinked();
            self.origin.news.notify_one();
        }
    }

    fn disconnected(&self, peer: NodeId, way: Way, connection: u64) {
        if way == Way::Out {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            if connections.get(&peer) == Some(&connection) {
                connections.remove(&peer);
            }
        }
    }

    fn asked(&self, _from: NodeId, question: Bytes) -> Bytes {
        match question.first() {
            Some(&ASK_STANDING) => self.standing().encode(),
            _ => Bytes::new(),
        }
    }

    fn heard(&self, committed: u64) {
        self.inbox.note_heard(self.readings.read().raw, committed);
    }

    fn joined(&self, _cluster: [u8; 16], _from: NodeId) -> io::Result<()> {
        Err(io::Error::other("the node is in a cluster already"))
    }
}

/// Links of a node to its peers.
pub(super) struct PeerLinks {
    pub(super) peers: Peers,
    pub(super) connections: Arc<Mutex<HashMap<NodeId, u64>>>,
}

impl Links for PeerLinks {
    fn send(&self, to: NodeId, frame: Bytes) -> bool {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(connection) = connections.get(&to).copied() else { return false };
        drop(connections);
        self.peers.send(to, connection, frame).is_ok()
    }

    fn is_up(&self, to: NodeId) -> bool {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&to)
    }
}
