//! Settings: raw text to validated meaning in one step. A flag wins over a `TOLLKEEPER_*`
//! variable, that over the config file, that over the default.

mod defaults;
mod raw;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

pub use defaults::{
    ADMIN, CONNECTIONS_MAX, DRAIN_GRACE, KEYS_MAX, KEYS_MAX_HIGHEST, LISTEN, SNAPSHOT_INTERVAL,
    SNAPSHOT_INTERVAL_MAX, SNAPSHOT_INTERVAL_MIN, WORKERS_MAX,
};
pub use raw::{ConfigError, Raw};

/// Settings of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address of the binary door.
    pub listen: SocketAddr,
    /// Address of the admin door.
    pub admin: SocketAddr,
    /// Address of the door for Redis clients; `None`: it stays shut.
    pub resp: Option<SocketAddr>,
    /// File with the password that Redis clients must give.
    pub resp_password_file: Option<PathBuf>,
    /// Address of the HTTP door; `None`: it stays shut.
    pub http: Option<SocketAddr>,
    /// Whose word the HTTP door takes for where a request came from: addresses and networks.
    pub http_trusted: Vec<String>,
    /// Which header says what of a request to authorize: `what=Header`.
    pub http_headers: Vec<String>,
    /// File with the token that changes on the admin door need.
    pub admin_token_file: Option<PathBuf>,
    /// Policy file, or directory of them; `None` is the built-in example.
    pub policy: Option<PathBuf>,
    /// Directory of snapshots; `None`: a restart forgets everything.
    pub data: Option<PathBuf>,
    /// How often a snapshot is taken.
    pub snapshot_interval: Duration,
    /// The most counters in the table.
    pub keys_max: u64,
    /// Threads that serve each of the doors but the admin one.
    pub workers: NonZeroUsize,
    /// The most connections of each of the doors but the admin one.
    pub connections_max: u64,
    /// How long clients have to leave at shutdown.
    pub drain_grace: Duration,
}

impl Config {
    /// Settings from what was typed, over what the config file says, over the defaults.
    ///
    /// # Errors
    /// A value outside its range.
    pub fn resolve(typed: Raw, file: Raw) -> Result<Self, ConfigError> {
        let keys_max = typed.max_keys.or(file.max_keys).unwrap_or(KEYS_MAX);
        raw::in_range("max-keys", keys_max, 1, KEYS_MAX_HIGHEST)?;
        let snapshot_interval = match typed.snapshot_interval.or(file.snapshot_interval) {
            None => SNAPSHOT_INTERVAL,
            Some(text) => raw::interval("snapshot-interval", &text)?,
        };
        let connections_max =
            typed.max_connections.or(file.max_connections).unwrap_or(CONNECTIONS_MAX);
        raw::in_range("max-connections", connections_max, 1, 1_000_000)?;
        let workers = match typed.workers.or(file.workers) {
            None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            Some(workers) => {
                raw::in_range("workers", workers as u64, 1, WORKERS_MAX)?;
                NonZeroUsize::new(workers).unwrap_or(NonZeroUsize::MIN)
            }
        };
        Ok(Self {
            listen: typed.listen.or(file.listen).unwrap_or(LISTEN),
            admin: typed.admin.or(file.admin).unwrap_or(ADMIN),
            resp: typed.resp.or(file.resp),
            resp_password_file: typed.resp_password_file.or(file.resp_password_file),
            http: typed.http.or(file.http),
            http_trusted: typed.http_trusted.or(file.http_trusted).unwrap_or_default(),
            http_headers: typed.http_headers.or(file.http_headers).unwrap_or_default(),
            admin_token_file: typed.admin_token_file.or(file.admin_token_file),
            policy: typed.policy.or(file.policy),
            data: typed.data.or(file.data),
            snapshot_interval,
            keys_max,
            workers,
            connections_max,
            drain_grace: DRAIN_GRACE,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_wins_over_the_file_and_that_over_the_default() {
        let file = Raw::parse("f.toml", "max_keys = 5\nlisten = \"127.0.0.1:1\"\n").unwrap();
        let typed = Raw { max_keys: Some(7), ..Raw::default() };
        let config = Config::resolve(typed, file).unwrap();
        assert_eq!((config.keys_max, config.listen.port()), (7, 1));
        assert_eq!(config.admin, ADMIN);
    }

    #[test]
    fn doors_are_shut_unless_they_have_an_address() {
        let config = Config::resolve(Raw::default(), Raw::default()).unwrap();
        assert_eq!((config.resp, config.http, config.http_trusted.len()), (None, None, 0));
        let text = "resp = \"127.0.0.1:6379\"\nhttp = \"[::1]:7443\"\n\
                    http_trusted = [\"10.0.0.0/8\"]\nhttp_headers = [\"team=X-Team\"]\n";
        let config = Config::resolve(Raw::default(), Raw::parse("f.toml", text).unwrap()).unwrap();
        assert_eq!(config.resp.map(|address| address.port()), Some(6379));
        assert_eq!(config.http.map(|address| address.port()), Some(7443));
        assert_eq!(config.http_trusted, ["10.0.0.0/8"]);
        assert_eq!(config.http_headers, ["team=X-Team"]);
    }

    #[test]
    fn an_interval_is_a_number_with_its_unit() {
        let interval = |text: &str| {
            let typed = Raw { snapshot_interval: Some(text.to_owned()), ..Raw::default() };
            Config::resolve(typed, Raw::default()).map(|config| config.snapshot_interval)
        };
        assert_eq!(interval("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["60", "1d", "", "s", "-1s", "1.5s", "25h", "99ms", "99999999999999999999s"] {
            let error = interval(wrong).unwrap_err().to_string();
            assert!(error.contains("snapshot-interval") && error.contains("100ms"), "{error}");
        }
    }

    #[test]
    fn a_wrong_setting_is_named_with_what_is_allowed() {
        let typed = Raw { max_keys: Some(0), ..Raw::default() };
        let error = Config::resolve(typed, Raw::default()).unwrap_err().to_string();
        assert_eq!(error, format!("max-keys is 0, allowed is 1 to {KEYS_MAX_HIGHEST}"));
        let error = Raw::parse("f.toml", "max_kees = 5\n").unwrap_err().to_string();
        assert!(error.contains("f.toml") && error.contains("max_kees"), "{error}");
    }
}
