//! Votes, transfers and questions of a peer, and their answers.

use std::io;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use openraft::raft::{TransferLeaderResponse, VoteResponse};
use openraft::storage::RaftStateMachine;

use crate::cluster::peer::connection::{Connection, Pulse, SILENT_MAX_ACCEPTED};
use crate::cluster::peer::seam::BoxFuture;
use crate::cluster::types::{NodeId, SnapshotFile, TypeConfig};
use crate::cluster::wire::{self, Frame, Kind, WireError};

use super::Server;

/// Questions of one connection that are being answered.
const CALLS_MAX: usize = 64;

impl<M> Server<M>
where
    M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
{
    /// Questions, answered in the order in which they are done.
    pub(super) async fn calls(&self, connection: &mut Connection, peer: NodeId) -> io::Result<()> {
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
