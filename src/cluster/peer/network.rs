//! What Raft sends through: one [`Network`] per peer and purpose, made by [`Networks`].

use core::pin::Pin;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use openraft::RPCTypes;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::time::{Sleep, sleep};

use crate::cluster::types::{LogId, Member, NodeId, Snapshot, SnapshotFile, TypeConfig, Vote};
use crate::cluster::wire::{self, Envelope, Kind, Purpose, Sequence};

use super::connection::{Connection, Pulse, SILENT_MAX_DIALED, ended};
use super::control::Call;
use super::handshake::dial;
use super::seam;
use super::{Environment, Peer, Peers, snapshots};

/// Appends of one stream that are not yet answered.
const IN_FLIGHT_MAX: usize = 64;
/// Their bytes, but for one frame.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;
/// Time for the answer to an append: more than a disk that is slow, less than one that is gone.
const APPEND_TIME_MAX: Duration = Duration::from_secs(10);

/// Makes networks, for Raft.
pub struct Networks(pub(super) Peers);

/// How one peer is reached for one purpose.
pub struct Network {
    environment: Arc<Environment>,
    /// `None` if there are too many.
    peer: Option<Arc<Peer>>,
    /// Has to be shared between threads in name only: whoever uses it has it alone.
    line: Mutex<Line>,
}

impl Networks {
    fn network(&self, node: NodeId, member: &Member, purpose: Purpose) -> Network {
        let peer = self.0.peer(node, member);
        let peer = peer.inspect_err(|error| tracing::error!(peer = node, %error, "ignored")).ok();
        let environment = Arc::clone(&self.0.0.environment);
        Network { environment, peer, line: Mutex::new(Line::new(purpose)) }
    }
}

impl RaftNetworkFactory<TypeConfig> for Networks {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Network {
        self.network(target, node, Purpose::Append)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Network {
        self.network(target, node, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &Member) -> Network {
        self.network(target, node, Purpose::Snapshot)
    }
}

/// A connection that is made when it is needed, and again after it broke. Giving up waiting for it
/// loses nothing.
struct Line {
    purpose: Purpose,
    state: State,
    backoff: seam::Backoff,
    pulse: Pulse,
    session: u64,
}

enum State {
    Down,
    /// Failed; not before this time again.
    Resting(Pin<Box<Sleep>>),
    Dialing(BoxFuture<'static, io::Result<Connection>>),
    Up(Connection),
}

impl Line {
    fn new(purpose: Purpose) -> Self {
        let (backoff, pulse) = (seam::Backoff::new(), Pulse::new());
        Self { purpose, state: State::Down, backoff, pulse, session: 0 }
    }

    fn break_off(&mut self) {
        self.state = State::Down;
    }

    /// Dials unless it is up.
    fn poll_up(
        &mut self,
        cx: &mut Context<'_>,
        environment: &Arc<Environment>,
        peer: &Arc<Peer>,
    ) -> Poll<io::Result<&mut Connection>> {
        loop {
            match &mut self.state {
                State::Up(connection) => {
                    // It may have ended while nobody looked.
                    let ended = loop {
                        match connection.poll_frame(cx) {
                            Poll::Ready(Ok(Some(_))) => {}
                            Poll::Ready(_) => break true,
                            Poll::Pending => break false,
                        }
                    };
                    if !ended {
                        break;
                    }
                    self.state = State::Down;
                }
                State::Down => {
                    let (environment, peer) = (Arc::clone(environment), Arc::clone(peer));
                    let purpose = self.purpose;
                    self.state = State::Dialing(Box::pin(async move {
                        let (net, local) = (&*environment.net, &environment.local);
                        let (address, counters) = (peer.address(), &environment.counters);
                        dial(net, local, counters, peer.node, &address, purpose).await
                    }));
                }
                State::Dialing(dialing) => match ready!(dialing.as_mut().poll(cx)) {
                    Ok(mut connection) => {
                        self.backoff.reset();
                        self.pulse = Pulse::new();
                        connection.expect(match self.purpose {
                            Purpose::Snapshot => &[
                                Kind::SnapshotReady,
                                Kind::SnapshotWorking,
                                Kind::SnapshotDone,
                                Kind::SnapshotFailed,
                                Kind::Ping,
                            ],
                            _ => &[Kind::AppendAnswer, Kind::Ping],
                        });
                        self.state = State::Up(connection);
                        break;
                    }
                    Err(error) => {
                        let rest = Box::pin(sleep(self.backoff.next()));
                        self.state = State::Resting(rest);
                        return Poll::Ready(Err(error));
                    }
                },
                // Whoever is told of an error tries again at once, so an error at once would have
                // it try as fast as it can for as long as the peer is away.
                State::Resting(rest) => {
                    ready!(rest.as_mut().poll(cx));
                    self.state = State::Down;
                }
            }
        }
        match &mut self.state {
            State::Up(connection) => Poll::Ready(Ok(connection)),
            _ => Poll::Ready(Err(ended())),
        }
    }

