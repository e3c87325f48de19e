//! `tollkeeper serve`: the daemon.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::config::{self, Config, Raw};
use crate::node::{self, Restore};

use super::fail;

/// Answers checks until SIGTERM or SIGINT, then drains: clients are told to go, what they have
/// asked is answered, and the process exits 0 within 4 seconds. A second signal exits at once.
///
/// Without arguments it serves the built-in example policy on loopback addresses and keeps its
/// counters in memory. With --data they outlive it: the last snapshot is taken once all doors are
/// closed, and a crash forgets what was charged since the one before.
///
/// Exits 1 on a second signal and 2 if it cannot start. A node of a cluster exits 3 once its log cannot
/// be written, as when the disk is full, and 4 once its Raft has ended with an error; the log says
/// what to do, and the other nodes go on.
#[derive(Args)]
pub(super) struct Serve {
    /// Config file (TOML) with any of the settings below, written with underscores
    #[arg(long, value_name = "FILE", env = "TOLLKEEPER_CONFIG")]
    config: Option<PathBuf>,
    /// Policy file, or directory whose *.toml files make the policy [default: a built-in example]
    #[arg(long, value_name = "FILE|DIR", env = "TOLLKEEPER_POLICY")]
    policy: Option<PathBuf>,
    /// Address of the binary protocol [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDR", env = "TOLLKEEPER_LISTEN")]
    listen: Option<SocketAddr>,
    /// Address of metrics, health and the JSON API [default: 127.0.0.1:7442]
    #[arg(long, value_name = "ADDR", env = "TOLLKEEPER_ADMIN")]
    admin: Option<SocketAddr>,
    /// Address for Redis clients: CL.THROTTLE, TOLL.CHECK [default: shut]
    #[arg(long, value_name = "ADDR", env = "TOLLKEEPER_RESP")]
    resp: Option<SocketAddr>,
    /// File with the password that Redis clients must give [default: none is asked for]
    #[arg(long, value_name = "FILE", env = "TOLLKEEPER_RESP_PASSWORD_FILE")]
    resp_password_file: Option<PathBuf>,
    /// Address of checks over HTTP: JSON, and forward-auth for proxies [default: shut]
    #[arg(long, value_name = "ADDR", env = "TOLLKEEPER_HTTP")]
    http: Option<SocketAddr>,
    /// Proxies that may ask /v1/authorize, as addresses and networks: 10.0.0.0/8,::1 [default: none]
    #[arg(long, value_name = "LIST", env = "TOLLKEEPER_HTTP_TRUSTED", value_delimiter = ',')]
    http_trusted: Option<Vec<String>>,
    /// Headers in which they say what: method, uri or the name of an attribute, as in
    /// team=X-Team,ip=X-Real-IP [default: X-Forwarded-*, X-Original-*, X-Toll-ATTRIBUTE]
    #[arg(long, value_name = "LIST", env = "TOLLKEEPER_HTTP_HEADERS", value_delimiter = ',')]
    http_headers: Option<Vec<String>>,
    /// Address of Envoy's rate limit service v3 (gRPC, without TLS), usually port 8081 [default: shut]
    #[arg(long, value_name = "ADDR", env = "TOLLKEEPER_RLS")]
    rls: Option<SocketAddr>,
    /// File with a token of 16 characters or more, which changes on the admin address then need;
    /// without one only a loopback address takes changes
    #[arg(long, value_name = "FILE", env = "TOLLKEEPER_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// Directory of snapshots, which a restart continues from; made if there is none [default: a
    /// restart forgets everything]
    #[arg(long, value_name = "DIR", env = "TOLLKEEPER_DATA")]
    data: Option<PathBuf>,
    /// How often a snapshot is taken, if anything changed: 500ms, 60s, 5m [default: 60s]
    #[arg(long, value_name = "SPAN", env = "TOLLKEEPER_SNAPSHOT_INTERVAL")]
    snapshot_interval: Option<String>,
    /// Which snapshot to continue from: `previous` sets the last one aside
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Which::Latest)]
    restore: Which,
    /// The most counters in memory; a new key beyond gets TABLE_FULL [default: 16777216]
    #[arg(long, value_name = "N", env = "TOLLKEEPER_MAX_KEYS")]
    max_keys: Option<u64>,
    /// The most connections of the binary protocol, and of --resp, --http and --rls each [default: 10000]
    #[arg(long, value_name = "N", env = "TOLLKEEPER_MAX_CONNECTIONS")]
    max_connections: Option<u64>,
    /// Threads that serve the binary protocol, and --resp, --http and --rls each [default: one for each processor]
    #[arg(long, value_name = "N", env = "TOLLKEEPER_WORKERS")]
    workers: Option<usize>,
    /// Name of the cluster that the node belongs to; its nodes decide as one. Needs --node-id and
    /// --data; `tollkeeper cluster init` begins it
    #[arg(long, value_name = "NAME", env = "TOLLKEEPER_CLUSTER", help_heading = "Cluster")]
    cluster: Option<String>,
    /// Number of the node in its cluster, from 1, never used again
    #[arg(long, value_name = "N", env = "TOLLKEEPER_NODE_ID", help_heading = "Cluster")]
    node_id: Option<u64>,
    /// Address for the other nodes [default: 127.0.0.1:7441]
    #[arg(long, value_name = "ADDR", env = "TOLLKEEPER_PEER_LISTEN", help_heading = "Cluster")]
    peer_listen: Option<SocketAddr>,
    /// Where the other nodes find that address [default: the address itself]
    #[arg(long, value_name = "HOST:PORT", env = "TOLLKEEPER_ADVERTISE", help_heading = "Cluster")]
    advertise: Option<String>,
    /// Where clients find the binary protocol [default: --listen]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "TOLLKEEPER_ADVERTISE_CLIENTS",
        help_heading = "Cluster"
    )]
    advertise_clients: Option<String>,
    /// When a charge counts as kept by a node: `always`, once it is on disk; `os` or a span such as
    /// `50ms`, once it is written, so that power lost at most nodes at once loses the last of them.
    /// A node that then loses power does not start again under its number, because it may have
    /// forgotten votes: it is removed, emptied, and added under a new one [default: always]
    #[arg(long, value_name = "WHEN", env = "TOLLKEEPER_FSYNC", help_heading = "Cluster")]
    fsync: Option<String>,
    /// Keep the log from its first entry on, for `tollkeeper log inspect`; the disk fills. Without it
    /// the log is let go of once a snapshot has what is in it
    #[arg(long, env = "TOLLKEEPER_KEEP_LOG", help_heading = "Cluster")]
    keep_log: bool,
}

