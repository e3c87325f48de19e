//! Appends: entries of the log, and what became of them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use serde::{Deserialize, Serialize};

use crate::cluster::types::{Entry, LeaderId, LogEntry, LogId, TypeConfig, Vote};

use super::error::{WireError, wrong};
use super::membership::{bounded, decode_membership, put_membership};
use super::values::{decode, decode_front, encode, ends};
use super::{ANSWER_BYTES_MAX, APPEND_BYTES_MAX, ENTRY_BYTES_MAX, Kind, put};

pub(super) const APPEND_HEAD_BYTES_MAX: usize = 128;
pub(super) const ENTRY_HEAD_BYTES: usize = 8 + 8 + 8 + 1 + 4;
const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Which append: those of one session are answered in order, and one error ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cluster) struct Sequence {
    /// Grows with each session of the connection.
    pub(in crate::cluster) session: u64,
    /// Grows by one with each append of the session.
    pub(in crate::cluster) number: u64,
}

#[derive(Serialize, Deserialize)]
struct AppendHead {
    sequence: Sequence,
    vote: Vote,
    prev: Option<LogId>,
    commit: Option<LogId>,
    count: u32,
}

/// What goes with every frame of one append.
pub(in crate::cluster) struct Envelope {
    /// The leader's vote.
    pub(in crate::cluster) vote: Vote,
    /// Up to where the log is committed.
    pub(in crate::cluster) commit: Option<LogId>,
}

/// Appends a frame with as many of the entries, which follow `prev`, as it takes (none if there
/// are none), and says how many.
///
/// # Errors
/// If the first entry alone is too long.
pub(in crate::cluster) fn put_append(
    sequence: Sequence,
    envelope: &Envelope,
    prev: Option<LogId>,
    entries: &[LogEntry],
    out: &mut BytesMut,
) -> Result<usize, WireError> {
    let mut count = 0;
    put(out, Kind::Append, |out| {
        let start = out.len();
        let Envelope { vote, commit } = *envelope;
        let head = AppendHead { sequence, vote, prev, commit, count: 0 };
        encode::<APPEND_HEAD_BYTES_MAX>("an append", &head, out)?;
        let count_at = out.len() - 4;
        for entry in entries {
            let before = out.len();
            put_entry(entry, out)?;
            if out.len() - start > APPEND_BYTES_MAX {
                let found = out.len() - before - ENTRY_HEAD_BYTES;
                out.truncate(before);
                if count == 0 {
                    let what = "an entry of the log";
                    return Err(WireError::Length { what, found, max: ENTRY_BYTES_MAX });
                }
                break;
            }
            count += 1;
        }
        out[count_at..count_at + 4].copy_from_slice(&(count as u32).to_le_bytes());
        Ok(())
    })?;
    Ok(count)
}

/// Term 8, node 8, index 8, kind 1, length 4, bytes.
fn put_entry(entry: &LogEntry, out: &mut BytesMut) -> Result<(), WireError> {
    let LogId { leader_id, index } = entry.log_id;
    out.put_u64_le(leader_id.term);
    out.put_u64_le(leader_id.node_id);
    out.put_u64_le(index);
    match &entry.payload {
        EntryPayload::Blank => {
            out.put_u8(BLANK);
            out.put_u32_le(0);
        }
        EntryPayload::Normal(Entry(bytes)) => {
            let found = bytes.len();
            if found > ENTRY_BYTES_MAX {
                let what = "an entry of the log";
                return Err(WireError::Length { what, found, max: ENTRY_BYTES_MAX });
            }
            out.put_u8(NORMAL);
            out.put_u32_le(found as u32);
            out.put_slice(bytes);
        }
        EntryPayload::Membership(members) => {
            out.put_u8(MEMBERSHIP);
            let length_at = out.len();
            out.put_u32_le(0);
            put_membership(members, out)?;
            let length = (out.len() - length_at - 4) as u32;
            out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        }
    }
    Ok(())
}

