//! Memberships, and what is known of a snapshot, as files and entries of the log have them too.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use crate::cluster::types::{LogId, Member, Membership, NodeId, SnapshotMeta};

use super::error::{WireError, wrong};
use super::values::{decode, encode};
use super::{MEMBERSHIP_BYTES_MAX, SNAPSHOT_META_BYTES_MAX};

/// The voters and learners that an entry of the log names.
pub type Members = openraft::Membership<NodeId, Member>;

/// The bytes of a membership as an entry of the log has it.
///
/// # Errors
/// If it is longer than [`MEMBERSHIP_BYTES_MAX`].
pub fn encode_membership(members: &Members) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    put_membership(members, &mut out)?;
    Ok(out.freeze())
}

/// Reads what [`encode_membership`] wrote.
///
/// # Errors
/// If the bytes are damaged, or if a voter is no member.
pub fn decode_membership(bytes: &[u8]) -> Result<Members, WireError> {
    let read: Members = decode::<MEMBERSHIP_BYTES_MAX, _>("a membership", bytes)?;
    valid(&read)
}

/// The bytes of a membership with the entry that made it.
///
/// # Errors
/// If it is longer than [`SNAPSHOT_META_BYTES_MAX`].
pub fn encode_stored_membership(membership: &Membership) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    encode::<SNAPSHOT_META_BYTES_MAX>("a membership", membership, &mut out)?;
    Ok(out.freeze())
}

/// Reads what [`encode_stored_membership`] wrote.
///
/// # Errors
/// If the bytes are damaged, or if a voter is no member.
pub fn decode_stored_membership(bytes: &[u8]) -> Result<Membership, WireError> {
    let read: Membership = decode::<SNAPSHOT_META_BYTES_MAX, _>("a membership", bytes)?;
    valid_stored(&read)?;
    Ok(read)
}

/// The bytes of what is known of a snapshot.
///
/// # Errors
/// If they are more than [`SNAPSHOT_META_BYTES_MAX`].
pub fn encode_snapshot_meta(meta: &SnapshotMeta) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    encode::<SNAPSHOT_META_BYTES_MAX>("a snapshot's meta", meta, &mut out)?;
    Ok(out.freeze())
}

/// Reads what [`encode_snapshot_meta`] wrote.
///
/// # Errors
/// If the bytes are damaged, or if a voter is no member.
pub fn decode_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, WireError> {
    let read: SnapshotMeta = decode::<SNAPSHOT_META_BYTES_MAX, _>("a snapshot's meta", bytes)?;
    valid_stored(&read.last_membership)?;
    Ok(read)
}

pub(super) fn put_membership(members: &Members, out: &mut BytesMut) -> Result<(), WireError> {
    encode::<MEMBERSHIP_BYTES_MAX>("a membership", members, out)
}

/// Raft takes it for granted that every voter is a member.
fn valid(members: &Members) -> Result<Members, WireError> {
    let voters: Vec<BTreeSet<NodeId>> = members.get_joint_config().clone();
    let nodes: BTreeMap<NodeId, Member> =
        members.nodes().map(|(id, member)| (*id, member.clone())).collect();
    Members::new(voters, nodes).map_err(|error| wrong("a membership", error))
}

/// A node that belongs to nothing yet has an empty membership, which is no valid entry.
pub(super) fn valid_stored(membership: &Membership) -> Result<(), WireError> {
    if *membership == Membership::default() {
        return Ok(());
    }
    valid(membership.membership()).map(drop)
}

/// An index that has a next one.
pub(super) fn bounded(what: &'static str, log_id: Option<LogId>) -> Result<(), WireError> {
    match log_id {
        Some(LogId { index: u64::MAX, .. }) => Err(wrong(what, "an index is out of range")),
        _ => Ok(()),
    }
}
