//! What the log of a simulated node is applied to: a table, sessions, and the number of a policy.
//! After each entry the oracle is told what it all comes to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};

use crate::cluster::entry::Tag;
use crate::cluster::host::{Audit, Host, Restored};
use crate::disk::{Beside, Header};
use crate::engine::group::{Group, Performed};
use crate::engine::key::Seed;
use crate::engine::session::Sessions;
use crate::engine::table::Table;
use crate::engine::time::Now;

use super::history::SharedOracle;
use super::invariants::same_state::State;
use super::limits;

/// The most counters. So few that the leader looks for room at every request.
const KEYS_MAX: u64 = 2000;

pub(super) struct SimHost {
    node: usize,
    table: Mutex<Arc<Table>>,
    sessions: Mutex<Sessions>,
    policy: AtomicU64,
    /// Hashes of table and sessions, and the policy, as of the last entry.
    last: Mutex<Option<State>>,
    oracle: SharedOracle,
}

impl SimHost {
    pub(super) fn new(node: usize, oracle: SharedOracle) -> Self {
        let seed = Seed::new(limits::SEED);
        let sessions = Mutex::new(Sessions::new(&seed));
        let table = Mutex::new(Arc::new(empty_table()));
        let policy = AtomicU64::new(limits::FIRST_POLICY);
        Self { node, table, sessions, policy, last: Mutex::new(None), oracle }
    }

    /// What the last entry that was applied left.
    pub(super) fn last(&self) -> Option<State> {
        *self.last.lock().unwrap()
    }

    fn hash_of_sessions(&self) -> u64 {
        let (opened, saved) = self.sessions.lock().unwrap().saved();
        let mut hash = super::history::Hash::default();
        hash.put(opened);
        for session in saved {
            hash.put(session.name);
            hash.put(session.highest);
            hash.put(session.used_at.as_nanos());
            session.done.iter().for_each(|word| hash.put(*word));
        }
        hash.value()
    }
}

fn empty_table() -> Table {
    let table = Table::new(KEYS_MAX, &Seed::new(limits::SEED));
    table.keep_caps_elsewhere();
    table
}

impl Host for SimHost {
    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap())
    }

    fn sessions(&self) -> &Mutex<Sessions> {
        &self.sessions
    }

    fn policy_version(&self) -> u64 {
        self.policy.load(Ordering::Relaxed)
    }

    fn follow(&self, now: Now) {
        // While a snapshot waits to be written the table cannot be hashed.
        let table = self.table().hash(now);
        let state =
            State { table, sessions: self.hash_of_sessions(), policy: self.policy_version() };
        *self.last.lock().unwrap() = Some(state);
        self.oracle.lock().unwrap().followed(self.node, now, state);
    }

    fn change(&self, mut change: &[u8], now: Now) -> Result<String, String> {
        let version = change.try_get_u64_le().map_err(|_| "the change is cut off")?;
        if version <= self.policy_version() {
            return Err("an older policy".to_owned());
        }
        self.policy.store(version, Ordering::Relaxed);
        self.oracle.lock().unwrap().switched(version, now);
        Ok(version.to_string())
    }

    fn beside(&self, header: Header) -> (Beside, Vec<u8>) {
        let (sessions_opened, sessions) = self.sessions.lock().unwrap().saved();
        let header = Header { policy: self.policy_version(), sessions_opened, ..header };
        let opaque = self.policy_version().to_le_bytes().to_vec();
        (Beside { header, limits: limits::names(), sessions, cluster: Vec::new() }, opaque)
    }

    fn restore(&self, restored: Restored) -> Result<(), String> {
        let Restored { table, sessions: (opened, saved), mut opaque, .. } = restored;
        *self.table.lock().unwrap() = Arc::new(table);
        let mut sessions = Sessions::new(&Seed::new(limits::SEED));
        sessions.restore(opened, saved);
        *self.sessions.lock().unwrap() = sessions;
        let policy = Bytes::try_get_u64_le(&mut opaque).map_err(|error| error.to_string())?;
        self.policy.store(policy, Ordering::Relaxed);
        self.oracle.lock().unwrap().restored(self.node);
        Ok(())
    }

    fn empty_table(&self) -> Table {
        empty_table()
    }

    fn audit(&self) -> Option<&dyn Audit> {
        Some(self)
    }
}

impl Audit for SimHost {
    fn performed(&self, tag: &Tag, _: &Group, performed: &Performed) {
        let mut oracle = self.oracle.lock().unwrap();
        let held = oracle.asked_once.performed(self.node, tag, performed.index);
        oracle.hold(held);
    }
}
