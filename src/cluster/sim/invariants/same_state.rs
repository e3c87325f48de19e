//! Equal state at equal index: every node that has applied as much has the same counters, sessions
//! and policy. It is looked at after every entry, which is known by its stamp, and after every tick,
//! when the index is known, too.

use std::collections::BTreeMap;

use crate::engine::time::Now;

/// What a log came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct State {
    /// The table's hash; 0 while there is none, since a snapshot waits to be written.
    pub(in super::super) table: u64,
    pub(in super::super) sessions: u64,
    pub(in super::super) policy: u64,
}

#[derive(Default)]
pub(in super::super) struct SameState {
    by_stamp: BTreeMap<u64, Known>,
    by_index: BTreeMap<u64, Known>,
}

/// What the first node that was seen there had.
struct Known {
    node: usize,
    state: State,
    utc: u64,
}

impl SameState {
    /// A node applied an entry of this moment.
    pub(in super::super) fn at(
        &mut self,
        node: usize,
        now: Now,
        state: State,
    ) -> Result<(), String> {
        let (stamp, utc) = (now.time.as_nanos(), now.utc.as_nanos());
        let what = || format!("after the entry of {stamp}");
        compare(&mut self.by_stamp, stamp, Known { node, state, utc }, what)
    }

    /// A node has applied entries up to this index.
    pub(in super::super) fn at_index(
        &mut self,
        node: usize,
        index: u64,
        state: State,
    ) -> Result<(), String> {
        let what = || format!("after entry {index}");
        compare(&mut self.by_index, index, Known { node, state, utc: 0 }, what)
    }

    /// Entries that were applied.
    pub(in super::super) fn entries(&self) -> usize {
        self.by_stamp.len()
    }
}

fn compare(
    all: &mut BTreeMap<u64, Known>,
    at: u64,
    seen: Known,
    what: impl Fn() -> String,
) -> Result<(), String> {
    let Some(known) = all.get_mut(&at) else {
        all.insert(at, seen);
        return Ok(());
    };
    let tables = (known.state.table, seen.state.table);
    if tables.0 == 0 {
        known.state.table = tables.1;
    }
    let state =
        State { table: if tables.1 == 0 { known.state.table } else { tables.1 }, ..seen.state };
    if known.state == state && known.utc == seen.utc {
        return Ok(());
    }
    Err(format!(
        "{} node {} has {:x?} at {}, node {} has {state:x?} at {}",
        what(),
        known.node,
        known.state,
        known.utc,
        seen.node,
        seen.utc
    ))
}
