//! Over real sockets of the loopback: a cluster on a toy store, who is refused, links, and bytes that
//! are no peer's.

mod cluster;
mod greetings;
mod links;
mod node;
mod store;
