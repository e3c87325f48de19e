//! Tollkeeper: a rate-limiter daemon that keeps every published limit, exactly.

#![doc = include_str!("ARCHITECTURE.md")]

extern crate alloc;

pub mod engine;

pub mod policy;

pub mod clock;

pub mod metrics;

pub mod doors;

pub mod config;

pub mod node;

pub mod cli;
