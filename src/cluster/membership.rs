//! Who belongs to a cluster, and who leads it: changes that an operator asks for.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, ServerState};

use super::host::Disk;
use super::running::{APPEND_ENTRIES_MAX, ELECTION_MILLIS, Running};
use super::types::{Member, NodeId, TypeConfig};

/// Entries by which a node may be behind and still be given a vote: what one append makes up for.
/// A vote of a node that is further behind would make a majority that has to wait for it.
pub const CAUGHT_UP_ENTRIES: u64 = APPEND_ENTRIES_MAX;

/// How far a node is that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// It votes.
    Votes,
    /// It learns.
    Learns {
        /// Entries that it has yet to apply; `None` if it does not answer.
        lag: Option<u64>,
    },
}

impl<S: Disk> Running<S> {
    /// Adds a node as one that learns and does not vote. Does nothing if it learns already. Does not
    /// wait until it has caught up.
    ///
    /// # Errors
    /// Why not; of a node that does not lead, who does.
    pub async fn add_learner(&self, node: NodeId, member: Member) -> Result<(), String> {
        let added = self.raft.add_learner(node, member, false).await;
        added.map(drop).map_err(refused)
    }

    /// Gives a node that learns a vote, if it has applied all but [`CAUGHT_UP_ENTRIES`] of what this
    /// one has, by its own word; says how far it is. Returns once it has the vote.
    ///
    /// # Errors
    /// Why not; of a node that does not lead, who does.
    pub async fn promote(&self, node: NodeId) -> Result<CatchUp, String> {
        self.must_lead()?;
        if self.is_voter(node) {
            return Ok(CatchUp::Votes);
        }
        if self.learner(node).is_none() {
            return Err(format!("node {node} does not belong to the cluster: add it first"));
        }
        let standing = self.ask_standing(node).await;
        let applied = self.origin.applied().log_id.map_or(0, |log_id| log_id.index);
        let lag = standing.map(|other| applied.saturating_sub(other.applied));
        // One that has applied nothing yet has not caught up with a young cluster either.
        let has_begun = standing.is_some_and(|other| other.applied > 0);
        if !has_begun || lag.is_none_or(|lag| lag > CAUGHT_UP_ENTRIES) {
            return Ok(CatchUp::Learns { lag });
        }
        let change = ChangeMembers::AddVoterIds([node].into());
        let changed = self.raft.change_membership(change, false).await;
        changed.map_err(refused)?;
        Ok(CatchUp::Votes)
    }

    /// Removes a node, whether it votes or learns.
    ///
    /// # Errors
    /// Why not; of a node that does not lead, who does.
    pub async fn remove(&self, node: NodeId) -> Result<(), String> {
        let voters: Vec<NodeId> = self.raft.voter_ids().collect();
        let change = if self.learner(node).is_some() {
            ChangeMembers::RemoveNodes([node].into())
        } else if !voters.contains(&node) {
            return Err(format!("node {node} is no member; members are {voters:?}"));
        } else if voters.len() == 1 {
            return Err(format!("node {node} is the only member"));
        } else {
            ChangeMembers::RemoveVoters([node].into())
        };
        let changed = self.raft.change_membership(change, false).await;
        changed.map(drop).map_err(refused)
    }

    /// Whether a node votes.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.raft.voter_ids().any(|voter| voter == node)
    }

    /// How a node is reached that learns and does not vote, if it does.
    pub fn learner(&self, node: NodeId) -> Option<Member> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let votes = membership.voter_ids().any(|voter| voter == node);
        membership.get_node(&node).filter(|_| !votes).cloned()
    }

    /// Says who leads, where this node does not.
    fn must_lead(&self) -> Result<(), String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state == ServerState::Leader {
            return Ok(());
        }
        Err(asked_of(metrics.current_leader))
    }

    /// Hands leadership to another node, to any that has caught up if none is named. Returns once
    /// this node does not lead any more.
    ///
    /// # Errors
    /// Why not.
    pub async fn transfer(&self, to: Option<NodeId>) -> Result<(), String> {
        self.must_lead()?;
        let metrics = self.raft.metrics().borrow_watched().clone();
        let caught_up =
            metrics.replication.iter().flatten().filter(|(node, _)| **node != metrics.id);
        let best = caught_up.max_by_key(|(_, matched)| matched.as_ref().map(|log_id| log_id.index));
        let to = to.or(best.map(|(node, _)| *node));
        let to = to.ok_or("there is no other node")?;
        self.raft.trigger().transfer_leader(to).await.map_err(|error| error.to_string())?;
        let wait = self.raft.wait(Some(Duration::from_millis(3 * ELECTION_MILLIS.1)));
        let gone =
            wait.metrics(|metrics| metrics.current_leader != Some(metrics.id), "handed over");
        gone.await.map(drop).map_err(|error| error.to_string())
    }
}

/// Whom to ask.
fn asked_of(leader: Option<NodeId>) -> String {
    match leader {
        Some(leader) => format!("this node does not lead; ask node {leader}"),
        None => "there is no leader at the moment".to_owned(),
    }
}

fn refused(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> String {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => asked_of(to.leader_id),
        error => error.to_string(),
    }
}
