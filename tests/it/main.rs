//! Black-box tests: the built binary, real processes, real sockets.

#![allow(missing_docs, reason = "a test binary has no readers of its interface")]

mod support;

mod cli;
mod drain;
mod media;
mod policy;
