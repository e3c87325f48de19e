//! Equal state at equal index: every node that has applied as much has the same counters, sessions
//! and policy. An entry is known by its stamp, of which no two are the same.

use std::collections::BTreeMap;

use crate::engine::time::Now;

/// Hashes of table and sessions, and the policy. A table's hash of 0 is none.
type State = (u64, u64, u64);

#[derive(Default)]
pub(in super::super) struct SameState {
    at: BTreeMap<u64, (usize, State, u64)>,
}

impl SameState {
    pub(in super::super) fn at(
        &mut self,
        node: usize,
        now: Now,
        state: State,
    ) -> Result<(), String> {
        let time = now.time.as_nanos();
        let utc = now.utc.as_nanos();
        let (first, known, of) = self.at.entry(time).or_insert((node, state, utc));
        let is_same = known.1 == state.1
            && known.2 == state.2
            && *of == utc
            && (known.0 == state.0 || known.0 == 0 || state.0 == 0);
        if !is_same {
            return Err(format!(
                "after the entry of {time} node {first} has {known:x?}, node {node} has {state:x?}"
            ));
        }
        if known.0 == 0 {
            known.0 = state.0;
        }
        Ok(())
    }

    /// Entries that were applied.
    pub(in super::super) fn entries(&self) -> usize {
        self.at.len()
    }
}