    async fn up(
        &mut self,
        environment: &Arc<Environment>,
        peer: Option<&Arc<Peer>>,
    ) -> io::Result<()> {
        let Some(peer) = peer else {
            return Err(io::Error::other("there are as many peers as may be"));
        };
        core::future::poll_fn(|cx| self.poll_up(cx, environment, peer).map_ok(drop)).await
    }
}

impl NetBackoff<TypeConfig> for Network {
    fn backoff(&self) -> Option<Backoff> {
        let mut backoff = seam::Backoff::new();
        Some(Backoff::new(core::iter::repeat_with(move || backoff.next())))
    }
}

impl NetStreamAppend<TypeConfig> for Network {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Appended>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let line = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
            line.up(&self.environment, self.peer.as_ref()).await.map_err(unreachable)?;
            line.session += 1;
            let (own, peer) =
                (self.environment.local.node, self.peer.as_ref().map_or(0, |p| p.node));
            Ok(Box::pin(Session {
                own,
                peer,
                line,
                input: Some(input),
                cut: None,
                next: 0,
                in_flight: VecDeque::new(),
                in_flight_bytes: 0,
                deadline: None,
                is_over: false,
            }) as BoxStream<'s, _>)
        })
    }
}

type Appended = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// Appends of one stream: many in flight, answered in order.
struct Session<'s, S> {
    own: NodeId,
    peer: NodeId,
    line: &'s mut Line,
    /// `None` once it has ended.
    input: Option<S>,
    /// A request whose first entries are sent.
    cut: Option<AppendEntriesRequest<TypeConfig>>,
    next: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// When the answer to the first in flight is late.
    deadline: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

struct InFlight {
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
}

impl<S> Stream for Session<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = Appended;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Appended>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        match ready!(this.poll_answer(cx)) {
            Ok(Some(answer)) => {
                // Raft ends the stream; what is in flight is answered to nobody.
                this.is_over = answer.is_err();
                Poll::Ready(Some(Ok(answer)))
            }
            Ok(None) => {
                this.is_over = true;
                Poll::Ready(None)
            }
            Err(error) => {
                this.is_over = true;
                this.line.break_off();
                Poll::Ready(Some(Err(failed(error, this.own, this.peer))))
            }
        }
    }
}

