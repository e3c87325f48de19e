//! DECIDES. One pure function over a table of counters: checks and a moment come in, decisions
//! go out.
//!
//! Owns the arithmetic of every kind of limit, the identity of counters and the table that holds
//! them. It never reads a clock, a random number, the environment, a socket or a file; it spawns
//! nothing, awaits nothing and logs nothing. It imports `core`, `alloc`, collections
//! and, through `sync`, atomics and epochs.

pub mod time;

pub mod quota;

pub mod kinds;

pub mod key;

pub mod command;

pub mod permit;

pub mod decision;

pub mod table;

pub mod session;

pub mod group;

pub(crate) mod mutant;

mod sip;

mod sync;
