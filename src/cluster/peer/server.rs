//! The peers' port: lets in who may, and hands on what comes.

mod appends;

mod calls;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use openraft::storage::RaftStateMachine;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::cluster::types::{NodeId, Snapshot, SnapshotFile, TypeConfig};
use crate::cluster::wire::{self, Kind, Purpose};

use super::connection::{Connection, Pulse, SILENT_MAX_ACCEPTED};
use super::handshake::{self, GREETING_TIME_MAX, Refused};
use super::link::{Known, Way};
use super::seam::{BoxFuture, Listen, Stream, within};
use super::snapshots::{self, RECEIVING_MAX, RECEIVING_WAIT};
use super::{Environment, PEERS_MAX, Peers};

/// Connections of peers at a time.
const CONNECTIONS_MAX: usize = 5 * PEERS_MAX;
/// Connections that have not said yet who they are.
const GREETING_MAX: usize = 32;
/// How long to wait after the system could not accept, for instance for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Raft<M> = openraft::Raft<TypeConfig, M>;

impl Peers {
    /// Accepts peers and hands what they send to `raft` and the inbox, until it is dropped, which
    /// closes their connections.
    pub async fn serve<M>(&self, listener: Box<dyn Listen>, raft: Raft<M>)
    where
        M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
    {
        self.serve_if(listener, Some(raft)).await;
    }

    /// As [`Peers::serve`] for a node that has no Raft yet: only questions are answered.
    pub async fn serve_questions<M>(&self, listener: Box<dyn Listen>)
    where
        M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
    {
        self.serve_if::<M>(listener, None).await;
    }

    async fn serve_if<M>(&self, listener: Box<dyn Listen>, raft: Option<Raft<M>>)
    where
        M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
    {
        let server = Arc::new(Server {
            environment: Arc::clone(&self.0.environment),
            raft,
            incoming: Mutex::default(),
            receiving: Semaphore::new(RECEIVING_MAX),
        });
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let greeting = Arc::new(Semaphore::new(GREETING_MAX));
        // Dropped with this future, and so are all tasks in it.
        let mut tasks = JoinSet::new();
        loop {
            let accepted = select! {
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept peers");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let counters = Arc::clone(&self.0.environment.counters);
            // So many at once are no peers; these try again.
            let Ok(greeter) = Arc::clone(&greeting).try_acquire_owned() else {
                counters.refused.fetch_add(1, Relaxed);
                continue;
            };
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
                counters.refused.fetch_add(1, Relaxed);
                let refuse =
                    handshake::refuse(Connection::new(stream, &[], counters), CONNECTIONS_MAX);
                // A fresh socket's buffer takes a refusal; if it does not, the close says it all.
                let _ = refuse.now_or_never();
                continue;
            };
            let server = Arc::clone(&server);
            tasks.spawn(async move {
                server.welcome(stream, &from, greeter).await;
                drop(permit);
            });
        }
    }
}

struct Server<M>
where
    M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
{
    environment: Arc<Environment>,
    raft: Option<Raft<M>>,
    incoming: Mutex<BTreeMap<(NodeId, Purpose), Incoming>>,
    receiving: Semaphore,
}

/// A connection of a peer.
struct Incoming {
    number: u64,
    replace: oneshot::Sender<()>,
    /// Done once the task has let go of all it had.
    ended: oneshot::Receiver<()>,
}

/// Takes the connection off the list, if it is still on it.
struct Listed<'a> {
    incoming: &'a Mutex<BTreeMap<(NodeId, Purpose), Incoming>>,
    key: (NodeId, Purpose),
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        if incoming.get(&self.key).is_some_and(|incoming| incoming.number == self.number) {
            incoming.remove(&self.key);
        }
    }
}

