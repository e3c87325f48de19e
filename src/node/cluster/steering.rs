//! What the doors are given of a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::cluster::{CAUGHT_UP_ENTRIES, CatchUp, Member, NodeId, Standing};
use crate::disk::encode_change;
use crate::doors::{self, Awaited, AwaitedChange, Instance, Steered};
use crate::engine::group::{Group, Undecided};
use crate::metrics::cells::ClusterFigures;
use crate::policy::ByHand;

use super::Node;
use super::host::{CHANGE_BY_HAND, InstanceHost, Sources};
use super::joining::invite;

/// Performs groups through the log.
pub(super) struct Consensus(Arc<Node>);

impl Consensus {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self(node)
    }
}

impl doors::Consensus for Consensus {
    fn perform(&self, group: &Group, policy: u64, deadline_nanos: Option<u64>) -> Awaited {
        let answer = self.0.origin.perform(group, policy, deadline_nanos);
        // Nobody answers any more once the node stops.
        Box::pin(async { answer.await.unwrap_or(Err(Undecided::Unknown)) })
    }

    fn perform_unheard(&self, group: &Group, policy: u64) {
        self.0.origin.perform_unheard(group, policy);
    }

    fn is_in_contact(&self) -> bool {
        self.0.is_in_contact()
    }

    fn led_by_other(&self) -> Option<u64> {
        self.0.leader().filter(|leader| *leader != self.0.origin.node())
    }

    fn count_shortcuts(&self, denials: u64) {
        self.0.counts.shortcut_denials.fetch_add(denials, Ordering::Relaxed);
    }
}

/// Does what operators ask of the cluster.
pub(super) struct Steering {
    node: Arc<Node>,
    instance: Arc<Instance>,
    host: Arc<InstanceHost>,
    runtime: tokio::runtime::Handle,
}

impl Steering {
    pub(super) fn new(
        node: Arc<Node>,
        instance: Arc<Instance>,
        host: Arc<InstanceHost>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self { node, instance, host, runtime }
    }

    fn change(&self, change: Bytes) -> AwaitedChange {
        let answer = self.node.origin.change(change);
        Box::pin(async { answer.await.unwrap_or(Err(Undecided::Unknown)) })
    }

    /// Does something where the cluster runs.
    fn there<F>(&self, work: F) -> Steered
    where
        F: Future<Output = Result<Value, String>> + Send + 'static,
    {
        let work = self.runtime.spawn(work);
        Box::pin(async { work.await.unwrap_or_else(|_| Err("the node is stopping".to_owned())) })
    }
}

impl doors::Steering for Steering {
    fn by_hand(&self, change: &ByHand) -> AwaitedChange {
        let mut bytes = vec![CHANGE_BY_HAND];
        bytes.extend_from_slice(&encode_change(change));
        self.change(bytes.into())
    }

    fn policy(&self, origin: String, texts: Vec<(String, String)>) -> AwaitedChange {
        match (Sources { origin, texts }).to_change() {
            Ok(change) => self.change(change),
            Err(too_long) => Box::pin(async { Ok(Err(too_long)) }),
        }
    }

    fn figures(&self) -> ClusterFigures {
        let (view, counts) = (self.node.view(), &self.node.counts);
        let own = self.node.standing();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (commits, committed) = counts.commits_at(&[0.5, 0.99, 0.999]);
        let peer = |(node, standing): (NodeId, Standing)| {
            let ahead = standing.ahead_nanos as f64 - own.ahead_nanos as f64;
            (node, own.applied.saturating_sub(standing.applied), ahead / 1e9)
        };
        ClusterFigures {
            leads: view.leader == Some(view.node),
            term: view.term,
            applied: own.applied,
            in_contact: self.node.is_in_contact(),
            diverged: counts.diverged.load(Ordering::Relaxed),
            clock_handovers: counts.clock_handovers.load(Ordering::Relaxed),
            entries: [&counts.entries, &counts.groups, &counts.bytes, &counts.commands].map(load),
            requests: [&counts.forwarded, &counts.resubmitted, &counts.shortcut_denials].map(load),
            waiting: self.node.origin.waiting() as u64,
            commit_seconds: ([0, 1, 2].map(|at| commits[at] as f64 / 1e9), committed),
            peers: self.node.others().into_iter().map(peer).collect(),
            snapshot_index: view.snapshot.unwrap_or_default(),
        }
    }

    fn status(&self) -> Steered {
        let (node, instance) = (Arc::clone(&self.node), Arc::clone(&self.instance));
        self.there(async move { Ok(status(&node, &instance)) })
    }

