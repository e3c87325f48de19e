//! What a cluster needs of the node it runs in: that which its log is applied to. `node` has it;
//! here are the two seams.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::clock::{Os, Reading};
use crate::disk::{Beside, Header, Storage};
use crate::engine::group::{Group, Performed};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::session::Sessions;
use crate::engine::table::Table;
use crate::engine::time::Now;

use super::entry::Tag;

/// What the log is applied to. Only the log changes it, so that it is the same at every node that
/// has applied as much.
pub trait Host: Send + Sync + 'static {
    /// Every counter.
    fn table(&self) -> Arc<Table>;

    /// Requests that were done.
    fn sessions(&self) -> &Mutex<Sessions>;

    /// Version of the policy in force; a group of another one is answered as stale.
    fn policy_version(&self) -> u64;

    /// It is `now` in the cluster, as of this moment.
    fn follow(&self, now: Now);

    /// Makes a change of policy, overrides or identities. Every node makes the same of the same
    /// change. What comes of it is told to whoever asked.
    ///
    /// # Errors
    /// What is wrong with it, for people; nothing has changed then.
    fn change(&self, change: &[u8], now: Now) -> Result<String, String>;

    /// Everything of a snapshot but the counters: `header` with what the host knows filled in, and
    /// policy, overrides and identities as opaque bytes.
    fn beside(&self, header: Header) -> (Beside, Vec<u8>);

    /// Takes over a snapshot's table, sessions, policy, overrides and identities.
    ///
    /// # Errors
    /// What does not fit, for people; the node cannot go on then.
    fn restore(&self, restored: Restored) -> Result<(), String>;

    /// An empty table for a snapshot, of the shape that this node's tables have.
    fn empty_table(&self) -> Table;

    /// Who is told what comes of each group, whoever asked it. Nobody, unless a log is replayed.
    fn audit(&self) -> Option<&dyn Audit> {
        None
    }
}

/// Is told what came of groups that are applied.
pub trait Audit: Send + Sync {
    /// A group was performed.
    fn performed(&self, tag: &Tag, group: &Group, performed: &Performed);
}

/// What a snapshot brings.
pub struct Restored {
    /// Its counters.
    pub table: Table,
    /// Its sessions, and how many were ever opened.
    pub sessions: (u64, Vec<crate::engine::session::SavedSession>),
    /// What [`Host::beside`] gave as opaque bytes.
    pub opaque: Bytes,
    /// Its moment.
    pub now: Now,
}

/// A directory of a node's files that its threads share.
pub trait Disk: Storage<File: Send + Sync, Bytes: Send + 'static> + Send + Sync + 'static {}

impl<S: Storage<File: Send + Sync, Bytes: Send + 'static> + Send + Sync + 'static> Disk for S {}

/// The clocks of a node: the system's, or a simulation's.
pub trait Readings: Send + Sync + 'static {
    /// What they say now.
    fn read(&self) -> Reading;
}

/// The time by which cluster time advances: raw, so that no step of the wall clock moves it.
pub(super) fn advancing(reading: Reading) -> u64 {
    if planted(Mutant::StampByWall) { reading.wall } else { reading.raw }
}

/// The operating system's clocks.
pub struct SystemReadings;

impl Readings for SystemReadings {
    fn read(&self) -> Reading {
        Os::read()
    }
}
