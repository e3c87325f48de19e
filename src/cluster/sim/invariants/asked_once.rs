//! What was asked once is performed once, however often and to how many leaders it was handed over.
//! Sums of charges do not show it: what is of unknown outcome leaves them room.

use std::collections::HashMap;

use crate::cluster::entry::Tag;

/// Of each node: the entries of what it has applied since it began.
pub(in super::super) struct AskedOnce(Vec<HashMap<Tag, u64>>);

impl AskedOnce {
    pub(in super::super) fn new(nodes: usize) -> Self {
        Self(vec![HashMap::new(); nodes])
    }

    /// A node applied this group in the entry of this index.
    pub(in super::super) fn performed(
        &mut self,
        node: usize,
        tag: &Tag,
        index: u64,
    ) -> Result<(), String> {
        match self.0[node].insert(*tag, index) {
            None => Ok(()),
            Some(before) => Err(format!("{tag:?} is performed in entry {before} and in {index}")),
        }
    }

    /// A node begins anew and applies its log again.
    pub(in super::super) fn restarted(&mut self, node: usize) {
        self.0[node].clear();
    }
}
