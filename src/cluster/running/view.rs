//! How Raft stands at a node, for people.

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;

use crate::cluster::host::Disk;
use crate::cluster::types::{LogId, NodeId};

use super::Running;

/// How Raft stands at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The node.
    pub node: NodeId,
    /// What it is.
    pub state: &'static str,
    /// The leader that it knows of.
    pub leader: Option<NodeId>,
    /// The term that it knows of.
    pub term: u64,
    /// The index of the last entry applied.
    pub applied: u64,
    /// The index of its last snapshot.
    pub snapshot: Option<u64>,
    /// The index up to which its log was let go.
    pub purged: Option<u64>,
    /// Members: number, peer address, whether it votes.
    pub members: Vec<(NodeId, String, bool)>,
}

impl<S: Disk> Running<S> {
    /// How Raft stands at this node.
    pub fn view(&self) -> View {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let members = membership
            .nodes()
            .map(|(node, member)| (*node, member.peer.clone(), voters.contains(node)));
        let index = |log_id: Option<LogId>| log_id.map(|log_id| log_id.index);
        View {
            node: metrics.id,
            state: match metrics.state {
                ServerState::Leader => "leader",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "stopped",
            },
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied: index(metrics.last_applied).unwrap_or_default(),
            snapshot: index(metrics.snapshot),
            purged: index(metrics.purged),
            members: members.collect(),
        }
    }
}
