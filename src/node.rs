//! Wires everything; the order of starting and stopping.

mod cluster;
mod keeper;
mod log;
mod recorder;
mod reload;
mod restored;
mod signals;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::SignalKind;
use tokio::sync::watch;

use crate::clock::{self, Clock};
use crate::config::{self, Config};
use crate::disk::{Directory, DiskError, Home, Identity};
use crate::doors::{Instance, Listener, Loaded, admin, binary, envoy, http, resp};
use crate::engine::key::Seed;
use crate::engine::table::{SweepCursor, Table};
use crate::engine::time::Timestamp;
use crate::policy::{self, Policy, Source};

pub use crate::disk::Restore;
pub use cluster::inspect::{Commands, EachLine, Inspected, Inspection, LimitTotals, Line, inspect};

use keeper::Keeper;
use recorder::Recorder;
use restored::Changed;
use signals::{Ends, hear};

/// How often the sweeper works.
const SWEEP_EVERY: Duration = Duration::from_millis(20);

/// Slots that the sweeper looks at each time: 0.4 million a second.
const SWEEP_SLOTS: usize = 8192;

/// How far behind the clock the sweeper stays: no batch of checks takes this long from its stamp
/// to its decisions.
const SWEEP_LAG_NANOS: u64 = 1_000_000_000;

/// How often wall time is steered.
const STEER_EVERY: Duration = Duration::from_secs(1);

// What the protocol says of a server that says nothing, and what a node does that was told nothing.
const _: () =
    assert!(config::CONNECTIONS_MAX == tollkeeper_protocol::limits::CONNECTIONS_MAX as u64);

/// The most bytes of a policy file that are read.
const POLICY_BYTES_MAX: u64 = policy::maxima::POLICY_BYTES_MAX as u64;

/// The exit code of a node of a cluster whose log cannot be written.
pub const EXIT_LOG_FAILED: u8 = 3;

/// The exit code of a node of a cluster whose Raft has ended with an error.
pub const EXIT_RAFT_ENDED: u8 = 4;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Operator: an address cannot be taken.
    #[error("cannot listen on {address} for {door}: {source}")]
    Listen {
        /// Whose address it is.
        door: &'static str,
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Operator: a policy file cannot be read.
    #[error("cannot read policy {}: {source}", path.display())]
    ReadPolicy {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Operator: the token for changes cannot be had.
    #[error("admin-token-file {}: {why}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Operator: the password of Redis clients cannot be had.
    #[error("resp-password-file {}: {why}", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Operator: a setting of the HTTP door is wrong.
    #[error("{0}")]
    Forwarded(String),
    /// Operator: a policy is wrong; the text shows where.
    #[error("{0}")]
    Policy(String),
    /// Operator: the data directory, or the snapshot in it, cannot be used.
    #[error("{0}")]
    Data(#[from] DiskError),
    /// Operator: the instance has lived for too long.
    #[error(
        "the instance in {path} is {found} years old by its own clock, allowed are 7: point --data \
         at an empty directory, which begins with fresh counters"
    )]
    TooOld {
        /// The data directory.
        path: String,
        /// Years since it began.
        found: u64,
    },
    /// Operator: the operating system denied something that every process needs.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// Reads and compiles a policy: a file, all `*.toml` of a directory in order of their names, or
/// the built-in example. Returns it with its origin, for people.
///
/// # Errors
/// What is wrong with the files or with what they say.
pub fn load_policy(path: Option<&Path>, seed: &Seed) -> Result<(Policy, String), StartError> {
    let Some(path) = path else {
        let origin = format!("built-in example \"{}\"", policy::BUILT_IN.name);
        let policy = Policy::compile(&[policy::BUILT_IN], seed);
        return policy
            .map(|policy| (policy, origin))
            .map_err(|errors| StartError::Policy(errors.to_string()));
    };
    let files = read_policy(path)
        .map_err(|source| StartError::ReadPolicy { path: path.to_owned(), source })?;
    let sources: Vec<Source<'_>> = files.iter().map(|(name, text)| Source { name, text }).collect();
    match Policy::compile(&sources, seed) {
        Ok(policy) => Ok((policy, path.display().to_string())),
        Err(errors) => Err(StartError::Policy(errors.to_string())),
    }
}

/// Names and texts of a policy's files.
pub(crate) fn read_policy(path: &Path) -> io::Result<Vec<(String, String)>> {
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        paths = std::fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort();
        if paths.is_empty() {
            return Err(io::Error::other("the directory has no *.toml"));
        }
    }
    paths.iter().map(|path| Ok((path.display().to_string(), read_text(path)?))).collect()
}

/// A text that is not longer than a policy may be.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let bytes = std::fs::metadata(path)?.len();
    if bytes > POLICY_BYTES_MAX {
        let message = format!("it has {bytes} bytes, allowed are {POLICY_BYTES_MAX}");
        return Err(io::Error::other(message));
    }
    std::fs::read_to_string(path)
}

/// Random bytes from the operating system.
///
/// # Errors
/// If it has none to give.
pub fn random_bytes() -> Result<[u8; 16], StartError> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)
            .map_err(|error| StartError::System { what: "random bytes", source: error.into() })?;
    }
    Ok(bytes)
}

