//! Black-box tests: the built binary, real processes, real sockets.

mod support;

mod broken;
mod cli;
mod drain;
mod media;
mod operate;
mod permits;
mod policy;
mod snapshot;
