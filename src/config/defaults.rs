//! What holds where nothing is said.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Address of the binary door.
pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7440);

/// Address for the other nodes of a cluster.
pub const PEER_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7441);

/// The longest name of a cluster.
pub const CLUSTER_NAME_BYTES_MAX: usize = 64;

/// Address of the admin door.
pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7442);

/// The most counters: about 750 MB of narrow ones.
pub const KEYS_MAX: u64 = 1 << 24;

/// The highest `max-keys` that can be asked for.
pub const KEYS_MAX_HIGHEST: u64 = 1 << 32;

/// The most connections of the binary door; the protocol's own number, as `node` asserts.
pub const CONNECTIONS_MAX: u64 = 10_000;

/// The most threads of the binary door.
pub const WORKERS_MAX: u64 = 256;

/// How often a snapshot is taken.
pub const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);

/// The shortest time between snapshots that can be asked for.
pub const SNAPSHOT_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The longest.
pub const SNAPSHOT_INTERVAL_MAX: Duration = Duration::from_secs(86_400);

/// How long clients have to leave at shutdown; the process exits within a second more.
pub const DRAIN_GRACE: Duration = Duration::from_secs(3);
