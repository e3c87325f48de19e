//! Replays a node's log while the node is down, by the machine that nodes run. The log on disk is not
//! changed.

use std::io;
use std::sync::Arc;

use openraft::EntryPayload;

use crate::disk::log::{Entry, Position, Stored};
use crate::engine::time::Now;

use super::counts::Counts;
use super::entry::{Record, What};
use super::host::{Disk, Host, SystemReadings};
use super::log_store::entry_of;
use super::machine::{Machine, SharedHome, lock, meta_of};
use super::origin::Origin;
use super::types::{self, LogEntry, NodeId};

/// The most terms and hashes that are told, the last ones.
const TOLD_MAX: usize = 1000;

/// What a log is replayed from and on.
pub struct Plan<S: Disk> {
    /// The node.
    pub node: NodeId,
    /// Its snapshots, from one of which the replay goes on where the first entries are purged.
    pub home: SharedHome<S>,
    /// Its log.
    pub log: Stored<S>,
    /// What the log is applied to; nothing was yet. Its audit is told of each group.
    pub host: Arc<dyn Host>,
    /// Up to which entry; `None`: the last one that was noted as committed.
    pub to: Option<u64>,
}

/// What a replay came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The snapshot from which it went on: its number, and the index that it reaches.
    pub from: Option<(u64, u64)>,
    /// The last entry that was applied.
    pub to: Option<u64>,
    /// Entries behind it, which were not applied.
    pub not_applied: u64,
    /// Entries that were applied, by kind.
    pub kinds: Kinds,
    /// Terms of which entries were applied, with the index of the first and the last one.
    pub terms: Vec<(Term, u64, u64)>,
    /// Voters and learners, as of the last entry.
    pub members: Vec<(NodeId, String, bool)>,
    /// Hashes of the table at the indexes at which all nodes hashed theirs.
    pub hashes: Vec<(u64, u64)>,
    /// The hash at the end, at the last moment.
    pub hash: u64,
    /// The last moment.
    pub now: Now,
}

/// Entries by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Raft's own, with nothing in them.
    pub blank: u64,
    /// Who belongs to the cluster.
    pub membership: u64,
    /// The first of a leader.
    pub fence: u64,
    /// Requests.
    pub groups: u64,
    /// Changes of policy, overrides, identities, counters set by hand.
    pub change: u64,
    /// At which all nodes hash their tables.
    pub checksum: u64,
}

/// A leader's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// Its number.
    pub term: u64,
    /// Its leader.
    pub leader: NodeId,
}

/// Replays a log.
///
/// # Errors
/// The entries that are left begin behind the last snapshot, a snapshot cannot be read, or an entry
/// cannot be applied.
pub fn replay<S: Disk>(plan: Plan<S>) -> io::Result<Replayed> {
    let Plan { node, home, log, host, to } = plan;
    let readings = Arc::new(SystemReadings);
    let counts: Arc<Counts> = Arc::default();
    // Nobody has asked for anything in this run, so nobody is answered.
    let origin = Arc::new(Origin::new(node, 0, readings.clone()));
    let mut machine =
        Machine::new(Arc::clone(&host), origin, Arc::clone(&counts), readings, Arc::clone(&home));
    let mut replayed = Replayed { from: begin(&mut machine, &home, &log)?, ..Replayed::default() };
    let to = to.or(log.committed().map(|committed| committed.index));
    let after = machine.applied().map(|applied| applied.index);
    log.for_each(|entry| {
        let index = entry.position.index;
        if after.is_some_and(|after| index <= after) {
            return Ok(());
        }
        if to.is_none_or(|to| index > to) {
            replayed.not_applied += 1;
            return Ok(());
        }
        replayed.note(&entry)?;
        machine.apply_entry(entry_of(entry)?)?;
        if let Some(checksum) = counts.checksum().filter(|(at, _)| *at == index) {
            push(&mut replayed.hashes, checksum);
        }
        Ok::<_, io::Error>(())
    })?;
    replayed.to = machine.applied().map(|applied| applied.index);
    let membership = machine.membership().membership();
    let voters: Vec<NodeId> = membership.voter_ids().collect();
    replayed.members = membership
        .nodes()
        .map(|(node, member)| (*node, member.peer.clone(), voters.contains(node)))
        .collect();
    replayed.now = machine.now();
    replayed.hash = host.table().hash(replayed.now);
    Ok(replayed)
}

/// Takes over the oldest snapshot from which the log goes on, where its first entries are purged.
fn begin<S: Disk>(
    machine: &mut Machine<S>,
    home: &SharedHome<S>,
    log: &Stored<S>,
) -> io::Result<Option<(u64, u64)>> {
    let Some(purged) = log.purged() else { return Ok(None) };
    let numbers = lock(home).numbers().to_vec();
    for number in numbers {
        let meta = meta_of(&lock(home), number)?;
        let Some(index) = meta.last_log_id.as_ref().map(|log_id| log_id.index) else { continue };
        if index >= purged.index {
            machine.take_over(&meta, number)?;
            return Ok(Some((number, index)));
        }
    }
    let what = format!(
        "entries up to {} are purged, and no snapshot reaches so far: there is nothing to begin from",
        purged.index
    );
    Err(io::Error::new(io::ErrorKind::NotFound, what))
}

impl Replayed {
    /// Counts an entry that is about to be applied.
    fn note(&mut self, entry: &Entry) -> io::Result<()> {
        let Position { term, node: leader, index } = entry.position;
        let term = Term { term, leader };
        match self.terms.last_mut() {
            Some((last, _, to)) if *last == term => *to = index,
            _ => push(&mut self.terms, (term, index, index)),
        }
        let LogEntry { payload, .. } = entry_of(entry.clone())?;
        let kind = match payload {
            EntryPayload::Blank => &mut self.kinds.blank,
            EntryPayload::Membership(_) => &mut self.kinds.membership,
            EntryPayload::Normal(types::Entry(bytes)) => {
                let record = Record::decode(bytes);
                // What is wrong with it is said when it is applied.
                match record.map(|record| record.what) {
                    Ok(What::Groups(_)) | Err(_) => &mut self.kinds.groups,
                    Ok(What::Fence) => &mut self.kinds.fence,
                    Ok(What::Change { .. }) => &mut self.kinds.change,
                    Ok(What::Checksum) => &mut self.kinds.checksum,
                }
            }
        };
        *kind += 1;
        Ok(())
    }
}

/// Keeps the last ones.
fn push<T>(told: &mut Vec<T>, one: T) {
    if told.len() == TOLD_MAX {
        told.remove(0);
    }
    told.push(one);
}
