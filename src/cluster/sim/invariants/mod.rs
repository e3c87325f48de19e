//! What must hold, one file each. Those that are seen while a run goes on keep what they need; the
//! others look at the history once it is over.

pub(super) mod all_or_none;
pub(super) mod asked_once;
pub(super) mod bound;
pub(super) mod disk;
pub(super) mod kept;
pub(super) mod once;
pub(super) mod permits;
pub(super) mod policy;
pub(super) mod recovery;
pub(super) mod same_state;
pub(super) mod time;