impl<M> Server<M>
where
    M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
{
    fn raft(&self) -> io::Result<&Raft<M>> {
        let text = "the node has not joined a cluster yet";
        self.raft.as_ref().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, text))
    }

    /// Hears who connected, and serves them until the connection ends.
    async fn welcome(&self, stream: Stream, from: &str, greeter: OwnedSemaphorePermit) {
        let Environment { net, local, inbox, counters, connections, .. } = &*self.environment;
        let mut connection = Connection::new(stream, &[Kind::Hello], Arc::clone(counters));
        let accept = handshake::accept(&mut connection, local, inbox, &**net);
        let hello = match within(GREETING_TIME_MAX, accept).await {
            Ok(hello) => hello,
            Err(error) => {
                counters.refused.fetch_add(1, Relaxed);
                match error.get_ref().and_then(|cause| cause.downcast_ref::<Refused>()) {
                    Some(Refused(refusal)) => {
                        tracing::warn!(from, reason = ?refusal.reason, "peer {refusal}");
                    }
                    None => tracing::debug!(from, %error, "no peer"),
                }
                return;
            }
        };
        drop(greeter);
        counters.accepted.fetch_add(1, Relaxed);
        let (peer, purpose) = (hello.from, hello.purpose);
        let number = connections.fetch_add(1, Relaxed);
        // Dropped last: whoever waits for it finds nothing of this connection left.
        let (_ended, ended) = oneshot::channel();
        let (replace, replaced) = oneshot::channel();
        let listed = Listed { incoming: &self.incoming, key: (peer, purpose), number };
        let old = {
            let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
            incoming.insert(listed.key, Incoming { number, replace, ended })
        };
        if let Some(old) = old {
            let _ = old.replace.send(());
            let _ = old.ended.await;
        }
        tracing::debug!(peer, from, %purpose, "connected");
        let served = select! {
            served = self.serve(&mut connection, peer, purpose) => served,
            _ = replaced => Err(io::Error::other("the peer has a newer one")),
        };
        let Err(error) = served else { return };
        if error.kind() == io::ErrorKind::InvalidData {
            counters.broken.fetch_add(1, Relaxed);
            tracing::warn!(peer, from, %purpose, %error, "connection closed");
        } else {
            tracing::debug!(peer, from, %purpose, %error, "connection closed");
        }
    }

    async fn serve(
        &self,
        connection: &mut Connection,
        peer: NodeId,
        purpose: Purpose,
    ) -> io::Result<()> {
        match purpose {
            Purpose::Append => self.appends(connection).await,
            Purpose::Heartbeat => self.heartbeats(connection).await,
            Purpose::Snapshot => self.snapshots(connection).await,
            Purpose::Control => self.calls(connection, peer).await,
            Purpose::Link => self.link(connection, peer).await,
        }
    }

    /// Snapshots, one after the other.
    async fn snapshots(&self, connection: &mut Connection) -> io::Result<()> {
        let mut pulse = Pulse::new();
        loop {
            connection.expect(&[Kind::SnapshotBegin, Kind::Ping]);
            select! {
                frame = connection.frame_if(true) => {
                    let frame = frame?;
                    if frame.kind == Kind::SnapshotBegin {
                        connection.expect(&[Kind::SnapshotChunk, Kind::SnapshotEnd]);
                        if let Err(error) = self.snapshot(connection, &frame.body).await {
                            snapshots::failed(connection, &error).await?;
                            return Err(error);
                        }
                    }
                }
                () = pulse.due() => pulse.beat(connection, SILENT_MAX_ACCEPTED)?,
            }
        }
    }

    async fn snapshot(&self, connection: &mut Connection, begin: &[u8]) -> io::Result<()> {
        let begin = wire::snapshot_begin(begin)?;
        let Ok(Ok(_permit)) = timeout(RECEIVING_WAIT, self.receiving.acquire()).await else {
            let text = format!("{RECEIVING_MAX} other snapshot is being received");
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        };
        // Raft ends the process rather than install what no cluster can have made.
        let committed =
            self.raft()?.with_raft_state(|state| state.local_committed().copied()).await;
        let committed = committed.map_err(io::Error::other)?;
        let last = begin.meta.last_log_id;
        if last > committed && last.map(|last| last.index) <= committed.map(|last| last.index) {
            let text = "the snapshot contradicts what is committed here";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let file = snapshots::receive(&self.environment, connection, &begin).await?;
        let install = Snapshot { meta: begin.meta, snapshot: file };
        let install = self.raft()?.install_full_snapshot(begin.vote, install);
        let answer = snapshots::working(connection, install).await?.map_err(io::Error::other)?;
        connection.put(|out| wire::put_snapshot_done(answer.vote, out))?;
        within(snapshots::CHUNK_TIME_MAX, connection.flush()).await
    }

    /// Frames, handed over in order; while the inbox is full none is read.
    async fn link(&self, connection: &mut Connection, peer: NodeId) -> io::Result<()> {
        connection.expect(&[Kind::Link, Kind::Ping]);
        let mut pulse = Pulse::new();
        let known = Known::new(&self.environment, peer, Way::In);
        known.begins();
        let mut room: Option<BoxFuture<'static, ()>> = None;
        loop {
            let is_free = room.is_none();
            let wait = async {
                match room.as_mut() {
                    Some(room) => room.await,
                    None => core::future::pending().await,
                }
            };
            select! {
                frame = connection.frame_if(is_free) => {
                    let frame = frame?;
                    if frame.kind == Kind::Link {
                        let inbox = &self.environment.inbox;
                        room = inbox.received(peer, known.connection, frame.body);
                    }
                }
                () = wait => room = None,
                // Who does not read hears nothing, and that is no silence.
                () = pulse.due() => {
                    let silent_max = if is_free { SILENT_MAX_ACCEPTED } else { u32::MAX };
                    pulse.beat(connection, silent_max)?;
                }
            }
        }
    }
}
