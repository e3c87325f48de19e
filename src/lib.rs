//! Tollkeeper: a rate-limiter daemon that keeps every published limit, exactly.

pub mod engine;
