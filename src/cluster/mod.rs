//! PEERS. A cluster of nodes that decide as one: what is asked at any of them is put into one
//! log, and each applies the log to its own table by the same engine.
//!
//! Alone knows openraft, and in `wire` bincode.

/// `tokio::select!`, which tries the branches in an order of chance; in test builds in the order in
/// which they stand, so that the same seed always gives the same simulation.
#[cfg(not(test))]
macro_rules! select {
    ($($branches:tt)*) => { tokio::select! { $($branches)* } };
}

#[cfg(test)]
macro_rules! select {
    ($($branches:tt)*) => { tokio::select! { biased; $($branches)* } };
}

pub mod types;

mod aside;

pub mod peer;

pub mod wire;

pub mod entry;

mod host;

mod machine;

mod snapshots;

mod running;

mod membership;

mod replay;

mod log_store;

mod counts;

mod batcher;

mod origin;

#[cfg(test)]
mod sim;

pub use batcher::{Batcher, Inbox, Links};
pub use counts::{Ahead, Counts, Durations};
pub use entry::Tag;
pub use host::{Audit, Host, Readings, Restored, SystemReadings};
pub use machine::{Machine, SharedHome};
pub use membership::{CAUGHT_UP_ENTRIES, CatchUp};
pub use origin::{Applied, Origin};
pub use replay::{Kinds, Plan, Replayed, Term, replay};
pub use running::{LogKept, Parts, Running, Standing, View};
pub use types::{Member, NodeId, SnapshotFile, SnapshotMeta};
