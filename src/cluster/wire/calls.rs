//! Votes, transfers, questions: each with a number, by which its answer finds it. And frames that
//! are bytes to this file.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::cluster::types::{LogId, NodeId, TypeConfig, Vote};

use super::error::{WireError, wrong};
use super::membership::bounded;
use super::values::{decode, encode, put_text};
use super::{ANSWER_BYTES_MAX, Kind, put};

#[derive(Serialize, Deserialize)]
struct VoteBody {
    vote: Vote,
    last: Option<LogId>,
    is_transfer: bool,
}

/// `kind` is [`Kind::Vote`] or [`Kind::PreVote`].
pub(in crate::cluster) fn put_vote(
    kind: Kind,
    number: u64,
    request: &VoteRequest<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let VoteRequest { vote, last_log_id, leadership_transfer, .. } = *request;
    let body = VoteBody { vote, last: last_log_id, is_transfer: leadership_transfer };
    put(out, kind, |out| encode::<ANSWER_BYTES_MAX>("a vote", &(number, body), out))
}

pub(in crate::cluster) fn vote(body: &[u8]) -> Result<(u64, VoteRequest<TypeConfig>), WireError> {
    let (number, body) = decode::<ANSWER_BYTES_MAX, (u64, VoteBody)>("a vote", body)?;
    if body.vote.committed {
        return Err(wrong("a vote", "nobody asks for a vote that is a leader's"));
    }
    bounded("a vote", body.last)?;
    let mut request = VoteRequest::new(body.vote, body.last);
    request.leadership_transfer = body.is_transfer;
    Ok((number, request))
}

#[derive(Serialize, Deserialize)]
struct VoteAnswerBody {
    vote: Vote,
    is_granted: bool,
    last: Option<LogId>,
}

pub(in crate::cluster) fn put_vote_answer(
    number: u64,
    answer: &VoteResponse<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let VoteResponse { vote, vote_granted, last_log_id } = *answer;
    let body = VoteAnswerBody { vote, is_granted: vote_granted, last: last_log_id };
    put(out, Kind::VoteAnswer, |out| encode::<ANSWER_BYTES_MAX>("a vote", &(number, body), out))
}

pub(in crate::cluster) fn vote_answer(
    body: &[u8],
) -> Result<(u64, VoteResponse<TypeConfig>), WireError> {
    let (number, body) = decode::<ANSWER_BYTES_MAX, (u64, VoteAnswerBody)>("a vote", body)?;
    bounded("a vote", body.last)?;
    Ok((number, VoteResponse::new(body.vote, body.last, body.is_granted)))
}

#[derive(Serialize, Deserialize)]
struct TransferBody {
    from: Vote,
    to: NodeId,
    last: Option<LogId>,
}

pub(in crate::cluster) fn put_transfer(
    number: u64,
    request: &TransferLeaderRequest<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let last = request.last_log_id().copied();
    let body = TransferBody { from: *request.from_leader(), to: *request.to_node_id(), last };
    put(out, Kind::Transfer, |out| encode::<ANSWER_BYTES_MAX>("a transfer", &(number, body), out))
}

pub(in crate::cluster) fn transfer(
    body: &[u8],
) -> Result<(u64, TransferLeaderRequest<TypeConfig>), WireError> {
    let (number, body) = decode::<ANSWER_BYTES_MAX, (u64, TransferBody)>("a transfer", body)?;
    if !body.from.committed {
        return Err(wrong("a transfer", "its vote is not a leader's"));
    }
    bounded("a transfer", body.last)?;
    Ok((number, TransferLeaderRequest::new(body.from, body.to, body.last)))
}

#[derive(Serialize, Deserialize)]
enum TransferResult {
    Accepted,
    VoteChanged { expected: Vote, actual: Vote },
    LogNotFlushed { expected: Option<LogId>, actual: Option<LogId> },
}

pub(in crate::cluster) fn put_transfer_answer(
    number: u64,
    answer: &TransferLeaderResponse<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let result = match *answer {
        Ok(()) => TransferResult::Accepted,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            TransferResult::VoteChanged { expected, actual }
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            TransferResult::LogNotFlushed { expected, actual }
        }
    };
    put(out, Kind::TransferAnswer, |out| {
        encode::<ANSWER_BYTES_MAX>("a transfer", &(number, result), out)
    })
}

pub(in crate::cluster) fn transfer_answer(
    body: &[u8],
) -> Result<(u64, TransferLeaderResponse<TypeConfig>), WireError> {
    let (number, result) = decode::<ANSWER_BYTES_MAX, (u64, _)>("a transfer", body)?;
    let answer = match result {
        TransferResult::Accepted => Ok(()),
        TransferResult::VoteChanged { expected, actual } => {
            Err(TransferLeaderError::VoteChanged { expected, actual })
        }
        TransferResult::LogNotFlushed { expected, actual } => {
            Err(TransferLeaderError::LogNotFlushed { expected, actual })
        }
    };
    Ok((number, answer))
}

/// A number and bytes: [`Kind::Ask`], [`Kind::AskAnswer`], [`Kind::SnapshotChunk`] (where the number is
/// the offset).
pub(in crate::cluster) fn put_numbered(
    kind: Kind,
    number: u64,
    bytes: &[u8],
    out: &mut BytesMut,
) -> Result<(), WireError> {
    put(out, kind, |out| {
        out.put_u64_le(number);
        out.put_slice(bytes);
        Ok(())
    })
}

pub(in crate::cluster) fn numbered(mut body: Bytes) -> Result<(u64, Bytes), WireError> {
    let number = body.try_get_u64_le().map_err(|_| wrong("a frame", "it ends early"))?;
    Ok((number, body))
}

pub(in crate::cluster) fn put_failure(
    number: u64,
    why: &str,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    put(out, Kind::Failure, |out| {
        out.put_u64_le(number);
        put_text(why, out);
        Ok(())
    })
}

pub(in crate::cluster) fn put_empty(kind: Kind, out: &mut BytesMut) -> Result<(), WireError> {
    put(out, kind, |_| Ok(()))
}

pub(in crate::cluster) fn put_link(frame: &[u8], out: &mut BytesMut) -> Result<(), WireError> {
    put(out, Kind::Link, |out| {
        out.put_slice(frame);
        Ok(())
    })
}
