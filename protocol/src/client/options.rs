//! What a caller chooses, and what it is told.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;

use crate::response::Maxima;
use crate::status::Capabilities;

/// What to make of a check that got no decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnavailable {
    /// The answer that the handle's `when_unavailable` prescribes.
    #[default]
    ByHandle,
    /// The error.
    Report,
}

/// Is told of events.
pub type OnEvent = dyn Fn(&Event) + Send + Sync;

/// How a client behaves.
#[derive(Clone)]
pub struct Options {
    /// Name and version for the operator's eyes, at most 64 bytes.
    pub client: String,
    /// Longest wait for a connection and its handshake.
    pub connect_within: Duration,
    /// Longest wait for an answer, unless a check brings its own.
    pub deadline: Duration,
    /// Without any byte for so long while answers are due, the connection counts as lost.
    pub stalled_after: Duration,
    /// With nothing sent for so long, a PING keeps the connection. Below the server's idle
    /// deadline.
    pub keep_alive: Duration,
    /// First pause before another attempt to connect; doubles up to [`backoff_max`](Self::backoff_max).
    pub backoff_min: Duration,
    /// Longest such pause.
    pub backoff_max: Duration,
    /// What to make of a check that got no decision.
    pub on_unavailable: OnUnavailable,
    /// Told what nobody asked for. Called on the spot: must be quick.
    pub on_event: Option<Arc<OnEvent>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            client: concat!("tollkeeper-protocol/", env!("CARGO_PKG_VERSION")).into(),
            connect_within: Duration::from_secs(3),
            deadline: Duration::from_secs(1),
            stalled_after: Duration::from_secs(10),
            keep_alive: Duration::from_secs(120),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
            on_unavailable: OnUnavailable::ByHandle,
            on_event: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("client", &self.client)
            .field("connect_within", &self.connect_within)
            .field("deadline", &self.deadline)
            .field("on_unavailable", &self.on_unavailable)
            .finish_non_exhaustive()
    }
}

/// Something that nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The connection stands again. With another instance, counters are other counters.
    Reconnected {
        /// The server is another instance than before.
        instance_changed: bool,
    },
    /// The connection is gone; the reason is for people.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// The server leaves and takes no new requests.
    GoAway {
        /// What it said.
        message: String,
    },
    /// A handle was prepared anew, as its names have changed.
    HandleChanged {
        /// The handle's API.
        api: String,
    },
    /// No decision could be had and the request was let pass.
    FailedOpen {
        /// Why.
        reason: String,
    },
    /// No decision could be had and the request was refused.
    FailedClosed {
        /// Why.
        reason: String,
    },
}

/// What a client has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Checks let pass without a decision, by this client or by the server.
    pub failed_open: u64,
    /// Checks refused without a decision, by this client.
    pub failed_closed: u64,
    /// Connections after the first.
    pub reconnects: u64,
}

/// What a server said of itself in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// The version spoken.
    pub version: u16,
    /// What this client may do.
    pub capabilities: Capabilities,
    /// What the server offers beyond the version.
    pub features: u64,
    /// Another instance means other counters.
    pub instance: [u8; 16],
    /// Who this client is taken for.
    pub principal: String,
    /// The server's name and version.
    pub server: String,
    /// The server's maxima.
    pub maxima: Maxima,
}
