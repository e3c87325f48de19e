//! PEERS. A cluster of nodes that decide as one: what is asked at any of them is put into one
//! log, and each applies the log to its own table by the same engine.
//!
//! Alone knows openraft, and in `wire` bincode.

pub mod types;

pub mod peer;
pub mod wire;
