//! Black-box tests: the built binary, real processes, real sockets.

mod support;

mod cli;
mod drain;
mod media;
mod permits;
mod policy;
mod snapshot;
