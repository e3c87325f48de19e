//! Decides. Pure: time, bytes and seeds come in, decisions go out.

pub mod time;
