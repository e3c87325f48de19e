//! The peers' port: lets in who may, and hands on what comes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt, poll_fn};
use openraft::base::BoxStream;
use openraft::errors::Fatal;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderResponse, VoteResponse,
};
use openraft::storage::RaftStateMachine;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::cluster::types::{NodeId, Snapshot, SnapshotFile, TypeConfig};
use crate::cluster::wire::{self, Frame, Kind, Purpose, Sequence, WireError};

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
/// Questions of one connection that are being answered.
const CALLS_MAX: usize = 64;
/// Appends of one connection that Raft has and has not answered.
const APPENDS_MAX: usize = 64;
/// Their bytes.
const APPENDS_BYTES_MAX: usize = 32 << 20;
/// How long to wait after the system could not accept, for instance for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const _: () = assert!(APPENDS_BYTES_MAX >= wire::APPEND_BYTES_MAX);

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

    /// Many appends in flight, in sessions: one after the other, each up to its first error.
    async fn appends(&self, connection: &mut Connection) -> io::Result<()> {
        connection.expect(&[Kind::Append, Kind::Ping]);
        let mut pulse = Pulse::new();
        let mut session = Session::default();
        let mut next: Option<Append> = None;
        loop {
            // The next session begins when nothing of this one is left.
            if session.answers.is_none()
                && let Some(first) = next.take()
            {
                session = Session::begin(self.raft()?, first.sequence.session);
                session.append(first)?;
            }
            let reads = next.is_none() && session.has_room();
            let answer = async {
                match session.answers.as_mut() {
                    Some(answers) => answers.next().await,
                    None => core::future::pending().await,
                }
            };
            select! {
                frame = connection.frame_if(reads) => {
                    let Some(append) = Append::read(&frame?)? else { continue };
                    if append.sequence.session == session.number && session.has_begun {
                        session.append(append)?;
                    } else {
                        session.input = None;
                        next = Some(append);
                    }
                }
                answer = answer => {
                    let mut answer = Some(answer);
                    while let Some(now) = answer.take() {
                        session.answer(now, connection)?;
                        let answers = session.answers.as_mut();
                        answer = answers.and_then(|answers| answers.next().now_or_never());
                    }
                }
                () = pulse.due() => pulse.beat(connection, SILENT_MAX_ACCEPTED)?,
            }
        }
    }

    /// One append at a time, each a session of its own.
    async fn heartbeats(&self, connection: &mut Connection) -> io::Result<()> {
        connection.expect(&[Kind::Append, Kind::Ping]);
        let mut pulse = Pulse::new();
        let mut answering: Option<BoxFuture<'_, io::Result<(Sequence, _)>>> = None;
        let mut committed = 0;
        loop {
            let is_free = answering.is_none();
            let answer = async {
                match answering.as_mut() {
                    Some(answering) => answering.await,
                    None => core::future::pending().await,
                }
            };
            select! {
                frame = connection.frame_if(is_free) => {
                    let Some(append) = Append::read(&frame?)? else { continue };
                    let Append { sequence, request, .. } = append;
                    let prev = request.prev_log_id;
                    let last = wire::last_of(prev, &request.entries);
                    committed = request.leader_commit.map_or(0, |log_id| log_id.index);
                    answering = Some(Box::pin(async move {
                        let answer = self.raft()?.append_entries(request).await;
                        let answer = answer.map_err(io::Error::other)?;
                        let conflict = AppendEntriesResponse::Conflict;
                        Ok((sequence, match (answer, prev) {
                            (AppendEntriesResponse::Success, _) => Ok(last),
                            (AppendEntriesResponse::PartialSuccess(matched), _) => Ok(matched),
                            (AppendEntriesResponse::HigherVote(vote), _) => {
                                Err(StreamAppendError::HigherVote(vote))
                            }
                            (answer, Some(prev)) if answer == conflict => {
                                Err(StreamAppendError::Conflict(prev))
                            }
                            _ => return Err(io::Error::other("a conflict with the log's beginning")),
                        }))
                    }));
                }
                answer = answer => {
                    answering = None;
                    let (sequence, result) = answer?;
                    if result.is_ok() {
                        self.environment.inbox.heard(committed);
                    }
                    connection.put(|out| wire::put_append_answer(sequence, &result, out))?;
                }
                () = pulse.due() => pulse.beat(connection, SILENT_MAX_ACCEPTED)?,
            }
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

    /// Questions, answered in the order in which they are done.
    async fn calls(&self, connection: &mut Connection, peer: NodeId) -> io::Result<()> {
        connection.expect(&[Kind::Vote, Kind::PreVote, Kind::Transfer, Kind::Ask, Kind::Ping]);
        let mut pulse = Pulse::new();
        let mut answering = FuturesUnordered::new();
        loop {
            select! {
                frame = connection.frame_if(answering.len() < CALLS_MAX) => {
                    let frame = frame?;
                    match frame.kind {
                        Kind::Ask => {
                            let (number, question) = wire::numbered(frame.body)?;
                            let reply = self.environment.inbox.asked(peer, question);
                            put_reply(connection, number, &reply)?;
                        }
                        Kind::Ping => {}
                        _ => answering.push(self.answer(frame)?),
                    }
                }
                Some(answer) = answering.next() => answer.put(connection)?,
                () = pulse.due() => pulse.beat(connection, SILENT_MAX_ACCEPTED)?,
            }
        }
    }

    fn answer(&self, frame: Frame) -> io::Result<BoxFuture<'_, Answer>> {
        let raft = self.raft()?;
        Ok(match frame.kind {
            Kind::Vote => {
                let (number, request) = wire::vote(&frame.body)?;
                Box::pin(async move {
                    let answer = raft.vote(request).await;
                    answer.map_or_else(Answer::failed(number), |a| Answer::Vote(number, a))
                })
            }
            Kind::PreVote => {
                let (number, request) = wire::vote(&frame.body)?;
                Box::pin(async move {
                    let answer = raft.pre_vote(request).await;
                    answer.map_or_else(Answer::failed(number), |a| Answer::Vote(number, a))
                })
            }
            Kind::Transfer => {
                let (number, request) = wire::transfer(&frame.body)?;
                Box::pin(async move {
                    let answer = raft.handle_transfer_leader(request).await;
                    answer.map_or_else(Answer::failed(number), |a| Answer::Transfer(number, a))
                })
            }
            kind => return Err(WireError::Kind(kind as u8).into()),
        })
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

fn put_reply(connection: &mut Connection, number: u64, reply: &Bytes) -> io::Result<()> {
    let put = connection.put(|out| wire::put_numbered(Kind::AskAnswer, number, reply, out));
    if let Err(error) = put {
        connection.put(|out| wire::put_failure(number, &error.to_string(), out))?;
    }
    Ok(())
}

/// What is answered to a question.
enum Answer {
    Vote(u64, VoteResponse<TypeConfig>),
    Transfer(u64, TransferLeaderResponse<TypeConfig>),
    Failure(u64, String),
}

impl Answer {
    fn failed<E: core::fmt::Display>(number: u64) -> impl FnOnce(E) -> Self {
        move |error| Self::Failure(number, error.to_string())
    }

    fn put(&self, connection: &mut Connection) -> io::Result<()> {
        Ok(connection.put(|out| match self {
            Self::Vote(number, answer) => wire::put_vote_answer(*number, answer, out),
            Self::Transfer(number, answer) => wire::put_transfer_answer(*number, answer, out),
            Self::Failure(number, why) => wire::put_failure(*number, why, out),
        })?)
    }
}

/// An append that came.
struct Append {
    sequence: Sequence,
    request: AppendEntriesRequest<TypeConfig>,
    bytes: usize,
}

impl Append {
    fn read(frame: &Frame) -> Result<Option<Self>, WireError> {
        if frame.kind != Kind::Append {
            return Ok(None);
        }
        let (sequence, request) = wire::append(&frame.body)?;
        Ok(Some(Self { sequence, request, bytes: frame.body.len() }))
    }
}

type Answers = BoxStream<'static, Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>>;

/// Appends that are answered in order, up to the first error.
#[derive(Default)]
struct Session {
    number: u64,
    has_begun: bool,
    /// `None` once no more comes.
    input: Option<mpsc::Sender<AppendEntriesRequest<TypeConfig>>>,
    /// `None` once no more is answered.
    answers: Option<Answers>,
    pending: VecDeque<(Sequence, usize)>,
    pending_bytes: usize,
}

impl Session {
    fn begin<M>(raft: &Raft<M>, number: u64) -> Self
    where
        M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
    {
        let (input, mut requests) = mpsc::channel(APPENDS_MAX);
        let answers: Answers =
            Box::pin(raft.stream_append(poll_fn(move |cx| requests.poll_recv(cx))));
        let (input, answers) = (Some(input), Some(answers));
        Self { number, has_begun: true, input, answers, ..Self::default() }
    }

    fn has_room(&self) -> bool {
        self.pending.len() < APPENDS_MAX && self.pending_bytes < APPENDS_BYTES_MAX
    }

    /// Hands it to Raft; after an error to nobody.
    fn append(&mut self, append: Append) -> io::Result<()> {
        let Some(input) = self.input.as_ref().filter(|_| self.answers.is_some()) else {
            return Ok(());
        };
        match input.try_send(append.request) {
            Ok(()) => {
                self.pending.push_back((append.sequence, append.bytes));
                self.pending_bytes += append.bytes;
                Ok(())
            }
            // An error ended it and is about to be answered.
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(io::Error::other("more appends wait than are pending"))
            }
        }
    }

    /// Sends what Raft answered.
    fn answer(
        &mut self,
        answer: Option<Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>>,
        connection: &mut Connection,
    ) -> io::Result<()> {
        let Some(answer) = answer else {
            self.end();
            return Ok(());
        };
        let result = answer.map_err(io::Error::other)?;
        let Some((sequence, bytes)) = self.pending.pop_front() else {
            return Err(io::Error::other("an answer to no append"));
        };
        self.pending_bytes -= bytes;
        connection.put(|out| wire::put_append_answer(sequence, &result, out))?;
        if result.is_err() {
            self.end();
        }
        Ok(())
    }

    fn end(&mut self) {
        let (number, has_begun) = (self.number, self.has_begun);
        *self = Self { number, has_begun, ..Self::default() };
    }
}