/// Runs a node until a signal ends it, continuing from a snapshot where there is a data directory.
/// `ready` is called with one line for people once all doors are open.
///
/// # Errors
/// See [`StartError`].
pub fn run(config: &Config, restore: Restore, ready: impl FnOnce(&str)) -> Result<(), StartError> {
    if let Some(cluster) = &config.cluster {
        return cluster::run(config, cluster, ready);
    }
    let wall = clock::wall_now();
    let fresh = Identity { id: random_bytes()?, seed: random_bytes()?, made_at: wall };
    let mut home = match &config.data {
        Some(path) => Some(Home::open(path, fresh)?),
        None => None,
    };
    let identity = home.as_ref().map_or(fresh, Home::identity);
    let seed = Seed::new(identity.seed);
    let (policy, origin) = load_policy(config.policy.as_deref(), &seed)?;
    let mut table = Table::new(config.keys_max, &seed);
    let restored = match &mut home {
        Some(home) => restored::restore(home, restore, &policy, &mut table, wall)?,
        None => None,
    };
    let mut changed = match &home {
        Some(home) => restored::change(home, restored.as_ref(), &policy, &table, wall)?,
        None => Changed::default(),
    };
    let time = restored.as_ref().map_or(Timestamp::from_nanos(1), |restored| restored.time);
    let clock = Clock::start_at(time.max(changed.time));
    let loaded = Loaded::new(policy, origin, wall);
    let (id, connections_max) = (identity.id, config.connections_max);
    let instance = Instance::with_table(table, connections_max, id, &seed, clock, loaded)
        .map_err(|error| StartError::Policy(error.to_string()))?;
    if home.is_some() {
        restored::number_on(&instance, restored, wall);
        changed.take_over(&instance);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::System { what: "event loop", source })?;
    let ends = {
        let _inside = runtime.enter();
        Ends::hear()?
    };
    let home = home.map(|home| (home, changed));
    runtime.block_on(serve(config, seed, Arc::clone(&instance), home, None, ends, ready))
}

async fn serve(
    config: &Config,
    seed: Seed,
    instance: Arc<Instance>,
    home: Option<(Home<Directory>, Changed)>,
    cluster: Option<&cluster::ClusterThread>,
    mut ends: Ends,
    ready: impl FnOnce(&str),
) -> Result<(), StartError> {
    let listen = |door, address| move |source| StartError::Listen { door, address, source };

    let access = access(config)?;
    let vitals = Arc::new(admin::Vitals::start(&instance));
    let admin =
        admin::Listener::open(config.admin, Arc::clone(&instance), Arc::clone(&vitals), access)
            .map_err(listen("admin", config.admin))?;
    let admin_address = admin.address().map_err(listen("admin", config.admin))?;
    let binary = binary::Listener::open(
        config.listen,
        config.workers,
        config.drain_grace,
        Arc::clone(&instance),
    )
    .map_err(listen("the binary protocol", config.listen))?;
    let binary_address = binary.address().map_err(listen("the binary protocol", config.listen))?;

    let doors = [
        ("resp", open_resp(config, &instance)?),
        ("http", open_http(config, &instance)?),
        ("rls", open_rls(config, &instance)?),
    ];
    let mut more_doors = String::new();
    for (name, door) in &doors {
        if let Some((_, address)) = door {
            more_doors.push_str(&format!(" · {name} {address}"));
        }
    }

    let keepers = match home {
        None => None,
        Some((home, Changed { last, sets, .. })) => {
            // Before the doors answer: what they change is kept from the first change on.
            let recorder = Recorder::start(home.change_file(), &instance, last, sets);
            let keeper = Keeper::start(home, &instance, config.snapshot_interval);
            let failed = |what| move |source| StartError::System { what, source };
            Some((
                keeper.map_err(failed("thread for snapshots"))?,
                recorder.map_err(failed("file of changes by hand"))?,
            ))
        }
    };

    let stopping = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let (stop_binary, stopped) = watch::channel(false);
    let binary = tokio::spawn(binary.serve(stopping(stopped)));
    let doors = doors.into_iter().filter_map(|(_, door)| door);
    let doors: Vec<_> = doors
        .map(|(door, _)| tokio::spawn(door.serve(stopping(stop_binary.subscribe()))))
        .collect();
    let (stop_admin, stopped) = watch::channel(false);
    let admin = tokio::spawn(admin.serve(stopping(stopped)));
    let upkeep = tokio::spawn(upkeep(Arc::clone(&instance), vitals));
    let journal = tokio::spawn(log::run(Arc::clone(&instance)));
    let hang_up = hear(SignalKind::hangup())?;
    // All nodes of a cluster have one policy, which comes through its log.
    let reload = cluster.is_none().then(|| {
        let (path, instance) = (config.policy.clone(), Arc::clone(&instance));
        tokio::spawn(reload::run(path, seed, instance, hang_up))
    });
    let loaded = instance.policy.load();
    ready(&format!(
        "tollkeeper {} ready · binary {binary_address} · admin http://{admin_address}{more_doors} · policy: {} \
         · at most {} keys",
        env!("CARGO_PKG_VERSION"),
        loaded.origin,
        config.keys_max,
    ));
    drop(loaded);

    ends.next().await;
    tracing::info!("draining; a second signal exits at once");
    // The admin door answers until the others have drained: `/readyz` says that they do.
    if let Some(cluster) = cluster {
        cluster.hand_over().await;
    }
    instance.drain();
    let _ = stop_binary.send(true);
    let drained = async {
        let _ = binary.await;
        for door in doors {
            let _ = door.await;
        }
        let _ = stop_admin.send(true);
        let _ = admin.await;
        if let Some((keeper, recorder)) = keepers {
            let stop = || {
                keeper.stop();
                recorder.stop();
            };
            let _ = tokio::task::spawn_blocking(stop).await;
        }
    };
    tokio::select! {
        () = drained => {}
        () = ends.next() => exit_at_once(),
    }
    for task in [upkeep, journal].into_iter().chain(reload) {
        task.abort();
    }
    Ok(())
}

