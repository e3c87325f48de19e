//! What a disk was said to have it has after a loss of power: here, votes. (Entries are the matter
//! of the other invariants.)

use crate::disk::log::Vote;

pub(in super::super) struct Votes {
    saved: Vec<Option<Vote>>,
}

fn order(vote: Option<Vote>) -> Option<(u64, u64, bool)> {
    vote.map(|vote| (vote.term, vote.node, vote.is_committed))
}

impl Votes {
    pub(in super::super) fn new(nodes: usize) -> Self {
        Self { saved: vec![None; nodes] }
    }

    /// A node was told that this vote is on disk. Returns whether it is another one.
    pub(in super::super) fn saved(&mut self, node: usize, vote: Option<Vote>) -> bool {
        let is_news = self.saved[node] != vote;
        self.saved[node] = vote;
        is_news
    }

    /// The last vote of a node that is on disk.
    pub(in super::super) fn of(&self, node: usize) -> Option<Vote> {
        self.saved[node]
    }

    /// A node found this vote when it started.
    pub(in super::super) fn found(&self, node: usize, vote: Option<Vote>) -> Result<(), String> {
        let saved = self.saved[node];
        if order(vote) < order(saved) {
            return Err(format!("node {node} had saved {saved:?} and finds {vote:?}"));
        }
        Ok(())
    }
}
