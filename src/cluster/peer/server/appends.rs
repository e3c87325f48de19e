//! Appends and heartbeats of a leader, on their way to Raft, and its answers.

use std::collections::VecDeque;
use std::io;

use futures_util::FutureExt;
use futures_util::stream::{StreamExt, poll_fn};
use openraft::base::BoxStream;
use openraft::errors::Fatal;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
};
use openraft::storage::RaftStateMachine;
use tokio::sync::mpsc;

use crate::cluster::peer::connection::{Connection, Pulse, SILENT_MAX_ACCEPTED};
use crate::cluster::peer::seam::BoxFuture;
use crate::cluster::types::{SnapshotFile, TypeConfig};
use crate::cluster::wire::{self, Frame, Kind, Sequence, WireError};

use super::{Raft, Server};

/// Appends of one connection that Raft has and has not answered.
const APPENDS_MAX: usize = 64;
/// Their bytes.
const APPENDS_BYTES_MAX: usize = 32 << 20;

const _: () = assert!(APPENDS_BYTES_MAX >= wire::APPEND_BYTES_MAX);

impl<M> Server<M>
where
    M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
{
    /// Many appends in flight, in sessions: one after the other, each up to its first error.
    pub(super) async fn appends(&self, connection: &mut Connection) -> io::Result<()> {
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
    pub(super) async fn heartbeats(&self, connection: &mut Connection) -> io::Result<()> {
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
