//! Cluster time never goes back at a node, and never runs ahead of true time by more than clocks
//! may be off.

use crate::engine::time::Now;

/// Parts in a million by which clocks may be off.
const OFF_PPM: u64 = 2000;

/// Stamps begin so far from zero, at most.
const SLACK_NANOS: u64 = 1_000_000;

pub(in super::super) struct ClusterTime {
    last: Vec<u64>,
}

impl ClusterTime {
    pub(in super::super) fn new(nodes: usize) -> Self {
        Self { last: vec![0; nodes] }
    }

    /// A node applied an entry of this moment when true time was `true_nanos` since the start.
    pub(in super::super) fn at(
        &mut self,
        node: usize,
        now: Now,
        true_nanos: u64,
    ) -> Result<(), String> {
        let time = now.time.as_nanos();
        let most = true_nanos + true_nanos / 1_000_000 * OFF_PPM + SLACK_NANOS;
        if time > most {
            return Err(format!("it is {time} in the cluster, {true_nanos} have passed"));
        }
        if time < self.last[node] {
            return Err(format!("time goes back at node {node}: {time} after {}", self.last[node]));
        }
        self.last[node] = time;
        Ok(())
    }

    /// A node begins anew and applies its log again.
    pub(in super::super) fn restarted(&mut self, node: usize) {
        self.last[node] = 0;
    }
}