impl<S> Session<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<StreamAppendResult<TypeConfig>>>> {
        loop {
            let was_full = self.fill(cx)?;
            let State::Up(connection) = &mut self.line.state else {
                return Poll::Ready(Err(ended()));
            };
            if let Poll::Ready(Err(error)) = connection.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            if self.input.is_none() && self.cut.is_none() && self.in_flight.is_empty() {
                return Poll::Ready(Ok(None));
            }
            match connection.poll_frame(cx)? {
                Poll::Ready(None) => return Poll::Ready(Err(ended())),
                Poll::Ready(Some(frame)) if frame.kind == Kind::AppendAnswer => {
                    let (sequence, result) = wire::append_answer(&frame.body)?;
                    if sequence.session == self.line.session {
                        return Poll::Ready(self.answered(sequence, result).map(Some));
                    }
                }
                Poll::Ready(Some(_)) => {}
                // There is room for more by now.
                Poll::Pending if was_full && connection.is_flushed() => {}
                Poll::Pending => {
                    let late = self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(cx));
                    if late.is_some_and(|late| late.is_ready()) {
                        return Poll::Ready(Err(seam::late(APPEND_TIME_MAX)));
                    }
                    ready!(self.line.pulse.poll_due(cx));
                    self.line.pulse.beat(connection, SILENT_MAX_DIALED)?;
                }
            }
        }
    }

    /// Sends what may be; whether the connection had enough.
    fn fill(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        loop {
            let State::Up(connection) = &mut self.line.state else { return Err(ended()) };
            if self.in_flight.len() >= IN_FLIGHT_MAX || self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX
            {
                return Ok(false);
            }
            if connection.is_full() {
                return Ok(true);
            }
            let mut request = match (self.cut.take(), &mut self.input) {
                (Some(request), _) => request,
                (None, None) => return Ok(false),
                (None, Some(input)) => match Pin::new(input).poll_next(cx) {
                    Poll::Ready(Some(request)) => request,
                    Poll::Ready(None) => {
                        self.input = None;
                        return Ok(false);
                    }
                    Poll::Pending => return Ok(false),
                },
            };
            let sequence = Sequence { session: self.line.session, number: self.next };
            let envelope = Envelope { vote: request.vote, commit: request.leader_commit };
            let (prev, entries) = (request.prev_log_id, &request.entries);
            let (count, bytes) = connection.put(|out| {
                let before = out.len();
                let count = wire::put_append(sequence, &envelope, prev, entries, out)?;
                Ok((count, out.len() - before))
            })?;
            let last = wire::last_of(prev, &entries[..count]);
            if count < entries.len() {
                request.entries.drain(..count);
                request.prev_log_id = last;
                self.cut = Some(request);
            }
            self.next += 1;
            self.in_flight_bytes += bytes;
            self.in_flight.push_back(InFlight { prev, last, bytes });
            self.deadline.get_or_insert_with(|| Box::pin(sleep(APPEND_TIME_MAX)));
        }
    }

    /// Takes an answer, which must be to the first in flight. Raft takes it for granted that it fits.
    fn answered(
        &mut self,
        sequence: Sequence,
        result: StreamAppendResult<TypeConfig>,
    ) -> io::Result<StreamAppendResult<TypeConfig>> {
        let first = self.next - self.in_flight.len() as u64;
        let Some(append) = self.in_flight.pop_front().filter(|_| sequence.number == first) else {
            return Err(senseless("an answer to nothing that was asked"));
        };
        self.in_flight_bytes -= append.bytes;
        self.deadline = (!self.in_flight.is_empty()).then(|| Box::pin(sleep(APPEND_TIME_MAX)));
        let fits = match &result {
            Ok(matched) => *matched <= append.last,
            Err(StreamAppendError::Conflict(log_id)) => Some(*log_id) == append.prev,
            Err(StreamAppendError::HigherVote(_)) => true,
        };
        if fits { Ok(result) } else { Err(senseless("an answer that names what was not sent")) }
    }
}

impl NetVote<TypeConfig> for Network {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(Call::Vote(request), &option, RPCTypes::Vote, wire::vote_answer).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(Call::PreVote(request), &option, RPCTypes::Vote, wire::vote_answer).await
    }
}

impl NetTransferLeader<TypeConfig> for Network {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = Call::Transfer(request);
        self.ask(call, &option, RPCTypes::TransferLeader, wire::transfer_answer).await
    }
}

impl Network {
    /// Asks over the control connection, which all networks of a peer share.
    async fn ask<T>(
        &self,
        call: Call,
        option: &RPCOption,
        action: RPCTypes,
        read: impl FnOnce(&[u8]) -> Result<(u64, T), wire::WireError>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let Some(peer) = &self.peer else {
            return Err(unreachable(io::Error::other("there are as many peers as may be")));
        };
        let timeout = option.soft_ttl();
        match peer.control.call(call, timeout).await {
            Ok(frame) => match read(&frame.body) {
                Ok((_, answer)) => Ok(answer),
                Err(error) => Err(NetworkError::new(&error).into()),
            },
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let (id, target) = (self.environment.local.node, peer.node);
                Err(Timeout { action, id, target, timeout }.into())
            }
            Err(error) => Err(unreachable(error)),
        }
    }
}

impl NetSnapshot<TypeConfig> for Network {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let line = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (environment, peer) = (&self.environment, self.peer.as_ref());
        let send = async {
            line.up(environment, peer).await?;
            let State::Up(connection) = &mut line.state else { return Err(ended()) };
            let Snapshot { meta, snapshot: file } = snapshot;
            snapshots::send(environment, connection, vote, meta, file).await
        };
        let sent = select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => sent.map_err(|error| StreamingError::from(unreachable(error))),
        };
        // What it stopped in the middle of is of no use to the next.
        line.break_off();
        let node = self.peer.as_ref().map(|peer| peer.node);
        let _ =
            sent.as_ref().inspect_err(|error| tracing::warn!(?node, %error, "snapshot not sent"));
        sent.map(SnapshotResponse::new)
    }
}

fn senseless(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A peer to be left alone for a while.
fn unreachable(error: io::Error) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&error))
}

/// A connection that broke while it was in use.
fn failed(error: io::Error, id: NodeId, target: NodeId) -> RPCError<TypeConfig> {
    if error.kind() == io::ErrorKind::TimedOut {
        let (action, timeout) = (RPCTypes::AppendEntries, APPEND_TIME_MAX);
        return RPCError::Timeout(Timeout { action, id, target, timeout });
    }
    RPCError::Network(NetworkError::new(&error))
}