/// Which snapshot to continue from.
#[derive(Clone, Copy, ValueEnum)]
enum Which {
    /// The last one
    Latest,
    /// The one before it
    Previous,
}

impl Serve {
    pub(super) fn run(self) -> ExitCode {
        log_to_stderr();
        let config = match self.config() {
            Ok(config) => config,
            Err(error) => return fail(&error),
        };
        let restore = match self.restore {
            Which::Latest => Restore::Latest,
            Which::Previous => Restore::Previous,
        };
        match node::run(&config, restore, say) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        }
    }

    fn config(&self) -> Result<Config, String> {
        let file = match &self.config {
            None => Raw::default(),
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read config {name}: {error}"))?;
                Raw::parse(&name, &text).map_err(|error| error.to_string())?
            }
        };
        let typed = Raw {
            listen: self.listen,
            admin: self.admin,
            resp: self.resp,
            resp_password_file: self.resp_password_file.clone(),
            http: self.http,
            http_trusted: self.http_trusted.clone(),
            http_headers: self.http_headers.clone(),
            rls: self.rls,
            admin_token_file: self.admin_token_file.clone(),
            policy: self.policy.clone(),
            data: self.data.clone(),
            snapshot_interval: self.snapshot_interval.clone(),
            max_keys: self.max_keys,
            max_connections: self.max_connections,
            workers: self.workers,
            cluster: self.cluster.clone(),
            node_id: self.node_id,
            peer_listen: self.peer_listen,
            advertise: self.advertise.clone(),
            advertise_clients: self.advertise_clients.clone(),
            fsync: self.fsync.clone(),
            keep_log: self.keep_log.then_some(true),
        };
        config::Config::resolve(typed, file).map_err(|error| error.to_string())
    }
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // A closed stdout is no reason not to serve.
    let _ = writeln!(stdout, "{line}");
    let _ = stdout.flush();
}

/// Logs for people on a terminal, JSON lines elsewhere.
fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("TOLLKEEPER_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        logs.init();
    } else {
        logs.json().init();
    }
}