/// Reads an append. What Raft takes for granted is verified: that the vote is a leader's and that
/// the entries follow each other, without gap, none from after that leader.
pub(in crate::cluster) fn append(
    body: &Bytes,
) -> Result<(Sequence, AppendEntriesRequest<TypeConfig>), WireError> {
    const WHAT: &str = "an append";
    let short = |_| wrong(WHAT, "it ends early");
    let (head, taken): (AppendHead, usize) = decode_front::<APPEND_HEAD_BYTES_MAX, _>(WHAT, body)?;
    let AppendHead { sequence, vote, prev, commit, count } = head;
    if !vote.committed {
        return Err(wrong(WHAT, "its vote is not a leader's"));
    }
    let mut rest = body.slice(taken..);
    let count = count as usize;
    if count > rest.len() / ENTRY_HEAD_BYTES {
        return Err(wrong(WHAT, format_args!("{count} entries do not fit it")));
    }
    let mut entries = Vec::with_capacity(count);
    let mut last = prev;
    for _ in 0..count {
        let term = rest.try_get_u64_le().map_err(short)?;
        let node_id = rest.try_get_u64_le().map_err(short)?;
        let index = rest.try_get_u64_le().map_err(short)?;
        let kind = rest.try_get_u8().map_err(short)?;
        let length = rest.try_get_u32_le().map_err(short)? as usize;
        if length > rest.len() {
            return Err(wrong(WHAT, "an entry is longer than what is left"));
        }
        let bytes = rest.split_to(length);
        let payload = match kind {
            BLANK if bytes.is_empty() => EntryPayload::Blank,
            NORMAL => EntryPayload::Normal(Entry(bytes)),
            MEMBERSHIP => EntryPayload::Membership(decode_membership(&bytes)?),
            _ => return Err(wrong(WHAT, format_args!("an entry's kind is {kind}"))),
        };
        let log_id = LogId { leader_id: LeaderId { term, node_id }, index };
        let is_next = match last {
            None => index == 0,
            Some(last) => {
                Some(index) == last.index.checked_add(1) && last.leader_id <= log_id.leader_id
            }
        };
        if !is_next || log_id.leader_id > vote.leader_id {
            return Err(wrong(WHAT, format_args!("entry {log_id} cannot follow there")));
        }
        last = Some(log_id);
        entries.push(LogEntry { log_id, payload });
    }
    ends(WHAT, &rest)?;
    bounded(WHAT, prev)?;
    bounded(WHAT, last)?;
    bounded(WHAT, commit)?;
    let request = AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: commit };
    Ok((sequence, request))
}

/// The last entry of a request, or the one before if it has none.
pub(in crate::cluster) fn last_of(prev: Option<LogId>, entries: &[LogEntry]) -> Option<LogId> {
    entries.last().map(|entry| entry.log_id).or(prev)
}

#[derive(Serialize, Deserialize)]
enum AppendResult {
    Matched(Option<LogId>),
    Conflict(LogId),
    HigherVote(Vote),
}

pub(in crate::cluster) fn put_append_answer(
    sequence: Sequence,
    result: &StreamAppendResult<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let result = match *result {
        Ok(matched) => AppendResult::Matched(matched),
        Err(StreamAppendError::Conflict(log_id)) => AppendResult::Conflict(log_id),
        Err(StreamAppendError::HigherVote(vote)) => AppendResult::HigherVote(vote),
    };
    put(out, Kind::AppendAnswer, |out| {
        encode::<ANSWER_BYTES_MAX>("an answer", &(sequence, result), out)
    })
}

pub(in crate::cluster) fn append_answer(
    body: &[u8],
) -> Result<(Sequence, StreamAppendResult<TypeConfig>), WireError> {
    let (sequence, result) = decode::<ANSWER_BYTES_MAX, (Sequence, _)>("an answer", body)?;
    let result = match result {
        AppendResult::Matched(matched) => Ok(matched),
        AppendResult::Conflict(log_id) => Err(StreamAppendError::Conflict(log_id)),
        AppendResult::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
    };
    Ok((sequence, result))
}
