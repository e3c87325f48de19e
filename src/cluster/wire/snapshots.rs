//! Snapshots: what comes before their chunks and after them.

use bytes::{Buf, BufMut, BytesMut};
use openraft::LogIdOptionExt;
use serde::{Deserialize, Serialize};

use crate::cluster::types::{SnapshotMeta, Vote};

use super::error::{WireError, wrong};
use super::membership::{bounded, valid_stored};
use super::values::{decode, encode, ends, put_text};
use super::{ANSWER_BYTES_MAX, Kind, put};

/// What comes before the chunks of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cluster) struct SnapshotBegin {
    /// The leader's vote.
    pub(in crate::cluster) vote: Vote,
    /// Bytes of all chunks.
    pub(in crate::cluster) length: u64,
    /// What the snapshot is.
    pub(in crate::cluster) meta: SnapshotMeta,
}

pub(in crate::cluster) fn put_snapshot_begin(
    begin: &SnapshotBegin,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    const MAX: usize = Kind::SnapshotBegin.body_bytes_max();
    put(out, Kind::SnapshotBegin, |out| encode::<MAX>("a snapshot", begin, out))
}

pub(in crate::cluster) fn snapshot_begin(body: &[u8]) -> Result<SnapshotBegin, WireError> {
    const MAX: usize = Kind::SnapshotBegin.body_bytes_max();
    let begin: SnapshotBegin = decode::<MAX, _>("a snapshot", body)?;
    let last = begin.meta.last_log_id;
    let membership = &begin.meta.last_membership;
    valid_stored(membership)?;
    bounded("a snapshot", last)?;
    if !begin.vote.committed {
        return Err(wrong("a snapshot", "its vote is not a leader's"));
    }
    if last.is_some_and(|last| last.leader_id > begin.vote.leader_id) {
        return Err(wrong("a snapshot", "it is from after its leader"));
    }
    if membership.log_id().index() > last.index() {
        return Err(wrong("a snapshot", "its membership is from after its last entry"));
    }
    Ok(begin)
}

/// The checksum, CRC32C, of all that was sent, and that nothing follows.
pub(in crate::cluster) fn put_snapshot_end(
    checksum: u32,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    put(out, Kind::SnapshotEnd, |out| {
        out.put_u64_le(u64::from(checksum));
        Ok(())
    })
}

pub(in crate::cluster) fn snapshot_end(mut body: &[u8]) -> Result<u32, WireError> {
    let checksum = body.try_get_u64_le().ok().and_then(|checksum| u32::try_from(checksum).ok());
    let checksum = checksum.ok_or_else(|| wrong("a snapshot's end", "it ends early"))?;
    ends("a snapshot's end", body)?;
    Ok(checksum)
}

pub(in crate::cluster) fn put_snapshot_done(
    vote: Vote,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    put(out, Kind::SnapshotDone, |out| encode::<ANSWER_BYTES_MAX>("a vote", &vote, out))
}

pub(in crate::cluster) fn snapshot_done(body: &[u8]) -> Result<Vote, WireError> {
    decode::<ANSWER_BYTES_MAX, _>("a vote", body)
}

pub(in crate::cluster) fn put_snapshot_failed(
    why: &str,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    put(out, Kind::SnapshotFailed, |out| {
        put_text(why, out);
        Ok(())
    })
}
