//! The admin door: HTTP for operators, Prometheus and people.
//!
//! | path | answers |
//! | --- | --- |
//! | `GET /metrics` | counts, as Prometheus scrapes them |
//! | `GET /livez` | 200 while the process serves HTTP at all |
//! | `GET /readyz`, `/healthz`, `/healthcheck` | 200 while requests are welcome, else 503; `?verbose` lists the checks |
//! | `GET /v1/status` | [`Status`]: what `tollkeeper status` prints |
//! | `POST /v1/snapshot` | takes a snapshot now; for those who may change things |
//! | `GET /v1/cluster` | how the nodes of a cluster stand |
//! | `POST /v1/cluster/init`, `/add`, `/promote`, `/remove`, `/transfer`, `/snapshot` | who belongs to the cluster, who leads it |
//! | `POST /v1/policy` | puts a policy in force at all nodes of a cluster |
//! | `POST /v1/check`, `/v1/peek` | a [`Report`](super::report::Report); 200 whether it allows or denies. A check charges, so it is for those who may change things |
//! | `POST /v1/explain` | an [`ExplainReport`]: each limit of a request, and why it applies or not |
//! | `POST /v1/usage` | a [`UsageReport`]: what one subject (`api`, `attributes`) has used of every limit; `method` and `path` tell those counters that go by them |
//! | `GET, POST /v1/overrides`, `POST /v1/overrides/clear` | [`OverrideReport`]s, and changes of them, answered once they are on disk |
//! | `GET, POST /v1/identities`, `POST /v1/identities/remove` | [`IdentityReport`]s, and changes of them |
//!
//! The doors' `asked` and `answer` are pure: JSON to a request, an outcome to a report. Every other
//! error is `{"error": {"code", "message"}}` with a status of 4xx. Alone knows HTTP.

mod explain;

mod changes;

mod cluster;

mod access;

mod vitals;

mod figures;

mod status;

mod routes;

mod listener;

use std::time::Duration;

pub use access::{Access, TokenError};
pub(crate) use changes::make;
pub use changes::{IdentityReport, OverrideReport};
pub use explain::{ExplainReport, LimitState, UsageReport};
pub use listener::Listener;
pub use status::{LimitStatus, PolicyStatus, Rate, ReloadFailure, Status, Used};
pub use vitals::Vitals;

/// The most bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The most bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most headers of a request.
pub const HEADERS_MAX: usize = 64;

/// The most connections; one more waits until another ends.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a connection has to send a request's head, its first one or the next.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a connection has to send a request's body.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a connection lives: whoever neither reads nor goes gives its place up then.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(20);

/// How long the request in progress has when its connection is to end.
pub const CLOSE_TIME_MAX: Duration = Duration::from_millis(500);

/// The window over which rates are averaged.
pub const RATE_WINDOW: Duration = Duration::from_secs(10);

// A body, a head and what both take must be able to come within a connection's life.
const _: () = assert!(
    HEAD_TIME_MAX.as_millis() + BODY_TIME_MAX.as_millis() < CONNECTION_TIME_MAX.as_millis()
);
// The HTTP library needs this much for a head.
const _: () = assert!(HEAD_BYTES_MAX >= 8192);
