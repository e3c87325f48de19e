//! Settings as they are typed, on the command line or in the config file.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// Settings as typed; what is left out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Address of the binary door.
    pub listen: Option<SocketAddr>,
    /// Address of the admin door.
    pub admin: Option<SocketAddr>,
    /// File with the token that changes on the admin door need.
    pub admin_token_file: Option<PathBuf>,
    /// Policy file or directory.
    pub policy: Option<PathBuf>,
    /// The most counters.
    pub max_keys: Option<u64>,
    /// The most connections.
    pub max_connections: Option<u64>,
    /// Threads of the binary door.
    pub workers: Option<usize>,
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

pub(super) fn in_range(name: &str, found: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(ConfigError(format!("{name} is {found}, allowed is {min} to {max}")))
}