/// The door for Redis clients and its address, if it is to be open.
fn open_resp(
    config: &Config,
    instance: &Arc<Instance>,
) -> Result<Option<(Listener, SocketAddr)>, StartError> {
    let Some(address) = config.resp else { return Ok(None) };
    let wrong = |path: &Path, why: String| StartError::Password { path: path.to_owned(), why };
    let password = match &config.resp_password_file {
        None => None,
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|error| wrong(path, error.to_string()))?;
            let password = text.trim_end().to_owned();
            if password.is_empty() {
                return Err(wrong(path, "it is empty".to_owned()));
            }
            Some(password)
        }
    };
    let (threads, grace) = (config.workers, config.drain_grace);
    let door = resp::open(address, threads, grace, password.as_deref(), instance);
    opened("Redis clients", address, door)
}

/// The HTTP door and its address, if it is to be open.
fn open_http(
    config: &Config,
    instance: &Arc<Instance>,
) -> Result<Option<(Listener, SocketAddr)>, StartError> {
    let forwarded = http::Forwarded::parse(&config.http_trusted, &config.http_headers);
    let forwarded = forwarded.map_err(StartError::Forwarded)?;
    let Some(address) = config.http else { return Ok(None) };
    let (threads, grace) = (config.workers, config.drain_grace);
    opened("HTTP", address, http::open(address, threads, grace, forwarded, instance))
}

/// The door for Envoy and its address, if it is to be open.
fn open_rls(
    config: &Config,
    instance: &Arc<Instance>,
) -> Result<Option<(Listener, SocketAddr)>, StartError> {
    let Some(address) = config.rls else { return Ok(None) };
    let (threads, grace) = (config.workers, config.drain_grace);
    opened("Envoy", address, envoy::open(address, threads, grace, instance))
}

/// A door, and the address that it has taken.
fn opened(
    door: &'static str,
    address: SocketAddr,
    listener: io::Result<Listener>,
) -> Result<Option<(Listener, SocketAddr)>, StartError> {
    let listen = |source| StartError::Listen { door, address, source };
    let listener = listener.map_err(listen)?;
    let address = listener.address().map_err(listen)?;
    Ok(Some((listener, address)))
}

/// Who may change what is in force.
fn access(config: &Config) -> Result<admin::Access, StartError> {
    let wrong = |path: &Path, why: &dyn core::fmt::Display| StartError::Token {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let token = match &config.admin_token_file {
        None => None,
        Some(path) => {
            Some((path, std::fs::read_to_string(path).map_err(|error| wrong(path, &error))?))
        }
    };
    let text = token.as_ref().map(|(_, text)| text.as_str());
    admin::Access::new(config.admin.ip(), text).map_err(|error| match &token {
        Some((path, _)) => wrong(path, &error),
        None => wrong(Path::new(""), &error),
    })
}

/// A second signal means that the operator will not wait for threads that still serve.
fn exit_at_once() -> ! {
    std::process::exit(1)
}

/// What is done now and then: sweeping, steering wall time, and noting what the admin door tells.
async fn upkeep(instance: Arc<Instance>, vitals: Arc<admin::Vitals>) {
    let mut cursor = SweepCursor::default();
    let mut sweeps = tokio::time::interval(SWEEP_EVERY);
    let mut steers = tokio::time::interval(STEER_EVERY);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    steers.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = sweeps.tick() => sweep(&instance, &mut cursor),
            _ = steers.tick() => {
                let ahead_nanos = instance.clock.steer();
                vitals.observe(&instance, ahead_nanos);
                instance.forget_ended();
            }
        }
    }
}

fn sweep(instance: &Instance, cursor: &mut SweepCursor) {
    let passed = instance.clock.passed(SWEEP_LAG_NANOS);
    let mut slots = 0;
    // A step stays within one shard; small shards take several.
    for _ in 0..64 {
        slots += instance.table.load().sweep(cursor, passed, SWEEP_SLOTS - slots).slots;
        if slots >= SWEEP_SLOTS {
            break;
        }
    }
}