    fn readiness(&self) -> Result<String, String> {
        if !self.node.can_decide() {
            return Err("no leader with a majority is in reach".to_owned());
        }
        if !self.host.is_seeded() {
            return Err("the log has brought no policy yet".to_owned());
        }
        Ok("in contact with a majority".to_owned())
    }

    fn add(&self, node: u64, peer: String) -> Steered {
        let running = Arc::clone(&self.node);
        let identity = self.host.identity();
        self.there(async move {
            if running.is_voter(node) {
                return Err(format!("node {node} is a member already; numbers are not used again"));
            }
            match running.learner(node) {
                Some(member) if member.peer == peer => {}
                Some(member) => {
                    return Err(format!(
                        "node {node} learns already, at {}; remove it first",
                        member.peer
                    ));
                }
                None => {
                    let member = Member { peer, clients: String::new() };
                    let joins = async {
                        invite(&running.peers, node, &member, identity).await?;
                        running.add_learner(node, member.clone()).await
                    };
                    running.with_guest(node, joins).await?;
                }
            }
            Ok(json!({ "node": node, "role": "learner" }))
        })
    }

    fn promote(&self, node: u64) -> Steered {
        let running = Arc::clone(&self.node);
        self.there(async move {
            Ok(match running.promote(node).await? {
                CatchUp::Votes => json!({ "node": node, "role": "voter" }),
                CatchUp::Learns { lag } => json!({
                    "node": node,
                    "role": "learner",
                    "lag": lag,
                    "lag_max": CAUGHT_UP_ENTRIES,
                }),
            })
        })
    }

    fn remove(&self, node: u64) -> Steered {
        let running = Arc::clone(&self.node);
        self.there(async move {
            running.remove(node).await?;
            Ok(json!({ "removed": node }))
        })
    }

    fn transfer(&self, to: Option<u64>) -> Steered {
        let running = Arc::clone(&self.node);
        self.there(async move {
            running.transfer(to).await?;
            Ok(json!({ "leader": running.leader() }))
        })
    }

    fn snapshot(&self) -> Steered {
        let running = Arc::clone(&self.node);
        self.there(async move {
            running.snapshot().await?;
            Ok(json!({ "snapshot": "asked for" }))
        })
    }
}

/// How the cluster stands, as this node sees it.
fn status(node: &Node, instance: &Instance) -> Value {
    let standing = node.standing();
    let others = node.others();
    let view = node.view();
    let entry = |id: NodeId, peer: &str, role: &str| {
        let known = if id == view.node { Some(standing) } else { others.get(&id).copied() };
        let ahead = known.map(|known| known.ahead_nanos as i64 - standing.ahead_nanos as i64);
        let leader_applied = view.applied;
        json!({
            "node": id,
            "peer": peer,
            "role": role,
            "reachable": known.is_some(),
            "applied": known.map(|known| known.applied),
            "lag": known.map(|known| leader_applied.saturating_sub(known.applied)),
            "state_hash": known.filter(|known| known.hashed_at > 0)
                .map(|known| format!("{:016x}", known.hash)),
            "state_hash_at": known.filter(|known| known.hashed_at > 0).map(|known| known.hashed_at),
            "clock_offset_ms": ahead.map(|ahead| ahead as f64 / 1e6),
            "keys": known.map(|known| known.keys),
        })
    };
    let nodes: Vec<Value> = view
        .members
        .iter()
        .map(|(id, peer, is_voter)| entry(*id, peer, if *is_voter { "voter" } else { "learner" }))
        .collect();
    let counts = &node.counts;
    let (commits, committed) = counts.commits_at(&[0.5, 0.99, 0.999]);
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    json!({
        "node": view.node,
        "state": view.state,
        "leader": view.leader,
        "term": view.term,
        "applied": standing.applied,
        "cluster_time_ns": instance.clock.now().time.as_nanos(),
        "policy": format!("{:016x}", instance.policy.load().policy.version()),
        "snapshot_index": view.snapshot,
        "purged_index": view.purged,
        "diverged": counts.diverged.load(Ordering::Relaxed),
        "nodes": nodes,
        "counts": {
            "entries": load(&counts.entries),
            "groups": load(&counts.groups),
            "commands": load(&counts.commands),
            "entry_bytes": load(&counts.bytes),
            "forwarded": load(&counts.forwarded),
            "resubmitted": load(&counts.resubmitted),
            "shortcut_denials": load(&counts.shortcut_denials),
            "commits": committed,
            "commit_p50_us": commits[0] / 1000,
            "commit_p99_us": commits[1] / 1000,
            "commit_p999_us": commits[2] / 1000,
            "waiting": node.origin.waiting(),
        },
    })
}
