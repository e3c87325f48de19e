//! Settings as they are typed, on the command line or in the config file.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::defaults::{SNAPSHOT_INTERVAL_MAX, SNAPSHOT_INTERVAL_MIN};

/// Settings as typed; what is left out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Address of the binary door.
    pub listen: Option<SocketAddr>,
    /// Address of the admin door.
    pub admin: Option<SocketAddr>,
    /// Address of the door for Redis clients.
    pub resp: Option<SocketAddr>,
    /// File with the password that Redis clients must give.
    pub resp_password_file: Option<PathBuf>,
    /// Address of the HTTP door.
    pub http: Option<SocketAddr>,
    /// Whose word the HTTP door takes.
    pub http_trusted: Option<Vec<String>>,
    /// Which header says what, as `what=Header`.
    pub http_headers: Option<Vec<String>>,
    /// Address of Envoy's rate limit service.
    pub rls: Option<SocketAddr>,
    /// File with the token that changes on the admin door need.
    pub admin_token_file: Option<PathBuf>,
    /// Policy file or directory.
    pub policy: Option<PathBuf>,
    /// Directory of snapshots.
    pub data: Option<PathBuf>,
    /// How often a snapshot is taken, as `60s`.
    pub snapshot_interval: Option<String>,
    /// The most counters.
    pub max_keys: Option<u64>,
    /// The most connections.
    pub max_connections: Option<u64>,
    /// Threads of the binary door.
    pub workers: Option<usize>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// The node's number in it.
    pub node_id: Option<u64>,
    /// Address for the other nodes.
    pub peer_listen: Option<SocketAddr>,
    /// Where the other nodes find that address.
    pub advertise: Option<String>,
    /// Where clients find the binary door.
    pub advertise_clients: Option<String>,
    /// When an answer may go out: `always`, `os`, or a span.
    pub fsync: Option<String>,
    /// Whether the whole log is kept.
    pub keep_log: Option<bool>,
}

impl Raw {
    /// Reads the text of a config file called `name`.
    ///
    /// # Errors
    /// Where the text is wrong, with its line.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError(format!("{name}: {error}")))
    }
}

/// Operator: a setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.trim_end())
    }
}

impl std::error::Error for ConfigError {}

/// A span of time as people write it: `500ms`, `60s`, `5m`, `1h`.
pub(super) fn interval(name: &str, text: &str) -> Result<Duration, ConfigError> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => Some(1_u64),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let span = millis.and_then(|millis| number.parse::<u64>().ok()?.checked_mul(millis));
    let span = span.map(Duration::from_millis);
    span.filter(|span| (SNAPSHOT_INTERVAL_MIN..=SNAPSHOT_INTERVAL_MAX).contains(span)).ok_or_else(
        || {
            let message = format!(
                "{name} is `{text}`, allowed is a number with ms, s, m or h, from 100ms to 24h"
            );
            ConfigError(message)
        },
    )
}

/// The longest span between two syncs.
const FSYNC_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// How often a log is synced, as people write it.
pub(super) fn fsync_interval(text: &str) -> Result<Duration, ConfigError> {
    let millis = text.strip_suffix("ms").and_then(|number| number.parse::<u64>().ok());
    let span = millis.map(Duration::from_millis);
    let in_range = |span: &Duration| !span.is_zero() && *span <= FSYNC_INTERVAL_MAX;
    span.filter(in_range).ok_or_else(|| {
        let message =
            format!("fsync is `{text}`, allowed are always, os, and a span from 1ms to 10000ms");
        ConfigError(message)
    })
}

/// A setting that cannot be, for a reason of its own.
pub(super) fn wrong(message: &str) -> ConfigError {
    ConfigError(message.to_owned())
}

pub(super) fn in_range(name: &str, found: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(ConfigError(format!("{name} is {found}, allowed is {min} to {max}")))
}
