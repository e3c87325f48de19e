//! Settings: raw text to validated meaning in one step. A flag wins over a `TOLLKEEPER_*`
//! variable, that over the config file, that over the default.

mod defaults;
mod raw;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

pub use defaults::{
    ADMIN, CLUSTER_NAME_BYTES_MAX, CONNECTIONS_MAX, DRAIN_GRACE, KEYS_MAX, KEYS_MAX_HIGHEST,
    LISTEN, PEER_LISTEN, SNAPSHOT_INTERVAL, SNAPSHOT_INTERVAL_MAX, SNAPSHOT_INTERVAL_MIN,
    WORKERS_MAX,
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
    /// Address of Envoy's rate limit service; `None`: it stays shut.
    pub rls: Option<SocketAddr>,
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
    /// The cluster that the node belongs to; `None`: it decides by itself.
    pub cluster: Option<ClusterConfig>,
}

/// Settings of one node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The cluster's name, so that nodes of two do not meet by mistake.
    pub name: String,
    /// The node's number, from 1, never used again.
    pub node_id: u64,
    /// Address for the other nodes.
    pub peer_listen: SocketAddr,
    /// Where the other nodes find it.
    pub advertise: String,
    /// Where clients find the binary door.
    pub advertise_clients: String,
    /// When what was charged counts as kept.
    pub fsync: Fsync,
    /// Whether the log is kept from its first entry on.
    pub keeps_log: bool,
}

/// When what was charged counts as kept at one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// Once it is on disk.
    #[default]
    Always,
    /// Once it is written; it is on disk after this time.
    Interval(Duration),
    /// Once it is written.
    Os,
}

impl ClusterConfig {
    fn resolve(typed: &Raw, file: &Raw, listen: SocketAddr) -> Result<Option<Self>, ConfigError> {
        let text =
            |typed: &Option<String>, file: &Option<String>| typed.clone().or_else(|| file.clone());
        let name = text(&typed.cluster, &file.cluster);
        let node_id = typed.node_id.or(file.node_id);
        let Some(name) = name else {
            return match node_id {
                Some(_) => Err(raw::wrong("node-id is given without cluster")),
                None => Ok(None),
            };
        };
        if name.is_empty() || name.len() > CLUSTER_NAME_BYTES_MAX {
            let message = format!(
                "cluster has {} bytes, allowed are 1 to {CLUSTER_NAME_BYTES_MAX}",
                name.len()
            );
            return Err(raw::wrong(&message));
        }
        let node_id = node_id.ok_or_else(|| raw::wrong("cluster is given without node-id"))?;
        raw::in_range("node-id", node_id, 1, u64::from(u32::MAX))?;
        let peer_listen = typed.peer_listen.or(file.peer_listen).unwrap_or(PEER_LISTEN);
        let fsync = match text(&typed.fsync, &file.fsync).as_deref() {
            None | Some("always") => Fsync::Always,
            Some("os") => Fsync::Os,
            Some(span) => Fsync::Interval(raw::fsync_interval(span)?),
        };
        let advertise = text(&typed.advertise, &file.advertise);
        let advertise_clients = text(&typed.advertise_clients, &file.advertise_clients);
        Ok(Some(Self {
            name,
            node_id,
            peer_listen,
            advertise: advertise.unwrap_or_else(|| peer_listen.to_string()),
            advertise_clients: advertise_clients.unwrap_or_else(|| listen.to_string()),
            fsync,
            keeps_log: typed.keep_log.or(file.keep_log).unwrap_or_default(),
        }))
    }
}

impl Config {
    /// Settings from what was typed, over what the config file says, over the defaults.
    ///
    /// # Errors
    /// A value outside its range.
    pub fn resolve(typed: Raw, file: Raw) -> Result<Self, ConfigError> {
        let listen = typed.listen.or(file.listen).unwrap_or(LISTEN);
        let cluster = ClusterConfig::resolve(&typed, &file, listen)?;
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
        let data = typed.data.or(file.data);
        if cluster.is_some() && data.is_none() {
            return Err(raw::wrong("cluster is given without data: a node keeps its log there"));
        }
        Ok(Self {
            listen,
            admin: typed.admin.or(file.admin).unwrap_or(ADMIN),
            resp: typed.resp.or(file.resp),
            resp_password_file: typed.resp_password_file.or(file.resp_password_file),
            http: typed.http.or(file.http),
            http_trusted: typed.http_trusted.or(file.http_trusted).unwrap_or_default(),
            http_headers: typed.http_headers.or(file.http_headers).unwrap_or_default(),
            rls: typed.rls.or(file.rls),
            admin_token_file: typed.admin_token_file.or(file.admin_token_file),
            policy: typed.policy.or(file.policy),
            data,
            snapshot_interval,
            keys_max,
            workers,
            connections_max,
            drain_grace: DRAIN_GRACE,
            cluster,
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
        assert_eq!((config.resp, config.http, config.rls), (None, None, None));
        assert_eq!(config.http_trusted.len(), 0);
        let text = "resp = \"127.0.0.1:6379\"\nhttp = \"[::1]:7443\"\nrls = \"[::1]:8081\"\n\
                    http_trusted = [\"10.0.0.0/8\"]\nhttp_headers = [\"team=X-Team\"]\n";
        let config = Config::resolve(Raw::default(), Raw::parse("f.toml", text).unwrap()).unwrap();
        assert_eq!(config.resp.map(|address| address.port()), Some(6379));
        assert_eq!(config.http.map(|address| address.port()), Some(7443));
        assert_eq!(config.rls.map(|address| address.port()), Some(8081));
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
