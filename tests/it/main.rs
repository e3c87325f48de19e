//! Black-box tests: the built binary, real processes, real sockets.

mod fleet;
mod support;

mod broken;
mod chaos;
mod cli;
mod cluster;
mod drain;
mod join;
mod log;
mod media;
mod operate;
mod permits;
mod policy;
mod power;
mod quorum;
mod rls;
mod snapshot;
