//! The binary protocol's door: `protocol/SPEC.md`, spoken by the server.
//!
//! `session` is pure: bytes in, engine calls, bytes out. The connection is a loop around it
//! that moves bytes and watches deadlines, the listener accepts.

mod session;

mod convert;

mod connection;

mod worker;

mod listener;

pub use listener::Listener;
pub use session::{Progress, Session, SessionBuffers};
