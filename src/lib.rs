//! Tollkeeper: a rate-limiter daemon that keeps every published limit, exactly.

#![doc = include_str!("ARCHITECTURE.md")]

extern crate alloc;

pub mod engine;

// The models build the engine alone.
#[cfg(not(table_model))]
pub mod policy;

#[cfg(not(table_model))]
pub mod clock;

#[cfg(not(table_model))]
pub mod disk;

#[cfg(not(table_model))]
pub mod cluster;

#[cfg(not(table_model))]
pub mod metrics;

#[cfg(not(table_model))]
pub mod doors;

#[cfg(not(table_model))]
pub mod config;

#[cfg(not(table_model))]
pub mod node;

#[cfg(not(table_model))]
pub mod cli;
