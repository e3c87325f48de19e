//! Black-box tests: the built binary, real processes, real sockets.

mod fleet;
mod support;

mod broken;
mod chaos;
mod cli;
mod cluster;
mod drain;
mod media;
mod operate;
mod permits;
mod policy;
mod rls;
mod snapshot;
