//! What Raft is told of our types. openraft's names do not leave this folder.

use core::fmt;
use core::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Number of a node within its cluster. Never used again, not even after the node is removed.
pub type NodeId = u64;

openraft::declare_raft_types!(
    /// Our types, for Raft.
    pub TypeConfig:
        D = Entry,
        R = Applied,
        NodeId = NodeId,
        Node = Member,
        AsyncRuntime = Runtime,
);

/// What Raft runs on.
#[cfg(not(test))]
#[allow(deprecated, reason = "its other name is that of a crate we would have to depend on for it")]
pub type Runtime = openraft::impls::TokioRuntime;

#[cfg(test)]
pub use super::sim::Runtime;

/// An entry of the log that is ours, encoded by `entry`. A clone shares the bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry(pub Bytes);

/// What the machine answers Raft about an entry that it applied: nothing. Whoever asked is
/// answered by the node at which they asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied;

/// How a node is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where it listens for its peers, `HOST:PORT`.
    pub peer: String,
    /// Where it listens for clients of the binary protocol; empty if it does not say.
    pub clients: String,
}

/// Where the log stands: an entry's term, leader and index.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A leader as entries name it.
pub type LeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// Who belongs to the cluster, and since which entry.
pub type Membership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What is known of a snapshot without reading it.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot.
pub type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;
/// An entry with its place in the log.
pub type LogEntry = openraft::type_config::alias::EntryOf<TypeConfig>;

/// How long ago a majority answered a leader, by Raft's own clock; `None` if none has yet.
pub(super) fn acked_ago<SM>(leader: &openraft::raft::Leader<TypeConfig, SM>) -> Option<Duration>
where
    SM: openraft::storage::RaftStateMachine<TypeConfig>,
{
    use openraft::Instant;
    leader.last_quorum_acked().map(|acked| acked.elapsed())
}

/// A whole and verified snapshot file of this node, by its number in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its number.
    pub number: u64,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({} bytes)", self.0.len())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("applied")
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.peer)
    }
}
