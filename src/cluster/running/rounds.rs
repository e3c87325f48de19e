//! What a node looks after while it runs: links to all members, and round by round how the others
//! stand. From that come the clocks of a majority, complaints of a clock that runs fast, and the
//! comparison of tables.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{RaftMetrics, ServerState};

use crate::clock::Watchdog;
use crate::cluster::counts::Counts;
use crate::cluster::host::Disk;
use crate::cluster::types::{NodeId, TypeConfig};

use super::Running;
use super::standing::Standing;

/// How often nodes ask each other for their clocks and how far they are.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How often new members are looked for, to which there is to be a link.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Every so many rounds of asking the tables are hashed and compared, where they are small.
const CHECKSUM_ROUNDS: u64 = 30;

/// The most counters of a table that is hashed without being asked.
const CHECKSUM_KEYS_MAX: u64 = 200_000;

impl<S: Disk> Running<S> {
    /// Sees to a link to each other member: whichever leads next, requests can go there at once.
    /// One that is no member any more is not dialed again.
    fn know_members(&self) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        for (node, member) in membership.nodes() {
            if *node != metrics.id {
                // The transport has said so in the log, and tries again.
                let _ = self.peers.know(*node, member);
            }
        }
        // A node that was removed itself may only not have heard yet that it was not.
        if membership.get_node(&metrics.id).is_some() {
            let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
            self.peers.forget_all_but(|node| {
                membership.get_node(&node).is_some() || guests.contains(&node)
            });
        }
    }

    /// Hands leadership over if a majority finds this leader's clock to run fast: cluster time
    /// follows it, and with it every refill.
    async fn heed_complaints(&self, metrics: &RaftMetrics<TypeConfig>, voters: &[NodeId]) {
        if metrics.state != ServerState::Leader {
            return;
        }
        let complaints = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            let term = metrics.current_term;
            let of = |node: &&NodeId| standing.get(node).is_some_and(|it| it.fast_clock == term);
            voters.iter().filter(of).count()
        };
        if complaints <= voters.len() / 2 {
            return;
        }
        tracing::error!(
            complaints,
            "this node's clock runs fast, say most nodes: it hands leadership over; have its \
             hardware looked at"
        );
        match self.transfer(None).await {
            Ok(()) => _ = self.counts.clock_handovers.fetch_add(1, Ordering::Relaxed),
            Err(error) => tracing::error!(error, "leadership could not be handed over"),
        }
    }
}

/// Asks the other nodes for their clocks and how far they are, and compares tables.
pub(super) async fn ask_around<S: Disk>(running: Weak<Running<S>>) {
    let looks_between = (ASK_EVERY.as_millis() / LOOK_EVERY.as_millis()).max(1) as u64;
    let (mut rounds, mut looks) = (0_u64, 0_u64);
    let mut watchdog = Watchdog::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(running) = running.upgrade() else { return };
        running.know_members();
        looks += 1;
        if !looks.is_multiple_of(looks_between) {
            continue;
        }
        let metrics = running.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let applied = running.origin.applied();
        if let Some(leader) = applied.leader() {
            watchdog.note(leader.term, applied.now.time.as_nanos(), applied.raw);
            running.counts.note_fast_clock(watchdog.fast());
        }
        let own = running.standing();
        let mut said = HashMap::new();
        if own.applied > 0 {
            said.insert(metrics.id, own.ahead_nanos);
        }
        for (node, member) in membership.nodes() {
            if *node == metrics.id || running.peers.know(*node, member).is_err() {
                continue;
            }
            let asked = running.ask_standing(*node).await;
            let mut standing = running.standing.lock().unwrap_or_else(PoisonError::into_inner);
            match asked {
                Some(other) => {
                    standing.insert(*node, other);
                    if other.applied > 0 && voters.contains(node) {
                        said.insert(*node, other.ahead_nanos);
                    }
                    compare(&running.counts, &own, *node, &other);
                }
                None => _ = standing.remove(node),
            }
        }
        running.counts.ahead.note(said, voters.len());
        running.heed_complaints(&metrics, &voters).await;
        rounds += 1;
        if rounds.is_multiple_of(CHECKSUM_ROUNDS) && own.keys <= CHECKSUM_KEYS_MAX {
            running.counts.ask_checksum();
            running.origin.news.notify_one();
        }
    }
}

/// Compares two tables that were hashed at one index.
fn compare(counts: &Counts, own: &Standing, node: NodeId, other: &Standing) {
    let comparable = own.hashed_at > 0 && own.hashed_at == other.hashed_at;
    if comparable && own.hash != other.hash {
        counts.diverged.store(true, Ordering::Relaxed);
        tracing::error!(
            index = own.hashed_at,
            node,
            own = own.hash,
            other = other.hash,
            "two nodes have different tables at one index: one of them is wrong; report this, and \
             replace the node that differs from the majority"
        );
    }
}
