//! What happened in a run: requests with the times of their calls and replies, what nodes applied,
//! and the trace, a hash of all of it in order.
#![allow(clippy::print_stdout, reason = "the trace of one seed is for people to read")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::disk::log::Vote;
use crate::engine::time::Now;

use super::invariants::asked_once::AskedOnce;
use super::invariants::disk::Votes;
use super::invariants::permits::Permits;
use super::invariants::policy::Policies;
use super::invariants::same_state::{SameState, State};
use super::invariants::time::ClusterTime;
use super::limits::Limit;

/// FNV-1a over words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Hash {
    pub(super) fn put(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }
}

/// What a check was asked to charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) charges: Vec<(Limit, u64)>,
}

impl Asked {
    pub(super) fn cost_of(&self, limit: Limit) -> u64 {
        self.charges.iter().filter(|(of, _)| *of == limit).map(|(_, cost)| cost).sum()
    }
}

/// What a client knows of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was charged.
    Charged,
    /// It was not.
    NotCharged,
    /// It may have been.
    Unknown,
}

/// A check and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) asked: Asked,
    /// True time of the call and of the reply, in nanoseconds.
    pub(super) called_at: u64,
    pub(super) replied_at: u64,
    pub(super) known: Known,
}

/// What is known of a run. Shared by all who see something of it.
pub(super) struct Oracle {
    /// True time, in nanoseconds.
    pub(super) now: u64,
    pub(super) done: Vec<Done>,
    /// The units that requests with ids were charged, by client and number: once each.
    pub(super) once: BTreeMap<(usize, u64), u64>,
    pub(super) same_state: SameState,
    pub(super) time: ClusterTime,
    pub(super) permits: Permits,
    pub(super) policies: Policies,
    pub(super) asked_once: AskedOnce,
    pub(super) votes: Votes,
    pub(super) restores: u64,
    /// The first thing that must not be.
    pub(super) broken: Option<String>,
    pub(super) says_all: bool,
    trace: Hash,
    pub(super) events: u64,
}

pub(super) type SharedOracle = Arc<Mutex<Oracle>>;

impl Oracle {
    pub(super) fn new(nodes: usize, says_all: bool) -> Self {
        Self {
            now: 0,
            done: Vec::new(),
            once: BTreeMap::new(),
            same_state: SameState::default(),
            time: ClusterTime::new(nodes),
            permits: Permits::default(),
            policies: Policies::default(),
            asked_once: AskedOnce::new(nodes),
            votes: Votes::new(nodes),
            restores: 0,
            broken: None,
            says_all,
            trace: Hash::default(),
            events: 0,
        }
    }

    /// Puts an event into the trace.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String, words: &[u64]) {
        self.events += 1;
        self.trace.put(self.now);
        words.iter().for_each(|word| self.trace.put(*word));
        if self.says_all {
            println!("{:>9.3} {}", self.now as f64 / 1e9, what());
        }
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace.value()
    }

    /// Keeps the first break of an invariant.
    pub(super) fn hold(&mut self, held: Result<(), String>) {
        if let Err(why) = held {
            let now = self.now as f64 / 1e9;
            self.broken.get_or_insert_with(|| format!("at {now:.3} s: {why}"));
        }
    }

    /// A node applied an entry, or took over a snapshot.
    pub(super) fn followed(&mut self, node: usize, now: Now, state: State) {
        let State { table, sessions, policy } = state;
        let (time, utc) = (now.time.as_nanos(), now.utc.as_nanos());
        let words = [1, node as u64, time, utc, table, sessions, policy];
        let what = || format!("node {node} is at {time}: {table:x} {sessions:x} {policy}");
        self.note(what, &words);
        let held = self.same_state.at(node, now, state);
        self.hold(held);
        let held = self.time.at(node, now, self.now);
        self.hold(held);
    }

    /// A node has applied entries up to this index.
    pub(super) fn reached(&mut self, node: usize, index: u64, state: State) {
        let held = self.same_state.at_index(node, index, state);
        self.hold(held);
    }

    /// A node took over a snapshot.
    pub(super) fn restored(&mut self, node: usize) {
        self.restores += 1;
        self.note(|| format!("node {node} takes over a snapshot"), &[2, node as u64]);
    }

    /// A node put a policy in force.
    pub(super) fn switched(&mut self, version: u64, now: Now) {
        let held = self.policies.switched(version, now);
        self.hold(held);
    }

    /// A node was told that a vote is on disk.
    pub(super) fn voted(&mut self, node: usize, vote: Option<Vote>) {
        if self.votes.saved(node, vote) {
            let words = [3, node as u64, vote.map_or(0, |vote| vote.term)];
            self.note(|| format!("node {node} votes {vote:?}"), &words);
        }
    }
}
